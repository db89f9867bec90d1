//! Standbys of PostgreSQL that take the place of their primary.

use watchpost::pb::Topic;

use super::{
    alerts_after, assert_refused, assert_tells, cursor_now, ends_replaced, forgets_rule, new_alerts, raise, serve,
    serve_with_a_rule,
};
use crate::support::{always, database::Cluster, topics};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_lags_is_another_history() {
    let primary = Cluster::start().await;
    let url = primary.url("postgres");
    let server = serve_with_a_rule(&url).await;
    raise(&server, 2).await;
    let mut standby = primary.standby().await;
    raise(&server, 3).await;
    let after = cursor_now(&server).await;
    server.stop().await;
    primary.stop().await;
    standby.take_over(&primary).await;

    let server = serve(&url).await;
    assert_refused(&server, &after).await;
    // As far as the old primary was, and further.
    raise(&server, 6).await;
    assert_refused(&server, &after).await;
    assert_tells(&server, &server).await;
    let own = cursor_now(&server).await;
    server.stop().await;
    let server = serve(&url).await;
    let raised = raise(&server, 1).await;
    let mut resumed = server.watch(alerts_after(&own)).await;
    assert_eq!(new_alerts(&mut resumed, 1).await, raised);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn running_servers_notice_that_a_standby_has_taken_over() {
    let primary = Cluster::start().await;
    let url = primary.url("postgres");
    let (one, two) = (serve_with_a_rule(&url).await, serve(&url).await);
    raise(&one, 2).await;
    let mut standby = primary.standby().await;
    let lost = one.rule(always("made after the copy")).await;
    let mut watches = [one.watch(topics(&[Topic::Alerts])).await, two.watch(topics(&[Topic::Alerts])).await];
    let raised = raise(&one, 2).await;
    for watch in &mut watches {
        assert_eq!(new_alerts(watch, raised.len()).await, raised);
    }
    primary.stop().await;
    standby.take_over(&primary).await;

    for watch in &mut watches {
        ends_replaced(watch).await;
    }
    for server in [&one, &two] {
        for watch in &watches {
            assert_refused(server, &watch.cursor).await;
        }
        // The rule that was lost is in force no more.
        forgets_rule(server, &lost.id).await;
    }
    assert_tells(&one, &two).await;
    assert_tells(&two, &one).await;
    one.stop().await;
    two.stop().await;
}

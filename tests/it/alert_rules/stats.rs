//! How often rules fired and were held back.

use watchpost::pb::{self, Severity};

use super::delete;
use crate::support::{
    TestServer, always,
    calls::{at, execute, refused, seconds, walk},
    database::{Backend, on_both},
    in_seconds, ingest, quiet,
};

const NONE: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

async fn stats(server: &TestServer, request: pb::GetAlertRuleStatsRequest) -> Vec<pb::AlertRuleStats> {
    let page = server.rules().get_alert_rule_stats(request).await.unwrap().into_inner();
    assert_eq!(page.next_page_token, "");
    page.alert_rule_stats
}

/// The name and the counts: fired, by cooldown, silence, snooze and flapping.
fn counts(stats: &pb::AlertRuleStats) -> (&str, [i64; 5]) {
    let counts = [
        stats.fired,
        stats.suppressed_by_cooldown,
        stats.suppressed_by_silence,
        stats.suppressed_by_snooze,
        stats.suppressed_by_flapping,
    ];
    (&stats.rule_name, counts)
}

#[on_both]
async fn what_fired_and_what_was_held_back_is_counted(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    let any = pb::GetAlertRuleStatsRequest::default;
    assert_eq!(stats(&server, any()).await, []);
    let cools = server.rule(pb::AlertRule { cooldown: seconds(3_600), ..always("cools") }).await;
    let flaps = pb::AlertRule { flap_threshold: Some(1), flap_window: seconds(86_400), ..always("flaps") };
    let flaps = server.rule(pb::AlertRule { severity: Severity::High.into(), ..flaps }).await;
    server.rule(pb::AlertRule { risk_threshold: Some(100), ..always("never") }).await;
    let nothing = stats(&server, any()).await;
    assert_eq!(
        nothing.iter().map(counts).collect::<Vec<_>>(),
        [("never", [0; 5]), ("flaps", [0; 5]), ("cools", [0; 5])]
    );
    assert!(nothing.iter().all(|rule| rule.last_fired_at.is_none() && rule.last_suppressed_at.is_none()));

    let mut alerts = Vec::new();
    for _ in 0..4 {
        alerts.extend(server.ingest("door", vec![]).await.alerts);
    }
    let fired_last = alerts.last().unwrap().created_at;
    let silence = pb::Silence { camera_ids: vec![], severities: vec![Severity::High.into()], ..quiet("") };
    server.silence(silence).await;
    server.ingest("door", vec![]).await;
    let mut snoozed = ingest("door", vec![]);
    snoozed.event.as_mut().unwrap().snooze_until = in_seconds(60);
    server.events().ingest_event(snoozed).await.unwrap();

    let all = stats(&server, any()).await;
    let expected = [("never", [0; 5]), ("flaps", [2, 0, 1, 1, 2]), ("cools", [1, 4, 0, 1, 0])];
    assert_eq!(all.iter().map(counts).collect::<Vec<_>>(), expected);
    let last = server.silences().list_alert_suppressions(pb::ListAlertSuppressionsRequest::default()).await;
    let last = last.unwrap().into_inner().alert_suppressions[0].created_at;
    assert_eq!((all[1].last_fired_at, all[1].last_suppressed_at), (fired_last, last));
    assert_eq!((&all[1].rule_id, all[2].last_suppressed_at), (&flaps.id, last));

    let names = async |request| {
        let found = stats(&server, request).await;
        found.into_iter().map(|rule| rule.rule_name).collect::<Vec<_>>().join(" ")
    };
    let ids = |ids: &[&str]| pb::GetAlertRuleStatsRequest { ids: crate::support::calls::strings(ids), ..any() };
    assert_eq!(names(ids(&[NONE, &cools.id.to_uppercase()])).await, "cools");
    let filter = pb::AlertRuleFilter { severity: Severity::High.into(), ..Default::default() };
    assert_eq!(names(pb::GetAlertRuleStatsRequest { filter: Some(filter), ..any() }).await, "flaps");
    for (start, end, expected) in [
        (None, at(1), [0; 5]),
        (in_seconds(60), None, [0; 5]),
        (at(1), in_seconds(60), [2, 0, 1, 1, 2]),
        (fired_last, None, [1, 0, 1, 1, 2]),
        (None, fired_last, [1, 0, 0, 0, 0]),
    ] {
        let range = Some(pb::TimeRange { start, end });
        let found = stats(&server, pb::GetAlertRuleStatsRequest { range, ..ids(&[&flaps.id]) }).await;
        assert_eq!(counts(&found[0]).1, expected, "{range:?}");
    }
    // Counted from what is stored, and so gone with it.
    execute(&server, "DELETE FROM events").await;
    assert_eq!(counts(&stats(&server, ids(&[&flaps.id])).await[0]).1, [0; 5]);
    delete(&server, &flaps.id).await.unwrap();
    assert_eq!(names(any()).await, "never cools");
    server.stop().await;
}

#[on_both]
async fn a_bad_field_is_named_and_pages_are_whole(backend: Backend) {
    let server = TestServer::start(backend).await;
    for n in 0..5 {
        server.rule(always(&n.to_string())).await;
    }
    let any = pb::GetAlertRuleStatsRequest::default;
    let filter = Some(pb::AlertRuleFilter::default());
    for (request, path) in [
        (pb::GetAlertRuleStatsRequest { ids: vec!["x".into()], ..any() }, "ids[0]"),
        (pb::GetAlertRuleStatsRequest { ids: vec![NONE.into(); 1_001], ..any() }, "ids"),
        (pb::GetAlertRuleStatsRequest { ids: vec![NONE.into()], filter: filter.clone(), ..any() }, "filter"),
        (
            pb::GetAlertRuleStatsRequest { range: Some(pb::TimeRange { start: at(2), end: at(1) }), ..any() },
            "range.end",
        ),
        (pb::GetAlertRuleStatsRequest { page_size: -1, ..any() }, "page_size"),
        (pb::GetAlertRuleStatsRequest { page_token: "x".into(), ..any() }, "page_token"),
    ] {
        refused(server.rules().get_alert_rule_stats(request).await, path);
    }
    walk(5, async |page_size, page_token| {
        let request = pb::GetAlertRuleStatsRequest { page_size, page_token, ..any() };
        let page = server.rules().get_alert_rule_stats(request).await.unwrap().into_inner();
        (page.alert_rule_stats, page.next_page_token)
    })
    .await;
    server.stop().await;
}

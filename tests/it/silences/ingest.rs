//! What a silence does to rules that match.

use watchpost::pb::{self, RuleStop, Severity, event_service_client::EventServiceClient};

use super::{expire, update};
use crate::support::{
    self, TestServer, always,
    calls::{at, execute, seconds},
    connect,
    database::{Backend, on_both},
    eventually, in_seconds, ingest, quiet,
};

/// What became of the only rule: the silence that held it back, or nothing if it fired.
async fn held_by(server: &TestServer, camera_id: &str) -> Option<String> {
    let response = server.ingest(camera_id, vec![]).await;
    let [outcome] = &response.rule_outcomes[..] else {
        panic!("not one rule: {response:?}");
    };
    assert_eq!(outcome.fired, response.alerts.len() == 1);
    if outcome.fired {
        return None;
    }
    assert_eq!(outcome.stopped_by(), RuleStop::Silenced);
    let id = outcome.silence_id.clone();
    assert!(id.as_ref().is_some_and(|id| outcome.detail.contains(id)), "{outcome:?}");
    assert_eq!(outcome.alert_id, None);
    id
}

async fn ready(backend: Backend) -> TestServer {
    let server = TestServer::start(backend).await;
    for id in ["door", "gate"] {
        server.camera(id).await;
    }
    server
}

#[on_both]
async fn a_silence_holds_from_the_call_that_makes_it_to_the_call_that_ends_it(backend: Backend) {
    let server = ready(backend).await;
    server.rule(always("r")).await;
    for _ in 0..3 {
        assert_eq!(held_by(&server, "door").await, None);
        let silence = server.silence(quiet("door")).await;
        assert_eq!(held_by(&server, "door").await, Some(silence.id.clone()));
        assert_eq!(held_by(&server, "gate").await, None);
        let elsewhere = pb::Silence { id: silence.id.clone(), camera_ids: vec!["gate".into()], ..Default::default() };
        update(&server, elsewhere, &[]).await.unwrap();
        assert_eq!(held_by(&server, "door").await, None);
        assert_eq!(held_by(&server, "gate").await, Some(silence.id.clone()));
        expire(&server, &silence.id).await.unwrap();
        assert_eq!(held_by(&server, "gate").await, None);
    }
    server.silence(pb::Silence { starts_at: in_seconds(3_000), ..quiet("door") }).await;
    assert_eq!(held_by(&server, "door").await, None);
    server.stop().await;
}

#[on_both]
async fn rules_and_severities_are_silenced_apart(backend: Backend) {
    let server = ready(backend).await;
    let low = server.rule(pb::AlertRule { severity: Severity::Low.into(), ..always("low") }).await;
    server.rule(pb::AlertRule { severity: Severity::High.into(), ..always("high") }).await;
    server.rule(pb::AlertRule { severity: Severity::High.into(), ..always("also") }).await;
    let fired = async || {
        let outcomes = server.ingest("door", vec![]).await.rule_outcomes;
        let fired = outcomes.into_iter().filter(|outcome| outcome.fired);
        fired.map(|outcome| outcome.rule_name).collect::<Vec<_>>().join(" ")
    };
    let any = || pb::Silence { camera_ids: vec![], ..quiet("") };
    for (silence, expected) in [
        (pb::Silence { rule_ids: vec![low.id.clone()], ..any() }, "high also"),
        (pb::Silence { severities: vec![Severity::High.into()], ..any() }, "low"),
        (pb::Silence { severities: vec![Severity::High.into(), Severity::Low.into()], ..any() }, ""),
        (
            pb::Silence { severities: vec![Severity::High.into()], rule_ids: vec![low.id.clone()], ..any() },
            "low high also",
        ),
        (pb::Silence { severities: vec![Severity::High.into()], ..quiet("gate") }, "low high also"),
        (pb::Silence { match_all: true, ..any() }, ""),
    ] {
        let id = server.silence(silence.clone()).await.id;
        assert_eq!(fired().await, expected, "{silence:?}");
        expire(&server, &id).await.unwrap();
    }
    server.stop().await;
}

#[on_both]
async fn what_is_silenced_claims_no_cooldown_and_a_retry_is_told_the_same(backend: Backend) {
    let server = ready(backend).await;
    server.rule(pb::AlertRule { cooldown: seconds(3_600), ..always("r") }).await;
    let silence = server.silence(quiet("door")).await;
    let request = pb::IngestEventRequest { request_id: "one".into(), ..ingest("door", vec![]) };
    let first = server.events().ingest_event(request.clone()).await.unwrap().into_inner();
    assert_eq!(first.rule_outcomes[0].silence_id.as_deref(), Some(&*silence.id));
    expire(&server, &silence.id).await.unwrap();
    let again = server.events().ingest_event(request).await.unwrap().into_inner();
    let told = pb::RuleOutcome { detail: String::new(), ..first.rule_outcomes[0].clone() };
    assert_eq!((again.replayed, again.rule_outcomes), (true, vec![told]));
    assert_eq!(held_by(&server, "door").await, None);
    // A snooze comes first: it is the event's own.
    server.silence(quiet("door")).await;
    let mut snoozed = ingest("door", vec![]);
    snoozed.event.as_mut().unwrap().snooze_until = at(253_402_300_799);
    let snoozed = server.events().ingest_event(snoozed).await.unwrap().into_inner();
    assert_eq!(snoozed.rule_outcomes[0].stopped_by(), RuleStop::Snoozed);
    server.stop().await;
}

#[on_both]
async fn what_another_writer_wrote_amiss_holds_nothing_back(backend: Backend) {
    let server = ready(backend).await;
    server.rule(always("r")).await;
    let good = server.silence(quiet("gate")).await;
    let id = if backend == Backend::Postgres { "gen_random_uuid()" } else { "randomblob(16)" };
    for lists in ["NULL, NULL, NULL", "NULL, '[\"x\"]', NULL", "NULL, NULL, '[\"none\"]'"] {
        let insert = format!(
            "INSERT INTO silences (id, camera_ids, rule_ids, severities, ends_at, created_by, reason)
                VALUES ({id}, {lists}, '2130-01-01T00:00:00+00:00', 'x', 'x')"
        );
        execute(&server, &insert).await;
    }
    let server = TestServer::start_with(server.stop().await, |_| {}).await;
    assert_eq!(held_by(&server, "door").await, None);
    assert_eq!(held_by(&server, "gate").await, Some(good.id));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silences_are_in_force_after_a_restart_and_on_another_process() {
    let server = ready(Backend::Postgres).await;
    server.rule(always("r")).await;
    let silence = server.silence(quiet("door")).await;
    let one = TestServer::start_with(server.stop().await, |_| {}).await;
    assert_eq!(held_by(&one, "door").await, Some(silence.id.clone()));

    let two = support::start(one.database.url(), |_| {}).await;
    let channel = connect(&format!("http://{}", two.address)).await;
    let mut events = EventServiceClient::new(channel);
    let mut becomes = async |camera: &str, fires: bool| {
        eventually("the other server learns of the silence", async || {
            let response = events.ingest_event(ingest(camera, vec![])).await;
            response.unwrap().into_inner().rule_outcomes[0].fired == fires
        })
        .await;
    };
    becomes("door", false).await;
    expire(&one, &silence.id).await.unwrap();
    becomes("door", true).await;
    one.silence(quiet("gate")).await;
    becomes("gate", false).await;
    assert!(two.stop().await);
    one.stop().await;
}

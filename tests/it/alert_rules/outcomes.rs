//! What an ingest tells of the rules: those that matched, and the others only to whoever asks.

use watchpost::pb::{self, RuleStop};

use crate::support::{
    TestServer, always,
    calls::{at, seconds, strings},
    database::{Backend, on_both},
    detection, ingest,
};

use RuleStop::{CameraIds, Cooldown, MinConfidence, Snoozed, Unspecified};

/// A server with a rule that fires, one of another camera, one that cools down, and one that asks for
/// more than there is.
async fn ready(backend: Backend) -> TestServer {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    let elsewhere = pb::AlertRule { camera_ids: strings(&["gate"]), ..always("elsewhere") };
    let cools_down =
        pb::AlertRule { cooldown: seconds(3600), camera_ids: strings(&["gate", "door"]), ..always("cools down") };
    let sure = pb::AlertRule { min_confidence: Some(0.9), ..always("sure") };
    for rule in [elsewhere, always("fires"), cools_down, sure] {
        server.rule(rule).await;
    }
    server
}

/// An ingest, told in full or not.
async fn send(server: &TestServer, request: &pb::IngestEventRequest, explain: bool) -> pb::IngestEventResponse {
    let request = pb::IngestEventRequest { explain, ..request.clone() };
    let response = server.events().ingest_event(request).await;
    response.unwrap().into_inner()
}

fn told(response: &pb::IngestEventResponse) -> Vec<(&str, RuleStop)> {
    let outcomes = response.rule_outcomes.iter();
    let told = outcomes.map(|outcome| (&*outcome.rule_name, outcome.stopped_by()));
    told.collect()
}

#[on_both]
async fn only_rules_that_matched_are_told_unless_all_are_asked_for(backend: Backend) {
    let server = ready(backend).await;
    let request = ingest("door", vec![detection("dog", 0.5)]);
    let first = send(&server, &request, false).await;
    assert_eq!(told(&first), [("fires", Unspecified), ("cools down", Unspecified)]);
    assert!(first.rule_outcomes.iter().all(|outcome| outcome.fired && outcome.detail.is_empty()));
    let second = send(&server, &request, false).await;
    assert_eq!(told(&second), [("fires", Unspecified), ("cools down", Cooldown)]);
    let held = &second.rule_outcomes[1];
    assert_eq!((held.fired, &held.alert_id), (false, &first.rule_outcomes[1].alert_id));

    let all = send(&server, &request, true).await;
    assert_eq!(
        told(&all),
        [("elsewhere", CameraIds), ("fires", Unspecified), ("cools down", Cooldown), ("sure", MinConfidence),]
    );
    assert_eq!(all.rule_outcomes[0].detail, "camera_id door is not listed");
    assert_eq!(all.rule_outcomes[3].detail, "confidence 0.5 < 0.9");
    assert_eq!(all.alerts.len(), 1);
    server.stop().await;
}

#[on_both]
async fn a_snoozed_event_holds_back_only_what_matches(backend: Backend) {
    let server = ready(backend).await;
    let mut snoozed = ingest("door", vec![detection("dog", 0.5)]);
    snoozed.event.as_mut().unwrap().snooze_until = at(253_402_300_799);
    let response = send(&server, &snoozed, true).await;
    assert_eq!(
        told(&response),
        [("elsewhere", CameraIds), ("fires", Snoozed), ("cools down", Snoozed), ("sure", MinConfidence),]
    );
    assert_eq!(response.alerts, []);
    let held = &response.rule_outcomes[1];
    assert_eq!((held.fired, &held.alert_id), (false, &None));
    assert_eq!(held.detail, "the event is snoozed until 9999-12-31T23:59:59+00:00");
    // Its cooldown has not begun.
    let awake = send(&server, &ingest("door", vec![]), false).await;
    assert_eq!(told(&awake), [("fires", Unspecified), ("cools down", Unspecified)]);
    server.stop().await;
}

#[on_both]
async fn a_repetition_tells_what_matched_whatever_is_asked(backend: Backend) {
    let server = ready(backend).await;
    for (n, explain) in [false, true].into_iter().enumerate() {
        let request_id = format!("r{n}");
        let request = pb::IngestEventRequest { request_id, ..ingest("door", vec![]) };
        let first = send(&server, &request, explain).await;
        let outcomes = first.rule_outcomes.iter();
        let matched: Vec<_> = outcomes
            .filter(|outcome| [Unspecified, Cooldown].contains(&outcome.stopped_by()))
            .map(|outcome| pb::RuleOutcome { detail: String::new(), ..outcome.clone() })
            .collect();
        assert_eq!(matched.len(), 2);
        for again in [true, false] {
            let replayed = send(&server, &request, again).await;
            assert!(replayed.replayed);
            assert_eq!(replayed.rule_outcomes, matched);
        }
    }
    let mut snoozed = pb::IngestEventRequest { request_id: "z".into(), ..ingest("door", vec![]) };
    snoozed.event.as_mut().unwrap().snooze_until = at(253_402_300_799);
    send(&server, &snoozed, false).await;
    let replayed = send(&server, &snoozed, true).await;
    assert_eq!(told(&replayed), [("fires", Snoozed), ("cools down", Snoozed)]);
    server.stop().await;
}

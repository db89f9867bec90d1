//! Repeated ingests: stored once, answered as the first time.

use std::collections::HashSet;

use tonic::Code;
use watchpost::pb;

use super::{event, request, send, store};
use crate::support::{
    TestServer, always,
    calls::{Reply, at, failed, rows, seconds},
    connect,
    database::{Backend, on_both},
    detection, field, start,
};

/// An ingest with these keys.
fn keyed(request_id: &str, batch_id: &str) -> pb::IngestEventRequest {
    let event = pb::Event { batch_id: batch_id.into(), risk_score: Some(50), ..event() };
    pb::IngestEventRequest {
        request_id: request_id.into(),
        detections: vec![detection("dog", 0.5), detection("cat", 0.25)],
        ..request(event)
    }
}

/// The rules of an answer, what they did, and by which alert; not what people read of it.
fn outcomes(response: &pb::IngestEventResponse) -> Vec<(String, bool, i32, Option<String>)> {
    let outcome = |outcome: &pb::RuleOutcome| {
        let alert_id = outcome.alert_id.clone();
        (outcome.rule_id.clone(), outcome.fired, outcome.stopped_by, alert_id)
    };
    response.rule_outcomes.iter().map(outcome).collect()
}

/// That a key was refused because it was used for something else.
#[track_caller]
fn reused(reply: Reply<pb::IngestEventResponse>, path: &str) {
    let status = failed(reply, Code::AlreadyExists, "IDEMPOTENCY_KEY_REUSED");
    assert_eq!(field(&status), path);
}

/// A server with two cameras, a rule that fires, one that fires once, and one that does not.
async fn ready(backend: Backend) -> TestServer {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    server.camera("gate").await;
    server.rule(always("fires")).await;
    let cools_down = pb::AlertRule { cooldown: seconds(3600), ..always("cools down") };
    server.rule(cools_down).await;
    let too_high = pb::AlertRule { risk_threshold: Some(51), ..always("too high") };
    server.rule(too_high).await;
    server
}

#[on_both]
async fn a_repeated_request_is_answered_as_the_first_time(backend: Backend) {
    let server = ready(backend).await;
    for (n, (first, again)) in [
        (keyed("r1", ""), keyed("r1", "")),
        (keyed("", "b1"), keyed("", "b1")),
        (keyed("r2", "b2"), keyed("r2", "b2")),
        (keyed("r3", "b3"), keyed("", "b3")),
        (keyed("r4", "b4"), keyed("other", "b4")),
        (keyed(" ", " "), keyed(" ", " ")),
    ]
    .into_iter()
    .enumerate()
    {
        let stored = store(&server, first).await;
        assert!(!stored.replayed);
        assert_eq!(stored.alerts.len(), if n == 0 { 2 } else { 1 });
        let before = rows(&server).await;
        for _ in 0..2 {
            let replayed = store(&server, again.clone()).await;
            assert!(replayed.replayed);
            assert_eq!(outcomes(&replayed), outcomes(&stored), "{again:?}");
            let expected = pb::IngestEventResponse {
                replayed: true,
                rule_outcomes: replayed.rule_outcomes.clone(),
                ..stored.clone()
            };
            assert_eq!(replayed, expected);
        }
        assert_eq!(rows(&server).await, before, "{again:?}");
    }
    server.stop().await;
}

#[on_both]
async fn a_key_is_not_good_for_other_content(backend: Backend) {
    let server = ready(backend).await;
    store(&server, keyed("r", "b")).await;
    let before = rows(&server).await;
    let change = |change: fn(&mut pb::IngestEventRequest)| {
        let mut request = keyed("r", "b");
        change(&mut request);
        request
    };
    for (request, path) in [
        (change(|r| r.detections.truncate(1)), "request_id"),
        (change(|r| r.detections.reverse()), "request_id"),
        (change(|r| r.event.as_mut().unwrap().risk_score = Some(51)), "request_id"),
        (change(|r| r.event.as_mut().unwrap().batch_id.push('x')), "request_id"),
        (change(|r| r.event.as_mut().unwrap().camera_id = "gate".into()), "request_id"),
        (
            change(|r| {
                r.request_id.clear();
                r.detections.clear();
            }),
            "event.batch_id",
        ),
        (
            change(|r| {
                r.request_id.push('x');
                r.detections.clear();
            }),
            "event.batch_id",
        ),
    ] {
        reused(send(&server, request).await, path);
    }
    assert_eq!(rows(&server).await, before);
    // Another camera may use the same id, and ids are told apart by case.
    let mut gate = keyed("", "b");
    gate.event.as_mut().unwrap().camera_id = "gate".into();
    for request in [gate, keyed("R", "B")] {
        assert!(!store(&server, request).await.replayed);
    }
    server.stop().await;
}

#[on_both]
async fn events_without_keys_are_never_taken_for_the_same(backend: Backend) {
    let server = ready(backend).await;
    let first = store(&server, keyed("", "")).await.event.unwrap();
    let second = store(&server, keyed("", "")).await;
    assert!(!second.replayed);
    let second = second.event.unwrap();
    assert!(second.id > first.id && second.batch_id != first.batch_id);
    // The id that the server made up is not one of the pipeline's.
    let made_up = store(&server, keyed("", &first.batch_id)).await;
    assert!(!made_up.replayed);
    server.stop().await;
}

#[on_both]
async fn many_identical_requests_at_once_store_one_event(backend: Backend) {
    let server = ready(backend).await;
    for (round, keys) in [("r", ""), ("", "b"), ("r2", "b2")].into_iter().enumerate() {
        let sent: Vec<_> = (0..16)
            .map(|_| {
                let mut events = server.events();
                tokio::spawn(async move { events.ingest_event(keyed(keys.0, keys.1)).await.unwrap().into_inner() })
            })
            .collect();
        let (mut ids, mut new) = (HashSet::new(), 0);
        let mut seen = HashSet::new();
        for reply in sent {
            let reply = reply.await.unwrap();
            new += usize::from(!reply.replayed);
            seen.insert(outcomes(&reply));
            ids.insert(reply.event.unwrap().id);
        }
        assert_eq!((ids.len(), new, seen.len()), (1, 1, 1), "{keys:?}");
        let counted = rows(&server).await;
        assert!(counted.contains(&("events", i64::try_from(round).unwrap() + 1)), "{counted:?}");
    }
    server.stop().await;
}

#[on_both]
async fn a_replay_gives_what_is_now(backend: Backend) {
    let server = ready(backend).await;
    let stored = store(&server, keyed("r", "b")).await;
    let id = stored.event.unwrap().id;
    let review = pb::ReviewEventRequest { id, notes: Some("seen".into()), reviewed: None };
    let reviewed = server.events().review_event(review).await.unwrap().into_inner();
    let dismiss = pb::DismissAlertRequest { id: stored.alerts[0].id.clone(), ..Default::default() };
    let dismissed = server.alerts().dismiss_alert(dismiss).await.unwrap().into_inner();
    let replayed = store(&server, keyed("r", "b")).await;
    assert_eq!((replayed.event.unwrap(), &replayed.alerts[0]), (reviewed, &dismissed));

    // A retry that comes late is still a retry, whatever became of the camera and the event.
    server.events().delete_event(pb::DeleteEventRequest { id }).await.unwrap();
    server.cameras().delete_camera(pb::DeleteCameraRequest { id: "door".into() }).await.unwrap();
    let replayed = store(&server, keyed("r", "b")).await;
    assert!(replayed.replayed && replayed.event.unwrap().deleted_at.is_some());
    server.stop().await;
}

#[on_both]
async fn times_that_the_server_fills_in_do_not_tell_requests_apart(backend: Backend) {
    let server = ready(backend).await;
    let stored = store(&server, keyed("r", "")).await;
    let filled = stored.event.clone().unwrap();
    assert!(filled.started_at.is_some());
    let replayed = store(&server, keyed("r", "")).await;
    assert_eq!(replayed.event.unwrap(), filled);
    let mut timed = keyed("r", "");
    timed.event.as_mut().unwrap().started_at = at(1);
    reused(send(&server, timed).await, "request_id");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_on_one_database_store_a_request_once() {
    // Without rules, of which one would have every transaction wait for the one before.
    let server = TestServer::start(Backend::Postgres).await;
    server.camera("door").await;
    let other = start(server.database.url(), |_| {}).await;
    let channel = connect(&format!("http://{}", other.address)).await;
    let channels = [server.channel.clone(), channel];
    for round in 0..8 {
        // The same requests by both, in opposite orders, so that they meet.
        let sent: Vec<_> = (0..200)
            .map(|n| {
                let key = if n < 100 { n } else { 199 - n };
                let mut events =
                    pb::event_service_client::EventServiceClient::new(channels[usize::from(n < 100)].clone());
                let request = keyed(&format!("r{round}-{key}"), &format!("b{round}-{key}"));
                let sending = async move { events.ingest_event(request).await };
                (key, tokio::spawn(sending))
            })
            .collect();
        let (mut ids, mut new) = (HashSet::new(), HashSet::new());
        for (key, reply) in sent {
            let reply = reply.await.unwrap().unwrap().into_inner();
            ids.insert(reply.event.unwrap().id);
            assert!(reply.replayed || new.insert(key), "{key} is stored twice");
        }
        assert_eq!((ids.len(), new.len()), (100, 100));
    }
    assert!(other.stop().await);
    server.stop().await;
}

//! Reviews and deletions.

use watchpost::pb;

use super::{detections_of, event, get, list_events, request, store};
use crate::support::{
    TestServer, always,
    calls::{Reply, not_found, refused},
    database::{Backend, on_both},
    detection,
};

async fn review(server: &TestServer, id: i64, reviewed: Option<bool>, notes: Option<&str>) -> Reply<pb::Event> {
    let notes = notes.map(Into::into);
    let request = pb::ReviewEventRequest { id, reviewed, notes };
    server.events().review_event(request).await
}

async fn delete(server: &TestServer, id: i64) -> Reply<()> {
    let request = pb::DeleteEventRequest { id };
    server.events().delete_event(request).await
}

#[on_both]
async fn a_review_sets_the_flag_and_the_notes(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    let sent = pb::Event { llm_prompt: Some("p".into()), ..event() };
    let fresh = store(&server, request(sent)).await.event.unwrap();
    let long = "ü".repeat(65_536);
    for (reviewed, notes, expected) in [
        (None, None, (true, None)),
        (Some(false), Some("a cat"), (false, Some("a cat"))),
        (Some(true), None, (true, Some("a cat"))),
        (None, Some(""), (true, None)),
        (Some(false), Some(" "), (false, Some(" "))),
        (None, Some(&*long), (true, Some(&*long))),
    ] {
        let event = review(&server, fresh.id, reviewed, notes).await.unwrap().into_inner();
        let expected = pb::Event { reviewed: expected.0, notes: expected.1.map(Into::into), ..fresh.clone() };
        assert_eq!(event, expected);
        assert_eq!(get(&server, fresh.id).await.unwrap().into_inner(), event);
    }
    refused(review(&server, fresh.id, None, Some(&(long + "x"))).await, "notes");
    refused(review(&server, fresh.id, None, Some("\0")).await, "notes");
    server.stop().await;
}

#[on_both]
async fn a_deleted_event_is_gone_and_its_alerts_stay(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    server.rule(always("everything")).await;
    let kept = server.ingest("door", vec![detection("dog", 0.5)]).await;
    let gone = server.ingest("door", vec![detection("cat", 0.5)]).await;
    let id = gone.event.unwrap().id;
    delete(&server, id).await.unwrap();
    not_found(get(&server, id).await, "event", id);
    not_found(delete(&server, id).await, "event", id);
    not_found(review(&server, id, None, None).await, "event", id);
    let kept = kept.event.unwrap();
    assert_eq!(detections_of(&server, kept.id).await.len(), 1);
    assert_eq!(list_events(&server, pb::EventFilter::default()).await, [kept]);
    let alert = pb::GetAlertRequest { id: gone.alerts[0].id.clone() };
    assert_eq!(server.alerts().get_alert(alert).await.unwrap().into_inner(), gone.alerts[0]);
    server.stop().await;
}

#[on_both]
async fn an_unknown_event_is_not_found(backend: Backend) {
    let server = TestServer::start(backend).await;
    for id in [1, i64::MAX] {
        not_found(get(&server, id).await, "event", id);
        not_found(delete(&server, id).await, "event", id);
        not_found(review(&server, id, None, Some("x")).await, "event", id);
    }
    for id in [0, -1, i64::MIN] {
        refused(get(&server, id).await, "id");
        refused(delete(&server, id).await, "id");
        refused(review(&server, id, None, None).await, "id");
    }
    server.stop().await;
}

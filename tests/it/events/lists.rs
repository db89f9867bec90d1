//! Lists of events and detections: pages and filters.

use serde_json::json;
use watchpost::pb::{self, Severity};

use super::{event, list_detections, list_events, request, store};
use crate::support::{
    TestServer,
    calls::{at, between, object, strings, walk},
    database::{Backend, on_both},
    detection,
};

/// Ingests events that differ in everything that a filter looks at. `batch_id` is their name.
async fn ingest_various(server: &TestServer) {
    for id in ["door", "gate"] {
        server.camera(id).await;
    }
    let named = |name: &str, started_at| pb::Event { batch_id: name.into(), started_at: at(started_at), ..event() };
    let quiet = named("quiet", 100);
    let dog = pb::Event { risk_score: Some(10), summary: Some("A Dog, 100% sure_".into()), ..named("dog", 200) };
    let car = pb::Event {
        camera_id: "gate".into(),
        risk_score: Some(60),
        reasoning: Some("STRAßE im Regen\\".into()),
        ..named("car", 300)
    };
    let both = pb::Event {
        camera_id: "gate".into(),
        risk_score: Some(100),
        risk_level: Severity::Low.into(),
        summary: Some("a car".into()),
        ..named("both", 400)
    };
    for (event, detections) in [
        (quiet, vec![]),
        (dog, vec![detection("Dog", 0.2)]),
        (car, vec![detection("car", 0.9), detection("Über_x", 0.4)]),
        (both, vec![detection("hotdog", 0.5), detection("CAR", 1.0)]),
    ] {
        let stored = store(server, pb::IngestEventRequest { detections, ..request(event) }).await;
        let event = stored.event.unwrap();
        if event.batch_id == "quiet" {
            let review = pb::ReviewEventRequest { id: event.id, reviewed: None, notes: Some("Nothing".into()) };
            server.events().review_event(review).await.unwrap();
        }
    }
}

#[on_both]
async fn pages_neither_skip_nor_repeat_events_of_equal_times(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    for started_at in [5, 5, 5, 9, 5, 1, 5] {
        store(&server, request(pb::Event { started_at: at(started_at), ..event() })).await;
    }
    walk(7, async |page_size, page_token| {
        let request = pb::ListEventsRequest { page_size, page_token, filter: None };
        let page = server.events().list_events(request).await.unwrap().into_inner();
        (page.events, page.next_page_token)
    })
    .await;
    let order: Vec<_> = list_events(&server, pb::EventFilter::default())
        .await
        .into_iter()
        .map(|event| event.started_at.unwrap().seconds)
        .collect();
    assert_eq!(order, [9, 5, 5, 5, 5, 5, 1]);
    server.stop().await;
}

#[on_both]
async fn pages_neither_skip_nor_repeat_detections_of_equal_times(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    let sent = pb::Event { started_at: at(5), ..event() };
    let seen = pb::Detection { detected_at: at(7), ..Default::default() };
    let mut detections = vec![pb::Detection::default(); 6];
    detections.insert(2, seen);
    store(&server, pb::IngestEventRequest { detections, ..request(sent) }).await;
    walk(7, async |page_size, page_token| {
        let request = pb::ListDetectionsRequest { page_size, page_token, filter: None };
        let page = server.events().list_detections(request).await.unwrap().into_inner();
        (page.detections, page.next_page_token)
    })
    .await;
    let first = &list_detections(&server, pb::DetectionFilter::default()).await[0];
    assert_eq!(first.detected_at, at(7));
    server.stop().await;
}

#[on_both]
async fn a_page_goes_on_where_the_last_one_ended_whatever_came_meanwhile(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    for started_at in [1, 2, 3] {
        store(&server, request(pb::Event { started_at: at(started_at), ..event() })).await;
    }
    let page = pb::ListEventsRequest { page_size: 2, ..Default::default() };
    let first = server.events().list_events(page.clone()).await.unwrap().into_inner();
    server.events().delete_event(pb::DeleteEventRequest { id: first.events[1].id }).await.unwrap();
    store(&server, request(pb::Event { started_at: at(9), ..event() })).await;
    let page = pb::ListEventsRequest { page_token: first.next_page_token, ..page };
    let second = server.events().list_events(page).await.unwrap().into_inner();
    assert_eq!((second.events.len(), second.events[0].started_at), (1, at(1)));
    assert_eq!(second.next_page_token, "");
    server.stop().await;
}

#[on_both]
async fn a_page_is_no_larger_than_clients_take(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    let data = object(&json!({"text": "x".repeat(60_000)}));
    let seen = pb::Detection { enrichment_data: data, ..Default::default() };
    let long = Some("y".repeat(65_536));
    for _ in 0..3 {
        let sent = pb::Event {
            summary: long.clone(),
            reasoning: long.clone(),
            llm_prompt: Some("z".repeat(900_000)),
            ..event()
        };
        let sent = pb::IngestEventRequest { detections: vec![seen.clone(); 22], ..request(sent) };
        store(&server, sent).await;
    }
    // Four megabytes of detections, and less than one of events without their prompts.
    let (mut page, mut sizes) = (pb::ListDetectionsRequest { page_size: 1_000, ..Default::default() }, Vec::new());
    loop {
        let response = server.events().list_detections(page.clone()).await.unwrap().into_inner();
        sizes.push(response.detections.len());
        page.page_token = response.next_page_token;
        if page.page_token.is_empty() {
            break;
        }
    }
    assert_eq!((sizes.len(), sizes.iter().sum::<usize>()), (2, 66), "{sizes:?}");
    assert_eq!(list_events(&server, pb::EventFilter::default()).await.len(), 3);
    server.stop().await;
}

#[on_both]
async fn events_are_listed_by_every_filter(backend: Backend) {
    let server = TestServer::start(backend).await;
    ingest_various(&server).await;
    let any = pb::EventFilter::default;
    let text = |text: &str| pb::EventFilter { text: text.into(), ..any() };
    let object_type = |name: &str| pb::EventFilter { object_type: name.into(), ..any() };
    let levels = |levels: &[Severity]| pb::EventFilter {
        risk_levels: levels.iter().map(|level| (*level).into()).collect(),
        ..any()
    };
    for (filter, expected) in [
        (any(), "both car dog quiet"),
        (pb::EventFilter { camera_ids: strings(&["gate"]), ..any() }, "both car"),
        (pb::EventFilter { camera_ids: strings(&["gate", "door", "gate", "none"]), ..any() }, "both car dog quiet"),
        (pb::EventFilter { camera_ids: strings(&["none"]), ..any() }, ""),
        (pb::EventFilter { started_at: between(200, 400), ..any() }, "car dog"),
        (pb::EventFilter { started_at: between(200, 200), ..any() }, ""),
        (pb::EventFilter { started_at: Some(pb::TimeRange { start: at(300), end: None }), ..any() }, "both car"),
        (pb::EventFilter { started_at: Some(pb::TimeRange { start: None, end: at(300) }), ..any() }, "dog quiet"),
        (pb::EventFilter { started_at: Some(pb::TimeRange::default()), ..any() }, "both car dog quiet"),
        (pb::EventFilter { min_risk_score: Some(60), ..any() }, "both car"),
        (pb::EventFilter { max_risk_score: Some(60), ..any() }, "car dog"),
        (pb::EventFilter { min_risk_score: Some(0), max_risk_score: Some(100), ..any() }, "both car dog"),
        (levels(&[Severity::Low]), "both dog"),
        (levels(&[Severity::High, Severity::Low, Severity::High]), "both car dog"),
        (levels(&[Severity::Critical]), ""),
        (pb::EventFilter { reviewed: Some(true), ..any() }, "quiet"),
        (pb::EventFilter { reviewed: Some(false), ..any() }, "both car dog"),
        (object_type("dog"), "dog"),
        (object_type("CAR"), "both car"),
        (object_type("ÜBER_X"), "car"),
        (object_type("über%x"), ""),
        (object_type("ca"), ""),
        (text("dog"), "both dog"),
        (text("  CAR   a "), "both car"),
        (text("dog nothing"), ""),
        (text("NOTHING"), "quiet"),
        (text("100%"), "dog"),
        (text("sure_"), "dog"),
        (text("_"), "car dog"),
        (text("regen\\"), "car"),
        (text("straße"), "car"),
        (text("'"), ""),
        (pb::EventFilter { camera_ids: strings(&["gate"]), max_risk_score: Some(99), ..object_type("car") }, "car"),
    ] {
        let names: Vec<_> =
            list_events(&server, filter.clone()).await.into_iter().map(|event| event.batch_id).collect();
        assert_eq!(names.join(" "), expected, "{filter:?}");
    }
    server.stop().await;
}

#[on_both]
async fn detections_are_listed_by_every_filter(backend: Backend) {
    let server = TestServer::start(backend).await;
    ingest_various(&server).await;
    let any = pb::DetectionFilter::default;
    let id = list_events(&server, pb::EventFilter { text: "regen".into(), ..Default::default() }).await[0].id;
    let object_type = |name: &str| pb::DetectionFilter { object_type: name.into(), ..any() };
    for (filter, expected) in [
        (any(), "CAR hotdog Über_x car Dog"),
        (pb::DetectionFilter { event_id: Some(id), ..any() }, "Über_x car"),
        (pb::DetectionFilter { event_id: Some(i64::MAX), ..any() }, ""),
        (pb::DetectionFilter { camera_ids: strings(&["door", "none"]), ..any() }, "Dog"),
        (pb::DetectionFilter { detected_at: between(200, 400), ..any() }, "Über_x car Dog"),
        (object_type("car"), "CAR car"),
        (object_type("DOG"), "Dog"),
        (object_type("Über_X"), "Über_x"),
        (object_type("c_r"), ""),
        (pb::DetectionFilter { min_confidence: Some(0.5), ..any() }, "CAR hotdog car"),
        (pb::DetectionFilter { min_confidence: Some(1.0), ..any() }, "CAR"),
        (pb::DetectionFilter { event_id: Some(id), min_confidence: Some(0.5), ..object_type("car") }, "car"),
    ] {
        let names: Vec<_> =
            list_detections(&server, filter.clone()).await.into_iter().filter_map(|seen| seen.object_type).collect();
        assert_eq!(names.join(" "), expected, "{filter:?}");
    }
    server.stop().await;
}

#[on_both]
async fn prompts_are_got_but_not_listed(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    let sent = pb::Event { llm_prompt: Some("look".into()), ..event() };
    let stored = store(&server, request(sent)).await.event.unwrap();
    assert_eq!(stored.llm_prompt.as_deref(), Some("look"));
    assert_eq!(list_events(&server, pb::EventFilter::default()).await[0].llm_prompt, None);
    server.stop().await;
}

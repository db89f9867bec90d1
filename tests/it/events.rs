//! `EventService`.

mod ingest;
mod lists;
mod replay;
mod review;

use tonic::Code;
use watchpost::pb;

use crate::support::{
    TestServer,
    calls::{Reply, failed},
};

/// An event of the camera `door`.
fn event() -> pb::Event {
    pb::Event { camera_id: "door".into(), ..Default::default() }
}

/// A request to ingest this event.
fn request(event: pb::Event) -> pb::IngestEventRequest {
    pb::IngestEventRequest { event: Some(event), ..Default::default() }
}

async fn send(server: &TestServer, request: pb::IngestEventRequest) -> Reply<pb::IngestEventResponse> {
    server.events().ingest_event(request).await
}

/// Sends what must be accepted.
async fn store(server: &TestServer, request: pb::IngestEventRequest) -> pb::IngestEventResponse {
    send(server, request).await.unwrap().into_inner()
}

async fn get(server: &TestServer, id: i64) -> Reply<pb::Event> {
    server.events().get_event(pb::GetEventRequest { id }).await
}

async fn list_events(server: &TestServer, filter: pb::EventFilter) -> Vec<pb::Event> {
    let request = pb::ListEventsRequest { filter: Some(filter), ..Default::default() };
    let reply = server.events().list_events(request).await;
    reply.unwrap().into_inner().events
}

async fn list_detections(server: &TestServer, filter: pb::DetectionFilter) -> Vec<pb::Detection> {
    let request = pb::ListDetectionsRequest { page_size: 1000, filter: Some(filter), ..Default::default() };
    let reply = server.events().list_detections(request).await;
    reply.unwrap().into_inner().detections
}

/// The detections of an event, in the order of their ids.
async fn detections_of(server: &TestServer, event_id: i64) -> Vec<pb::Detection> {
    let filter = pb::DetectionFilter { event_id: Some(event_id), ..Default::default() };
    let mut detections = list_detections(server, filter).await;
    detections.sort_by_key(|detection| detection.id);
    detections
}

/// That an ingest was refused because of its camera.
#[track_caller]
fn without_camera<T: std::fmt::Debug>(reply: Reply<T>) {
    let status = failed(reply, Code::FailedPrecondition, "BROKEN_REFERENCE");
    assert_eq!(crate::support::field(&status), "event.camera_id");
}

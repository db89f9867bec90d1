//! Writers that do not give up, and remember what was acknowledged.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::sleep;
use tonic::{Code, Status, transport::Channel};
use uuid::Uuid;
use watchpost::pb::{
    self, camera_service_client::CameraServiceClient, event_service_client::EventServiceClient,
    job_service_client::JobServiceClient,
};

/// A row whose creation was acknowledged, with the text that the writer gave it.
#[derive(Debug, Clone, PartialEq)]
pub enum Acknowledged {
    /// An event, by its id and summary, and the alerts that it raised.
    Event(i64, String, Vec<Uuid>),
    /// A job, by its id and type.
    Job(Uuid, String),
    /// A camera, by its id and name.
    Camera(String, String),
}

/// What all writers share.
#[derive(Debug, Default)]
pub struct Shared {
    /// What was acknowledged since the checker took it away.
    pub acknowledged: Mutex<Vec<Acknowledged>>,
    /// How many writes were acknowledged.
    pub count: AtomicU64,
    /// How many writes were refused.
    pub refused: AtomicU64,
    /// Refusals with a status that a storage fault must not have.
    pub wrong: Mutex<Vec<String>>,
    /// Set when the writers are to end.
    pub stop: AtomicBool,
}

/// Writes until told to stop: events, jobs and cameras in turns.
pub async fn write(number: usize, channel: Channel, shared: Arc<Shared>) {
    let mut turn = number;
    while !shared.stop.load(Ordering::Relaxed) {
        turn += 1;
        let marker = format!("w{number}-{}", Uuid::now_v7().simple());
        let written = match turn % 3 {
            0 => create_job(channel.clone(), marker).await,
            1 => ingest(channel.clone(), marker).await,
            _ => create_camera(channel.clone(), marker).await,
        };
        match written {
            Ok(acknowledged) => {
                shared.acknowledged.lock().unwrap().push(acknowledged);
                shared.count.fetch_add(1, Ordering::Release);
            }
            Err(status) => {
                shared.refused.fetch_add(1, Ordering::Relaxed);
                if !is_right(&status) {
                    let wrong = format!("{:?}: {}", status.code(), status.message());
                    shared.wrong.lock().unwrap().push(wrong);
                }
                sleep(Duration::from_millis(3)).await;
            }
        }
    }
}

/// Whether a write may fail so while the storage fails or the server is killed.
fn is_right(status: &Status) -> bool {
    // The server names a reason for everything that it refuses; a status without one is of the client's transport.
    let cut_off =
        status.details().is_empty() && matches!(status.code(), Code::Unknown | Code::Cancelled | Code::Internal);
    let is_retryable = matches!(status.code(), Code::Unavailable | Code::ResourceExhausted | Code::Aborted);
    is_retryable || cut_off
}

async fn ingest(channel: Channel, marker: String) -> Result<Acknowledged, Status> {
    let event = pb::Event { camera_id: "door".into(), summary: Some(marker.clone()), ..Default::default() };
    let detection = pb::Detection { object_type: Some("person".into()), confidence: Some(0.9), ..Default::default() };
    let request = pb::IngestEventRequest { event: Some(event), detections: vec![detection; 3], ..Default::default() };
    let response = EventServiceClient::new(channel).ingest_event(request).await?.into_inner();
    let alerts = response.alerts.iter().map(|alert| alert.id.parse().unwrap());
    Ok(Acknowledged::Event(response.event.unwrap().id, marker, alerts.collect()))
}

async fn create_job(channel: Channel, marker: String) -> Result<Acknowledged, Status> {
    let request = pb::CreateJobRequest {
        job: Some(pb::Job { job_type: marker.clone(), ..Default::default() }),
        ..Default::default()
    };
    let job = JobServiceClient::new(channel).create_job(request).await?.into_inner();
    Ok(Acknowledged::Job(job.id.parse().unwrap(), marker))
}

async fn create_camera(channel: Channel, marker: String) -> Result<Acknowledged, Status> {
    let camera = pb::Camera { id: marker.clone(), name: marker.clone(), ..Default::default() };
    let request = pb::CreateCameraRequest { camera: Some(camera) };
    let camera = CameraServiceClient::new(channel).create_camera(request).await?.into_inner();
    Ok(Acknowledged::Camera(camera.id, camera.name))
}

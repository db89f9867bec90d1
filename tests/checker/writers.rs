//! Those who write: events that raise alerts, and decisions about alerts.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;
use watchpost::pb::{
    self, alert_rule_service_client::AlertRuleServiceClient, alert_service_client::AlertServiceClient,
    camera_service_client::CameraServiceClient, event_service_client::EventServiceClient,
};

use super::{Run, random};

pub const CAMERAS: [&str; 3] = ["a", "b", "c"];

/// Makes the cameras and the rules: one of each of two severities, which always fire.
pub async fn prepare(run: &Run) {
    let channel = run.servers.connect(0).await.unwrap();
    for id in CAMERAS {
        let camera = pb::Camera { id: id.into(), name: id.into(), ..Default::default() };
        let request = pb::CreateCameraRequest { camera: Some(camera) };
        let mut cameras = CameraServiceClient::new(channel.clone());
        cameras.create_camera(request).await.unwrap();
    }
    for severity in [pb::Severity::High, pb::Severity::Low] {
        let rule = pb::AlertRule {
            name: severity.as_str_name().into(),
            severity: severity.into(),
            cooldown: Some(prost_types::Duration::default()),
            ..Default::default()
        };
        let request = pb::CreateAlertRuleRequest { alert_rule: Some(rule) };
        let mut rules = AlertRuleServiceClient::new(channel.clone());
        rules.create_alert_rule(request).await.unwrap();
    }
    // Every server must know the rules, or events raise less than is expected of the last one.
    sleep(Duration::from_secs(2)).await;
}

/// Writes until the stop. Returns how many events.
pub async fn write(run: Arc<Run>, at: usize) -> usize {
    let mut random = random(run.seed, at);
    let mut written = 0;
    while !*run.stop.borrow() {
        if random.u8(0..4) == 0 {
            decide(&run, &mut random).await;
        } else {
            let camera = CAMERAS[random.usize(0..CAMERAS.len())];
            ingest(&run, &mut random, camera).await;
            written += 1;
        }
        sleep(Duration::from_millis(random.u64(0..6))).await;
    }
    written
}

/// Writes the last event. Returns its id.
pub async fn last(run: &Run) -> i64 {
    ingest(run, &mut random(run.seed, 3_000), CAMERAS[0]).await
}

/// Ingests an event; sends the same request again and again until it is answered.
async fn ingest(run: &Run, random: &mut fastrand::Rng, camera: &str) -> i64 {
    let event = pb::Event { camera_id: camera.into(), ..Default::default() };
    let request = pb::IngestEventRequest {
        event: Some(event),
        request_id: uuid::Uuid::now_v7().to_string(),
        ..Default::default()
    };
    loop {
        if let Some(channel) = run.servers.connect(random.usize(0..8)).await
            && let Ok(response) = EventServiceClient::new(channel).ingest_event(request.clone()).await
        {
            let response = response.into_inner();
            let id = response.event.unwrap().id;
            run.acknowledged.lock().unwrap().push(id);
            let alerts = response.alerts.into_iter().map(|alert| alert.id);
            run.alerts.lock().unwrap().extend(alerts);
            return id;
        }
        sleep(Duration::from_millis(5)).await;
    }
}

/// Acknowledges or dismisses an alert. Whether that worked is asked of the database later.
async fn decide(run: &Run, random: &mut fastrand::Rng) {
    let id = {
        let alerts = run.alerts.lock().unwrap();
        if alerts.is_empty() {
            return;
        }
        alerts[random.usize(0..alerts.len())].clone()
    };
    let Some(channel) = run.servers.connect(random.usize(0..8)).await else {
        return;
    };
    let mut alerts = AlertServiceClient::new(channel);
    if random.bool() {
        let request = pb::AcknowledgeAlertRequest { id, ..Default::default() };
        let _ = alerts.acknowledge_alert(request).await;
    } else {
        let request = pb::DismissAlertRequest { id, ..Default::default() };
        let _ = alerts.dismiss_alert(request).await;
    }
}

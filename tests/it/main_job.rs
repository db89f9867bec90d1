//! The main job: a camera sees something, a rule matches, and an alert arrives on a live stream.

use tonic::{Code, Request, codec::CompressionEncoding};
use watchpost::pb::{self, AlertChangeKind, AlertStatus, RuleStop, Topic};

use crate::support::{
    TestServer, always,
    database::{Backend, on_both},
    detection, ingest, reason, topics,
};

#[on_both]
async fn an_alert_arrives_on_a_watch_because_a_camera_saw_something(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    server.streams(["mail"]).await;
    let rule = pb::AlertRule {
        object_types: vec!["Person".into()],
        min_confidence: Some(0.8),
        severity: pb::Severity::High.into(),
        channels: vec!["mail".into()],
        ..always("people at the door")
    };
    let rule = server.rule(rule).await;
    let mut watch = server.watch(topics(&[Topic::Alerts])).await;

    let seen = vec![detection("person", 0.5), detection("dog", 0.9)];
    let quiet = server.explained("door", seen).await;
    assert_eq!(quiet.alerts, []);
    assert_eq!(quiet.rule_outcomes.len(), 1);
    assert_eq!(quiet.rule_outcomes[0].stopped_by(), RuleStop::MinConfidence);
    assert_eq!(quiet.rule_outcomes[0].detail, "confidence 0.5 < 0.8");

    let seen = vec![detection("dog", 0.9), detection("PERSON", 0.8)];
    let loud = server.ingest("door", seen).await;
    let event = loud.event.unwrap();
    assert_eq!(event.object_types, ["dog", "person"]);
    assert_eq!(loud.alerts.len(), 1);
    assert!(loud.rule_outcomes[0].fired);

    let (kind, alert) = watch.alert().await;
    assert_eq!((kind, &alert), (AlertChangeKind::Created, &loud.alerts[0]));
    assert_eq!(alert.rule_id, Some(rule.id.clone()));
    assert_eq!(alert.camera_id.as_deref(), Some("door"));
    assert_eq!((alert.event_id, alert.version_id), (event.id, 1));
    assert_eq!(alert.dedup_key, format!("door:{}", rule.id));
    assert_eq!(alert.channels, ["mail"]);
    let got = server.alerts().get_alert(pb::GetAlertRequest { id: alert.id.clone() }).await;
    assert_eq!(got.unwrap().into_inner(), alert);

    let acknowledge =
        pb::AcknowledgeAlertRequest { id: alert.id.clone(), expected_version_id: Some(1), ..Default::default() };
    let acknowledged = server.alerts().acknowledge_alert(acknowledge.clone()).await.unwrap().into_inner();
    assert_eq!((acknowledged.status(), acknowledged.version_id), (AlertStatus::Acknowledged, 2));
    assert_eq!(watch.alert().await, (AlertChangeKind::Acknowledged, acknowledged));
    let stale = server.alerts().acknowledge_alert(acknowledge).await.unwrap_err();
    assert_eq!((stale.code(), reason(&stale)), (Code::Aborted, "STALE_VERSION".into()));
    server.stop().await;
}

#[on_both]
async fn what_is_written_is_read_back_letter_for_letter(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    let odd = "a \"b\" \\ {c},NULL\n\t' $1 ? ; -- \u{1f6aa} ";
    let mut request = ingest(
        "door",
        vec![pb::Detection {
            labels: vec![odd.into(), "NULL".into()],
            file_path: odd.into(),
            ..detection("NULL", 0.1 + 0.2)
        }],
    );
    let event = request.event.as_mut().unwrap();
    (event.batch_id, event.summary, event.reasoning) = (odd.into(), Some(odd.into()), Some(String::new()));
    let ingested = server.events().ingest_event(request).await.unwrap().into_inner();
    let event = ingested.event.unwrap();
    assert_eq!((event.batch_id.as_str(), event.summary.as_deref()), (odd, Some(odd)));
    let got = server.events().get_event(pb::GetEventRequest { id: event.id }).await.unwrap();
    assert_eq!(got.into_inner(), event);
    let filter = pb::DetectionFilter { event_id: Some(event.id), ..Default::default() };
    let list = pb::ListDetectionsRequest { filter: Some(filter), ..Default::default() };
    let list = server.events().list_detections(list).await.unwrap().into_inner();
    assert_eq!(list.detections, ingested.detections);
    server.stop().await;
}

#[on_both]
async fn a_client_that_compresses_is_served(backend: Backend) {
    let server = TestServer::start(backend).await;
    let mut cameras = server.cameras().send_compressed(CompressionEncoding::Gzip);
    let camera = pb::Camera { id: "door".into(), name: "x".repeat(255), ..Default::default() };
    let request = pb::CreateCameraRequest { camera: Some(camera.clone()) };
    assert_eq!(cameras.create_camera(request).await.unwrap().into_inner().name, camera.name);
    let mut monitor = server.monitor().send_compressed(CompressionEncoding::Gzip);
    let mut responses = monitor.watch(topics(&[Topic::Alerts])).await.unwrap().into_inner();
    assert!(responses.message().await.unwrap().is_some());
    drop(responses);
    server.stop().await;
}

#[on_both]
async fn an_unknown_method_has_a_reason(backend: Backend) {
    let server = TestServer::start(backend).await;
    for path in ["/watchpost.v1.CameraService/Nope", "/watchpost.v1.MonitorService/Nope", "/watchpost.v1.Nope/Nope"] {
        let mut grpc = tonic::client::Grpc::new(server.channel.clone());
        grpc.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<pb::Camera, pb::Camera>::default();
        let reply = grpc.unary(Request::new(pb::Camera::default()), path.parse().unwrap(), codec).await;
        let status = reply.unwrap_err();
        assert_eq!((status.code(), reason(&status)), (Code::Unimplemented, "UNIMPLEMENTED".into()), "{path}");
    }
    server.stop().await;
}

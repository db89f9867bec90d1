//! `LocateDetections`.

use tonic::Code;
use watchpost::pb::{self, CameraZoneAnchor, CameraZoneShape, LocationProblem};

use super::{object_at, points};
use crate::support::{
    TestServer,
    calls::{failed, not_found, refused},
    database::{Backend, on_both},
    detection, field, middle,
};

async fn locate(
    server: &TestServer,
    detection_ids: Vec<i64>,
    detections: Vec<pb::Detection>,
) -> super::Reply<pb::LocateDetectionsResponse> {
    let request = pb::LocateDetectionsRequest { detection_ids, detections };
    server.zones().locate_detections(request).await
}

/// The zones that a detection was found in, as one text.
fn ids(location: &pb::DetectionLocation) -> String {
    let ids: Vec<_> = location.hits.iter().map(|hit| &*hit.zone_id).collect();
    ids.join(" ")
}

#[on_both]
async fn detections_are_located_as_rules_see_them(backend: Backend) {
    let server = TestServer::start(backend).await;
    for id in ["door", "gate"] {
        server.camera(id).await;
    }
    server.zone(middle("door", "middle")).await;
    server.zone(pb::CameraZone { enabled: Some(false), ..middle("door", "off") }).await;
    server.zone(middle("gate", "other")).await;
    let lower = pb::CameraZone {
        coordinates: points(&[(0.0, 0.5), (1.0, 0.5), (1.0, 1.0), (0.0, 1.0)]),
        anchor: CameraZoneAnchor::Foot.into(),
        ..middle("door", "lower")
    };
    server.zone(lower).await;
    let left = pb::CameraZone {
        coordinates: points(&[(0.0, 0.0), (0.505, 0.0), (0.0, 1.0)]),
        shape: CameraZoneShape::Polygon.into(),
        anchor: CameraZoneAnchor::Overlap.into(),
        min_overlap: Some(0.25),
        priority: 5,
        ..middle("door", "left")
    };
    server.zone(left).await;

    let ingested = server.ingest(
        "door",
        vec![
            object_at("car", 500, 245),
            object_at("car", 20, 20),
            detection("car", 0.9),
            pb::Detection { video_height: None, ..object_at("car", 500, 245) },
            object_at("car", -500, 20),
        ],
    );
    let stored: Vec<_> = ingested.await.detections.iter().map(|detection| detection.id).collect();
    let sent = pb::Detection { camera_id: "gate".into(), ..object_at("car", 500, 245) };
    let asked = [&stored[..], &stored[..1]].concat();
    let locations = locate(&server, asked.clone(), vec![sent]).await.unwrap().into_inner().locations;
    let (of_ids, of_sent) = locations.split_at(6);
    assert_eq!(of_ids.iter().map(|location| location.detection_id).collect::<Vec<_>>(), asked);
    let told: Vec<_> = of_ids.iter().map(|location| (ids(location), location.problem())).collect();
    let fine = LocationProblem::Unspecified;
    let expected = [
        ("lower middle", fine),
        ("left", fine),
        ("", LocationProblem::NoBox),
        ("", LocationProblem::NoSize),
        ("", LocationProblem::Outside),
        ("lower middle", fine),
    ];
    assert_eq!(told, expected.map(|(ids, problem)| (ids.to_string(), problem)));
    assert_eq!((of_sent[0].detection_id, &*of_sent[0].camera_id, &*ids(&of_sent[0])), (0, "gate", "other"));

    let [lower, middle] = &of_ids[0].hits[..] else { panic!("{:?}", of_ids[0]) };
    let at = |y| Some(pb::Point { x: 0.5, y });
    assert_eq!((lower.anchor(), lower.point, lower.overlap), (CameraZoneAnchor::Foot, at(0.51), None));
    assert_eq!((middle.anchor(), middle.point), (CameraZoneAnchor::Center, at(0.49)));
    let left = &of_ids[1].hits[0];
    assert_eq!((left.anchor(), left.point), (CameraZoneAnchor::Overlap, None));
    assert!((left.overlap.unwrap() - 1.0).abs() < 1e-6);
    server.stop().await;
}

#[on_both]
async fn what_cannot_be_located_is_refused_by_name(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    let good = || pb::Detection { camera_id: "door".into(), ..object_at("car", 500, 245) };
    for (detection, path) in [
        (pb::Detection { camera_id: String::new(), ..good() }, "camera_id"),
        (pb::Detection { bbox_x: None, ..good() }, "bbox_x"),
        (pb::Detection { bbox_height: None, ..good() }, "bbox_height"),
        (pb::Detection { bbox_width: Some(-1), ..good() }, "bbox_width"),
        (pb::Detection { video_width: None, ..good() }, "video_width"),
        (pb::Detection { video_height: Some(0), ..good() }, "video_height"),
    ] {
        refused(locate(&server, vec![], vec![good(), detection]).await, &format!("detections[1].{path}"));
    }
    refused(locate(&server, vec![1, 0], vec![]).await, "detection_ids[1]");
    refused(locate(&server, vec![1; 1_001], vec![]).await, "detection_ids");
    refused(locate(&server, vec![1; 1_000], vec![good()]).await, "detections");
    not_found(locate(&server, vec![9], vec![]).await, "detection", 9);
    let unknown = pb::Detection { camera_id: "gate".into(), ..good() };
    let reply = locate(&server, vec![], vec![good(), unknown]).await;
    let status = failed(reply, Code::FailedPrecondition, "BROKEN_REFERENCE");
    assert_eq!(field(&status), "detections[1].camera_id");
    assert_eq!(locate(&server, vec![], vec![]).await.unwrap().into_inner().locations, []);
    assert_eq!(locate(&server, vec![], vec![good(); 1_000]).await.unwrap().into_inner().locations.len(), 1_000);
    server.stop().await;
}

//! What zones are refused for, and by the name of which field.

use watchpost::pb::{self, CameraZoneAnchor, CameraZoneShape};

use super::{create, points};
use crate::support::{
    TestServer,
    calls::{refused, rows},
    database::{Backend, on_both},
    middle,
};

#[on_both]
async fn a_bad_field_is_named(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    let before = rows(&server).await;
    let any = || middle("door", "z");
    let shaped = |shape: CameraZoneShape, corners: &[(f64, f64)]| pb::CameraZone {
        shape: shape.into(),
        coordinates: points(corners),
        ..any()
    };
    let polygon = |corners: &[(f64, f64)]| shaped(CameraZoneShape::Polygon, corners);
    let rectangle = |corners: &[(f64, f64)]| shaped(CameraZoneShape::Rectangle, corners);
    let overlap =
        |least| pb::CameraZone { anchor: CameraZoneAnchor::Overlap.into(), min_overlap: Some(least), ..any() };
    let colored = |color: &str| pb::CameraZone { color: Some(color.into()), ..any() };
    let many: Vec<_> = (0..1_001).map(|n| (f64::from(n) / 2_000.0, 0.5)).collect();
    let triangle = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)];
    for (zone, path) in [
        (pb::CameraZone { id: "x".repeat(65), ..any() }, "id"),
        (pb::CameraZone { id: "a b".into(), ..any() }, "id"),
        (pb::CameraZone { camera_id: String::new(), ..any() }, "camera_id"),
        (pb::CameraZone { camera_id: "ü".into(), ..any() }, "camera_id"),
        (pb::CameraZone { name: String::new(), ..any() }, "name"),
        (pb::CameraZone { name: " ".into(), ..any() }, "name"),
        (pb::CameraZone { name: "a\0".into(), ..any() }, "name"),
        (pb::CameraZone { name: "ü".repeat(256), ..any() }, "name"),
        (pb::CameraZone { zone_type: 6, ..any() }, "zone_type"),
        (pb::CameraZone { shape: -1, ..any() }, "shape"),
        (pb::CameraZone { anchor: 4, ..any() }, "anchor"),
        (pb::CameraZone { priority: -1, ..any() }, "priority"),
        (colored(""), "color"),
        (colored("blue"), "color"),
        (colored("#12345"), "color"),
        (colored("#1234567"), "color"),
        (colored("#12345g"), "color"),
        (colored("1234567"), "color"),
        (colored("#12é45"), "color"),
        (overlap(0.0), "min_overlap"),
        (overlap(-0.1), "min_overlap"),
        (overlap(1.000_001), "min_overlap"),
        (overlap(f64::NAN), "min_overlap"),
        (pb::CameraZone { min_overlap: Some(0.5), ..any() }, "min_overlap"),
        (polygon(&[]), "coordinates"),
        (polygon(&triangle[..2]), "coordinates"),
        (polygon(&many), "coordinates"),
        (polygon(&[(0.0, 0.0), (1.0, 0.0), (0.0, 1.1), (0.5, 2.0)]), "coordinates[2].y"),
        (polygon(&[(0.0, 0.0), (f64::INFINITY, 0.0), (0.0, 1.0)]), "coordinates[1].x"),
        (polygon(&[(f64::NAN, 0.0), (1.0, 0.0), (0.0, 1.0)]), "coordinates[0].x"),
        (polygon(&[(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.0, 1.0)]), "coordinates[3]"),
        (polygon(&[(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)]), "coordinates[3]"),
        (polygon(&[(0.0, 0.0), (1.0, 1.0), (1.0, 0.0), (0.0, 1.0)]), "coordinates"),
        (polygon(&[(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)]), "coordinates"),
        (rectangle(&triangle), "coordinates"),
        (rectangle(&[(0.5, 0.0), (1.0, 0.5), (0.5, 1.0), (0.0, 0.5)]), "coordinates"),
        (rectangle(&[(0.0, 0.0), (1.0, 1.0), (1.0, 0.0), (0.0, 1.0)]), "coordinates"),
    ] {
        refused(create(&server, zone).await, &format!("camera_zone.{path}"));
    }
    let nothing = pb::CreateCameraZoneRequest { camera_zone: None };
    refused(server.zones().create_camera_zone(nothing).await, "camera_zone");
    let nothing = pb::UpdateCameraZoneRequest::default();
    refused(server.zones().update_camera_zone(nothing).await, "camera_zone");
    assert_eq!(rows(&server).await, before);
    server.stop().await;
}

#[on_both]
async fn a_camera_has_no_more_zones_than_it_may(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    server.camera("gate").await;
    for number in 0..250 {
        server.zone(middle("door", &format!("z{number}"))).await;
    }
    refused(create(&server, middle("door", "more")).await, "camera_zone.camera_id");
    server.zone(middle("gate", "other")).await;
    server.stop().await;
}

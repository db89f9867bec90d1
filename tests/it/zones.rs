//! `CameraZoneService`, and rules that ask for zones.

mod counts;
mod crud;
mod locate;
mod pages;
mod refusals;
mod rules;

use watchpost::pb;

use crate::support::{
    TestServer,
    calls::{Reply, mask},
};

async fn create(server: &TestServer, camera_zone: pb::CameraZone) -> Reply<pb::CameraZone> {
    let request = pb::CreateCameraZoneRequest { camera_zone: Some(camera_zone) };
    server.zones().create_camera_zone(request).await
}

async fn get(server: &TestServer, id: &str) -> Reply<pb::CameraZone> {
    let request = pb::GetCameraZoneRequest { id: id.into() };
    server.zones().get_camera_zone(request).await
}

async fn update(server: &TestServer, zone: pb::CameraZone, paths: &[&str]) -> Reply<pb::CameraZone> {
    let request =
        pb::UpdateCameraZoneRequest { camera_zone: Some(zone), update_mask: mask(paths), expected_version_id: None };
    server.zones().update_camera_zone(request).await
}

async fn delete(server: &TestServer, id: &str, force: bool) -> Reply<()> {
    let request = pb::DeleteCameraZoneRequest { id: id.into(), force };
    server.zones().delete_camera_zone(request).await
}

fn points(corners: &[(f64, f64)]) -> Vec<pb::Point> {
    corners.iter().map(|&(x, y)| pb::Point { x, y }).collect()
}

/// An object whose box has its centre here, in a picture of 1,000 by 500 pixels; 20 pixels wide and
/// 20 high.
fn object_at(object_type: &str, x: i32, y: i32) -> pb::Detection {
    pb::Detection {
        bbox_x: Some(x - 10),
        bbox_y: Some(y - 10),
        bbox_width: Some(20),
        bbox_height: Some(20),
        video_width: Some(1_000),
        video_height: Some(500),
        ..crate::support::detection(object_type, 0.9)
    }
}

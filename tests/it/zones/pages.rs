//! Lists of zones.

use watchpost::pb::{self, CameraZoneType};

use crate::support::{
    TestServer,
    calls::{refused, strings, walk},
    database::{Backend, on_both},
    middle,
};

async fn list(server: &TestServer, filter: pb::CameraZoneFilter) -> String {
    let request = pb::ListCameraZonesRequest { filter: Some(filter), ..Default::default() };
    let reply = server.zones().list_camera_zones(request).await;
    let zones = reply.unwrap().into_inner().camera_zones;
    let ids: Vec<_> = zones.into_iter().map(|zone| zone.id).collect();
    ids.join(" ")
}

#[on_both]
async fn zones_are_listed_highest_first_by_every_filter(backend: Backend) {
    let server = TestServer::start(backend).await;
    for id in ["door", "gate"] {
        server.camera(id).await;
    }
    let yard = CameraZoneType::Yard.into();
    for zone in [
        pb::CameraZone { priority: 1, ..middle("door", "b") },
        pb::CameraZone { priority: 1, zone_type: yard, ..middle("gate", "a") },
        pb::CameraZone { priority: 1, enabled: Some(false), ..middle("door", "B") },
        pb::CameraZone { priority: 100, zone_type: yard, ..middle("door", "z") },
        pb::CameraZone { zone_type: CameraZoneType::EntryPoint.into(), ..middle("gate", "-") },
    ] {
        server.zone(zone).await;
    }
    let any = pb::CameraZoneFilter::default;
    let cameras = |ids: &[&str]| pb::CameraZoneFilter { camera_ids: strings(ids), ..any() };
    let types = |types: &[CameraZoneType]| pb::CameraZoneFilter {
        zone_types: types.iter().map(|zone_type| (*zone_type).into()).collect(),
        ..any()
    };
    for (filter, expected) in [
        (any(), "z B a b -"),
        (cameras(&["door"]), "z B b"),
        (cameras(&["gate", "door"]), "z B a b -"),
        (cameras(&["none"]), ""),
        (pb::CameraZoneFilter { enabled: Some(true), ..any() }, "z a b -"),
        (pb::CameraZoneFilter { enabled: Some(false), ..any() }, "B"),
        (types(&[CameraZoneType::Yard]), "z a"),
        (types(&[CameraZoneType::EntryPoint, CameraZoneType::Other]), "B b -"),
        (types(&[CameraZoneType::Sidewalk]), ""),
        (
            pb::CameraZoneFilter {
                enabled: Some(true),
                camera_ids: strings(&["door"]),
                ..types(&[CameraZoneType::Other])
            },
            "b",
        ),
    ] {
        assert_eq!(list(&server, filter.clone()).await, expected, "{filter:?}");
    }
    for (filter, path) in [
        (types(&[CameraZoneType::Yard, CameraZoneType::Unspecified]), "filter.zone_types[1]"),
        (pb::CameraZoneFilter { zone_types: vec![9], ..any() }, "filter.zone_types[0]"),
        (cameras(&[""]), "filter.camera_ids[0]"),
    ] {
        let request = pb::ListCameraZonesRequest { filter: Some(filter), ..Default::default() };
        refused(server.zones().list_camera_zones(request).await, path);
    }
    server.stop().await;
}

#[on_both]
async fn pages_neither_skip_nor_repeat_zones_of_equal_priority(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    // Databases sort these differently from bytes, where they are left to.
    for (id, priority) in [("a", 5), ("B", 5), ("_", 5), ("b", 5), ("-a", 5), ("A", 9), ("c", 0), ("0", 0)] {
        server.zone(pb::CameraZone { priority, ..middle("door", id) }).await;
    }
    walk(8, async |page_size, page_token| {
        let request = pb::ListCameraZonesRequest { page_size, page_token, filter: None };
        let page = server.zones().list_camera_zones(request).await.unwrap().into_inner();
        (page.camera_zones, page.next_page_token)
    })
    .await;
    let request = |page_token, filter| pb::ListCameraZonesRequest { page_size: 1, page_token, filter };
    let first = server.zones().list_camera_zones(request(String::new(), None)).await.unwrap().into_inner();
    let other = pb::CameraZoneFilter { enabled: Some(true), ..Default::default() };
    let reply = server.zones().list_camera_zones(request(first.next_page_token, Some(other))).await;
    refused(reply, "page_token");
    refused(server.zones().list_camera_zones(request("x".into(), None)).await, "page_token");
    server.stop().await;
}

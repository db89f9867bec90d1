//! Zones as resources: created, got, updated, deleted.

use tonic::Code;
use watchpost::pb::{self, CameraZoneAnchor, CameraZoneShape, CameraZoneType};

use super::{create, delete, get, object_at, points, update};
use crate::support::{
    TestServer, always,
    calls::{at, execute, failed, metadata, not_found, refused, strings},
    database::{Backend, on_both},
    field, middle,
};

/// A zone in which everything is set that a client can set.
fn full(id: &str) -> pb::CameraZone {
    pb::CameraZone {
        id: id.into(),
        camera_id: "door".into(),
        name: "Einfahrt 🚗 '%_".into(),
        zone_type: CameraZoneType::Driveway.into(),
        coordinates: points(&[(0.1 + 0.2, 0.0), (1.0, 1.0), (0.0, 0.7)]),
        shape: CameraZoneShape::Polygon.into(),
        color: Some("#09afAF".into()),
        enabled: Some(false),
        priority: 7,
        anchor: CameraZoneAnchor::Overlap.into(),
        min_overlap: Some(0.7),
        ..Default::default()
    }
}

/// What a zone is of which only what is required was sent.
fn plain(zone: pb::CameraZone) -> pb::CameraZone {
    pb::CameraZone {
        zone_type: CameraZoneType::Other.into(),
        shape: CameraZoneShape::Rectangle.into(),
        color: Some("#3B82F6".into()),
        enabled: Some(true),
        priority: 0,
        anchor: CameraZoneAnchor::Center.into(),
        min_overlap: None,
        ..zone
    }
}

/// `expected` with what the server decides of `zone`.
fn kept(expected: pb::CameraZone, zone: &pb::CameraZone) -> pb::CameraZone {
    pb::CameraZone { created_at: zone.created_at, updated_at: zone.updated_at, version_id: zone.version_id, ..expected }
}

async fn server(backend: Backend) -> TestServer {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    server
}

#[on_both]
async fn a_zone_is_kept_as_it_was_sent(backend: Backend) {
    let server = server(backend).await;
    for (sent, expected) in [
        (middle("door", "m"), plain(middle("door", "m"))),
        (full("A-b_9"), full("A-b_9")),
        // What is only output is not taken from the client.
        (
            pb::CameraZone { name: "n".into(), created_at: at(1), updated_at: at(1), version_id: 9, ..full("z") },
            pb::CameraZone { name: "n".into(), ..full("z") },
        ),
        (
            pb::CameraZone { anchor: CameraZoneAnchor::Overlap.into(), ..middle("door", "o") },
            pb::CameraZone {
                anchor: CameraZoneAnchor::Overlap.into(),
                min_overlap: Some(0.5),
                ..plain(middle("door", "o"))
            },
        ),
    ] {
        let zone = create(&server, sent).await.unwrap().into_inner();
        assert!(zone.created_at.unwrap().seconds > 1_000_000_000);
        assert_eq!((zone.updated_at, zone.version_id), (zone.created_at, 1));
        assert_eq!(zone, kept(expected, &zone));
        assert_eq!(get(&server, &zone.id).await.unwrap().into_inner(), zone);
    }
    let made_up = create(&server, pb::CameraZone { name: "x".into(), ..middle("door", "") }).await;
    let made_up = made_up.unwrap().into_inner();
    assert_eq!(made_up.id.len(), 36);
    assert_eq!(get(&server, &made_up.id).await.unwrap().into_inner(), made_up);
    server.stop().await;
}

#[on_both]
async fn a_zone_may_be_as_large_as_promised(backend: Backend) {
    let server = server(backend).await;
    let circle = (0..1_000).map(|n| {
        let (sin, cos) = (f64::from(n) / 1_000.0 * std::f64::consts::TAU).sin_cos();
        pb::Point { x: 0.5 + cos / 2.0, y: 0.5 + sin / 2.0 }
    });
    let zone = pb::CameraZone {
        id: "x".repeat(64),
        name: "ü".repeat(255),
        coordinates: circle.collect(),
        priority: i32::MAX,
        ..full("")
    };
    let created = create(&server, zone.clone()).await.unwrap().into_inner();
    assert_eq!(created, kept(zone, &created));
    server.stop().await;
}

#[on_both]
async fn what_another_zone_has_is_refused_by_name(backend: Backend) {
    let server = server(backend).await;
    server.camera("gate").await;
    server.zone(middle("door", "a")).await;
    server.zone(middle("door", "b")).await;
    for (zone, path) in [
        (pb::CameraZone { name: "other".into(), ..middle("door", "a") }, "camera_zone.id"),
        (middle("gate", "a"), "camera_zone.id"),
        (pb::CameraZone { name: "a".into(), ..middle("door", "c") }, "camera_zone.name"),
    ] {
        let status = failed(create(&server, zone).await, Code::AlreadyExists, "ALREADY_EXISTS");
        assert_eq!(field(&status), path);
    }
    let renamed = pb::CameraZone { id: "b".into(), name: "a".into(), ..Default::default() };
    let status = failed(update(&server, renamed, &[]).await, Code::AlreadyExists, "ALREADY_EXISTS");
    assert_eq!(field(&status), "camera_zone.name");
    // Another camera may have a zone of this name, and a zone has its own.
    server.zone(pb::CameraZone { name: "a".into(), ..middle("gate", "g") }).await;
    let same = pb::CameraZone { id: "b".into(), name: "b".into(), priority: 3, ..Default::default() };
    update(&server, same, &["name", "priority"]).await.unwrap();
    server.stop().await;
}

#[on_both]
async fn of_many_who_create_one_zone_one_succeeds(backend: Backend) {
    let server = server(backend).await;
    let tries: Vec<_> = (0..16)
        .map(|n| {
            let mut zones = server.zones();
            let id = if n % 2 == 0 { "same".to_string() } else { format!("other-{n}") };
            let zone = pb::CameraZone { name: "same".into(), ..middle("door", &id) };
            let request = pb::CreateCameraZoneRequest { camera_zone: Some(zone) };
            tokio::spawn(async move { zones.create_camera_zone(request).await })
        })
        .collect();
    let mut created = 0;
    for tried in tries {
        match tried.await.unwrap() {
            Ok(_) => created += 1,
            reply => drop(failed(reply, Code::AlreadyExists, "ALREADY_EXISTS")),
        }
    }
    assert_eq!(created, 1);
    server.stop().await;
}

#[on_both]
async fn a_zone_needs_a_camera_that_is_there(backend: Backend) {
    let server = server(backend).await;
    server.cameras().delete_camera(pb::DeleteCameraRequest { id: "door".into() }).await.unwrap();
    for camera in ["door", "nowhere"] {
        let reply = create(&server, middle(camera, "z")).await;
        let status = failed(reply, Code::FailedPrecondition, "BROKEN_REFERENCE");
        assert_eq!(field(&status), "camera_zone.camera_id");
    }
    server.stop().await;
}

#[on_both]
async fn an_update_changes_what_its_mask_names(backend: Backend) {
    let server = server(backend).await;
    let created = create(&server, full("z")).await.unwrap().into_inner();
    let reset = || async {
        let zone = update(&server, full("z"), &["*"]).await.unwrap().into_inner();
        assert_eq!(zone, kept(full("z"), &zone));
        zone
    };
    let square = middle("door", "z");
    let nothing = pb::CameraZone { id: "z".into(), ..Default::default() };
    let change = pb::CameraZone {
        name: "new".into(),
        shape: CameraZoneShape::Rectangle.into(),
        enabled: Some(true),
        priority: 1,
        ..square.clone()
    };
    let foot = pb::CameraZone { anchor: CameraZoneAnchor::Foot.into(), ..nothing.clone() };
    for (sent, paths, expected) in [
        (
            &change,
            &[][..],
            pb::CameraZone {
                name: "new".into(),
                coordinates: square.coordinates.clone(),
                shape: CameraZoneShape::Rectangle.into(),
                enabled: Some(true),
                priority: 1,
                ..full("z")
            },
        ),
        (&change, &["coordinates"], pb::CameraZone { coordinates: square.coordinates.clone(), ..full("z") }),
        (&change, &["priority", "priority"], pb::CameraZone { priority: 1, ..full("z") }),
        (
            &pb::CameraZone { priority: 0, ..change.clone() },
            &["*"],
            plain(pb::CameraZone { name: "new".into(), ..square.clone() }),
        ),
        (&nothing, &[], full("z")),
        (&nothing, &["priority", "enabled"], pb::CameraZone { priority: 0, enabled: Some(true), ..full("z") }),
        (&nothing, &["color"], pb::CameraZone { color: Some("#3B82F6".into()), ..full("z") }),
        (&nothing, &["zone_type"], pb::CameraZone { zone_type: CameraZoneType::Other.into(), ..full("z") }),
        (&nothing, &["min_overlap"], pb::CameraZone { min_overlap: Some(0.5), ..full("z") }),
        (&foot, &[], pb::CameraZone { anchor: CameraZoneAnchor::Foot.into(), min_overlap: None, ..full("z") }),
        (
            &nothing,
            &["anchor"],
            pb::CameraZone { anchor: CameraZoneAnchor::Center.into(), min_overlap: None, ..full("z") },
        ),
    ] {
        let before = reset().await;
        let zone = update(&server, sent.clone(), paths).await.unwrap().into_inner();
        let changed = zone.version_id > before.version_id;
        assert_eq!(zone, kept(expected, &zone), "{paths:?}");
        assert_eq!(changed, zone != before, "{paths:?}");
        assert_eq!(zone.created_at, created.created_at);
        assert_eq!(get(&server, "z").await.unwrap().into_inner(), zone);
    }
    let before = reset().await;
    for path in ["id", "camera_id", "created_at", "version_id", "nope", "coordinates.x", ""] {
        refused(update(&server, change.clone(), &["name", path]).await, "update_mask");
    }
    refused(update(&server, nothing.clone(), &["name"]).await, "camera_zone.name");
    refused(update(&server, nothing.clone(), &["coordinates"]).await, "camera_zone.coordinates");
    // The corners that it has are no rectangle.
    refused(update(&server, nothing, &["shape"]).await, "camera_zone.coordinates");
    assert_eq!(get(&server, "z").await.unwrap().into_inner(), before);
    server.stop().await;
}

#[on_both]
async fn a_stale_version_changes_nothing(backend: Backend) {
    let server = server(backend).await;
    let zone = server.zone(middle("door", "z")).await;
    let change = pb::CameraZone { id: "z".into(), priority: 1, ..Default::default() };
    let request = |zone, seen| pb::UpdateCameraZoneRequest {
        camera_zone: Some(zone),
        update_mask: None,
        expected_version_id: Some(seen),
    };
    let changed = server.zones().update_camera_zone(request(change.clone(), 1)).await.unwrap().into_inner();
    assert_eq!((changed.version_id, changed.priority), (zone.version_id + 1, 1));
    let late = pb::CameraZone { priority: 2, ..change };
    let reply = server.zones().update_camera_zone(request(late, 1)).await;
    failed(reply, Code::Aborted, "STALE_VERSION");
    assert_eq!(get(&server, "z").await.unwrap().into_inner(), changed);
    server.stop().await;
}

#[on_both]
async fn an_unknown_zone_is_not_found(backend: Backend) {
    let server = server(backend).await;
    server.zone(middle("door", "gone")).await;
    delete(&server, "gone", false).await.unwrap();
    for id in ["none", "gone"] {
        not_found(get(&server, id).await, "camera zone", id);
        not_found(delete(&server, id, true).await, "camera zone", id);
        not_found(update(&server, full(id), &[]).await, "camera zone", id);
    }
    for id in ["", "a b", "ü"] {
        refused(get(&server, id).await, "id");
        refused(delete(&server, id, true).await, "id");
        refused(update(&server, full(id), &[]).await, "camera_zone.id");
    }
    server.stop().await;
}

#[on_both]
async fn a_zone_that_rules_name_is_deleted_by_force_only(backend: Backend) {
    let server = server(backend).await;
    for id in ["used", "unused"] {
        server.zone(middle("door", id)).await;
    }
    let off = pb::AlertRule { enabled: Some(false), zone_ids: strings(&["used"]), ..always("Night") };
    let off = server.rule(off).await;
    let on = server.rule(pb::AlertRule { zone_ids: strings(&["unused", "used"]), ..always("Day") }).await;
    let status = failed(delete(&server, "used", false).await, Code::FailedPrecondition, "IN_USE");
    let message = status.message();
    assert!(message.contains("the alert rule `") && message.ends_with("and 1 more"), "{message}");
    let mut told: Vec<_> = metadata(&status, "used_by").split(',').map(String::from).collect();
    told.sort();
    let mut rules = vec![off.id.clone(), on.id.clone()];
    rules.sort();
    assert_eq!(told, rules);
    get(&server, "used").await.unwrap();

    // A rule that names it no longer holds nothing up.
    let without = pb::AlertRule { id: on.id.clone(), zone_ids: strings(&["used"]), ..Default::default() };
    let request = pb::UpdateAlertRuleRequest { alert_rule: Some(without), update_mask: None, ..Default::default() };
    server.rules().update_alert_rule(request).await.unwrap();
    delete(&server, "unused", false).await.unwrap();

    delete(&server, "used", true).await.unwrap();
    let kept = server.rules().get_alert_rule(pb::GetAlertRuleRequest { id: off.id }).await.unwrap().into_inner();
    assert_eq!(kept.zone_ids, ["used"]);
    server.stop().await;
}

#[on_both]
async fn zones_of_another_writer_do_no_harm(backend: Backend) {
    let server = server(backend).await;
    let zones = r#"INSERT INTO camera_zones (id, camera_id, name, coordinates, priority) VALUES
            ('empty', 'door', '1', '[]', 9), ('object', 'door', '2', '{"x": 1}', 9),
            ('line', 'door', '3', '[[0, 0], [1, 1]]', 9), ('flat', 'door', '4', '[[0, 0], [1, 1], [0.5, 0.5]]', 9),
            ('bow', 'door', '5', '[[0, 0], [1, 1], [1, 0], [0, 1]]', 9)"#;
    execute(&server, zones).await;
    let overlap = "INSERT INTO camera_zones (id, camera_id, name, coordinates, priority, anchor, min_overlap) VALUES
            ('flat2', 'door', '6', '[[0, 0], [1, 1], [0.5, 0.5]]', 9, 'overlap', 0.1),
            ('point', 'door', '7', '[[0.5, 0.4], [0.5, 0.4], [0.5, 0.4]]', 9, 'overlap', NULL),
            ('huge', 'door', '8', '[[-1e300, -1e300], [1e300, 0], [0, 1e300]]', 9, 'overlap', 0.1),
            ('bow2', 'door', '9', '[[0, 0], [1, 1], [1, 0], [0, 1]]', 9, 'overlap', 0.1)";
    execute(&server, overlap).await;
    // Makes the server read the zones again.
    server.zone(middle("door", "good")).await;
    let zone_ids = strings(&["empty", "object", "line", "flat", "bow", "flat2", "point", "huge", "bow2", "good"]);
    server.rule(pb::AlertRule { zone_ids, ..always("r") }).await;
    let raised = server.ingest("door", vec![object_at("car", 500, 200)]).await.alerts;
    assert_eq!(raised.len(), 1);
    assert_eq!(get(&server, "object").await.unwrap().into_inner().coordinates, []);
    let bow = get(&server, "bow").await.unwrap().into_inner();
    assert_eq!(bow.coordinates.len(), 4);
    let renamed = pb::CameraZone { id: "bow".into(), name: "n".into(), ..Default::default() };
    refused(update(&server, renamed, &[]).await, "camera_zone.coordinates");
    delete(&server, "object", true).await.unwrap();
    server.stop().await;
}

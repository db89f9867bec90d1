//! Cameras and alerts that cannot be.

use watchpost::pb;

use super::{HUGE, ready, refused, unharmed};
use crate::support::{
    calls::{mask, rows},
    database::{Backend, on_both},
};

/// Ids that no camera can have.
const BAD_IDS: [&str; 8] = ["", " ", "a b", "ü", "a/b", "a\0", "../x", "a'--"];

/// Ids that are not UUIDs, or not in their one form.
const BAD_UUIDS: [&str; 9] = [
    "",
    " ",
    "1",
    "01890a5d-ac96-774b-bcce-b302099a805",
    "01890a5d-ac96-774b-bcce-b302099a80577",
    "01890a5dac96774bbcceb302099a8057",
    "{01890a5d-ac96-774b-bcce-b302099a805}",
    "g1890a5d-ac96-774b-bcce-b302099a8057",
    "01890a5d-ac96-774b-bcce-b302099a805\0",
];

#[on_both]
async fn a_bad_camera_is_refused(backend: Backend) {
    let server = ready(backend).await;
    let before = rows(&server).await;
    let good = || pb::Camera { id: "new".into(), name: "new".into(), ..Default::default() };
    let id = |id: &str| pb::Camera { id: id.into(), ..good() };
    let name = |name: &str| pb::Camera { name: name.into(), ..good() };
    let folder = |path: &str| pb::Camera { folder_path: path.into(), ..good() };
    let status = |status| pb::Camera { status, ..good() };
    for (camera, path) in [
        (id(" "), "camera.id"),
        (id("a b"), "camera.id"),
        (id("ü"), "camera.id"),
        (id("a\0"), "camera.id"),
        (id(&"x".repeat(65)), "camera.id"),
        (pb::Camera { id: String::new(), ..name("車") }, "camera.id"),
        (pb::Camera { id: String::new(), ..name("- -") }, "camera.id"),
        (name(""), "camera.name"),
        (name(" \t\u{a0}\u{3000}\n"), "camera.name"),
        (name("a\0b"), "camera.name"),
        (name(&"ü".repeat(256)), "camera.name"),
        (name(&"n".repeat(HUGE)), "camera.name"),
        (folder(" "), "camera.folder_path"),
        (folder("/\0"), "camera.folder_path"),
        (folder(&"f".repeat(513)), "camera.folder_path"),
        (status(5), "camera.status"),
        (status(-1), "camera.status"),
        (status(i32::MAX), "camera.status"),
    ] {
        let create = pb::CreateCameraRequest { camera: Some(camera.clone()) };
        refused(server.cameras().create_camera(create).await, path);
        if path != "camera.id" {
            let camera = Some(pb::Camera { id: "door".into(), ..camera });
            let update = pb::UpdateCameraRequest { camera, update_mask: mask(&["*"]) };
            refused(server.cameras().update_camera(update).await, path);
        }
    }
    refused(server.cameras().create_camera(pb::CreateCameraRequest::default()).await, "camera");
    refused(server.cameras().update_camera(pb::UpdateCameraRequest::default()).await, "camera");
    let long = "p".repeat(HUGE);
    for path in ["nope", "\0", "*.name", &long] {
        let update = pb::UpdateCameraRequest {
            camera: Some(pb::Camera { id: "door".into(), ..good() }),
            update_mask: mask(&[path]),
        };
        refused(server.cameras().update_camera(update).await, "update_mask");
    }
    unharmed(&server, &before).await;
    server.stop().await;
}

#[on_both]
async fn a_bad_id_is_refused_by_every_call(backend: Backend) {
    let server = ready(backend).await;
    let before = rows(&server).await;
    let (mut cameras, mut rules, mut alerts) = (server.cameras(), server.rules(), server.alerts());
    for id in BAD_IDS.map(String::from).into_iter().chain(["x".repeat(65), "x".repeat(HUGE)]) {
        refused(cameras.get_camera(pb::GetCameraRequest { id: id.clone() }).await, "id");
        refused(cameras.delete_camera(pb::DeleteCameraRequest { id: id.clone() }).await, "id");
        refused(cameras.restore_camera(pb::RestoreCameraRequest { id: id.clone() }).await, "id");
        let camera = Some(pb::Camera { id, name: "x".into(), ..Default::default() });
        refused(cameras.update_camera(pb::UpdateCameraRequest { camera, update_mask: None }).await, "camera.id");
    }
    for id in BAD_UUIDS.map(String::from).into_iter().chain(["0".repeat(HUGE)]) {
        refused(rules.get_alert_rule(pb::GetAlertRuleRequest { id: id.clone() }).await, "id");
        refused(
            rules.delete_alert_rule(pb::DeleteAlertRuleRequest { id: id.clone(), expected_version_id: None }).await,
            "id",
        );
        let alert_rule = Some(pb::AlertRule { id: id.clone(), name: "x".into(), ..Default::default() });
        refused(
            rules
                .update_alert_rule(pb::UpdateAlertRuleRequest { alert_rule, update_mask: None, ..Default::default() })
                .await,
            "alert_rule.id",
        );
        refused(alerts.get_alert(pb::GetAlertRequest { id: id.clone() }).await, "id");
        refused(
            alerts
                .acknowledge_alert(pb::AcknowledgeAlertRequest {
                    id: id.clone(),
                    expected_version_id: Some(1),
                    ..Default::default()
                })
                .await,
            "id",
        );
        refused(alerts.dismiss_alert(pb::DismissAlertRequest { id, ..Default::default() }).await, "id");
    }
    unharmed(&server, &before).await;
    server.stop().await;
}

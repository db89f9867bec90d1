//! `CameraService`.

use tonic::Code;
use watchpost::pb::{self, CameraStatus};

use crate::support::{
    TestServer,
    calls::{Reply, at, execute, failed, mask, metadata, not_found, refused, rows, strings, walk},
    database::{Backend, on_both},
    field, ingest,
};

fn named(name: &str) -> pb::Camera {
    pb::Camera { name: name.into(), ..Default::default() }
}

async fn create(server: &TestServer, camera: pb::Camera) -> Reply<pb::Camera> {
    let camera = Some(camera);
    server.cameras().create_camera(pb::CreateCameraRequest { camera }).await
}

async fn get(server: &TestServer, id: &str) -> Reply<pb::Camera> {
    let request = pb::GetCameraRequest { id: id.into() };
    server.cameras().get_camera(request).await
}

async fn update(server: &TestServer, camera: pb::Camera, paths: &[&str]) -> Reply<pb::Camera> {
    let request = pb::UpdateCameraRequest { camera: Some(camera), update_mask: mask(paths) };
    server.cameras().update_camera(request).await
}

async fn delete(server: &TestServer, id: &str) -> Reply<()> {
    let request = pb::DeleteCameraRequest { id: id.into() };
    server.cameras().delete_camera(request).await
}

async fn restore(server: &TestServer, id: &str) -> Reply<pb::Camera> {
    let request = pb::RestoreCameraRequest { id: id.into() };
    server.cameras().restore_camera(request).await
}

async fn list(
    server: &TestServer,
    filter: pb::CameraFilter,
    page_size: i32,
    page_token: String,
) -> pb::ListCamerasResponse {
    let request = pb::ListCamerasRequest { page_size, page_token, filter: Some(filter) };
    let reply = server.cameras().list_cameras(request).await;
    reply.unwrap().into_inner()
}

/// The ids of the cameras that a filter lets through, newest first.
async fn ids(server: &TestServer, filter: pb::CameraFilter) -> Vec<String> {
    let cameras = list(server, filter, 0, String::new()).await.cameras;
    cameras.into_iter().map(|camera| camera.id).collect()
}

/// That a camera was refused because another has this field.
#[track_caller]
fn taken<T: std::fmt::Debug>(reply: Reply<T>, path: &str) {
    let status = failed(reply, Code::AlreadyExists, "ALREADY_EXISTS");
    assert_eq!(field(&status), path, "{}", status.message());
}

#[on_both]
async fn a_new_camera_has_defaults_and_can_be_got(backend: Backend) {
    let server = TestServer::start(backend).await;
    let camera = create(&server, named("Front Door")).await.unwrap().into_inner();
    assert_eq!((camera.id.as_str(), camera.folder_path.as_str()), ("front_door", "front_door"));
    assert_eq!(camera.status(), CameraStatus::Online);
    assert!(camera.created_at.is_some());
    assert_eq!((camera.last_seen_at, camera.deleted_at), (None, None));
    assert_eq!(get(&server, "front_door").await.unwrap().into_inner(), camera);

    let sent = pb::Camera {
        id: "A-b_9".into(),
        name: "車 🎥".into(),
        folder_path: "/srv/ü/'; --".into(),
        status: CameraStatus::Error.into(),
        created_at: at(1),
        last_seen_at: at(2),
        deleted_at: at(3),
    };
    let camera = create(&server, sent.clone()).await.unwrap().into_inner();
    // What is only output is not taken from the client.
    let created_at = camera.created_at.filter(|time| time.seconds > 1_000_000_000);
    assert!(created_at.is_some());
    assert_eq!(camera, pb::Camera { created_at, last_seen_at: None, deleted_at: None, ..sent });
    assert_eq!(get(&server, "A-b_9").await.unwrap().into_inner(), camera);
    server.stop().await;
}

#[on_both]
async fn texts_may_be_as_long_as_promised(backend: Backend) {
    let server = TestServer::start(backend).await;
    // Four bytes each, and no two the same, so that nothing can be made smaller.
    let wide = |length: u32| (0..length).map(|n| char::from_u32(0x2_0000 + n * 37).unwrap()).collect::<String>();
    let camera = pb::Camera { id: "x".repeat(64), folder_path: wide(512), ..named(&wide(255)) };
    let camera = create(&server, camera).await.unwrap().into_inner();
    assert_eq!((camera.name, camera.folder_path), (wide(255), wide(512)));
    for (camera, path) in [
        (pb::Camera { id: "x".repeat(65), ..named("a") }, "camera.id"),
        (named(&wide(256)), "camera.name"),
        (pb::Camera { folder_path: wide(513), ..named("a") }, "camera.folder_path"),
    ] {
        refused(create(&server, camera).await, path);
    }
    server.stop().await;
}

#[on_both]
async fn what_another_camera_has_is_refused_by_name(backend: Backend) {
    let server = TestServer::start(backend).await;
    for id in ["present", "deleted", "third"] {
        server.camera(id).await;
    }
    delete(&server, "deleted").await.unwrap();
    let before = rows(&server).await;
    for id in ["present", "deleted"] {
        let other = pb::Camera { id: "other".into(), folder_path: "other".into(), ..named("other") };
        for (camera, path) in [
            (pb::Camera { id: id.into(), ..other.clone() }, "camera.id"),
            (pb::Camera { name: id.into(), ..other.clone() }, "camera.name"),
            (pb::Camera { folder_path: id.into(), ..other.clone() }, "camera.folder_path"),
        ] {
            taken(create(&server, camera).await, path);
        }
        let third = pb::Camera { id: "third".into(), ..Default::default() };
        taken(update(&server, pb::Camera { name: id.into(), ..third.clone() }, &[]).await, "camera.name");
        let folder = pb::Camera { folder_path: id.into(), ..third };
        taken(update(&server, folder, &[]).await, "camera.folder_path");
    }
    // Its own values are not taken.
    let same = pb::Camera { id: "third".into(), folder_path: "third".into(), ..named("third") };
    update(&server, same, &["*"]).await.unwrap();
    let mut after = rows(&server).await;
    after.pop(); // `changes` has the update.
    assert_eq!(after, before[..before.len() - 1]);
    server.stop().await;
}

#[on_both]
async fn of_many_who_create_one_camera_one_succeeds(backend: Backend) {
    let server = TestServer::start(backend).await;
    let tries: Vec<_> = (0..16)
        .map(|_| {
            let mut cameras = server.cameras();
            let camera = Some(named("Gate"));
            tokio::spawn(async move { cameras.create_camera(pb::CreateCameraRequest { camera }).await })
        })
        .collect();
    let mut created = 0;
    for tried in tries {
        match tried.await.unwrap() {
            Ok(_) => created += 1,
            // Id, name and folder are taken, and databases name one of them.
            reply => drop(failed(reply, Code::AlreadyExists, "ALREADY_EXISTS")),
        }
    }
    assert_eq!(created, 1);
    server.stop().await;
}

#[on_both]
async fn an_update_changes_what_its_mask_names(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    let start = pb::Camera {
        id: "door".into(),
        folder_path: "/door".into(),
        status: CameraStatus::Offline.into(),
        ..named("Door")
    };
    let full = pb::Camera {
        name: "Gate".into(),
        folder_path: "/gate".into(),
        status: CameraStatus::Error.into(),
        ..start.clone()
    };
    let empty = pb::Camera { id: "door".into(), ..Default::default() };
    let (offline, error, online) = (CameraStatus::Offline, CameraStatus::Error, CameraStatus::Online);
    for (change, paths, name, folder, status) in [
        (&full, &[][..], "Gate", "/gate", error),
        (&full, &["*"], "Gate", "/gate", error),
        (&full, &["name"], "Gate", "/door", offline),
        (&full, &["status", "folder_path", "status"], "Door", "/gate", error),
        (&empty, &[], "Door", "/door", offline),
        (&empty, &["status"], "Door", "/door", online),
        (&empty, &["folder_path"], "Door", "door", offline),
    ] {
        update(&server, start.clone(), &["*"]).await.unwrap();
        let camera = update(&server, change.clone(), paths).await.unwrap().into_inner();
        let got = (camera.name.as_str(), camera.folder_path.as_str(), camera.status());
        assert_eq!(got, (name, folder, status), "{paths:?}");
        assert_eq!(get(&server, "door").await.unwrap().into_inner(), camera);
    }
    for path in ["id", "created_at", "last_seen_at", "deleted_at", "nope", "camera.name", "Name", ""] {
        refused(update(&server, full.clone(), &["name", path]).await, "update_mask");
    }
    refused(update(&server, empty.clone(), &["name"]).await, "camera.name");
    refused(update(&server, empty, &["*"]).await, "camera.name");
    server.stop().await;
}

#[on_both]
async fn a_deleted_camera_is_gone_until_it_is_restored(backend: Backend) {
    let server = TestServer::start(backend).await;
    let door = server.camera("door").await;
    let event = server.ingest("door", vec![]).await.event.unwrap();
    let status = failed(restore(&server, "door").await, Code::FailedPrecondition, "WRONG_STATUS");
    assert_ne!(metadata(&status, "status"), "");

    delete(&server, "door").await.unwrap();
    let deleted = get(&server, "door").await.unwrap().into_inner();
    assert!(deleted.deleted_at.is_some());
    not_found(delete(&server, "door").await, "camera", "door");
    let change = pb::Camera { id: "door".into(), ..named("x") };
    not_found(update(&server, change, &[]).await, "camera", "door");
    assert_eq!(ids(&server, pb::CameraFilter::default()).await, strings(&[]));
    let all = pb::CameraFilter { show_deleted: true, ..Default::default() };
    assert_eq!(list(&server, all, 0, String::new()).await.cameras, [deleted]);
    let refused = server.events().ingest_event(ingest("door", vec![])).await;
    failed(refused, Code::FailedPrecondition, "BROKEN_REFERENCE");
    let kept = server.events().get_event(pb::GetEventRequest { id: event.id }).await;
    assert_eq!(kept.unwrap().into_inner(), event);

    assert_eq!(restore(&server, "door").await.unwrap().into_inner(), door);
    assert_eq!(ids(&server, pb::CameraFilter::default()).await, ["door"]);
    server.ingest("door", vec![]).await;
    server.stop().await;
}

#[on_both]
async fn an_unknown_camera_is_not_found(backend: Backend) {
    let server = TestServer::start(backend).await;
    not_found(get(&server, "none").await, "camera", "none");
    not_found(delete(&server, "none").await, "camera", "none");
    not_found(restore(&server, "none").await, "camera", "none");
    let change = pb::Camera { id: "none".into(), ..named("x") };
    not_found(update(&server, change, &[]).await, "camera", "none");
    // Ids are told apart by case.
    server.camera("door").await;
    not_found(get(&server, "Door").await, "camera", "Door");
    server.stop().await;
}

#[on_both]
async fn a_camera_was_last_seen_when_its_newest_detection_was_made(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    let seen = |seconds| pb::Detection { detected_at: at(seconds), ..Default::default() };
    for (detections, last) in [
        (vec![], None),
        (vec![seen(1_000), seen(2_000), seen(1_500)], at(2_000)),
        (vec![seen(1_900)], at(2_000)),
        (vec![seen(2_010)], at(2_010)),
    ] {
        server.ingest("door", detections).await;
        assert_eq!(get(&server, "door").await.unwrap().into_inner().last_seen_at, last);
    }
    server.stop().await;
}

#[on_both]
async fn pages_neither_skip_nor_repeat_cameras_of_equal_times(backend: Backend) {
    let server = TestServer::start(backend).await;
    for id in ["a", "B", "b", "c-1", "c_1", "Z", "0"] {
        server.camera(id).await;
    }
    execute(&server, "UPDATE cameras SET created_at = '2026-01-02T03:04:05+00:00' WHERE id <> 'Z'").await;
    walk(7, async |size, token| {
        let page = list(&server, pb::CameraFilter::default(), size, token).await;
        let ids: Vec<_> = page.cameras.into_iter().map(|camera| camera.id).collect();
        (ids, page.next_page_token)
    })
    .await;
    server.stop().await;
}

#[on_both]
async fn cameras_are_listed_newest_first_by_every_filter(backend: Backend) {
    let server = TestServer::start(backend).await;
    for (id, status) in [
        ("a", CameraStatus::Online),
        ("b", CameraStatus::Offline),
        ("c", CameraStatus::Unknown),
        ("d", CameraStatus::Offline),
    ] {
        create(&server, pb::Camera { id: id.into(), status: status.into(), ..named(id) }).await.unwrap();
    }
    delete(&server, "d").await.unwrap();
    let filter = |status: CameraStatus, show_deleted| pb::CameraFilter { status: status.into(), show_deleted };
    for (filter, expected) in [
        (filter(CameraStatus::Unspecified, false), &["c", "b", "a"][..]),
        (filter(CameraStatus::Unspecified, true), &["d", "c", "b", "a"]),
        (filter(CameraStatus::Offline, false), &["b"]),
        (filter(CameraStatus::Offline, true), &["d", "b"]),
        (filter(CameraStatus::Error, true), &[]),
    ] {
        assert_eq!(ids(&server, filter).await, expected, "{filter:?}");
    }
    let absent = server.cameras().list_cameras(pb::ListCamerasRequest::default()).await;
    assert_eq!(absent.unwrap().into_inner().cameras.len(), 3);
    server.stop().await;
}

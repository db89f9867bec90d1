//! Database files that are moved, replaced or broken under a running server.

use std::{
    fs,
    io::{Seek, SeekFrom, Write},
};

use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;
use watchpost::pb::camera_service_client::CameraServiceClient;

use super::{TOLD_WITHIN, get, health_says, ingest_again, try_ingest};
use crate::{
    storage_faults::{
        Fault, Faults,
        faults::{EIO, EROFS, SYNC, WRITE},
    },
    support::{
        calls::new_camera,
        database::{Backend, TestDatabase},
        process::Process,
        reason,
    },
};

/// A server on a database with the camera `door`, as a process of its own.
async fn start(database: &TestDatabase, faults: &Faults) -> (Process, tonic::transport::Channel) {
    let process = Process::start_with(database.url(), "127.0.0.1:0", &faults.variables(), &[]).await;
    let channel = process.serving().await;
    let mut cameras = CameraServiceClient::new(channel.clone());
    // A second start finds it there.
    let _ = cameras.create_camera(new_camera("door")).await;
    (process, channel)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_are_refused_while_the_file_is_away() {
    for name in ["watchpost.db", "watchpost.db-wal", ""] {
        let database = TestDatabase::migrated(Backend::Sqlite).await;
        let (process, channel) = start(&database, &Faults::new(&["watchpost.db"])).await;
        let before = try_ingest(&channel).await.unwrap();
        let path = database.directory().unwrap().join(name);
        let away = database.directory().unwrap().with_extension("away");
        fs::rename(&path, &away).unwrap();
        let refused = try_ingest(&channel).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused)), (Code::Unavailable, "STORAGE_FAILING".into()), "`{name}`");
        health_says(&channel, ServingStatus::NotServing, TOLD_WITHIN).await;
        assert!(!path.exists(), "`{name}`: no new file is made");
        fs::rename(&away, &path).unwrap();
        let after = ingest_again(&channel).await;
        health_says(&channel, ServingStatus::Serving, TOLD_WITHIN).await;
        process.kill().await;
        let (process, channel) = start(&database, &Faults::new(&[])).await;
        for event in [before, after] {
            get(&channel, event.id).await.unwrap();
        }
        process.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_file_ends_the_server_and_the_next_one_serves_it() {
    let database = TestDatabase::migrated(Backend::Sqlite).await;
    let other = TestDatabase::migrated(Backend::Sqlite).await;
    let (process, channel) = start(&database, &Faults::new(&[])).await;
    try_ingest(&channel).await.unwrap();
    let path = database.directory().unwrap().join("watchpost.db");
    fs::rename(other.directory().unwrap().join("watchpost.db"), &path).unwrap();
    let refused = try_ingest(&channel).await;
    let (status, log, _) = process.ended().await;
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("the database file or its write-ahead log was replaced"), "{log}");
    assert!(refused.is_err(), "{refused:?}");
    let (process, channel) = start(&database, &Faults::new(&[])).await;
    assert_eq!(try_ingest(&channel).await.unwrap().id, 1, "the other database is empty");
    process.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fails_or_is_read_only_is_told_and_recovers() {
    let faults = [Fault::every(WRITE | SYNC, EIO), Fault::every(SYNC, EIO), Fault::every(WRITE, EROFS)];
    for fault in faults {
        let database = TestDatabase::migrated(Backend::Sqlite).await;
        let shim = Faults::new(&["watchpost.db"]);
        let (process, channel) = start(&database, &shim).await;
        shim.begin(fault);
        health_says(&channel, ServingStatus::NotServing, TOLD_WITHIN).await;
        let refused = try_ingest(&channel).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused)), (Code::Unavailable, "STORAGE_FAILING".into()), "{fault:?}");
        shim.end();
        let event = ingest_again(&channel).await;
        health_says(&channel, ServingStatus::Serving, TOLD_WITHIN).await;
        process.kill().await;
        let (process, channel) = start(&database, &shim).await;
        get(&channel, event.id).await.unwrap();
        process.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_corrupt_file_is_told() {
    let database = TestDatabase::migrated(Backend::Sqlite).await;
    let path = database.directory().unwrap().join("watchpost.db");
    let (process, channel) = start(&database, &Faults::new(&[])).await;
    try_ingest(&channel).await.unwrap();
    // Stopped, so that the write-ahead log is empty and the file is read anew.
    process.signal("TERM").await;
    process.ended().await;
    let pages = fs::metadata(&path).unwrap().len() / 4096;
    let (process, channel) = start(&database, &Faults::new(&[])).await;
    let mut file = fs::File::options().write(true).open(&path).unwrap();
    // The first page, with the schema, was read before.
    file.seek(SeekFrom::Start(4096)).unwrap();
    for _ in 1..pages {
        file.write_all(&[0xA5; 4096]).unwrap();
    }
    let refused = try_ingest(&channel).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused)), (Code::Unavailable, "STORAGE_FAILING".into()));
    health_says(&channel, ServingStatus::NotServing, TOLD_WITHIN).await;
    process.kill().await;
}

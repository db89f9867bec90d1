//! A full disk.

use std::{path::Path, process::Command};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;
use watchpost::pb::camera_service_client::CameraServiceClient;

use super::{TOLD_WITHIN, get, health_says, ingest_again, is_storage, try_ingest};
use crate::{
    storage_faults::{
        Fault, Faults,
        faults::{ENOSPC, TRUNCATE, WRITE},
    },
    support::{
        calls::{create_camera, new_camera},
        database::{Backend, TestDatabase},
        process::Process,
        reason,
    },
};

/// How many events are ingested once there is room again.
const AFTERWARDS: usize = 100;

/// A disk that can be filled: a small file system of its own, or, without the right to mount one, a preloaded library that
/// refuses to write.
enum Disk {
    Mounted(TempDir),
    Preloaded(TempDir, Faults),
}

impl Disk {
    fn new() -> Self {
        let folder = TempDir::with_prefix("watchpost-disk-").unwrap();
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"]).arg(folder.path()).output();
        if mount.is_ok_and(|mount| mount.status.success()) {
            Self::Mounted(folder)
        } else {
            Self::Preloaded(folder, Faults::new(&["watchpost.db"]))
        }
    }

    fn folder(&self) -> &Path {
        match self {
            Self::Mounted(folder) | Self::Preloaded(folder, _) => folder.path(),
        }
    }

    async fn start(&self, listen: &str) -> Process {
        let url = format!("sqlite://{}/watchpost.db", self.folder().display());
        let metrics = ["--metrics-listen", "127.0.0.1:0"];
        match self {
            Self::Mounted(_) => Process::start_with(&url, listen, &[], &metrics).await,
            Self::Preloaded(_, faults) => Process::start_with(&url, listen, &faults.variables(), &metrics).await,
        }
    }

    fn fill(&self) {
        match self {
            Self::Mounted(folder) => {
                // It ends with an error: there is no more room.
                let filled = std::fs::write(folder.path().join("filler"), vec![1; 16 << 20]);
                filled.unwrap_err();
            }
            Self::Preloaded(_, faults) => faults.begin(Fault::every(WRITE | TRUNCATE, ENOSPC)),
        }
    }

    fn free(&self) {
        match self {
            Self::Mounted(folder) => std::fs::remove_file(folder.path().join("filler")).unwrap(),
            Self::Preloaded(_, faults) => faults.end(),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Self::Mounted(folder) = self {
            // A process that is just being killed may still hold it.
            Command::new("umount").arg("--lazy").arg(folder.path()).status().ok();
        }
    }
}

/// What `/readyz` answers.
async fn readyz(address: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_after_a_full_disk_is_there() {
    let disk = Disk::new();
    let mut process = disk.start("127.0.0.1:0").await;
    let metrics = process.metrics_address().await;
    let channel = process.serving().await;
    create_camera(&channel, "door").await;
    let first = try_ingest(&channel).await.unwrap();

    disk.fill();
    // What is allocated already may take some more.
    let refused = loop {
        match try_ingest(&channel).await {
            Ok(event) => assert_eq!(get(&channel, event.id).await.unwrap().id, event.id),
            Err(status) => break status,
        }
    };
    assert_eq!((refused.code(), reason(&refused)), (Code::ResourceExhausted, "STORAGE_FULL".into()));
    health_says(&channel, ServingStatus::NotServing, TOLD_WITHIN).await;
    let answer = readyz(&metrics).await;
    assert!(answer.contains(" 503 ") && answer.contains("no space is left"), "{answer}");
    assert_eq!(get(&channel, first.id).await.unwrap().id, first.id, "reads go on");

    disk.free();
    let mut ids = vec![ingest_again(&channel).await.id];
    for _ in 0..AFTERWARDS {
        ids.push(try_ingest(&channel).await.unwrap().id);
    }
    for id in &ids {
        get(&channel, *id).await.unwrap();
    }
    health_says(&channel, ServingStatus::Serving, TOLD_WITHIN).await;

    process.kill().await;
    let process = disk.start("127.0.0.1:0").await;
    let channel = process.serving().await;
    for id in &ids {
        get(&channel, *id).await.unwrap();
    }
    let next = try_ingest(&channel).await.unwrap();
    assert!(!ids.contains(&next.id), "an id is given once");
    process.kill().await;
}

/// The GPU sampler, job reaper and retention write through the same connection as calls do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_full_while_nobody_calls_is_told_and_costs_nothing_later() {
    let database = TestDatabase::migrated(Backend::Sqlite).await;
    let faults = Faults::new(&["watchpost.db"]);
    let process = Process::start_with(database.url(), "127.0.0.1:0", &faults.variables(), &[]).await;
    let channel = process.serving().await;
    faults.begin(Fault::every(WRITE | TRUNCATE, ENOSPC));
    health_says(&channel, ServingStatus::NotServing, TOLD_WITHIN).await;
    let request = new_camera("door");
    let mut cameras = CameraServiceClient::new(channel.clone());
    let refused = cameras.create_camera(request.clone()).await.unwrap_err();
    assert!(is_storage(&refused), "{refused:?}");
    faults.end();
    health_says(&channel, ServingStatus::Serving, TOLD_WITHIN).await;
    cameras.create_camera(request).await.unwrap();
    let event = try_ingest(&channel).await.unwrap();
    process.kill().await;
    let process = Process::start(database.url(), "127.0.0.1:0").await;
    let channel = process.serving().await;
    get(&channel, event.id).await.unwrap();
    process.kill().await;
}

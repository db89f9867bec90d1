//! Has the storage of the database fail at random moments, as often as one likes.

use std::{process::Child, time::Instant};

use sea_orm::{ConnectOptions, Database, DatabaseConnection};
use serde_json::json;
use tempfile::TempDir;

use crate::{
    cluster::Cluster,
    server::{serving_at, spawn_with},
    storage_faults::{
        Fault, Faults, Plan, Subject,
        faults::{EDQUOT, EIO, ENOSPC, READ, SHORT_WRITE, SYNC, TRUNCATE, WRITE},
        run,
    },
};

/// After one in so many faults the server is killed.
const KILL_ONE_IN: usize = 20;

/// A server on storage that fails: a SQLite file, or a PostgreSQL of its own.
struct Failing {
    folder: TempDir,
    faults: Faults,
    cluster: Option<Cluster>,
    child: Option<Child>,
    listen: String,
}

impl Subject for Failing {
    async fn start(&mut self) {
        let url = self.cluster.as_ref().map(|cluster| cluster.url("postgres"));
        let variables = if url.is_none() { self.faults.variables().to_vec() } else { Vec::new() };
        let (child, address) = spawn_with(&self.folder, url.as_ref(), &self.listen, &variables);
        self.child = Some(child);
        self.listen = address.trim_start_matches("http://").to_string();
        serving_at(&address).await;
    }

    async fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn begin(&mut self, fault: Fault) {
        self.faults.begin(fault);
    }

    async fn end(&mut self) {
        self.faults.end();
        // A PostgreSQL that met a fault while it recovered has ended.
        if let Some(cluster) = &self.cluster
            && !cluster.is_ready().await
        {
            cluster.restart().await;
        }
    }

    fn faults(&self) -> Vec<Fault> {
        let some = |one_in, at_most, fault| Fault { one_in, at_most, ..fault };
        if self.cluster.is_some() {
            return vec![
                some(1, 3, Fault::every(WRITE, ENOSPC)),
                Fault::next(WRITE, EIO),
                Fault::next(SYNC, EIO),
                some(4, 5, Fault::every(WRITE, ENOSPC)),
            ];
        }
        vec![
            Fault::every(WRITE | TRUNCATE, ENOSPC),
            Fault::every(WRITE | SYNC, EIO),
            Fault::every(WRITE, EDQUOT),
            Fault::every(SYNC, EIO),
            Fault::next(SYNC, EIO),
            Fault::next(WRITE, ENOSPC),
            Fault::next(TRUNCATE, EIO),
            some(5, u32::MAX, Fault::every(WRITE | SHORT_WRITE, ENOSPC)),
            some(3, u32::MAX, Fault::every(SYNC, EIO)),
            some(20, u32::MAX, Fault::every(READ, EIO)),
        ]
    }

    fn address(&self) -> String {
        format!("http://{}", self.listen)
    }

    async fn reader(&self) -> DatabaseConnection {
        let url = match &self.cluster {
            Some(cluster) => cluster.url("postgres"),
            None => format!("sqlite://{}/watchpost.db", self.folder.path().display()),
        };
        let mut options = ConnectOptions::new(url);
        options.max_connections(1).sqlx_logging(false).idle_timeout(None).max_lifetime(None);
        Database::connect(options).await.unwrap()
    }
}

/// Has the storage fail so many times; returns whether everything that was acknowledged was there.
pub async fn check(postgres: bool, cycles: u32, seed: u64) -> bool {
    let matched: &[&str] = if postgres { &["base/", "pg_wal/"] } else { &["watchpost.db"] };
    let faults = Faults::new(matched);
    let cluster = if postgres { Some(Cluster::start_with(faults.variables()).await) } else { None };
    let mut subject =
        Failing { folder: TempDir::new().unwrap(), faults, cluster, child: None, listen: "127.0.0.1:0".into() };
    subject.start().await;
    let begun = Instant::now();
    let plan = Plan { seed, cycles: cycles as usize, kill_one_in: KILL_ONE_IN };
    let outcome = run(&mut subject, plan).await;
    subject.kill().await;
    let line = json!({
        "figure": "storage_faults",
        "database": if postgres { "postgres" } else { "sqlite" },
        "goal": "nothing acknowledged is lost",
        "cycles": cycles,
        "seed": seed,
        "seconds": begun.elapsed().as_secs(),
        "operations_failed": subject.faults.struck(),
        "acknowledged": outcome.acknowledged,
        "refused": outcome.refused,
        "kills": outcome.kills,
        "problems": outcome.problems,
    });
    println!("{line}");
    outcome.problems.is_empty()
}

//! Kills servers and workers over jobs, as often as one likes.

use std::time::{Duration, Instant};

use sea_orm::Database;
use serde_json::json;
use tokio::time::sleep;

use crate::{
    job_crash::{self, Killable, Plan},
    server::spawn_at,
};

/// The server that is killed.
struct Killed {
    folder: tempfile::TempDir,
    url: Option<String>,
    listen: String,
    child: Option<std::process::Child>,
}

impl Killable for Killed {
    async fn start(&mut self) {
        let (child, _) = spawn_at(&self.folder, self.url.as_ref(), &self.listen);
        self.child = Some(child);
    }

    async fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

/// Kills servers and workers, and cuts connections, so many times; returns whether nothing was wrong afterwards.
pub async fn check(url: Option<String>, cycles: u32, seed: u64) -> bool {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = listener.local_addr().unwrap().to_string();
    drop(listener);
    let mut server = Killed { folder: tempfile::TempDir::new().unwrap(), url, listen: listen.clone(), child: None };
    server.start().await;
    // It has migrated the database when it answers.
    sleep(Duration::from_secs(2)).await;
    let url = server.url.clone().unwrap_or_else(|| {
        let file = server.folder.path().join("watchpost.db");
        format!("sqlite://{}", file.display())
    });
    let database = if url.starts_with("postgres") { "postgres" } else { "sqlite" };
    let db = Database::connect(url).await.unwrap();
    let begun = Instant::now();
    let plan = Plan {
        seed,
        cycles: cycles as usize,
        // About as many as are put in while that is done to them.
        jobs: u64::from(cycles) * 60,
    };
    let violations = job_crash::run(&mut server, &db, &listen, plan).await;
    server.kill().await;
    let line = json!({
        "figure": "job_kills",
        "database": database,
        "goal": "no violation",
        "cycles": cycles,
        "jobs": plan.jobs,
        "seed": seed,
        "seconds": begun.elapsed().as_secs(),
        "violations": violations,
    });
    println!("{line}");
    violations.is_empty()
}

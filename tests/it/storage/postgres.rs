//! PostgreSQL whose storage fails: the fault is in its own process.

use std::time::Duration;

use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection};
use tokio::time::timeout;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

use super::{TOLD_WITHIN, health_says, ingest_again, try_ingest};
use crate::{
    storage_faults::{
        Fault, Faults, Plan, Subject,
        faults::{EIO, ENOSPC, SYNC, WRITE},
        run,
    },
    support::{calls::create_camera, database::Cluster, process::Process, reason, seed},
};

/// A server on a PostgreSQL whose storage fails when it is told to.
struct OnPostgres {
    cluster: Cluster,
    faults: Faults,
    process: Option<Process>,
    listen: String,
}

impl OnPostgres {
    async fn start() -> Self {
        let faults = Faults::new(&["base/", "pg_wal/"]);
        let mut subject = Self {
            cluster: Cluster::start_with(faults.variables()).await,
            faults,
            process: None,
            listen: "127.0.0.1:0".into(),
        };
        Subject::start(&mut subject).await;
        subject
    }
}

impl Subject for OnPostgres {
    async fn start(&mut self) {
        let url = self.cluster.url("postgres");
        let process = Process::start(&url, &self.listen).await;
        process.serving().await;
        self.listen = process.address.trim_start_matches("http://").to_string();
        self.process = Some(process);
    }

    async fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill().await;
        }
    }

    fn begin(&mut self, fault: Fault) {
        self.faults.begin(fault);
    }

    /// A PostgreSQL that met a fault while it recovered has ended.
    async fn end(&mut self) {
        self.faults.end();
        if !self.cluster.is_ready().await {
            self.cluster.restart().await;
        }
    }

    fn faults(&self) -> Vec<Fault> {
        vec![
            Fault { at_most: 3, ..Fault::every(WRITE, ENOSPC) },
            Fault::next(WRITE, EIO),
            Fault::next(SYNC, EIO),
            Fault { one_in: 4, at_most: 5, ..Fault::every(WRITE, ENOSPC) },
        ]
    }

    fn address(&self) -> String {
        self.process.as_ref().unwrap().address.clone()
    }

    async fn reader(&self) -> DatabaseConnection {
        let mut options = ConnectOptions::new(self.cluster.url("postgres"));
        options.max_connections(2).sqlx_logging(false).idle_timeout(None).max_lifetime(None);
        Database::connect(options).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_is_there_whatever_the_disk_of_postgres_does() {
    let mut subject = OnPostgres::start().await;
    let plan = Plan { seed: seed(1), cycles: 12, kill_one_in: 6 };
    let outcome = timeout(Duration::from_mins(4), run(&mut subject, plan)).await;
    let outcome = outcome.expect("the cycles end");
    assert_eq!(outcome.problems, Vec::<String>::new());
    assert!(outcome.acknowledged > 50 && subject.faults.struck() > 0, "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_that_only_reads_is_told_and_recovers() {
    let cluster = Cluster::start().await;
    let process = Process::start(&cluster.url("postgres"), "127.0.0.1:0").await;
    let channel = process.serving().await;
    create_camera(&channel, "door").await;
    let admin = Database::connect(cluster.url("postgres")).await.unwrap();
    admin.execute_unprepared("ALTER SYSTEM SET default_transaction_read_only = on").await.unwrap();
    admin.execute_unprepared("SELECT pg_reload_conf()").await.unwrap();
    health_says(&channel, ServingStatus::NotServing, TOLD_WITHIN).await;
    let refused = try_ingest(&channel).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused)), (Code::Unavailable, "STORAGE_FAILING".into()));
    admin.execute_unprepared("ALTER SYSTEM RESET default_transaction_read_only").await.unwrap();
    admin.execute_unprepared("SELECT pg_reload_conf()").await.unwrap();
    ingest_again(&channel).await;
    health_says(&channel, ServingStatus::Serving, TOLD_WITHIN).await;
    process.kill().await;
}

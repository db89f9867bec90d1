//! Storage that fails: nothing that was acknowledged is lost, and the server says what is wrong.

mod files;
mod full;
mod lock;
mod postgres;

use std::time::Duration;

use sea_orm::DatabaseConnection;
use tokio::time::{sleep, timeout};
use tonic::{Code, Status, transport::Channel};
use tonic_health::pb::health_check_response::ServingStatus;
use watchpost::pb::{self, event_service_client::EventServiceClient};

use crate::{
    storage_faults::{
        Fault, Faults, Plan, Subject,
        faults::{EDQUOT, EIO, ENOSPC, READ, SHORT_WRITE, SYNC, TRUNCATE, WRITE},
        run,
    },
    support::{
        database::{Backend, TestDatabase},
        eventually_some, ingest,
        process::{Process, overall},
        reason, seed,
    },
};

/// How soon health has to say that nothing can be written.
const TOLD_WITHIN: Duration = Duration::from_secs(5);

/// Ingests an event of the camera `door`.
async fn try_ingest(channel: &Channel) -> Result<pb::Event, Status> {
    let request = ingest("door", vec![]);
    let response = EventServiceClient::new(channel.clone()).ingest_event(request).await?;
    Ok(response.into_inner().event.unwrap())
}

/// Ingests until an ingest is acknowledged.
async fn ingest_again(channel: &Channel) -> pb::Event {
    eventually_some("the storage recovers", async || match try_ingest(channel).await {
        Ok(event) => Some(event),
        Err(status) => {
            assert!(is_storage(&status), "{status:?}");
            None
        }
    })
    .await
}

async fn get(channel: &Channel, id: i64) -> Result<pb::Event, Status> {
    let event = EventServiceClient::new(channel.clone()).get_event(pb::GetEventRequest { id }).await?;
    Ok(event.into_inner())
}

/// Whether a status says that the storage fails, in one of the two ways.
fn is_storage(status: &Status) -> bool {
    matches!(
        (status.code(), reason(status).as_str()),
        (Code::ResourceExhausted, "STORAGE_FULL") | (Code::Unavailable, "STORAGE_FAILING" | "DATABASE_AWAY")
    )
}

/// Waits until health says this of the server as a whole.
async fn health_says(channel: &Channel, status: ServingStatus, within: Duration) {
    let waiting = async {
        while overall(channel).await != Some(status) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(within, waiting).await.unwrap_or_else(|_| panic!("health does not say {status:?} within {within:?}"));
}

/// A server on a SQLite file whose storage fails when it is told to.
struct OnSqlite {
    database: TestDatabase,
    faults: Faults,
    process: Option<Process>,
    listen: String,
}

impl OnSqlite {
    async fn start() -> Self {
        let mut subject = Self {
            database: TestDatabase::migrated(Backend::Sqlite).await,
            faults: Faults::new(&["watchpost.db"]),
            process: None,
            listen: "127.0.0.1:0".into(),
        };
        Subject::start(&mut subject).await;
        subject
    }
}

impl Subject for OnSqlite {
    async fn start(&mut self) {
        let variables = self.faults.variables();
        let process = Process::start_with(self.database.url(), &self.listen, &variables, &[]).await;
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

    async fn end(&mut self) {
        self.faults.end();
    }

    fn faults(&self) -> Vec<Fault> {
        vec![
            Fault::every(WRITE | TRUNCATE, ENOSPC),
            Fault::every(WRITE | SYNC, EIO),
            Fault::every(WRITE, EDQUOT),
            Fault::next(SYNC, EIO),
            Fault::next(WRITE, ENOSPC),
            Fault { one_in: 5, ..Fault::every(WRITE | SHORT_WRITE, ENOSPC) },
            Fault { one_in: 3, ..Fault::every(SYNC, EIO) },
            Fault { one_in: 50, ..Fault::every(READ, EIO) },
        ]
    }

    fn address(&self) -> String {
        self.process.as_ref().unwrap().address.clone()
    }

    async fn reader(&self) -> DatabaseConnection {
        self.database.connect().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_is_there_whatever_the_disk_does() {
    let mut subject = OnSqlite::start().await;
    let plan = Plan { seed: seed(1), cycles: 60, kill_one_in: 15 };
    let outcome = timeout(Duration::from_mins(3), run(&mut subject, plan)).await;
    let outcome = outcome.expect("the cycles end");
    assert_eq!(outcome.problems, Vec::<String>::new());
    assert!(outcome.acknowledged > 100 && outcome.refused > 0, "{outcome:?}");
    assert!(subject.faults.struck() > 0, "faults were met");
}

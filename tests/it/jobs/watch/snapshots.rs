//! Memory of snapshots that clients do not read.

use futures_util::future::join_all;
use sea_orm::ConnectionTrait;
use tonic::{Code, transport::Channel};
use watchpost::pb::{self, job_service_client::JobServiceClient};

use super::many;
use crate::support::{
    TestServer, connect,
    database::{Backend, TestDatabase, on_both},
    eventually, reason,
};

/// Memory for two snapshots and some more, and not for ten.
const MEMORY: u64 = 24 << 20;

fn snapshot() -> pb::WatchJobsRequest {
    pb::WatchJobsRequest { snapshot: true, ..many() }
}

/// Clients of their own connections: what one does not read holds up no other.
async fn clients(server: &TestServer, count: usize) -> Vec<JobServiceClient<Channel>> {
    let address = format!("http://{}", server.address());
    let channels = (0..count).map(|_| connect(&address));
    join_all(channels).await.into_iter().map(JobServiceClient::new).collect()
}

#[on_both]
async fn snapshots_are_shared_and_their_memory_is_bounded(backend: Backend) {
    let database = TestDatabase::migrated(backend).await;
    let server = TestServer::start_with(database, |settings| settings.snapshot_memory = MEMORY).await;
    let rows = server.database.connect().await;
    let series = "WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < 4000)";
    let (id, text) = match backend {
        Backend::Sqlite => ("randomblob(16)", "printf('%.2500c', 'x')"),
        Backend::Postgres => ("watchpost_uuid7()", "repeat('x', 2500)"),
    };
    let insert = format!("{series} INSERT INTO jobs (id, job_type, error_message) SELECT {id}, 'a', {text} FROM s");
    rows.execute_unprepared(&insert).await.unwrap();
    rows.close().await.unwrap();
    // They ask at the same time, and read nothing.
    let mut clients = clients(&server, 30).await;
    let mut later = clients.split_off(10);
    let watches = clients.iter_mut().map(|client| client.watch_jobs(snapshot()));
    let mut open: Vec<_> = join_all(watches).await.into_iter().map(Result::unwrap).collect();
    // One who asks later needs another snapshot.
    let mut refused = None;
    for client in &mut later {
        match client.watch_jobs(snapshot()).await {
            Ok(watch) => open.push(watch),
            Err(status) => {
                refused = Some(status);
                break;
            }
        }
    }
    let refused = refused.expect("the memory is bounded");
    assert_eq!((refused.code(), reason(&refused)), (Code::Unavailable, "SERVER_BUSY".into()));
    drop(open);
    eventually("the memory is free again", async || later[0].watch_jobs(snapshot()).await.is_ok()).await;
    server.stop().await;
}

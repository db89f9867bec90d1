//! A server that is killed while it rolls up has lost nothing and done nothing by halves.

use super::*;
use crate::support::process::Process;

const MINUTES: i64 = 150;

#[on_both]
async fn a_killed_server_goes_on_where_it_was(backend: Backend) {
    let start = midnight(2);
    let database = TestDatabase::migrated(backend).await;
    let db = database.connect().await;
    let rows = (0..MINUTES * 30).map(|at| Row::warm(start + at * 2_000, 50.0));
    insert(&db, "GPU-1", &rows.collect::<Vec<_>>()).await;
    let rolled = async || gpu_stats_minute::Entity::find().count(&db).await.unwrap();
    for _ in 0..3 {
        let before = rolled().await;
        let process = Process::start(database.url(), "127.0.0.1:0").await;
        let advanced = async {
            while rolled().await == before && before < MINUTES.unsigned_abs() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, advanced).await.expect("a roll-up");
        process.kill().await;
    }
    let server = TestServer::start_with(database, |_| {}).await;
    rolled_up(&db).await;
    without_samples(&db).await;
    let told = aggregate(&server, request(start, start + MINUTES * MINUTE, MINUTE)).await;
    let samples = told[0].buckets.iter().map(|bucket| bucket.samples);
    assert_eq!(samples.collect::<Vec<_>>(), vec![30; 150]);
    server.stop().await;
}

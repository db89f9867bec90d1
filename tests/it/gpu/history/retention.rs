//! What is old goes, and only that.

use watchpost::{
    error::Result,
    gpu::history::retention::{self, RetentionPeriods},
};

use super::*;

const KEPT: RetentionPeriods = RetentionPeriods { samples: Duration::from_hours(2), rollups: Duration::from_hours(24) };

async fn open(database: &TestDatabase) -> Db {
    let settings =
        db::Settings { url: database.url().into(), connections: 4, sqlite_synchronous: db::Synchronous::Normal };
    Db::connect(&settings).await.unwrap()
}

/// Deletes all that is old. A server that is at it itself is not waited for by one attempt.
async fn prune(db: &Db, kept: RetentionPeriods) -> Result<(u64, u64)> {
    let (mut all, mut idle) = ((0, 0), 0);
    while idle < 5 {
        let (samples, rollups) = retention::prune(db, kept).await?;
        all = (all.0 + samples, all.1 + rollups);
        idle = if (samples, rollups) == (0, 0) { idle + 1 } else { 0 };
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(all)
}

#[on_both]
async fn samples_go_when_they_are_old_and_rolled_up(backend: Backend) {
    let now = chrono::Utc::now().timestamp_millis();
    let line = (now - 2 * HOUR) / MINUTE * MINUTE;
    let database = TestDatabase::migrated(backend).await;
    let (db, prunes) = (database.connect().await, open(&database).await);
    // More than one transaction deletes.
    let old: Vec<_> = (1..=2_100).map(|at| Row::warm(line - at * 1_000, 40.0)).collect();
    let young: Vec<_> = (0..100).map(|at| Row::warm(line + 2 * MINUTE + at * 1_000, 60.0)).collect();
    insert(&db, "GPU-1", &old).await;
    insert(&db, "GPU-1", &young).await;
    let time = time::from_millis(line - HOUR).unwrap().to_rfc3339();
    let foreign = format!("INSERT INTO gpu_stats (recorded_at, gpu_name) VALUES ('{time}', 'somebody''s')");
    db.execute_unprepared(&foreign).await.unwrap();
    // What is not rolled up stays; what is of no known GPU never is.
    assert_eq!(prune(&prunes, KEPT).await.unwrap(), (1, 0));
    let server = TestServer::start_with(database, |_| {}).await;
    rolled_up(&db).await;
    let from = line - 40 * MINUTE;
    let ask = || request(from, line + 10 * MINUTE, 5 * MINUTE);
    let before = aggregate(&server, ask()).await;
    assert_eq!(prune(&prunes, KEPT).await.unwrap(), (2_100, 0));
    assert_eq!(aggregate(&server, ask()).await, before);
    assert_eq!(gpu_stats::Entity::find().count(&db).await.unwrap(), 100);
    assert_eq!(prune(&prunes, KEPT).await.unwrap(), (0, 0));

    // A minute of which samples are gone stays as it is; one that nobody knew of is new.
    insert(&db, "GPU-1", &[Row::warm(line - 10 * MINUTE, 99.0)]).await;
    assert_eq!(aggregate(&server, ask()).await, before);
    rolled_up(&db).await;
    assert_eq!(aggregate(&server, ask()).await, before);
    insert(&db, "GPU-2", &[Row::warm(line - 10 * MINUTE, 99.0)]).await;
    rolled_up(&db).await;
    assert_eq!(prune(&prunes, KEPT).await.unwrap(), (2, 0));
    let after = aggregate(&server, ask()).await;
    assert_eq!(after[0], before[0]);
    assert_eq!(after[1].series[1].buckets.iter().find_map(|bucket| bucket.max), Some(99.0));

    // Where samples are gone the range is whole minutes, and buckets have to be.
    let aligned = aggregate(&server, request(from, line - 20 * MINUTE, 5 * MINUTE)).await;
    let parted = request(from + 17_000, line - 20 * MINUTE - 3_000, 5 * MINUTE);
    assert_eq!(aggregate(&server, parted).await, aligned);
    let narrow = server.gpu_stats().aggregate_gpu_stats(request(from, line, 10_000)).await;
    assert_eq!(field(&failed(narrow, Code::InvalidArgument, "INVALID_FIELD")), "bucket_width");
    let narrow = request(line + 3 * MINUTE, line + 4 * MINUTE, 10_000);
    assert_eq!(aggregate(&server, narrow).await[0].buckets[0].samples, 10);
    prunes.close().await;
    server.stop().await;
}

#[on_both]
async fn roll_ups_go_when_they_are_old(backend: Backend) {
    let now = chrono::Utc::now().timestamp_millis();
    let day = (now - 24 * HOUR) / MINUTE * MINUTE;
    let server = TestServer::start(backend).await;
    let (db, prunes) = (server.database.connect().await, open(&server.database).await);
    let rows = (-600..2).map(|minute| Row::warm(day + minute * MINUTE + 30_000, 50.0));
    insert(&db, "GPU-1", &rows.collect::<Vec<_>>()).await;
    rolled_up(&db).await;
    let deleted = prune(&prunes, KEPT).await.unwrap();
    // The clock may have gone on to the next minute.
    let left = gpu_stats_minute::Entity::find().count(&db).await.unwrap();
    assert_eq!((deleted, deleted.1 + left), ((602, deleted.1), 602));
    assert!((1..=2).contains(&left), "{left}");
    prunes.close().await;
    server.stop().await;
}

//! Watches of one job, and where they end.

use sea_orm::{ConnectionTrait, EntityTrait, TransactionTrait};
use watchpost::{
    db::Db,
    entity::{
        job::{self, JobStatus},
        job_log::JobLogLevel,
    },
    pb::{self, JobChangeKind as Kind, watch_jobs_response::Update},
};

use super::{BEAT, Watch, completed, many, one};
use crate::{
    jobs::rows::{
        NONE, beside, change, changes, client, finished, insert, line, queued, record, replace, running, tell,
    },
    support::{
        TestServer,
        calls::not_found,
        database::{Backend, on_both},
    },
};

/// Deletes a job and tells of it.
async fn delete(db: &Db, job: &job::Model) {
    let deleted = db.write(async |tx| {
        job::Entity::delete_by_id(job.id).exec(tx).await?;
        record(tx, [changes([change(Kind::Deleted, job)])]).await;
        Ok(())
    });
    deleted.await.unwrap();
}

#[on_both]
async fn one_job_is_watched_until_it_is_finished_and_all_was_sent(backend: Backend) {
    let server = TestServer::start(backend).await;
    let (rows, db) = (server.database.connect().await, beside(&server).await);
    let mut job = running("a", 5);
    let other = running("b", 5);
    insert(&rows, [job.clone(), other.clone()]).await;
    let with_logs = pb::WatchJobRequest { logs: true, ..one(job.id) };
    let mut watch = Watch::of_one(&server, with_logs.clone()).await;
    let mut without_logs = Watch::of_one(&server, one(job.id)).await;
    let (first, cursor) = watch.update().await;
    let told = pb::Job { payload: None, ..job.clone().into() };
    assert_eq!(
        first,
        Update::Job(pb::JobChange { kind: Kind::Existing.into(), job: Some(told), ..Default::default() })
    );
    assert!(!cursor.is_empty());
    assert_eq!(without_logs.change().await.0, Kind::Existing);

    replace(&db, Kind::Progress, &other, &[line(other.id, Some(1), JobLogLevel::Info, "x")]).await;
    job.progress_percent = 50;
    replace(&db, Kind::Progress, &job, &[line(job.id, Some(1), JobLogLevel::Info, "half")]).await;
    let last = completed(&job);
    let lines = [2, 3].map(|number| line(job.id, Some(number), JobLogLevel::Info, "end"));
    replace(&db, Kind::Completed, &last, &lines).await;
    // Whoever has it tried again begins something else.
    replace(&db, Kind::Retried, &job::Model { status: JobStatus::Queued, completed_at: None, ..last.clone() }, &[])
        .await;
    replace(&db, Kind::Started, &job, &[]).await;

    let half = watch.change().await;
    assert_eq!((half.0, half.2.as_str()), (Kind::Progress, ""));
    assert_eq!(watch.line().await.0, 1);
    assert_eq!(watch.change().await.0, Kind::Completed);
    assert_eq!((watch.line().await.0, watch.line().await.0), (2, 3));
    watch.ended().await;
    assert_eq!((without_logs.change().await.0, without_logs.change().await.0), (Kind::Progress, Kind::Completed));
    without_logs.ended().await;
    // From the first cursor on, everything once more.
    let mut again = Watch::of_one(&server, pb::WatchJobRequest { cursor, ..with_logs }).await;
    again.heartbeat().await;
    assert_eq!(again.change().await.0, Kind::Progress);
    assert_eq!(again.line().await.0, 1);
    assert_eq!(again.change().await.0, Kind::Completed);
    assert_eq!((again.line().await.0, again.line().await.0), (2, 3));
    again.ended().await;
    rows.close().await.unwrap();
    db.close().await;
    server.stop().await;
}

#[on_both]
async fn a_watch_of_a_job_that_has_come_to_its_end_ends(backend: Backend) {
    let server = TestServer::start(backend).await;
    let (rows, db) = (server.database.connect().await, beside(&server).await);
    let job = running("a", 5);
    let done = finished("b", JobStatus::Failed, 1);
    insert(&rows, [job.clone(), done.clone()]).await;
    let mut watch = Watch::of_one(&server, one(done.id)).await;
    let (kind, id, cursor) = watch.change().await;
    assert_eq!((kind, id), (Kind::Existing, done.id.to_string()));
    watch.ended().await;
    // Nothing has happened to it since, nor will it.
    let mut watch = Watch::of_one(&server, pb::WatchJobRequest { cursor: cursor.clone(), ..one(done.id) }).await;
    watch.heartbeat().await;
    watch.ended().await;

    // It came to its end while nobody watched, and much has happened to others since.
    let mut watch = Watch::of_one(&server, one(job.id)).await;
    let before = watch.change().await.2;
    drop(watch);
    let last = completed(&job);
    replace(&db, Kind::Completed, &last, &[]).await;
    tell(&db, [changes([change(Kind::Progress, &queued("other"))])]).await;
    let mut watch = Watch::of_one(&server, pb::WatchJobRequest { cursor: before.clone(), ..one(job.id) }).await;
    watch.heartbeat().await;
    let (kind, _, after) = watch.change().await;
    assert_eq!(kind, Kind::Completed);
    watch.ended().await;
    // The same after the change was seen; and while the feed goes on.
    for _ in 0..3 {
        let mut watch = Watch::of_one(&server, pb::WatchJobRequest { cursor: after.clone(), ..one(job.id) }).await;
        tell(&db, [changes([change(Kind::Progress, &queued("other"))])]).await;
        watch.heartbeat().await;
        watch.ended().await;
    }

    // Deleted: told, and then not there.
    let mut watch = Watch::of_one(&server, pb::WatchJobRequest { cursor: before, ..one(job.id) }).await;
    delete(&db, &last).await;
    watch.heartbeat().await;
    assert_eq!(watch.change().await.0, Kind::Completed);
    watch.ended().await;
    let mut watch = Watch::of_one(&server, pb::WatchJobRequest { cursor: after.clone(), ..one(job.id) }).await;
    watch.heartbeat().await;
    assert_eq!(watch.change().await.0, Kind::Deleted);
    watch.ended().await;
    not_found(client(&server).watch_job(one(job.id)).await, "job", job.id);
    let never = pb::WatchJobRequest { id: NONE.into(), cursor: after, ..Default::default() };
    let mut watch = Watch::of_one(&server, never).await;
    watch.heartbeat().await;
    not_found::<()>(Err(watch.failure().await), "job", NONE);
    rows.close().await.unwrap();
    db.close().await;
    server.stop().await;
}

/// On PostgreSQL the feed waits for older transactions: what is committed behind one is neither lost nor told
/// twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_behind_an_older_transaction_is_told_once() {
    let server = TestServer::start(Backend::Postgres).await;
    let (rows, db) = (server.database.connect().await, beside(&server).await);
    let job = running("a", 5);
    let other = running("b", 5);
    insert(&rows, [job.clone(), other.clone()]).await;
    let mut watch = Watch::of_one(&server, one(job.id)).await;
    let before = watch.change().await.2;
    drop(watch);

    let older = rows.begin().await.unwrap();
    older.execute_unprepared("UPDATE jobs SET priority = 1 WHERE job_type = 'b'").await.unwrap();
    replace(&db, Kind::Completed, &completed(&job), &[]).await;
    let resumed = pb::WatchJobRequest { cursor: before, heartbeat_interval: BEAT, ..one(job.id) };
    let mut resumed = Watch::of_one(&server, resumed).await;
    let snapshot = pb::WatchJobsRequest { snapshot: true, ..many() };
    let mut snapshot = Watch::of(&server, snapshot).await;
    let (kind, id, _) = snapshot.change().await;
    assert_eq!((kind, id), (Kind::Existing, other.id.to_string()));
    let (end, cursor) = snapshot.update().await;
    assert_eq!(end, Update::SnapshotEnd(1));
    let mut snapshot_again = Watch::of(&server, pb::WatchJobsRequest { cursor, ..many() }).await;
    // It has not come to its end as long as there is something to come.
    for _ in 0..3 {
        resumed.heartbeat().await;
    }
    older.commit().await.unwrap();
    assert_eq!(resumed.change().await.0, Kind::Completed);
    resumed.ended().await;
    // The snapshot had that already.
    tell(&db, [changes([change(Kind::Progress, &other)])]).await;
    for watch in [&mut snapshot, &mut snapshot_again] {
        assert_eq!(watch.change().await.0, Kind::Progress);
    }
    rows.close().await.unwrap();
    db.close().await;
    server.stop().await;
}

//! Jobs that came to their end long ago are forgotten, as long after it as is said.

use std::time::Duration;

use sea_orm::{EntityTrait, PaginatorTrait, TransactionTrait};
use tokio::time::timeout;
use uuid::Uuid;
use watchpost::{
    entity::{
        job::{self, JobStatus},
        job_attempt::{self, AttemptOutcome},
        job_log::{self, JobLogLevel},
        job_transition,
    },
    jobs::store::retention::{JobRetention, prune},
    pb::{self, JobChangeKind, watch_jobs_response::Update},
};

use super::rows::{ago, attempt, beside, client, finished, insert, line, queued, running, transition};
use crate::support::{
    PATIENCE, TestServer,
    database::{Backend, TestDatabase, on_both},
    eventually,
};

const HOUR: i64 = 3_600;

const FOR_EVER: Duration = Duration::ZERO;

fn hours(hours: u64) -> Duration {
    Duration::from_hours(hours)
}

fn dead(seconds: i64) -> job::Model {
    job::Model { dead_at: Some(ago(seconds)), ..finished("dead", JobStatus::Failed, seconds) }
}

/// The ids of all jobs that there are.
async fn left(server: &TestServer) -> Vec<Uuid> {
    let request = pb::ListJobsRequest { page_size: 1_000, order: pb::JobOrder::CreatedAt.into(), ..Default::default() };
    let page = client(server).list_jobs(request).await.unwrap();
    let ids = page.into_inner().jobs.into_iter();
    ids.map(|job| job.id.parse().unwrap()).collect()
}

#[on_both]
async fn jobs_are_kept_for_as_long_as_is_said_of_their_end(backend: Backend) {
    let server = TestServer::start(backend).await;
    let (rows, db) = (server.database.connect().await, beside(&server).await);
    let kept = JobRetention { completed: hours(1), failed: hours(2), dead: hours(4), cancelled: hours(3) };
    let (just_before, just_after) = (-60, 60);
    let mut expected = Vec::new();
    for (hours, job) in [
        (1, finished("a", JobStatus::Completed, 0)),
        (2, finished("a", JobStatus::Failed, 0)),
        (4, dead(0)),
        (3, finished("a", JobStatus::Cancelled, 0)),
    ] {
        for (part, stays) in [(just_before, true), (just_after, false)] {
            let seconds = hours * HOUR + part;
            let job = job::Model {
                id: Uuid::now_v7(),
                created_at: ago(seconds + 10),
                started_at: Some(ago(seconds + 5)),
                completed_at: Some(ago(seconds)),
                dead_at: job.dead_at.map(|_| ago(seconds)),
                ..job.clone()
            };
            if stays {
                expected.push(job.id);
            }
            insert(&rows, [job]).await;
        }
    }
    // What has not come to its end is never deleted, whatever else its row says.
    for job in
        [queued("old"), running("old", 100 * HOUR), job::Model { completed_at: Some(ago(100 * HOUR)), ..queued("odd") }]
    {
        let job = job::Model { created_at: ago(1_000 * HOUR), ..job };
        expected.push(job.id);
        insert(&rows, [job]).await;
    }
    assert_eq!(prune(&db, kept).await.unwrap(), 4);
    let mut found = left(&server).await;
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
    assert_eq!(prune(&db, kept).await.unwrap(), 0);
    let for_ever = JobRetention { completed: FOR_EVER, failed: FOR_EVER, dead: FOR_EVER, cancelled: FOR_EVER };
    assert_eq!(prune(&db, for_ever).await.unwrap(), 0);
    let nothing = JobRetention { completed: Duration::from_micros(1), ..for_ever };
    assert_eq!(prune(&db, nothing).await.unwrap(), 1);
    rows.close().await.unwrap();
    db.close().await;
    server.stop().await;
}

#[on_both]
async fn all_of_a_job_goes_and_watches_are_told(backend: Backend) {
    let server = TestServer::start(backend).await;
    let (rows, db) = (server.database.connect().await, beside(&server).await);
    let old = finished("old", JobStatus::Completed, 2 * HOUR);
    let new = finished("new", JobStatus::Completed, 1);
    insert(&rows, [old.clone(), new.clone()]).await;
    for id in [old.id, new.id] {
        insert(&rows, [attempt(id, 1, ago(10), Some((ago(9), AttemptOutcome::Succeeded)))]).await;
        insert(&rows, [transition(id, Some(2), ago(10), ("queued", "running"))]).await;
        insert(&rows, [line(id, Some(1), JobLogLevel::Info, "x")]).await;
    }
    let mut watch = client(&server).watch_jobs(pb::WatchJobsRequest::default()).await.unwrap().into_inner();
    watch.message().await.unwrap();
    let kept = JobRetention { completed: hours(1), failed: FOR_EVER, dead: FOR_EVER, cancelled: FOR_EVER };
    assert_eq!(prune(&db, kept).await.unwrap(), 1);
    let told = async {
        loop {
            let next = watch.message().await.unwrap().unwrap();
            if let Some(Update::Job(change)) = next.update {
                return change;
            }
        }
    };
    let change = timeout(PATIENCE, told).await.expect("watches are told");
    let gone = pb::Job {
        id: old.id.to_string(),
        job_type: "old".into(),
        status: pb::JobStatus::Completed.into(),
        queue_name: Some("default".into()),
        ..Default::default()
    };
    assert_eq!((change.kind(), change.job), (JobChangeKind::Deleted, Some(gone)));
    assert_eq!(left(&server).await, [new.id]);
    let counts = [
        job_attempt::Entity::find().count(&rows).await.unwrap(),
        job_transition::Entity::find().count(&rows).await.unwrap(),
        job_log::Entity::find().count(&rows).await.unwrap(),
    ];
    assert_eq!(counts, [1, 1, 1]);
    rows.close().await.unwrap();
    db.close().await;
    server.stop().await;
}

#[on_both]
async fn many_jobs_and_long_logs_are_deleted_a_few_at_a_time(backend: Backend) {
    let server = TestServer::start(backend).await;
    let (rows, db) = (server.database.connect().await, beside(&server).await);
    // Many of them at the same moment, in between those that stay.
    let ended_at = ago(2 * HOUR);
    let old = (0..1_203).map(|n| {
        let status = if n % 5 == 0 { JobStatus::Failed } else { JobStatus::Completed };
        job::Model { completed_at: Some(ended_at), ..finished("old", status, 2 * HOUR) }
    });
    insert(&rows, old).await;
    let long = job::Model { log_lines: 20_500, ..finished("long", JobStatus::Completed, 3 * HOUR) };
    let wrong = job::Model { log_lines: 1_000_000, ..finished("wrong", JobStatus::Completed, 3 * HOUR) };
    insert(&rows, [long.clone(), wrong]).await;
    insert(&rows, (1..=20_500).map(|number| line(long.id, Some(number), JobLogLevel::Info, "x"))).await;
    let kept = JobRetention { completed: hours(1), failed: hours(5), dead: hours(5), cancelled: hours(1) };
    assert_eq!(prune(&db, kept).await.unwrap(), 1_203 - 241 + 2);
    assert_eq!(left(&server).await.len(), 241);
    assert_eq!(job_log::Entity::find().count(&rows).await.unwrap(), 0);
    rows.close().await.unwrap();
    db.close().await;
    server.stop().await;
}

#[on_both]
async fn several_processes_delete_at_the_same_time(backend: Backend) {
    let server = TestServer::start(backend).await;
    let rows = server.database.connect().await;
    insert(&rows, (0..2_000).map(|_| finished("old", JobStatus::Cancelled, 2 * HOUR))).await;
    let kept = JobRetention { completed: hours(1), failed: hours(1), dead: hours(1), cancelled: hours(1) };
    let deleting = (0..3).map(|_| async {
        let db = beside(&server).await;
        let deleted = prune(&db, kept).await.unwrap();
        db.close().await;
        deleted
    });
    let deleted = futures_util::future::join_all(deleting).await;
    assert_eq!(deleted.iter().sum::<u64>(), 2_000, "{deleted:?}");
    assert_eq!(left(&server).await, [] as [Uuid; 0]);
    rows.close().await.unwrap();
    server.stop().await;
}

#[on_both]
async fn a_server_deletes_by_itself(backend: Backend) {
    let database = TestDatabase::migrated(backend).await;
    let rows = database.connect().await;
    let (old, new) = (finished("old", JobStatus::Completed, 2 * HOUR), finished("new", JobStatus::Completed, 1));
    insert(&rows, [old, new.clone(), dead(100 * HOUR)]).await;
    rows.close().await.unwrap();
    let server = TestServer::start_with(database, |settings| {
        settings.job_retention_completed = hours(1);
        settings.job_retention_dead = hours(99);
    })
    .await;
    eventually("what is old is deleted", async || left(&server).await == [new.id]).await;
    server.stop().await;
}

/// Who is about to have a job tried again has locked it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_somebody_has_locked_is_passed_over() {
    use sea_orm::QuerySelect;

    let server = TestServer::start(Backend::Postgres).await;
    let (rows, db) = (server.database.connect().await, beside(&server).await);
    let jobs = [1, 2, 3].map(|n| finished("old", JobStatus::Failed, 2 * HOUR + n));
    insert(&rows, jobs.clone()).await;
    let locking = rows.begin().await.unwrap();
    let locked = job::Entity::find_by_id(jobs[1].id).lock_exclusive();
    assert!(locked.one(&locking).await.unwrap().is_some());
    let kept = JobRetention { completed: FOR_EVER, failed: hours(1), dead: FOR_EVER, cancelled: FOR_EVER };
    let deleted = timeout(PATIENCE, prune(&db, kept)).await;
    assert_eq!(deleted.expect("it does not wait").unwrap(), 2);
    locking.commit().await.unwrap();
    assert_eq!(left(&server).await, [jobs[1].id]);
    assert_eq!(prune(&db, kept).await.unwrap(), 1);
    rows.close().await.unwrap();
    db.close().await;
    server.stop().await;
}

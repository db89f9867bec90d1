//! Watches of jobs: what the streams promise.

mod ends;
mod one;
mod snapshots;

use tokio::time::timeout;
use tonic::{Status, Streaming};
use uuid::Uuid;
use watchpost::{
    entity::{
        job::{self, JobStatus},
        job_log::JobLogLevel,
    },
    pb::{self, JobChangeKind as Kind, WatchJobsResponse, watch_jobs_response::Update},
};

use super::rows::{beside, change, changes, client, finished, insert, line, logged, now, queued, running, tell};
use crate::support::{
    PATIENCE, TestServer,
    calls::strings,
    database::{Backend, on_both},
};

const BEAT: Option<prost_types::Duration> = Some(prost_types::Duration { seconds: 0, nanos: 100_000_000 });

struct Watch(Streaming<WatchJobsResponse>);

impl Watch {
    async fn of(server: &TestServer, request: pb::WatchJobsRequest) -> Self {
        let stream = client(server).watch_jobs(request).await;
        Self(stream.unwrap().into_inner())
    }

    async fn of_one(server: &TestServer, request: pb::WatchJobRequest) -> Self {
        let stream = client(server).watch_job(request).await;
        Self(stream.unwrap().into_inner())
    }

    /// The next response, if there is one.
    async fn next(&mut self) -> Result<Option<WatchJobsResponse>, Status> {
        let next = timeout(PATIENCE, self.0.message()).await;
        next.expect("a response comes in time")
    }

    /// The next that is not a heartbeat, with its cursor.
    async fn update(&mut self) -> (Update, String) {
        let update = async {
            loop {
                let next = self.next().await.unwrap().expect("the stream goes on");
                match next.update.expect("a response says something") {
                    Update::Heartbeat(_) => assert!(!next.cursor.is_empty()),
                    update => return (update, next.cursor),
                }
            }
        };
        let update = timeout(PATIENCE, update).await;
        update.expect("more than heartbeats comes in time")
    }

    /// The next change: what happened, to which job.
    async fn change(&mut self) -> (Kind, String, String) {
        match self.update().await {
            (Update::Job(change), cursor) => (change.kind(), change.job.unwrap().id, cursor),
            other => panic!("not a change: {other:?}"),
        }
    }

    /// The number of the next line.
    async fn line(&mut self) -> (i64, String) {
        match self.update().await {
            (Update::Log(log), cursor) => (log.line.unwrap(), cursor),
            other => panic!("not a line: {other:?}"),
        }
    }

    async fn heartbeat(&mut self) -> String {
        let next = self.next().await.unwrap().expect("the stream goes on");
        assert!(matches!(next.update, Some(Update::Heartbeat(_))), "{next:?}");
        next.cursor
    }

    /// How the stream fails, after nothing but heartbeats.
    async fn failure(mut self) -> Status {
        let failing = async {
            loop {
                match self.next().await {
                    Ok(Some(next)) => {
                        assert!(matches!(next.update, Some(Update::Heartbeat(_))), "{next:?}");
                    }
                    Ok(None) => panic!("the stream ends well"),
                    Err(status) => return status,
                }
            }
        };
        timeout(PATIENCE, failing).await.expect("the stream fails")
    }

    /// That nothing more comes, and the stream has ended well.
    async fn ended(mut self) {
        let ending = async {
            while let Some(next) = self.next().await.unwrap() {
                assert!(matches!(next.update, Some(Update::Heartbeat(_))), "{next:?}");
            }
        };
        timeout(PATIENCE, ending).await.expect("the stream ends");
    }
}

fn many() -> pb::WatchJobsRequest {
    pb::WatchJobsRequest::default()
}

fn one(id: Uuid) -> pb::WatchJobRequest {
    pb::WatchJobRequest { id: id.to_string(), ..Default::default() }
}

fn filtered(filter: pb::JobFilter) -> pb::WatchJobsRequest {
    pb::WatchJobsRequest { filter: Some(filter), ..many() }
}

fn any() -> pb::JobFilter {
    pb::JobFilter::default()
}

/// A job that is completed now.
fn completed(job: &job::Model) -> job::Model {
    job::Model {
        status: JobStatus::Completed,
        completed_at: Some(now()),
        version_id: job.version_id + 1,
        ..job.clone()
    }
}

#[on_both]
async fn a_watch_sees_what_it_asks_for(backend: Backend) {
    let server = TestServer::start(backend).await;
    let db = beside(&server).await;
    let schedule_id = Uuid::now_v7();
    let plain = queued("export");
    let special = job::Model {
        queue_name: Some("slow".into()),
        priority: 0,
        concurrency_key: "door".into(),
        schedule_id: Some(schedule_id),
        error_code: Some("ENOSPC".into()),
        worker_id: Some("w-9".into()),
        dead_at: Some(now()),
        ..finished("backup", JobStatus::Failed, 1)
    };
    let mut watches = Vec::new();
    for filter in [
        pb::JobFilter { statuses: vec![pb::JobStatus::Failed.into()], ..any() },
        pb::JobFilter { job_types: strings(&["none", "backup"]), ..any() },
        pb::JobFilter { queue_names: strings(&["slow"]), ..any() },
        pb::JobFilter { priorities: vec![0], ..any() },
        pb::JobFilter { ids: vec![special.id.to_string().to_uppercase()], ..any() },
        pb::JobFilter { concurrency_keys: strings(&["door"]), ..any() },
        pb::JobFilter { schedule_id: schedule_id.to_string().to_uppercase(), ..any() },
        pb::JobFilter { error_codes: strings(&["ENOSPC"]), ..any() },
        pb::JobFilter { worker_id: "w-9".into(), ..any() },
        pb::JobFilter { dead: Some(true), ..any() },
    ] {
        let mut watch = Watch::of(&server, filtered(filter)).await;
        watch.heartbeat().await;
        watches.push(watch);
    }
    let mut all = Watch::of(&server, many()).await;
    let mut alive = Watch::of(&server, filtered(pb::JobFilter { dead: Some(false), ..any() })).await;
    let mut cursor = all.heartbeat().await;
    alive.heartbeat().await;
    let gone = pb::Job {
        id: special.id.to_string(),
        job_type: "backup".into(),
        status: pb::JobStatus::Failed.into(),
        queue_name: special.queue_name.clone(),
        ..Default::default()
    };
    let deleted = pb::JobChange { kind: Kind::Deleted.into(), job: Some(gone), ..Default::default() };
    tell(&db, [changes([change(Kind::Created, &plain), change(Kind::Failed, &special)])]).await;
    tell(&db, [logged(&[line(plain.id, Some(1), JobLogLevel::Info, "not asked for")])]).await;
    tell(&db, [changes([deleted.clone()])]).await;
    for watch in &mut watches {
        let (kind, id, seen) = watch.change().await;
        assert_eq!((kind, id, seen.is_empty()), (Kind::Failed, special.id.to_string(), false));
        // Of what is deleted, no more is known than what it was.
        assert_eq!(watch.update().await.0, Update::Job(deleted.clone()));
    }
    assert_eq!(alive.change().await.1, plain.id.to_string());
    for expected in [(Kind::Created, false), (Kind::Failed, true), (Kind::Deleted, true)] {
        let (kind, _, seen) = all.change().await;
        assert_eq!((kind, !seen.is_empty()), expected);
        if !seen.is_empty() {
            assert_ne!(seen, cursor);
            cursor = seen;
        }
    }
    db.close().await;
    server.stop().await;
}

#[on_both]
async fn lines_of_logs_are_watched_if_asked_for(backend: Backend) {
    let server = TestServer::start(backend).await;
    let db = beside(&server).await;
    let (a, b) = (queued("a"), queued("b"));
    let logs = pb::WatchJobsRequest { logs: true, ..many() };
    let mut all = Watch::of(&server, logs.clone()).await;
    let mut of_a = Watch::of(
        &server,
        pb::WatchJobsRequest { logs: true, ..filtered(pb::JobFilter { ids: vec![a.id.to_string()], ..any() }) },
    )
    .await;
    all.heartbeat().await;
    of_a.heartbeat().await;
    let lines = [
        line(a.id, Some(1), JobLogLevel::Info, "one"),
        line(b.id, Some(7), JobLogLevel::Error, "seven"),
        line(a.id, Some(2), JobLogLevel::Debug, "two"),
    ];
    tell(&db, [logged(&lines), changes([change(Kind::Progress, &a)])]).await;
    for (number, ends) in [(1, false), (7, false), (2, false)] {
        let (found, cursor) = all.line().await;
        assert_eq!((found, !cursor.is_empty()), (number, ends));
    }
    assert!(!all.change().await.2.is_empty());
    let (first, cursor) = of_a.update().await;
    let told: pb::JobLog = lines[0].clone().into();
    assert_eq!((first, cursor.as_str()), (Update::Log(told), ""));
    assert_eq!(of_a.line().await.0, 2);
    assert_eq!(of_a.change().await.1, a.id.to_string());
    db.close().await;
    server.stop().await;
}

#[on_both]
async fn a_watch_goes_on_after_any_cursor_without_a_gap(backend: Backend) {
    let server = TestServer::start(backend).await;
    let db = beside(&server).await;
    let mut watch = Watch::of(&server, many()).await;
    let mut cursor = watch.heartbeat().await;
    drop(watch);
    // Transactions of several records of several changes each.
    let jobs: Vec<_> = (0..60).map(|n| queued(&format!("t{n}"))).collect();
    for transaction in jobs.chunks(12) {
        let records = transaction.chunks(4).map(|jobs| changes(jobs.iter().map(|job| change(Kind::Created, job))));
        tell(&db, records).await;
    }
    // Breaking off after each response in turn: what has no cursor comes again, what has one does not.
    let (mut seen, mut responses) = (Vec::new(), 0);
    let odd = pb::JobFilter { job_types: (0..60).filter(|n| n % 3 != 0).map(|n| format!("t{n}")).collect(), ..any() };
    while seen.len() < 40 {
        responses += 1;
        let request = pb::WatchJobsRequest { cursor: cursor.clone(), ..filtered(odd.clone()) };
        let mut watch = Watch::of(&server, request).await;
        assert_eq!(watch.heartbeat().await, cursor);
        let (mut part, mut after) = (Vec::new(), String::new());
        for _ in 0..responses {
            if seen.len() + part.len() == 40 && !after.is_empty() {
                break;
            }
            let (_, id, next) = watch.change().await;
            part.push(id);
            if !next.is_empty() {
                seen.append(&mut part);
                after = next;
            }
        }
        if !after.is_empty() {
            cursor = after;
            responses = 0;
        }
    }
    let expected: Vec<_> =
        jobs.iter().enumerate().filter(|(n, _)| n % 3 != 0).map(|(_, job)| job.id.to_string()).collect();
    assert_eq!(seen, expected);
    db.close().await;
    server.stop().await;
}

#[on_both]
async fn a_snapshot_is_all_unfinished_jobs_and_what_follows_it(backend: Backend) {
    let server = TestServer::start(backend).await;
    let (rows, db) = (server.database.connect().await, beside(&server).await);
    // More than are read at a time; the same time for many of them.
    let created_at = now();
    let mut jobs: Vec<_> =
        (0..1_203).map(|_| job::Model { created_at, scheduled_at: Some(created_at), ..queued("a") }).collect();
    jobs.push(running("a", 1_000));
    insert(&rows, jobs.clone()).await;
    insert(&rows, [finished("a", JobStatus::Completed, 5), queued("b")]).await;
    // Committed before the snapshot, which has it.
    tell(&db, [changes([change(Kind::Created, &jobs[0])])]).await;
    let request =
        pb::WatchJobsRequest { snapshot: true, ..filtered(pb::JobFilter { job_types: strings(&["a"]), ..any() }) };
    let mut watch = Watch::of(&server, request).await;
    let mut found = Vec::new();
    let cursor = loop {
        match watch.next().await.unwrap().unwrap() {
            WatchJobsResponse { update: Some(Update::Job(change)), cursor } => {
                assert_eq!((change.kind(), cursor.as_str()), (Kind::Existing, ""));
                found.push(change.job.unwrap().id);
            }
            WatchJobsResponse { update: Some(Update::SnapshotEnd(count)), cursor } => {
                assert_eq!(count, 1_204);
                break cursor;
            }
            other => panic!("{other:?}"),
        }
    };
    jobs.sort_by_key(|job| (job.created_at, job.id));
    assert_eq!(found, jobs.iter().map(|job| job.id.to_string()).collect::<Vec<_>>());
    tell(&db, [changes([change(Kind::Progress, &jobs[1])])]).await;
    assert_eq!(watch.change().await.0, Kind::Progress);
    let mut again = Watch::of(&server, pb::WatchJobsRequest { cursor, ..many() }).await;
    again.heartbeat().await;
    assert_eq!(again.change().await.0, Kind::Progress);
    rows.close().await.unwrap();
    db.close().await;
    server.stop().await;
}

#[on_both]
async fn heartbeats_move_the_cursor_past_what_is_not_wanted(backend: Backend) {
    let server = TestServer::start(backend).await;
    let db = beside(&server).await;
    let request = pb::WatchJobsRequest {
        heartbeat_interval: BEAT,
        ..filtered(pb::JobFilter { job_types: strings(&["a"]), ..any() })
    };
    let mut watch = Watch::of(&server, request).await;
    let start = watch.heartbeat().await;
    tell(&db, [changes([change(Kind::Created, &queued("b"))])]).await;
    let mut cursor = start.clone();
    while cursor == start {
        cursor = watch.heartbeat().await;
    }
    let job = queued("a");
    tell(&db, [changes([change(Kind::Created, &job)])]).await;
    let mut resumed = Watch::of(&server, pb::WatchJobsRequest { cursor, ..many() }).await;
    resumed.heartbeat().await;
    assert_eq!(resumed.change().await.1, job.id.to_string());
    db.close().await;
    server.stop().await;
}

#[on_both]
async fn a_client_that_does_not_read_loses_nothing(backend: Backend) {
    let server = TestServer::start(backend).await;
    let db = beside(&server).await;
    let mut slow = Watch::of(&server, many()).await;
    slow.heartbeat().await;
    // Far more than the connection holds.
    let mut jobs = Vec::new();
    for n in 0..60 {
        let made: Vec<_> = (0..100)
            .map(|_| job::Model { error_message: Some("x".repeat(1_000)), ..queued(&format!("t{n}")) })
            .collect();
        tell(&db, [changes(made.iter().map(|job| change(Kind::Created, job)))]).await;
        jobs.extend(made.into_iter().map(|job| job.id.to_string()));
    }
    let mut quick = Watch::of(&server, many()).await;
    quick.heartbeat().await;
    let last = queued("last");
    tell(&db, [changes([change(Kind::Created, &last)])]).await;
    assert_eq!(quick.change().await.1, last.id.to_string());
    for expected in jobs.into_iter().chain([last.id.to_string()]) {
        assert_eq!(slow.change().await.1, expected);
    }
    db.close().await;
    server.stop().await;
}

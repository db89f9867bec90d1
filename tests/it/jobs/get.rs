//! Reading one job: its attempts, transitions and logs.

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::DatabaseConnection;
use serde_json::json;
use uuid::Uuid;
use watchpost::{
    entity::{
        job::{self, JobStatus, RetryPolicy},
        job_attempt::AttemptOutcome,
    },
    pb::{self, JobAttemptOutcome, JobAttemptStatus},
};

use super::rows::{NONE, ago, attempt, client, finished, insert, now, queued, running, transition};
use crate::support::{
    TestServer,
    calls::{Reply, in_millis, millis, not_found, object, refused, walk},
    database::{Backend, on_both},
};

async fn get(server: &TestServer, id: &str) -> Reply<pb::Job> {
    client(server).get_job(pb::GetJobRequest { id: id.into() }).await
}

/// Inserts a job, and gives what the server tells of how long it took.
async fn timing(server: &TestServer, db: &DatabaseConnection, job: job::Model) -> pb::JobTiming {
    let id = job.id.to_string();
    insert(db, [job]).await;
    let job = get(server, &id).await.unwrap().into_inner();
    job.timing.expect("the timing of a job")
}

fn is_about(found: Option<prost_types::Duration>, expected: i64) -> bool {
    // The test takes a moment itself.
    found.map(in_millis).is_some_and(|found| (expected..expected + 10_000).contains(&found))
}

fn micros(time: Option<prost_types::Timestamp>) -> i64 {
    let time = time.expect("a time");
    time.seconds * 1_000_000 + i64::from(time.nanos / 1_000)
}

fn proto(time: DateTime<Utc>) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: time.timestamp(), nanos: i32::try_from(time.timestamp_subsec_nanos()).unwrap() }
}

#[on_both]
async fn a_job_is_told_with_all_that_is_known_of_it(backend: Backend) {
    let server = TestServer::start(backend).await;
    let db = server.database.connect().await;
    let schedule_id = Uuid::now_v7();
    let job = job::Model {
        payload: Some(json!({"n": 1})),
        result: Some(json!({"ok": true})),
        error_traceback: Some("at line 7".into()),
        retry_policy: Some(RetryPolicy { initial_ms: 1, max_ms: 2, multiplier: 3.0, jitter: 0.5 }),
        timeout_ms: Some(600_000),
        deadline_at: Some(now() + TimeDelta::hours(1)),
        dead_at: Some(ago(9)),
        concurrency_key: "door".into(),
        cancel_requested_at: Some(ago(20)),
        cancel_requested_by: Some("ann".into()),
        cancel_reason: Some("too late".into()),
        unique_key: Some("k".into()),
        unique_states: JobStatus::Queued.bit() | JobStatus::Running.bit(),
        request_id: Some("r".into()),
        schedule_id: Some(schedule_id),
        tick_at: Some(ago(90)),
        items_processed: Some(3),
        items_total: Some(4),
        progress_at: Some(ago(11)),
        log_lines: 5,
        ..finished("export", JobStatus::Failed, 10)
    };
    let (id, started_at, ended_at) = (job.id, job.started_at.unwrap(), job.completed_at.unwrap());
    let dead_at = job.dead_at.unwrap();
    insert(&db, [job]).await;
    let first = attempt(id, 1, ago(30), Some((ago(29), AttemptOutcome::Rescued)));
    let last = attempt(id, 2, started_at, Some((ended_at, AttemptOutcome::Failed)));
    insert(&db, [last, first]).await;

    let told = get(&server, &id.to_string().to_uppercase()).await.unwrap().into_inner();
    assert_eq!((told.id.as_str(), told.status(), told.failures), (&*id.to_string(), pb::JobStatus::Failed, 1));
    assert_eq!(told.payload, object(&json!({"n": 1})));
    assert_eq!(told.result, object(&json!({"ok": true})));
    assert_eq!(told.error_traceback.as_deref(), Some("at line 7"));
    assert_eq!(told.unique_states, [1, 2]);
    assert_eq!(told.retry_policy.unwrap().multiplier, Some(3.0));
    assert_eq!(told.schedule_id, Some(schedule_id.to_string()));
    assert_eq!((told.dead_at, told.completed_at), (Some(proto(dead_at)), Some(proto(ended_at))));
    let outcomes: Vec<_> = told.attempts.iter().map(|one| (one.attempt_number, one.status(), one.outcome())).collect();
    assert_eq!(
        outcomes,
        [
            (1, JobAttemptStatus::Cancelled, JobAttemptOutcome::Rescued),
            (2, JobAttemptStatus::Failed, JobAttemptOutcome::Failed),
        ]
    );
    let last = &told.attempts[1];
    assert_eq!((last.error_message.as_deref(), last.error_code.as_deref()), (Some("failure 2"), Some("E")));
    let timing = told.timing.unwrap();
    assert_eq!((timing.run, timing.remaining), (millis((ended_at - started_at).num_milliseconds()), None));
    db.close().await.unwrap();
    server.stop().await;
}

#[on_both]
async fn a_job_that_does_not_exist_is_not_found(backend: Backend) {
    let server = TestServer::start(backend).await;
    let mut jobs = client(&server);
    let id = || NONE.to_string();
    not_found(get(&server, NONE).await, "job", NONE);
    let attempts = pb::ListJobAttemptsRequest { job_id: id(), ..Default::default() };
    not_found(jobs.list_job_attempts(attempts).await, "job", NONE);
    let transitions = pb::ListJobTransitionsRequest { job_id: id(), ..Default::default() };
    not_found(jobs.list_job_transitions(transitions).await, "job", NONE);
    let logs = pb::ListJobLogsRequest { job_id: id(), ..Default::default() };
    not_found(jobs.list_job_logs(logs).await, "job", NONE);
    for bad in ["", "x", "{01890a5d-ac96-774b-bcce-b302099a8057}"] {
        refused(get(&server, bad).await, "id");
        let attempts = pb::ListJobAttemptsRequest { job_id: bad.into(), ..Default::default() };
        refused(jobs.list_job_attempts(attempts).await, "job_id");
        let transitions = pb::ListJobTransitionsRequest { job_id: bad.into(), ..Default::default() };
        refused(jobs.list_job_transitions(transitions).await, "job_id");
        let logs = pb::ListJobLogsRequest { job_id: bad.into(), ..Default::default() };
        refused(jobs.list_job_logs(logs).await, "job_id");
    }
    server.stop().await;
}

#[on_both]
async fn timing_tells_what_was_measured_and_nothing_else(backend: Backend) {
    let server = TestServer::start(backend).await;
    let db = server.database.connect().await;

    let due = timing(&server, &db, queued("a")).await;
    assert!(is_about(due.wait, 60_000) && due.run.is_none() && due.remaining.is_none(), "{due:?}");
    let later = job::Model { scheduled_at: Some(now() + TimeDelta::hours(1)), ..queued("a") };
    assert_eq!(timing(&server, &db, later).await, pb::JobTiming::default());

    let job = running("a", 30);
    let waited = (job.started_at.unwrap() - job.scheduled_at.unwrap()).num_milliseconds();
    let told = timing(&server, &db, job).await;
    assert!(told.wait == millis(waited) && is_about(told.run, 30_000), "{told:?}");
    assert_eq!((told.remaining, told.estimated_completed_at), (None, None));

    // A quarter in 20 of 30 s: 80 s in all, 50 s of which are left.
    let quarter = |percent, items, told_ago| job::Model {
        progress_percent: percent,
        items_processed: Some(items),
        items_total: Some(1_000),
        progress_at: Some(ago(told_ago)),
        ..running("a", 30)
    };
    let before = now();
    let told = timing(&server, &db, quarter(25, 250, 10)).await;
    let left = told.remaining.map(in_millis).unwrap();
    assert!((39_000..=50_000).contains(&left), "{told:?}");
    let done_in = micros(told.estimated_completed_at) - before.timestamp_micros();
    assert!((49_000_000..=52_000_000).contains(&done_in), "{told:?}");
    // By the items, if they say more exactly what the percents say.
    let exact = timing(&server, &db, quarter(25, 259, 10)).await.remaining.map(in_millis).unwrap();
    assert!(exact < left - 1_000, "{exact} {left}");
    let stale = timing(&server, &db, quarter(25, 10, 10)).await.remaining.map(in_millis).unwrap();
    assert!((39_000..=50_000).contains(&stale), "{stale}");
    // What was told of an attempt before says nothing of this one, and nothing is no rate.
    assert_eq!(timing(&server, &db, quarter(25, 250, 40)).await.remaining, None);
    assert_eq!(timing(&server, &db, quarter(0, 0, 10)).await.remaining, None);
    let at_once = running("a", 30);
    let at_once = job::Model { progress_percent: 5, progress_at: at_once.started_at, ..at_once };
    assert_eq!(timing(&server, &db, at_once).await.remaining, None);
    // It should be done by now.
    let late = timing(&server, &db, quarter(99, 990, 29)).await;
    assert_eq!(late.remaining, millis(0));
    // In the year 10000 and later there are no times.
    let never =
        job::Model { progress_percent: 0, items_processed: Some(1), items_total: Some(i64::MAX), ..quarter(0, 0, 10) };
    let never = timing(&server, &db, never).await;
    assert_eq!((never.remaining, never.estimated_completed_at), (None, None));
    db.close().await.unwrap();
    server.stop().await;
}

#[on_both]
async fn a_job_that_ends_while_it_waits_has_not_run_until_then(backend: Backend) {
    let server = TestServer::start(backend).await;
    let db = server.database.connect().await;
    // Failed after a second, to be tried again, and cancelled a minute later.
    let job = job::Model {
        status: JobStatus::Cancelled,
        created_at: ago(120),
        scheduled_at: Some(ago(50)),
        started_at: Some(ago(100)),
        completed_at: Some(ago(40)),
        ..queued("a")
    };
    let id = job.id;
    let ended = (job.started_at.unwrap() + TimeDelta::milliseconds(1_500), AttemptOutcome::Failed);
    let one = attempt(id, 1, job.started_at.unwrap(), Some(ended));
    insert(&db, [job]).await;
    insert(&db, [one]).await;
    let told = get(&server, &id.to_string()).await.unwrap().into_inner().timing.unwrap();
    assert_eq!((told.wait, told.run), (None, millis(1_500)));
    let never = job::Model { status: JobStatus::Cancelled, completed_at: Some(ago(1)), ..queued("a") };
    assert_eq!(timing(&server, &db, never).await, pb::JobTiming::default());
    db.close().await.unwrap();
    server.stop().await;
}

#[on_both]
async fn a_job_comes_with_its_last_100_attempts(backend: Backend) {
    let server = TestServer::start(backend).await;
    let db = server.database.connect().await;
    let job = job::Model { attempt_number: 131, ..queued("a") };
    let (id, other) = (job.id, queued("other"));
    let of_other = attempt(other.id, 1, ago(5), None);
    insert(&db, [job, other]).await;
    let ended = Some((now(), AttemptOutcome::Failed));
    insert(&db, (1..=130).map(|number| attempt(id, number, ago(200), ended))).await;
    insert(&db, [of_other]).await;
    let numbers = |attempts: &[pb::JobAttempt]| attempts.iter().map(|one| one.attempt_number).collect::<Vec<_>>();
    let told = get(&server, &id.to_string()).await.unwrap().into_inner();
    assert_eq!(numbers(&told.attempts), (31..=130).collect::<Vec<_>>());
    walk(130, async |page_size, page_token| {
        let request = pb::ListJobAttemptsRequest { job_id: id.to_string(), page_size, page_token };
        let page = client(&server).list_job_attempts(request).await.unwrap().into_inner();
        assert!(page.attempts.is_sorted_by_key(|one| one.attempt_number));
        (page.attempts, page.next_page_token)
    })
    .await;
    db.close().await.unwrap();
    server.stop().await;
}

#[on_both]
async fn large_attempts_are_left_out_so_that_the_answer_fits(backend: Backend) {
    let server = TestServer::start(backend).await;
    let db = server.database.connect().await;
    let job = queued("a");
    let id = job.id;
    insert(&db, [job]).await;
    let ended = Some((now(), AttemptOutcome::Failed));
    for number in 1..=50 {
        let mut large = attempt(id, number, ago(200), ended);
        large.error_traceback = Some("x".repeat(100_000));
        insert(&db, [large]).await;
    }
    let told = get(&server, &id.to_string()).await.unwrap().into_inner();
    let numbers: Vec<_> = told.attempts.iter().map(|one| one.attempt_number).collect();
    assert_eq!(numbers, (15..=50).collect::<Vec<_>>());
    let request = pb::ListJobAttemptsRequest { job_id: id.to_string(), page_size: 1_000, page_token: String::new() };
    let first = client(&server).list_job_attempts(request).await.unwrap().into_inner();
    assert!(first.attempts[0].attempt_number == 1 && !first.next_page_token.is_empty());
    db.close().await.unwrap();
    server.stop().await;
}

#[on_both]
async fn transitions_are_in_the_order_of_their_versions_whatever_the_clock_said(backend: Backend) {
    let server = TestServer::start(backend).await;
    let db = server.database.connect().await;
    let job = queued("a");
    let id = job.id;
    insert(&db, [job]).await;
    let moves = [("queued", "running"), ("running", "queued")];
    // The clock went back between them; another writer knows no versions.
    let mut all: Vec<_> = (2..9)
        .map(|version| transition(id, Some(version), ago(i64::from(version)), moves[usize::from(version % 2 == 1)]))
        .collect();
    let same = ago(100);
    all.extend((0..4).map(|_| transition(id, None, same, ("queued", "aborting"))));
    all.push(transition(id, None, ago(101), ("initial", "queued")));
    let with_more = &mut all[3];
    with_more.actor = Some("ann".into());
    with_more.reason = Some("again".into());
    with_more.metadata_json = Some(json!({"n": 1}).to_string());
    insert(&db, all.clone().into_iter().rev()).await;

    walk(12, async |page_size, page_token| {
        let request = pb::ListJobTransitionsRequest { job_id: id.to_string(), page_size, page_token };
        let page = client(&server).list_job_transitions(request).await.unwrap().into_inner();
        (page.transitions, page.next_page_token)
    })
    .await;
    let request = pb::ListJobTransitionsRequest { job_id: id.to_string(), ..Default::default() };
    let told = client(&server).list_job_transitions(request).await.unwrap().into_inner().transitions;
    all[7..].sort_by_key(|one| (one.transitioned_at, one.id));
    let ids: Vec<_> = told.iter().map(|one| one.id.clone()).collect();
    assert_eq!(ids, all.iter().map(|one| one.id.to_string()).collect::<Vec<_>>());
    assert_eq!((told[0].from_status(), told[0].to_status()), (pb::JobStatus::Queued, pb::JobStatus::Running));
    assert_eq!((told[11].to_status, told[10].from_status()), (0, pb::JobStatus::Queued));
    assert_eq!(told[3].metadata, object(&json!({"n": 1})));
    assert_eq!(
        (told[3].actor.as_deref(), told[3].reason.as_deref(), told[3].version_id),
        (Some("ann"), Some("again"), Some(5))
    );
    db.close().await.unwrap();
    server.stop().await;
}

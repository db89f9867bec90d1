//! Numbers of jobs, against the same worked out from the jobs one by one.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use fastrand::Rng;
use prost_types::Duration;
use watchpost::{
    entity::{
        job::{self, JobStatus},
        job_attempt::{self, AttemptOutcome},
    },
    pb,
};

use super::rows::{ago, attempt, client, insert, now, queued, running};
use crate::support::{
    TestServer,
    calls::{in_millis, millis, refused, seconds, strings},
    database::{Backend, on_both},
    seed,
};

const STATUSES: [JobStatus; 5] =
    [JobStatus::Queued, JobStatus::Running, JobStatus::Completed, JobStatus::Failed, JobStatus::Cancelled];

async fn stats(server: &TestServer, filter: Option<pb::JobFilter>, seconds: i64) -> pb::GetJobStatsResponse {
    let window = Some(Duration { seconds, nanos: 0 });
    let request = pb::GetJobStatsRequest { filter, window };
    let stats = client(server).get_job_stats(request).await;
    stats.unwrap().into_inner()
}

/// A job, and when its last attempt ended.
type Row = (job::Model, Option<DateTime<Utc>>);

/// The value that so many of 100 are no larger than.
fn percentile(mut values: Vec<i64>, percent: usize) -> Option<prost_types::Duration> {
    values.sort_unstable();
    let rank = (values.len() * percent).div_ceil(100);
    let micros = values.get(rank.checked_sub(1)?).copied()?;
    let length = std::time::Duration::from_micros(micros.try_into().unwrap());
    Some(length.try_into().unwrap())
}

fn as_seconds(length: prost_types::Duration) -> f64 {
    std::time::Duration::try_from(length).unwrap().as_secs_f64()
}

fn waited(job: &job::Model) -> Option<i64> {
    let waited = job.started_at? - job.scheduled_at?;
    waited.num_microseconds().filter(|waited| *waited >= 0)
}

/// That the numbers are those of these rows.
fn agree(stats: &pb::GetJobStatsResponse, rows: &[&Row], seconds: i64) {
    let (start, now) = (ago(seconds), now());
    let mut types: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        types.entry(&row.0.job_type).or_default().push(row);
    }
    let by_status = |rows: &[&Row]| {
        let count = |status: JobStatus| rows.iter().filter(|(job, _)| job.status == status).count();
        let counts = STATUSES.iter().zip(1..).map(|(status, number)| (number, i64::try_from(count(*status)).unwrap()));
        counts.filter(|(_, jobs)| *jobs > 0).collect::<Vec<_>>()
    };
    let told = |counts: &[pb::JobStatusCount]| counts.iter().map(|of| (of.status, of.jobs)).collect::<Vec<_>>();
    assert_eq!(stats.total, i64::try_from(rows.len()).unwrap());
    assert_eq!(told(&stats.by_status), by_status(rows));
    assert_eq!(stats.dead, i64::try_from(rows.iter().filter(|(job, _)| job.dead_at.is_some()).count()).unwrap());

    let mut order: Vec<_> =
        types.iter().map(|(job_type, rows)| (-i64::try_from(rows.len()).unwrap(), *job_type)).collect();
    order.sort_unstable();
    let found: Vec<_> = stats.by_type.iter().map(|of| of.job_type.as_str()).collect();
    assert_eq!(found, order.iter().map(|(_, job_type)| *job_type).collect::<Vec<_>>());
    let mut all_finished = 0;
    for of in &stats.by_type {
        let rows = &types[of.job_type.as_str()];
        assert_eq!(told(&of.by_status), by_status(rows));
        let finished: Vec<_> = rows.iter().filter(|(job, _)| job.completed_at.is_some_and(|at| at >= start)).collect();
        all_finished += finished.len();
        assert_eq!(of.finished, i64::try_from(finished.len()).unwrap());
        let waits: Vec<_> = finished.iter().filter_map(|(job, _)| waited(job)).collect();
        let ran = |(job, ended_at): &Row| (ended_at.as_ref().copied()? - job.started_at?).num_microseconds();
        let runs: Vec<_> = finished.iter().filter_map(|row| ran(row)).collect();
        let expected = [(waits.clone(), 50), (waits, 95), (runs.clone(), 50), (runs, 95)]
            .map(|(values, percent)| percentile(values, percent));
        assert_eq!([of.wait_p50, of.wait_p95, of.run_p50, of.run_p95], expected, "{}", of.job_type);
    }
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let per_second = all_finished as f64 / seconds as f64;
    assert!((stats.finished_per_second - per_second).abs() < 1e-9);

    let completed =
        rows.iter().filter(|(job, _)| job.status == JobStatus::Completed && job.completed_at.unwrap() >= start);
    let ran: Vec<_> = completed
        .map(|(job, ended_at)| (ended_at.unwrap() - job.started_at.unwrap()).num_microseconds().unwrap())
        .collect();
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let mean = (!ran.is_empty()).then(|| ran.iter().sum::<i64>() as f64 / ran.len() as f64 / 1e6);
    let told = stats.average_run.map(as_seconds);
    assert_eq!(told.is_some(), mean.is_some());
    assert!((told.unwrap_or_default() - mean.unwrap_or_default()).abs() < 1e-6);

    let queued = rows.iter().filter(|(job, _)| job.status == JobStatus::Queued);
    let oldest = queued.filter_map(|(job, _)| job.scheduled_at).filter(|at| *at <= now).min();
    let age = oldest.map(|at| (now - at).num_milliseconds());
    assert_eq!(stats.oldest_queued_age.is_some(), age.is_some());
    let ahead = age.unwrap_or_default() - stats.oldest_queued_age.map_or(0, in_millis);
    assert!((0..10_000).contains(&ahead), "{ahead}");
}

fn random(rng: &mut Rng) -> (Row, Vec<job_attempt::Model>) {
    let status = STATUSES[rng.usize(..5)];
    let created_at = ago(40_000) + TimeDelta::microseconds(rng.i64(0..1_000));
    let scheduled_at = created_at + TimeDelta::milliseconds(rng.i64(0..20_000));
    let starts = match status {
        JobStatus::Queued => false,
        JobStatus::Running | JobStatus::Completed => true,
        JobStatus::Failed | JobStatus::Cancelled => rng.u8(..4) > 0,
    };
    let started_at = starts.then(|| scheduled_at + TimeDelta::microseconds(rng.i64(0..9_000_000)));
    // Within the last 10 s, 100 s, an hour, or before; never near a bound.
    let age = [5, 50, 2_000, 20_000][rng.usize(..4)];
    let completed_at = ago(age) + TimeDelta::microseconds(rng.i64(0..1_000_000));
    let completed_at = status.is_finished().then_some(completed_at);
    let is_dead = status == JobStatus::Failed && rng.bool();
    let mut job = job::Model {
        status,
        created_at,
        scheduled_at: Some(scheduled_at),
        started_at,
        completed_at,
        dead_at: completed_at.filter(|_| is_dead),
        ..queued(["export", "Backup", "ai_analysis"][rng.usize(..3)])
    };
    let Some(started_at) = started_at else {
        if status == JobStatus::Queued && rng.bool() {
            job.scheduled_at = Some(now() + TimeDelta::hours(1));
        }
        return ((job, None), Vec::new());
    };
    let ended_at = match status {
        JobStatus::Queued | JobStatus::Running => None,
        JobStatus::Completed => completed_at,
        JobStatus::Failed | JobStatus::Cancelled => {
            let waits_again = rng.bool();
            if waits_again {
                job.scheduled_at = Some(started_at + TimeDelta::minutes(1));
            }
            let soon = started_at + TimeDelta::microseconds(rng.i64(0..5_000_000));
            if waits_again { Some(soon) } else { completed_at }
        }
    };
    let ended = ended_at.map(|at| (at, AttemptOutcome::Failed));
    let last = attempt(job.id, 1, started_at, ended);
    ((job, ended_at), vec![last])
}

#[on_both]
async fn numbers_are_those_of_the_jobs(backend: Backend) {
    let server = TestServer::start(backend).await;
    let db = server.database.connect().await;
    assert_eq!(stats(&server, None, 10).await, pb::GetJobStatsResponse::default());
    let mut rng = Rng::with_seed(seed(3));
    let (rows, attempts): (Vec<Row>, Vec<_>) = (0..200).map(|_| random(&mut rng)).unzip();
    insert(&db, rows.iter().map(|(job, _)| job.clone())).await;
    insert(&db, attempts.into_iter().flatten()).await;
    db.close().await.unwrap();
    let all: Vec<_> = rows.iter().collect();
    for seconds in [20, 200, 3_600, 2_678_400] {
        agree(&stats(&server, None, seconds).await, &all, seconds);
    }
    let hour = client(&server).get_job_stats(pb::GetJobStatsRequest::default()).await.unwrap().into_inner();
    agree(&hour, &all, 3_600);
    assert!(hour.by_type.len() == 3 && hour.by_type.iter().all(|of| of.finished > 5), "{hour:?}");

    let filter = pb::JobFilter { job_types: strings(&["export"]), ..Default::default() };
    let some: Vec<_> = rows.iter().filter(|(job, _)| job.job_type == "export").collect();
    agree(&stats(&server, Some(filter), 3_600).await, &some, 3_600);
    let filter = pb::JobFilter { dead: Some(true), ..Default::default() };
    let some: Vec<_> = rows.iter().filter(|(job, _)| job.dead_at.is_some()).collect();
    agree(&stats(&server, Some(filter), 3_600).await, &some, 3_600);
    let filter = pb::JobFilter { statuses: vec![1, 2], ..Default::default() };
    let some: Vec<_> = rows.iter().filter(|(job, _)| !job.status.is_finished()).collect();
    let active = stats(&server, Some(filter), 3_600).await;
    agree(&active, &some, 3_600);
    assert_eq!((active.average_run, active.by_type[0].run_p50), (None, None));
    server.stop().await;
}

#[on_both]
async fn a_percentile_is_what_a_job_took(backend: Backend) {
    let server = TestServer::start(backend).await;
    let db = server.database.connect().await;
    // 1 s, 2 s, … 20 s.
    let took = |n: i64| {
        let start = ago(1_000);
        let started_at = start + TimeDelta::seconds(n);
        job::Model {
            status: JobStatus::Completed,
            created_at: start,
            scheduled_at: Some(start),
            started_at: Some(started_at),
            completed_at: Some(started_at + TimeDelta::milliseconds(n)),
            ..queued("a")
        }
    };
    insert(&db, (1..=20).map(took)).await;
    insert(&db, [running("a", 5)]).await;
    let of = stats(&server, None, 3_600).await.by_type.remove(0);
    assert_eq!((of.wait_p50, of.wait_p95), (seconds(10), seconds(19)));
    assert_eq!((of.run_p50, of.run_p95, of.finished), (millis(10), millis(19), 20));
    insert(&db, [took(21)]).await;
    let of = stats(&server, None, 3_600).await.by_type.remove(0);
    assert_eq!((of.wait_p50, of.wait_p95), (seconds(11), seconds(20)));
    db.close().await.unwrap();
    server.stop().await;
}

#[on_both]
async fn at_most_1000_types_are_told_those_with_most_jobs_first(backend: Backend) {
    let server = TestServer::start(backend).await;
    let db = server.database.connect().await;
    insert(&db, (0..1_005).map(|n| queued(&format!("t{n:04}")))).await;
    insert(&db, ["t1004", "t1004", "t0500"].map(queued)).await;
    db.close().await.unwrap();
    let told = stats(&server, None, 1).await;
    let first: Vec<_> = told.by_type[..4].iter().map(|of| of.job_type.as_str()).collect();
    assert_eq!((told.total, told.by_type.len(), first), (1_008, 1_000, vec!["t1004", "t0500", "t0000", "t0001"]));
    let found = client(&server)
        .search_jobs(pb::SearchJobsRequest { page_size: 1, ..Default::default() })
        .await
        .unwrap()
        .into_inner();
    assert_eq!((found.total, found.by_type.len(), found.by_type[0].jobs), (1_008, 1_000, 3));
    server.stop().await;
}

#[on_both]
async fn a_bad_window_is_refused(backend: Backend) {
    let server = TestServer::start(backend).await;
    for (seconds, nanos) in
        [(0, 999_999_999), (0, 0), (-1, 0), (2_678_400, 1), (i64::MAX, 0), (1, -1), (1, 1_000_000_000)]
    {
        let request = pb::GetJobStatsRequest { filter: None, window: Some(Duration { seconds, nanos }) };
        refused(client(&server).get_job_stats(request).await, "window");
    }
    server.stop().await;
}

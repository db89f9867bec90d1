use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::*;
use crate::entity::job::{JobStatus, Model, RetryPolicy};

const POLICY: RetryPolicy = RetryPolicy { initial_ms: 1_000, max_ms: 30_000, multiplier: 2.0, jitter: 0.25 };

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_772_366_400 + seconds, 0).unwrap()
}

fn job() -> Job {
    Job::new(Model::queued("export".into(), at(0)), POLICY)
}

fn claim(lease_id: Uuid) -> Move {
    Move::Claim { worker_id: "w".into(), lease_id, lease: Duration::from_secs(3) }
}

fn failure(retryable: bool) -> Failure {
    Failure { message: "no".into(), traceback: None, code: None, retryable, retry_after: None }
}

/// Random move, under the current lease of the job or an earlier one.
fn random(rng: &mut fastrand::Rng, job: &Job, stale: Uuid, now: DateTime<Utc>) -> Move {
    let lease = job.row.lease_id.filter(|_| rng.u8(0..8) > 0);
    let lease = lease.unwrap_or(stale);
    let cause = Cause { actor: "ann".into(), reason: None };
    match rng.u8(0..14) {
        0..4 => claim(Uuid::from_u128(rng.u128(..))),
        4 => Move::Report(lease, Report::Complete(None)),
        5 => Move::Report(lease, Report::Fail(failure(rng.bool()))),
        6 => Move::Report(lease, Report::Release { reason: None, snooze: rng.bool().then(|| Duration::from_secs(5)) }),
        7 => Move::Report(lease, Report::AcknowledgeCancellation),
        8 => {
            let progress = Progress { percent: Some(rng.i32(0..=100)), ..Progress::default() };
            Move::Report(lease, Report::Progress(progress, rng.bool()))
        }
        9 => Move::Rescue { disconnected_lease: rng.bool().then_some(lease) },
        10 => Move::Expire,
        11 => Move::Cancel(cause),
        12 => Move::Retry(cause, rng.bool().then(|| now + Duration::from_secs(9))),
        _ => Move::Report(lease, Report::Heartbeat),
    }
}

#[test]
fn whatever_happens_the_story_holds() {
    for seed in 0..2_000 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut row = Model::queued("export".into(), at(0));
        row.timeout_ms = rng.bool().then_some(4_000);
        row.deadline_at = rng.bool().then(|| at(60));
        let mut stale = Uuid::nil();
        let (mut now, mut attempts, mut open) = (at(0), 0, false);
        for _ in 0..60 {
            now += Duration::from_secs(rng.u64(0..4));
            let mut job = Job::new(row.clone(), POLICY);
            let job_move = random(&mut rng, &job, stale, now);
            // Only due waiting jobs are claimed.
            let due = row.status == JobStatus::Queued && row.scheduled_at.unwrap() <= now;
            if matches!(job_move, Move::Claim { .. }) && !due || job.check(&job_move).is_err() {
                continue;
            }
            let fenced = matches!(&job_move, Move::Report(lease, _) if Some(*lease) != row.lease_id);
            assert!(!fenced, "{seed}: a report under another lease");
            job.apply(job_move, now, rng.f64());

            let steps = i32::try_from(job.transitions.len()).unwrap();
            assert!(steps <= 1, "{seed}: several transitions of one move");
            assert_eq!(job.row.version_id, row.version_id + steps, "{seed}");
            assert_eq!(steps == 1, job.row.status != row.status, "{seed}");
            if job.started_attempt.is_some() {
                assert!(!open, "{seed}: two attempts run");
                attempts += 1;
                open = true;
                assert_eq!(job.row.attempt_number, attempts, "{seed}: attempts have gaps");
            }
            if let [ended] = &job.ended_attempts[..] {
                assert!(open, "{seed}: an attempt ends twice");
                open = false;
                assert_eq!(ended.attempt_number.clone().unwrap(), attempts, "{seed}");
            }
            stale = row.lease_id.unwrap_or(stale);
            row = job.row;
            let running = row.status == JobStatus::Running;
            assert_eq!(open, running, "{seed}: {row:?}");
            assert_eq!(row.lease_id.is_some(), running, "{seed}");
            assert_eq!(row.completed_at.is_some(), row.status.is_finished(), "{seed}");
            let number = if row.status == JobStatus::Queued { attempts + 1 } else { attempts.max(1) };
            assert_eq!(row.attempt_number, number, "{seed}");
            assert!(row.failures <= row.max_attempts, "{seed}");
            assert!(row.next_retry_at.is_none() || row.status == JobStatus::Queued, "{seed}");
            assert!(row.dead_at.is_none() || row.status == JobStatus::Failed, "{seed}");
        }
    }
}

#[test]
fn a_clock_that_is_set_back_does_not_turn_the_story_round() {
    let lease = Uuid::from_u128(1);
    let mut job = job();
    job.apply(claim(lease), at(10), 0.0);
    job.apply(Move::Report(lease, Report::Complete(None)), at(5), 0.0);
    assert_eq!(job.row.completed_at, Some(at(10)));
    assert_eq!(job.row.transitioned_at, Some(at(10)));
}

#[test]
fn waits_grow_to_their_most_with_some_at_random() {
    let mut waits = Vec::new();
    let lease = Uuid::from_u128(1);
    let mut job = job();
    job.row.max_attempts = 9;
    for _ in 0..7 {
        job.apply(claim(lease), at(0), 0.0);
        let fails = Move::Report(lease, Report::Fail(failure(true)));
        job.apply(fails, at(0), 0.0);
        waits.push((job.row.next_retry_at.unwrap() - at(0)).num_seconds());
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
    job.apply(claim(lease), at(0), 0.0);
    let fails = Move::Report(lease, Report::Fail(failure(true)));
    job.apply(fails, at(0), 0.999_999);
    let wait = (job.row.next_retry_at.unwrap() - at(0)).num_milliseconds();
    assert_eq!(wait, 37_499);
}

#[test]
fn items_tell_percents_where_nobody_does() {
    for (percent, processed, total, expected) in [
        (None, Some(1), Some(3), 33),
        (None, Some(5), Some(3), 100),
        (None, Some(0), Some(0), 0),
        (Some(7), Some(1), Some(3), 7),
        (None, Some(1), None, 0),
    ] {
        let lease = Uuid::from_u128(1);
        let mut job = job();
        job.apply(claim(lease), at(0), 0.0);
        let progress = Progress { percent, processed, total, step: None };
        let report = Report::Progress(progress, false);
        job.apply(Move::Report(lease, report), at(1), 0.0);
        assert_eq!(job.row.progress_percent, expected);
        assert!(job.changes.len() == 1, "only the start was published");
    }
}

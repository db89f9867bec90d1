//! Validation of requests about jobs and workers.

use std::{net::SocketAddr, ops::RangeInclusive, time::Duration};

use chrono::{DateTime, SubsecRound, Utc};
use prost::Message;
use serde_json::Value as Json;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{
    dispatch::claim::WorkerFilter,
    state::{Cause, Failure, LogLine, Progress, Report},
    types::{Defaults, Types},
};
use crate::{
    entity::job::{JobStatus, Model, RetryPolicy},
    entity::job_log::JobLogLevel,
    error::{Error, Result},
    pb,
    rpc::{check, enums::FromProto, json, time},
};

/// Queue of jobs created without a queue name.
pub(super) const DEFAULT_QUEUE: &str = "default";

/// Maximum size of a payload or result, in bytes of JSON.
const MAX_JSON_BYTES: usize = json::MAX_BYTES;

/// Maximum size of the context of a log line, in bytes of JSON.
const MAX_CONTEXT_BYTES: usize = 64 << 10;

const DAY: Duration = Duration::from_hours(24);
const YEAR: Duration = Duration::from_hours(366 * 24);

/// Range of lease durations.
const LEASE_RANGE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(1);

fn optional_duration(
    field: &str,
    value: Option<prost_types::Duration>,
    range: &RangeInclusive<Duration>,
) -> Result<Option<Duration>> {
    value.map(|value| time::duration(field, value, range)).transpose()
}

fn json_object(field: &str, value: Option<prost_types::Struct>, max_bytes: usize) -> Result<Option<Json>> {
    value.map(|value| json::from_proto(field, value, max_bytes)).transpose()
}

impl pb::Job {
    /// Job with the fields that a request may set. Output-only fields have their default values.
    fn only_settable(self) -> Self {
        Self {
            job_type: self.job_type,
            queue_name: self.queue_name,
            priority: self.priority,
            max_attempts: self.max_attempts,
            payload: self.payload,
            scheduled_at: self.scheduled_at,
            concurrency_key: self.concurrency_key,
            max_rescues: self.max_rescues,
            timeout: self.timeout,
            retry_policy: self.retry_policy,
            dead_letter: self.dead_letter,
            deadline: self.deadline,
            unique: self.unique,
            ..Self::default()
        }
    }
}

/// Validates a request and builds the row of the job. `prefix` is the path of the request in field names: empty, or
/// `requests[3].`.
pub(super) fn new_job(prefix: &str, request: pb::CreateJobRequest, types: &Types, now: DateTime<Utc>) -> Result<Model> {
    let request_id = check::name(&format!("{prefix}request_id"), &request.request_id, 0..=100)?;
    let request = request.job.ok_or_else(|| Error::invalid(format!("{prefix}job"), "is required"))?.only_settable();
    let field = |name: &str| format!("{prefix}job.{name}");
    let request_hash = (!request_id.is_empty()).then(|| {
        let hash = Sha256::digest(request.encode_to_vec());
        hash.to_vec()
    });
    let job_type = check::name(&field("job_type"), &request.job_type, 1..=50)?;
    let defaults = types.defaults_of(&job_type);
    let queue = request.queue_name.unwrap_or_default();
    let queue = check::name(&field("queue_name"), &queue, 0..=100)?;
    let priority = request.priority.unwrap_or(defaults.priority);
    let attempts = request.max_attempts.unwrap_or(defaults.max_attempts);
    let rescues = request.max_rescues.unwrap_or(defaults.max_rescues);
    let requested_at = request.scheduled_at.map(|at| time::from_proto(&field("scheduled_at"), at)).transpose()?;
    let scheduled_at = requested_at.map_or(now, |at| at.max(now));
    let timeouts = Duration::from_secs(1)..=DAY * 30;
    let timeout = request.timeout.map(|timeout| time::whole_millis(&field("timeout"), timeout, &timeouts));
    let timeout = timeout.transpose()?;
    let deadlines = Duration::from_secs(1)..=YEAR;
    let deadline = optional_duration(&field("deadline"), request.deadline, &deadlines)?.or(defaults.deadline);
    let policy = request.retry_policy.map(|policy| retry_policy(&field("retry_policy"), policy, &defaults));
    let mut job = Model {
        queue_name: Some(Some(queue).filter(|queue| !queue.is_empty()).unwrap_or(DEFAULT_QUEUE.into())),
        priority: check::within(&field("priority"), priority, 0..=4)?,
        max_attempts: check::within(&field("max_attempts"), attempts, 1..=1_000)?,
        max_rescues: check::within(&field("max_rescues"), rescues, 0..=1_000)?,
        timeout_ms: timeout.or(defaults.timeout.map(time::millis)),
        deadline_at: deadline.map(|deadline| (scheduled_at + deadline).trunc_subsecs(6)),
        retry_policy: policy.transpose()?,
        dead_letter: request.dead_letter.unwrap_or(defaults.dead_letter),
        payload: json_object(&field("payload"), request.payload, MAX_JSON_BYTES)?,
        concurrency_key: check::text(&field("concurrency_key"), &request.concurrency_key, 0..=200)?,
        request_id: Some(request_id).filter(|id| !id.is_empty()),
        request_hash,
        scheduled_at: Some(scheduled_at),
        ..Model::queued(job_type, now)
    };
    if let Some(unique) = request.unique {
        set_unique(&field("unique"), &unique, now, &mut job)?;
    }
    Ok(job)
}

fn retry_policy(field: &str, policy: pb::RetryPolicy, defaults: &Defaults) -> Result<RetryPolicy> {
    let name = |name: &str| format!("{field}.{name}");
    let by_type = defaults.retry;
    let delay = |field: &str, delay: Option<prost_types::Duration>, by_type, max_delay| {
        let delays = Duration::ZERO..=max_delay;
        let delay = delay.map(|delay| time::whole_millis(&name(field), delay, &delays));
        Ok::<_, Error>(delay.transpose()?.unwrap_or(by_type))
    };
    let (multiplier, jitter) =
        (policy.multiplier.unwrap_or(by_type.multiplier), policy.jitter.unwrap_or(by_type.jitter));
    Ok(RetryPolicy {
        initial_ms: delay("initial_delay", policy.initial_delay, by_type.initial_ms, DAY)?,
        max_ms: delay("max_delay", policy.max_delay, by_type.max_ms, DAY * 7)?,
        multiplier: check::within(&name("multiplier"), multiplier, 1.0..=10.0)?,
        jitter: check::within(&name("jitter"), jitter, 0.0..=1.0)?,
    })
}

fn set_unique(field: &str, unique: &pb::UniqueJob, now: DateTime<Utc>, job: &mut Model) -> Result<()> {
    let key = check::name(&format!("{field}.key"), &unique.key, 1..=255)?;
    let states = JobStatus::all_from_proto(&format!("{field}.states"), &unique.states)?;
    if !states.is_empty() && !states.contains(&JobStatus::Queued) {
        // A job outside its key's states would take the key when claimed. The claim could then fail on a key held by
        // another job.
        let problem = "must include JOB_STATUS_QUEUED";
        return Err(Error::invalid(format!("{field}.states"), problem));
    }
    let periods = Duration::from_secs(1)..=YEAR;
    let period = optional_duration(&format!("{field}.period"), unique.period, &periods)?;
    let bits = |states: &[JobStatus]| states.iter().fold(0, |bits, state| bits | state.bit());
    job.unique_key = Some(key);
    job.unique_states = match (states.is_empty(), period) {
        (false, _) => bits(&states),
        (true, None) => bits(&[JobStatus::Queued, JobStatus::Running]),
        (true, Some(_)) => bits(&super::convert::STATUSES),
    };
    job.unique_period = period.map_or(0, |period| {
        let length = time::millis(period);
        now.timestamp_millis().div_euclid(length) * length
    });
    Ok(())
}

/// Validates the actor and the reason of a request.
pub(super) fn cause(peer: Option<SocketAddr>, actor: &str, reason: &str) -> Result<Cause> {
    let actor = check::actor("actor", actor, peer)?;
    let reason = check::text("reason", reason, 0..=1_000)?;
    Ok(Cause { actor, reason: Some(reason).filter(|reason| !reason.is_empty()) })
}

/// Validates the queues and job types accepted by a worker. Without queues, the default queue is accepted.
pub(super) fn worker_filter(queues: &[String], types: &[String]) -> Result<WorkerFilter> {
    let mut queues = check::texts("queue_names", queues, 100, &(1..=100))?;
    if queues.is_empty() {
        queues.push(DEFAULT_QUEUE.into());
    }
    let types = check::texts("job_types", types, 100, &(1..=50))?;
    Ok(WorkerFilter { queues, types })
}

/// Validates a lease duration; absent means `default`.
pub(super) fn lease(value: Option<prost_types::Duration>, default: Duration) -> Result<Duration> {
    let lease = optional_duration("lease_duration", value, &LEASE_RANGE)?;
    Ok(lease.unwrap_or(default))
}

/// Parses the ids of a job and a lease. `prefix` is the path of both fields.
pub(super) fn lease_ids(prefix: &str, job_id: &str, lease_id: &str) -> Result<(Uuid, Uuid)> {
    let job_id = check::uuid(&format!("{prefix}job_id"), job_id)?;
    let lease_id = check::uuid(&format!("{prefix}lease_id"), lease_id)?;
    Ok((job_id, lease_id))
}

/// Job id, lease id and report of a worker.
pub(super) type LeaseReport = (Uuid, Uuid, Report);

pub(super) fn completion(prefix: &str, completion: pb::JobCompletion) -> Result<LeaseReport> {
    let (id, lease) = lease_ids(prefix, &completion.job_id, &completion.lease_id)?;
    let result = json_object(&format!("{prefix}result"), completion.result, MAX_JSON_BYTES)?;
    Ok((id, lease, Report::Complete(result)))
}

pub(super) fn failure(request: &pb::FailJobRequest) -> Result<LeaseReport> {
    let (id, lease) = lease_ids("", &request.job_id, &request.lease_id)?;
    let failure = Failure {
        message: check::name("error_message", &request.error_message, 1..=10_000)?,
        traceback: check::optional_text("error_traceback", request.error_traceback.as_deref(), 0..=100_000)?,
        code: check::optional_text("error_code", request.error_code.as_deref(), 1..=100)?,
        retryable: request.retryable.unwrap_or(true),
        retry_after: optional_duration("retry_after", request.retry_after, &(Duration::ZERO..=YEAR))?,
    };
    Ok((id, lease, Report::Fail(failure)))
}

pub(super) fn release(request: &pb::ReleaseJobRequest) -> Result<LeaseReport> {
    let (id, lease) = lease_ids("", &request.job_id, &request.lease_id)?;
    let reason = check::text("reason", &request.reason, 0..=1_000)?;
    let snooze = optional_duration("snooze", request.snooze, &(Duration::ZERO..=YEAR))?;
    if snooze == Some(Duration::ZERO) {
        return Err(Error::invalid("snooze", "must be longer than 0 s"));
    }
    let reason = Some(reason).filter(|reason| !reason.is_empty());
    Ok((id, lease, Report::Release { reason, snooze }))
}

pub(super) fn acknowledgement(request: &pb::AcknowledgeJobCancellationRequest) -> Result<LeaseReport> {
    let (id, lease) = lease_ids("", &request.job_id, &request.lease_id)?;
    Ok((id, lease, Report::AcknowledgeCancellation))
}

pub(super) fn progress(request: &pb::UpdateJobProgressRequest) -> Result<(Uuid, Uuid, Progress)> {
    let (id, lease) = lease_ids("", &request.job_id, &request.lease_id)?;
    let percent = request.progress_percent.map(|percent| check::within("progress_percent", percent, 0..=100));
    let items = |field: &str, items: Option<i64>| {
        let items = items.map(|items| check::within(field, items, 0..=i64::MAX / 100));
        items.transpose()
    };
    let progress = Progress {
        percent: percent.transpose()?,
        step: check::optional_text("current_step", request.current_step.as_deref(), 0..=255)?,
        processed: items("items_processed", request.items_processed)?,
        total: items("items_total", request.items_total)?,
    };
    Ok((id, lease, progress))
}

pub(super) fn logs(request: pb::AppendJobLogsRequest) -> Result<LeaseReport> {
    let (id, lease) = lease_ids("", &request.job_id, &request.lease_id)?;
    check::within("lines", request.lines.len(), 1..=1_000)?;
    let offset = request.offset.map(|offset| check::within("offset", offset, 0..=i64::MAX)).transpose()?;
    let line = |(index, line): (usize, pb::JobLogLine)| {
        let field = |name: &str| format!("lines[{index}].{name}");
        let level = JobLogLevel::from_proto(&field("level"), line.level)?;
        let timestamp = line.timestamp.map(|at| time::from_proto(&field("timestamp"), at));
        Ok(LogLine {
            message: check::text(&field("message"), &line.message, 1..=10_000)?,
            level: level.unwrap_or(JobLogLevel::Info),
            timestamp: timestamp.transpose()?,
            context: json_object(&field("context"), line.context, MAX_CONTEXT_BYTES)?,
        })
    };
    let checked = request.lines.into_iter().enumerate().map(line);
    let lines = checked.collect::<Result<_>>()?;
    Ok((id, lease, Report::Logs { lines, offset }))
}

/// Validates the capacity of a worker.
pub(super) fn capacity(field: &str, capacity: i32) -> Result<usize> {
    let capacity = check::within(field, capacity, 0..=1_000)?;
    Ok(usize::try_from(capacity).unwrap_or_default())
}

//! What requests say of jobs and workers, checked.

use std::{net::SocketAddr, ops::RangeInclusive, time::Duration};

use chrono::{DateTime, SubsecRound, Utc};
use prost::Message;
use serde_json::Value as Json;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{
    dispatch::claim::Accepts,
    state::{Cause, Failure, Line, Progress, Report},
    types::{Defaults, Types},
};
use crate::{
    entity::job::{JobStatus, Model, RetryPolicy},
    entity::job_log::JobLogLevel,
    error::{Error, Result},
    pb,
    rpc::{check, enums::FromProto, json, time},
};

/// The queue of jobs that name none.
pub(super) const QUEUE: &str = "default";

/// How many bytes a payload or a result has at most, as JSON.
const LARGEST_JSON: usize = json::MAX_BYTES;

/// How many bytes the context of a line has at most, as JSON.
const LARGEST_CONTEXT: usize = 64 << 10;

const DAY: Duration = Duration::from_hours(24);
const YEAR: Duration = Duration::from_hours(366 * 24);

/// How long leases may be.
const LEASES: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(1);

fn optional_duration(
    field: &str,
    value: Option<prost_types::Duration>,
    range: &RangeInclusive<Duration>,
) -> Result<Option<Duration>> {
    value
        .map(|value| time::duration(field, value, range))
        .transpose()
}

fn object(field: &str, value: Option<prost_types::Struct>, most: usize) -> Result<Option<Json>> {
    value
        .map(|value| json::from_proto(field, value, most))
        .transpose()
}

impl pb::Job {
    /// This job without the fields that are ignored in a request.
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

/// A job that is to be made. `at` names the request: empty, or `requests[3].`.
pub(super) fn new_job(
    at: &str,
    request: pb::CreateJobRequest,
    types: &Types,
    now: DateTime<Utc>,
) -> Result<Model> {
    let request_id = check::name(&format!("{at}request_id"), &request.request_id, 0..=100)?;
    let request = request
        .job
        .ok_or_else(|| Error::invalid(format!("{at}job"), "is required"))?
        .only_settable();
    let field = |name: &str| format!("{at}job.{name}");
    let request_hash = (!request_id.is_empty()).then(|| {
        let hash = Sha256::digest(request.encode_to_vec());
        hash.to_vec()
    });
    let job_type = check::name(&field("job_type"), &request.job_type, 1..=50)?;
    let defaults = types.of(&job_type);
    let queue = request.queue_name.unwrap_or_default();
    let queue = check::name(&field("queue_name"), &queue, 0..=100)?;
    let priority = request.priority.unwrap_or(defaults.priority);
    let attempts = request.max_attempts.unwrap_or(defaults.max_attempts);
    let rescues = request.max_rescues.unwrap_or(defaults.max_rescues);
    let scheduled_at = request.scheduled_at;
    let scheduled_at = scheduled_at.map(|at| time::from_proto(&field("scheduled_at"), at));
    let scheduled_at = scheduled_at.transpose()?.map_or(now, |at| at.max(now));
    let timeouts = Duration::from_secs(1)..=DAY * 30;
    let timeout = request
        .timeout
        .map(|timeout| time::whole_millis(&field("timeout"), timeout, &timeouts));
    let timeout = timeout.transpose()?;
    let deadlines = Duration::from_secs(1)..=YEAR;
    let deadline = optional_duration(&field("deadline"), request.deadline, &deadlines)?;
    let deadline = deadline.or(defaults.deadline);
    let policy = request.retry_policy;
    let policy = policy.map(|policy| retry_policy(&field("retry_policy"), policy, &defaults));
    let mut job = Model {
        queue_name: Some(
            Some(queue)
                .filter(|queue| !queue.is_empty())
                .unwrap_or(QUEUE.into()),
        ),
        priority: check::within(&field("priority"), priority, 0..=4)?,
        max_attempts: check::within(&field("max_attempts"), attempts, 1..=1_000)?,
        max_rescues: check::within(&field("max_rescues"), rescues, 0..=1_000)?,
        timeout_ms: timeout.or(defaults.timeout.map(time::millis)),
        deadline_at: deadline.map(|deadline| (scheduled_at + deadline).trunc_subsecs(6)),
        retry_policy: policy.transpose()?,
        dead_letter: request.dead_letter.unwrap_or(defaults.dead_letter),
        payload: object(&field("payload"), request.payload, LARGEST_JSON)?,
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
    let of_type = defaults.retry;
    let delay = |field: &str, delay: Option<prost_types::Duration>, of_type, most| {
        let delays = Duration::ZERO..=most;
        let delay = delay.map(|delay| time::whole_millis(&name(field), delay, &delays));
        Ok::<_, Error>(delay.transpose()?.unwrap_or(of_type))
    };
    let (multiplier, jitter) = (
        policy.multiplier.unwrap_or(of_type.multiplier),
        policy.jitter.unwrap_or(of_type.jitter),
    );
    Ok(RetryPolicy {
        initial_ms: delay(
            "initial_delay",
            policy.initial_delay,
            of_type.initial_ms,
            DAY,
        )?,
        max_ms: delay("max_delay", policy.max_delay, of_type.max_ms, DAY * 7)?,
        multiplier: check::within(&name("multiplier"), multiplier, 1.0..=10.0)?,
        jitter: check::within(&name("jitter"), jitter, 0.0..=1.0)?,
    })
}

fn set_unique(
    field: &str,
    unique: &pb::UniqueJob,
    now: DateTime<Utc>,
    job: &mut Model,
) -> Result<()> {
    let key = check::name(&format!("{field}.key"), &unique.key, 1..=255)?;
    let states = JobStatus::all_from_proto(&format!("{field}.states"), &unique.states)?;
    if !states.is_empty() && !states.contains(&JobStatus::Queued) {
        // It would come to hold its key when it is claimed, and could not be while another does.
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

/// Who asks for something, and why.
pub(super) fn cause(peer: Option<SocketAddr>, actor: &str, reason: &str) -> Result<Cause> {
    let actor = check::actor("actor", actor, peer)?;
    let reason = check::text("reason", reason, 0..=1_000)?;
    Ok(Cause {
        actor,
        reason: Some(reason).filter(|reason| !reason.is_empty()),
    })
}

/// What a worker takes.
pub(super) fn accepts(queues: &[String], types: &[String]) -> Result<Accepts> {
    let mut queues = check::texts("queue_names", queues, 100, &(1..=100))?;
    if queues.is_empty() {
        queues.push(QUEUE.into());
    }
    let types = check::texts("job_types", types, 100, &(1..=50))?;
    Ok(Accepts { queues, types })
}

/// How long a lease is.
pub(super) fn lease(value: Option<prost_types::Duration>, default: Duration) -> Result<Duration> {
    let lease = optional_duration("lease_duration", value, &LEASES)?;
    Ok(lease.unwrap_or(default))
}

/// A job and its lease. `at` names where they are.
pub(super) fn held(at: &str, job_id: &str, lease_id: &str) -> Result<(Uuid, Uuid)> {
    let job_id = check::uuid(&format!("{at}job_id"), job_id)?;
    let lease_id = check::uuid(&format!("{at}lease_id"), lease_id)?;
    Ok((job_id, lease_id))
}

/// What a worker reports: about which job, under which lease.
pub(super) type Reported = (Uuid, Uuid, Report);

pub(super) fn completion(at: &str, completion: pb::JobCompletion) -> Result<Reported> {
    let (id, lease) = held(at, &completion.job_id, &completion.lease_id)?;
    let result = object(&format!("{at}result"), completion.result, LARGEST_JSON)?;
    Ok((id, lease, Report::Complete(result)))
}

pub(super) fn failure(request: &pb::FailJobRequest) -> Result<Reported> {
    let (id, lease) = held("", &request.job_id, &request.lease_id)?;
    let failure = Failure {
        message: check::name("error_message", &request.error_message, 1..=10_000)?,
        traceback: check::optional_text(
            "error_traceback",
            request.error_traceback.as_deref(),
            0..=100_000,
        )?,
        code: check::optional_text("error_code", request.error_code.as_deref(), 1..=100)?,
        retryable: request.retryable.unwrap_or(true),
        retry_after: optional_duration(
            "retry_after",
            request.retry_after,
            &(Duration::ZERO..=YEAR),
        )?,
    };
    Ok((id, lease, Report::Fail(failure)))
}

pub(super) fn release(request: &pb::ReleaseJobRequest) -> Result<Reported> {
    let (id, lease) = held("", &request.job_id, &request.lease_id)?;
    let reason = check::text("reason", &request.reason, 0..=1_000)?;
    let snooze = optional_duration("snooze", request.snooze, &(Duration::ZERO..=YEAR))?;
    if snooze == Some(Duration::ZERO) {
        return Err(Error::invalid("snooze", "must be longer than 0 s"));
    }
    let reason = Some(reason).filter(|reason| !reason.is_empty());
    Ok((id, lease, Report::Release { reason, snooze }))
}

pub(super) fn acknowledgement(request: &pb::AcknowledgeJobCancellationRequest) -> Result<Reported> {
    let (id, lease) = held("", &request.job_id, &request.lease_id)?;
    Ok((id, lease, Report::AcknowledgeCancellation))
}

pub(super) fn progress(request: &pb::UpdateJobProgressRequest) -> Result<(Uuid, Uuid, Progress)> {
    let (id, lease) = held("", &request.job_id, &request.lease_id)?;
    let percent = request.progress_percent;
    let percent = percent.map(|percent| check::within("progress_percent", percent, 0..=100));
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

pub(super) fn logs(request: pb::AppendJobLogsRequest) -> Result<Reported> {
    let (id, lease) = held("", &request.job_id, &request.lease_id)?;
    let lines = request.lines.len();
    check::within("lines", lines, 1..=1_000)?;
    let offset = request.offset;
    let offset = offset.map(|offset| check::within("offset", offset, 0..=i64::MAX));
    let offset = offset.transpose()?;
    let line = |(at, line): (usize, pb::JobLogLine)| {
        let field = |name: &str| format!("lines[{at}].{name}");
        let level = JobLogLevel::from_proto(&field("level"), line.level)?;
        let timestamp = line.timestamp;
        let timestamp = timestamp.map(|at| time::from_proto(&field("timestamp"), at));
        Ok(Line {
            message: check::text(&field("message"), &line.message, 1..=10_000)?,
            level: level.unwrap_or(JobLogLevel::Info),
            timestamp: timestamp.transpose()?,
            context: object(&field("context"), line.context, LARGEST_CONTEXT)?,
        })
    };
    let lines = request.lines.into_iter().enumerate().map(line);
    let lines = lines.collect::<Result<_>>()?;
    Ok((id, lease, Report::Logs { lines, offset }))
}

/// A capacity of a worker.
pub(super) fn capacity(field: &str, capacity: i32) -> Result<usize> {
    let capacity = check::within(field, capacity, 0..=1_000)?;
    Ok(usize::try_from(capacity).unwrap_or_default())
}

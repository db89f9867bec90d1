//! Feed records of job changes and log lines.

use super::convert::light_job;
use crate::{
    entity::{job, job_log},
    feed::Record,
    pb::{self, JobChangeKind, watch_response::Update},
    topics,
};

/// Maximum number of changes in one record.
const MAX_CHANGES_PER_RECORD: usize = 500;

/// Builds the change of a job, without payload, result and traceback.
pub(super) fn job_change(kind: JobChangeKind, job: job::Model) -> pb::JobChange {
    pb::JobChange { kind: kind.into(), job: Some(light_job(job)), ..Default::default() }
}

/// Builds the change of a created job.
pub(super) fn created_change(job: &job::Model) -> pb::JobChange {
    job_change(JobChangeKind::Created, job.clone())
}

/// Builds the change of a deleted job: id, type, status and queue only.
pub(super) fn deleted_change(job: &job::Model) -> pb::JobChange {
    let job = pb::Job {
        id: job.id.to_string(),
        job_type: job.job_type.clone(),
        status: pb::JobStatus::from(job.status).into(),
        queue_name: job.queue_name.clone(),
        ..Default::default()
    };
    pb::JobChange { kind: JobChangeKind::Deleted.into(), job: Some(job), ..Default::default() }
}

/// Builds the records of the changes of one transaction. Up to 500 changes share a record, because a busy queue
/// commits thousands per second.
pub(super) fn change_records(changes: Vec<pb::JobChange>) -> Vec<Record> {
    let mut records = Vec::with_capacity(changes.len().div_ceil(MAX_CHANGES_PER_RECORD));
    let mut changes = changes.into_iter().peekable();
    while changes.peek().is_some() {
        let changes: Vec<_> = changes.by_ref().take(MAX_CHANGES_PER_RECORD).collect();
        let job = changes.first().and_then(|change| change.job.as_ref());
        let key = job.map(|job| job.id.clone()).unwrap_or_default();
        let update = Update::JobChanges(pb::JobChanges { changes });
        records.push(topics::record(key, update));
    }
    records
}

/// Builds the record of the lines logged in one transaction, at least one line.
pub(super) fn log_record(lines: Vec<job_log::Model>) -> Record {
    let key = lines.first().map(|line| line.job_id.to_string());
    let logs = lines.into_iter().map(Into::into).collect();
    let update = Update::JobLogs(pb::JobLogs { logs });
    topics::record(key.unwrap_or_default(), update)
}

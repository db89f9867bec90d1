//! What the feed is told of jobs.

use prost::Message;

use super::convert::light;
use crate::{
    entity::{job, job_log},
    feed::{Record, Topic},
    pb::{self, JobChangeKind, watch_response::Update},
};

/// How many changes one record has at most.
const CHANGES: usize = 500;

/// What happened to a job, for its watchers.
pub(super) fn change(kind: JobChangeKind, job: job::Model) -> pb::JobChange {
    pb::JobChange {
        kind: kind.into(),
        job: Some(light(job)),
        ..Default::default()
    }
}

/// That a job was made.
pub(super) fn created(job: &job::Model) -> pb::JobChange {
    change(JobChangeKind::Created, job.clone())
}

/// That a job was deleted.
pub(super) fn deleted(job: &job::Model) -> pb::JobChange {
    let job = pb::Job {
        id: job.id.to_string(),
        job_type: job.job_type.clone(),
        status: pb::JobStatus::from(job.status).into(),
        queue_name: job.queue_name.clone(),
        ..Default::default()
    };
    pb::JobChange {
        kind: JobChangeKind::Deleted.into(),
        job: Some(job),
        ..Default::default()
    }
}

/// The records of the changes of one transaction. Many share one, for there are thousands a second.
pub(super) fn records(changes: Vec<pb::JobChange>) -> Vec<Record> {
    let mut records = Vec::with_capacity(changes.len().div_ceil(CHANGES));
    let mut changes = changes.into_iter().peekable();
    while changes.peek().is_some() {
        let changes: Vec<_> = changes.by_ref().take(CHANGES).collect();
        let job = changes.first().and_then(|change| change.job.as_ref());
        let key = job.map(|job| job.id.clone()).unwrap_or_default();
        let update = Update::JobChanges(pb::JobChanges { changes });
        records.push(record(Topic::Jobs, key, update));
    }
    records
}

/// The record of lines that were logged in one transaction. There is at least one.
pub(super) fn logged(lines: Vec<job_log::Model>) -> Record {
    let key = lines.first().map(|line| line.job_id.to_string());
    let logs = lines.into_iter().map(Into::into).collect();
    let update = Update::JobLogs(pb::JobLogs { logs });
    record(Topic::JobLogs, key.unwrap_or_default(), update)
}

fn record(topic: Topic, key: String, update: Update) -> Record {
    let message = pb::WatchResponse {
        update: Some(update),
        ..Default::default()
    };
    Record {
        topic,
        key,
        message: message.encode_to_vec(),
    }
}

//! Filter of watches: selects the changes and log lines of feed records.

use std::collections::HashSet;

use uuid::Uuid;

use crate::{
    error::{Error, Result},
    pb::{self, JobChangeKind, watch_jobs_response, watch_response::Update},
    topics,
};

/// Filter of a watch. An empty set matches every value.
#[derive(Debug, Default)]
pub(crate) struct WatchFilter {
    statuses: HashSet<i32>,
    job_types: HashSet<String>,
    queue_names: HashSet<String>,
    priorities: HashSet<i32>,
    ids: HashSet<String>,
    concurrency_keys: HashSet<String>,
    error_codes: HashSet<String>,
    /// Empty for any value.
    schedule_id: String,
    /// Empty for any value.
    worker_id: String,
    dead: Option<bool>,
    /// True if log lines are included.
    logs: bool,
}

impl WatchFilter {
    /// Filter for one job, with or without its log.
    pub(crate) fn for_job(id: Uuid, logs: bool) -> Self {
        Self { ids: [id.to_string()].into(), logs, ..Self::default() }
    }

    /// Watched job, if the filter names exactly one id.
    pub(crate) fn job_id(&self) -> Option<Uuid> {
        let mut ids = self.ids.iter();
        ids.next()?.parse().ok().filter(|_| ids.next().is_none())
    }

    /// Validates the filter of a watch.
    pub(crate) fn parse(filter: &pb::JobFilter, logs: bool) -> Result<Self> {
        let values = filter.values()?;
        let unsupported = [
            ("filter.created_at", filter.created_at.is_some()),
            ("filter.completed_at", filter.completed_at.is_some()),
            ("filter.scheduled_at", filter.scheduled_at.is_some()),
            ("filter.has_error", filter.has_error.is_some()),
            ("filter.min_duration", filter.min_duration.is_some()),
            ("filter.max_duration", filter.max_duration.is_some()),
            ("filter.cancel_requested", filter.cancel_requested.is_some()),
        ];
        if let Some((field, _)) = unsupported.iter().find(|(_, is_set)| *is_set) {
            return Err(Error::invalid(*field, "must be left out in a watch"));
        }
        // A log line names the job, but no other property of the job.
        let unsupported_with_logs = [
            ("filter.statuses", !filter.statuses.is_empty()),
            ("filter.job_types", !filter.job_types.is_empty()),
            ("filter.queue_names", !filter.queue_names.is_empty()),
            ("filter.priorities", !filter.priorities.is_empty()),
            ("filter.concurrency_keys", !filter.concurrency_keys.is_empty()),
            ("filter.error_codes", !filter.error_codes.is_empty()),
            ("filter.schedule_id", !filter.schedule_id.is_empty()),
            ("filter.worker_id", !filter.worker_id.is_empty()),
            ("filter.dead", filter.dead.is_some()),
        ];
        let is_unsupported = |(_, is_set): &&(&str, bool)| logs && *is_set;
        if let Some((field, _)) = unsupported_with_logs.iter().find(is_unsupported) {
            return Err(Error::invalid(*field, "must be left out with `logs`"));
        }
        Ok(Self {
            statuses: filter.statuses.iter().copied().collect(),
            job_types: values.job_types.into_iter().collect(),
            queue_names: values.queue_names.into_iter().collect(),
            priorities: values.priorities.into_iter().collect(),
            // In the spelling of the server, whatever the case sent by the client.
            ids: values.ids.iter().map(ToString::to_string).collect(),
            concurrency_keys: values.concurrency_keys.into_iter().collect(),
            error_codes: values.error_codes.into_iter().collect(),
            schedule_id: values.schedule_id.map_or_else(String::new, |id| id.to_string()),
            worker_id: values.worker_id,
            dead: filter.dead,
            logs,
        })
    }

    /// Updates of a feed record matching the filter, in the order of the record.
    pub(crate) fn matching_updates<'a>(
        &'a self,
        update: Option<&'a Update>,
    ) -> impl Iterator<Item = watch_jobs_response::Update> + Send + 'a {
        let (mut changes, mut logs): (&[pb::JobChange], &[pb::JobLog]) = (&[], &[]);
        if let Some(Update::JobChanges(update)) = update {
            changes = &update.changes;
        }
        if let Some(Update::JobLogs(update)) = update
            && self.logs
        {
            logs = &update.logs;
        }
        let mut unreadable = None;
        if let Some(Update::Unreadable(change)) = update
            && self.may_match_unreadable(&change.topic)
        {
            unreadable = Some(watch_jobs_response::Update::Unreadable(change.clone()));
        }
        let change_updates = changes
            .iter()
            .filter(|change| self.matches(change))
            .map(|change| watch_jobs_response::Update::Job(change.clone()));
        let log_updates = logs
            .iter()
            .filter(|log| is_allowed(&self.ids, Some(&log.job_id)))
            .map(|log| watch_jobs_response::Update::Log(log.clone()));
        change_updates.chain(log_updates).chain(unreadable)
    }

    /// Returns true if an unreadable change of a topic may match the filter.
    fn may_match_unreadable(&self, topic: &str) -> bool {
        let topic = topics::parse(topic);
        topic == Some(pb::Topic::Jobs) || self.logs && topic == Some(pb::Topic::JobLogs)
    }

    fn matches(&self, change: &pb::JobChange) -> bool {
        let Some(job) = &change.job else {
            return false;
        };
        let is_match = is_allowed(&self.ids, Some(&job.id))
            && is_allowed(&self.statuses, Some(&job.status))
            && is_allowed(&self.job_types, Some(&job.job_type))
            && is_allowed(&self.queue_names, job.queue_name.as_ref());
        // The change of a deleted job has only these fields.
        is_match && (change.kind() == JobChangeKind::Deleted || self.matches_details(job))
    }

    fn matches_details(&self, job: &pb::Job) -> bool {
        let is_equal =
            |expected: &String, value: &Option<String>| expected.is_empty() || value.as_ref() == Some(expected);
        is_allowed(&self.priorities, job.priority.as_ref())
            && is_allowed(&self.concurrency_keys, Some(&job.concurrency_key))
            && is_allowed(&self.error_codes, job.error_code.as_ref())
            && is_equal(&self.schedule_id, &job.schedule_id)
            && is_equal(&self.worker_id, &job.worker_id)
            && self.dead.is_none_or(|dead| dead == job.dead_at.is_some())
    }
}

fn is_allowed<T: std::hash::Hash + Eq>(set: &HashSet<T>, value: Option<&T>) -> bool {
    set.is_empty() || value.is_some_and(|value| set.contains(value))
}

/// Returns true if a change ends a job, at least until a retry.
pub(crate) fn is_final(change: &pb::JobChange) -> bool {
    use pb::JobStatus::{Cancelled, Completed, Failed};
    let status = change.job.as_ref().map(pb::Job::status);
    change.kind() == JobChangeKind::Deleted
        || status.is_some_and(|status| [Completed, Failed, Cancelled].contains(&status))
}

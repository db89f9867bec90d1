//! What a watch of jobs wants to see.

use std::collections::HashSet;

use uuid::Uuid;

use crate::{
    error::{Error, Result},
    feed::Topic,
    pb::{self, JobChangeKind, watch_jobs_response, watch_response::Update},
};

/// What a watch wants to see. An empty set means all.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    statuses: HashSet<i32>,
    job_types: HashSet<String>,
    queue_names: HashSet<String>,
    priorities: HashSet<i32>,
    ids: HashSet<String>,
    concurrency_keys: HashSet<String>,
    error_codes: HashSet<String>,
    /// Empty for any.
    schedule_id: String,
    /// Empty for any.
    worker_id: String,
    dead: Option<bool>,
    /// Whether lines of logs are wanted.
    logs: bool,
}

impl Wanted {
    /// One job, with or without its log.
    pub(crate) fn one(id: Uuid, logs: bool) -> Self {
        Self {
            ids: [id.to_string()].into(),
            logs,
            ..Self::default()
        }
    }

    /// The job that is watched, if it is one.
    pub(crate) fn id(&self) -> Option<Uuid> {
        let mut ids = self.ids.iter();
        ids.next()?.parse().ok().filter(|_| ids.next().is_none())
    }

    /// Reads the filter of a watch.
    pub(crate) fn parse(filter: &pb::JobFilter, logs: bool) -> Result<Self> {
        let lists = filter.lists()?;
        let not_of_the_moment = [
            ("filter.created_at", filter.created_at.is_some()),
            ("filter.completed_at", filter.completed_at.is_some()),
            ("filter.scheduled_at", filter.scheduled_at.is_some()),
            ("filter.has_error", filter.has_error.is_some()),
            ("filter.min_duration", filter.min_duration.is_some()),
            ("filter.max_duration", filter.max_duration.is_some()),
            ("filter.cancel_requested", filter.cancel_requested.is_some()),
        ];
        if let Some((field, _)) = not_of_the_moment.iter().find(|(_, is_set)| *is_set) {
            return Err(Error::invalid(*field, "must be left out in a watch"));
        }
        // A line says of which job it is, and nothing else of that.
        let not_of_lines = [
            ("filter.statuses", !filter.statuses.is_empty()),
            ("filter.job_types", !filter.job_types.is_empty()),
            ("filter.queue_names", !filter.queue_names.is_empty()),
            ("filter.priorities", !filter.priorities.is_empty()),
            (
                "filter.concurrency_keys",
                !filter.concurrency_keys.is_empty(),
            ),
            ("filter.error_codes", !filter.error_codes.is_empty()),
            ("filter.schedule_id", !filter.schedule_id.is_empty()),
            ("filter.worker_id", !filter.worker_id.is_empty()),
            ("filter.dead", filter.dead.is_some()),
        ];
        let mut not_of_lines = not_of_lines.iter();
        if let Some((field, _)) = not_of_lines.find(|(_, is_set)| logs && *is_set) {
            return Err(Error::invalid(*field, "must be left out with `logs`"));
        }
        Ok(Self {
            statuses: filter.statuses.iter().copied().collect(),
            job_types: lists.job_types.into_iter().collect(),
            queue_names: lists.queue_names.into_iter().collect(),
            priorities: lists.priorities.into_iter().collect(),
            // As the server writes them, whatever the client's case.
            ids: lists.ids.iter().map(ToString::to_string).collect(),
            concurrency_keys: lists.concurrency_keys.into_iter().collect(),
            error_codes: lists.error_codes.into_iter().collect(),
            schedule_id: lists
                .schedule_id
                .map_or_else(String::new, |id| id.to_string()),
            worker_id: lists.worker_id,
            dead: filter.dead,
            logs,
        })
    }

    /// What is wanted of a record of the feed, in its order.
    pub(crate) fn of<'a>(
        &'a self,
        update: Option<&'a Update>,
    ) -> impl Iterator<Item = watch_jobs_response::Update> + Send + 'a {
        let (mut changes, mut logs): (&[pb::JobChange], &[pb::JobLog]) = (&[], &[]);
        if let Some(Update::JobChanges(of)) = update {
            changes = &of.changes;
        }
        if let Some(Update::JobLogs(of)) = update
            && self.logs
        {
            logs = &of.logs;
        }
        let mut unreadable = None;
        if let Some(Update::Unreadable(change)) = update
            && self.may_concern(&change.topic)
        {
            unreadable = Some(watch_jobs_response::Update::Unreadable(change.clone()));
        }
        let changes = changes.iter().filter(|change| self.wants(change));
        let changes = changes.map(|change| watch_jobs_response::Update::Job(change.clone()));
        let logs = logs
            .iter()
            .filter(|log| holds(&self.ids, Some(&log.job_id)));
        let logs = logs.map(|log| watch_jobs_response::Update::Log(log.clone()));
        changes.chain(logs).chain(unreadable)
    }

    /// Whether a change of this topic, whose content is unknown, may be about something watched.
    fn may_concern(&self, topic: &str) -> bool {
        topic == Topic::Jobs.as_str() || self.logs && topic == Topic::JobLogs.as_str()
    }

    fn wants(&self, change: &pb::JobChange) -> bool {
        let Some(job) = &change.job else {
            return false;
        };
        let is_wanted = holds(&self.ids, Some(&job.id))
            && holds(&self.statuses, Some(&job.status))
            && holds(&self.job_types, Some(&job.job_type))
            && holds(&self.queue_names, job.queue_name.as_ref());
        // Of a deleted one no more is known.
        is_wanted && (change.kind() == JobChangeKind::Deleted || self.wants_more(job))
    }

    fn wants_more(&self, job: &pb::Job) -> bool {
        let is = |wanted: &String, value: &Option<String>| {
            wanted.is_empty() || value.as_ref() == Some(wanted)
        };
        holds(&self.priorities, job.priority.as_ref())
            && holds(&self.concurrency_keys, Some(&job.concurrency_key))
            && holds(&self.error_codes, job.error_code.as_ref())
            && is(&self.schedule_id, &job.schedule_id)
            && is(&self.worker_id, &job.worker_id)
            && self.dead.is_none_or(|dead| dead == job.dead_at.is_some())
    }
}

fn holds<T: std::hash::Hash + Eq>(set: &HashSet<T>, value: Option<&T>) -> bool {
    set.is_empty() || value.is_some_and(|value| set.contains(value))
}

/// Whether a change is the last of a job, unless somebody has it tried again.
pub(crate) fn ends(change: &pb::JobChange) -> bool {
    use pb::JobStatus::{Cancelled, Completed, Failed};
    let status = change.job.as_ref().map(pb::Job::status);
    change.kind() == JobChangeKind::Deleted
        || status.is_some_and(|status| [Completed, Failed, Cancelled].contains(&status))
}

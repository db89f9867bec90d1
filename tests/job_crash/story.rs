//! Whether jobs, attempts, transitions and logs tell one story.

use std::collections::{BTreeMap, HashSet};

use sea_orm::{ColumnTrait, DatabaseConnection, DbBackend, EntityTrait, IsolationLevel, QueryFilter, TransactionTrait};
use uuid::Uuid;
use watchpost::entity::{
    job::{self, JobStatus},
    job_attempt::{self, AttemptOutcome, JobAttemptStatus},
    job_log, job_transition,
};

/// What may follow what.
const LEGAL: [(&str, &str); 9] = [
    ("queued", "running"),
    ("queued", "cancelled"),
    ("queued", "failed"),
    ("running", "queued"),
    ("running", "completed"),
    ("running", "failed"),
    ("running", "cancelled"),
    ("failed", "queued"),
    ("cancelled", "queued"),
];

/// What is wrong with all that the tables tell of jobs.
pub async fn problems(db: &DatabaseConnection) -> Vec<String> {
    // All of one moment.
    let isolation = (db.get_database_backend() == DbBackend::Postgres).then_some(IsolationLevel::RepeatableRead);
    let db = &db.begin_with_config(isolation, None).await.unwrap();
    let jobs = job::Entity::find().all(db).await.unwrap();
    let mut attempts: BTreeMap<Uuid, Vec<job_attempt::Model>> = BTreeMap::new();
    for attempt in job_attempt::Entity::find().all(db).await.unwrap() {
        attempts.entry(attempt.job_id).or_default().push(attempt);
    }
    let mut transitions: BTreeMap<Uuid, Vec<job_transition::Model>> = BTreeMap::new();
    for transition in job_transition::Entity::find().all(db).await.unwrap() {
        transitions.entry(transition.job_id).or_default().push(transition);
    }
    let mut logs: BTreeMap<Uuid, Vec<job_log::Model>> = BTreeMap::new();
    for line in job_log::Entity::find().all(db).await.unwrap() {
        logs.entry(line.job_id).or_default().push(line);
    }
    let mut story = Story::default();
    let mut leases = HashSet::new();
    for job in &jobs {
        let mut attempts = attempts.remove(&job.id).unwrap_or_default();
        let mut transitions = transitions.remove(&job.id).unwrap_or_default();
        let mut logs = logs.remove(&job.id).unwrap_or_default();
        attempts.sort_by_key(|attempt| attempt.attempt_number);
        transitions.sort_by_key(|transition| transition.version_id);
        logs.sort_by_key(|line| line.line);
        story.job = job.id;
        for attempt in &attempts {
            story.holds(attempt.lease_id.is_some_and(|lease| leases.insert(lease)), "a lease was given twice");
        }
        story.transitions(job, &transitions);
        story.attempts(job, &attempts, &transitions);
        story.row(job, &attempts);
        story.logs(job, &attempts, &logs);
    }
    story.job = Uuid::nil();
    story.holds(attempts.is_empty(), "attempts without a job");
    story.holds(transitions.is_empty(), "transitions without a job");
    story.holds(logs.is_empty(), "logs without a job");
    story.problems
}

/// Nothing is wrong with what the tables tell.
pub async fn holds(db: &DatabaseConnection) {
    let problems = problems(db).await;
    assert!(problems.is_empty(), "{problems:#?}");
}

#[derive(Default)]
struct Story {
    job: Uuid,
    problems: Vec<String>,
}

impl Story {
    fn holds(&mut self, is: bool, problem: &str) {
        if !is {
            self.problems.push(format!("{}: {problem}", self.job));
        }
    }

    fn transitions(&mut self, job: &job::Model, transitions: &[job_transition::Model]) {
        let (mut status, mut time, mut version) = ("queued", job.created_at, 1);
        for transition in transitions {
            version += 1;
            let pair = (&*transition.from_status, &*transition.to_status);
            self.holds(LEGAL.contains(&pair), &format!("{pair:?} is not legal"));
            self.holds(transition.from_status == status, "a transition from elsewhere");
            self.holds(transition.version_id == Some(version), "a transition is missing");
            self.holds(transition.transitioned_at >= time, "time goes back");
            status = &transition.to_status;
            time = transition.transitioned_at;
        }
        self.holds(job.version_id == version, "a version without a transition");
        self.holds(job.status.as_str() == status, "a status without a transition");
        let last = transitions.last().map(|last| last.transitioned_at);
        self.holds(job.transitioned_at == last, "another time of the last transition");
    }

    fn attempts(&mut self, job: &job::Model, attempts: &[job_attempt::Model], transitions: &[job_transition::Model]) {
        use AttemptOutcome::{Cancelled, Failed, Released, Rescued, Snoozed, Succeeded, TimedOut};

        let begins = transitions.iter().enumerate();
        let begins = begins.filter(|(_, transition)| transition.to_status == "running");
        let begins: Vec<_> = begins.map(|(at, _)| at).collect();
        self.holds(begins.len() == attempts.len(), "an attempt too few or too many");
        for (number, (attempt, at)) in attempts.iter().zip(begins).enumerate() {
            let begin = &transitions[at];
            let number = i32::try_from(number + 1).unwrap();
            self.holds(attempt.attempt_number == number, "attempts have gaps");
            self.holds(begin.attempt_number == Some(number), "a transition of another attempt");
            self.holds(attempt.started_at == begin.transitioned_at, "another time of a start");
            self.holds(begin.actor == attempt.worker_id, "another worker began the attempt");
            let Some(end) = transitions.get(at + 1) else {
                let open = attempt.ended_at.is_none()
                    && attempt.outcome.is_none()
                    && attempt.status == JobAttemptStatus::Started;
                self.holds(open, "an attempt has ended and the job runs");
                continue;
            };
            self.holds(attempt.ended_at == Some(end.transitioned_at), "another time of an end");
            self.holds(end.attempt_number == Some(number), "an end of another attempt");
            let Some(outcome) = attempt.outcome else {
                self.holds(false, "an attempt has no outcome");
                continue;
            };
            let (status, next): (_, &[&str]) = match outcome {
                Succeeded => (JobAttemptStatus::Succeeded, &["completed"]),
                Failed | TimedOut => (JobAttemptStatus::Failed, &["queued", "failed"]),
                Rescued => (JobAttemptStatus::Cancelled, &["queued", "failed"]),
                Released | Snoozed => (JobAttemptStatus::Cancelled, &["queued"]),
                Cancelled => (JobAttemptStatus::Cancelled, &["cancelled"]),
            };
            self.holds(attempt.status == status, "a status that is not that of the outcome");
            self.holds(next.contains(&&*end.to_status), "an outcome with another transition");
        }
        let retried =
            |transition: &&job_transition::Model| transition.triggered_by == "user" && transition.to_status == "queued";
        let since = transitions.iter().rev().find(retried);
        let since = since.map_or(job.created_at, |retried| retried.transitioned_at);
        let count = |outcomes: &[AttemptOutcome]| {
            let of = attempts.iter().filter(|attempt| {
                let counts = attempt.outcome.is_some_and(|outcome| outcomes.contains(&outcome));
                counts && attempt.started_at >= since
            });
            i32::try_from(of.count()).unwrap()
        };
        let failures = count(&[Failed, TimedOut]);
        self.holds(job.failures <= failures + 1, "failures that no attempt has");
        self.holds(job.rescues == count(&[Rescued]), "other rescues");
        self.holds(job.failures <= job.max_attempts, "more failures than attempts");
    }

    fn row(&mut self, job: &job::Model, attempts: &[job_attempt::Model]) {
        let last = attempts.last();
        let number = last.map_or(0, |last| last.attempt_number);
        let expected = match job.status {
            JobStatus::Queued => number + 1,
            JobStatus::Running => number,
            JobStatus::Completed | JobStatus::Failed | JobStatus::Cancelled => number.max(1),
        };
        self.holds(job.attempt_number == expected, "another number of the attempt");
        self.holds(job.completed_at.is_some() == job.status.is_finished(), "completed_at");
        self.holds(job.dead_at.is_none() || job.status == JobStatus::Failed, "dead_at");
        let running = job.status == JobStatus::Running;
        self.holds(job.lease_id.is_some() == running, "a lease of a job that does not run");
        self.holds(job.lease_expires_at.is_some() == running, "an expiry without a lease");
        self.holds(job.started_at == last.map(|last| last.started_at), "started_at");
        if running {
            let lease = last.and_then(|last| last.lease_id);
            self.holds(job.lease_id == lease, "another lease than the attempt's");
        }
        let succeeded = attempts.iter().filter(|attempt| attempt.status == JobAttemptStatus::Succeeded);
        let succeeded: Vec<_> = succeeded.collect();
        let completed = job.status == JobStatus::Completed;
        self.holds(succeeded.len() == usize::from(completed), "completed twice, or never");
        if let [succeeded] = &succeeded[..] {
            self.holds(succeeded.result == job.result, "another result");
            // Workers of the tests say under which lease they worked.
            let lease = job.result.as_ref().and_then(|result| result.get("lease"));
            let lease = lease.and_then(|lease| lease.as_str());
            let own = succeeded.lease_id.map(|lease| lease.to_string());
            self.holds(
                lease.is_none_or(|lease| Some(lease) == own.as_deref()),
                "the completion of a worker whose lease was over",
            );
        }
    }

    fn logs(&mut self, job: &job::Model, attempts: &[job_attempt::Model], logs: &[job_log::Model]) {
        let count = i64::try_from(logs.len()).unwrap();
        self.holds(job.log_lines == count, "lines that are not counted");
        let most = i32::try_from(attempts.len()).unwrap();
        for (at, line) in logs.iter().enumerate() {
            let number = i64::try_from(at + 1).unwrap();
            self.holds(line.line == Some(number), "lines have gaps");
            self.holds((1..=most).contains(&line.attempt_number), "a line of no attempt");
        }
    }
}

/// The attempts of a job, by their numbers.
pub async fn attempts(db: &DatabaseConnection, id: &str) -> Vec<job_attempt::Model> {
    let id: Uuid = id.parse().unwrap();
    let of_job = job_attempt::Column::JobId.eq(id);
    let mut attempts = job_attempt::Entity::find().filter(of_job).all(db).await.unwrap();
    attempts.sort_by_key(|attempt| attempt.attempt_number);
    attempts
}

/// What a job went through: its transitions in their order, and what did them.
pub async fn path(db: &DatabaseConnection, id: &str) -> Vec<String> {
    let id: Uuid = id.parse().unwrap();
    let of_job = job_transition::Column::JobId.eq(id);
    let mut path = job_transition::Entity::find().filter(of_job).all(db).await.unwrap();
    path.sort_by_key(|transition| transition.version_id);
    let step = |step: &job_transition::Model| format!("{} {}", step.to_status, step.triggered_by);
    path.iter().map(step).collect()
}

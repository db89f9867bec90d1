//! Numbers of jobs by type and status.

use std::collections::HashMap;

use sea_orm::{Condition, DatabaseTransaction, EntityTrait, QueryFilter, QuerySelect};

use crate::{
    db::row,
    entity::job::{Column, Entity, JobStatus},
    error::Result,
    jobs::convert::STATUSES,
    pb,
};

/// Maximum number of types in a response.
const MAX_TYPES: usize = 1_000;

/// Numbers of jobs by type and status.
#[derive(Debug)]
pub(crate) struct Counts(Vec<(String, JobStatus, i64)>);

impl Counts {
    /// Counts the jobs matching a condition.
    pub(crate) async fn count(tx: &DatabaseTransaction, condition: Condition) -> Result<Self> {
        let groups = Entity::find()
            .filter(condition)
            .select_only()
            .column(Column::JobType)
            .column(Column::Status)
            .expr_as(row::count(), "jobs")
            .group_by(Column::JobType)
            .group_by(Column::Status);
        Ok(Self(groups.into_tuple().all(tx).await?))
    }

    /// Total number of jobs.
    pub(crate) fn total(&self) -> i64 {
        self.0.iter().map(|(_, _, jobs)| jobs).sum()
    }

    /// Numbers of jobs by status. Statuses without jobs are left out.
    pub(crate) fn by_status(&self) -> Vec<pb::JobStatusCount> {
        by_status(self.0.iter().map(|(_, status, jobs)| (*status, *jobs)))
    }

    /// Numbers of jobs by type and status, for at most 1,000 types with the most jobs.
    pub(crate) fn by_type(&self) -> Vec<(&str, Vec<pb::JobStatusCount>)> {
        let mut types: HashMap<&str, Vec<(JobStatus, i64)>> = HashMap::new();
        for (job_type, status, jobs) in &self.0 {
            types.entry(job_type).or_default().push((*status, *jobs));
        }
        let total = |counts: &[(_, i64)]| counts.iter().map(|(_, jobs)| jobs).sum::<i64>();
        let mut types: Vec<_> = types.into_iter().collect();
        types.sort_unstable_by(|(a, counts_a), (b, counts_b)| {
            total(counts_b).cmp(&total(counts_a)).then_with(|| a.cmp(b))
        });
        types.truncate(MAX_TYPES);
        let statuses = |(job_type, counts): (_, Vec<_>)| (job_type, by_status(counts.into_iter()));
        types.into_iter().map(statuses).collect()
    }
}

fn by_status(counts: impl Iterator<Item = (JobStatus, i64)>) -> Vec<pb::JobStatusCount> {
    let counts: Vec<_> = counts.collect();
    let count = |status: JobStatus| {
        let matching = counts.iter().filter(|(other, _)| *other == status);
        let jobs = matching.map(|(_, jobs)| jobs).sum();
        let status = pb::JobStatus::from(status).into();
        pb::JobStatusCount { status, jobs }
    };
    let counts_by_status = STATUSES.into_iter().map(count);
    counts_by_status.filter(|count| count.jobs > 0).collect()
}

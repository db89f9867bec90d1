//! How many jobs there are, by type and status.

use std::collections::HashMap;

use sea_orm::{Condition, DatabaseTransaction, EntityTrait, QueryFilter, QuerySelect};

use crate::{
    db::row,
    entity::job::{Column, Entity, JobStatus},
    error::Result,
    jobs::convert::STATUSES,
    pb,
};

/// How many types are told.
const TOLD: usize = 1_000;

/// How many jobs there are, by type and status.
#[derive(Debug)]
pub(crate) struct Counts(Vec<(String, JobStatus, i64)>);

impl Counts {
    /// Counts the jobs of which this is true.
    pub(crate) async fn of(tx: &DatabaseTransaction, condition: Condition) -> Result<Self> {
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

    /// How many there are.
    pub(crate) fn total(&self) -> i64 {
        self.0.iter().map(|(_, _, jobs)| jobs).sum()
    }

    /// How many are in each status, those with none left out.
    pub(crate) fn by_status(&self) -> Vec<pb::JobStatusCount> {
        by_status(self.0.iter().map(|(_, status, jobs)| (*status, *jobs)))
    }

    /// The types with their counts by status, those with most jobs first; at most 1,000.
    pub(crate) fn by_type(&self) -> Vec<(&str, Vec<pb::JobStatusCount>)> {
        let mut types: HashMap<&str, Vec<(JobStatus, i64)>> = HashMap::new();
        for (job_type, status, jobs) in &self.0 {
            types.entry(job_type).or_default().push((*status, *jobs));
        }
        let jobs = |counts: &[(_, i64)]| counts.iter().map(|(_, jobs)| jobs).sum::<i64>();
        let mut types: Vec<_> = types.into_iter().collect();
        types.sort_unstable_by(|(a, of_a), (b, of_b)| {
            jobs(of_b).cmp(&jobs(of_a)).then_with(|| a.cmp(b))
        });
        types.truncate(TOLD);
        let told = |(job_type, counts): (_, Vec<_>)| (job_type, by_status(counts.into_iter()));
        types.into_iter().map(told).collect()
    }
}

fn by_status(counts: impl Iterator<Item = (JobStatus, i64)>) -> Vec<pb::JobStatusCount> {
    let counts: Vec<_> = counts.collect();
    let count = |status: JobStatus| {
        let jobs = counts.iter().filter(|(of, _)| *of == status);
        let jobs = jobs.map(|(_, jobs)| jobs).sum();
        let status = pb::JobStatus::from(status).into();
        pb::JobStatusCount { status, jobs }
    };
    let all = STATUSES.into_iter().map(count);
    all.filter(|count| count.jobs > 0).collect()
}

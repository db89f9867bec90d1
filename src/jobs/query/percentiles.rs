//! How long finished jobs waited and ran, by type: percentiles by the nearest rank, so that each is
//! what a job took, and the same on both databases.

use chrono::{DateTime, Utc};
use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, DatabaseTransaction, EntityTrait, FromQueryResult,
    QueryFilter, QuerySelect, QueryTrait,
    sea_query::{Expr, Query, SelectStatement},
};

use super::filter::{is_not, run_micros};
use crate::{
    db::row,
    entity::job::{Column, Entity, JobStatus},
    error::Result,
};

/// What finished jobs of a type took. Times are in microseconds, and `None` where no job has one.
#[derive(Debug, FromQueryResult)]
pub(crate) struct Took {
    /// The queue; empty where queues are not told apart.
    pub queue_name: String,
    pub job_type: String,
    /// How many were finished.
    pub finished: i64,
    /// How many of them completed, and have run.
    pub completed: i64,
    /// How long these ran on average.
    pub completed_mean: Option<f64>,
    /// How long jobs could have run and did not before their last attempt.
    pub wait_p50: Option<i64>,
    pub wait_p95: Option<i64>,
    /// How long their last attempt took.
    pub run_p50: Option<i64>,
    pub run_p95: Option<i64>,
}

/// What jobs took of which this is true and that were finished since `start`, by type, and by queue if asked for.
pub(crate) async fn took(
    tx: &DatabaseTransaction,
    condition: Condition,
    (start, now): (DateTime<Utc>, DateTime<Utc>),
    by_queue: bool,
) -> Result<Vec<Took>> {
    let backend = tx.get_database_backend();
    let micros = |time| row::micros(time, backend);
    let (started_at, scheduled_at) = (micros("jobs.started_at"), micros("jobs.scheduled_at"));
    let queue_name = if by_queue { "jobs.queue_name" } else { "''" };
    // Who did not come to its next attempt was scheduled for that after it had begun the last one.
    let waited = format!(
        "CASE WHEN jobs.started_at >= jobs.scheduled_at THEN {started_at} - {scheduled_at} END"
    );
    let jobs = Entity::find()
        .filter(condition)
        .filter(Column::CompletedAt.gte(start))
        .filter(is_not(&[JobStatus::Queued, JobStatus::Running]))
        .select_only()
        .expr_as(Expr::cust(queue_name), "queue_name")
        .column(Column::JobType)
        .expr_as(Expr::cust("jobs.status = 'completed'"), "completed")
        .expr_as(Expr::cust(waited), "waited")
        .expr_as(Expr::cust(run_micros(backend, now)), "ran")
        .into_query();
    let took = backend.build(&grouped(ranked(jobs)));
    Ok(Took::find_by_statement(took).all(tx).await?)
}

/// Numbers the jobs of each group by how long they waited and by how long they ran.
fn ranked(jobs: SelectStatement) -> SelectStatement {
    let group = "(PARTITION BY queue_name, job_type";
    let rank = |of| {
        Expr::cust(format!(
            "row_number() OVER {group} ORDER BY {of} NULLS LAST)"
        ))
    };
    let count = |of| Expr::cust(format!("count({of}) OVER {group})"));
    Query::select()
        .columns(["queue_name", "job_type", "completed", "waited", "ran"])
        .expr_as(rank("waited"), "wait_rank")
        .expr_as(count("waited"), "waits")
        .expr_as(rank("ran"), "run_rank")
        .expr_as(count("ran"), "runs")
        .from_subquery(jobs, "jobs")
        .take()
}

fn grouped(ranked: SelectStatement) -> SelectStatement {
    // The first one that so many of 100 are no longer than.
    let percentile = |of, rank, count, percent| {
        Expr::cust(format!(
            "max(CASE WHEN {rank} = ({count} * {percent} + 99) / 100 THEN {of} END)"
        ))
    };
    let wait = |percent| percentile("waited", "wait_rank", "waits", percent);
    let run = |percent| percentile("ran", "run_rank", "runs", percent);
    let completed = "CASE WHEN completed THEN ran END";
    let mean = format!("CAST(avg({completed}) AS double precision)");
    Query::select()
        .columns(["queue_name", "job_type"])
        .expr_as(row::count(), "finished")
        .expr_as(Expr::cust(format!("count({completed})")), "completed")
        .expr_as(Expr::cust(mean), "completed_mean")
        .expr_as(wait(50), "wait_p50")
        .expr_as(wait(95), "wait_p95")
        .expr_as(run(50), "run_p50")
        .expr_as(run(95), "run_p95")
        .from_subquery(ranked, "ranked")
        .group_by_columns(["queue_name", "job_type"])
        .take()
}

//! Percentiles of the waiting and running times of finished jobs. The nearest-rank method returns the time of an
//! actual job, and the same value on both databases.

use chrono::{DateTime, Utc};
use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, DatabaseTransaction, EntityTrait, FromQueryResult, QueryFilter,
    QuerySelect, QueryTrait,
    sea_query::{Expr, Query, SelectStatement},
};

use super::filter::{not_in_status, run_micros};
use crate::{
    db::row,
    entity::job::{Column, Entity, JobStatus},
    error::Result,
};

/// Times of the finished jobs of a type, in microseconds. `None` if no job has a value.
#[derive(Debug, FromQueryResult)]
pub(crate) struct DurationPercentiles {
    /// Queue. Empty if queues are not distinguished.
    pub queue_name: String,
    pub job_type: String,
    /// Number of finished jobs.
    pub finished: i64,
    /// Number of completed jobs with a running time.
    pub completed: i64,
    /// Mean running time of the completed jobs.
    pub completed_mean: Option<f64>,
    /// Waiting time before the last attempt, from the scheduled time on.
    pub wait_p50: Option<i64>,
    pub wait_p95: Option<i64>,
    /// Duration of the last attempt.
    pub run_p50: Option<i64>,
    pub run_p95: Option<i64>,
}

/// Reads the times of the jobs matching a condition and finished since `start`, by type, and by queue if `by_queue`.
pub(crate) async fn duration_percentiles(
    tx: &DatabaseTransaction,
    condition: Condition,
    (start, now): (DateTime<Utc>, DateTime<Utc>),
    by_queue: bool,
) -> Result<Vec<DurationPercentiles>> {
    let backend = tx.get_database_backend();
    let micros = |time| row::micros(time, backend);
    let (started_at, scheduled_at) = (micros("jobs.started_at"), micros("jobs.scheduled_at"));
    let queue_name = if by_queue { "jobs.queue_name" } else { "''" };
    // A job without its next attempt is scheduled later than the start of its last attempt.
    let waited = format!("CASE WHEN jobs.started_at >= jobs.scheduled_at THEN {started_at} - {scheduled_at} END");
    let jobs = Entity::find()
        .filter(condition)
        .filter(Column::CompletedAt.gte(start))
        .filter(not_in_status(&[JobStatus::Queued, JobStatus::Running]))
        .select_only()
        .expr_as(Expr::cust(queue_name), "queue_name")
        .column(Column::JobType)
        .expr_as(Expr::cust("jobs.status = 'completed'"), "completed")
        .expr_as(Expr::cust(waited), "waited")
        .expr_as(Expr::cust(run_micros(backend, now)), "ran")
        .into_query();
    let statement = backend.build(&grouped(ranked(jobs)));
    Ok(DurationPercentiles::find_by_statement(statement).all(tx).await?)
}

/// Ranks the jobs of each group by waiting time and by running time.
fn ranked(jobs: SelectStatement) -> SelectStatement {
    let group = "(PARTITION BY queue_name, job_type";
    let rank = |column| Expr::cust(format!("row_number() OVER {group} ORDER BY {column} NULLS LAST)"));
    let count = |column| Expr::cust(format!("count({column}) OVER {group})"));
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
    // Nearest rank: the smallest value not exceeded by the given percentage of the jobs.
    let percentile = |column, rank, count, percent| {
        Expr::cust(format!("max(CASE WHEN {rank} = ({count} * {percent} + 99) / 100 THEN {column} END)"))
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

//! Lists of jobs: in any order, and by what they hold.

use chrono::{DateTime, Utc};
use sea_orm::{
    ColumnTrait, Condition, DbBackend, EntityTrait, IdenStatic, Iterable, Order, QueryFilter,
    QuerySelect, Select,
    sea_query::{Expr, SimpleExpr},
};
use uuid::Uuid;

use super::counts::Counts;
use crate::{
    db::{Db, row},
    entity::{
        self,
        job::{Column, Entity, JobStatus, Model},
    },
    error::{Error, Result},
    jobs::convert::STATUSES,
    pb::{self, JobOrder},
    rpc::{
        check,
        page::{
            Page, collate_bytewise,
            sorted::{Sort, SortKey, SortValue, ValueKind},
        },
    },
};

/// What lists leave out, for it may be large.
const HEAVY: [Column; 3] = [Column::Payload, Column::Result, Column::ErrorTraceback];

/// How many digits a UUID has.
const DIGITS: usize = 32;

/// The page of jobs that is asked for.
pub(crate) async fn list(db: &Db, request: pb::ListJobsRequest) -> Result<pb::ListJobsResponse> {
    let asked = pb::ListJobsRequest {
        page_size: 0,
        page_token: String::new(),
        ..request.clone()
    };
    let page = Page::parse(request.page_size, &request.page_token, "jobs", &asked)?;
    let order = order(request.order)?;
    let filter = request.filter.unwrap_or_default();
    let condition = filter.condition(db.backend(), entity::now())?;
    let has_index = filter.has_index();
    let (jobs, sort) = (light().filter(condition), sort(order, db.backend()));
    let key = |job: &Model| key(order, job);
    let scan = db.scan_if(sort.by.is_some() || !has_index).await?;
    let (jobs, next_page_token) = if sort.by.is_none() {
        page.sorted(scan.reader(), jobs, &sort, key).await?
    } else {
        let tx = scan.snapshot().await?;
        let page = page.sorted(&tx, jobs, &sort, key).await?;
        tx.commit().await?;
        page
    };
    Ok(pb::ListJobsResponse {
        jobs,
        next_page_token,
    })
}

/// The page of jobs that is asked for, and how many there are on all pages.
pub(crate) async fn search(
    db: &Db,
    request: pb::SearchJobsRequest,
) -> Result<pb::SearchJobsResponse> {
    let asked = pb::SearchJobsRequest {
        page_size: 0,
        page_token: String::new(),
        ..request.clone()
    };
    let page = Page::parse(request.page_size, &request.page_token, "found_jobs", &asked)?;
    let order = order(request.order)?;
    let query = check::text("query", &request.query, 0..=200)?;
    let filter = request.filter.unwrap_or_default();
    let mut condition = filter.condition(db.backend(), entity::now())?;
    if !query.is_empty() {
        condition = condition.add(holds(&query, db.backend()));
    }
    let (jobs, sort) = (light().filter(condition.clone()), sort(order, db.backend()));
    let scan = db.scan().await?;
    let tx = scan.snapshot().await?;
    let counts = Counts::of(&tx, condition).await?;
    let (jobs, next_page_token) = page.sorted(&tx, jobs, &sort, |job| key(order, job)).await?;
    tx.commit().await?;
    let by_type = counts.by_type().into_iter();
    Ok(pb::SearchJobsResponse {
        jobs,
        next_page_token,
        total: counts.total(),
        by_status: counts.by_status(),
        by_type: by_type
            .map(|(job_type, counts)| pb::JobTypeCount {
                job_type: job_type.to_string(),
                jobs: counts.iter().map(|count| count.jobs).sum(),
            })
            .collect(),
    })
}

/// All jobs without what lists leave out, which is not even read.
pub(crate) fn light() -> Select<Entity> {
    let columns = Column::iter().filter(|column| !is_heavy(*column));
    let light = Entity::find().select_only().columns(columns);
    HEAVY.into_iter().fold(light, |light, column| {
        light.expr_as(Expr::cust("NULL"), column.as_str())
    })
}

fn is_heavy(column: Column) -> bool {
    HEAVY.iter().any(|heavy| heavy.as_str() == column.as_str())
}

fn order(number: i32) -> Result<JobOrder> {
    JobOrder::try_from(number)
        .map_err(|_| Error::invalid("order", "is not a value that this server knows"))
}

fn sort(order: JobOrder, backend: DbBackend) -> Sort<Column> {
    use JobOrder as Asked;
    let time = |column: Column| (column.into_expr(), ValueKind::Time, true);
    let number = |value: SimpleExpr| (value, ValueKind::Number, false);
    let by = match order {
        Asked::Unspecified | Asked::CreatedAt | Asked::CreatedAtDesc => None,
        Asked::StartedAt | Asked::StartedAtDesc => Some(time(Column::StartedAt)),
        Asked::CompletedAt | Asked::CompletedAtDesc => Some(time(Column::CompletedAt)),
        Asked::Progress | Asked::ProgressDesc => Some(number(Column::ProgressPercent.into_expr())),
        Asked::JobType | Asked::JobTypeDesc => {
            let job_type = collate_bytewise(Column::JobType.into_expr(), backend);
            Some((job_type, ValueKind::Text, false))
        }
        Asked::Status | Asked::StatusDesc => Some(number(Expr::cust(ranks()))),
        Asked::Priority => Some(number(Column::Priority.into_expr())),
    };
    let is_descending = matches!(
        order,
        Asked::StartedAtDesc
            | Asked::CompletedAtDesc
            | Asked::ProgressDesc
            | Asked::JobTypeDesc
            | Asked::StatusDesc
    );
    let by = by.map(|(value, kind, may_be_absent)| SortKey {
        value,
        kind,
        may_be_absent,
        order: if is_descending {
            Order::Desc
        } else {
            Order::Asc
        },
    });
    let oldest_first = matches!(order, Asked::CreatedAt | Asked::Priority);
    Sort {
        by,
        then_by: (Column::CreatedAt, Column::Id),
        then_order: if oldest_first {
            Order::Asc
        } else {
            Order::Desc
        },
    }
}

/// The place of a status among all.
fn rank(status: JobStatus) -> i64 {
    STATUSES
        .into_iter()
        .zip(0..)
        .find_map(|(of, rank)| (of == status).then_some(rank))
        .unwrap_or_default()
}

/// The same for the database.
fn ranks() -> String {
    let ranks = STATUSES.map(|status| format!("WHEN '{}' THEN {}", status.as_str(), rank(status)));
    format!("CASE jobs.status {} END", ranks.join(" "))
}

/// What a job is sorted by.
fn key(order: JobOrder, job: &Model) -> (Option<SortValue>, DateTime<Utc>, Uuid) {
    let key = match order {
        JobOrder::Unspecified | JobOrder::CreatedAt | JobOrder::CreatedAtDesc => None,
        JobOrder::StartedAt | JobOrder::StartedAtDesc => job.started_at.map(SortValue::time),
        JobOrder::CompletedAt | JobOrder::CompletedAtDesc => job.completed_at.map(SortValue::time),
        JobOrder::Progress | JobOrder::ProgressDesc => {
            Some(SortValue::Number(job.progress_percent.into()))
        }
        JobOrder::JobType | JobOrder::JobTypeDesc => Some(SortValue::Text(job.job_type.clone())),
        JobOrder::Status | JobOrder::StatusDesc => Some(SortValue::Number(rank(job.status))),
        JobOrder::Priority => Some(SortValue::Number(job.priority.into())),
    };
    (key, job.created_at, job.id)
}

/// Whether a job holds this text, or its id begins with it.
fn holds(text: &str, backend: DbBackend) -> Condition {
    let columns = [
        Column::JobType,
        Column::QueueName,
        Column::CurrentStep,
        Column::ErrorMessage,
        Column::ErrorCode,
        Column::WorkerId,
        Column::ConcurrencyKey,
        Column::UniqueKey,
    ];
    let contains = |column: Column| row::contains(column.into_expr(), backend, text);
    let any = columns
        .into_iter()
        .fold(Condition::any(), |any, column| any.add(contains(column)));
    any.add_option(ids_from(text).map(|(first, last)| Column::Id.between(first, last)))
}

/// The first and the last id that begin with this text, if any does.
fn ids_from(text: &str) -> Option<(Uuid, Uuid)> {
    let digits = text.replace('-', "");
    // Only with the hyphens where they belong.
    let first = Uuid::try_parse(&format!("{digits:0<DIGITS$}")).ok()?;
    let last = Uuid::try_parse(&format!("{digits:f<DIGITS$}")).ok()?;
    let begins = first.to_string().starts_with(&text.to_ascii_lowercase());
    begins.then_some((first, last))
}

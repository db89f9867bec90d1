//! Lists and searches of jobs.

use chrono::{DateTime, Utc};
use sea_orm::{
    ColumnTrait, Condition, DbBackend, EntityTrait, IdenStatic, Iterable, Order, QueryFilter, QuerySelect, Select,
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

/// Columns left out of lists, because their values may be large.
const HEAVY_COLUMNS: [Column; 3] = [Column::Payload, Column::Result, Column::ErrorTraceback];

/// Number of hexadecimal digits of a UUID.
const UUID_DIGITS: usize = 32;

/// Reads a page of jobs.
pub(crate) async fn list_jobs(db: &Db, request: pb::ListJobsRequest) -> Result<pb::ListJobsResponse> {
    let filters = pb::ListJobsRequest { page_size: 0, page_token: String::new(), ..request.clone() };
    let page = Page::parse(request.page_size, &request.page_token, "jobs", &filters)?;
    let order = parse_order(request.order)?;
    let filter = request.filter.unwrap_or_default();
    let condition = filter.condition(db.backend(), entity::now())?;
    let has_index = filter.has_index();
    let (jobs, sort) = (light_jobs().filter(condition), sort_order(order, db.backend()));
    let key = |job: &Model| sort_key(order, job);
    let scan = db.scan_if(sort.by.is_some() || !has_index).await?;
    let (jobs, next_page_token) = if sort.by.is_none() {
        page.sorted(scan.reader(), jobs, &sort, key).await?
    } else {
        let tx = scan.snapshot().await?;
        let page = page.sorted(&tx, jobs, &sort, key).await?;
        tx.commit().await?;
        page
    };
    Ok(pb::ListJobsResponse { jobs, next_page_token })
}

/// Reads a page of the jobs matching a query, with counts of all matching jobs.
pub(crate) async fn search_jobs(db: &Db, request: pb::SearchJobsRequest) -> Result<pb::SearchJobsResponse> {
    let filters = pb::SearchJobsRequest { page_size: 0, page_token: String::new(), ..request.clone() };
    let page = Page::parse(request.page_size, &request.page_token, "found_jobs", &filters)?;
    let order = parse_order(request.order)?;
    let query = check::text("query", &request.query, 0..=200)?;
    let filter = request.filter.unwrap_or_default();
    let mut condition = filter.condition(db.backend(), entity::now())?;
    if !query.is_empty() {
        condition = condition.add(contains_text(&query, db.backend()));
    }
    let (jobs, sort) = (light_jobs().filter(condition.clone()), sort_order(order, db.backend()));
    let scan = db.scan().await?;
    let tx = scan.snapshot().await?;
    let counts = Counts::count(&tx, condition).await?;
    let (jobs, next_page_token) = page.sorted(&tx, jobs, &sort, |job| sort_key(order, job)).await?;
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

/// Selects jobs without the heavy columns, which are not read.
pub(crate) fn light_jobs() -> Select<Entity> {
    let columns = Column::iter().filter(|column| !is_heavy(*column));
    let select = Entity::find().select_only().columns(columns);
    HEAVY_COLUMNS.into_iter().fold(select, |select, column| select.expr_as(Expr::cust("NULL"), column.as_str()))
}

fn is_heavy(column: Column) -> bool {
    HEAVY_COLUMNS.iter().any(|heavy| heavy.as_str() == column.as_str())
}

fn parse_order(number: i32) -> Result<JobOrder> {
    JobOrder::try_from(number).map_err(|_| Error::invalid("order", "is not a value that this server knows"))
}

fn sort_order(order: JobOrder, backend: DbBackend) -> Sort<Column> {
    let time = |column: Column| (column.into_expr(), ValueKind::Time, true);
    let number = |value: SimpleExpr| (value, ValueKind::Number, false);
    let by = match order {
        JobOrder::Unspecified | JobOrder::CreatedAt | JobOrder::CreatedAtDesc => None,
        JobOrder::StartedAt | JobOrder::StartedAtDesc => Some(time(Column::StartedAt)),
        JobOrder::CompletedAt | JobOrder::CompletedAtDesc => Some(time(Column::CompletedAt)),
        JobOrder::Progress | JobOrder::ProgressDesc => Some(number(Column::ProgressPercent.into_expr())),
        JobOrder::JobType | JobOrder::JobTypeDesc => {
            let job_type = collate_bytewise(Column::JobType.into_expr(), backend);
            Some((job_type, ValueKind::Text, false))
        }
        JobOrder::Status | JobOrder::StatusDesc => Some(number(Expr::cust(status_rank_sql()))),
        JobOrder::Priority => Some(number(Column::Priority.into_expr())),
    };
    let is_descending = matches!(
        order,
        JobOrder::StartedAtDesc
            | JobOrder::CompletedAtDesc
            | JobOrder::ProgressDesc
            | JobOrder::JobTypeDesc
            | JobOrder::StatusDesc
    );
    let by = by.map(|(value, kind, may_be_absent)| SortKey {
        value,
        kind,
        may_be_absent,
        order: if is_descending { Order::Desc } else { Order::Asc },
    });
    let oldest_first = matches!(order, JobOrder::CreatedAt | JobOrder::Priority);
    Sort {
        by,
        then_by: (Column::CreatedAt, Column::Id),
        then_order: if oldest_first { Order::Asc } else { Order::Desc },
    }
}

/// Rank of a status in the sort order.
fn status_rank(status: JobStatus) -> i64 {
    STATUSES.into_iter().zip(0..).find_map(|(other, rank)| (other == status).then_some(rank)).unwrap_or_default()
}

/// SQL expression for the rank of a status.
fn status_rank_sql() -> String {
    let cases = STATUSES.map(|status| format!("WHEN '{}' THEN {}", status.as_str(), status_rank(status)));
    format!("CASE jobs.status {} END", cases.join(" "))
}

/// Sort key of a job.
fn sort_key(order: JobOrder, job: &Model) -> (Option<SortValue>, DateTime<Utc>, Uuid) {
    let key = match order {
        JobOrder::Unspecified | JobOrder::CreatedAt | JobOrder::CreatedAtDesc => None,
        JobOrder::StartedAt | JobOrder::StartedAtDesc => job.started_at.map(SortValue::time),
        JobOrder::CompletedAt | JobOrder::CompletedAtDesc => job.completed_at.map(SortValue::time),
        JobOrder::Progress | JobOrder::ProgressDesc => Some(SortValue::Number(job.progress_percent.into())),
        JobOrder::JobType | JobOrder::JobTypeDesc => Some(SortValue::Text(job.job_type.clone())),
        JobOrder::Status | JobOrder::StatusDesc => Some(SortValue::Number(status_rank(job.status))),
        JobOrder::Priority => Some(SortValue::Number(job.priority.into())),
    };
    (key, job.created_at, job.id)
}

/// Condition matching jobs with a text in a column, or with an id beginning with the text.
fn contains_text(text: &str, backend: DbBackend) -> Condition {
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
    let is_match = columns.into_iter().fold(Condition::any(), |condition, column| condition.add(contains(column)));
    is_match.add_option(id_range(text).map(|(first, last)| Column::Id.between(first, last)))
}

/// First and last id beginning with a text. `None` if the text is no prefix of an id.
fn id_range(text: &str) -> Option<(Uuid, Uuid)> {
    let digits = text.replace('-', "");
    // Hyphens must be at their positions in the id.
    let first = Uuid::try_parse(&format!("{digits:0<UUID_DIGITS$}")).ok()?;
    let last = Uuid::try_parse(&format!("{digits:f<UUID_DIGITS$}")).ok()?;
    let is_prefix = first.to_string().starts_with(&text.to_ascii_lowercase());
    is_prefix.then_some((first, last))
}

//! One job, and what is known of it: its attempts, transitions and logs.

use futures_util::TryStreamExt;
use prost::Message;
use sea_orm::{
    ColumnTrait, Condition, EntityTrait, Order, QueryFilter, QueryOrder, QuerySelect, Select,
    sea_query::Expr,
};
use uuid::Uuid;

use super::timing::timing;
use crate::{
    db::{Db, row},
    entity::{
        self, job, job_attempt,
        job_log::{self, JobLogLevel},
        job_transition,
    },
    error::Result,
    pb,
    rpc::{
        check,
        enums::FromProto,
        page::{
            Page,
            sorted::{Sort, SortKey, SortValue, ValueKind},
        },
        time,
    },
};

/// How many attempts come with a job.
const ATTEMPTS: u64 = 100;

/// How many bytes a job has with its attempts, unless it has more by itself. Most clients take messages of 4 MiB.
const LARGEST: usize = 7 << 19;

/// A job with its last attempts and its timing, all of one moment.
pub(crate) async fn get(db: &Db, request: pb::GetJobRequest) -> Result<pb::Job> {
    let id = check::uuid("id", &request.id)?;
    let tx = db.snapshot().await?;
    let job = job::Entity::find_by_id(id).one(&tx).await?;
    let job = row::require(job, "job", id)?;
    let mut newest_first = job_attempt::Entity::find()
        .filter(job_attempt::Column::JobId.eq(id))
        .order_by_desc(job_attempt::Column::AttemptNumber)
        .limit(ATTEMPTS)
        .stream(&tx)
        .await?;
    let mut next = newest_first.try_next().await?;
    let timing = timing(&job, next.as_ref(), entity::now());
    let mut job = pb::Job::from(job);
    job.timing = Some(timing);
    let mut bytes = job.encoded_len();
    while let Some(attempt) = next {
        let attempt = pb::JobAttempt::from(attempt);
        bytes += attempt.encoded_len();
        if bytes > LARGEST {
            break;
        }
        job.attempts.push(attempt);
        next = newest_first.try_next().await?;
    }
    drop(newest_first);
    tx.commit().await?;
    job.attempts.reverse();
    Ok(job)
}

/// The page of a job's attempts that is asked for.
pub(crate) async fn attempts(
    db: &Db,
    request: pb::ListJobAttemptsRequest,
) -> Result<pb::ListJobAttemptsResponse> {
    use job_attempt::{Column, Entity, Model};
    let asked = pb::ListJobAttemptsRequest {
        job_id: request.job_id.clone(),
        ..Default::default()
    };
    let (size, token) = (request.page_size, &request.page_token);
    let page = Page::parse(size, token, "job_attempts", &asked)?;
    let job_id = known(db, &request.job_id).await?;
    let select = Entity::find().filter(Column::JobId.eq(job_id));
    let key = |row: &Model| row.attempt_number.into();
    let (attempts, next_page_token) = page
        .lowest_first(db.reader(), select, Column::AttemptNumber, key)
        .await?;
    Ok(pb::ListJobAttemptsResponse {
        attempts,
        next_page_token,
    })
}

/// The page of a job's transitions that is asked for.
pub(crate) async fn transitions(
    db: &Db,
    request: pb::ListJobTransitionsRequest,
) -> Result<pb::ListJobTransitionsResponse> {
    use job_transition::{Column, Entity, Model};
    let asked = pb::ListJobTransitionsRequest {
        job_id: request.job_id.clone(),
        ..Default::default()
    };
    let (size, token) = (request.page_size, &request.page_token);
    let page = Page::parse(size, token, "job_transitions", &asked)?;
    let job_id = known(db, &request.job_id).await?;
    let select = Entity::find().filter(Column::JobId.eq(job_id));
    let sort = numbered(Column::VersionId, (Column::TransitionedAt, Column::Id));
    let key = |row: &Model| {
        let number = row
            .version_id
            .map(|number| SortValue::Number(number.into()));
        (number, row.transitioned_at, row.id)
    };
    let tx = db.snapshot().await?;
    let (transitions, next_page_token) = page.sorted(&tx, select, &sort, key).await?;
    tx.commit().await?;
    Ok(pb::ListJobTransitionsResponse {
        transitions,
        next_page_token,
    })
}

/// The page of a job's log that is asked for.
pub(crate) async fn logs(
    db: &Db,
    request: pb::ListJobLogsRequest,
) -> Result<pb::ListJobLogsResponse> {
    use job_log::{Column, Model};
    let asked = pb::ListJobLogsRequest {
        job_id: request.job_id.clone(),
        filter: request.filter.clone(),
        ..Default::default()
    };
    let (size, token) = (request.page_size, &request.page_token);
    let page = Page::parse(size, token, "job_logs", &asked)?;
    let filter = request.filter.unwrap_or_default();
    let condition = filter.condition(db)?;
    let job_id = known(db, &request.job_id).await?;
    let select = lines(job_id).filter(condition);
    let sort = numbered(Column::Line, (Column::Timestamp, Column::Id));
    let key = |row: &Model| (row.line.map(SortValue::Number), row.timestamp, row.id);
    let tx = db.snapshot().await?;
    let (logs, next_page_token) = page.sorted(&tx, select, &sort, key).await?;
    tx.commit().await?;
    Ok(pb::ListJobLogsResponse {
        logs,
        next_page_token,
    })
}

/// The lines of a job's log.
pub(crate) fn lines(job_id: Uuid) -> Select<job_log::Entity> {
    job_log::Entity::find().filter(job_log::Column::JobId.eq(job_id))
}

/// The order of rows that are numbered. Those that another writer made have no number and come last, by
/// their time.
fn numbered<C: ColumnTrait>(number: C, then_by: (C, C)) -> Sort<C> {
    let by = SortKey {
        value: number.into_expr(),
        kind: ValueKind::Number,
        may_be_absent: true,
        order: Order::Asc,
    };
    Sort {
        by: Some(by),
        then_by,
        then_order: Order::Asc,
    }
}

/// The id of a job that there is.
async fn known(db: &Db, job_id: &str) -> Result<Uuid> {
    let id = check::uuid("job_id", job_id)?;
    let job = job::Entity::find_by_id(id)
        .select_only()
        .column(job::Column::Id)
        .into_tuple::<Uuid>()
        .one(db.reader())
        .await?;
    row::require(job, "job", id)
}

impl pb::JobLogFilter {
    /// What must be true of a line.
    fn condition(&self, db: &Db) -> Result<Condition> {
        use job_log::Column;
        let min_level = JobLogLevel::from_proto("filter.min_level", self.min_level)?;
        let (start, end) = time::bounds("filter.timestamp", self.timestamp)?;
        let attempt = self.attempt_number.map(|attempt| {
            let range = 1..=i32::MAX;
            check::within("filter.attempt_number", attempt, range)
        });
        let text = check::text("filter.text", &self.text, 0..=200)?;
        let mut condition = Condition::all()
            .add_option(min_level.map(at_least))
            .add_option(start.map(|start| Column::Timestamp.gte(start)))
            .add_option(end.map(|end| Column::Timestamp.lt(end)))
            .add_option(
                attempt
                    .transpose()?
                    .map(|attempt| Column::AttemptNumber.eq(attempt)),
            );
        if !text.is_empty() {
            let message = Expr::col(Column::Message);
            condition = condition.add(row::contains(message, db.backend(), &text));
        }
        Ok(condition)
    }
}

/// Whether a line is at least this serious.
pub(crate) fn at_least(level: JobLogLevel) -> sea_orm::sea_query::SimpleExpr {
    job_log::Column::Level.is_in(levels_from(level).iter().copied())
}

/// This level and the more serious ones.
pub(crate) fn levels_from(level: JobLogLevel) -> &'static [JobLogLevel] {
    use JobLogLevel::{Debug, Error, Info, Warning};
    match level {
        Debug => &[Debug, Info, Warning, Error],
        Info => &[Info, Warning, Error],
        Warning => &[Warning, Error],
        Error => &[Error],
    }
}

//! Queries of one job: the job, its attempts, transitions and log.

use futures_util::TryStreamExt;
use prost::Message;
use sea_orm::{
    ColumnTrait, Condition, EntityTrait, Order, QueryFilter, QueryOrder, QuerySelect, Select, sea_query::Expr,
};
use uuid::Uuid;

use super::timing::job_timing;
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

/// Maximum number of attempts returned with a job.
const MAX_ATTEMPTS: u64 = 100;

/// Maximum size of a job with its attempts, in bytes, unless the job alone has more. Most clients accept messages of
/// 4 MiB.
const MAX_JOB_BYTES: usize = 7 << 19;

/// Reads a job with its last attempts and timing, in one snapshot.
pub(crate) async fn get_job(db: &Db, request: pb::GetJobRequest) -> Result<pb::Job> {
    let id = check::uuid("id", &request.id)?;
    let tx = db.snapshot().await?;
    let row = job::Entity::find_by_id(id).one(&tx).await?;
    let model = row::require(row, "job", id)?;
    let mut newest_first = job_attempt::Entity::find()
        .filter(job_attempt::Column::JobId.eq(id))
        .order_by_desc(job_attempt::Column::AttemptNumber)
        .limit(MAX_ATTEMPTS)
        .stream(&tx)
        .await?;
    let mut next = newest_first.try_next().await?;
    let timing = job_timing(&model, next.as_ref(), entity::now());
    let mut job = pb::Job::from(model);
    job.timing = Some(timing);
    let mut bytes = job.encoded_len();
    while let Some(attempt) = next {
        let attempt = pb::JobAttempt::from(attempt);
        bytes += attempt.encoded_len();
        if bytes > MAX_JOB_BYTES {
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

/// Reads a page of the attempts of a job.
pub(crate) async fn list_attempts(db: &Db, request: pb::ListJobAttemptsRequest) -> Result<pb::ListJobAttemptsResponse> {
    use job_attempt::{Column, Entity, Model};
    let filters = pb::ListJobAttemptsRequest { job_id: request.job_id.clone(), ..Default::default() };
    let (size, token) = (request.page_size, &request.page_token);
    let page = Page::parse(size, token, "job_attempts", &filters)?;
    let job_id = existing_job_id(db, &request.job_id).await?;
    let select = Entity::find().filter(Column::JobId.eq(job_id));
    let key = |row: &Model| row.attempt_number.into();
    let (attempts, next_page_token) = page.lowest_first(db.reader(), select, Column::AttemptNumber, key).await?;
    Ok(pb::ListJobAttemptsResponse { attempts, next_page_token })
}

/// Reads a page of the transitions of a job.
pub(crate) async fn list_transitions(
    db: &Db,
    request: pb::ListJobTransitionsRequest,
) -> Result<pb::ListJobTransitionsResponse> {
    use job_transition::{Column, Entity, Model};
    let filters = pb::ListJobTransitionsRequest { job_id: request.job_id.clone(), ..Default::default() };
    let (size, token) = (request.page_size, &request.page_token);
    let page = Page::parse(size, token, "job_transitions", &filters)?;
    let job_id = existing_job_id(db, &request.job_id).await?;
    let select = Entity::find().filter(Column::JobId.eq(job_id));
    let sort = number_order(Column::VersionId, (Column::TransitionedAt, Column::Id));
    let key = |row: &Model| {
        let number = row.version_id.map(|number| SortValue::Number(number.into()));
        (number, row.transitioned_at, row.id)
    };
    let tx = db.snapshot().await?;
    let (transitions, next_page_token) = page.sorted(&tx, select, &sort, key).await?;
    tx.commit().await?;
    Ok(pb::ListJobTransitionsResponse { transitions, next_page_token })
}

/// Reads a page of the log of a job.
pub(crate) async fn list_logs(db: &Db, request: pb::ListJobLogsRequest) -> Result<pb::ListJobLogsResponse> {
    use job_log::{Column, Model};
    let filters =
        pb::ListJobLogsRequest { job_id: request.job_id.clone(), filter: request.filter.clone(), ..Default::default() };
    let (size, token) = (request.page_size, &request.page_token);
    let page = Page::parse(size, token, "job_logs", &filters)?;
    let filter = request.filter.unwrap_or_default();
    let condition = filter.condition(db)?;
    let job_id = existing_job_id(db, &request.job_id).await?;
    let select = select_lines(job_id).filter(condition);
    let sort = number_order(Column::Line, (Column::Timestamp, Column::Id));
    let key = |row: &Model| (row.line.map(SortValue::Number), row.timestamp, row.id);
    let tx = db.snapshot().await?;
    let (logs, next_page_token) = page.sorted(&tx, select, &sort, key).await?;
    tx.commit().await?;
    Ok(pb::ListJobLogsResponse { logs, next_page_token })
}

/// Selects the log lines of a job.
pub(crate) fn select_lines(job_id: Uuid) -> Select<job_log::Entity> {
    job_log::Entity::find().filter(job_log::Column::JobId.eq(job_id))
}

/// Order by number. Rows of other writers have no number and come last, ordered by time.
fn number_order<C: ColumnTrait>(number: C, then_by: (C, C)) -> Sort<C> {
    let by = SortKey { value: number.into_expr(), kind: ValueKind::Number, may_be_absent: true, order: Order::Asc };
    Sort { by: Some(by), then_by, then_order: Order::Asc }
}

/// Parses a job id and checks the existence of the job.
async fn existing_job_id(db: &Db, job_id: &str) -> Result<Uuid> {
    let id = check::uuid("job_id", job_id)?;
    let job =
        job::Entity::find_by_id(id).select_only().column(job::Column::Id).into_tuple::<Uuid>().one(db.reader()).await?;
    row::require(job, "job", id)
}

impl pb::JobLogFilter {
    /// Condition matching the filter.
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
            .add_option(min_level.map(at_least_level))
            .add_option(start.map(|start| Column::Timestamp.gte(start)))
            .add_option(end.map(|end| Column::Timestamp.lt(end)))
            .add_option(attempt.transpose()?.map(|attempt| Column::AttemptNumber.eq(attempt)));
        if !text.is_empty() {
            let message = Expr::col(Column::Message);
            condition = condition.add(row::contains(message, db.backend(), &text));
        }
        Ok(condition)
    }
}

/// Condition on a minimum level.
pub(crate) fn at_least_level(level: JobLogLevel) -> sea_orm::sea_query::SimpleExpr {
    job_log::Column::Level.is_in(levels_from(level).iter().copied())
}

/// Levels from a minimum level on.
pub(crate) fn levels_from(level: JobLogLevel) -> &'static [JobLogLevel] {
    use JobLogLevel::{Debug, Error, Info, Warning};
    match level {
        Debug => &[Debug, Info, Warning, Error],
        Info => &[Info, Warning, Error],
        Warning => &[Warning, Error],
        Error => &[Error],
    }
}

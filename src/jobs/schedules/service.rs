//! Implementation of `JobScheduleService`.

use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, DatabaseTransaction, EntityTrait, QueryFilter, QuerySelect, Select, sea_query::Expr,
};
use tonic::{Request, Response};
use uuid::Uuid;

use super::{check::UPDATABLE, cron::Ticks, new_job::new_job};
use crate::{
    clock,
    db::{Db, row},
    entity::job_schedule::{ActiveModel, Column, Entity, MissedPolicy, Model},
    error::{Error, Result},
    feed,
    jobs::{
        Queue,
        store::create::{self, CreateOutcome},
        types::LiveTypes,
        wakeups::Wakeups,
    },
    pb::{self, ChangeKind, job_schedule_service_server::JobScheduleService, watch_response::Update},
    rpc::{Reply, check, json, mask::UpdateMask, page::Page, time},
    topics,
};

/// Prefix of the fields of a schedule in errors.
const FIELD_PREFIX: &str = "job_schedule.";

/// Maximum number of values in a list of a filter.
const MAX_LIST_VALUES: usize = 1_000;

/// Number of ticks of a preview, by default and at most.
const DEFAULT_PREVIEW_TICKS: i32 = 10;
const MAX_PREVIEW_TICKS: i32 = 1_000;

/// Implementation of `JobScheduleService`. Clones share the state.
#[derive(Debug, Clone)]
pub struct JobSchedules {
    db: Db,
    /// Defaults of the created jobs.
    types: LiveTypes,
    /// Notified of created jobs.
    wakeups: Wakeups,
}

#[tonic::async_trait]
impl JobScheduleService for JobSchedules {
    async fn create_job_schedule(&self, request: Request<pb::CreateJobScheduleRequest>) -> Reply<pb::JobSchedule> {
        let mut schedule =
            request.into_inner().job_schedule.ok_or_else(|| Error::invalid("job_schedule", "is required"))?;
        let now = clock::now();
        let payload = schedule.take_payload().await?;
        let mut row = schedule.into_row(&Model { payload, ..default_schedule(now) })?;
        row.next_tick_at = first_tick(&row, now)?;
        let schedule = self.db.write(async |tx| {
            let row = ActiveModel::from(row).reset_all().insert(tx).await;
            record_change(tx, ChangeKind::Created, row.map_err(name_conflict)?).await
        });
        Ok(Response::new(schedule.await?))
    }

    async fn get_job_schedule(&self, request: Request<pb::GetJobScheduleRequest>) -> Reply<pb::JobSchedule> {
        let id = check::uuid("id", &request.into_inner().id)?;
        Ok(Response::new(self.read_schedule(id).await?.into()))
    }

    async fn list_job_schedules(
        &self,
        request: Request<pb::ListJobSchedulesRequest>,
    ) -> Reply<pb::ListJobSchedulesResponse> {
        let request = request.into_inner();
        let filter = request.filter.unwrap_or_default();
        let (size, token) = (request.page_size, &request.page_token);
        let page = Page::parse(size, token, "job_schedules", &filter)?;
        let columns = (Column::CreatedAt, Column::Id);
        let key = |schedule: &Model| (schedule.created_at, schedule.id);
        let select = filter.select(&self.db)?;
        let (job_schedules, next_page_token) = page.newest_first(self.db.reader(), select, columns, key).await?;
        Ok(Response::new(pb::ListJobSchedulesResponse { job_schedules, next_page_token }))
    }

    async fn update_job_schedule(&self, request: Request<pb::UpdateJobScheduleRequest>) -> Reply<pb::JobSchedule> {
        let request = request.into_inner();
        let mut changes = request.job_schedule.ok_or_else(|| Error::invalid("job_schedule", "is required"))?;
        let id = check::uuid("job_schedule.id", &changes.id)?;
        let mask = UpdateMask::parse(request.update_mask, &UPDATABLE)?;
        let payload = changes.take_payload().await?;
        let has_payload = mask.covers("payload", payload.is_some());
        let schedule = self.db.write(async |tx| {
            let before = lock_schedule(tx, id, request.expected_version_id).await?;
            let now = clock::now();
            // The updated schedule is validated as a whole, like a new one.
            let schedule = pb::JobSchedule::from(before.clone()).with_changes(changes, &mask);
            let mut after = schedule.into_row(&before)?;
            if has_payload {
                after.payload = payload;
            }
            if after == before {
                return Ok(before.into());
            }
            let first = first_tick(&after, now)?;
            let begins = after.enabled && !before.enabled;
            if begins || after.cron != before.cron || after.time_zone != before.time_zone {
                after.next_tick_at = first;
            }
            after.updated_at = now.max(before.updated_at);
            after.version_id = before.version_id + 1;
            let after = ActiveModel::from(after).reset_all().update(tx).await;
            record_change(tx, ChangeKind::Updated, after.map_err(name_conflict)?).await
        });
        Ok(Response::new(schedule.await?))
    }

    async fn delete_job_schedule(&self, request: Request<pb::DeleteJobScheduleRequest>) -> Reply<()> {
        let request = request.into_inner();
        let id = check::uuid("id", &request.id)?;
        let deleted = self.db.write(async |tx| {
            let schedule = lock_schedule(tx, id, request.expected_version_id).await?;
            Entity::delete_by_id(id).exec(tx).await?;
            record_change(tx, ChangeKind::Deleted, schedule).await
        });
        deleted.await?;
        Ok(Response::new(()))
    }

    async fn run_job_schedule(&self, request: Request<pb::RunJobScheduleRequest>) -> Reply<pb::Job> {
        let id = check::uuid("id", &request.into_inner().id)?;
        let schedule = self.read_schedule(id).await?;
        let job = new_job(&schedule, None, &self.types.current(), clock::now());
        let outcomes = self.db.write(async |tx| create::insert(tx, vec![job]).await).await?;
        match outcomes.into_iter().next() {
            Some(CreateOutcome::Created(job)) => {
                self.wakeups.notify_queued([&*job]);
                Ok(Response::new((*job).into()))
            }
            // The job has no constrained value, so no conflict is possible.
            Some(CreateOutcome::Existed(_) | CreateOutcome::KeyHeld { .. } | CreateOutcome::RequestReused(_))
            | None => Err(Error::internal("a job without a key was not made").into()),
        }
    }

    async fn preview_job_schedule(
        &self,
        request: Request<pb::PreviewJobScheduleRequest>,
    ) -> Reply<pb::PreviewJobScheduleResponse> {
        let request = request.into_inner();
        let count = match request.count {
            0 => DEFAULT_PREVIEW_TICKS,
            count => check::within("count", count, 1..=MAX_PREVIEW_TICKS)?,
        };
        let after = request.after.map(|after| time::from_proto("after", after)).transpose()?.unwrap_or_else(clock::now);
        let ticks = self.preview_ticks(&request, after).await?;
        let following = std::iter::successors(ticks.after(after), |tick| ticks.after(*tick));
        let count = usize::try_from(count).unwrap_or_default();
        let tick = |tick: DateTime<Utc>| pb::JobScheduleTick {
            tick_at: Some(time::to_proto(tick)),
            local_time: ticks.local_time(tick),
        };
        let ticks = following.take(count).map(tick).collect();
        Ok(Response::new(pb::PreviewJobScheduleResponse { ticks }))
    }
}

impl JobSchedules {
    /// Creates the service of a queue.
    pub fn new(queue: &Queue) -> Self {
        Self { db: queue.db.clone(), types: queue.types.clone(), wakeups: queue.wakeups.clone() }
    }

    async fn read_schedule(&self, id: Uuid) -> Result<Model> {
        let schedule = Entity::find_by_id(id).one(self.db.reader()).await?;
        row::require(schedule, "job schedule", id)
    }

    /// Ticks to preview: of a stored schedule, or of an expression in the request.
    async fn preview_ticks(&self, request: &pb::PreviewJobScheduleRequest, after: DateTime<Utc>) -> Result<Ticks> {
        if request.id.is_empty() {
            let cron = check::name("cron", &request.cron, 1..=200)?;
            let time_zone = check::text("time_zone", &request.time_zone, 0..=64)?;
            let zone = if time_zone.is_empty() { "UTC" } else { &time_zone };
            return Ticks::parse("", &cron, zone, after);
        }
        for (field, value) in [("cron", &request.cron), ("time_zone", &request.time_zone)] {
            if !value.is_empty() {
                return Err(Error::invalid(field, "must be left out with an id"));
            }
        }
        let schedule = self.read_schedule(check::uuid("id", &request.id)?).await?;
        Ticks::parse("", &schedule.cron, &schedule.time_zone, after)
    }
}

/// Locks a schedule until the end of the transaction, and checks the expected version.
async fn lock_schedule(tx: &DatabaseTransaction, id: Uuid, expected: Option<i32>) -> Result<Model> {
    let schedule = Entity::find_by_id(id).lock_exclusive().one(tx).await?;
    let schedule = row::require(schedule, "job schedule", id)?;
    if expected.is_some_and(|expected| expected != schedule.version_id) {
        let resource = "job schedule";
        return Err(Error::StaleVersion { resource });
    }
    Ok(schedule)
}

/// First tick of a schedule after now.
fn first_tick(schedule: &Model, now: DateTime<Utc>) -> Result<DateTime<Utc>> {
    let ticks = Ticks::parse(FIELD_PREFIX, &schedule.cron, &schedule.time_zone, now)?;
    let first = ticks.after(now);
    first.ok_or_else(|| Error::invalid("job_schedule.cron", "would never tick"))
}

async fn record_change(tx: &DatabaseTransaction, kind: ChangeKind, schedule: Model) -> Result<pb::JobSchedule> {
    let schedule = pb::JobSchedule::from(schedule);
    let change = pb::JobScheduleChange { kind: kind.into(), job_schedule: Some(schedule.clone()) };
    let record = topics::record(&schedule.id, Update::JobSchedule(change));
    feed::record(tx, [record]).await?;
    Ok(schedule)
}

/// Names the conflicting field: only the name is unique.
fn name_conflict(error: sea_orm::DbErr) -> Error {
    let error = Error::from(error);
    if !matches!(error, Error::AlreadyExists { .. }) {
        return error;
    }
    Error::AlreadyExists { field: "job_schedule.name".into(), problem: "another job schedule has it".into() }
}

/// Schedule with default values.
fn default_schedule(now: DateTime<Utc>) -> Model {
    Model {
        id: Uuid::now_v7(),
        name: String::new(),
        description: None,
        enabled: true,
        cron: String::new(),
        time_zone: String::new(),
        missed_policy: MissedPolicy::RunOnce,
        job_type: String::new(),
        queue_name: String::new(),
        priority: None,
        max_attempts: None,
        payload: None,
        skip_if_active: false,
        next_tick_at: now,
        last_tick_at: None,
        last_job_id: None,
        missed_ticks: 0,
        created_at: now,
        updated_at: now,
        version_id: 1,
    }
}

impl pb::JobScheduleFilter {
    fn select(&self, db: &Db) -> Result<Select<Entity>> {
        let job_types = check::texts("filter.job_types", &self.job_types, MAX_LIST_VALUES, &(1..=50))?;
        let queue_names = check::texts("filter.queue_names", &self.queue_names, MAX_LIST_VALUES, &(1..=100))?;
        let name = check::text("filter.name", &self.name, 0..=100)?;
        let mut select = Entity::find();
        if let Some(enabled) = self.enabled {
            select = select.filter(Column::Enabled.eq(enabled));
        }
        if !job_types.is_empty() {
            select = select.filter(Column::JobType.is_in(job_types));
        }
        if !queue_names.is_empty() {
            select = select.filter(Column::QueueName.is_in(queue_names));
        }
        if !name.is_empty() {
            let name = row::contains(Expr::col(Column::Name), db.backend(), &name);
            select = select.filter(name);
        }
        Ok(select)
    }
}

impl From<Model> for pb::JobSchedule {
    fn from(row: Model) -> Self {
        let next_tick_at = row.enabled.then(|| time::to_proto(row.next_tick_at));
        Self {
            id: row.id.to_string(),
            name: row.name,
            description: row.description,
            enabled: Some(row.enabled),
            cron: row.cron,
            time_zone: row.time_zone,
            missed_policy: pb::MissedPolicy::from(row.missed_policy).into(),
            job_type: row.job_type,
            queue_name: row.queue_name,
            priority: row.priority,
            max_attempts: row.max_attempts,
            payload: row.payload.and_then(json::to_proto),
            skip_if_active: row.skip_if_active,
            next_tick_at,
            last_tick_at: row.last_tick_at.map(time::to_proto),
            last_job_id: row.last_job_id.map(|id| id.to_string()),
            missed_ticks: row.missed_ticks,
            created_at: Some(time::to_proto(row.created_at)),
            updated_at: Some(time::to_proto(row.updated_at)),
            version_id: row.version_id,
        }
    }
}

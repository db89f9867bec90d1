//! `JobScheduleService`.

use chrono::{DateTime, Utc};
use prost::Message;
use sea_orm::{
    ActiveModelTrait, ColumnTrait, DatabaseTransaction, EntityTrait, QueryFilter, QuerySelect,
    Select, sea_query::Expr,
};
use tonic::{Request, Response};
use uuid::Uuid;

use super::{check::UPDATABLE, cron::Ticks};
use crate::{
    clock,
    db::{Db, row},
    entity::job_schedule::{ActiveModel, Column, Entity, MissedPolicy, Model},
    error::{Error, Result},
    feed::{self, Record, Topic},
    jobs::{
        Queue,
        store::create::{self, Made},
        types::LiveTypes,
        wakeups::Bell,
    },
    pb::{
        self, ChangeKind, job_schedule_service_server::JobScheduleService, watch_response::Update,
    },
    rpc::{Reply, check, json, mask::UpdateMask, page::Page, time},
};

/// What fields of a schedule begin with.
const SCHEDULE: &str = "job_schedule.";

/// How many values a list of a filter may have.
const MOST: usize = 1_000;

/// How many ticks a preview has unless the client says otherwise, and at most.
const PREVIEW: i32 = 10;
const LONGEST_PREVIEW: i32 = 1_000;

/// The schedules.
#[derive(Debug, Clone)]
pub struct JobSchedules {
    db: Db,
    /// What their jobs are given.
    types: LiveTypes,
    /// Rung for jobs that are made.
    bell: Bell,
}

#[tonic::async_trait]
impl JobScheduleService for JobSchedules {
    async fn create_job_schedule(
        &self,
        request: Request<pb::CreateJobScheduleRequest>,
    ) -> Reply<pb::JobSchedule> {
        let schedule = request
            .into_inner()
            .job_schedule
            .ok_or_else(|| Error::invalid("job_schedule", "is required"))?;
        let now = clock::now();
        let mut schedule = schedule;
        let payload = schedule.take_payload().await?;
        let mut row = schedule.checked(&Model {
            payload,
            ..blank(now)
        })?;
        row.next_tick_at = first_tick(&row, now)?;
        let schedule = self.db.write(async |tx| {
            let row = ActiveModel::from(row).reset_all().insert(tx).await;
            announce(tx, ChangeKind::Created, row.map_err(taken)?).await
        });
        Ok(Response::new(schedule.await?))
    }

    async fn get_job_schedule(
        &self,
        request: Request<pb::GetJobScheduleRequest>,
    ) -> Reply<pb::JobSchedule> {
        let id = check::uuid("id", &request.into_inner().id)?;
        Ok(Response::new(self.schedule(id).await?.into()))
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
        let (job_schedules, next_page_token) = page
            .newest_first(self.db.reader(), select, columns, key)
            .await?;
        Ok(Response::new(pb::ListJobSchedulesResponse {
            job_schedules,
            next_page_token,
        }))
    }

    async fn update_job_schedule(
        &self,
        request: Request<pb::UpdateJobScheduleRequest>,
    ) -> Reply<pb::JobSchedule> {
        let request = request.into_inner();
        let mut changes = request
            .job_schedule
            .ok_or_else(|| Error::invalid("job_schedule", "is required"))?;
        let id = check::uuid("job_schedule.id", &changes.id)?;
        let mask = UpdateMask::parse(request.update_mask, &UPDATABLE)?;
        let payload = changes.take_payload().await?;
        let has_payload = mask.covers("payload", payload.is_some());
        let schedule = self.db.write(async |tx| {
            let before = locked(tx, id, request.expected_version_id).await?;
            let now = clock::now();
            // What the schedule will be is checked as a whole, as a new one is.
            let schedule = pb::JobSchedule::from(before.clone()).with(changes, &mask);
            let mut after = schedule.checked(&before)?;
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
            announce(tx, ChangeKind::Updated, after.map_err(taken)?).await
        });
        Ok(Response::new(schedule.await?))
    }

    async fn delete_job_schedule(
        &self,
        request: Request<pb::DeleteJobScheduleRequest>,
    ) -> Reply<()> {
        let request = request.into_inner();
        let id = check::uuid("id", &request.id)?;
        let deleted = self.db.write(async |tx| {
            let schedule = locked(tx, id, request.expected_version_id).await?;
            Entity::delete_by_id(id).exec(tx).await?;
            announce(tx, ChangeKind::Deleted, schedule).await
        });
        deleted.await?;
        Ok(Response::new(()))
    }

    async fn run_job_schedule(
        &self,
        request: Request<pb::RunJobScheduleRequest>,
    ) -> Reply<pb::Job> {
        let id = check::uuid("id", &request.into_inner().id)?;
        let schedule = self.schedule(id).await?;
        let job = super::job(&schedule, None, &self.types.current(), clock::now());
        let made = self
            .db
            .write(async |tx| create::insert(tx, vec![job]).await)
            .await?;
        match made.into_iter().next() {
            Some(Made::Created(job)) => {
                self.bell.queued([&*job]);
                Ok(Response::new((*job).into()))
            }
            // It has nothing that another job may hold.
            Some(Made::Existed(_) | Made::KeyHeld { .. } | Made::RequestReused(_)) | None => {
                Err(Error::internal("a job without a key was not made").into())
            }
        }
    }

    async fn preview_job_schedule(
        &self,
        request: Request<pb::PreviewJobScheduleRequest>,
    ) -> Reply<pb::PreviewJobScheduleResponse> {
        let request = request.into_inner();
        let count = match request.count {
            0 => PREVIEW,
            count => check::within("count", count, 1..=LONGEST_PREVIEW)?,
        };
        let after = request.after.map(|after| time::from_proto("after", after));
        let after = after.transpose()?.unwrap_or_else(clock::now);
        let ticks = self.previewed(&request, after).await?;
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
    /// The schedules of this queue's database.
    pub fn new(queue: &Queue) -> Self {
        Self {
            db: queue.db.clone(),
            types: queue.types.clone(),
            bell: queue.bell.clone(),
        }
    }

    async fn schedule(&self, id: Uuid) -> Result<Model> {
        let schedule = Entity::find_by_id(id).one(self.db.reader()).await?;
        row::require(schedule, "job schedule", id)
    }

    /// The ticks that are to be told.
    async fn previewed(
        &self,
        request: &pb::PreviewJobScheduleRequest,
        after: DateTime<Utc>,
    ) -> Result<Ticks> {
        if request.id.is_empty() {
            let cron = check::name("cron", &request.cron, 1..=200)?;
            let time_zone = check::text("time_zone", &request.time_zone, 0..=64)?;
            let zone = if time_zone.is_empty() {
                "UTC"
            } else {
                &time_zone
            };
            return Ticks::parse("", &cron, zone, after);
        }
        for (field, value) in [("cron", &request.cron), ("time_zone", &request.time_zone)] {
            if !value.is_empty() {
                return Err(Error::invalid(field, "must be left out with an id"));
            }
        }
        let schedule = self.schedule(check::uuid("id", &request.id)?).await?;
        Ticks::parse("", &schedule.cron, &schedule.time_zone, after)
    }
}

/// The schedule, if it is at the version that is expected; nobody else changes it before the transaction ends.
async fn locked(tx: &DatabaseTransaction, id: Uuid, expected: Option<i32>) -> Result<Model> {
    let schedule = Entity::find_by_id(id).lock_exclusive().one(tx).await?;
    let schedule = row::require(schedule, "job schedule", id)?;
    if expected.is_some_and(|expected| expected != schedule.version_id) {
        let resource = "job schedule";
        return Err(Error::StaleVersion { resource });
    }
    Ok(schedule)
}

/// When a schedule ticks first from now on.
fn first_tick(schedule: &Model, now: DateTime<Utc>) -> Result<DateTime<Utc>> {
    let ticks = Ticks::parse(SCHEDULE, &schedule.cron, &schedule.time_zone, now)?;
    let first = ticks.after(now);
    first.ok_or_else(|| Error::invalid("job_schedule.cron", "would never tick"))
}

async fn announce(
    tx: &DatabaseTransaction,
    kind: ChangeKind,
    schedule: Model,
) -> Result<pb::JobSchedule> {
    let schedule = pb::JobSchedule::from(schedule);
    let change = pb::JobScheduleChange {
        kind: kind.into(),
        job_schedule: Some(schedule.clone()),
    };
    let message = pb::WatchResponse {
        update: Some(Update::JobSchedule(change)),
        ..Default::default()
    };
    let record = Record {
        topic: Topic::JobSchedules,
        key: schedule.id.clone(),
        message: message.encode_to_vec(),
    };
    feed::record(tx, [record]).await?;
    Ok(schedule)
}

/// The name is the only value that must be unique.
fn taken(error: sea_orm::DbErr) -> Error {
    let error = Error::from(error);
    if !matches!(error, Error::AlreadyExists { .. }) {
        return error;
    }
    Error::AlreadyExists {
        field: "job_schedule.name".into(),
        problem: "another job schedule has it".into(),
    }
}

/// A schedule of which nothing was said yet.
fn blank(now: DateTime<Utc>) -> Model {
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
        let job_types = check::texts("filter.job_types", &self.job_types, MOST, &(1..=50))?;
        let queue_names = check::texts("filter.queue_names", &self.queue_names, MOST, &(1..=100))?;
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

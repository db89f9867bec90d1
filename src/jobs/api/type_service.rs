//! Implementation of `JobTypeService`.

use std::time::Duration;

use sea_orm::{ActiveModelTrait, DatabaseTransaction, EntityTrait, QuerySelect};
use tonic::{Request, Response};

use crate::{
    db::{Db, row},
    entity::{
        self,
        job_type::{ActiveModel, Column, Entity, Model},
    },
    error::{Error, Result},
    feed,
    jobs::{
        queue::Queue,
        types::{BUILT_IN, Defaults, LiveTypes},
    },
    pb::{self, ChangeKind, job_type_service_server::JobTypeService, watch_response::Update},
    rpc::{Reply, check, mask::UpdateMask, page::Page, time},
    topics,
};

/// Fields that an update may change.
const UPDATABLE: [&str; 11] = [
    "description",
    "priority",
    "max_attempts",
    "max_rescues",
    "timeout",
    "deadline",
    "retry_initial_delay",
    "retry_max_delay",
    "retry_multiplier",
    "retry_jitter",
    "dead_letter",
];

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_hours(24);

/// Implementation of `JobTypeService`. Clones share the state.
#[derive(Debug, Clone)]
pub struct JobTypes {
    db: Db,
    /// Types applied to new jobs, reloaded after every change.
    types: LiveTypes,
}

#[tonic::async_trait]
impl JobTypeService for JobTypes {
    async fn get_job_type(&self, request: Request<pb::GetJobTypeRequest>) -> Reply<pb::JobType> {
        let name = type_name("name", &request.into_inner().name)?;
        let settings = Entity::find_by_id(&name).one(self.db.reader()).await;
        let settings = settings.map_err(Error::from)?;
        Ok(Response::new(effective_type(&name, settings)))
    }

    async fn list_job_types(&self, request: Request<pb::ListJobTypesRequest>) -> Reply<pb::ListJobTypesResponse> {
        let request = request.into_inner();
        let (size, token) = (request.page_size, &request.page_token);
        let page = Page::parse(size, token, "job_types", &())?;
        let rows = page.by_id(self.db.reader(), Entity::find(), Column::Name);
        let mut types: Vec<_> = rows.await?.into_iter().map(from_settings).collect();
        for (name, _) in BUILT_IN {
            if page.reaches(name) && types.iter().all(|known| known.name != name) {
                types.push(effective_type(name, None));
            }
        }
        types.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let key = |job_type: &pb::JobType| (0, job_type.name.clone());
        let (job_types, next_page_token) = page.paginate(types, key, |job_type| job_type);
        Ok(Response::new(pb::ListJobTypesResponse { job_types, next_page_token }))
    }

    async fn update_job_type(&self, request: Request<pb::UpdateJobTypeRequest>) -> Reply<pb::JobType> {
        let request = request.into_inner();
        let changes = request.job_type.ok_or_else(|| Error::invalid("job_type", "is required"))?;
        let name = type_name("job_type.name", &changes.name)?;
        let mask = UpdateMask::parse(request.update_mask, &UPDATABLE)?;
        let attempt = || {
            self.db.write(async |tx| {
                let before = lock_settings(tx, &name).await?;
                refuse_stale(before.as_ref(), request.expected_version_id)?;
                let mut settings = before.clone().unwrap_or_else(|| new_settings(&name));
                changes.apply(&mask, &mut settings)?;
                save(tx, settings, before).await
            })
        };
        let stored = match attempt().await {
            // A concurrent request created the settings. The second try finds them.
            Err(Error::AlreadyExists { .. }) => attempt().await?,
            result => result?,
        };
        self.reload_types().await;
        Ok(Response::new(stored))
    }

    async fn delete_job_type(&self, request: Request<pb::DeleteJobTypeRequest>) -> Reply<()> {
        let request = request.into_inner();
        let name = type_name("name", &request.name)?;
        let deleted = self.db.write(async |tx| {
            let settings = row::require(lock_settings(tx, &name).await?, "job type", &name)?;
            refuse_stale(Some(&settings), request.expected_version_id)?;
            Entity::delete_by_id(&name).exec(tx).await?;
            record_change(tx, ChangeKind::Deleted, effective_type(&name, None)).await
        });
        deleted.await?;
        self.reload_types().await;
        Ok(Response::new(()))
    }
}

impl JobTypes {
    /// Creates the service of a queue.
    pub fn new(queue: &Queue) -> Self {
        let (db, types) = (queue.db.clone(), queue.types.clone());
        Self { db, types }
    }

    /// Reloads the settings before the response, so they apply to the next job of the caller.
    async fn reload_types(&self) {
        if let Err(error) = self.types.reload().await {
            // The change is committed; the feed triggers another reload.
            tracing::warn!(%error, "failed to reload job types; the change applies after the next reload");
        }
    }
}

/// Locks the settings of a type until the end of the transaction.
async fn lock_settings(tx: &DatabaseTransaction, name: &str) -> Result<Option<Model>> {
    Ok(Entity::find_by_id(name).lock_exclusive().one(tx).await?)
}

fn refuse_stale(settings: Option<&Model>, expected: Option<i32>) -> Result<()> {
    let version = settings.map_or(0, |settings| settings.version_id);
    if expected.is_some_and(|expected| expected != version) {
        let resource = "job type";
        return Err(Error::StaleVersion { resource });
    }
    Ok(())
}

/// Writes the settings of a type and records the change in the feed, unless nothing changed.
async fn save(tx: &DatabaseTransaction, mut settings: Model, before: Option<Model>) -> Result<pb::JobType> {
    let Some(before) = before else {
        let settings = ActiveModel::from(settings).reset_all().insert(tx).await?;
        return record_change(tx, ChangeKind::Created, from_settings(settings)).await;
    };
    if settings == before {
        return Ok(from_settings(settings));
    }
    settings.updated_at = entity::now().max(before.updated_at);
    settings.version_id = before.version_id + 1;
    let settings = ActiveModel::from(settings).reset_all().update(tx).await?;
    record_change(tx, ChangeKind::Updated, from_settings(settings)).await
}

async fn record_change(tx: &DatabaseTransaction, kind: ChangeKind, job_type: pb::JobType) -> Result<pb::JobType> {
    let change = pb::JobTypeChange { kind: kind.into(), job_type: Some(job_type.clone()) };
    let record = topics::record(&job_type.name, Update::JobType(change));
    feed::record(tx, [record]).await?;
    Ok(job_type)
}

fn type_name(field: &str, name: &str) -> Result<String> {
    check::name(field, name, 1..=50)
}

fn new_settings(name: &str) -> Model {
    let now = entity::now();
    Model {
        name: name.to_string(),
        description: None,
        priority: None,
        max_attempts: None,
        max_rescues: None,
        timeout_ms: None,
        deadline_ms: None,
        retry_initial_ms: None,
        retry_max_ms: None,
        retry_multiplier: None,
        retry_jitter: None,
        dead_letter: true,
        created_at: now,
        updated_at: now,
        version_id: 1,
    }
}

impl pb::JobType {
    /// Validates and applies the fields covered by the mask.
    fn apply(&self, mask: &UpdateMask, settings: &mut Model) -> Result<()> {
        if mask.covers("description", self.description.is_some()) {
            let text = self.description.as_deref();
            settings.description = check::optional_text("job_type.description", text, 0..=1_000)?;
        }
        macro_rules! within {
            ($($field:ident in $range:expr;)+) => {$(
                if mask.covers(stringify!($field), self.$field.is_some()) {
                    let field = concat!("job_type.", stringify!($field));
                    let checked = |value| check::within(field, value, $range);
                    settings.$field = self.$field.map(checked).transpose()?;
                }
            )+};
        }
        within! {
            priority in 0..=4;
            max_attempts in 1..=1_000;
            max_rescues in 0..=1_000;
            retry_multiplier in 1.0..=10.0;
            retry_jitter in 0.0..=1.0;
        }
        macro_rules! lengths {
            ($($field:ident to $column:ident in $range:expr;)+) => {$(
                if mask.covers(stringify!($field), self.$field.is_some()) {
                    let field = concat!("job_type.", stringify!($field));
                    let checked = |value| time::whole_millis(field, value, &$range);
                    settings.$column = self.$field.map(checked).transpose()?;
                }
            )+};
        }
        lengths! {
            deadline to deadline_ms in SECOND..=DAY * 366;
            retry_initial_delay to retry_initial_ms in Duration::ZERO..=DAY;
            retry_max_delay to retry_max_ms in Duration::ZERO..=DAY * 7;
        }
        if mask.covers("timeout", self.timeout.is_some()) {
            settings.timeout_ms = self.timeout.map(timeout_ms).transpose()?;
        }
        if mask.covers("dead_letter", self.dead_letter.is_some()) {
            settings.dead_letter = self.dead_letter.unwrap_or(true);
        }
        Ok(())
    }
}

fn timeout_ms(timeout: prost_types::Duration) -> Result<i64> {
    const FIELD: &str = "job_type.timeout";
    if timeout == prost_types::Duration::default() {
        return Ok(0);
    }
    time::whole_millis(FIELD, timeout, &(SECOND..=DAY * 30)).map_err(|_| {
        let problem = "must be 0 s, or whole milliseconds in [1 s, 2592000 s]";
        Error::invalid(FIELD, problem)
    })
}

fn from_settings(settings: Model) -> pb::JobType {
    let name = settings.name.clone();
    effective_type(&name, Some(settings))
}

/// Effective settings of a type: settings over built-in values.
fn effective_type(name: &str, settings: Option<Model>) -> pb::JobType {
    let defaults = settings.as_ref().map_or_else(|| Defaults::built_in(name), Defaults::from_settings);
    let names = settings.as_ref().map(set_fields).unwrap_or_default();
    let mut job_type = pb::JobType {
        name: name.to_string(),
        priority: Some(defaults.priority),
        max_attempts: Some(defaults.max_attempts),
        max_rescues: Some(defaults.max_rescues),
        timeout: Some(time::duration_to_proto(defaults.timeout.unwrap_or_default())),
        deadline: defaults.deadline.map(time::duration_to_proto),
        retry_initial_delay: Some(time::duration_from_millis(defaults.retry.initial_ms)),
        retry_max_delay: Some(time::duration_from_millis(defaults.retry.max_ms)),
        retry_multiplier: Some(defaults.retry.multiplier),
        retry_jitter: Some(defaults.retry.jitter),
        dead_letter: Some(defaults.dead_letter),
        built_in: settings.is_none(),
        settings: names.iter().map(ToString::to_string).collect(),
        ..Default::default()
    };
    if let Some(settings) = settings {
        job_type.description = settings.description;
        job_type.created_at = Some(time::to_proto(settings.created_at));
        job_type.updated_at = Some(time::to_proto(settings.updated_at));
        job_type.version_id = settings.version_id;
    }
    job_type
}

/// Names of the settings with a value.
fn set_fields(settings: &Model) -> Vec<&'static str> {
    let is_set = [
        settings.description.is_some(),
        settings.priority.is_some(),
        settings.max_attempts.is_some(),
        settings.max_rescues.is_some(),
        settings.timeout_ms.is_some(),
        settings.deadline_ms.is_some(),
        settings.retry_initial_ms.is_some(),
        settings.retry_max_ms.is_some(),
        settings.retry_multiplier.is_some(),
        settings.retry_jitter.is_some(),
        !settings.dead_letter,
    ];
    let names = UPDATABLE.into_iter().zip(is_set);
    names.filter(|(_, is_set)| *is_set).map(|(name, _)| name).collect()
}

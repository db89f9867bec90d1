//! `SilenceService`.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveEnum, ActiveModelTrait,
    ActiveValue::{self, NotSet, Set},
    ColumnTrait, DatabaseTransaction, EntityTrait, QueryFilter, QuerySelect,
};
use tonic::{Request, Response};
use uuid::Uuid;

use super::{
    check::{UPDATABLE, status},
    live::LiveSilences,
    suppressions,
};
use crate::{
    db::{Db, row},
    entity::{
        self, Strings,
        alert::AlertSeverity,
        alert_rule, camera,
        silence::{self, ActiveModel, Column, Entity},
    },
    error::{Error, Result},
    feed,
    pb::{self, ChangeKind, SilenceStatus, silence_service_server::SilenceService, watch_response::Update},
    rpc::{Reply, check, mask::UpdateMask, page::Page, time},
    topics,
};

/// Implementation of `SilenceService`.
#[derive(Debug, Clone)]
pub struct Silences {
    /// Database of the silences.
    pub db: Db,
    /// Cache of the compiled silences, refreshed after every change.
    pub silences: LiveSilences,
}

impl Silences {
    /// Refreshes the compiled silences before the response, so that the caller's next event meets
    /// the change.
    async fn apply(&self, silence: &pb::Silence) {
        let refreshed = match Uuid::try_parse(&silence.id) {
            Ok(id) => self.silences.refresh(id).await,
            Err(error) => Err(Error::internal(error)),
        };
        if let Err(error) = refreshed {
            // The change is committed. The change feed triggers another refresh.
            tracing::warn!(%error, "silences cannot be refreshed; the change takes effect with a delay");
        }
    }
}

#[tonic::async_trait]
impl SilenceService for Silences {
    async fn create_silence(&self, request: Request<pb::CreateSilenceRequest>) -> Reply<pb::Silence> {
        let silence = request.into_inner().silence.ok_or_else(|| Error::invalid("silence", "is required"))?;
        let row = silence.checked(None, entity::now())?;
        let creating = self.db.write(async |tx| {
            refuse_unknown(tx, &row, None).await?;
            announce(tx, ChangeKind::Created, row.insert(tx).await?).await
        });
        let silence = creating.await?;
        self.apply(&silence).await;
        Ok(Response::new(silence))
    }

    async fn get_silence(&self, request: Request<pb::GetSilenceRequest>) -> Reply<pb::Silence> {
        let id = check::uuid("id", &request.into_inner().id)?;
        let silence = Entity::find_by_id(id).one(self.db.reader()).await.map_err(Error::from)?;
        Ok(Response::new(row::require(silence, "silence", id)?.into()))
    }

    async fn list_silences(&self, request: Request<pb::ListSilencesRequest>) -> Reply<pb::ListSilencesResponse> {
        let request = request.into_inner();
        let filter = request.filter.unwrap_or_default();
        let page = Page::parse(request.page_size, &request.page_token, "silences", &filter)?;
        let select = filter.select(self.db.backend(), entity::now())?;
        let key = |silence: &silence::Model| (silence.created_at, silence.id);
        let (silences, next_page_token) =
            page.newest_first(self.db.reader(), select, (Column::CreatedAt, Column::Id), key).await?;
        Ok(Response::new(pb::ListSilencesResponse { silences, next_page_token }))
    }

    async fn update_silence(&self, request: Request<pb::UpdateSilenceRequest>) -> Reply<pb::Silence> {
        let request = request.into_inner();
        let changes = request.silence.ok_or_else(|| Error::invalid("silence", "is required"))?;
        let id = check::uuid("silence.id", &changes.id)?;
        let mask = UpdateMask::parse(request.update_mask, &UPDATABLE)?;
        let silence = self.db.write(async |tx| {
            let now = entity::now();
            let before = find_locked(tx, id, request.expected_version_id, now).await?;
            // The resulting silence is validated as a whole, like a new silence.
            let silence = pb::Silence::from(before.clone()).with(changes, &mask);
            let row = silence.checked(Some(&before), now)?;
            refuse_unknown(tx, &row, Some(&before)).await?;
            replace(tx, row, before, now).await
        });
        let silence = silence.await?;
        self.apply(&silence).await;
        Ok(Response::new(silence))
    }

    async fn expire_silence(&self, request: Request<pb::ExpireSilenceRequest>) -> Reply<pb::Silence> {
        let request = request.into_inner();
        let id = check::uuid("id", &request.id)?;
        let silence = self.db.write(async |tx| {
            let now = entity::now();
            let before = find_locked(tx, id, request.expected_version_id, now).await?;
            let row = ActiveModel {
                starts_at: Set(before.starts_at.min(now)),
                ends_at: Set(now),
                ..<ActiveModel as ActiveModelTrait>::default()
            };
            replace(tx, row, before, now).await
        });
        let silence = silence.await?;
        self.apply(&silence).await;
        Ok(Response::new(silence))
    }

    async fn list_alert_suppressions(
        &self,
        request: Request<pb::ListAlertSuppressionsRequest>,
    ) -> Reply<pb::ListAlertSuppressionsResponse> {
        let response = suppressions::list(&self.db, request.into_inner()).await?;
        Ok(Response::new(response))
    }
}

/// Loads a silence and locks the row until the transaction ends. Fails if `expected` is not the
/// present version, or if the silence has ended.
async fn find_locked(
    tx: &DatabaseTransaction,
    id: Uuid,
    expected: Option<i32>,
    now: DateTime<Utc>,
) -> Result<silence::Model> {
    let stored = Entity::find_by_id(id).lock_exclusive().one(tx).await?;
    let silence = row::require(stored, "silence", id)?;
    let resource = "silence";
    if expected.is_some_and(|expected| expected != silence.version_id) {
        return Err(Error::StaleVersion { resource });
    }
    if status(&silence, now) == SilenceStatus::Expired {
        let status = "EXPIRED".to_string();
        return Err(Error::WrongStatus { resource, status });
    }
    Ok(silence)
}

/// Stores and announces new values of a silence. Does nothing if no column differs.
async fn replace(
    tx: &DatabaseTransaction,
    mut row: ActiveModel,
    before: silence::Model,
    now: DateTime<Utc>,
) -> Result<pb::Silence> {
    row.id = Set(before.id);
    row.created_at = NotSet;
    row.updated_at = NotSet;
    row.version_id = NotSet;
    if !row::differs(&row, &before) {
        return Ok(before.into());
    }
    row.updated_at = Set(now.max(before.updated_at));
    row.version_id = Set(before.version_id + 1);
    announce(tx, ChangeKind::Updated, row.update(tx).await?).await
}

/// Fails with `BROKEN_REFERENCE` at the first camera or rule that does not exist and that the
/// silence did not name `before`.
async fn refuse_unknown(tx: &DatabaseTransaction, row: &ActiveModel, before: Option<&silence::Model>) -> Result<()> {
    let camera_ids = id_list(&row.camera_ids);
    let before_ids = before.and_then(|before| before.camera_ids.clone());
    let known: Vec<String> = camera::Entity::find()
        .select_only()
        .column(camera::Column::Id)
        .filter(camera::Column::Id.is_in(camera_ids.clone()))
        .filter(camera::Column::DeletedAt.is_null())
        .into_tuple()
        .all(tx)
        .await?;
    refuse_unknown_ids("camera_ids", "camera", &camera_ids, known, before_ids)?;
    let rule_ids = id_list(&row.rule_ids);
    let before_ids = before.and_then(|before| before.rule_ids.clone());
    let uuids = rule_ids.iter().filter_map(|id| Uuid::try_parse(id).ok());
    let known_rules: Vec<Uuid> = alert_rule::Entity::find()
        .select_only()
        .column(alert_rule::Column::Id)
        .filter(alert_rule::Column::Id.is_in(uuids))
        .into_tuple()
        .all(tx)
        .await?;
    let known_ids = known_rules.iter().map(ToString::to_string).collect();
    refuse_unknown_ids("rule_ids", "rule", &rule_ids, known_ids, before_ids)
}

fn id_list(ids: &ActiveValue<Option<Strings>>) -> Vec<String> {
    let ids = ids.try_as_ref().cloned().flatten();
    ids.unwrap_or_default().0
}

fn refuse_unknown_ids(
    field: &str,
    resource: &str,
    ids: &[String],
    known: Vec<String>,
    before: Option<Strings>,
) -> Result<()> {
    let before_ids = before.unwrap_or_default().0;
    let accepted: HashSet<_> = known.into_iter().chain(before_ids).collect();
    match ids.iter().position(|id| !accepted.contains(id)) {
        Some(index) => Err(Error::BrokenReference {
            field: format!("silence.{field}[{index}]"),
            problem: format!("names a {resource} that does not exist or is deleted"),
        }),
        None => Ok(()),
    }
}

async fn announce(tx: &DatabaseTransaction, kind: ChangeKind, silence: silence::Model) -> Result<pb::Silence> {
    let silence = pb::Silence::from(silence);
    let change = pb::SilenceChange { kind: kind.into(), silence: Some(silence.clone()) };
    let record = topics::record(&silence.id, Update::Silence(change));
    feed::record(tx, [record]).await?;
    Ok(silence)
}

impl From<silence::Model> for pb::Silence {
    fn from(row: silence::Model) -> Self {
        let status = status(&row, entity::now());
        let severity = |label: &String| {
            let severity = AlertSeverity::try_from_value(label);
            // An unknown label of another program is reported as unspecified.
            severity.map_or(pb::Severity::Unspecified, pb::Severity::from)
        };
        let severities = row.severities.unwrap_or_default().0;
        Self {
            id: row.id.to_string(),
            camera_ids: row.camera_ids.unwrap_or_default().0,
            rule_ids: row.rule_ids.unwrap_or_default().0,
            severities: severities.iter().map(|label| severity(label).into()).collect(),
            match_all: row.match_all,
            starts_at: Some(time::to_proto(row.starts_at)),
            ends_at: Some(time::to_proto(row.ends_at)),
            created_by: row.created_by,
            reason: row.reason,
            version_id: row.version_id,
            created_at: Some(time::to_proto(row.created_at)),
            updated_at: Some(time::to_proto(row.updated_at)),
            status: status.into(),
        }
    }
}

//! `AlertRuleService`.

use std::{
    collections::{BTreeSet, HashSet},
    pin::Pin,
};

use futures_util::Stream;
use prost::Message;
use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectionTrait, DatabaseTransaction, DbBackend, EntityTrait,
    QueryFilter, QueryOrder, QuerySelect, Select, sea_query::Expr,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::{
    channels,
    check::{UPDATABLE, replacing},
    document, legacy, stats,
};
use crate::{
    alerts::engine::{live::Rules, schedule},
    db::{Db, row},
    entity::{
        alert::AlertSeverity,
        alert_rule::{self, Entity},
        camera_zone,
    },
    error::{Error, Result},
    feed::{self, Record, Topic},
    pb::{
        self, ChangeKind, ImportAction, alert_rule_service_server::AlertRuleService,
        preview_schedule_request::Of, watch_response::Update,
    },
    rpc::{Reply, check, enums::FromProto, mask::UpdateMask, page::Page, time},
};

/// How many zones one query asks about.
const ZONES: usize = 1_000;

/// The alert rules.
#[derive(Debug, Clone)]
pub struct AlertRules {
    /// Where they are kept.
    pub db: Db,
    /// The compiled ones, which every change brings up to date.
    pub rules: Rules,
    /// Ends streams.
    pub shutdown: CancellationToken,
}

impl AlertRules {
    /// Brings the compiled rules up to date before the caller is answered, so that its next event meets the change.
    async fn apply(&self, ids: &[Uuid]) {
        if let Err(error) = self.rules.refresh(ids).await {
            // The change is committed, and the feed will have the rules read again.
            tracing::warn!(%error, "a change of the alert rules is in force a moment later");
        }
    }
}

#[tonic::async_trait]
impl AlertRuleService for AlertRules {
    type TestAlertRuleStream =
        Pin<Box<dyn Stream<Item = Result<pb::TestAlertRuleResponse, Status>> + Send>>;

    async fn create_alert_rule(
        &self,
        request: Request<pb::CreateAlertRuleRequest>,
    ) -> Reply<pb::AlertRule> {
        let rule = request
            .into_inner()
            .alert_rule
            .ok_or_else(|| Error::invalid("alert_rule", "is required"))?;
        let rule = legacy::translate(rule)?;
        let row = rule.checked()?;
        let rule = self.db.write(async |tx| {
            refuse_unknown_zones(tx, &rule.zone_ids, &[]).await?;
            channels::refuse_unknown(tx, &rule, None).await?;
            announce(tx, ChangeKind::Created, row.insert(tx).await?).await
        });
        let rule = rule.await?;
        self.apply(&id_of(&rule)).await;
        Ok(Response::new(rule))
    }

    async fn get_alert_rule(
        &self,
        request: Request<pb::GetAlertRuleRequest>,
    ) -> Reply<pb::AlertRule> {
        let id = check::uuid("id", &request.into_inner().id)?;
        let rule = Entity::find_by_id(id)
            .one(self.db.reader())
            .await
            .map_err(Error::from)?;
        Ok(Response::new(row::require(rule, "alert rule", id)?.into()))
    }

    async fn list_alert_rules(
        &self,
        request: Request<pb::ListAlertRulesRequest>,
    ) -> Reply<pb::ListAlertRulesResponse> {
        let request = request.into_inner();
        let filter = request.filter.unwrap_or_default();
        let page = Page::parse(
            request.page_size,
            &request.page_token,
            "alert_rules",
            &filter,
        )?;
        let columns = (alert_rule::Column::CreatedAt, alert_rule::Column::Id);
        let key = |rule: &alert_rule::Model| (rule.created_at, rule.id);
        let (alert_rules, next_page_token) = page
            .newest_first(
                self.db.reader(),
                filter.select(self.db.backend())?,
                columns,
                key,
            )
            .await?;
        Ok(Response::new(pb::ListAlertRulesResponse {
            alert_rules,
            next_page_token,
        }))
    }

    async fn preview_schedule(
        &self,
        request: Request<pb::PreviewScheduleRequest>,
    ) -> Reply<pb::PreviewScheduleResponse> {
        let request = request.into_inner();
        let preview = schedule::Preview::parse(&request)?;
        let schedule = match request.of {
            Some(Of::Schedule(schedule)) => Some(schedule::from_proto("schedule", &schedule)?),
            Some(Of::RuleId(id)) => {
                let id = check::uuid("rule_id", &id)?;
                let rule = Entity::find_by_id(id).one(self.db.reader()).await;
                row::require(rule.map_err(Error::from)?, "alert rule", id)?.schedule
            }
            None => return Err(Error::invalid("rule_id", "or schedule is required").into()),
        };
        Ok(Response::new(preview.of(schedule.as_ref())?))
    }

    async fn explain_event(
        &self,
        request: Request<pb::ExplainEventRequest>,
    ) -> Reply<pb::ExplainEventResponse> {
        Ok(Response::new(self.explain(request.into_inner()).await?))
    }

    async fn test_alert_rule(
        &self,
        request: Request<pb::TestAlertRuleRequest>,
    ) -> Reply<Self::TestAlertRuleStream> {
        let responses = self.trial(request.into_inner()).await?;
        Ok(Response::new(Box::pin(responses)))
    }

    async fn update_alert_rule(
        &self,
        request: Request<pb::UpdateAlertRuleRequest>,
    ) -> Reply<pb::AlertRule> {
        let request = request.into_inner();
        let changes = request
            .alert_rule
            .ok_or_else(|| Error::invalid("alert_rule", "is required"))?;
        let id = check::uuid("alert_rule.id", &changes.id)?;
        let mask = UpdateMask::parse(request.update_mask, &UPDATABLE)?;
        let rule = self.db.write(async |tx| {
            let before = locked(tx, id).await?;
            refuse_stale(request.expected_version_id, &before)?;
            let zone_ids = before.zone_ids.clone().unwrap_or_default().0;
            // What the rule will be is checked as a whole, as a new one is.
            let before_it = pb::AlertRule::from(before.clone());
            let rule = before_it.clone().with(changes, &mask);
            let rule = legacy::translate(rule)?;
            let row = rule.checked()?;
            refuse_unknown_zones(tx, &rule.zone_ids, &zone_ids).await?;
            channels::refuse_unknown(tx, &rule, Some(&before_it)).await?;
            let Some(row) = replacing(row, &before) else {
                return Ok(before.into());
            };
            announce(tx, ChangeKind::Updated, row.update(tx).await?).await
        });
        let rule = rule.await?;
        self.apply(&id_of(&rule)).await;
        Ok(Response::new(rule))
    }

    async fn delete_alert_rule(&self, request: Request<pb::DeleteAlertRuleRequest>) -> Reply<()> {
        let request = request.into_inner();
        let id = check::uuid("id", &request.id)?;
        let deleted = self.db.write(async |tx| {
            let rule = locked(tx, id).await?;
            refuse_stale(request.expected_version_id, &rule)?;
            Entity::delete_by_id(id).exec(tx).await?;
            announce(tx, ChangeKind::Deleted, rule).await
        });
        deleted.await?;
        self.apply(&[id]).await;
        Ok(Response::new(()))
    }

    async fn set_alert_rules_enabled(
        &self,
        request: Request<pb::SetAlertRulesEnabledRequest>,
    ) -> Reply<pb::SetAlertRulesEnabledResponse> {
        let (response, ids) = self.set_enabled(request.into_inner()).await?;
        self.apply(&ids).await;
        Ok(Response::new(response))
    }

    async fn clone_alert_rule(
        &self,
        request: Request<pb::CloneAlertRuleRequest>,
    ) -> Reply<pb::AlertRule> {
        let rule = self.copy(request.into_inner()).await?;
        self.apply(&id_of(&rule)).await;
        Ok(Response::new(rule))
    }

    async fn export_alert_rules(
        &self,
        request: Request<pb::ExportAlertRulesRequest>,
    ) -> Reply<pb::ExportAlertRulesResponse> {
        let response = document::export(&self.db, &request.into_inner()).await?;
        Ok(Response::new(response))
    }

    async fn import_alert_rules(
        &self,
        request: Request<pb::ImportAlertRulesRequest>,
    ) -> Reply<pb::ImportAlertRulesResponse> {
        let response = document::import(&self.db, request.into_inner()).await?;
        let changed = response.results.iter().filter(|result| {
            [ImportAction::Created, ImportAction::Updated].contains(&result.action())
        });
        let ids = changed.filter_map(|result| Uuid::try_parse(&result.id).ok());
        self.apply(&ids.collect::<Vec<_>>()).await;
        Ok(Response::new(response))
    }

    async fn get_alert_rule_stats(
        &self,
        request: Request<pb::GetAlertRuleStatsRequest>,
    ) -> Reply<pb::GetAlertRuleStatsResponse> {
        let response = stats::stats(&self.db, request.into_inner()).await?;
        Ok(Response::new(response))
    }
}

/// The id of a rule on the wire.
fn id_of(rule: &pb::AlertRule) -> Vec<Uuid> {
    Uuid::try_parse(&rule.id).into_iter().collect()
}

/// The rule; nobody else changes it before the transaction ends.
async fn locked(tx: &DatabaseTransaction, id: Uuid) -> Result<alert_rule::Model> {
    row::require(
        Entity::find_by_id(id).lock_exclusive().one(tx).await?,
        "alert rule",
        id,
    )
}

fn refuse_stale(expected: Option<i32>, rule: &alert_rule::Model) -> Result<()> {
    if expected.is_none_or(|expected| expected == rule.version_id) {
        return Ok(());
    }
    let resource = "alert rule";
    Err(Error::StaleVersion { resource })
}

/// Refuses zones that do not exist, by the path of the first, unless the rule named them before. In a
/// transaction nobody deletes the others before it ends.
pub(crate) async fn refuse_unknown_zones(
    db: &impl ConnectionTrait,
    named: &[String],
    before: &[String],
) -> Result<()> {
    let before: HashSet<_> = before.iter().collect();
    let new: BTreeSet<_> = named.iter().filter(|id| !before.contains(id)).collect();
    let known = known_zones(db, &new).await?;
    let unknown = |id: &String| new.contains(id) && !known.contains(id);
    match named.iter().position(unknown) {
        Some(at) => Err(unknown_zone("alert_rule", at)),
        None => Ok(()),
    }
}

/// Which of these zones there are. Nobody deletes them before the transaction ends.
pub(crate) async fn known_zones(
    db: &impl ConnectionTrait,
    ids: &BTreeSet<&String>,
) -> Result<HashSet<String>> {
    use camera_zone::Column::Id;
    let ids: Vec<_> = ids.iter().copied().collect();
    let mut known = HashSet::with_capacity(ids.len());
    for ids in ids.chunks(ZONES) {
        let zones: Vec<String> = camera_zone::Entity::find()
            .select_only()
            .column(Id)
            .filter(Id.is_in(ids.iter().copied()))
            // Always in the same order, or two transactions could wait for each other.
            .order_by_asc(Id)
            .lock_shared()
            .into_tuple()
            .all(db)
            .await?;
        known.extend(zones);
    }
    Ok(known)
}

/// That the zone at this place of a rule does not exist.
pub(crate) fn unknown_zone(rule: &str, at: usize) -> Error {
    Error::BrokenReference {
        field: format!("{rule}.zone_ids[{at}]"),
        problem: "names a camera zone that does not exist".into(),
    }
}

pub(crate) async fn announce(
    tx: &DatabaseTransaction,
    kind: ChangeKind,
    rule: alert_rule::Model,
) -> Result<pb::AlertRule> {
    let rule = pb::AlertRule::from(rule);
    feed::record(tx, [announcement(kind, rule.clone())]).await?;
    Ok(rule)
}

/// What subscribers are sent of a change of a rule.
pub(crate) fn announcement(kind: ChangeKind, rule: pb::AlertRule) -> Record {
    let key = rule.id.clone();
    let change = pb::AlertRuleChange {
        kind: kind.into(),
        alert_rule: Some(rule),
    };
    let message = pb::WatchResponse {
        update: Some(Update::AlertRule(change)),
        ..Default::default()
    };
    Record {
        topic: Topic::AlertRules,
        key,
        message: message.encode_to_vec(),
    }
}

impl pb::AlertRuleFilter {
    pub(crate) fn select(&self, backend: DbBackend) -> Result<Select<Entity>> {
        let severity = AlertSeverity::from_proto("filter.severity", self.severity)?;
        let name = check::text("filter.name", &self.name, 0..=255)?;
        let mut select = Entity::find();
        if let Some(enabled) = self.enabled {
            select = select.filter(alert_rule::Column::Enabled.eq(enabled));
        }
        if let Some(severity) = severity {
            select = select.filter(alert_rule::Column::Severity.eq(severity));
        }
        if !name.is_empty() {
            select = select.filter(row::contains(
                Expr::col(alert_rule::Column::Name),
                backend,
                &name,
            ));
        }
        Ok(select)
    }
}

impl From<alert_rule::Model> for pb::AlertRule {
    fn from(row: alert_rule::Model) -> Self {
        Self {
            id: row.id.to_string(),
            name: row.name,
            description: row.description,
            enabled: Some(row.enabled),
            severity: pb::Severity::from(row.severity).into(),
            risk_threshold: row.risk_threshold,
            object_types: row.object_types.unwrap_or_default().0,
            camera_ids: row.camera_ids.unwrap_or_default().0,
            zone_ids: row.zone_ids.unwrap_or_default().0,
            min_confidence: row.min_confidence,
            schedule: row.schedule.map(schedule::to_proto),
            conditions: row.conditions.and_then(crate::rpc::json::to_proto),
            dedup_key_template: Some(row.dedup_key_template),
            cooldown: Some(time::duration_from_seconds(row.cooldown_seconds)),
            channels: row.channels.unwrap_or_default().0,
            escalation: channels::escalation(row.escalation),
            created_at: Some(time::to_proto(row.created_at)),
            updated_at: Some(time::to_proto(row.updated_at)),
            version_id: row.version_id,
            flap_threshold: row.flap_threshold,
            flap_window: row.flap_window_seconds.map(time::duration_from_seconds),
        }
    }
}

//! `AlertRuleService`.

use std::pin::Pin;

use futures_util::Stream;
use sea_orm::{
    ActiveModelTrait, ColumnTrait, DatabaseTransaction, DbBackend, EntityTrait, QueryFilter, QuerySelect, Select,
    sea_query::Expr,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::{
    announcement::announce,
    channels,
    check::{UPDATABLE, next_version},
    document, legacy, stats,
    zones::refuse_unknown_zones,
};
use crate::{
    alerts::engine::{live::LiveRules, schedule},
    db::{Db, row},
    entity::{
        alert::AlertSeverity,
        alert_rule::{self, Entity},
    },
    error::{Error, Result},
    pb::{
        self, ChangeKind, ImportAction, alert_rule_service_server::AlertRuleService,
        preview_schedule_request::Of as RequestedSchedule,
    },
    rpc::{Reply, check, enums::FromProto, mask::UpdateMask, page::Page, time},
};

/// Implementation of `AlertRuleService`.
#[derive(Debug, Clone)]
pub struct AlertRules {
    /// Database of the rules.
    pub db: Db,
    /// Cache of the compiled rules, refreshed after every change.
    pub rules: LiveRules,
    /// Ends streams at shutdown.
    pub shutdown: CancellationToken,
}

impl AlertRules {
    /// Refreshes the compiled rules before the response, so that the caller's next event meets the
    /// change.
    async fn apply(&self, ids: &[Uuid]) {
        if let Err(error) = self.rules.refresh(ids).await {
            // The change is committed. The change feed triggers another refresh.
            tracing::warn!(%error, "alert rules cannot be refreshed; the change takes effect with a delay");
        }
    }
}

#[tonic::async_trait]
impl AlertRuleService for AlertRules {
    type TestAlertRuleStream = Pin<Box<dyn Stream<Item = Result<pb::TestAlertRuleResponse, Status>> + Send>>;

    async fn create_alert_rule(&self, request: Request<pb::CreateAlertRuleRequest>) -> Reply<pb::AlertRule> {
        let rule = request.into_inner().alert_rule.ok_or_else(|| Error::invalid("alert_rule", "is required"))?;
        let rule = legacy::translate(rule)?;
        let row = rule.checked()?;
        let creating = self.db.write(async |tx| {
            refuse_unknown_zones(tx, &rule.zone_ids, &[]).await?;
            channels::refuse_unknown(tx, &rule, None).await?;
            announce(tx, ChangeKind::Created, row.insert(tx).await?).await
        });
        let rule = creating.await?;
        self.apply(&parsed_id(&rule)).await;
        Ok(Response::new(rule))
    }

    async fn get_alert_rule(&self, request: Request<pb::GetAlertRuleRequest>) -> Reply<pb::AlertRule> {
        let id = check::uuid("id", &request.into_inner().id)?;
        let rule = Entity::find_by_id(id).one(self.db.reader()).await.map_err(Error::from)?;
        Ok(Response::new(row::require(rule, "alert rule", id)?.into()))
    }

    async fn list_alert_rules(&self, request: Request<pb::ListAlertRulesRequest>) -> Reply<pb::ListAlertRulesResponse> {
        let request = request.into_inner();
        let filter = request.filter.unwrap_or_default();
        let page = Page::parse(request.page_size, &request.page_token, "alert_rules", &filter)?;
        let columns = (alert_rule::Column::CreatedAt, alert_rule::Column::Id);
        let key = |rule: &alert_rule::Model| (rule.created_at, rule.id);
        let (alert_rules, next_page_token) =
            page.newest_first(self.db.reader(), filter.select(self.db.backend())?, columns, key).await?;
        Ok(Response::new(pb::ListAlertRulesResponse { alert_rules, next_page_token }))
    }

    async fn preview_schedule(
        &self,
        request: Request<pb::PreviewScheduleRequest>,
    ) -> Reply<pb::PreviewScheduleResponse> {
        let request = request.into_inner();
        let preview = schedule::Preview::parse(&request)?;
        let schedule = match request.of {
            Some(RequestedSchedule::Schedule(schedule)) => Some(schedule::from_proto("schedule", &schedule)?),
            Some(RequestedSchedule::RuleId(id)) => {
                let id = check::uuid("rule_id", &id)?;
                let rule = Entity::find_by_id(id).one(self.db.reader()).await;
                row::require(rule.map_err(Error::from)?, "alert rule", id)?.schedule
            }
            None => return Err(Error::invalid("rule_id", "or schedule is required").into()),
        };
        Ok(Response::new(preview.windows(schedule.as_ref())?))
    }

    async fn explain_event(&self, request: Request<pb::ExplainEventRequest>) -> Reply<pb::ExplainEventResponse> {
        Ok(Response::new(self.explain(request.into_inner()).await?))
    }

    async fn test_alert_rule(&self, request: Request<pb::TestAlertRuleRequest>) -> Reply<Self::TestAlertRuleStream> {
        let responses = self.backtest(request.into_inner()).await?;
        Ok(Response::new(Box::pin(responses)))
    }

    async fn update_alert_rule(&self, request: Request<pb::UpdateAlertRuleRequest>) -> Reply<pb::AlertRule> {
        let request = request.into_inner();
        let changes = request.alert_rule.ok_or_else(|| Error::invalid("alert_rule", "is required"))?;
        let id = check::uuid("alert_rule.id", &changes.id)?;
        let mask = UpdateMask::parse(request.update_mask, &UPDATABLE)?;
        let updating = self.db.write(async |tx| {
            let before = find_locked(tx, id).await?;
            refuse_stale(request.expected_version_id, &before)?;
            let zone_ids = before.zone_ids.clone().unwrap_or_default().0;
            // The resulting rule is validated as a whole, like a new rule.
            let before_message = pb::AlertRule::from(before.clone());
            let changed = before_message.clone().with(changes, &mask);
            let rule = legacy::translate(changed)?;
            let row = rule.checked()?;
            refuse_unknown_zones(tx, &rule.zone_ids, &zone_ids).await?;
            channels::refuse_unknown(tx, &rule, Some(&before_message)).await?;
            let Some(row) = next_version(row, &before) else {
                return Ok(before.into());
            };
            announce(tx, ChangeKind::Updated, row.update(tx).await?).await
        });
        let rule = updating.await?;
        self.apply(&parsed_id(&rule)).await;
        Ok(Response::new(rule))
    }

    async fn delete_alert_rule(&self, request: Request<pb::DeleteAlertRuleRequest>) -> Reply<()> {
        let request = request.into_inner();
        let id = check::uuid("id", &request.id)?;
        let deleted = self.db.write(async |tx| {
            let rule = find_locked(tx, id).await?;
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

    async fn clone_alert_rule(&self, request: Request<pb::CloneAlertRuleRequest>) -> Reply<pb::AlertRule> {
        let rule = self.copy(request.into_inner()).await?;
        self.apply(&parsed_id(&rule)).await;
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
        let changed = response
            .results
            .iter()
            .filter(|result| [ImportAction::Created, ImportAction::Updated].contains(&result.action()));
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

/// Parses the id of a rule. Empty for a malformed id.
fn parsed_id(rule: &pb::AlertRule) -> Vec<Uuid> {
    Uuid::try_parse(&rule.id).into_iter().collect()
}

/// Loads a rule and locks the row until the transaction ends.
async fn find_locked(tx: &DatabaseTransaction, id: Uuid) -> Result<alert_rule::Model> {
    row::require(Entity::find_by_id(id).lock_exclusive().one(tx).await?, "alert rule", id)
}

fn refuse_stale(expected: Option<i32>, rule: &alert_rule::Model) -> Result<()> {
    if expected.is_none_or(|expected| expected == rule.version_id) {
        return Ok(());
    }
    let resource = "alert rule";
    Err(Error::StaleVersion { resource })
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
            select = select.filter(row::contains(Expr::col(alert_rule::Column::Name), backend, &name));
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
            escalation: channels::escalation_to_proto(row.escalation),
            created_at: Some(time::to_proto(row.created_at)),
            updated_at: Some(time::to_proto(row.updated_at)),
            version_id: row.version_id,
            flap_threshold: row.flap_threshold,
            flap_window: row.flap_window_seconds.map(time::duration_from_seconds),
        }
    }
}

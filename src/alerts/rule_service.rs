//! `AlertRuleService`.

use std::collections::HashSet;

use prost::Message;
use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, DatabaseTransaction, DbBackend, EntityTrait,
    QueryFilter, QueryOrder, QuerySelect, Select, sea_query::Expr,
};
use tonic::{Request, Response};
use uuid::Uuid;

use super::{legacy, rules::Rules, schedule, template::Template};
use crate::{
    db::Db,
    entity::{
        self, Strings,
        alert::AlertSeverity,
        alert_rule::{self, ActiveModel, Entity},
        camera_zone,
    },
    error::{Error, Result},
    feed::{self, Record, Topic},
    pb::{
        self, ChangeKind, alert_rule_service_server::AlertRuleService,
        preview_schedule_request::Of, watch_response::Update,
    },
    rpc::{Reply, check, enums::FromProto, mask::UpdateMask, page::Page, row, time},
};

/// The fields that an Update may change.
const UPDATABLE: [&str; 14] = [
    "name",
    "description",
    "enabled",
    "severity",
    "risk_threshold",
    "object_types",
    "camera_ids",
    "zone_ids",
    "min_confidence",
    "schedule",
    "conditions",
    "dedup_key_template",
    "cooldown_seconds",
    "channels",
];

const DEFAULT_TEMPLATE: &str = "{camera_id}:{rule_id}";
const DEFAULT_COOLDOWN_SECONDS: i32 = 300;
const LONGEST_COOLDOWN_SECONDS: i32 = 31_536_000; // a year

/// The alert rules.
#[derive(Debug, Clone)]
pub struct AlertRules {
    /// Where they are kept.
    pub db: Db,
    /// The compiled ones, which every change brings up to date.
    pub rules: Rules,
}

impl AlertRules {
    /// Brings the compiled rules up to date before the caller is answered, so that its next event meets the change.
    async fn apply(&self) {
        if let Err(error) = self.rules.reload().await {
            // The change is committed, and the feed will have the rules read again.
            tracing::warn!(%error, "a change of the alert rules is in force a moment later");
        }
    }
}

#[tonic::async_trait]
impl AlertRuleService for AlertRules {
    async fn create_alert_rule(
        &self,
        request: Request<pb::CreateAlertRuleRequest>,
    ) -> Reply<pb::AlertRule> {
        let rule = request
            .into_inner()
            .alert_rule
            .ok_or_else(|| Error::invalid("alert_rule", "is required"))?;
        let rule = legacy::translate(rule)?;
        let row = ActiveModel {
            conditions: Set(None),
            ..rule.checked()?
        };
        let rule = self.db.write(async |tx| {
            refuse_unknown_zones(tx, &rule.zone_ids, &[]).await?;
            announce(tx, ChangeKind::Created, row.insert(tx).await?).await
        });
        let rule = rule.await?;
        self.apply().await;
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
        Ok(Response::new(row::found(rule, "alert rule", id)?.into()))
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
                row::found(rule.map_err(Error::from)?, "alert rule", id)?.schedule
            }
            None => return Err(Error::invalid("rule_id", "or schedule is required").into()),
        };
        Ok(Response::new(preview.of(schedule.as_ref())?))
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
            let updated_at = entity::now().max(before.updated_at);
            let zone_ids = before.zone_ids.clone().unwrap_or_default().0;
            // What the rule will be is checked as a whole, as a new one is.
            let rule = legacy::translate(pb::AlertRule::from(before).with(changes, &mask))?;
            let mut row = ActiveModel {
                conditions: Set(None),
                ..rule.checked()?
            };
            refuse_unknown_zones(tx, &rule.zone_ids, &zone_ids).await?;
            row.id = Set(id);
            row.created_at = sea_orm::NotSet;
            row.updated_at = Set(updated_at);
            announce(tx, ChangeKind::Updated, row.update(tx).await?).await
        });
        let rule = rule.await?;
        self.apply().await;
        Ok(Response::new(rule))
    }

    async fn delete_alert_rule(&self, request: Request<pb::DeleteAlertRuleRequest>) -> Reply<()> {
        let id = check::uuid("id", &request.into_inner().id)?;
        let deleted = self.db.write(async |tx| {
            let rule = locked(tx, id).await?;
            Entity::delete_by_id(id).exec(tx).await?;
            announce(tx, ChangeKind::Deleted, rule).await
        });
        deleted.await?;
        self.apply().await;
        Ok(Response::new(()))
    }
}

/// The rule; nobody else changes it before the transaction ends.
async fn locked(tx: &DatabaseTransaction, id: Uuid) -> Result<alert_rule::Model> {
    row::found(
        Entity::find_by_id(id).lock_exclusive().one(tx).await?,
        "alert rule",
        id,
    )
}

/// Refuses zones that do not exist, by the path of the first, unless the rule named them before. Nobody
/// deletes the others before the transaction ends.
async fn refuse_unknown_zones(
    tx: &DatabaseTransaction,
    named: &[String],
    before: &[String],
) -> Result<()> {
    use camera_zone::Column::Id;
    let before: HashSet<_> = before.iter().collect();
    let new: HashSet<_> = named.iter().filter(|id| !before.contains(id)).collect();
    if new.is_empty() {
        return Ok(());
    }
    let known: Vec<String> = camera_zone::Entity::find()
        .select_only()
        .column(Id)
        .filter(Id.is_in(new.iter().copied()))
        // Always in the same order, or two transactions could wait for each other.
        .order_by_asc(Id)
        .lock_shared()
        .into_tuple()
        .all(tx)
        .await?;
    let known: HashSet<_> = known.iter().collect();
    let unknown = |id: &String| new.contains(id) && !known.contains(id);
    match named.iter().position(unknown) {
        Some(at) => Err(Error::BrokenReference {
            field: format!("alert_rule.zone_ids[{at}]"),
            problem: "names a camera zone that does not exist".into(),
        }),
        None => Ok(()),
    }
}

async fn announce(
    tx: &DatabaseTransaction,
    kind: ChangeKind,
    rule: alert_rule::Model,
) -> Result<pb::AlertRule> {
    let rule = pb::AlertRule::from(rule);
    let change = pb::AlertRuleChange {
        kind: kind.into(),
        alert_rule: Some(rule.clone()),
    };
    let message = pb::WatchResponse {
        update: Some(Update::AlertRule(change)),
        ..Default::default()
    };
    let record = Record {
        topic: Topic::AlertRules,
        key: rule.id.clone(),
        message: message.encode_to_vec(),
    };
    feed::record(tx, [record]).await?;
    Ok(rule)
}

impl pb::AlertRule {
    /// This rule with the fields of `changes` that `mask` covers.
    fn with(mut self, changes: Self, mask: &UpdateMask) -> Self {
        macro_rules! change {
            ($field:ident, $is_set:expr) => {
                if mask.covers(stringify!($field), $is_set(&changes.$field)) {
                    self.$field = changes.$field;
                }
            };
        }
        change!(name, |name: &String| !name.is_empty());
        change!(description, Option::is_some);
        change!(enabled, Option::is_some);
        change!(severity, |severity: &i32| *severity != 0);
        change!(risk_threshold, Option::is_some);
        change!(object_types, |values: &Vec<_>| !values.is_empty());
        change!(camera_ids, |values: &Vec<_>| !values.is_empty());
        change!(zone_ids, |values: &Vec<_>| !values.is_empty());
        change!(min_confidence, Option::is_some);
        change!(schedule, Option::is_some);
        change!(conditions, Option::is_some);
        change!(dedup_key_template, Option::is_some);
        change!(cooldown_seconds, Option::is_some);
        change!(channels, |values: &Vec<_>| !values.is_empty());
        self
    }

    /// Every column that a client decides, checked; absent fields get their defaults.
    fn checked(&self) -> Result<ActiveModel> {
        let strings = |field: &str, values: &[String], most, longest| {
            let values =
                check::texts(&format!("alert_rule.{field}"), values, most, &(1..=longest))?;
            Ok::<_, Error>(Some(Strings(values)).filter(|values| !values.0.is_empty()))
        };
        let risk_threshold = self
            .risk_threshold
            .map(|score| check::within("alert_rule.risk_threshold", score, 0..=100));
        let min_confidence = self
            .min_confidence
            .map(|least| check::within("alert_rule.min_confidence", least, 0.0..=1.0));
        let schedule = self
            .schedule
            .as_ref()
            .map(|schedule| schedule::from_proto("alert_rule.schedule", schedule));
        let template = self
            .dedup_key_template
            .as_deref()
            .unwrap_or(DEFAULT_TEMPLATE);
        Template::parse("alert_rule.dedup_key_template", template)?;
        let cooldown = self.cooldown_seconds.unwrap_or(DEFAULT_COOLDOWN_SECONDS);
        Ok(ActiveModel {
            name: Set(check::name("alert_rule.name", &self.name, 1..=255)?),
            description: Set(check::optional_text(
                "alert_rule.description",
                self.description.as_deref(),
                0..=65_536,
            )?),
            enabled: Set(self.enabled.unwrap_or(true)),
            severity: Set(
                AlertSeverity::from_proto("alert_rule.severity", self.severity)?
                    .unwrap_or(AlertSeverity::Medium),
            ),
            risk_threshold: Set(risk_threshold.transpose()?),
            object_types: Set(strings("object_types", &self.object_types, 100, 255)?),
            camera_ids: Set(strings("camera_ids", &self.camera_ids, 1_000, 64)?),
            zone_ids: Set(strings("zone_ids", &self.zone_ids, 1_000, 64)?),
            min_confidence: Set(min_confidence.transpose()?),
            schedule: Set(schedule.transpose()?),
            dedup_key_template: Set(template.to_string()),
            cooldown_seconds: Set(check::within(
                "alert_rule.cooldown_seconds",
                cooldown,
                0..=LONGEST_COOLDOWN_SECONDS,
            )?),
            channels: Set(strings("channels", &self.channels, 100, 100)?),
            ..Default::default()
        })
    }
}

impl pb::AlertRuleFilter {
    fn select(&self, backend: DbBackend) -> Result<Select<Entity>> {
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
            cooldown_seconds: Some(row.cooldown_seconds),
            channels: row.channels.unwrap_or_default().0,
            created_at: Some(time::to_proto(row.created_at)),
            updated_at: Some(time::to_proto(row.updated_at)),
        }
    }
}

//! Announcements of rule changes to `MonitorService.Watch`.

use sea_orm::DatabaseTransaction;

use crate::{
    entity::alert_rule,
    error::Result,
    feed::{self, Record},
    pb::{self, ChangeKind, watch_response::Update},
    topics,
};

/// Announces a change of a rule within the transaction and returns the rule as a message.
pub(crate) async fn announce(
    tx: &DatabaseTransaction,
    kind: ChangeKind,
    rule: alert_rule::Model,
) -> Result<pb::AlertRule> {
    let rule = pb::AlertRule::from(rule);
    feed::record(tx, [announcement(kind, rule.clone())]).await?;
    Ok(rule)
}

/// Builds the feed record of a change of a rule.
pub(crate) fn announcement(kind: ChangeKind, rule: pb::AlertRule) -> Record {
    let key = rule.id.clone();
    let change = pb::AlertRuleChange { kind: kind.into(), alert_rule: Some(rule) };
    topics::record(key, Update::AlertRule(change))
}

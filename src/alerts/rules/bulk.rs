//! `SetAlertRulesEnabled` and `CloneAlertRule`.

use std::collections::HashSet;

use sea_orm::{
    ActiveModelTrait, ColumnTrait, DatabaseTransaction, EntityTrait, QueryFilter, QueryOrder, QuerySelect,
    sea_query::{Expr, ExprTrait, LockType},
};
use uuid::Uuid;

use super::{
    announcement::{announce, announcement},
    legacy,
    service::AlertRules,
};
use crate::{
    db::row,
    entity::{
        self,
        alert_rule::{self, Column, Entity},
    },
    error::{Error, Result},
    feed,
    pb::{self, ChangeKind},
    rpc::check,
};

/// Largest number of rules that one statement changes.
const MAX_RULES_PER_STATEMENT: usize = 500;

/// Largest length of a rule name, in characters.
const MAX_NAME_CHARS: usize = 255;

/// Suffix of the default name of a copy.
const COPY_SUFFIX: &str = " (copy)";

impl AlertRules {
    /// Enables or disables rules. Also returns the ids of the changed rules.
    pub(crate) async fn set_enabled(
        &self,
        request: pb::SetAlertRulesEnabledRequest,
    ) -> Result<(pb::SetAlertRulesEnabledResponse, Vec<Uuid>)> {
        let enabled = request.enabled.ok_or_else(|| Error::invalid("enabled", "is required"))?;
        let ids = check::uuids("ids", &request.ids)?;
        let select = match &request.filter {
            Some(_) if !ids.is_empty() => {
                return Err(Error::invalid("filter", "must not be set with ids"));
            }
            Some(filter) => filter.select(self.db.backend())?,
            None if ids.is_empty() => {
                return Err(Error::invalid("ids", "or filter is required"));
            }
            None => Entity::find().filter(Column::Id.is_in(ids.iter().copied())),
        };
        self.db
            .write(async |tx| {
                let rules = select
                    // A fixed order avoids deadlocks.
                    .order_by_asc(Column::Id)
                    // `FOR NO KEY UPDATE` does not block ingests that raise alerts of the rules.
                    .lock(LockType::NoKeyUpdate)
                    .all(tx)
                    .await?;
                let known: HashSet<_> = rules.iter().map(|rule| rule.id).collect();
                let matched = count(rules.len())?;
                let mut changed_rules = rules;
                changed_rules.retain(|rule| rule.enabled != enabled);
                let changed = count(changed_rules.len())?;
                let changed_ids = changed_rules.iter().map(|rule| rule.id).collect();
                if !request.dry_run {
                    set_enabled_of(tx, changed_rules, enabled).await?;
                }
                let unknown = ids.into_iter().filter(|id| !known.contains(id));
                let response = pb::SetAlertRulesEnabledResponse {
                    matched,
                    changed,
                    unknown_ids: unknown.map(|id| id.to_string()).collect(),
                };
                Ok((response, changed_ids))
            })
            .await
    }

    /// Creates a rule with the fields of another rule.
    pub(crate) async fn copy(&self, request: pb::CloneAlertRuleRequest) -> Result<pb::AlertRule> {
        let id = check::uuid("id", &request.id)?;
        let name = request.name.map(|name| check::name("name", &name, 1..=MAX_NAME_CHARS)).transpose()?;
        self.db
            .write(async |tx| {
                let stored = Entity::find_by_id(id).one(tx).await?;
                let original = row::require(stored, "alert rule", id)?;
                let rule = pb::AlertRule {
                    name: name.unwrap_or_else(|| copy_name(&original.name)),
                    enabled: Some(request.enabled.unwrap_or(false)),
                    ..original.into()
                };
                let row = legacy::translate(rule)?.checked()?;
                announce(tx, ChangeKind::Created, row.insert(tx).await?).await
            })
            .await
    }
}

/// Sets `enabled` of locked rules and announces the changes.
async fn set_enabled_of(tx: &DatabaseTransaction, mut rules: Vec<alert_rule::Model>, enabled: bool) -> Result<()> {
    let now = entity::now();
    for rules in rules.chunks(MAX_RULES_PER_STATEMENT) {
        let ids: Vec<Uuid> = rules.iter().map(|rule| rule.id).collect();
        let updated_at = Expr::case(Expr::col(Column::UpdatedAt).gt(now), Expr::col(Column::UpdatedAt));
        Entity::update_many()
            .col_expr(Column::Enabled, Expr::value(enabled))
            // `updated_at` never decreases, even if the clock is set back.
            .col_expr(Column::UpdatedAt, updated_at.finally(Expr::value(now)).into())
            .col_expr(Column::VersionId, Expr::col(Column::VersionId).add(1))
            .filter(Column::Id.is_in(ids))
            .exec(tx)
            .await?;
    }
    for rule in &mut rules {
        rule.enabled = enabled;
        rule.updated_at = Ord::max(now, rule.updated_at);
        rule.version_id += 1;
    }
    let records = rules.into_iter().map(|rule| announcement(ChangeKind::Updated, rule.into()));
    feed::record(tx, records).await
}

fn count(rules: usize) -> Result<i32> {
    i32::try_from(rules).map_err(Error::internal)
}

/// Returns the default name of a copy, at most 255 characters.
fn copy_name(name: &str) -> String {
    let kept_chars = MAX_NAME_CHARS - COPY_SUFFIX.len();
    let end = name.char_indices().nth(kept_chars).map(|(index, _)| index);
    format!("{}{COPY_SUFFIX}", &name[..end.unwrap_or(name.len())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_copy_fits() {
        for (name, expected) in [
            ("Door".to_string(), "Door (copy)".to_string()),
            ("ü".repeat(248), format!("{} (copy)", "ü".repeat(248))),
            ("ü".repeat(249), format!("{} (copy)", "ü".repeat(248))),
            ("ü".repeat(255), format!("{} (copy)", "ü".repeat(248))),
        ] {
            let copy = copy_name(&name);
            assert!(copy.chars().count() <= MAX_NAME_CHARS);
            assert_eq!(copy, expected);
        }
    }
}

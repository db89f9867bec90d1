//! Many rules at once, and one made of another.

use std::collections::HashSet;

use sea_orm::{
    ActiveModelTrait, ColumnTrait, DatabaseTransaction, EntityTrait, QueryFilter, QueryOrder,
    QuerySelect,
    sea_query::{Expr, ExprTrait, LockType},
};
use uuid::Uuid;

use super::{
    legacy,
    service::{AlertRules, announce, announcement},
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

/// How many rules one statement changes.
const ROWS: usize = 500;

/// How long a name may be, in characters.
const LONGEST_NAME: usize = 255;

/// What follows the name of the original.
const COPY: &str = " (copy)";

impl AlertRules {
    /// Enables or disables rules. Also gives the ids of those that were changed.
    pub(crate) async fn set_enabled(
        &self,
        request: pb::SetAlertRulesEnabledRequest,
    ) -> Result<(pb::SetAlertRulesEnabledResponse, Vec<Uuid>)> {
        let enabled = request.enabled;
        let enabled = enabled.ok_or_else(|| Error::invalid("enabled", "is required"))?;
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
                    // Always in the same order, or two transactions could wait for each other.
                    .order_by_asc(Column::Id)
                    // Ingests that raise alerts of these rules need not wait.
                    .lock(LockType::NoKeyUpdate)
                    .all(tx)
                    .await?;
                let known: HashSet<_> = rules.iter().map(|rule| rule.id).collect();
                let matched = count(rules.len())?;
                let mut others = rules;
                others.retain(|rule| rule.enabled != enabled);
                let changed = count(others.len())?;
                let changed_ids = others.iter().map(|rule| rule.id).collect();
                if !request.dry_run {
                    switch(tx, others, enabled).await?;
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

    /// Creates a rule with the fields of another one.
    pub(crate) async fn copy(&self, request: pb::CloneAlertRuleRequest) -> Result<pb::AlertRule> {
        let id = check::uuid("id", &request.id)?;
        let name = request
            .name
            .map(|name| check::name("name", &name, 1..=LONGEST_NAME))
            .transpose()?;
        self.db
            .write(async |tx| {
                let original = Entity::find_by_id(id).one(tx).await?;
                let original = row::require(original, "alert rule", id)?;
                let rule = pb::AlertRule {
                    name: name.unwrap_or_else(|| copied(&original.name)),
                    enabled: Some(request.enabled.unwrap_or(false)),
                    ..original.into()
                };
                let row = legacy::translate(rule)?.checked()?;
                announce(tx, ChangeKind::Created, row.insert(tx).await?).await
            })
            .await
    }
}

/// Gives rules that are locked the other state, and announces them.
async fn switch(
    tx: &DatabaseTransaction,
    mut rules: Vec<alert_rule::Model>,
    enabled: bool,
) -> Result<()> {
    let now = entity::now();
    for rules in rules.chunks(ROWS) {
        let ids: Vec<Uuid> = rules.iter().map(|rule| rule.id).collect();
        let later = Expr::case(
            Expr::col(Column::UpdatedAt).gt(now),
            Expr::col(Column::UpdatedAt),
        );
        Entity::update_many()
            .col_expr(Column::Enabled, Expr::value(enabled))
            // Clocks are set back; the order of the versions is not.
            .col_expr(Column::UpdatedAt, later.finally(Expr::value(now)).into())
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
    let records = rules
        .into_iter()
        .map(|rule| announcement(ChangeKind::Updated, rule.into()));
    feed::record(tx, records).await
}

fn count(rules: usize) -> Result<i32> {
    i32::try_from(rules).map_err(Error::internal)
}

/// The name of a copy.
fn copied(name: &str) -> String {
    let room = LONGEST_NAME - COPY.len();
    let end = name.char_indices().nth(room).map(|(at, _)| at);
    format!("{}{COPY}", &name[..end.unwrap_or(name.len())])
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
            let copy = copied(&name);
            assert!(copy.chars().count() <= LONGEST_NAME);
            assert_eq!(copy, expected);
        }
    }
}

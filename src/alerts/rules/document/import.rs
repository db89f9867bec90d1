//! `ImportAlertRules`: from a document to the table.

use std::collections::{BTreeSet, HashMap, HashSet};

use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, DatabaseTransaction, EntityTrait, QueryFilter, QueryOrder,
    QuerySelect, TryIntoModel, sea_query::LockType,
};
use uuid::Uuid;

use super::read::{Entry, read};
use crate::{
    alerts::rules::{
        announcement::announcement,
        channels::refuse_unknown_names,
        check::next_version,
        legacy,
        zones::{lock_existing_zones, unknown_zone},
    },
    db::{Db, bulk::insert_all},
    entity::alert_rule::{self, ActiveModel, Column, Entity},
    error::{Error, Result},
    feed,
    pb::{self, ChangeKind, ImportAction},
    rpc::work,
};

/// Largest number of rules per query.
const MAX_RULES_PER_QUERY: usize = 1_000;

/// Rule of the document, validated.
struct CheckedRule {
    id: Option<Uuid>,
    zone_ids: Vec<String>,
    /// Names of all channels, each with its position in the document.
    channels: Vec<(String, String)>,
    row: ActiveModel,
}

/// Planned change of one rule.
struct PlannedChange {
    result: pb::ImportedAlertRule,
    action: ImportAction,
    /// Row to write. `None` for an unchanged rule.
    row: Option<ActiveModel>,
}

/// Creates and updates the rules of a document.
pub(in crate::alerts) async fn import(
    db: &Db,
    request: pb::ImportAlertRulesRequest,
) -> Result<pb::ImportAlertRulesResponse> {
    let pb::ImportAlertRulesRequest { document, dry_run } = request;
    let checking = work::run_by_size(document.len(), move || {
        read(&document)?
            .into_iter()
            .enumerate()
            .map(|(position, entry)| check(position, entry))
            .collect::<Result<Vec<_>>>()
    });
    let rules = checking.await?;
    let have_ids: Vec<_> = rules.iter().map(|rule| rule.id.is_some()).collect();
    db.write(async |tx| {
        let before = lock_existing(tx, &rules).await?;
        refuse_unknown_zones(tx, &rules, &before).await?;
        refuse_unknown_channels(tx, &rules, &before).await?;
        let plans: Vec<_> = rules.into_iter().map(|rule| plan(rule, &before)).collect();
        let count = |action| {
            let number = plans.iter().filter(|plan| plan.action == action).count();
            i32::try_from(number).map_err(Error::internal)
        };
        let mut response = pb::ImportAlertRulesResponse {
            results: plans.iter().map(|plan| plan.result.clone()).collect(),
            created: count(ImportAction::Created)?,
            updated: count(ImportAction::Updated)?,
            unchanged: count(ImportAction::Unchanged)?,
        };
        if !dry_run {
            apply(tx, plans).await?;
            return Ok(response);
        }
        for (result, has_id) in response.results.iter_mut().zip(have_ids) {
            if !has_id {
                result.id.clear();
            }
        }
        Ok(response)
    })
    .await
}

/// Validates a rule like `CreateAlertRule`. Errors have the position in the document.
fn check(position: usize, entry: Entry) -> Result<CheckedRule> {
    let checked = legacy::translate(entry.rule).and_then(|rule| Ok((rule.checked()?, rule)));
    let (row, rule) = checked.map_err(|error| at_position(position, error))?;
    Ok(CheckedRule {
        id: entry.id,
        channels: rule.named_channels(&format!("alert_rules[{position}]")),
        zone_ids: rule.zone_ids,
        row,
    })
}

fn at_position(position: usize, error: Error) -> Error {
    let Error::Invalid { field, problem } = error else {
        return error;
    };
    let field = field.strip_prefix("alert_rule.").unwrap_or(&field);
    Error::invalid(format!("alert_rules[{position}].{field}"), problem)
}

/// Returns the existing rules of the document by id, locked until the transaction ends.
async fn lock_existing(tx: &DatabaseTransaction, rules: &[CheckedRule]) -> Result<HashMap<Uuid, alert_rule::Model>> {
    let distinct_ids: BTreeSet<_> = rules.iter().filter_map(|rule| rule.id).collect();
    let ids: Vec<_> = distinct_ids.into_iter().collect();
    let mut before = HashMap::with_capacity(ids.len());
    for ids in ids.chunks(MAX_RULES_PER_QUERY) {
        let rows = Entity::find()
            .filter(Column::Id.is_in(ids.iter().copied()))
            // A fixed order avoids deadlocks.
            .order_by_asc(Column::Id)
            // `FOR NO KEY UPDATE` does not block ingests that raise alerts of the rules.
            .lock(LockType::NoKeyUpdate)
            .all(tx)
            .await?;
        before.extend(rows.into_iter().map(|row| (row.id, row)));
    }
    Ok(before)
}

/// Fails with `BROKEN_REFERENCE` at the first zone that does not exist and that the rule did not
/// name before.
async fn refuse_unknown_zones(
    tx: &DatabaseTransaction,
    rules: &[CheckedRule],
    before: &HashMap<Uuid, alert_rule::Model>,
) -> Result<()> {
    let mut new_zones = Vec::new();
    for (position, rule) in rules.iter().enumerate() {
        let old_zones: HashSet<_> = rule
            .id
            .and_then(|id| before.get(&id))
            .and_then(|row| row.zone_ids.as_ref())
            .iter()
            .flat_map(|ids| &ids.0)
            .collect();
        let zone_ids = rule.zone_ids.iter().enumerate();
        new_zones.extend(zone_ids.filter(|(_, id)| !old_zones.contains(id)).map(|(index, id)| (position, index, id)));
    }
    let ids = new_zones.iter().map(|(_, _, id)| *id).collect();
    let existing = lock_existing_zones(tx, &ids).await?;
    match new_zones.iter().find(|(_, _, id)| !existing.contains(*id)) {
        Some((position, index, _)) => Err(unknown_zone(&format!("alert_rules[{position}]"), *index)),
        None => Ok(()),
    }
}

/// Fails with `BROKEN_REFERENCE` at the first channel that does not exist and that the rule did not
/// name before.
async fn refuse_unknown_channels(
    tx: &DatabaseTransaction,
    rules: &[CheckedRule],
    before: &HashMap<Uuid, alert_rule::Model>,
) -> Result<()> {
    let mut new_channels = Vec::new();
    for rule in rules {
        let old_row = rule.id.and_then(|id| before.get(&id)).cloned();
        let old_channels = old_row.map(|row| pb::AlertRule::from(row).named_channels(""));
        let old_names: HashSet<_> = old_channels.iter().flatten().map(|(_, name)| name).collect();
        let channels = rule.channels.iter();
        new_channels.extend(channels.filter(|(_, name)| !old_names.contains(name)).cloned());
    }
    refuse_unknown_names(tx, new_channels).await
}

fn plan(rule: CheckedRule, before: &HashMap<Uuid, alert_rule::Model>) -> PlannedChange {
    let id = rule.id.unwrap_or_else(Uuid::now_v7);
    let (action, row) = match before.get(&id) {
        None => {
            let mut row = rule.row;
            row.id = Set(id);
            (ImportAction::Created, Some(row))
        }
        Some(before) => match next_version(rule.row, before) {
            Some(row) => (ImportAction::Updated, Some(row)),
            None => (ImportAction::Unchanged, None),
        },
    };
    let result = pb::ImportedAlertRule { id: id.to_string(), action: action.into() };
    PlannedChange { result, action, row }
}

/// Writes the rules, and announces them in document order.
async fn apply(tx: &DatabaseTransaction, plans: Vec<PlannedChange>) -> Result<()> {
    let (mut new_rows, mut records) = (Vec::new(), Vec::new());
    for plan in plans {
        let Some(row) = plan.row else { continue };
        let (kind, rule) = if plan.action == ImportAction::Created {
            new_rows.push(row.clone());
            (ChangeKind::Created, row.try_into_model()?)
        } else {
            (ChangeKind::Updated, row.update(tx).await?)
        };
        records.push(announcement(kind, rule.into()));
    }
    insert_all(tx, new_rows).await?;
    feed::record(tx, records).await
}

//! From a document into the table.

use std::collections::{BTreeSet, HashMap, HashSet};

use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, DatabaseTransaction, EntityTrait, QueryFilter,
    QueryOrder, QuerySelect, TryIntoModel, sea_query::LockType,
};
use uuid::Uuid;

use super::read::{Entry, read};
use crate::{
    alerts::rules::{
        channels::refuse_unknown_names,
        check::replacing,
        legacy,
        service::{announcement, known_zones, unknown_zone},
    },
    db::{Db, bulk::insert_all},
    entity::alert_rule::{self, ActiveModel, Column, Entity},
    error::{Error, Result},
    feed,
    pb::{self, ChangeKind, ImportAction},
    rpc::work,
};

/// How many rules one query asks about.
const ROWS: usize = 1_000;

/// A rule of a document that is within its bounds.
struct Checked {
    id: Option<Uuid>,
    zone_ids: Vec<String>,
    /// The channels that it names, each with its place.
    channels: Vec<(String, String)>,
    row: ActiveModel,
}

/// What is to be done with a rule.
struct Plan {
    result: pb::ImportedAlertRule,
    action: ImportAction,
    /// `None` if it is left alone.
    row: Option<ActiveModel>,
}

/// Creates and updates rules as the document says.
pub(in crate::alerts) async fn import(
    db: &Db,
    request: pb::ImportAlertRulesRequest,
) -> Result<pb::ImportAlertRulesResponse> {
    let pb::ImportAlertRulesRequest { document, dry_run } = request;
    let rules = work::run_by_size(document.len(), move || {
        let entries = read(&document)?.into_iter().enumerate();
        let rules = entries.map(|(at, entry)| check(at, entry));
        rules.collect::<Result<Vec<_>>>()
    });
    let rules = rules.await?;
    let named: Vec<_> = rules.iter().map(|rule| rule.id.is_some()).collect();
    db.write(async |tx| {
        let before = locked(tx, &rules).await?;
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
            carry_out(tx, plans).await?;
            return Ok(response);
        }
        for (result, named) in response.results.iter_mut().zip(named) {
            if !named {
                result.id.clear();
            }
        }
        Ok(response)
    })
    .await
}

/// Checks a rule as that of a Create, and names what is wrong by its place in the document.
fn check(at: usize, entry: Entry) -> Result<Checked> {
    let rule = legacy::translate(entry.rule);
    let checked = rule.and_then(|rule| Ok((rule.checked()?, rule)));
    let (row, rule) = checked.map_err(|error| placed(at, error))?;
    Ok(Checked {
        id: entry.id,
        channels: rule.named_channels(&format!("alert_rules[{at}]")),
        zone_ids: rule.zone_ids,
        row,
    })
}

fn placed(at: usize, error: Error) -> Error {
    let Error::Invalid { field, problem } = error else {
        return error;
    };
    let field = field.strip_prefix("alert_rule.").unwrap_or(&field);
    Error::invalid(format!("alert_rules[{at}].{field}"), problem)
}

/// The rules of the document that exist, by their ids. Nobody else changes them before the transaction
/// ends.
async fn locked(
    tx: &DatabaseTransaction,
    rules: &[Checked],
) -> Result<HashMap<Uuid, alert_rule::Model>> {
    let ids: BTreeSet<_> = rules.iter().filter_map(|rule| rule.id).collect();
    let ids: Vec<_> = ids.into_iter().collect();
    let mut before = HashMap::with_capacity(ids.len());
    for ids in ids.chunks(ROWS) {
        let rows = Entity::find()
            .filter(Column::Id.is_in(ids.iter().copied()))
            // Always in the same order, or two transactions could wait for each other.
            .order_by_asc(Column::Id)
            // Ingests that raise alerts of these rules need not wait.
            .lock(LockType::NoKeyUpdate)
            .all(tx)
            .await?;
        before.extend(rows.into_iter().map(|row| (row.id, row)));
    }
    Ok(before)
}

/// Refuses zones that do not exist, unless the rule named them before.
async fn refuse_unknown_zones(
    tx: &DatabaseTransaction,
    rules: &[Checked],
    before: &HashMap<Uuid, alert_rule::Model>,
) -> Result<()> {
    let mut new = Vec::new();
    for (at, rule) in rules.iter().enumerate() {
        let before = rule.id.and_then(|id| before.get(&id));
        let before = before.and_then(|before| before.zone_ids.as_ref());
        let before: HashSet<_> = before.iter().flat_map(|ids| &ids.0).collect();
        let ids = rule.zone_ids.iter().enumerate();
        new.extend(
            ids.filter(|(_, id)| !before.contains(id))
                .map(|(place, id)| (at, place, id)),
        );
    }
    let known = known_zones(tx, &new.iter().map(|(_, _, id)| *id).collect()).await?;
    match new.iter().find(|(_, _, id)| !known.contains(*id)) {
        Some((at, place, _)) => Err(unknown_zone(&format!("alert_rules[{at}]"), *place)),
        None => Ok(()),
    }
}

/// Refuses channels that do not exist, unless the rule named them before.
async fn refuse_unknown_channels(
    tx: &DatabaseTransaction,
    rules: &[Checked],
    before: &HashMap<Uuid, alert_rule::Model>,
) -> Result<()> {
    let mut new = Vec::new();
    for rule in rules {
        let before = rule.id.and_then(|id| before.get(&id)).cloned();
        let before = before.map(|before| pb::AlertRule::from(before).named_channels(""));
        let before: HashSet<_> = before.iter().flatten().map(|(_, name)| name).collect();
        let named = rule.channels.iter();
        new.extend(named.filter(|(_, name)| !before.contains(name)).cloned());
    }
    refuse_unknown_names(tx, new).await
}

fn plan(rule: Checked, before: &HashMap<Uuid, alert_rule::Model>) -> Plan {
    let id = rule.id.unwrap_or_else(Uuid::now_v7);
    let (action, row) = match before.get(&id) {
        None => {
            let mut row = rule.row;
            row.id = Set(id);
            (ImportAction::Created, Some(row))
        }
        Some(before) => match replacing(rule.row, before) {
            Some(row) => (ImportAction::Updated, Some(row)),
            None => (ImportAction::Unchanged, None),
        },
    };
    let result = pb::ImportedAlertRule {
        id: id.to_string(),
        action: action.into(),
    };
    Plan {
        result,
        action,
        row,
    }
}

/// Writes the rules, and announces them in the order of the document.
async fn carry_out(tx: &DatabaseTransaction, plans: Vec<Plan>) -> Result<()> {
    let (mut new, mut records) = (Vec::new(), Vec::new());
    for plan in plans {
        let Some(row) = plan.row else { continue };
        let (kind, rule) = if plan.action == ImportAction::Created {
            new.push(row.clone());
            (ChangeKind::Created, row.try_into_model()?)
        } else {
            (ChangeKind::Updated, row.update(tx).await?)
        };
        records.push(announcement(kind, rule.into()));
    }
    insert_all(tx, new).await?;
    feed::record(tx, records).await
}

//! Cooldowns. The database decides which of several matches with one dedup key raises an alert.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write,
};

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, EntityTrait, Statement, Value};
use uuid::Uuid;

use crate::{
    entity::{alert_cooldown, manual_alert_cooldown},
    error::{Error, Result},
};

/// Largest number of claims per statement.
const MAX_CLAIMS_PER_STATEMENT: usize = 200;

/// Counts repeats on the owning alerts. Locks the alerts by id first, to avoid deadlocks.
const COUNT_POSTGRES: &str = "\
    WITH standing AS (SELECT a.id, r.repeats \
        FROM unnest($1::text::uuid[], $2::text::bigint[]) AS r (id, repeats) \
        JOIN alerts AS a ON a.id = r.id ORDER BY a.id FOR NO KEY UPDATE OF a) \
    UPDATE alerts SET suppressed_count = suppressed_count + standing.repeats, \
    last_suppressed_at = greatest(last_suppressed_at, $3) \
    FROM standing WHERE alerts.id = standing.id";
const COUNT_SQLITE: &str = "\
    UPDATE alerts SET suppressed_count = suppressed_count + r.repeats, \
    last_suppressed_at = max(coalesce(last_suppressed_at, ''), ?) \
    FROM (SELECT column1 AS id, column2 AS repeats FROM (VALUES {rows})) AS r \
    WHERE alerts.id = r.id";

/// Column types of an inserted claim of a rule, on PostgreSQL.
const RULE_CLAIM_TYPES: [&str; 7] = ["uuid", "text", "uuid", "bigint", "bigint", "bigint", "bigint"];

/// Request to raise an alert under a dedup key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Rule that scopes the dedup key. `None` for an alert of `CreateAlert`.
    pub rule_id: Option<Uuid>,
    pub dedup_key: String,
    /// Id of the alert, if the claim is granted.
    pub alert_id: Uuid,
    /// Time of the claim in microseconds since the Unix epoch.
    pub raised_at_us: i64,
    /// Cooldown in microseconds, more than 0.
    pub cooldown_us: i64,
}

/// Claims the right to raise alerts. Returns the owner of the cooldown for every claim, in order:
/// the alert of the claim if granted, or the alert whose cooldown is running.
///
/// One statement decides atomically across processes. A refused claim is counted on the cooldown
/// row. Fails with `BROKEN_REFERENCE` if a rule does not exist.
pub async fn claim(tx: &DatabaseTransaction, claims: &[Claim]) -> Result<Vec<Uuid>> {
    // A statement cannot update a row twice, so that claims with equal keys share the row of the
    // first claim.
    let mut first_claims: HashMap<(Option<Uuid>, &str), (&Claim, i64)> = HashMap::with_capacity(claims.len());
    for claim in claims {
        let entry = first_claims.entry((claim.rule_id, &claim.dedup_key)).or_insert((claim, -1));
        entry.1 += 1;
    }
    let mut rows: Vec<_> = first_claims.into_values().collect();
    // A fixed order avoids deadlocks.
    rows.sort_by(|(a, _), (b, _)| (a.rule_id, &a.dedup_key).cmp(&(b.rule_id, &b.dedup_key)));
    let first_of_rules = rows.partition_point(|(claim, _)| claim.rule_id.is_none());
    let (manual_claims, rule_claims) = rows.split_at(first_of_rules);

    let mut owners: HashMap<(Option<Uuid>, String), Uuid> = HashMap::with_capacity(rows.len());
    for rows in manual_claims.chunks(MAX_CLAIMS_PER_STATEMENT).chain(rule_claims.chunks(MAX_CLAIMS_PER_STATEMENT)) {
        for row in tx.query_all_raw(claim_statement(tx, rows)).await? {
            let key = (row.try_get("", "rule_id")?, row.try_get("", "dedup_key")?);
            owners.insert(key, row.try_get("", "alert_id")?);
        }
    }
    let owner_of = |claim: &Claim| {
        let owner_id = owners.get(&(claim.rule_id, claim.dedup_key.clone()));
        owner_id.copied().ok_or_else(|| Error::BrokenReference {
            field: "rule_id".into(),
            problem: "names an alert rule that does not exist".into(),
        })
    };
    claims.iter().map(owner_of).collect()
}

/// Transfers granted cooldowns to other alerts, because flapping suppresses the claiming alerts.
/// The cooldowns continue.
pub async fn transfer(tx: &DatabaseTransaction, claims: &[(Claim, Uuid)]) -> Result<()> {
    for claims in claims.chunks(MAX_CLAIMS_PER_STATEMENT) {
        let mut sql = String::from(
            "INSERT INTO alert_cooldowns (rule_id, dedup_key, alert_id, raised_at_us, cooldown_us) VALUES ",
        );
        let mut values: Vec<Value> = Vec::with_capacity(claims.len() * 5);
        for (at, (claim, owner)) in claims.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            let n = at * 5;
            let parameters: Vec<_> = (n + 1..=n + 5).map(|number| format!("${number}")).collect();
            sql.extend([comma, "(", &parameters.join(", "), ")"]);
            values.extend([
                claim.rule_id.into(),
                claim.dedup_key.clone().into(),
                (*owner).into(),
                claim.raised_at_us.into(),
                claim.cooldown_us.into(),
            ]);
        }
        // The rows exist and are locked by this transaction.
        sql.push_str(" ON CONFLICT (rule_id, dedup_key) DO UPDATE SET alert_id = excluded.alert_id");
        let backend = tx.get_database_backend();
        tx.execute_raw(Statement::from_sql_and_values(backend, sql, values)).await?;
    }
    Ok(())
}

/// Returns the number of refused claims by owning alert.
pub fn repeats(claims: &[Claim], owners: &[Uuid]) -> BTreeMap<Uuid, i64> {
    let mut repeats = BTreeMap::new();
    for (claim, owner) in claims.iter().zip(owners) {
        if claim.alert_id != *owner {
            *repeats.entry(*owner).or_default() += 1;
        }
    }
    repeats
}

/// Adds repeats to stored alerts. Deleted alerts are skipped.
pub async fn count(tx: &DatabaseTransaction, repeats: &BTreeMap<Uuid, i64>, at: DateTime<Utc>) -> Result<()> {
    let backend = tx.get_database_backend();
    if repeats.is_empty() {
        return Ok(());
    }
    if backend == DbBackend::Postgres {
        let ids: Vec<_> = repeats.keys().map(Uuid::to_string).collect();
        let counts: Vec<_> = repeats.values().map(i64::to_string).collect();
        let array = |values: Vec<String>| Value::from(format!("{{{}}}", values.join(",")));
        let values = [array(ids), array(counts), at.into()];
        let count = Statement::from_sql_and_values(backend, COUNT_POSTGRES, values);
        tx.execute_raw(count).await?;
        return Ok(());
    }
    let counts: Vec<_> = repeats.iter().collect();
    for chunk in counts.chunks(MAX_CLAIMS_PER_STATEMENT) {
        let rows = vec!["(?, ?)"; chunk.len()].join(", ");
        let mut values = vec![Value::from(at)];
        for (id, repeats) in chunk {
            values.extend([Value::from(**id), Value::from(**repeats)]);
        }
        let count = COUNT_SQLITE.replace("{rows}", &rows);
        tx.execute_raw(Statement::from_sql_and_values(backend, count, values)).await?;
    }
    Ok(())
}

/// Deletes the cooldown of a claim. The caller has locked the row.
pub(crate) async fn end(tx: &DatabaseTransaction, claim: &Claim) -> Result<()> {
    let key = claim.dedup_key.clone();
    match claim.rule_id {
        Some(rule_id) => alert_cooldown::Entity::delete_by_id((rule_id, key)).exec(tx).await?,
        None => manual_alert_cooldown::Entity::delete_by_id(key).exec(tx).await?,
    };
    Ok(())
}

/// Builds the statement for claims that are all of rules, or all of `CreateAlert`.
fn claim_statement(tx: &DatabaseTransaction, rows: &[(&Claim, i64)]) -> Statement {
    let manual = rows.iter().any(|(claim, _)| claim.rule_id.is_none());
    let (table, key, rule_id) = if manual {
        ("manual_alert_cooldowns", "dedup_key", "NULL AS rule_id")
    } else {
        ("alert_cooldowns", "rule_id, dedup_key", "rule_id")
    };
    let columns = "alert_id, raised_at_us, cooldown_us, suppressed_count, last_suppressed_at_us";
    let mut sql = format!("INSERT INTO {table} AS c ({key}, {columns}) VALUES ");
    let locks_rules = !manual && tx.get_database_backend() == DbBackend::Postgres;
    if locks_rules {
        sql = rule_lock_clause(rows);
        let insert = format!("INSERT INTO {table} AS c ({key}, {columns}) SELECT * FROM (VALUES ");
        sql.push_str(&insert);
    }
    let mut values: Vec<Value> = Vec::with_capacity(rows.len() * 7);
    for (at, (claim, repeats)) in rows.iter().enumerate() {
        let previous_values = values.len();
        values.extend(claim.rule_id.map(Value::from));
        values.extend([
            claim.dedup_key.clone().into(),
            claim.alert_id.into(),
            claim.raised_at_us.into(),
            claim.cooldown_us.into(),
            (*repeats).into(),
            (*repeats > 0).then_some(claim.raised_at_us).into(),
        ]);
        let mut parameters: Vec<_> = (previous_values + 1..=values.len()).map(|number| format!("${number}")).collect();
        if locks_rules && at == 0 {
            for (parameter, kind) in parameters.iter_mut().zip(RULE_CLAIM_TYPES) {
                parameter.extend(["::", kind]);
            }
        }
        let comma = if at == 0 { "" } else { ", " };
        // Writing to a string cannot fail.
        let _ = write!(sql, "{comma}({})", parameters.join(", "));
    }
    if locks_rules {
        sql.push_str(") AS v WHERE (SELECT all_there FROM locked)");
    }
    // A cooldown with a start in the future, from a wrong clock, restarts now with its own length.
    let is_over = "c.raised_at_us + excluded.cooldown_us <= excluded.raised_at_us";
    let conflict = format!(
        " ON CONFLICT ({key}) DO UPDATE SET \
         alert_id = CASE WHEN {is_over} THEN excluded.alert_id ELSE c.alert_id END, \
         raised_at_us = CASE WHEN {is_over} OR c.raised_at_us > excluded.raised_at_us \
             THEN excluded.raised_at_us ELSE c.raised_at_us END, \
         cooldown_us = excluded.cooldown_us, \
         suppressed_count = excluded.suppressed_count + CASE WHEN {is_over} THEN 0 ELSE c.suppressed_count + 1 END, \
         last_suppressed_at_us = CASE WHEN {is_over} THEN excluded.last_suppressed_at_us ELSE excluded.raised_at_us END \
         RETURNING {rule_id}, dedup_key, alert_id"
    );
    sql.push_str(&conflict);
    Statement::from_sql_and_values(tx.get_database_backend(), sql, values)
}

/// Builds the `WITH` clause that locks the rules of the claims by id and checks that all rules
/// exist. Deleting a rule locks the rule first, then its cooldowns and alerts. Claiming must lock
/// in the same order to avoid deadlocks.
fn rule_lock_clause(rows: &[(&Claim, i64)]) -> String {
    // The rule id is the first of seven parameters of each claim, and claims are sorted by rule.
    let mut parameters = Vec::new();
    let mut last = None;
    for (at, (claim, _)) in rows.iter().enumerate() {
        if last != claim.rule_id {
            parameters.push(format!("${}", at * RULE_CLAIM_TYPES.len() + 1));
            last = claim.rule_id;
        }
    }
    format!(
        "WITH rules AS (SELECT id FROM alert_rules WHERE id IN ({}) ORDER BY id FOR KEY SHARE), \
         locked AS MATERIALIZED (SELECT count(*) = {} AS all_there FROM rules) ",
        parameters.join(", "),
        parameters.len()
    )
}

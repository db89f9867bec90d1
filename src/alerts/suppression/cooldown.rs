//! Cooldowns: of many matches with one dedup key, who raises the alert is decided by the database.

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

/// How many claims one statement makes.
const ROWS: usize = 200;

/// Counts repeats on the alerts that stand for them, which are locked in the order of their ids first.
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

/// The types of what is inserted for a claim of a rule, on PostgreSQL.
const KINDS: [&str; 7] = [
    "uuid", "text", "uuid", "bigint", "bigint", "bigint", "bigint",
];

/// A match that wants to raise an alert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Whose key it is. `None`: that of an alert that is raised by hand.
    pub rule_id: Option<Uuid>,
    pub dedup_key: String,
    /// The id that the alert will have.
    pub alert_id: Uuid,
    /// In microseconds since 1970.
    pub raised_at_us: i64,
    /// In microseconds; more than 0.
    pub cooldown_us: i64,
}

/// Claims the right to raise alerts. For every claim, in order, gives the id of the alert that stands for it:
/// its own if it may raise one, else that of the alert whose cooldown it fell into.
///
/// One statement decides, whatever other processes do. A claim that may not raise
/// an alert is counted on the cooldown. Fails with `BROKEN_REFERENCE` if a rule is gone.
pub async fn claim(tx: &DatabaseTransaction, claims: &[Claim]) -> Result<Vec<Uuid>> {
    // A statement cannot touch a row twice, so that claims of one key share the first one's row.
    let mut first: HashMap<(Option<Uuid>, &str), (&Claim, i64)> =
        HashMap::with_capacity(claims.len());
    for claim in claims {
        let entry = first
            .entry((claim.rule_id, &claim.dedup_key))
            .or_insert((claim, -1));
        entry.1 += 1;
    }
    let mut rows: Vec<_> = first.into_values().collect();
    // Always in the same order, or two transactions could wait for each other.
    rows.sort_by(|(a, _), (b, _)| (a.rule_id, &a.dedup_key).cmp(&(b.rule_id, &b.dedup_key)));
    let manual = rows.partition_point(|(claim, _)| claim.rule_id.is_none());
    let (manual, of_rules) = rows.split_at(manual);

    let mut standing: HashMap<(Option<Uuid>, String), Uuid> = HashMap::with_capacity(rows.len());
    for rows in manual.chunks(ROWS).chain(of_rules.chunks(ROWS)) {
        for row in tx.query_all_raw(statement(tx, rows)).await? {
            let key = (row.try_get("", "rule_id")?, row.try_get("", "dedup_key")?);
            standing.insert(key, row.try_get("", "alert_id")?);
        }
    }
    let stands = |claim: &Claim| {
        let alert_id = standing.get(&(claim.rule_id, claim.dedup_key.clone()));
        alert_id.copied().ok_or_else(|| Error::BrokenReference {
            field: "rule_id".into(),
            problem: "names an alert rule that does not exist".into(),
        })
    };
    claims.iter().map(stands).collect()
}

/// Has other alerts stand for claims that were granted: the rules flap, and their own alerts are not
/// raised. Their cooldowns run all the same.
pub async fn hand_over(tx: &DatabaseTransaction, claims: &[(Claim, Uuid)]) -> Result<()> {
    for claims in claims.chunks(ROWS) {
        let mut sql = String::from(
            "INSERT INTO alert_cooldowns (rule_id, dedup_key, alert_id, raised_at_us, cooldown_us) VALUES ",
        );
        let mut values: Vec<Value> = Vec::with_capacity(claims.len() * 5);
        for (at, (claim, stands)) in claims.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            let n = at * 5;
            let parameters: Vec<_> = (n + 1..=n + 5).map(|number| format!("${number}")).collect();
            sql.extend([comma, "(", &parameters.join(", "), ")"]);
            values.extend([
                claim.rule_id.into(),
                claim.dedup_key.clone().into(),
                (*stands).into(),
                claim.raised_at_us.into(),
                claim.cooldown_us.into(),
            ]);
        }
        // The rows are there, and locked by us.
        sql.push_str(
            " ON CONFLICT (rule_id, dedup_key) DO UPDATE SET alert_id = excluded.alert_id",
        );
        let backend = tx.get_database_backend();
        tx.execute_raw(Statement::from_sql_and_values(backend, sql, values))
            .await?;
    }
    Ok(())
}

/// How many of the claims fell into the cooldown of each alert that stands for them.
pub fn repeats(claims: &[Claim], standing: &[Uuid]) -> BTreeMap<Uuid, i64> {
    let mut repeats = BTreeMap::new();
    for (claim, stands) in claims.iter().zip(standing) {
        if claim.alert_id != *stands {
            *repeats.entry(*stands).or_default() += 1;
        }
    }
    repeats
}

/// Counts repeats on stored alerts. Those that are gone are left out.
pub async fn count(
    tx: &DatabaseTransaction,
    repeats: &BTreeMap<Uuid, i64>,
    at: DateTime<Utc>,
) -> Result<()> {
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
    let repeats: Vec<_> = repeats.iter().collect();
    for repeats in repeats.chunks(ROWS) {
        let rows = vec!["(?, ?)"; repeats.len()].join(", ");
        let mut values = vec![Value::from(at)];
        for (id, repeats) in repeats {
            values.extend([Value::from(**id), Value::from(**repeats)]);
        }
        let count = COUNT_SQLITE.replace("{rows}", &rows);
        tx.execute_raw(Statement::from_sql_and_values(backend, count, values))
            .await?;
    }
    Ok(())
}

/// Ends the cooldown of this key, which nobody else changes before the transaction ends.
pub(crate) async fn end(tx: &DatabaseTransaction, claim: &Claim) -> Result<()> {
    let key = claim.dedup_key.clone();
    match claim.rule_id {
        Some(rule_id) => {
            alert_cooldown::Entity::delete_by_id((rule_id, key))
                .exec(tx)
                .await?
        }
        None => {
            manual_alert_cooldown::Entity::delete_by_id(key)
                .exec(tx)
                .await?
        }
    };
    Ok(())
}

/// Claims the right for claims that are all of rules, or all of none.
fn statement(tx: &DatabaseTransaction, rows: &[(&Claim, i64)]) -> Statement {
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
        sql = locked_rules(rows);
        let insert = format!("INSERT INTO {table} AS c ({key}, {columns}) SELECT * FROM (VALUES ");
        sql.push_str(&insert);
    }
    let mut values: Vec<Value> = Vec::with_capacity(rows.len() * 7);
    for (at, (claim, repeats)) in rows.iter().enumerate() {
        let before = values.len();
        values.extend(claim.rule_id.map(Value::from));
        values.extend([
            claim.dedup_key.clone().into(),
            claim.alert_id.into(),
            claim.raised_at_us.into(),
            claim.cooldown_us.into(),
            (*repeats).into(),
            (*repeats > 0).then_some(claim.raised_at_us).into(),
        ]);
        let parameters = before + 1..=values.len();
        let mut parameters: Vec<_> = parameters.map(|number| format!("${number}")).collect();
        if locks_rules && at == 0 {
            for (parameter, kind) in parameters.iter_mut().zip(KINDS) {
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
    // A cooldown that a wrong clock began in the future begins now, and lasts no longer than its own length.
    let over = "c.raised_at_us + excluded.cooldown_us <= excluded.raised_at_us";
    let conflict = format!(
        " ON CONFLICT ({key}) DO UPDATE SET \
         alert_id = CASE WHEN {over} THEN excluded.alert_id ELSE c.alert_id END, \
         raised_at_us = CASE WHEN {over} OR c.raised_at_us > excluded.raised_at_us \
             THEN excluded.raised_at_us ELSE c.raised_at_us END, \
         cooldown_us = excluded.cooldown_us, \
         suppressed_count = excluded.suppressed_count + CASE WHEN {over} THEN 0 ELSE c.suppressed_count + 1 END, \
         last_suppressed_at_us = CASE WHEN {over} THEN excluded.last_suppressed_at_us ELSE excluded.raised_at_us END \
         RETURNING {rule_id}, dedup_key, alert_id"
    );
    sql.push_str(&conflict);
    Statement::from_sql_and_values(tx.get_database_backend(), sql, values)
}

/// The beginning of a statement that first locks the rules of the claims, in the order of their ids, and tells whether
/// all of them are there. Whoever deletes a rule waits for its cooldowns and alerts, which
/// are locked later, with the rule in hand: who has one of them must not wait for the rule then.
fn locked_rules(rows: &[(&Claim, i64)]) -> String {
    // The rule is the first of the seven parameters of each claim, which come in the order of the rules.
    let mut parameters = Vec::new();
    let mut last = None;
    for (at, (claim, _)) in rows.iter().enumerate() {
        if last != claim.rule_id {
            parameters.push(format!("${}", at * KINDS.len() + 1));
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

//! Cooldowns: of many matches with one dedup key, who raises the alert is decided by the database.

use std::collections::HashMap;

use sea_orm::{ConnectionTrait, DatabaseTransaction, Statement, Value};
use uuid::Uuid;

use crate::error::Result;

/// How many claims one statement makes.
const ROWS: usize = 200;

/// A match that wants to raise an alert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub rule_id: Uuid,
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
/// an alert is counted on the cooldown.
pub async fn claim(tx: &DatabaseTransaction, claims: &[Claim]) -> Result<Vec<Uuid>> {
    // A statement cannot touch a row twice, so that claims of one key share the first one's row.
    let mut first: HashMap<(Uuid, &str), (&Claim, i64)> = HashMap::with_capacity(claims.len());
    for claim in claims {
        let entry = first
            .entry((claim.rule_id, &claim.dedup_key))
            .or_insert((claim, -1));
        entry.1 += 1;
    }
    let mut rows: Vec<_> = first.into_values().collect();
    // Always in the same order, or two transactions could wait for each other.
    rows.sort_by(|(a, _), (b, _)| (a.rule_id, &a.dedup_key).cmp(&(b.rule_id, &b.dedup_key)));

    let mut standing: HashMap<(Uuid, String), Uuid> = HashMap::with_capacity(rows.len());
    for rows in rows.chunks(ROWS) {
        for row in tx.query_all_raw(statement(tx, rows)).await? {
            let key = (row.try_get("", "rule_id")?, row.try_get("", "dedup_key")?);
            standing.insert(key, row.try_get("", "alert_id")?);
        }
    }
    let stands = |claim: &Claim| {
        let alert_id = standing.get(&(claim.rule_id, claim.dedup_key.clone()));
        alert_id
            .copied()
            .ok_or_else(|| crate::error::Error::internal("a claim was not answered"))
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

fn statement(tx: &DatabaseTransaction, rows: &[(&Claim, i64)]) -> Statement {
    let mut sql = String::from(
        "INSERT INTO alert_cooldowns AS c (rule_id, dedup_key, alert_id, raised_at_us, cooldown_us, \
         suppressed_count, last_suppressed_at_us) VALUES ",
    );
    let mut values: Vec<Value> = Vec::with_capacity(rows.len() * 7);
    for (at, (claim, repeats)) in rows.iter().enumerate() {
        let comma = if at == 0 { "" } else { ", " };
        let n = at * 7;
        let parameters: Vec<_> = (n + 1..=n + 7).map(|number| format!("${number}")).collect();
        sql.extend([comma, "(", &parameters.join(", "), ")"]);
        values.extend([
            claim.rule_id.into(),
            claim.dedup_key.clone().into(),
            claim.alert_id.into(),
            claim.raised_at_us.into(),
            claim.cooldown_us.into(),
            (*repeats).into(),
            (*repeats > 0).then_some(claim.raised_at_us).into(),
        ]);
    }
    let over = "c.raised_at_us + excluded.cooldown_us <= excluded.raised_at_us";
    let conflict = format!(
        " ON CONFLICT (rule_id, dedup_key) DO UPDATE SET \
         alert_id = CASE WHEN {over} THEN excluded.alert_id ELSE c.alert_id END, \
         raised_at_us = CASE WHEN {over} THEN excluded.raised_at_us ELSE c.raised_at_us END, \
         cooldown_us = excluded.cooldown_us, \
         suppressed_count = excluded.suppressed_count + CASE WHEN {over} THEN 0 ELSE c.suppressed_count + 1 END, \
         last_suppressed_at_us = CASE WHEN {over} THEN excluded.last_suppressed_at_us ELSE excluded.raised_at_us END \
         RETURNING rule_id, dedup_key, alert_id"
    );
    sql.push_str(&conflict);
    Statement::from_sql_and_values(tx.get_database_backend(), sql, values)
}

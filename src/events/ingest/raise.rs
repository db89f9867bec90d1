//! Creation of the alerts of a batch, with cooldowns and flapping.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use sea_orm::DatabaseTransaction;
use uuid::Uuid;

use super::stages::{EvaluatedIngest, Match, MatchResults, NewIngest, empty_outcome};
use crate::{
    alerts::{
        engine::rule::Rule,
        suppression::{
            cooldown::{self, Claim},
            flapping::{self, Decision, Firing, FlapLimit},
        },
    },
    entity::{
        alert::{self, AlertStatus},
        alert_rule::EscalationStep,
    },
    error::{Error, Result},
    pb::RuleStop,
};

/// Alert to insert, with the escalation of its rule.
type RaisedAlert = (alert::Model, Arc<[EscalationStep]>);

/// Claims cooldowns, applies flapping limits and decides the outcomes. Returns the results of each
/// ingest, and the alerts to insert.
pub(crate) async fn raise(
    tx: &DatabaseTransaction,
    new: &[NewIngest<'_>],
    now: DateTime<Utc>,
) -> Result<(Vec<MatchResults>, Vec<RaisedAlert>)> {
    let claims: Vec<_> = new
        .iter()
        .flat_map(|ingest| {
            let unsuppressed = ingest.evaluated.unsuppressed();
            unsuppressed.map(|matched| claim(ingest, matched, now.timestamp_micros()))
        })
        .collect();
    // A rule without a cooldown needs no claim.
    let contested: Vec<_> = claims.iter().filter(|claim| claim.cooldown_us > 0).cloned().collect();
    let contested_owners = cooldown::claim(tx, &contested).await?;
    let repeats = cooldown::repeats(&contested, &contested_owners);
    let mut contested_owners = contested_owners.into_iter();
    // Alert that owns the cooldown of each claim.
    let owners: Vec<_> = claims
        .iter()
        .map(|claim| {
            let contested_owner = (claim.cooldown_us > 0).then(|| contested_owners.next());
            contested_owner.flatten().unwrap_or(claim.alert_id)
        })
        .collect();
    let decisions = flapping::decide(tx, &firings(new, &claims, &owners)).await?;
    let mut remaining_repeats = flapping::redirect_repeats(repeats, &decisions);

    let mut raised = Vec::with_capacity(claims.len());
    let mut claims = claims.into_iter().zip(owners);
    let mut all_results = Vec::with_capacity(new.len());
    let mut transfers = Vec::new();
    for ingest in new {
        let EvaluatedIngest { rules, matches, .. } = ingest.evaluated;
        let mut results = MatchResults { outcomes: Vec::with_capacity(matches.len()), alerts: Vec::new() };
        for matched in matches {
            let rule = &rules[matched.rule];
            if let Some(suppression) = matched.suppression {
                results.outcomes.push(suppression.outcome(rule));
                continue;
            }
            let (claim, owner) = claims.next().ok_or_else(|| Error::internal("a match has no claim"))?;
            let decision = decisions.get(&owner).copied();
            let mut outcome = empty_outcome(rule);
            outcome.alert_id = Some(match decision {
                Some(Decision::Suppress(marked)) => marked.to_string(),
                Some(Decision::Raise | Decision::Mark) | None => owner.to_string(),
            });
            if owner != claim.alert_id {
                let seconds = claim.cooldown_us / 1_000_000;
                outcome.stopped_by = RuleStop::Cooldown.into();
                outcome.detail = format!("{} is in its cooldown of {seconds} s", claim.dedup_key);
            } else if let (Some(Decision::Suppress(marked)), Some(limit)) = (decision, rule.flap_limit) {
                outcome.stopped_by = RuleStop::Flapping.into();
                outcome.detail = limit.to_string();
                transfers.push((claim, marked));
            } else {
                outcome.fired = true;
                let mut row = alert_row(ingest, rule, matched, claim, now);
                if let (Some(Decision::Mark), Some(limit)) = (decision, rule.flap_limit) {
                    limit.mark(&mut row);
                }
                // Repeats within the same batch are part of the inserted row.
                row.suppressed_count = remaining_repeats.remove(&row.id).unwrap_or_default();
                row.last_suppressed_at = (row.suppressed_count > 0).then_some(now);
                results.alerts.push(row.clone().into());
                raised.push((row, rule.escalation.clone()));
            }
            results.outcomes.push(outcome);
        }
        all_results.push(results);
    }
    transfers.retain(|(claim, _)| claim.cooldown_us > 0);
    cooldown::transfer(tx, &transfers).await?;
    cooldown::count(tx, &remaining_repeats, now).await?;
    Ok((all_results, raised))
}

/// Returns the alerts that count towards flapping limits: not suppressed by a cooldown, of rules
/// with a limit.
fn firings(new: &[NewIngest<'_>], claims: &[Claim], owners: &[Uuid]) -> Vec<Firing> {
    let limits = new.iter().flat_map(|ingest| {
        let rules = &ingest.evaluated.rules;
        let unsuppressed = ingest.evaluated.unsuppressed();
        unsuppressed.map(|matched| rules[matched.rule].flap_limit)
    });
    let candidates = limits.zip(claims).zip(owners);
    let to_firing = |((limit, claim), owner): ((Option<FlapLimit>, &Claim), &Uuid)| {
        let alert_id = (*owner == claim.alert_id).then_some(*owner)?;
        Some(Firing { rule_id: claim.rule_id?, limit: limit?, alert_id, at_us: claim.raised_at_us })
    };
    candidates.filter_map(to_firing).collect()
}

fn claim(ingest: &NewIngest<'_>, matched: &Match, raised_at_us: i64) -> Claim {
    let rule = &ingest.evaluated.rules[matched.rule];
    Claim {
        rule_id: Some(rule.id),
        dedup_key: ingest.dedup_key(matched),
        alert_id: Uuid::now_v7(),
        raised_at_us,
        cooldown_us: rule.cooldown_us,
    }
}

/// Builds the alert row of a rule for an event.
fn alert_row(ingest: &NewIngest<'_>, rule: &Rule, matched: &Match, claim: Claim, now: DateTime<Utc>) -> alert::Model {
    let mut metadata = serde_json::json!({
        "matched_conditions": rule.conditions,
        "rule_name": rule.name,
    });
    if let Some(zone_id) = &matched.zone_id {
        metadata["zone_id"] = zone_id.clone().into();
    }
    alert::Model {
        id: claim.alert_id,
        event_id: ingest.event_id,
        rule_id: Some(rule.id),
        severity: rule.severity,
        status: AlertStatus::Pending,
        created_at: now,
        updated_at: now,
        delivered_at: None,
        channels: rule.channels.clone(),
        dedup_key: claim.dedup_key,
        metadata: Some(metadata),
        version_id: 1,
        camera_id: Some(ingest.evaluated.ingest.event.camera_id.clone()),
        suppressed_count: 0,
        last_suppressed_at: None,
        acknowledged_at: None,
        acknowledged_by: None,
        dismissed_at: None,
        dismissed_by: None,
    }
}

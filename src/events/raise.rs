//! Creation of the alerts of a batch, with cooldowns and flapping.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use sea_orm::DatabaseTransaction;
use uuid::Uuid;

use super::{
    batch::{EvaluatedIngest, Match},
    check::Ingest,
};
use crate::{
    alerts::{
        engine::{rule::Rule, template::Values},
        suppression::{
            cooldown::{self, Claim},
            flapping::{self, Decision, Firing, FlapLimit},
        },
    },
    entity::{
        alert::{self, AlertStatus},
        alert_rule::EscalationStep,
    },
    error::Result,
    pb::RuleStop,
};

/// Claims cooldowns, applies flapping limits and completes the outcomes. Returns the alerts to
/// insert, each with the escalation of its rule.
pub(super) async fn raise(
    tx: &DatabaseTransaction,
    new: &mut [&mut EvaluatedIngest],
    now: DateTime<Utc>,
) -> Result<Vec<(alert::Model, Arc<[EscalationStep]>)>> {
    let claims: Vec<_> = new
        .iter()
        .flat_map(|evaluated| {
            let free = evaluated
                .matches
                .iter()
                .filter(|matched| matched.is_unsuppressed());
            free.map(|matched| claim(evaluated, matched, now.timestamp_micros()))
        })
        .collect();
    // A rule without a cooldown needs no claim.
    let contested: Vec<_> = claims
        .iter()
        .filter(|claim| claim.cooldown_us > 0)
        .cloned()
        .collect();
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

    let mut claims = claims.into_iter().zip(owners);
    let mut rows = Vec::with_capacity(claims.len());
    let mut transfers = Vec::new();
    for evaluated in new.iter_mut() {
        let EvaluatedIngest {
            ingest,
            rules,
            matches,
            alerts,
            ..
        } = &mut **evaluated;
        let free = matches
            .iter_mut()
            .filter(|matched| matched.is_unsuppressed());
        for (matched, (claim, owner)) in free.zip(claims.by_ref()) {
            let rule = &rules[matched.rule];
            let decision = decisions.get(&owner);
            let outcome = &mut matched.outcome;
            outcome.alert_id = Some(match decision {
                Some(Decision::Suppress(marked)) => marked.to_string(),
                Some(Decision::Raise | Decision::Mark) | None => owner.to_string(),
            });
            if owner != claim.alert_id {
                let seconds = claim.cooldown_us / 1_000_000;
                outcome.stopped_by = RuleStop::Cooldown.into();
                outcome.detail = format!("{} is in its cooldown of {seconds} s", claim.dedup_key);
                continue;
            }
            if let (Some(Decision::Suppress(marked)), Some(flap)) = (decision, rule.flap_limit) {
                outcome.stopped_by = RuleStop::Flapping.into();
                outcome.detail = flap.to_string();
                transfers.push((claim, *marked));
                continue;
            }
            outcome.fired = true;
            let mut row = alert_row(ingest, rule, matched, claim, now);
            if let (Some(Decision::Mark), Some(flap)) = (decision, rule.flap_limit) {
                flap.mark(&mut row);
            }
            // Repeats within the same batch are part of the inserted row.
            row.suppressed_count = remaining_repeats.remove(&row.id).unwrap_or_default();
            row.last_suppressed_at = (row.suppressed_count > 0).then_some(now);
            alerts.push(row.clone().into());
            rows.push((row, rule.escalation.clone()));
        }
    }
    transfers.retain(|(claim, _)| claim.cooldown_us > 0);
    cooldown::transfer(tx, &transfers).await?;
    cooldown::count(tx, &remaining_repeats, now).await?;
    Ok(rows)
}

/// Returns the alerts that count towards flapping limits: not suppressed by a cooldown, of rules
/// with a limit.
fn firings(new: &[&mut EvaluatedIngest], claims: &[Claim], owners: &[Uuid]) -> Vec<Firing> {
    let free = new.iter().flat_map(|evaluated| {
        let free = evaluated
            .matches
            .iter()
            .filter(|matched| matched.is_unsuppressed());
        free.map(|matched| evaluated.rules[matched.rule].flap_limit)
    });
    let candidates = free.zip(claims).zip(owners);
    let to_firing = |((flap, claim), owner): ((Option<FlapLimit>, &Claim), &Uuid)| {
        let alert_id = (*owner == claim.alert_id).then_some(*owner)?;
        Some(Firing {
            rule_id: claim.rule_id?,
            limit: flap?,
            alert_id,
            at_us: claim.raised_at_us,
        })
    };
    candidates.filter_map(to_firing).collect()
}

fn claim(evaluated: &EvaluatedIngest, matched: &Match, raised_at_us: i64) -> Claim {
    let rule = &evaluated.rules[matched.rule];
    Claim {
        rule_id: Some(rule.id),
        dedup_key: dedup_key(evaluated, matched),
        alert_id: Uuid::now_v7(),
        raised_at_us,
        cooldown_us: rule.cooldown_us,
    }
}

/// Renders the dedup key of a match.
pub(super) fn dedup_key(evaluated: &EvaluatedIngest, matched: &Match) -> String {
    let (ingest, rule) = (&evaluated.ingest, &evaluated.rules[matched.rule]);
    rule.template.render(&Values {
        camera_id: &ingest.event.camera_id,
        rule_id: rule.id,
        object_type: matched.object_type.as_deref(),
        zone_id: matched.zone_id.as_deref(),
        event_id: ingest.event.id,
    })
}

/// Builds the alert row of a rule for an event.
fn alert_row(
    ingest: &Ingest,
    rule: &Rule,
    matched: &Match,
    claim: Claim,
    now: DateTime<Utc>,
) -> alert::Model {
    let mut metadata = serde_json::json!({
        "matched_conditions": rule.conditions,
        "rule_name": rule.name,
    });
    if let Some(zone_id) = &matched.zone_id {
        metadata["zone_id"] = zone_id.clone().into();
    }
    alert::Model {
        id: claim.alert_id,
        event_id: ingest.event.id,
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
        camera_id: Some(ingest.event.camera_id.clone()),
        suppressed_count: 0,
        last_suppressed_at: None,
        acknowledged_at: None,
        acknowledged_by: None,
        dismissed_at: None,
        dismissed_by: None,
    }
}

//! Which of the alerts of a batch are raised, and what holds the others back.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use sea_orm::DatabaseTransaction;
use uuid::Uuid;

use super::{
    batch::{Judged, Match},
    check::Ingest,
};
use crate::{
    alerts::{
        engine::{live::Rule, template::Values},
        suppression::{
            cooldown::{self, Claim},
            flapping::{self, Decision, Firing, Flap},
        },
    },
    entity::{
        alert::{self, AlertStatus},
        alert_rule::EscalationStep,
    },
    error::Result,
    pb::RuleStop,
};

/// Claims the right to raise the alerts; completes the outcomes, and returns the alerts that are
/// to be raised, each with the escalation of its rule.
pub(super) async fn raise(
    tx: &DatabaseTransaction,
    new: &mut [&mut Judged],
    now: DateTime<Utc>,
) -> Result<Vec<(alert::Model, Arc<[EscalationStep]>)>> {
    let claims = new.iter().flat_map(|judged| {
        let free = judged.matches.iter().filter(|found| found.is_free());
        free.map(|found| claim(judged, found, now.timestamp_micros()))
    });
    let claims: Vec<_> = claims.collect();
    // Without a cooldown there is nothing to claim.
    let contested: Vec<_> = claims
        .iter()
        .filter(|claim| claim.cooldown_us > 0)
        .cloned()
        .collect();
    let contested_by = cooldown::claim(tx, &contested).await?;
    let repeats = cooldown::repeats(&contested, &contested_by);
    let mut contested_by = contested_by.into_iter();
    // The alert that stands for each claim.
    let standing = claims.iter().map(|claim| {
        let standing = (claim.cooldown_us > 0).then(|| contested_by.next());
        standing.flatten().unwrap_or(claim.alert_id)
    });
    let standing: Vec<_> = standing.collect();
    let decisions = flapping::decide(tx, &firings(new, &claims, &standing)).await?;
    let mut repeats = flapping::handed_over(repeats, &decisions);

    let mut claims = claims.into_iter().zip(standing);
    let mut rows = Vec::with_capacity(claims.len());
    let mut held = Vec::new();
    for judged in new.iter_mut() {
        let Judged {
            ingest,
            rules,
            matches,
            alerts,
            ..
        } = &mut **judged;
        let free = matches.iter_mut().filter(|found| found.is_free());
        for (found, (claim, stands)) in free.zip(claims.by_ref()) {
            let rule = &rules[found.rule];
            let decision = decisions.get(&stands);
            let outcome = &mut found.outcome;
            outcome.alert_id = Some(match decision {
                Some(Decision::Hold(other)) => other.to_string(),
                Some(Decision::Raise | Decision::Mark) | None => stands.to_string(),
            });
            if stands != claim.alert_id {
                let seconds = claim.cooldown_us / 1_000_000;
                outcome.stopped_by = RuleStop::Cooldown.into();
                outcome.detail = format!("{} is in its cooldown of {seconds} s", claim.dedup_key);
                continue;
            }
            if let (Some(Decision::Hold(other)), Some(flap)) = (decision, rule.flap) {
                outcome.stopped_by = RuleStop::Flapping.into();
                outcome.detail = flap.to_string();
                held.push((claim, *other));
                continue;
            }
            outcome.fired = true;
            let mut row = alert(ingest, rule, found, claim, now);
            if let (Some(Decision::Mark), Some(flap)) = (decision, rule.flap) {
                flap.mark(&mut row);
            }
            // Its first repeats may have come with it.
            row.suppressed_count = repeats.remove(&row.id).unwrap_or_default();
            row.last_suppressed_at = (row.suppressed_count > 0).then_some(now);
            alerts.push(row.clone().into());
            rows.push((row, rule.escalation.clone()));
        }
    }
    held.retain(|(claim, _)| claim.cooldown_us > 0);
    cooldown::hand_over(tx, &held).await?;
    cooldown::count(tx, &repeats, now).await?;
    Ok(rows)
}

/// The alerts that are to be counted: those that no cooldown holds back, of rules that may flap.
fn firings(new: &[&mut Judged], claims: &[Claim], standing: &[Uuid]) -> Vec<Firing> {
    let free = new.iter().flat_map(|judged| {
        let free = judged.matches.iter().filter(|found| found.is_free());
        free.map(|found| judged.rules[found.rule].flap)
    });
    let firings = free.zip(claims).zip(standing);
    let firing = |((flap, claim), stands): ((Option<Flap>, &Claim), &Uuid)| {
        let alert_id = (*stands == claim.alert_id).then_some(*stands)?;
        Some(Firing {
            rule_id: claim.rule_id?,
            flap: flap?,
            alert_id,
            at_us: claim.raised_at_us,
        })
    };
    firings.filter_map(firing).collect()
}

fn claim(judged: &Judged, found: &Match, raised_at_us: i64) -> Claim {
    let rule = &judged.rules[found.rule];
    Claim {
        rule_id: Some(rule.id),
        dedup_key: dedup_key(judged, found),
        alert_id: Uuid::now_v7(),
        raised_at_us,
        cooldown_us: rule.cooldown_us,
    }
}

/// What makes an alert the same as another.
pub(super) fn dedup_key(judged: &Judged, found: &Match) -> String {
    let (ingest, rule) = (&judged.ingest, &judged.rules[found.rule]);
    rule.template.render(&Values {
        camera_id: &ingest.event.camera_id,
        rule_id: rule.id,
        object_type: found.object_type.as_deref(),
        zone_id: found.zone_id.as_deref(),
        event_id: ingest.event.id,
    })
}

/// The alert that a rule raises for an event.
fn alert(
    ingest: &Ingest,
    rule: &Rule,
    found: &Match,
    claim: Claim,
    now: DateTime<Utc>,
) -> alert::Model {
    let mut metadata = serde_json::json!({
        "matched_conditions": rule.conditions,
        "rule_name": rule.name,
    });
    if let Some(zone_id) = &found.zone_id {
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

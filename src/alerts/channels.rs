//! The channels that a rule names: at once, and in its escalation.

use std::collections::HashSet;

use sea_orm::DatabaseTransaction;

use super::deliveries;
use crate::{
    entity::alert_rule::{Escalation, EscalationStep},
    error::{Error, Result},
    pb,
    rpc::check,
};

/// How many steps an escalation may have, and how many channels each.
const STEPS: usize = 10;
const CHANNELS: usize = 100;

/// The longest time after which somebody else is told, in seconds.
const LONGEST: i32 = 604_800; // a week

impl pb::AlertRule {
    /// The channels that it names, each with the path of the field.
    fn named_channels(&self) -> impl Iterator<Item = (String, &String)> {
        let at_once = self.channels.iter().enumerate();
        let at_once = at_once.map(|(at, name)| (format!("alert_rule.channels[{at}]"), name));
        let later = self
            .escalation
            .iter()
            .enumerate()
            .flat_map(|(step, named)| {
                named.channels.iter().enumerate().map(move |(at, name)| {
                    let field = format!("alert_rule.escalation[{step}].channels[{at}]");
                    (field, name)
                })
            });
        at_once.chain(later)
    }

    /// The escalation, checked.
    pub(super) fn checked_escalation(&self) -> Result<Option<Escalation>> {
        let field = "alert_rule.escalation";
        if self.escalation.len() > STEPS {
            let problem = format!("must have at most {STEPS} entries");
            return Err(Error::invalid(field, problem));
        }
        let mut steps = Vec::with_capacity(self.escalation.len());
        let mut before = 0;
        for (at, step) in self.escalation.iter().enumerate() {
            let field = format!("{field}[{at}]");
            let after = format!("{field}.after_seconds");
            let after_seconds = check::within(&after, step.after_seconds, 1..=LONGEST)?;
            if after_seconds <= before {
                return Err(Error::invalid(after, "must be later than the step before"));
            }
            before = after_seconds;
            let field = format!("{field}.channels");
            let channels = check::texts(&field, &step.channels, CHANNELS, &(1..=100))?;
            if channels.is_empty() {
                return Err(Error::invalid(field, "is required"));
            }
            steps.push(EscalationStep {
                after_seconds,
                channels,
            });
        }
        Ok(Some(Escalation(steps)).filter(|steps| !steps.0.is_empty()))
    }
}

/// An escalation for the wire.
pub(super) fn escalation(escalation: Option<Escalation>) -> Vec<pb::EscalationStep> {
    let step = |step: EscalationStep| pb::EscalationStep {
        after_seconds: step.after_seconds,
        channels: step.channels,
    };
    let steps = escalation.unwrap_or_default().0.into_iter();
    steps.map(step).collect()
}

/// Refuses channels that do not exist, by the path of the first, unless the rule named them before.
pub(super) async fn refuse_unknown(
    tx: &DatabaseTransaction,
    rule: &pb::AlertRule,
    before: Option<&pb::AlertRule>,
) -> Result<()> {
    let old = before.into_iter().flat_map(pb::AlertRule::named_channels);
    let old: HashSet<_> = old.map(|(_, name)| name).collect();
    let new = rule
        .named_channels()
        .filter(|(_, name)| !old.contains(name));
    let new: Vec<_> = new.collect();
    if new.is_empty() {
        return Ok(());
    }
    let names = new.iter().map(|(_, name)| name.as_str());
    let known = deliveries::known(tx, names).await?;
    match new.into_iter().find(|(_, name)| !known.contains(*name)) {
        Some((field, _)) => Err(deliveries::unknown(field)),
        None => Ok(()),
    }
}

//! Validation of the notification channels and the escalation of a rule.

use std::collections::{BTreeSet, HashSet};

use sea_orm::{ColumnTrait, ConnectionTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};

use crate::{
    entity::{
        alert_rule::{Escalation, EscalationStep},
        notification_channel,
    },
    error::{Error, Result},
    pb,
    rpc::{check, time},
};

/// Largest number of escalation steps, and of channels per step.
const MAX_STEPS: usize = 10;
const MAX_CHANNELS_PER_STEP: usize = 100;

/// Largest delay of an escalation step, in seconds.
const MAX_DELAY_SECONDS: i32 = 604_800; // a week

impl pb::AlertRule {
    /// Returns the names of all channels of the rule, each with its field path below `rule`.
    pub(crate) fn named_channels(&self, rule: &str) -> Vec<(String, String)> {
        let immediate = self
            .channels
            .iter()
            .enumerate()
            .map(|(position, name)| (format!("{rule}.channels[{position}]"), name.clone()));
        let escalated = self.escalation.iter().enumerate().flat_map(|(step, named)| {
            let names = named.channels.iter().enumerate();
            names.map(move |(position, name)| {
                let field = format!("{rule}.escalation[{step}].channels[{position}]");
                (field, name.clone())
            })
        });
        immediate.chain(escalated).collect()
    }

    /// Validates the escalation.
    pub(crate) fn checked_escalation(&self) -> Result<Option<Escalation>> {
        let field = "alert_rule.escalation";
        if self.escalation.len() > MAX_STEPS {
            let problem = format!("must have at most {MAX_STEPS} entries");
            return Err(Error::invalid(field, problem));
        }
        let mut steps = Vec::with_capacity(self.escalation.len());
        let mut previous_seconds = 0;
        for (position, step) in self.escalation.iter().enumerate() {
            let step_field = format!("{field}[{position}]");
            let delay_field = format!("{step_field}.after");
            let delay = step.after.unwrap_or_default();
            let after_seconds = time::whole_seconds(&delay_field, delay, &(1..=MAX_DELAY_SECONDS))?;
            if after_seconds <= previous_seconds {
                return Err(Error::invalid(delay_field, "must be later than the step before"));
            }
            previous_seconds = after_seconds;
            let channels_field = format!("{step_field}.channels");
            let channels = check::texts(&channels_field, &step.channels, MAX_CHANNELS_PER_STEP, &(1..=100))?;
            if channels.is_empty() {
                return Err(Error::invalid(channels_field, "is required"));
            }
            steps.push(EscalationStep { after_seconds, channels });
        }
        Ok(Some(Escalation(steps)).filter(|steps| !steps.0.is_empty()))
    }
}

/// Converts an escalation to messages.
pub(crate) fn escalation_to_proto(escalation: Option<Escalation>) -> Vec<pb::EscalationStep> {
    let step = |step: EscalationStep| pb::EscalationStep {
        after: Some(time::duration_from_seconds(step.after_seconds)),
        channels: step.channels,
    };
    let steps = escalation.unwrap_or_default().0.into_iter();
    steps.map(step).collect()
}

/// Fails with `BROKEN_REFERENCE` at the first channel that does not exist and that the rule did not
/// name `before`.
pub(crate) async fn refuse_unknown(
    db: &impl ConnectionTrait,
    rule: &pb::AlertRule,
    before: Option<&pb::AlertRule>,
) -> Result<()> {
    let path = "alert_rule";
    let old_names: HashSet<_> =
        before.map(|before| before.named_channels(path)).into_iter().flatten().map(|(_, name)| name).collect();
    let mut new_names = rule.named_channels(path);
    new_names.retain(|(_, name)| !old_names.contains(name));
    refuse_unknown_names(db, new_names).await
}

/// Fails with `BROKEN_REFERENCE` at the first name without a channel. `named` has field paths and
/// names.
pub(crate) async fn refuse_unknown_names(db: &impl ConnectionTrait, named: Vec<(String, String)>) -> Result<()> {
    if named.is_empty() {
        return Ok(());
    }
    let existing = lock_existing(db, named.iter().map(|(_, name)| name.as_str())).await?;
    match named.into_iter().find(|(_, name)| !existing.contains(name)) {
        Some((field, _)) => {
            Err(Error::BrokenReference { field, problem: "names a notification channel that does not exist".into() })
        }
        None => Ok(()),
    }
}

/// Returns the names that exist, and locks the channels against deletion until the transaction
/// ends.
async fn lock_existing(db: &impl ConnectionTrait, names: impl Iterator<Item = &str>) -> Result<HashSet<String>> {
    use notification_channel::Column::Name;

    let names: BTreeSet<_> = names.collect();
    let existing: Vec<String> = notification_channel::Entity::find()
        .select_only()
        .column(Name)
        .filter(Name.is_in(names))
        // A fixed order avoids deadlocks.
        .order_by_asc(Name)
        .lock_shared()
        .into_tuple()
        .all(db)
        .await?;
    Ok(existing.into_iter().collect())
}

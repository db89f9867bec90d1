//! The channels that a rule names: at once, and in its escalation.

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

/// How many steps an escalation may have, and how many channels each.
const STEPS: usize = 10;
const CHANNELS: usize = 100;

/// The longest time after which somebody else is told, in seconds.
const LONGEST: i32 = 604_800; // a week

impl pb::AlertRule {
    /// The channels that it names, each with the path of the field below `rule`.
    pub(crate) fn named_channels(&self, rule: &str) -> Vec<(String, String)> {
        let at_once = self.channels.iter().enumerate();
        let at_once = at_once.map(|(at, name)| (format!("{rule}.channels[{at}]"), name.clone()));
        let later = self
            .escalation
            .iter()
            .enumerate()
            .flat_map(|(step, named)| {
                let names = named.channels.iter().enumerate();
                names.map(move |(at, name)| {
                    let field = format!("{rule}.escalation[{step}].channels[{at}]");
                    (field, name.clone())
                })
            });
        at_once.chain(later).collect()
    }

    /// The escalation, checked.
    pub(crate) fn checked_escalation(&self) -> Result<Option<Escalation>> {
        let field = "alert_rule.escalation";
        if self.escalation.len() > STEPS {
            let problem = format!("must have at most {STEPS} entries");
            return Err(Error::invalid(field, problem));
        }
        let mut steps = Vec::with_capacity(self.escalation.len());
        let mut before = 0;
        for (at, step) in self.escalation.iter().enumerate() {
            let field = format!("{field}[{at}]");
            let after = format!("{field}.after");
            let after_seconds = step.after.unwrap_or_default();
            let after_seconds = time::whole_seconds(&after, after_seconds, &(1..=LONGEST))?;
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
pub(crate) fn escalation(escalation: Option<Escalation>) -> Vec<pb::EscalationStep> {
    let step = |step: EscalationStep| pb::EscalationStep {
        after: Some(time::duration_from_seconds(step.after_seconds)),
        channels: step.channels,
    };
    let steps = escalation.unwrap_or_default().0.into_iter();
    steps.map(step).collect()
}

/// Refuses channels that do not exist, by the path of the first, unless the rule named them before.
pub(crate) async fn refuse_unknown(
    db: &impl ConnectionTrait,
    rule: &pb::AlertRule,
    before: Option<&pb::AlertRule>,
) -> Result<()> {
    let path = "alert_rule";
    let old = before.map(|before| before.named_channels(path));
    let old: HashSet<_> = old.into_iter().flatten().map(|(_, name)| name).collect();
    let mut new = rule.named_channels(path);
    new.retain(|(_, name)| !old.contains(name));
    refuse_unknown_names(db, new).await
}

/// Refuses names that no channel has, by the path of the first.
pub(crate) async fn refuse_unknown_names(
    db: &impl ConnectionTrait,
    named: Vec<(String, String)>,
) -> Result<()> {
    if named.is_empty() {
        return Ok(());
    }
    let known = known(db, named.iter().map(|(_, name)| name.as_str())).await?;
    match named.into_iter().find(|(_, name)| !known.contains(name)) {
        Some((field, _)) => Err(Error::BrokenReference {
            field,
            problem: "names a notification channel that does not exist".into(),
        }),
        None => Ok(()),
    }
}

/// Those of the names that channels have. Nobody deletes these before the transaction ends.
async fn known(
    db: &impl ConnectionTrait,
    names: impl Iterator<Item = &str>,
) -> Result<HashSet<String>> {
    use notification_channel::Column::Name;

    let names: BTreeSet<_> = names.collect();
    let known: Vec<String> = notification_channel::Entity::find()
        .select_only()
        .column(Name)
        .filter(Name.is_in(names))
        // Always in the same order, or two transactions could wait for each other.
        .order_by_asc(Name)
        .lock_shared()
        .into_tuple()
        .all(db)
        .await?;
    Ok(known.into_iter().collect())
}

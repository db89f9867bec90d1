//! Stages of an ingest: evaluated by the rules, new in a transaction, stored.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{
    alerts::engine::{rule::Rule, rule_set::RuleSet, template::Values},
    entity::{detection, event},
    error::Result,
    events::check::Ingest,
    pb::{self, RuleStop},
};

/// Response or error of one ingest of a batch.
pub(crate) type Answer = Result<pb::IngestEventResponse>;

/// Ingest with the matches of the rules, before the transaction.
#[derive(Debug)]
pub(crate) struct EvaluatedIngest {
    pub ingest: Ingest,
    pub rules: Arc<RuleSet>,
    /// Matching rules, in rule order.
    pub matches: Vec<Match>,
    /// Slots and outcomes of the other rules, in rule order. Empty unless `Ingest::explain` is set.
    pub stopped: Vec<(usize, pb::RuleOutcome)>,
}

/// Rule that matches an event.
#[derive(Debug)]
pub(crate) struct Match {
    /// Slot of the rule.
    pub rule: usize,
    pub object_type: Option<String>,
    pub zone_id: Option<String>,
    /// Suppression that is known before the transaction. `None` lets the match claim an alert.
    pub suppression: Option<Suppression>,
}

/// Suppression of a match by the event or by a silence.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Suppression {
    /// The event is snoozed until this time.
    Snoozed(DateTime<Utc>),
    /// The silence with this id is active.
    Silenced(Uuid),
}

/// Ingest without an earlier answer, with the ids of its rows.
#[derive(Debug)]
pub(crate) struct NewIngest<'a> {
    pub evaluated: &'a EvaluatedIngest,
    pub event_id: i64,
    /// One id per detection.
    pub detection_ids: Vec<i64>,
}

/// Final outcomes of the matches of an ingest.
#[derive(Debug)]
pub(crate) struct MatchResults {
    /// One outcome per match, in the order of the matches.
    pub outcomes: Vec<pb::RuleOutcome>,
    /// Raised alerts.
    pub alerts: Vec<pb::Alert>,
}

/// Ingest with all rows written. Takes effect when the transaction commits.
#[derive(Debug)]
pub(crate) struct StoredIngest {
    event_id: i64,
    detection_ids: Vec<i64>,
    results: MatchResults,
}

/// Result of one ingest of a batch.
#[derive(Debug)]
pub(crate) enum IngestResult {
    /// The ingest was repeated or refused, and wrote nothing.
    Answered(Box<Answer>),
    Stored(StoredIngest),
}

impl EvaluatedIngest {
    /// Returns the matches that no snooze or silence suppresses.
    pub(crate) fn unsuppressed(&self) -> impl Iterator<Item = &Match> {
        let matches = self.matches.iter();
        matches.filter(|matched| matched.suppression.is_none())
    }
}

impl Suppression {
    /// Builds the outcome of a suppressed match.
    pub(crate) fn outcome(self, rule: &Rule) -> pb::RuleOutcome {
        match self {
            Self::Snoozed(until) => pb::RuleOutcome {
                stopped_by: RuleStop::Snoozed.into(),
                detail: format!("the event is snoozed until {}", until.to_rfc3339()),
                ..empty_outcome(rule)
            },
            Self::Silenced(id) => pb::RuleOutcome {
                stopped_by: RuleStop::Silenced.into(),
                detail: format!("silence {id} is in force"),
                silence_id: Some(id.to_string()),
                ..empty_outcome(rule)
            },
        }
    }
}

/// Builds an outcome with the id and name of the rule only.
pub(crate) fn empty_outcome(rule: &Rule) -> pb::RuleOutcome {
    pb::RuleOutcome { rule_id: rule.id.to_string(), rule_name: rule.name.clone(), ..Default::default() }
}

impl NewIngest<'_> {
    /// Builds the row of the event.
    pub(crate) fn event(&self) -> event::Model {
        event::Model { id: self.event_id, ..self.evaluated.ingest.event.clone() }
    }

    /// Builds the rows of the detections.
    pub(crate) fn detections(&self) -> impl Iterator<Item = detection::Model> {
        let detections = self.evaluated.ingest.detections.iter();
        detections.zip(&self.detection_ids).map(|(detection, id)| detection::Model { id: *id, ..detection.clone() })
    }

    /// Renders the dedup key of a match.
    pub(crate) fn dedup_key(&self, matched: &Match) -> String {
        let rule = &self.evaluated.rules[matched.rule];
        rule.template.render(&Values {
            camera_id: &self.evaluated.ingest.event.camera_id,
            rule_id: rule.id,
            object_type: matched.object_type.as_deref(),
            zone_id: matched.zone_id.as_deref(),
            event_id: self.event_id,
        })
    }

    /// Completes the ingest after its rows are written.
    pub(crate) fn into_stored(self, results: MatchResults) -> StoredIngest {
        StoredIngest { event_id: self.event_id, detection_ids: self.detection_ids, results }
    }
}

impl IngestResult {
    /// Returns true if the ingest raised an alert.
    pub(crate) fn has_alerts(&self) -> bool {
        match self {
            Self::Answered(_) => false,
            Self::Stored(stored) => !stored.results.alerts.is_empty(),
        }
    }

    /// Builds the answer after the commit. `evaluated` is the ingest of this result.
    pub(crate) fn into_answer(self, evaluated: EvaluatedIngest) -> Answer {
        match self {
            Self::Answered(answer) => *answer,
            Self::Stored(stored) => Ok(stored.into_response(evaluated)),
        }
    }
}

impl StoredIngest {
    /// Number of stored detections.
    pub(crate) fn detections(&self) -> usize {
        self.detection_ids.len()
    }

    /// Raised alerts.
    pub(crate) fn alerts(&self) -> &[pb::Alert] {
        &self.results.alerts
    }

    fn into_response(self, evaluated: EvaluatedIngest) -> pb::IngestEventResponse {
        let EvaluatedIngest { ingest, matches, stopped, .. } = evaluated;
        let slots = matches.iter().map(|matched| matched.rule);
        let mut outcomes: Vec<_> = slots.zip(self.results.outcomes).collect();
        outcomes.extend(stopped);
        outcomes.sort_by_key(|(slot, _)| *slot);
        let detections = ingest.detections.into_iter().zip(self.detection_ids);
        pb::IngestEventResponse {
            event: Some(pb::Event { id: self.event_id, ..ingest.event.into() }),
            detections: detections.map(|(detection, id)| pb::Detection { id, ..detection.into() }).collect(),
            alerts: self.results.alerts,
            rule_outcomes: outcomes.into_iter().map(|(_, outcome)| outcome).collect(),
            replayed: false,
        }
    }
}

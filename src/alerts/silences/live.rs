//! In-memory cache of active and future silences, compiled once and shared by all requests.

use std::{collections::HashSet, sync::Arc};

use chrono::{DateTime, Utc};
use sea_orm::{ActiveEnum, ColumnTrait, EntityTrait, QueryFilter, QueryOrder};
use uuid::Uuid;

use crate::{
    batch::live::Live,
    db::Db,
    entity::{self, Strings, alert::AlertSeverity, silence},
    error::{Error, Result},
};

/// Silence, compiled for evaluation.
#[derive(Debug)]
struct Silence {
    id: Uuid,
    created_at: DateTime<Utc>,
    /// Camera ids. Empty matches any camera.
    camera_ids: HashSet<String>,
    /// Rule ids. Empty matches any rule.
    rule_ids: HashSet<Uuid>,
    /// Severities. Empty matches any severity.
    severities: Vec<AlertSeverity>,
    starts_at: DateTime<Utc>,
    ends_at: DateTime<Utc>,
}

/// Snapshot of the silences that had not ended, oldest first. Successive snapshots share unchanged
/// silences.
#[derive(Debug, Default, Clone)]
pub struct SilenceSet(Vec<Arc<Silence>>);

impl SilenceSet {
    fn compile(rows: Vec<silence::Model>) -> Self {
        let mut silences = Self::default();
        for row in rows {
            silences.insert_ordered(&row);
        }
        silences
    }

    /// Inserts a silence in order. An older version must be removed before.
    fn insert_ordered(&mut self, row: &silence::Model) {
        match Silence::compile(row) {
            Ok(silence) => {
                let key = |silence: &Silence| (silence.created_at, silence.id);
                let place = self.0.partition_point(|other| key(other) < key(&silence));
                self.0.insert(place, silence.into());
            }
            // Another program wrote the row past the API's validation. One invalid silence must not
            // stop the others, and must not suppress alerts.
            Err(error) => {
                tracing::error!(silence.id = %row.id, %error, "invalid silence is ignored");
            }
        }
    }

    /// Returns a snapshot with one silence replaced. `None` removes the silence.
    fn with(&self, id: Uuid, row: Option<&silence::Model>) -> Self {
        let mut silences = self.clone();
        silences.0.retain(|silence| silence.id != id);
        if let Some(row) = row {
            silences.insert_ordered(row);
        }
        silences
    }

    /// Returns the oldest active silence that matches an alert of this camera, rule and severity.
    pub fn find_match(
        &self,
        camera_id: &str,
        rule_id: Uuid,
        severity: AlertSeverity,
        now: DateTime<Utc>,
    ) -> Option<Uuid> {
        let matches_alert = |silence: &&Arc<Silence>| {
            silence.starts_at <= now
                && now < silence.ends_at
                && (silence.camera_ids.is_empty() || silence.camera_ids.contains(camera_id))
                && (silence.rule_ids.is_empty() || silence.rule_ids.contains(&rule_id))
                && (silence.severities.is_empty() || silence.severities.contains(&severity))
        };
        self.0.iter().find(matches_alert).map(|silence| silence.id)
    }
}

/// Cache of the silences of this process. Clones share the cache.
#[derive(Debug, Clone)]
pub struct LiveSilences {
    db: Db,
    live: Arc<Live<SilenceSet>>,
}

impl LiveSilences {
    /// Creates an empty cache. Call [`Self::reload`] before use.
    pub fn new(db: Db) -> Self {
        let live = Arc::default();
        Self { db, live }
    }

    /// Returns the current silences.
    pub fn current(&self) -> Arc<SilenceSet> {
        self.live.current()
    }

    /// Reloads all silences. Changes committed before the call take effect.
    pub async fn reload(&self) -> Result<()> {
        let rows = silence::Entity::find()
            .filter(silence::Column::EndsAt.gt(entity::now()))
            .order_by_asc(silence::Column::CreatedAt)
            .order_by_asc(silence::Column::Id)
            .all(self.db.reader());
        let reading = async { Ok(SilenceSet::compile(rows.await?)) };
        self.live.reload(reading).await
    }

    /// Reloads one silence. Changes committed before the call take effect.
    pub async fn refresh(&self, id: Uuid) -> Result<()> {
        let turn = self.live.begin_reload().await;
        let row = silence::Entity::find_by_id(id)
            .filter(silence::Column::EndsAt.gt(entity::now()))
            .one(self.db.reader())
            .await?;
        turn.replace(self.current().with(id, row.as_ref()));
        Ok(())
    }
}

/// Returns the time from which a silence is active. A silence that started at creation is active at
/// once, independent of clock differences between processes.
pub(super) fn effective_start(row: &silence::Model) -> DateTime<Utc> {
    if row.starts_at <= row.created_at { DateTime::<Utc>::MIN_UTC } else { row.starts_at }
}

impl Silence {
    fn compile(row: &silence::Model) -> Result<Self> {
        let rule_id = |id: &String| Uuid::try_parse(id).map_err(Error::internal);
        let severity = |label: &String| AlertSeverity::try_from_value(label).map_err(Error::from);
        let silence = Self {
            id: row.id,
            created_at: row.created_at,
            camera_ids: texts(row.camera_ids.as_ref()).cloned().collect(),
            rule_ids: texts(row.rule_ids.as_ref()).map(rule_id).collect::<Result<_>>()?,
            severities: texts(row.severities.as_ref()).map(severity).collect::<Result<_>>()?,
            starts_at: effective_start(row),
            ends_at: row.ends_at,
        };
        let matches_any = silence.camera_ids.is_empty() && silence.rule_ids.is_empty() && silence.severities.is_empty();
        if matches_any && !row.match_all {
            return Err(Error::invalid("match_all", "is required to match all"));
        }
        Ok(silence)
    }
}

fn texts(strings: Option<&Strings>) -> impl Iterator<Item = &String> {
    strings.into_iter().flat_map(|strings| &strings.0)
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds)
    }

    /// Builds a silence of cameras, rules and severities, active from second 10 up to second 20.
    fn silence(cameras: &[&str], rules: &[u128], severities: &[&str]) -> silence::Model {
        let strings = |texts: Vec<String>| Some(Strings(texts)).filter(|texts| !texts.0.is_empty());
        let rules = rules.iter().map(|id| Uuid::from_u128(*id).to_string());
        silence::Model {
            id: Uuid::from_u128(7),
            camera_ids: strings(cameras.iter().map(ToString::to_string).collect()),
            rule_ids: strings(rules.collect()),
            severities: strings(severities.iter().map(ToString::to_string).collect()),
            match_all: false,
            starts_at: at(10),
            ends_at: at(20),
            created_by: "ann".into(),
            reason: "work".into(),
            version_id: 1,
            created_at: at(0),
            updated_at: at(0),
        }
    }

    fn is_silenced(row: &silence::Model, camera: &str, rule: u128, severity: AlertSeverity, now: i64) -> bool {
        let set = SilenceSet::compile(vec![row.clone()]);
        set.find_match(camera, Uuid::from_u128(rule), severity, at(now)).is_some()
    }

    #[test]
    fn cameras_rules_and_severities_must_all_match() {
        use AlertSeverity::{High, Low};
        let everything = silence::Model { match_all: true, ..silence(&[], &[], &[]) };
        for (row, door_one_low, gate_one_low, door_two_low, door_one_high) in [
            (&everything, true, true, true, true),
            (&silence(&["door"], &[], &[]), true, false, true, true),
            (&silence(&[], &[1], &[]), true, true, false, true),
            (&silence(&[], &[], &["low"]), true, true, true, false),
            (&silence(&["door"], &[1], &["low"]), true, false, false, false),
            (&silence(&["door", "gate"], &[1, 2], &["low", "high"]), true, true, true, true),
            (&silence(&["gate"], &[1], &["low"]), false, true, false, false),
        ] {
            let found = [
                is_silenced(row, "door", 1, Low, 15),
                is_silenced(row, "gate", 1, Low, 15),
                is_silenced(row, "door", 2, Low, 15),
                is_silenced(row, "door", 1, High, 15),
            ];
            assert_eq!(found, [door_one_low, gate_one_low, door_two_low, door_one_high], "{row:?}");
        }
    }

    #[test]
    fn a_silence_holds_from_its_start_until_before_its_end() {
        let row = silence(&["door"], &[], &[]);
        for (now, expected) in [(9, false), (10, true), (19, true), (20, false)] {
            assert_eq!(is_silenced(&row, "door", 1, AlertSeverity::Low, now), expected, "{now}");
        }
    }

    #[test]
    fn the_oldest_of_several_is_told() {
        let first = silence(&["door"], &[], &[]);
        let second = silence::Model { id: Uuid::from_u128(8), ..first.clone() };
        let gate = silence::Model { id: Uuid::from_u128(9), ..silence(&["gate"], &[], &[]) };
        let first = silence::Model { created_at: at(1), ..first };
        let set = SilenceSet::compile(vec![gate, first, second]);
        let oldest_match = |set: &SilenceSet| set.find_match("door", Uuid::nil(), AlertSeverity::Low, at(10));
        assert_eq!(oldest_match(&set), Some(Uuid::from_u128(8)));
        // Removing a silence keeps the other silences.
        let set = set.with(Uuid::from_u128(8), None);
        assert_eq!(oldest_match(&set), Some(Uuid::from_u128(7)));
    }

    #[test]
    fn what_another_writer_wrote_amiss_is_not_used() {
        for row in [
            silence(&[], &[], &[]),
            silence(&[], &[], &["none"]),
            silence::Model { rule_ids: Some(Strings(vec!["x".into()])), ..silence(&[], &[], &[]) },
        ] {
            assert!(Silence::compile(&row).is_err(), "{row:?}");
        }
    }
}

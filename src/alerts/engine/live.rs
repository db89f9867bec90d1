//! The enabled rules, compiled once and shared by all requests.

use std::{collections::HashSet, sync::Arc, time::Duration};

use parking_lot::RwLock;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{index::Index, schedule::Schedule, template::Template};
use crate::{
    alerts::{silences::LiveSilences, suppression::flapping::Flap},
    batch::live::Live,
    db::Db,
    entity::{
        Strings,
        alert::AlertSeverity,
        alert_rule::{self, Entity, EscalationStep},
    },
    error::{Error, Result},
    feed::{Entry, Follower, News, Position, Topic},
    monitor::{Announcement, Feed},
    pb::watch_response::Update,
    zones::LiveZones,
};

pub use super::rule_set::RuleSet;

/// How long to wait before rules or zones are read again after a failure.
const RETRY: Duration = Duration::from_millis(500);

/// How many rules are read again one by one. Of more than that all are.
const REFRESHED: usize = 500;

/// A rule, ready to be asked.
#[derive(Debug)]
pub struct Rule {
    pub id: Uuid,
    pub name: String,
    pub severity: AlertSeverity,
    pub risk_threshold: Option<i32>,
    /// Lower case. Empty: any. Few, so that looking through them is quicker than hashing.
    pub object_types: Vec<String>,
    /// Empty: any.
    pub camera_ids: HashSet<String>,
    /// Empty: any.
    pub zone_ids: HashSet<String>,
    pub min_confidence: Option<f64>,
    pub schedule: Option<Schedule>,
    pub template: Template,
    /// In microseconds.
    pub cooldown_us: i64,
    /// How often it may fire. `None`: as often as it matches.
    pub flap: Option<Flap>,
    pub channels: Option<Strings>,
    /// Who is told later.
    pub escalation: Arc<[EscalationStep]>,
    /// What an alert says of the conditions that the event met.
    pub conditions: Vec<String>,
}

/// The rules of this process, the zones that they ask for, and the silences that hold them back. Clones
/// share them.
#[derive(Debug, Clone)]
pub struct Rules(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    db: Db,
    zones: LiveZones,
    silences: LiveSilences,
    live: Live<RuleSet>,
    /// Of the rules and the zones that were current when it was last asked for.
    index: RwLock<Arc<Index>>,
}

impl Rules {
    /// The rules of this database, none until they are read.
    pub fn new(db: Db, zones: LiveZones, silences: LiveSilences) -> Self {
        Self(Arc::new(Shared {
            db,
            zones,
            silences,
            live: Live::default(),
            index: RwLock::default(),
        }))
    }

    /// The rules to judge an event by.
    pub fn current(&self) -> Arc<RuleSet> {
        self.0.live.current()
    }

    /// The rules to judge an event by, arranged for it, with the zones of now.
    pub fn index(&self) -> Arc<Index> {
        let (rules, zones) = (self.current(), self.zones().current());
        let last = self.0.index.read().clone();
        if last.is_of(&rules, &zones) {
            return last;
        }
        // Others wait meanwhile, and need not do the same.
        let mut last = self.0.index.write();
        let (rules, zones) = (self.current(), self.zones().current());
        if !last.is_of(&rules, &zones) {
            *last = Arc::new(last.next(rules, zones));
        }
        last.clone()
    }

    /// The zones that the rules ask for.
    pub fn zones(&self) -> &LiveZones {
        &self.0.zones
    }

    /// The silences that hold the rules back.
    pub fn silences(&self) -> &LiveSilences {
        &self.0.silences
    }

    /// Reads all rules again. What was committed before the call is in force after it.
    pub async fn reload(&self) -> Result<()> {
        let all = Entity::find()
            .order_by_asc(alert_rule::Column::CreatedAt)
            .order_by_asc(alert_rule::Column::Id)
            .all(self.0.db.reader());
        let reading = async { Ok::<_, Error>(RuleSet::compile(all.await?)) };
        self.0.live.reload(reading).await?;
        // So that no event has to wait for it.
        self.index();
        Ok(())
    }

    /// Reads some rules again, and shares the others. What was committed before the call is in force after it.
    pub async fn refresh(&self, ids: &[Uuid]) -> Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        if ids.len() > REFRESHED {
            return self.reload().await;
        }
        let turn = self.0.live.turn().await;
        let rows = Entity::find()
            .filter(alert_rule::Column::Id.is_in(ids.iter().copied()))
            .all(self.0.db.reader())
            .await?;
        turn.replace(self.current().with(ids, rows));
        self.index();
        Ok(())
    }

    /// Reads the rules again whenever the feed says that one has changed, on whatever process, and the
    /// zones and silences likewise.
    pub async fn follow(self, feed: Feed, from: Position, shutdown: CancellationToken) {
        let mut follower = Follower::new(feed, from);
        let following = async {
            loop {
                let News::Changes(entries) = follower.next().await else {
                    self.reload_zones_at_last().await;
                    self.reload_silences_at_last().await;
                    self.reload_at_last().await;
                    continue;
                };
                self.hear(&entries).await;
            }
        };
        shutdown.run_until_cancelled(following).await;
    }

    /// Reads again what changes are about, or all of a kind if a change cannot be decoded.
    async fn hear(&self, entries: &[Arc<Entry<Announcement>>]) {
        let changes = || entries.iter().map(|entry| &entry.item);
        let is_unknown = |topic| changes().any(|change| change.is_unreadable(topic));
        let current = self.current();
        let (mut rules, mut cameras, mut silences) =
            (HashSet::new(), HashSet::new(), HashSet::new());
        for change in changes() {
            if let Some(Update::AlertRule(change)) = &change.update {
                rules.extend(current.outdated_by(change));
            }
            if let Some(Update::CameraZone(change)) = &change.update
                && let Some(zone) = &change.camera_zone
            {
                cameras.insert(zone.camera_id.as_str());
            }
            if let Some(Update::Silence(change)) = &change.update
                && let Some(silence) = &change.silence
                && let Ok(id) = Uuid::try_parse(&silence.id)
            {
                silences.insert(id);
            }
        }
        let (zones, held_back) = (self.zones(), self.silences());
        let is_stale = is_unknown(Topic::CameraZones) || cameras.len() > REFRESHED;
        let mut refreshed = !is_stale;
        for camera_id in cameras.into_iter().filter(|_| !is_stale) {
            refreshed &= zones.refresh(camera_id).await.is_ok();
        }
        if !refreshed {
            self.reload_zones_at_last().await;
        }
        let is_stale = is_unknown(Topic::Silences) || silences.len() > REFRESHED;
        let mut refreshed = !is_stale;
        for id in silences.into_iter().filter(|_| !is_stale) {
            refreshed &= held_back.refresh(id).await.is_ok();
        }
        if !refreshed {
            self.reload_silences_at_last().await;
        }
        let ids: Vec<_> = rules.into_iter().collect();
        if is_unknown(Topic::AlertRules) || self.refresh(&ids).await.is_err() {
            self.reload_at_last().await;
        }
        self.index();
    }

    async fn reload_at_last(&self) {
        while let Err(error) = self.reload().await {
            tracing::debug!(%error, "the alert rules cannot be read; it is tried again");
            sleep(RETRY).await;
        }
    }

    async fn reload_silences_at_last(&self) {
        while let Err(error) = self.silences().reload().await {
            tracing::debug!(%error, "the silences cannot be read; it is tried again");
            sleep(RETRY).await;
        }
    }

    async fn reload_zones_at_last(&self) {
        while let Err(error) = self.zones().reload().await {
            tracing::debug!(%error, "the camera zones cannot be read; it is tried again");
            sleep(RETRY).await;
        }
        self.index();
    }
}

impl Rule {
    /// Compiles a row.
    pub fn compile(row: alert_rule::Model) -> Result<Self> {
        let set = |strings: &Option<Strings>| {
            strings
                .clone()
                .unwrap_or_default()
                .0
                .into_iter()
                .collect::<HashSet<_>>()
        };
        // A client's are put into the other columns. Ignoring those of another writer would fire too often.
        if row
            .conditions
            .as_ref()
            .is_some_and(|conditions| !conditions.is_null())
        {
            return Err(Error::invalid(
                "conditions",
                "are of an old form, which is not evaluated",
            ));
        }
        let conditions = conditions(&row);
        Ok(Self {
            id: row.id,
            severity: row.severity,
            risk_threshold: row.risk_threshold,
            object_types: set(&row.object_types)
                .iter()
                .map(|name| name.to_lowercase())
                .collect(),
            camera_ids: set(&row.camera_ids),
            zone_ids: set(&row.zone_ids),
            min_confidence: row.min_confidence,
            schedule: row.schedule.as_ref().map(Schedule::compile).transpose()?,
            template: Template::parse("dedup_key_template", &row.dedup_key_template)?,
            cooldown_us: i64::from(row.cooldown_seconds) * 1_000_000,
            flap: Flap::of(&row),
            channels: row.channels,
            escalation: row.escalation.unwrap_or_default().0.into(),
            name: row.name,
            conditions,
        })
    }
}

/// The conditions of a rule, for people to read.
fn conditions(row: &alert_rule::Model) -> Vec<String> {
    let list = |name: &str, strings: &Option<Strings>| {
        let strings = strings.as_ref().filter(|strings| !strings.0.is_empty())?;
        Some(format!("{name} in [{}]", strings.0.join(", ")))
    };
    let conditions: Vec<_> = [
        row.risk_threshold
            .map(|score| format!("risk_score >= {score}")),
        list("camera_id", &row.camera_ids),
        list("object_type", &row.object_types),
        row.min_confidence
            .map(|confidence| format!("confidence >= {confidence}")),
        list("zone_id", &row.zone_ids),
        row.schedule.as_ref().map(|_| "within_schedule".to_string()),
    ]
    .into_iter()
    .flatten()
    .collect();
    if conditions.is_empty() {
        vec!["no_conditions (always matches)".to_string()]
    } else {
        conditions
    }
}

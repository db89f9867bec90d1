//! In-memory cache of the enabled rules, compiled once and shared by all requests.

use std::{collections::HashSet, sync::Arc, time::Duration};

use parking_lot::RwLock;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{index::Index, rule_set::RuleSet};
use crate::{
    alerts::silences::LiveSilences,
    batch::live::Live,
    db::Db,
    entity::alert_rule::{self, Entity},
    error::{Error, Result},
    feed::{self, Entry, FeedUpdate, Position},
    log::retry,
    monitor::{Announcement, Feed},
    pb::{Topic, watch_response::Update},
    zones::LiveZones,
};

/// Delay before a failed reload of rules, zones or silences is retried.
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// Largest number of rules, cameras or silences that are refreshed individually. Larger changes
/// reload everything.
const MAX_INDIVIDUAL_REFRESHES: usize = 500;

/// Cache of the rules of this process, with the caches of zones and silences. Clones share the
/// cache.
#[derive(Debug, Clone)]
pub struct LiveRules(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    db: Db,
    zones: LiveZones,
    silences: LiveSilences,
    live: Live<RuleSet>,
    /// Index of the rules and zones at the last call of [`LiveRules::index`].
    index: RwLock<Arc<Index>>,
}

impl LiveRules {
    /// Creates an empty cache. Call [`Self::reload`] before use.
    pub fn new(db: Db, zones: LiveZones, silences: LiveSilences) -> Self {
        Self(Arc::new(Shared { db, zones, silences, live: Live::default(), index: RwLock::default() }))
    }

    /// Returns the current rules.
    pub fn current(&self) -> Arc<RuleSet> {
        self.0.live.current()
    }

    /// Returns the index of the current rules and zones.
    pub fn index(&self) -> Arc<Index> {
        let (rules, zones) = (self.current(), self.zones().current());
        let index = self.0.index.read().clone();
        if index.is_built_from(&rules, &zones) {
            return index;
        }
        // Concurrent callers wait for the lock, so that only one of them updates the index.
        let mut index = self.0.index.write();
        let (rules, zones) = (self.current(), self.zones().current());
        if !index.is_built_from(&rules, &zones) {
            *index = Arc::new(index.next(rules, zones));
        }
        index.clone()
    }

    /// Returns the cache of the zones.
    pub fn zones(&self) -> &LiveZones {
        &self.0.zones
    }

    /// Returns the cache of the silences.
    pub fn silences(&self) -> &LiveSilences {
        &self.0.silences
    }

    /// Reloads all rules. Changes committed before the call take effect.
    pub async fn reload(&self) -> Result<()> {
        let rows = Entity::find()
            .order_by_asc(alert_rule::Column::CreatedAt)
            .order_by_asc(alert_rule::Column::Id)
            .all(self.0.db.reader());
        let reading = async { Ok::<_, Error>(RuleSet::compile(rows.await?)) };
        self.0.live.reload(reading).await?;
        // The index is built here, so that no ingest waits for the update.
        self.index();
        Ok(())
    }

    /// Reloads the given rules. Changes committed before the call take effect.
    pub async fn refresh(&self, ids: &[Uuid]) -> Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        if ids.len() > MAX_INDIVIDUAL_REFRESHES {
            return self.reload().await;
        }
        let turn = self.0.live.begin_reload().await;
        let rows =
            Entity::find().filter(alert_rule::Column::Id.is_in(ids.iter().copied())).all(self.0.db.reader()).await?;
        turn.replace(self.current().with(ids, rows));
        self.index();
        Ok(())
    }

    /// Follows the change feed until shutdown, and refreshes rules, zones and silences that any
    /// process changed.
    pub async fn follow(self, feed: Feed, from: Position, shutdown: CancellationToken) {
        let handle = |update| {
            let rules = self.clone();
            async move {
                if let FeedUpdate::Changes(entries) = update {
                    rules.apply_changes(&entries).await;
                    return;
                }
                rules.reload_zones_with_retries().await;
                rules.reload_silences_with_retries().await;
                rules.reload_with_retries().await;
            }
        };
        feed::follow(feed, from, shutdown, handle).await;
    }

    /// Refreshes the changed rows. Reloads all rows of a topic if a change cannot be decoded.
    async fn apply_changes(&self, entries: &[Arc<Entry<Announcement>>]) {
        let changes = || entries.iter().map(|entry| &entry.item);
        let is_undecodable = |topic| changes().any(|change| change.is_unreadable(topic));
        let current = self.current();
        let (mut rules, mut cameras, mut silences) = (HashSet::new(), HashSet::new(), HashSet::new());
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
        let (zones, live_silences) = (self.zones(), self.silences());
        let reloads_zones = is_undecodable(Topic::CameraZones) || cameras.len() > MAX_INDIVIDUAL_REFRESHES;
        let mut zones_refreshed = !reloads_zones;
        for camera_id in cameras.into_iter().filter(|_| !reloads_zones) {
            zones_refreshed &= zones.refresh(camera_id).await.is_ok();
        }
        if !zones_refreshed {
            self.reload_zones_with_retries().await;
        }
        let reloads_silences = is_undecodable(Topic::Silences) || silences.len() > MAX_INDIVIDUAL_REFRESHES;
        let mut silences_refreshed = !reloads_silences;
        for id in silences.into_iter().filter(|_| !reloads_silences) {
            silences_refreshed &= live_silences.refresh(id).await.is_ok();
        }
        if !silences_refreshed {
            self.reload_silences_with_retries().await;
        }
        let ids: Vec<_> = rules.into_iter().collect();
        if is_undecodable(Topic::AlertRules) || self.refresh(&ids).await.is_err() {
            self.reload_with_retries().await;
        }
        self.index();
    }

    async fn reload_with_retries(&self) {
        while let Err(error) = self.reload().await {
            retry::retrying(&error, "alert rules cannot be reloaded; retrying");
            sleep(RETRY_DELAY).await;
        }
    }

    async fn reload_silences_with_retries(&self) {
        while let Err(error) = self.silences().reload().await {
            retry::retrying(&error, "silences cannot be reloaded; retrying");
            sleep(RETRY_DELAY).await;
        }
    }

    async fn reload_zones_with_retries(&self) {
        while let Err(error) = self.zones().reload().await {
            retry::retrying(&error, "camera zones cannot be reloaded; retrying");
            sleep(RETRY_DELAY).await;
        }
        self.index();
    }
}

//! In-memory cache of the enabled zones, compiled once and shared by all requests.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use sea_orm::{ColumnTrait, EntityTrait, QueryFilter};

use super::shape::Zone;
use crate::{batch::live::Live, db::Db, entity::camera_zone, error::Result};

/// Snapshot of the enabled zones by camera. Successive snapshots share unchanged cameras.
#[derive(Debug, Default, Clone)]
pub struct ZoneSet(HashMap<Arc<str>, Arc<[Zone]>>);

impl ZoneSet {
    /// Compiles rows into a snapshot.
    pub fn compile(rows: Vec<camera_zone::Model>) -> Self {
        let mut by_camera: HashMap<_, Vec<_>> = HashMap::new();
        for row in rows {
            match Zone::compile(&row) {
                Ok(zone) => by_camera.entry(row.camera_id).or_default().push(zone),
                // Another program wrote the row past the API's validation. One invalid zone must
                // not stop the other zones, and contains nothing.
                Err(error) => {
                    tracing::error!(camera_zone.id = %row.id, %error, "invalid camera zone is ignored");
                }
            }
        }
        let by_priority = |(camera_id, mut zones): (String, Vec<Zone>)| {
            zones.sort_by(|a, b| b.priority.cmp(&a.priority).then_with(|| a.id.cmp(&b.id)));
            (camera_id.into(), zones.into())
        };
        Self(by_camera.into_iter().map(by_priority).collect())
    }

    /// Returns a snapshot with the zones of one camera replaced. `rows` has all enabled zones of
    /// the camera.
    fn with(&self, camera_id: &str, rows: Vec<camera_zone::Model>) -> Self {
        let mut zones = self.clone();
        zones.0.remove(camera_id);
        zones.0.extend(Self::compile(rows).0);
        zones
    }

    /// Iterates over the cameras with enabled zones.
    pub fn cameras(&self) -> impl Iterator<Item = (&str, &[Zone])> {
        let cameras = self.0.iter();
        cameras.map(|(camera_id, zones)| (&**camera_id, &**zones))
    }

    /// Returns the zones of a camera by descending priority, then by id.
    pub fn of(&self, camera_id: &str) -> &[Zone] {
        self.0.get(camera_id).map(|zones| &**zones).unwrap_or_default()
    }

    /// Returns the cameras whose zones differ in another snapshot.
    pub fn changed<'a>(&'a self, other: &'a Self) -> HashSet<&'a str> {
        let cameras = self.0.keys().chain(other.0.keys());
        let differs = |camera_id: &&Arc<str>| match (self.0.get(*camera_id), other.0.get(*camera_id)) {
            (Some(one), Some(two)) => !Arc::ptr_eq(one, two),
            (one, two) => one.is_some() != two.is_some(),
        };
        cameras.filter(differs).map(|camera_id| &**camera_id).collect()
    }
}

/// Cache of the zones of this process. Clones share the cache.
#[derive(Debug, Clone)]
pub struct LiveZones {
    db: Db,
    live: Arc<Live<ZoneSet>>,
}

impl LiveZones {
    /// Creates an empty cache. Call [`Self::reload`] before use.
    pub fn new(db: Db) -> Self {
        let live = Arc::default();
        Self { db, live }
    }

    /// Returns the current zones.
    pub fn current(&self) -> Arc<ZoneSet> {
        self.live.current()
    }

    /// Reloads all zones. Changes committed before the call take effect.
    pub async fn reload(&self) -> Result<()> {
        let rows = camera_zone::Entity::find().filter(camera_zone::Column::Enabled.eq(true)).all(self.db.reader());
        let reading = async { Ok(ZoneSet::compile(rows.await?)) };
        self.live.reload(reading).await
    }

    /// Reloads the zones of one camera. Changes committed before the call take effect.
    pub async fn refresh(&self, camera_id: &str) -> Result<()> {
        let turn = self.live.begin_reload().await;
        let rows = camera_zone::Entity::find()
            .filter(camera_zone::Column::Enabled.eq(true))
            .filter(camera_zone::Column::CameraId.eq(camera_id))
            .all(self.db.reader())
            .await?;
        turn.replace(self.current().with(camera_id, rows));
        Ok(())
    }
}

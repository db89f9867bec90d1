//! The enabled zones, compiled once and shared by all requests.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use sea_orm::{ColumnTrait, EntityTrait, QueryFilter};

use super::shape::Zone;
use crate::{batch::live::Live, db::Db, entity::camera_zone, error::Result};

/// The enabled zones of one moment, by camera. Sets of two moments share the cameras that have not changed.
#[derive(Debug, Default, Clone)]
pub struct ZoneSet(HashMap<Arc<str>, Arc<[Zone]>>);

impl ZoneSet {
    /// Compiles rows.
    pub fn compile(rows: Vec<camera_zone::Model>) -> Self {
        let mut by_camera: HashMap<_, Vec<_>> = HashMap::new();
        for row in rows {
            match Zone::compile(&row) {
                Ok(zone) => by_camera.entry(row.camera_id).or_default().push(zone),
                // Written past our checks. One bad zone must not stop the others, and nothing is in it.
                Err(error) => {
                    tracing::error!(camera_zone.id = %row.id, %error, "a camera zone cannot be used");
                }
            }
        }
        let ordered = |(camera_id, mut zones): (String, Vec<Zone>)| {
            zones.sort_by(|a, b| b.priority.cmp(&a.priority).then_with(|| a.id.cmp(&b.id)));
            (camera_id.into(), zones.into())
        };
        Self(by_camera.into_iter().map(ordered).collect())
    }

    /// This set with other zones of one camera, of which these are all rows.
    fn with(&self, camera_id: &str, rows: Vec<camera_zone::Model>) -> Self {
        let mut zones = self.clone();
        zones.0.remove(camera_id);
        zones.0.extend(Self::compile(rows).0);
        zones
    }

    /// Every camera that has zones, with these.
    pub fn cameras(&self) -> impl Iterator<Item = (&str, &[Zone])> {
        let cameras = self.0.iter();
        cameras.map(|(camera_id, zones)| (&**camera_id, &**zones))
    }

    /// The zones of a camera, the highest priority first, then by id.
    pub fn of(&self, camera_id: &str) -> &[Zone] {
        self.0
            .get(camera_id)
            .map(|zones| &**zones)
            .unwrap_or_default()
    }

    /// The cameras whose zones are not the same in another set.
    pub fn changed<'a>(&'a self, other: &'a Self) -> HashSet<&'a str> {
        let cameras = self.0.keys().chain(other.0.keys());
        let is_other =
            |camera_id: &&Arc<str>| match (self.0.get(*camera_id), other.0.get(*camera_id)) {
                (Some(one), Some(two)) => !Arc::ptr_eq(one, two),
                (one, two) => one.is_some() != two.is_some(),
            };
        cameras
            .filter(is_other)
            .map(|camera_id| &**camera_id)
            .collect()
    }
}

/// The zones of this process. Clones share them.
#[derive(Debug, Clone)]
pub struct LiveZones {
    db: Db,
    live: Arc<Live<ZoneSet>>,
}

impl LiveZones {
    /// The zones of this database, none until they are read.
    pub fn new(db: Db) -> Self {
        let live = Arc::default();
        Self { db, live }
    }

    /// The zones to judge a detection by.
    pub fn current(&self) -> Arc<ZoneSet> {
        self.live.current()
    }

    /// Reads the zones again. What was committed before the call is in force after it.
    pub async fn reload(&self) -> Result<()> {
        let enabled = camera_zone::Entity::find()
            .filter(camera_zone::Column::Enabled.eq(true))
            .all(self.db.reader());
        let reading = async { Ok(ZoneSet::compile(enabled.await?)) };
        self.live.reload(reading).await
    }

    /// Reads the zones of one camera again. What was committed before the call is in force after it.
    pub async fn refresh(&self, camera_id: &str) -> Result<()> {
        let turn = self.live.begin_reload().await;
        let enabled = camera_zone::Entity::find()
            .filter(camera_zone::Column::Enabled.eq(true))
            .filter(camera_zone::Column::CameraId.eq(camera_id))
            .all(self.db.reader())
            .await?;
        turn.replace(self.current().with(camera_id, enabled));
        Ok(())
    }
}

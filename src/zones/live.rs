//! The enabled zones, compiled once and shared by all requests.

use std::{collections::HashMap, sync::Arc};

use sea_orm::{ColumnTrait, EntityTrait, QueryFilter};

use super::shape::Zone;
use crate::{db::Db, entity::camera_zone, error::Result, rpc::live::Live};

/// The enabled zones of one moment.
#[derive(Debug, Default)]
pub struct ZoneSet(HashMap<String, Vec<Zone>>);

impl ZoneSet {
    /// Compiles rows.
    pub fn compile(rows: Vec<camera_zone::Model>) -> Self {
        let mut zones = Self::default();
        for row in rows {
            match Zone::compile(&row) {
                Ok(zone) => zones.0.entry(row.camera_id).or_default().push(zone),
                // Written past our checks. One bad zone must not stop the others, and nothing is in it.
                Err(error) => {
                    tracing::error!(camera_zone.id = %row.id, %error, "a camera zone cannot be used");
                }
            }
        }
        for zones in zones.0.values_mut() {
            zones.sort_by(|a, b| b.priority.cmp(&a.priority).then_with(|| a.id.cmp(&b.id)));
        }
        zones
    }

    /// Every camera that has zones, with these.
    pub fn cameras(&self) -> impl Iterator<Item = (&str, &[Zone])> {
        let cameras = self.0.iter();
        cameras.map(|(camera_id, zones)| (camera_id.as_str(), zones.as_slice()))
    }

    /// The zones of a camera, the highest priority first, then by id.
    pub fn of(&self, camera_id: &str) -> &[Zone] {
        self.0.get(camera_id).map(Vec::as_slice).unwrap_or_default()
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
}

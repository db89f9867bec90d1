//! Translation of `CameraZoneFilter` into a query.

use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, Select};

use crate::{
    entity::camera_zone::{Column, Entity, ZoneType},
    error::Result,
    pb,
    rpc::{check, enums::FromProto},
};

/// Largest number of values in a list of the filter.
const MAX_LIST_VALUES: usize = 1_000;

impl pb::CameraZoneFilter {
    pub(super) fn select(&self) -> Result<Select<Entity>> {
        let camera_ids = check::texts("filter.camera_ids", &self.camera_ids, MAX_LIST_VALUES, &(1..=64))?;
        let zone_types = ZoneType::all_from_proto("filter.zone_types", &self.zone_types)?;
        let mut select = Entity::find();
        if !camera_ids.is_empty() {
            select = select.filter(Column::CameraId.is_in(camera_ids));
        }
        if let Some(enabled) = self.enabled {
            select = select.filter(Column::Enabled.eq(enabled));
        }
        if !zone_types.is_empty() {
            select = select.filter(Column::ZoneType.is_in(zone_types));
        }
        Ok(select)
    }
}

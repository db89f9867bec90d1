//! Validation and update of a camera zone.

use sea_orm::ActiveValue::Set;

use super::shape::{DEFAULT_OVERLAP, check_corners};
use crate::{
    entity::camera_zone::{ActiveModel, ZoneAnchor, ZoneShape, ZoneType},
    error::{Error, Result},
    pb,
    rpc::{check, enums::FromProto, mask::UpdateMask},
};

/// Fields that `UpdateCameraZone` may change.
pub(super) const UPDATABLE: [&str; 9] =
    ["name", "zone_type", "coordinates", "shape", "color", "enabled", "priority", "anchor", "min_overlap"];

const DEFAULT_COLOR: &str = "#3B82F6";

impl pb::CameraZone {
    /// Returns the zone with the fields of `changes` that `mask` covers.
    pub(super) fn with(mut self, changes: Self, mask: &UpdateMask) -> Self {
        macro_rules! change {
            ($field:ident, $is_set:expr) => {
                if mask.covers(stringify!($field), $is_set(&changes.$field)) {
                    self.$field = changes.$field;
                }
            };
        }
        let anchor = self.anchor;
        change!(name, |name: &String| !name.is_empty());
        change!(zone_type, |zone_type: &i32| *zone_type != 0);
        change!(coordinates, |points: &Vec<_>| !points.is_empty());
        change!(shape, |shape: &i32| *shape != 0);
        change!(color, Option::is_some);
        change!(enabled, Option::is_some);
        change!(priority, |priority: &i32| *priority != 0);
        change!(anchor, |anchor: &i32| *anchor != 0);
        if self.anchor != anchor {
            // The overlap belongs to the previous anchor.
            self.min_overlap = None;
        }
        change!(min_overlap, Option::is_some);
        self
    }

    /// Validates the zone and returns the columns under the client's control, without `id` and
    /// `camera_id`. Absent fields get defaults.
    pub(super) fn checked(&self) -> Result<ActiveModel> {
        let zone_type = ZoneType::from_proto("camera_zone.zone_type", self.zone_type)?;
        let shape = ZoneShape::from_proto("camera_zone.shape", self.shape)?.unwrap_or(ZoneShape::Rectangle);
        let anchor = ZoneAnchor::from_proto("camera_zone.anchor", self.anchor)?.unwrap_or(ZoneAnchor::Center);
        let corners: Vec<_> = self
            .coordinates
            .iter()
            // Adding zero turns -0 into 0: SQLite keeps the sign in JSON, PostgreSQL does not.
            .map(|point| [point.x + 0.0, point.y + 0.0])
            .collect();
        let name = check::name("camera_zone.name", &self.name, 1..=255)?;
        check_corners("camera_zone.coordinates", &corners, shape)?;
        Ok(ActiveModel {
            name: Set(name),
            zone_type: Set(zone_type.unwrap_or(ZoneType::Other)),
            coordinates: Set(serde_json::json!(corners)),
            shape: Set(shape),
            color: Set(color(self.color.as_deref().unwrap_or(DEFAULT_COLOR))?),
            enabled: Set(self.enabled.unwrap_or(true)),
            priority: Set(check::within("camera_zone.priority", self.priority, 0..=i32::MAX)?),
            anchor: Set(anchor),
            min_overlap: Set(min_overlap(anchor, self.min_overlap)?),
            ..Default::default()
        })
    }
}

fn color(text: &str) -> Result<String> {
    let digits = text.strip_prefix('#').unwrap_or_default();
    if digits.len() == 6 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Ok(text.to_string());
    }
    Err(Error::invalid("camera_zone.color", "must be `#` and six hexadecimal digits, such as #3B82F6"))
}

fn min_overlap(anchor: ZoneAnchor, minimum: Option<f64>) -> Result<Option<f64>> {
    let field = "camera_zone.min_overlap";
    match (anchor, minimum) {
        (ZoneAnchor::Center | ZoneAnchor::Foot, None) => Ok(None),
        (ZoneAnchor::Center | ZoneAnchor::Foot, Some(_)) => {
            let problem = "must be absent unless the anchor is CAMERA_ZONE_ANCHOR_OVERLAP";
            Err(Error::invalid(field, problem))
        }
        (ZoneAnchor::Overlap, None) => Ok(Some(DEFAULT_OVERLAP)),
        (ZoneAnchor::Overlap, Some(minimum)) if minimum > 0.0 && minimum <= 1.0 => Ok(Some(minimum)),
        // Also reached by NaN.
        (ZoneAnchor::Overlap, Some(_)) => Err(Error::invalid(field, "must be in (0, 1]")),
    }
}

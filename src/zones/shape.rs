//! The shape of a zone: which corners make one, and which detections are in it.

use geo::{
    Area, BooleanOps, BoundingRect, Contains, ConvexHull, Coord, Intersects, LineString, Polygon,
    Rect, Validation,
};

use super::{place::Place, sides::Sides};
use crate::{
    entity::camera_zone::{self, ZoneAnchor, ZoneShape},
    error::{Error, Result},
    rpc::check,
};

/// How many corners a zone may have.
const MOST_CORNERS: usize = 1_000;

/// The smallest area of a zone, in parts of the picture: less than a pixel of any camera.
const LEAST_AREA: f64 = 1e-9;

/// What `min_overlap` is unless the client says otherwise.
pub(super) const DEFAULT_OVERLAP: f64 = 0.5;

/// How much less than `min_overlap` may lie in the zone: intersections are rounded.
const TOLERANCE: f64 = 1e-4;

/// A zone, ready to be asked.
#[derive(Debug, Clone)]
pub struct Zone {
    pub id: String,
    pub priority: i32,
    anchor: Anchor,
    bounds: Rect<f64>,
    /// Part of the picture that the zone covers.
    area: f64,
    sides: Sides,
    /// The polygon, if it crosses itself, which another writer's may.
    crossing: Option<Polygon<f64>>,
}

#[derive(Debug, Clone, Copy)]
enum Anchor {
    Center,
    Foot,
    /// The part of the box that must lie in the zone.
    Overlap(f64),
}

/// What of a detection lies in a zone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Hit {
    /// The centre of its box.
    Center(Coord<f64>),
    /// The middle of the lower side of its box.
    Foot(Coord<f64>),
    /// So much of its box.
    Overlap(f64),
}

impl Zone {
    /// Compiles a row. Only what would make it useless is refused: another writer's corners are taken
    /// as they are.
    pub fn compile(row: &camera_zone::Model) -> Result<Self> {
        let polygon = polygon(&corners(row));
        let bounds = polygon.bounding_rect();
        let bounds = bounds.filter(|_| polygon.exterior().0.len() > 3);
        let bounds = bounds.ok_or_else(|| Error::invalid("coordinates", "are no polygon"))?;
        let sides = Sides::new(&polygon);
        Ok(Self {
            id: row.id.clone(),
            priority: row.priority,
            anchor: match row.anchor {
                ZoneAnchor::Center => Anchor::Center,
                ZoneAnchor::Foot => Anchor::Foot,
                ZoneAnchor::Overlap => Anchor::Overlap(row.min_overlap.unwrap_or(DEFAULT_OVERLAP)),
            },
            bounds,
            area: polygon.unsigned_area(),
            crossing: (row.anchor == ZoneAnchor::Overlap && !sides.are_simple()).then_some(polygon),
            sides,
        })
    }

    /// Whether a detection is in the zone, and how. The boundary belongs to the zone.
    pub fn hit(&self, place: &Place) -> Option<Hit> {
        match self.anchor {
            Anchor::Center => self
                .holds(place.center)
                .then_some(Hit::Center(place.center)),
            Anchor::Foot => self.holds(place.foot).then_some(Hit::Foot(place.foot)),
            Anchor::Overlap(least) => {
                let overlap = self.overlap(&place.bounds);
                (overlap > 0.0 && overlap + TOLERANCE >= least).then_some(Hit::Overlap(overlap))
            }
        }
    }

    fn holds(&self, point: Coord<f64>) -> bool {
        self.bounds.intersects(&point) && self.sides.hold(point)
    }

    /// How much of a box lies in the zone, from 0 to 1. 0 for a box without an area.
    fn overlap(&self, bounds: &Rect<f64>) -> f64 {
        let area = bounds.unsigned_area();
        if area <= 0.0 || !self.bounds.intersects(bounds) {
            return 0.0;
        }
        let common = if let Some(polygon) = &self.crossing {
            polygon.intersection(&bounds.to_polygon()).unsigned_area()
        } else if bounds.contains(&self.bounds) {
            self.area
        } else {
            self.sides.common_area(bounds.min(), bounds.max())
        };
        (common / area).clamp(0.0, 1.0)
    }

    /// How many corners the zone has, by which its judging takes longer.
    pub fn corners(&self) -> usize {
        self.sides.count()
    }
}

/// The corners of a row. Empty if the column holds anything else.
pub(super) fn corners(row: &camera_zone::Model) -> Vec<[f64; 2]> {
    serde_json::from_value(row.coordinates.clone()).unwrap_or_default()
}

fn polygon(corners: &[[f64; 2]]) -> Polygon<f64> {
    let corners = corners.iter().map(|corner| Coord::from(*corner));
    Polygon::new(LineString(corners.collect()), Vec::new())
}

/// Checks corners that came in `field`.
pub(super) fn check_corners(field: &str, corners: &[[f64; 2]], shape: ZoneShape) -> Result<()> {
    if corners.len() < 3 {
        return Err(Error::invalid(field, "must have at least 3 points"));
    }
    if corners.len() > MOST_CORNERS {
        let problem = format!("must have at most {MOST_CORNERS} points");
        return Err(Error::invalid(field, problem));
    }
    for (at, [x, y]) in corners.iter().enumerate() {
        for (axis, value) in [("x", *x), ("y", *y)] {
            check::within(&format!("{field}[{at}].{axis}"), value, 0.0..=1.0)?;
        }
    }
    for (at, pair) in corners.windows(2).enumerate() {
        if Coord::from(pair[0]) == Coord::from(pair[1]) {
            let field = format!("{field}[{}]", at + 1);
            return Err(Error::invalid(field, "must not repeat the point before it"));
        }
    }
    let last = corners.len() - 1;
    if Coord::from(corners[last]) == Coord::from(corners[0]) {
        let problem = "must not repeat the first point, to which it is joined anyway";
        return Err(Error::invalid(format!("{field}[{last}]"), problem));
    }
    let polygon = polygon(corners);
    let flat = || Error::invalid(field, "must enclose an area");
    if polygon.convex_hull().unsigned_area() < LEAST_AREA {
        return Err(flat());
    }
    if shape == ZoneShape::Rectangle {
        check_rectangle(field, &polygon)?;
    }
    if polygon.check_validation().is_err() {
        let problem = "must not cross or touch itself";
        return Err(Error::invalid(field, problem));
    }
    if polygon.unsigned_area() < LEAST_AREA {
        return Err(flat());
    }
    Ok(())
}

/// That every point is a corner of the box around all. With four points that do not cross, they are
/// all of them.
fn check_rectangle(field: &str, polygon: &Polygon<f64>) -> Result<()> {
    // The first point ends the ring, too.
    let corners = &polygon.exterior().0[1..];
    if corners.len() != 4 {
        let problem = "must have exactly 4 points, for the shape is a rectangle";
        return Err(Error::invalid(field, problem));
    }
    let bounds = polygon
        .bounding_rect()
        .ok_or_else(|| Error::internal("no points"))?;
    let (min, max) = (bounds.min(), bounds.max());
    let expected = [min, max, (min.x, max.y).into(), (max.x, min.y).into()];
    if corners.iter().any(|corner| !expected.contains(corner)) {
        let problem = "are not the corners of a rectangle whose sides are parallel to the edges of \
                       the picture; make it a polygon";
        return Err(Error::invalid(field, problem));
    }
    Ok(())
}

#[cfg(test)]
mod tests;

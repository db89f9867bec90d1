//! Shape of a zone: validation of corners, and the test for detections inside.

use geo::{
    Area, BooleanOps, BoundingRect, Contains, ConvexHull, Coord, Intersects, LineString, Polygon, Rect, Validation,
};

use super::{edges::EdgeIndex, placement::Placement};
use crate::{
    entity::camera_zone::{self, ZoneAnchor, ZoneShape},
    error::{Error, Result},
    rpc::check,
};

/// Largest number of corners of a zone.
const MAX_CORNERS: usize = 1_000;

/// Smallest area of a zone as a fraction of the picture: less than one pixel of any camera.
const MIN_AREA: f64 = 1e-9;

/// Default of `min_overlap`.
pub(super) const DEFAULT_OVERLAP: f64 = 0.5;

/// Tolerance for `min_overlap`, because intersections are rounded.
const OVERLAP_TOLERANCE: f64 = 1e-4;

/// Camera zone, compiled for evaluation.
#[derive(Debug, Clone)]
pub struct Zone {
    pub id: String,
    pub priority: i32,
    anchor: Anchor,
    bounds: Rect<f64>,
    /// Area of the zone as a fraction of the picture.
    area: f64,
    edges: EdgeIndex,
    /// Polygon of a self-intersecting zone with an overlap anchor, possibly from another program.
    /// `None` for a simple polygon.
    self_intersecting: Option<Polygon<f64>>,
}

#[derive(Debug, Clone, Copy)]
enum Anchor {
    Center,
    Foot,
    /// Fraction of the box that must be inside the zone.
    Overlap(f64),
}

/// Part of a detection that is inside a zone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Hit {
    /// Centre of the box.
    Center(Coord<f64>),
    /// Middle of the lower edge of the box.
    Foot(Coord<f64>),
    /// Fraction of the box that is inside the zone.
    Overlap(f64),
}

impl Zone {
    /// Compiles a row. Fails only for corners without a polygon: the corners of another program may
    /// violate the API's validation.
    pub fn compile(row: &camera_zone::Model) -> Result<Self> {
        let polygon = polygon(&corners(row));
        let bounds = polygon
            .bounding_rect()
            .filter(|_| polygon.exterior().0.len() > 3)
            .ok_or_else(|| Error::invalid("coordinates", "are no polygon"))?;
        let edges = EdgeIndex::new(&polygon);
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
            self_intersecting: (row.anchor == ZoneAnchor::Overlap && !edges.is_simple()).then_some(polygon),
            edges,
        })
    }

    /// Tests a detection. The boundary belongs to the zone. `None` if the detection is outside.
    pub fn hit(&self, placement: &Placement) -> Option<Hit> {
        match self.anchor {
            Anchor::Center => self.contains_point(placement.center).then_some(Hit::Center(placement.center)),
            Anchor::Foot => self.contains_point(placement.foot).then_some(Hit::Foot(placement.foot)),
            Anchor::Overlap(minimum) => {
                let overlap = self.overlap(&placement.bounds);
                (overlap > 0.0 && overlap + OVERLAP_TOLERANCE >= minimum).then_some(Hit::Overlap(overlap))
            }
        }
    }

    fn contains_point(&self, point: Coord<f64>) -> bool {
        self.bounds.intersects(&point) && self.edges.contains(point)
    }

    /// Returns the fraction of a box inside the zone, from 0 to 1. 0 for a box without an area.
    fn overlap(&self, bounds: &Rect<f64>) -> f64 {
        let area = bounds.unsigned_area();
        if area <= 0.0 || !self.bounds.intersects(bounds) {
            return 0.0;
        }
        let shared_area = if let Some(polygon) = &self.self_intersecting {
            polygon.intersection(&bounds.to_polygon()).unsigned_area()
        } else if bounds.contains(&self.bounds) {
            self.area
        } else {
            self.edges.intersection_area(bounds.min(), bounds.max())
        };
        (shared_area / area).clamp(0.0, 1.0)
    }

    /// Number of corners, which determines the cost of [`Self::hit`].
    pub fn corners(&self) -> usize {
        self.edges.count()
    }
}

/// Returns the corners of a row. Empty for a malformed column.
pub(super) fn corners(row: &camera_zone::Model) -> Vec<[f64; 2]> {
    serde_json::from_value(row.coordinates.clone()).unwrap_or_default()
}

fn polygon(corners: &[[f64; 2]]) -> Polygon<f64> {
    let coords = corners.iter().map(|corner| Coord::from(*corner));
    Polygon::new(LineString(coords.collect()), Vec::new())
}

/// Validates corners. `field` is the path for errors.
pub(super) fn check_corners(field: &str, corners: &[[f64; 2]], shape: ZoneShape) -> Result<()> {
    if corners.len() < 3 {
        return Err(Error::invalid(field, "must have at least 3 points"));
    }
    if corners.len() > MAX_CORNERS {
        let problem = format!("must have at most {MAX_CORNERS} points");
        return Err(Error::invalid(field, problem));
    }
    for (index, [x, y]) in corners.iter().enumerate() {
        for (axis, value) in [("x", *x), ("y", *y)] {
            check::within(&format!("{field}[{index}].{axis}"), value, 0.0..=1.0)?;
        }
    }
    for (index, pair) in corners.windows(2).enumerate() {
        if Coord::from(pair[0]) == Coord::from(pair[1]) {
            let repeated = format!("{field}[{}]", index + 1);
            return Err(Error::invalid(repeated, "must not repeat the point before it"));
        }
    }
    let last = corners.len() - 1;
    if Coord::from(corners[last]) == Coord::from(corners[0]) {
        let problem = "must not repeat the first point, to which it is joined anyway";
        return Err(Error::invalid(format!("{field}[{last}]"), problem));
    }
    let polygon = polygon(corners);
    let no_area = || Error::invalid(field, "must enclose an area");
    if polygon.convex_hull().unsigned_area() < MIN_AREA {
        return Err(no_area());
    }
    if shape == ZoneShape::Rectangle {
        check_rectangle(field, &polygon)?;
    }
    if polygon.check_validation().is_err() {
        let problem = "must not cross or touch itself";
        return Err(Error::invalid(field, problem));
    }
    if polygon.unsigned_area() < MIN_AREA {
        return Err(no_area());
    }
    Ok(())
}

/// Checks that every point is a corner of the bounding box. Four distinct points without a crossing
/// then form a rectangle.
fn check_rectangle(field: &str, polygon: &Polygon<f64>) -> Result<()> {
    // The first point of the ring is repeated at the end.
    let corners = &polygon.exterior().0[1..];
    if corners.len() != 4 {
        let problem = "must have exactly 4 points, for the shape is a rectangle";
        return Err(Error::invalid(field, problem));
    }
    let bounds = polygon.bounding_rect().ok_or_else(|| Error::internal("no points"))?;
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

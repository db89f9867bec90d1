//! Index of polygon edges by horizontal bands, so that a test only visits edges near the height of
//! a detection.

use geo::{Coord, GeoNum, Intersects, Kernel, Line, Orientation, Polygon};

#[cfg(test)]
mod tests;

/// Largest mean number of band entries per edge. Long edges are in many bands.
const MAX_BAND_ENTRIES_PER_EDGE: usize = 4;

/// Edges of a polygon, indexed by horizontal bands.
#[derive(Debug, Clone)]
pub(super) struct EdgeIndex {
    edges: Vec<Line<f64>>,
    /// Lowest height, and difference to the greatest height.
    low: f64,
    span: f64,
    /// First position of each band in `members`, followed by the end of the last band.
    starts: Vec<usize>,
    /// Edge numbers by band. An edge is in every band that it touches.
    members: Vec<u32>,
}

impl EdgeIndex {
    pub(super) fn new(polygon: &Polygon<f64>) -> Self {
        let edges: Vec<_> = polygon.exterior().lines().collect();
        let heights = || edges.iter().map(|line| line.start.y);
        let low = heights().fold(f64::INFINITY, f64::min);
        let high = heights().fold(f64::NEG_INFINITY, f64::max);
        let mut index =
            Self { low, span: high - low, starts: vec![0; edges.len().max(1) + 1], members: Vec::new(), edges };
        while index.bands() > 1 && index.band_entries() > index.edges.len() * MAX_BAND_ENTRIES_PER_EDGE {
            index.starts.truncate(index.bands() / 2 + 1);
        }
        index.fill_bands();
        index
    }

    /// Number of edges.
    pub(super) fn count(&self) -> usize {
        self.edges.len()
    }

    fn bands(&self) -> usize {
        self.starts.len() - 1
    }

    /// Returns the band of a height. Monotonic: a greater height is never in a lower band.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "a cast of a float ends at the bounds, and there are few bands"
    )]
    fn band(&self, height: f64) -> usize {
        let bands = self.bands();
        let fraction = (height - self.low) / self.span;
        ((fraction * bands as f64) as usize).min(bands - 1)
    }

    /// Returns the bands that an edge touches.
    fn bands_of(&self, line: &Line<f64>) -> std::ops::RangeInclusive<usize> {
        let (start, end) = (line.start.y, line.end.y);
        self.band(start.min(end))..=self.band(start.max(end))
    }

    fn band_entries(&self) -> usize {
        self.edges.iter().map(|line| self.bands_of(line)).map(|bands| bands.end() - bands.start() + 1).sum()
    }

    fn fill_bands(&mut self) {
        let mut by_band = vec![Vec::new(); self.bands()];
        for (edge, line) in (0..).zip(&self.edges) {
            for band in self.bands_of(line) {
                by_band[band].push(edge);
            }
        }
        self.members = by_band.concat();
        let mut position = 0;
        for (start, band) in self.starts.iter_mut().zip(&by_band) {
            *start = position;
            position += band.len();
        }
        if let Some(end) = self.starts.last_mut() {
            *end = position;
        }
    }

    fn edges_in_band(&self, band: usize) -> impl Iterator<Item = &Line<f64>> + Clone {
        let members = &self.members[self.starts[band]..self.starts[band + 1]];
        members.iter().map(|edge| &self.edges[*edge as usize])
    }

    /// Returns true if a point is inside the polygon or on the boundary. Equals the result of
    /// `geo`, with the same arithmetic, but visits only edges at the height of the point.
    pub(super) fn contains(&self, point: Coord<f64>) -> bool {
        let orientation = |line: &Line<f64>| <f64 as GeoNum>::Ker::orient2d(line.start, line.end, point);
        let is_between = |line: &Line<f64>| {
            let (left, right) = (line.start.x.min(line.end.x), line.start.x.max(line.end.x));
            (left..=right).contains(&point.x)
        };
        let mut winding = 0;
        for line in self.edges_in_band(self.band(point.y)) {
            let (start, end) = (line.start.y, line.end.y);
            let is_upward = start <= point.y;
            if is_upward && end < point.y || !is_upward && end > point.y {
                continue;
            }
            match orientation(line) {
                Orientation::Collinear if is_between(line) => return true,
                Orientation::CounterClockwise if is_upward && end > point.y => winding += 1,
                Orientation::Clockwise if !is_upward => winding -= 1,
                Orientation::Collinear | Orientation::CounterClockwise | Orientation::Clockwise => {}
            }
        }
        winding != 0
    }

    /// Computes the area of the intersection with a box. The polygon must be simple.
    ///
    /// Integrates the length inside the box over the height. Every edge contributes the integral of
    /// its position, clipped at the sides of the box.
    pub(super) fn intersection_area(&self, min: Coord<f64>, max: Coord<f64>) -> f64 {
        let (first, last) = (self.band(min.y), self.band(max.y));
        let mut area = 0.0;
        for band in first..=last {
            // The outermost bands extend to the box.
            let band_start = if band == first { min.y } else { self.start(band) };
            let band_end = if band == last { max.y } else { self.start(band + 1) };
            for line in self.edges_in_band(band) {
                area += clamped_integral(line, (band_start, band_end), (min.x, max.x));
            }
        }
        area.abs()
    }

    #[expect(clippy::cast_precision_loss, reason = "there are few bands")]
    fn start(&self, band: usize) -> f64 {
        self.low + self.span * (band as f64 / self.bands() as f64)
    }

    /// Returns true if edges meet only at shared corners.
    pub(super) fn is_simple(&self) -> bool {
        let count = self.edges.len();
        (0..self.bands()).all(|band| {
            let members = &self.members[self.starts[band]..self.starts[band + 1]];
            members.iter().enumerate().all(|(index, first)| {
                members[index + 1..].iter().all(|other| {
                    let (first, other) = (*first as usize, *other as usize);
                    let (a, b) = (&self.edges[first], &self.edges[other]);
                    if other == first + 1 || other + 1 == first + count {
                        return !is_reversed(a, b, other == first + 1);
                    }
                    !a.intersects(b)
                })
            })
        })
    }
}

/// Returns true if an edge runs back along its predecessor.
fn is_reversed(a: &Line<f64>, b: &Line<f64>, in_order: bool) -> bool {
    let (before, after) = if in_order { (a, b) } else { (b, a) };
    let is_straight = <f64 as GeoNum>::Ker::orient2d(before.start, before.end, after.end) == Orientation::Collinear;
    let along = before.delta().x * after.delta().x + before.delta().y * after.delta().y;
    is_straight && along <= 0.0
}

/// Integrates the horizontal position of an edge over the heights `from..to`, with the position
/// clamped to `min_x..max_x`. Negative for a descending edge.
fn clamped_integral(line: &Line<f64>, (from, to): (f64, f64), (min_x, max_x): (f64, f64)) -> f64 {
    let (lower, upper, sign) =
        if line.start.y <= line.end.y { (line.start, line.end, 1.0) } else { (line.end, line.start, -1.0) };
    let (clipped_from, clipped_to) = (from.max(lower.y), to.min(upper.y));
    if clipped_from >= clipped_to {
        return 0.0;
    }
    let slope = (upper.x - lower.x) / (upper.y - lower.y);
    let x_at = |height: f64| lower.x + (height - lower.y) * slope;
    let (start, end) = (x_at(clipped_from), x_at(clipped_to));
    let (low, high) = (start.min(end), start.max(end));
    let height = clipped_to - clipped_from;
    let mean = if high <= min_x {
        min_x
    } else if low >= max_x {
        max_x
    } else if low >= min_x && high <= max_x {
        f64::midpoint(low, high)
    } else {
        // Three parts: clamped to `min_x`, unclamped, and clamped to `max_x`, each weighted by its
        // share of the height.
        let width = high - low;
        let (left, right) = (low.max(min_x), high.min(max_x));
        let before = (left - low) / width * left;
        let between = (right - left) / width * f64::midpoint(left, right);
        let after = (high - right) / width * right;
        before + between + after
    };
    sign * mean * height
}

//! The sides of a polygon in horizontal bands, so that only those at the height of a detection are looked at.

use geo::{Coord, GeoNum, Intersects, Kernel, Line, Orientation, Polygon};

#[cfg(test)]
mod tests;

/// Sides in all bands together, for each side of the polygon: long sides are in many bands.
const MOST: usize = 4;

/// The sides of a polygon.
#[derive(Debug, Clone)]
pub(super) struct Sides {
    lines: Vec<Line<f64>>,
    /// The lowest height and the difference to the highest.
    low: f64,
    span: f64,
    /// The first place of each band in `members`, and the end of the last one.
    starts: Vec<usize>,
    /// Sides by band: each is in all bands that it reaches.
    members: Vec<u32>,
}

impl Sides {
    pub(super) fn new(polygon: &Polygon<f64>) -> Self {
        let lines: Vec<_> = polygon.exterior().lines().collect();
        let heights = || lines.iter().map(|line| line.start.y);
        let low = heights().fold(f64::INFINITY, f64::min);
        let high = heights().fold(f64::NEG_INFINITY, f64::max);
        let mut sides = Self {
            low,
            span: high - low,
            starts: vec![0; lines.len().max(1) + 1],
            members: Vec::new(),
            lines,
        };
        while sides.bands() > 1 && sides.in_all_bands() > sides.lines.len() * MOST {
            sides.starts.truncate(sides.bands() / 2 + 1);
        }
        sides.fill();
        sides
    }

    /// How many sides there are.
    pub(super) fn count(&self) -> usize {
        self.lines.len()
    }

    fn bands(&self) -> usize {
        self.starts.len() - 1
    }

    /// The band of a height. A greater height is never in a lower band.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "a cast of a float ends at the bounds, and there are few bands"
    )]
    fn band(&self, height: f64) -> usize {
        let bands = self.bands();
        let part = (height - self.low) / self.span;
        ((part * bands as f64) as usize).min(bands - 1)
    }

    /// The bands that a side reaches.
    fn reach(&self, line: &Line<f64>) -> std::ops::RangeInclusive<usize> {
        let (start, end) = (line.start.y, line.end.y);
        self.band(start.min(end))..=self.band(start.max(end))
    }

    fn in_all_bands(&self) -> usize {
        let reach = self.lines.iter().map(|line| self.reach(line));
        reach.map(|bands| bands.end() - bands.start() + 1).sum()
    }

    fn fill(&mut self) {
        let mut by_band = vec![Vec::new(); self.bands()];
        for (at, line) in (0..).zip(&self.lines) {
            for band in self.reach(line) {
                by_band[band].push(at);
            }
        }
        self.members = by_band.concat();
        let mut place = 0;
        for (start, band) in self.starts.iter_mut().zip(&by_band) {
            *start = place;
            place += band.len();
        }
        if let Some(end) = self.starts.last_mut() {
            *end = place;
        }
    }

    fn of_band(&self, band: usize) -> impl Iterator<Item = &Line<f64>> + Clone {
        let members = &self.members[self.starts[band]..self.starts[band + 1]];
        members.iter().map(|at| &self.lines[*at as usize])
    }

    /// Whether a point is in the polygon or on its boundary: what `geo` says, with the same arithmetic, which asks
    /// only sides at the height of the point.
    pub(super) fn hold(&self, point: Coord<f64>) -> bool {
        let side = |line: &Line<f64>| <f64 as GeoNum>::Ker::orient2d(line.start, line.end, point);
        let is_between = |line: &Line<f64>| {
            let (least, most) = (line.start.x.min(line.end.x), line.start.x.max(line.end.x));
            (least..=most).contains(&point.x)
        };
        let mut winding = 0;
        for line in self.of_band(self.band(point.y)) {
            let (start, end) = (line.start.y, line.end.y);
            let is_upward = start <= point.y;
            if is_upward && end < point.y || !is_upward && end > point.y {
                continue;
            }
            match side(line) {
                Orientation::Collinear if is_between(line) => return true,
                Orientation::CounterClockwise if is_upward && end > point.y => winding += 1,
                Orientation::Clockwise if !is_upward => winding -= 1,
                Orientation::Collinear | Orientation::CounterClockwise | Orientation::Clockwise => {
                }
            }
        }
        winding != 0
    }

    /// The area of the part of a box that is in the polygon, which must not cross itself.
    ///
    /// It is the integral of the length inside over the height, to which every side adds that of its own place, cut off
    /// at the edges of the box.
    pub(super) fn common_area(&self, min: Coord<f64>, max: Coord<f64>) -> f64 {
        let (first, last) = (self.band(min.y), self.band(max.y));
        let mut area = 0.0;
        for band in first..=last {
            // The outermost bands reach as far as the box does.
            let from = if band == first {
                min.y
            } else {
                self.start(band)
            };
            let to = if band == last {
                max.y
            } else {
                self.start(band + 1)
            };
            for line in self.of_band(band) {
                area += part(line, (from, to), (min.x, max.x));
            }
        }
        area.abs()
    }

    #[expect(clippy::cast_precision_loss, reason = "there are few bands")]
    fn start(&self, band: usize) -> f64 {
        self.low + self.span * (band as f64 / self.bands() as f64)
    }

    /// Whether no two sides meet anywhere but at the corner that they share.
    pub(super) fn are_simple(&self) -> bool {
        let count = self.lines.len();
        (0..self.bands()).all(|band| {
            let members = &self.members[self.starts[band]..self.starts[band + 1]];
            members.iter().enumerate().all(|(at, one)| {
                members[at + 1..].iter().all(|other| {
                    let (one, other) = (*one as usize, *other as usize);
                    let (a, b) = (&self.lines[one], &self.lines[other]);
                    if other == one + 1 || other + 1 == one + count {
                        return !is_reversed(a, b, other == one + 1);
                    }
                    !a.intersects(b)
                })
            })
        })
    }
}

/// Whether a side turns back along the one before it.
fn is_reversed(a: &Line<f64>, b: &Line<f64>, in_order: bool) -> bool {
    let (before, after) = if in_order { (a, b) } else { (b, a) };
    let is_straight = <f64 as GeoNum>::Ker::orient2d(before.start, before.end, after.end)
        == Orientation::Collinear;
    let along = before.delta().x * after.delta().x + before.delta().y * after.delta().y;
    is_straight && along <= 0.0
}

/// The integral over the height, from one to another, of the place of a side, cut off at `least` and `most`. Negative
/// for a side that goes down.
fn part(line: &Line<f64>, (from, to): (f64, f64), (least, most): (f64, f64)) -> f64 {
    let (down, up, sign) = if line.start.y <= line.end.y {
        (line.start, line.end, 1.0)
    } else {
        (line.end, line.start, -1.0)
    };
    let (from, to) = (from.max(down.y), to.min(up.y));
    if from >= to {
        return 0.0;
    }
    let slope = (up.x - down.x) / (up.y - down.y);
    let place = |height: f64| down.x + (height - down.y) * slope;
    let (start, end) = (place(from), place(to));
    let (low, high) = (start.min(end), start.max(end));
    let height = to - from;
    let mean = if high <= least {
        least
    } else if low >= most {
        most
    } else if low >= least && high <= most {
        f64::midpoint(low, high)
    } else {
        // Before `least`, between them, and after `most`, each by its part of the height.
        let width = high - low;
        let (left, right) = (low.max(least), high.min(most));
        let before = (left - low) / width * left;
        let between = (right - left) / width * f64::midpoint(left, right);
        let after = (high - right) / width * right;
        before + between + after
    };
    sign * mean * height
}

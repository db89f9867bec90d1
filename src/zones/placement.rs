//! Placement of a detection in the picture.

use geo::{Coord, Rect};

use crate::entity::detection;

/// Bounding box of a detection, clipped at the edges of the picture. All values are fractions of
/// the picture, from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Placement {
    /// Clipped box.
    pub bounds: Rect<f64>,
    /// Centre of the clipped box.
    pub center: Coord<f64>,
    /// Middle of the lower edge of the clipped box.
    pub foot: Coord<f64>,
}

/// Reason for an unknown placement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlacementError {
    /// The detection has no bounding box, or a box of negative size.
    NoBox,
    /// The detection has no picture size.
    NoSize,
    /// The bounding box lies outside the picture.
    Outside,
}

impl PlacementError {
    /// Readable description of the problem.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoBox => "no bounding box",
            Self::NoSize => "no video_width and video_height",
            Self::Outside => "a bounding box outside of the picture",
        }
    }
}

impl Placement {
    /// Computes the placement of a stored detection.
    pub fn of(detection: &detection::Model) -> Result<Self, PlacementError> {
        let bbox = [detection.bbox_x, detection.bbox_y, detection.bbox_width, detection.bbox_height];
        Self::new(bbox, [detection.video_width, detection.video_height])
    }

    /// Computes the placement of a box. `bbox` is left, top, width and height, `size` is width and
    /// height of the picture, all in pixels.
    pub fn new(bbox: [Option<i32>; 4], size: [Option<i32>; 2]) -> Result<Self, PlacementError> {
        let [Some(x), Some(y), Some(box_width), Some(box_height)] = bbox else {
            return Err(PlacementError::NoBox);
        };
        let [Some(width @ 1..), Some(height @ 1..)] = size else {
            return Err(PlacementError::NoSize);
        };
        let (left, center, right) = span((x, box_width), width)?;
        let (top, middle, bottom) = span((y, box_height), height)?;
        Ok(Self {
            bounds: Rect::new((left, top), (right, bottom)),
            center: (center, middle).into(),
            foot: (center, bottom).into(),
        })
    }
}

/// Returns start, middle and end of one dimension of a box as fractions of the picture. Divides
/// only once, at the end, so that half of the picture is exactly 0.5.
fn span((start, length): (i32, i32), size: i32) -> Result<(f64, f64, f64), PlacementError> {
    if length < 0 {
        return Err(PlacementError::NoBox);
    }
    let (start, size) = (f64::from(start), f64::from(size));
    let end = start + f64::from(length);
    if end < 0.0 || start > size {
        return Err(PlacementError::Outside);
    }
    let (clipped_start, clipped_end) = (start.max(0.0), end.min(size));
    let middle = f64::midpoint(clipped_start, clipped_end);
    Ok((clipped_start / size, middle / size, clipped_end / size))
}

//! Where in its picture a detection is.

use geo::{Coord, Rect};

use crate::entity::detection;

/// Where in its picture a detection is: its bounding box, cut off at the edges of the picture. All
/// numbers are parts of the picture, from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Place {
    /// The box.
    pub bounds: Rect<f64>,
    /// The centre of the box.
    pub center: Coord<f64>,
    /// The middle of the lower side of the box.
    pub foot: Coord<f64>,
}

/// Why it is not known which part of its picture a detection is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unplaced {
    /// It has no bounding box, or one of a negative size.
    NoBox,
    /// It does not say how large the picture is.
    NoSize,
    /// The bounding box lies outside of the picture.
    Outside,
}

impl Unplaced {
    /// What is wrong, for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoBox => "no bounding box",
            Self::NoSize => "no video_width and video_height",
            Self::Outside => "a bounding box outside of the picture",
        }
    }
}

impl Place {
    /// The place of a detection.
    pub fn of(detection: &detection::Model) -> Result<Self, Unplaced> {
        let bbox = [
            detection.bbox_x,
            detection.bbox_y,
            detection.bbox_width,
            detection.bbox_height,
        ];
        Self::new(bbox, [detection.video_width, detection.video_height])
    }

    /// The place of a box, given by its left and upper edge, its width and its height, in a picture of
    /// this width and height; all in pixels.
    pub fn new(bbox: [Option<i32>; 4], size: [Option<i32>; 2]) -> Result<Self, Unplaced> {
        let [Some(x), Some(y), Some(across), Some(down)] = bbox else {
            return Err(Unplaced::NoBox);
        };
        let [Some(width @ 1..), Some(height @ 1..)] = size else {
            return Err(Unplaced::NoSize);
        };
        let (left, center, right) = span((x, across), width)?;
        let (top, middle, bottom) = span((y, down), height)?;
        Ok(Self {
            bounds: Rect::new((left, top), (right, bottom)),
            center: (center, middle).into(),
            foot: (center, bottom).into(),
        })
    }
}

/// The start, the middle and the end of one side of a box, in parts of the picture. Pixels are
/// divided once and last, so that half of the picture is exactly 0.5.
fn span((start, length): (i32, i32), size: i32) -> Result<(f64, f64, f64), Unplaced> {
    if length < 0 {
        return Err(Unplaced::NoBox);
    }
    let (start, size) = (f64::from(start), f64::from(size));
    let end = start + f64::from(length);
    if end < 0.0 || start > size {
        return Err(Unplaced::Outside);
    }
    let (start, end) = (start.max(0.0), end.min(size));
    Ok((start / size, f64::midpoint(start, end) / size, end / size))
}

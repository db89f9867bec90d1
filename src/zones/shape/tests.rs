//! Tests of corner validation, and of detections at the edges of a zone.

use serde_json::json;

use super::*;
use crate::{entity::detection, zones::PlacementError};

const SQUARE: &[[f64; 2]] = &[[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.25, 0.75]];

/// U shape: two legs with a gap at the top.
const CONCAVE: &[[f64; 2]] =
    &[[0.0, 0.0], [0.25, 0.0], [0.25, 0.5], [0.75, 0.5], [0.75, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]];

fn zone(corners: &[[f64; 2]], anchor: ZoneAnchor, min_overlap: Option<f64>) -> Zone {
    let now = crate::entity::now();
    let row = camera_zone::Model {
        id: "z".into(),
        camera_id: "door".into(),
        name: "z".into(),
        zone_type: camera_zone::ZoneType::Other,
        coordinates: json!(corners),
        shape: ZoneShape::Polygon,
        color: "#000000".into(),
        enabled: true,
        priority: 0,
        created_at: now,
        updated_at: now,
        anchor,
        min_overlap,
        version_id: 1,
    };
    Zone::compile(&row).unwrap()
}

/// Placement of a box in a picture of 100 by 100 pixels.
fn placement([x, y, width, height]: [i32; 4]) -> Result<Placement, PlacementError> {
    Placement::of(&detection::Model {
        id: 0,
        camera_id: "door".into(),
        file_path: String::new(),
        file_type: None,
        detected_at: crate::entity::now(),
        object_type: None,
        confidence: None,
        bbox_x: Some(x),
        bbox_y: Some(y),
        bbox_width: Some(width),
        bbox_height: Some(height),
        thumbnail_path: None,
        media_type: None,
        duration: None,
        video_codec: None,
        video_width: Some(100),
        video_height: Some(100),
        enrichment_data: None,
        labels: None,
    })
}

fn problem(corners: &[[f64; 2]], shape: ZoneShape) -> Option<String> {
    check_corners("c", corners, shape).err().map(|error| error.to_string())
}

#[test]
fn corners_that_make_no_zone_are_refused_with_a_reason() {
    use ZoneShape::{Polygon, Rectangle};
    let many: Vec<_> = (0..1_001).map(|n| [f64::from(n) / 2_000.0, 0.5]).collect();
    let turned = [[0.5, 0.0], [1.0, 0.5], [0.5, 1.0], [0.0, 0.5]];
    let in_range = "must be in [0, 1]";
    let crossing = "must not cross or touch itself";
    for (corners, shape, expected) in [
        (SQUARE, Rectangle, None),
        (SQUARE, Polygon, None),
        (CONCAVE, Polygon, None),
        (&turned, Polygon, None),
        (&[[0.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.0]], Rectangle, None),
        (&[], Polygon, Some("`c` must have at least 3 points".to_string())),
        (&SQUARE[..2], Polygon, Some("`c` must have at least 3 points".into())),
        (&many, Polygon, Some("`c` must have at most 1000 points".into())),
        (&[[0.0, 0.0], [0.5, 1.1], [1.0, 0.0]], Polygon, Some(format!("`c[1].y` {in_range}, got 1.1"))),
        (&[[0.0, 0.0], [0.5, 1.0], [f64::NAN, 0.0]], Polygon, Some(format!("`c[2].x` {in_range}, got NaN"))),
        (&[[-1e-9, 0.0], [0.5, 1.0], [1.0, 0.0]], Polygon, Some(format!("`c[0].x` {in_range}, got -0.000000001"))),
        (
            &[[0.0, 0.0], [0.5, 1.0], [0.5, 1.0], [1.0, 0.0]],
            Polygon,
            Some("`c[2]` must not repeat the point before it".into()),
        ),
        (
            &[[0.0, 0.0], [0.5, 1.0], [1.0, 0.0], [0.0, 0.0]],
            Polygon,
            Some("`c[3]` must not repeat the first point, to which it is joined anyway".into()),
        ),
        // A bow tie, an outward spike, an inward spike, and a point used twice.
        (&[[0.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.0, 1.0]], Polygon, Some(format!("`c` {crossing}"))),
        (&[[0.0, 0.0], [0.5, 0.0], [1.0, 0.0], [0.5, 0.0], [0.5, 0.5]], Polygon, Some(format!("`c` {crossing}"))),
        (&[[0.0, 0.0], [1.0, 0.0], [0.5, 0.0], [0.5, 0.5]], Polygon, Some(format!("`c` {crossing}"))),
        (
            &[[0.0, 0.0], [0.5, 0.5], [1.0, 0.0], [1.0, 1.0], [0.5, 0.5], [0.0, 1.0]],
            Polygon,
            Some(format!("`c` {crossing}")),
        ),
        (&[[0.1, 0.1], [0.5, 0.5], [0.9, 0.9]], Polygon, Some("`c` must enclose an area".into())),
        (&[[0.1, 0.1], [0.9, 0.1], [0.5, 0.1], [0.3, 0.1]], Polygon, Some("`c` must enclose an area".into())),
        (&[[0.5, 0.5], [0.500_001, 0.5], [0.5, 0.500_001]], Polygon, Some("`c` must enclose an area".into())),
        (&SQUARE[..3], Rectangle, Some("`c` must have exactly 4 points, for the shape is a rectangle".into())),
        (CONCAVE, Rectangle, Some("`c` must have exactly 4 points, for the shape is a rectangle".into())),
        (&[[0.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.0, 1.0]], Rectangle, Some(format!("`c` {crossing}"))),
    ] {
        assert_eq!(problem(corners, shape), expected, "{corners:?}");
    }
    for corners in [&turned, &[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.1, 1.0]]] {
        let problem = problem(corners, Rectangle).unwrap();
        assert!(problem.starts_with("`c` are not the corners of a rectangle"), "{problem}");
    }
}

#[test]
fn the_boundary_belongs_to_the_zone() {
    let triangle = &[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]][..];
    for (corners, x, y, expected) in [
        (SQUARE, 50, 50, true),
        (SQUARE, 25, 50, true),
        (SQUARE, 75, 50, true),
        (SQUARE, 50, 25, true),
        (SQUARE, 50, 75, true),
        (SQUARE, 25, 25, true),
        (SQUARE, 75, 75, true),
        (SQUARE, 24, 50, false),
        (SQUARE, 76, 75, false),
        (triangle, 0, 0, true),
        (triangle, 100, 0, true),
        (triangle, 50, 50, true),
        (triangle, 51, 50, false),
        // The gap of the U, its edges, and the inner corner.
        (CONCAVE, 50, 25, false),
        (CONCAVE, 50, 0, false),
        (CONCAVE, 25, 25, true),
        (CONCAVE, 50, 50, true),
        (CONCAVE, 25, 50, true),
        (CONCAVE, 10, 10, true),
    ] {
        // A box of size zero is a point.
        let placement = placement([x, y, 0, 0]).unwrap();
        let hit = zone(corners, ZoneAnchor::Center, None).hit(&placement);
        assert_eq!(hit.is_some(), expected, "({x}, {y}) in {corners:?}");
        assert_eq!(zone(corners, ZoneAnchor::Foot, None).hit(&placement).is_some(), expected);
        assert_eq!(zone(corners, ZoneAnchor::Overlap, Some(0.001)).hit(&placement), None);
    }
}

#[test]
fn the_anchor_says_what_must_lie_in_the_zone() {
    // Centre (50, 80) and foot (50, 100) are below the square.
    let tall = placement([40, 60, 20, 40]).unwrap();
    assert_eq!(zone(SQUARE, ZoneAnchor::Center, None).hit(&tall), None);
    assert_eq!(zone(SQUARE, ZoneAnchor::Foot, None).hit(&tall), None);
    // Centre (50, 65) is inside, foot (50, 75) is on the lower edge.
    let standing = placement([40, 55, 20, 20]).unwrap();
    let center = Hit::Center(Coord { x: 0.5, y: 0.65 });
    assert_eq!(zone(SQUARE, ZoneAnchor::Center, None).hit(&standing), Some(center));
    let foot = Hit::Foot(Coord { x: 0.5, y: 0.75 });
    assert_eq!(zone(SQUARE, ZoneAnchor::Foot, None).hit(&standing), Some(foot));
}

#[test]
fn an_overlap_is_a_part_of_the_box() {
    for (corners, bounds, expected) in [
        (SQUARE, [30, 30, 10, 10], 1.0),
        (SQUARE, [25, 25, 50, 50], 1.0),
        (SQUARE, [20, 30, 10, 10], 0.5),
        (SQUARE, [20, 20, 10, 10], 0.25),
        (SQUARE, [0, 0, 100, 100], 0.25),
        // Touching boxes do not overlap.
        (SQUARE, [15, 30, 10, 10], 0.0),
        (SQUARE, [0, 0, 10, 10], 0.0),
        // The box covers both legs of the U and the gap.
        (CONCAVE, [0, 0, 100, 50], 0.5),
        (CONCAVE, [30, 10, 40, 20], 0.0),
        // Clipped at the edge of the picture: the part outside does not count.
        (CONCAVE, [-50, 60, 100, 20], 1.0),
    ] {
        let placement = placement(bounds).unwrap();
        let hit = |least| zone(corners, ZoneAnchor::Overlap, Some(least)).hit(&placement);
        if expected > 0.0 {
            let Some(Hit::Overlap(overlap)) = hit(expected) else {
                panic!("{bounds:?} is in {corners:?} by {expected}")
            };
            assert!((overlap - expected).abs() < 1e-6, "{overlap} {bounds:?} {corners:?}");
            if expected < 1.0 {
                assert_eq!(hit(expected + 0.001), None, "{bounds:?} {corners:?}");
            }
        } else {
            assert_eq!(hit(1e-9), None, "{bounds:?} {corners:?}");
        }
    }
}

#[test]
fn boxes_are_cut_off_at_the_edges_of_the_picture() {
    let cut = placement([-20, 90, 40, 100]).unwrap();
    assert_eq!(cut.bounds, Rect::new((0.0, 0.9), (0.2, 1.0)));
    assert_eq!((cut.center, cut.foot), ((0.1, 0.95).into(), (0.1, 1.0).into()));
    for bounds in [[-20, 0, 19, 10], [101, 0, 1, 1], [0, -5, 10, 4], [0, 101, 1, 1]] {
        assert_eq!(placement(bounds), Err(PlacementError::Outside), "{bounds:?}");
    }
    for bounds in [[0, 0, -1, 5], [0, 0, 5, i32::MIN]] {
        assert_eq!(placement(bounds), Err(PlacementError::NoBox), "{bounds:?}");
    }
    assert!(placement([i32::MIN, i32::MIN, i32::MAX, i32::MAX]).is_err());
    assert!(placement([i32::MAX, 0, i32::MAX, 1]).is_err());
}

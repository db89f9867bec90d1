//! Compares the edge index with the computations of `geo` on whole polygons.

#![expect(clippy::cast_precision_loss, reason = "small numbers of corners")]

use geo::{Area, BooleanOps, LineString, Rect};

use super::*;

/// Star-shaped polygon. Corners are sorted by angle, so that edges do not cross.
fn star(random: &mut fastrand::Rng, corners: usize) -> Polygon<f64> {
    let corner = |at: usize| {
        let angle = std::f64::consts::TAU * at as f64 / corners as f64;
        let far = 0.05 + 0.45 * random.f64();
        Coord { x: 0.5 + far * angle.cos(), y: 0.5 + far * angle.sin() }
    };
    polygon((0..corners).map(corner).collect())
}

fn polygon(corners: Vec<Coord<f64>>) -> Polygon<f64> {
    Polygon::new(LineString(corners), Vec::new())
}

/// Comb with teeth as high as the picture.
fn comb(teeth: usize) -> Polygon<f64> {
    let x = |part: f64| part / teeth as f64;
    let mut corners = vec![(0.0, 1.0)];
    for tooth in 0..teeth {
        let at = tooth as f64;
        corners.extend([(x(at), 0.0), (x(at + 0.4), 0.0), (x(at + 0.4), 0.9), (x(at + 0.9), 0.9)]);
    }
    corners.push((1.0, 0.9));
    corners.push((1.0, 1.0));
    polygon(corners.into_iter().map(Coord::from).collect())
}

fn polygons(random: &mut fastrand::Rng) -> Vec<Polygon<f64>> {
    let sizes = [3, 4, 5, 8, 21, 100, 500, 999];
    let mut polygons: Vec<_> = sizes.iter().map(|size| star(random, *size)).collect();
    polygons.push(comb(3));
    polygons.push(comb(200));
    // Polygon with edges and corners at round coordinates, which the tested points share.
    let steps = [(0.0, 0.0), (0.5, 0.0), (0.5, 0.25), (0.75, 0.25), (0.75, 0.5), (1.0, 0.5), (1.0, 1.0), (0.0, 1.0)];
    polygons.push(polygon(steps.map(Coord::from).into()));
    polygons
}

#[test]
fn points_are_where_the_whole_polygon_has_them() {
    let mut random = fastrand::Rng::with_seed(11);
    for polygon in polygons(&mut random) {
        let edges = EdgeIndex::new(&polygon);
        let corners = polygon.exterior().0.clone();
        for at in 0..4_000 {
            let any = Coord { x: random.f64(), y: random.f64() };
            let corner = corners[at % corners.len()];
            let round = Coord { x: f64::from(random.u32(..9)) / 8.0, y: f64::from(random.u32(..9)) / 8.0 };
            let level = Coord { x: any.x, y: corner.y };
            for point in [any, corner, round, level] {
                assert_eq!(edges.contains(point), polygon.intersects(&point), "{point:?} {polygon:?}");
            }
        }
    }
}

#[test]
fn areas_are_those_of_the_intersection() {
    let mut random = fastrand::Rng::with_seed(12);
    for polygon in polygons(&mut random) {
        let edges = EdgeIndex::new(&polygon);
        assert!(edges.is_simple(), "{polygon:?}");
        for at in 0..60 {
            let mut value = || {
                if at % 3 == 0 { f64::from(random.u32(..9)) / 8.0 } else { random.f64() }
            };
            let bounds = Rect::new((value(), value()), (value(), value()));
            if bounds.unsigned_area() == 0.0 {
                continue;
            }
            let expected = polygon.intersection(&bounds.to_polygon()).unsigned_area();
            let area = edges.intersection_area(bounds.min(), bounds.max());
            assert!((area - expected).abs() < 1e-6, "{area} {expected} {bounds:?}");
        }
    }
}

#[test]
fn polygons_that_cross_or_touch_themselves_are_told() {
    let cases: [&[(f64, f64)]; 4] = [
        // A bow tie, an outward spike, a point used twice, and an edge along another edge.
        &[(0.0, 0.0), (1.0, 1.0), (1.0, 0.0), (0.0, 1.0)],
        &[(0.0, 0.0), (0.5, 0.0), (1.0, 0.0), (0.5, 0.0), (0.5, 0.5)],
        &[(0.0, 0.0), (0.5, 0.5), (1.0, 0.0), (1.0, 1.0), (0.5, 0.5), (0.0, 1.0)],
        &[(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.8, 0.0), (0.2, 0.0), (0.0, 1.0)],
    ];
    for case in cases {
        let corners = case.iter().map(|corner| Coord::from(*corner)).collect();
        assert!(!EdgeIndex::new(&polygon(corners)).is_simple(), "{case:?}");
    }
}

#[test]
fn sides_take_little_room() {
    for polygon in [comb(250), comb(1)] {
        let edges = EdgeIndex::new(&polygon);
        assert!(edges.members.len() <= edges.edges.len() * MAX_BAND_ENTRIES_PER_EDGE);
    }
}

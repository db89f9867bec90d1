//! `CountZoneHits`.

use prost_types::Duration;
use watchpost::pb;

use super::object_at;
use crate::support::{
    TestServer,
    calls::{at, between, execute, not_found, refused, strings},
    database::{Backend, on_both},
    detection, middle,
};

/// A count of the camera `door` over the seconds from `start` to `end`, in buckets of `width` seconds.
fn counting(start: i64, end: i64, width: i64) -> pb::CountZoneHitsRequest {
    pb::CountZoneHitsRequest {
        camera_id: "door".into(),
        range: between(start, end),
        bucket_width: Some(Duration { seconds: width, nanos: 0 }),
        ..Default::default()
    }
}

/// Start, detections, those of unknown place, and the zones with their hits, of every bucket.
async fn count(server: &TestServer, request: pb::CountZoneHitsRequest) -> String {
    let reply = server.zones().count_zone_hits(request).await;
    let buckets = reply.unwrap().into_inner().buckets;
    let told = buckets.iter().map(|bucket| {
        let hits = bucket.zone_hits.iter();
        let hits = hits.map(|hits| format!(" {}={}", hits.zone_id, hits.detections));
        format!(
            "{}: {}/{}{}",
            bucket.start_time.unwrap().seconds,
            bucket.detections,
            bucket.unplaced,
            hits.collect::<String>()
        )
    });
    told.collect::<Vec<_>>().join(", ")
}

#[on_both]
async fn detections_are_counted_by_zone_and_bucket(backend: Backend) {
    let server = TestServer::start(backend).await;
    for id in ["door", "gate"] {
        server.camera(id).await;
    }
    let seen = |seconds, seen| pb::Detection { detected_at: at(seconds), ..seen };
    let (inside, outside) = (|name| object_at(name, 500, 250), |name| object_at(name, 20, 20));
    server
        .ingest(
            "door",
            vec![
                seen(99, inside("dog")),
                seen(100, inside("Dog")),
                seen(100, inside("cat")),
                seen(109, outside("dog")),
                seen(110, detection("dog", 0.9)),
                seen(125, pb::Detection { confidence: Some(0.5), ..inside("dog") }),
                seen(125, pb::Detection { object_type: None, ..inside("") }),
                seen(126, object_at("dog", -500, 20)),
                seen(130, inside("dog")),
            ],
        )
        .await;
    server.ingest("gate", vec![seen(100, inside("dog"))]).await;
    assert_eq!(count(&server, counting(100, 130, 10)).await, "100: 3/0, 110: 1/1, 120: 3/0");

    // Zones that come later count what was before them.
    server.zone(middle("door", "z")).await;
    server.zone(pb::CameraZone { priority: 1, ..middle("door", "first") }).await;
    server.zone(pb::CameraZone { enabled: Some(false), ..middle("door", "off") }).await;
    let all = counting(100, 130, 10);
    assert_eq!(count(&server, all.clone()).await, "100: 3/0 first=2 z=2, 110: 1/1, 120: 3/0 first=2 z=2");
    let dogs = pb::CountZoneHitsRequest { object_types: strings(&["DOG"]), ..all.clone() };
    assert_eq!(count(&server, dogs.clone()).await, "100: 2/0 first=1 z=1, 110: 1/1, 120: 2/0 first=1 z=1");
    let sure = pb::CountZoneHitsRequest { min_confidence: Some(0.9), ..dogs };
    assert_eq!(count(&server, sure).await, "100: 2/0 first=1 z=1, 110: 1/1, 120: 1/0");
    // Buckets start at multiples of their width, and the range within them.
    assert_eq!(count(&server, counting(109, 126, 60)).await, "60: 2/1, 120: 2/0 first=2 z=2");
    assert_eq!(count(&server, counting(119, 121, 1)).await, "119: 0/0, 120: 0/0");
    let gate = pb::CountZoneHitsRequest { camera_id: "gate".into(), ..all };
    assert_eq!(count(&server, gate).await, "100: 1/0, 110: 0/0, 120: 0/0");
    server.stop().await;
}

#[on_both]
async fn more_than_a_page_is_counted_once(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    server.zone(middle("door", "z")).await;
    // Many of one time, so that pages part them.
    for _ in 0..11 {
        let seen = pb::Detection { detected_at: at(100), ..object_at("dog", 500, 250) };
        server.ingest("door", vec![seen; 1_000]).await;
    }
    assert_eq!(count(&server, counting(100, 101, 1)).await, "100: 11000/0 z=11000");
    server.stop().await;
}

#[on_both]
async fn a_count_out_of_bounds_is_refused_by_name(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    let good = || counting(100, 200, 10);
    let wide = |seconds, nanos| pb::CountZoneHitsRequest { bucket_width: Some(Duration { seconds, nanos }), ..good() };
    let open = Some(pb::TimeRange { start: at(1), end: None });
    for (request, path) in [
        (pb::CountZoneHitsRequest { camera_id: String::new(), ..good() }, "camera_id"),
        (pb::CountZoneHitsRequest { range: None, ..good() }, "range.start"),
        (pb::CountZoneHitsRequest { range: open, ..good() }, "range.end"),
        (counting(100, 100, 10), "range.end"),
        (pb::CountZoneHitsRequest { bucket_width: None, ..good() }, "bucket_width"),
        (wide(0, 0), "bucket_width"),
        (wide(1, 1), "bucket_width"),
        (wide(-1, 0), "bucket_width"),
        (wide(86_401, 0), "bucket_width"),
        (counting(0, 10_001, 1), "bucket_width"),
        (pb::CountZoneHitsRequest { object_types: strings(&["a", ""]), ..good() }, "object_types[1]"),
        (pb::CountZoneHitsRequest { min_confidence: Some(1.1), ..good() }, "min_confidence"),
    ] {
        refused(server.zones().count_zone_hits(request).await, path);
    }
    let nowhere = pb::CountZoneHitsRequest { camera_id: "gate".into(), ..good() };
    not_found(server.zones().count_zone_hits(nowhere).await, "camera", "gate");
    let zones = (0..41).map(|n| format!("('{n}', 'door', '{n}', '[[0, 0], [1, 0], [0, 1]]')"));
    let zones = zones.collect::<Vec<_>>().join(", ");
    execute(&server, &format!("INSERT INTO camera_zones (id, camera_id, name, coordinates) VALUES {zones}")).await;
    // Makes the server read the zones again.
    server.zone(middle("door", "z")).await;
    refused(server.zones().count_zone_hits(counting(0, 10_000, 1)).await, "bucket_width");
    let most = server.zones().count_zone_hits(counting(0, 9_500, 1)).await.unwrap().into_inner();
    assert_eq!(most.buckets.len(), 9_500);
    server.stop().await;
}

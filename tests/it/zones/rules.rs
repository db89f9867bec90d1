//! Rules that ask for zones: from the ingest to the alert.

use tonic::Code;
use watchpost::pb::{
    self, CameraZoneAnchor, CameraZoneShape, RuleStop, camera_zone_service_client::CameraZoneServiceClient,
    event_service_client::EventServiceClient,
};

use super::{delete, object_at, points, update};
use crate::support::{
    self, TestServer, always,
    calls::{failed, strings},
    connect,
    database::{Backend, on_both},
    detection, eventually, field, ingest, middle,
};

/// A rule that asks for these zones, with the zone in its dedup key.
fn in_zones(ids: &[&str]) -> pb::AlertRule {
    pb::AlertRule {
        zone_ids: strings(ids),
        dedup_key_template: Some("{zone_id}:{object_type}".into()),
        ..always("zones")
    }
}

/// The dedup key of the only alert, or what stopped the only rule and why.
async fn outcome(server: &TestServer, camera_id: &str, detections: Vec<pb::Detection>) -> String {
    let response = server.explained(camera_id, detections).await;
    match (&response.alerts[..], &response.rule_outcomes[..]) {
        ([alert], [outcome]) if outcome.fired => alert.dedup_key.clone(),
        ([], [outcome]) if outcome.stopped_by() == RuleStop::ZoneIds => outcome.detail.clone(),
        ([], [outcome]) => outcome.stopped_by().as_str_name().to_string(),
        _ => panic!("not one rule: {response:?}"),
    }
}

#[on_both]
async fn one_detection_must_meet_type_confidence_and_zone(backend: Backend) {
    let server = TestServer::start(backend).await;
    for id in ["door", "gate"] {
        server.camera(id).await;
    }
    server.zone(middle("door", "middle")).await;
    server.zone(middle("gate", "other")).await;
    server
        .rule(pb::AlertRule {
            object_types: strings(&["person"]),
            min_confidence: Some(0.8),
            ..in_zones(&["other", "middle"])
        })
        .await;
    let unsure = |seen| pb::Detection { confidence: Some(0.7), ..seen };
    let sizeless = |seen| pb::Detection { video_width: None, ..seen };
    let (inside, outside) = (|name| object_at(name, 500, 250), |name| object_at(name, 100, 250));
    for (camera, detections, expected) in [
        ("door", vec![inside("person")], "middle:person"),
        ("gate", vec![inside("person")], "other:person"),
        // On the edge, and a pixel beside it.
        ("door", vec![object_at("PERSON", 250, 375)], "middle:person"),
        ("door", vec![object_at("person", 249, 375)], "the detection is in none of zone_ids"),
        // Each of them meets something, and none all.
        (
            "door",
            vec![inside("dog"), unsure(inside("person")), outside("person")],
            "the detection is in none of zone_ids",
        ),
        ("door", vec![outside("person"), outside("person")], "none of 2 detections is in one of zone_ids"),
        ("door", vec![inside("dog")], "RULE_STOP_OBJECT_TYPES"),
        ("door", vec![unsure(inside("person"))], "RULE_STOP_MIN_CONFIDENCE"),
        ("door", vec![outside("person"), inside("dog"), inside("person")], "middle:person"),
        // What is not known is not guessed, and stops nothing that is.
        (
            "door",
            vec![sizeless(inside("person"))],
            "the detection is in none of zone_ids; unknown placement of 1, \
                 the first has no video_width and video_height",
        ),
        (
            "door",
            vec![outside("person"), detection("person", 0.9), sizeless(inside("person"))],
            "none of 3 detections is in one of zone_ids; unknown placement of 2, \
                 the first has no bounding box",
        ),
        ("door", vec![sizeless(outside("person")), inside("person")], "middle:person"),
        ("door", vec![], "RULE_STOP_OBJECT_TYPES"),
    ] {
        let case = format!("{detections:?}");
        assert_eq!(outcome(&server, camera, detections).await, expected, "{case}");
    }
    server.stop().await;
}

#[on_both]
async fn the_first_zone_that_matched_is_told(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    let wide = |id: &str, priority| pb::CameraZone {
        coordinates: points(&[(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]),
        priority,
        ..middle("door", id)
    };
    for zone in
        [wide("b", 1), wide("a", 1), pb::CameraZone { priority: 2, ..middle("door", "high") }, wide("unasked", 9)]
    {
        server.zone(zone).await;
    }
    server.rule(in_zones(&["b", "high", "a"])).await;
    let typeless = pb::Detection { object_type: None, ..object_at("", 500, 250) };
    for (detections, expected) in [
        (vec![object_at("dog", 500, 250)], "high:dog"),
        (vec![object_at("dog", 10, 10)], "a:dog"),
        // The type is that of a detection in the zone that is told.
        (vec![object_at("cat", 10, 10), object_at("dog", 500, 250)], "high:dog"),
        (vec![object_at("cat", 10, 10), typeless.clone()], "high:unknown"),
        (vec![typeless, object_at("dog", 500, 250)], "high:dog"),
    ] {
        let case = format!("{detections:?}");
        assert_eq!(outcome(&server, "door", detections).await, expected, "{case}");
    }
    let alert = server.ingest("door", vec![object_at("dog", 10, 10)]).await.alerts.remove(0);
    let metadata = alert.metadata.unwrap().fields;
    let zone = prost_types::value::Kind::StringValue("a".into());
    assert_eq!(metadata["zone_id"].kind, Some(zone));
    server.stop().await;
}

#[on_both]
async fn anchors_decide_what_must_lie_in_the_zone(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    server.zone(middle("door", "z")).await;
    server.rule(in_zones(&["z"])).await;
    let anchor = async |anchor: CameraZoneAnchor, min_overlap| {
        let zone = pb::CameraZone { id: "z".into(), anchor: anchor.into(), min_overlap, ..Default::default() };
        update(&server, zone, &["anchor", "min_overlap"]).await.unwrap();
    };
    // The lower edge of the zone is at 375: half of the box is below it.
    let half = || vec![object_at("dog", 500, 375)];
    let fires = async |detections| outcome(&server, "door", detections).await == "z:dog";
    assert!(fires(half()).await);
    anchor(CameraZoneAnchor::Foot, None).await;
    assert!(!fires(half()).await);
    assert!(fires(vec![object_at("dog", 500, 365)]).await);
    anchor(CameraZoneAnchor::Overlap, Some(0.5)).await;
    assert!(fires(half()).await);
    assert!(!fires(vec![object_at("dog", 500, 376)]).await);
    anchor(CameraZoneAnchor::Overlap, Some(1.0)).await;
    assert!(!fires(half()).await);
    assert!(fires(vec![object_at("dog", 500, 365)]).await);
    server.stop().await;
}

#[on_both]
async fn a_change_of_a_zone_is_in_force_for_the_next_event(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    server.zone(middle("door", "z")).await;
    server.rule(in_zones(&["z"])).await;
    let seen = || vec![object_at("dog", 500, 250)];
    let change = pb::CameraZone { id: "z".into(), ..Default::default() };
    let gone = "none of zone_ids is an enabled zone of camera door";
    for _ in 0..3 {
        assert_eq!(outcome(&server, "door", seen()).await, "z:dog");
        let off = pb::CameraZone { enabled: Some(false), ..change.clone() };
        update(&server, off, &[]).await.unwrap();
        assert_eq!(outcome(&server, "door", seen()).await, gone);
        let away = pb::CameraZone {
            enabled: Some(true),
            shape: CameraZoneShape::Polygon.into(),
            coordinates: points(&[(0.0, 0.0), (0.5, 0.0), (0.0, 0.5)]),
            ..change.clone()
        };
        update(&server, away, &[]).await.unwrap();
        assert_eq!(outcome(&server, "door", seen()).await, "the detection is in none of zone_ids");
        let back = pb::CameraZone { coordinates: middle("door", "z").coordinates, ..change.clone() };
        update(&server, back, &[]).await.unwrap();
    }
    delete(&server, "z", true).await.unwrap();
    assert_eq!(outcome(&server, "door", seen()).await, gone);
    server.zone(middle("door", "z")).await;
    assert_eq!(outcome(&server, "door", seen()).await, "z:dog");
    assert_eq!(outcome(&server, "door", vec![]).await, "there is no detection");
    server.stop().await;
}

#[on_both]
async fn zones_are_in_force_after_a_restart(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    server.zone(middle("door", "z")).await;
    server.rule(in_zones(&["z"])).await;
    let again = TestServer::start_with(server.stop().await, |_| {}).await;
    assert_eq!(outcome(&again, "door", vec![object_at("dog", 500, 250)]).await, "z:dog");
    again.stop().await;
}

#[on_both]
async fn rules_name_zones_that_there_are(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    for id in ["a", "b"] {
        server.zone(middle("door", id)).await;
    }
    let create = async |ids: &[&str]| {
        let request = pb::CreateAlertRuleRequest { alert_rule: Some(in_zones(ids)) };
        server.rules().create_alert_rule(request).await
    };
    let update = async |id: &str, ids: &[&str]| {
        let alert_rule = Some(pb::AlertRule { id: id.into(), zone_ids: strings(ids), ..Default::default() });
        server
            .rules()
            .update_alert_rule(pb::UpdateAlertRuleRequest { alert_rule, update_mask: None, ..Default::default() })
            .await
    };
    let unknown = |reply, path: &str| {
        let status = failed(reply, Code::FailedPrecondition, "BROKEN_REFERENCE");
        assert_eq!(field(&status), path);
    };
    unknown(create(&["a", "b", "nope", "no"]).await, "alert_rule.zone_ids[2]");
    unknown(create(&["A"]).await, "alert_rule.zone_ids[0]");
    let id = create(&["a", "b", "a"]).await.unwrap().into_inner().id;
    unknown(update(&id, &["b", "nope"]).await, "alert_rule.zone_ids[1]");
    delete(&server, "a", true).await.unwrap();
    // What it named before it may go on naming; others may not begin to.
    let kept = update(&id, &["a", "b"]).await.unwrap().into_inner();
    assert_eq!(kept.zone_ids, ["a", "b"]);
    unknown(create(&["a"]).await, "alert_rule.zone_ids[0]");
    update(&id, &["b"]).await.unwrap();
    unknown(update(&id, &["b", "a"]).await, "alert_rule.zone_ids[1]");
    server.stop().await;
}

#[on_both]
async fn a_zone_goes_or_a_rule_comes_but_not_both(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    for round in 0..20 {
        let id = format!("z{round}");
        server.zone(middle("door", &id)).await;
        let (mut zones, mut rules) = (server.zones(), server.rules());
        let request = pb::DeleteCameraZoneRequest { id: id.clone(), force: false };
        let gone = tokio::spawn(async move { zones.delete_camera_zone(request).await });
        let request = pb::CreateAlertRuleRequest { alert_rule: Some(in_zones(&[&id])) };
        let came = tokio::spawn(async move { rules.create_alert_rule(request).await });
        let (gone, came) = (gone.await.unwrap(), came.await.unwrap());
        assert_ne!(gone.is_ok(), came.is_ok(), "{gone:?} {came:?}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zones_are_in_force_on_another_process() {
    let one = TestServer::start(Backend::Postgres).await;
    one.camera("door").await;
    one.zone(middle("door", "z")).await;
    one.rule(in_zones(&["z"])).await;

    let two = support::start(one.database.url(), |_| {}).await;
    let channel = connect(&format!("http://{}", two.address)).await;
    let mut zones = CameraZoneServiceClient::new(channel.clone());
    let mut events = EventServiceClient::new(channel);
    let mut becomes = async |fires: bool| {
        eventually("the other server learns of the zone", async || {
            let request = ingest("door", vec![object_at("dog", 500, 250)]);
            let response = events.ingest_event(request).await.unwrap().into_inner();
            response.rule_outcomes.iter().any(|outcome| outcome.fired) == fires
        })
        .await;
    };
    for enabled in [false, true] {
        let zone = pb::CameraZone { id: "z".into(), enabled: Some(enabled), ..Default::default() };
        update(&one, zone, &[]).await.unwrap();
        becomes(enabled).await;
    }
    delete(&one, "z", true).await.unwrap();
    becomes(false).await;
    zones.create_camera_zone(pb::CreateCameraZoneRequest { camera_zone: Some(middle("door", "z")) }).await.unwrap();
    becomes(true).await;
    assert!(two.stop().await);
    one.stop().await;
}

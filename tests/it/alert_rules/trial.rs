//! `TestAlertRule`: what a rule would have done in the past, against a simple way to find it out.

mod oracle;

use oracle::{ANY, Asked, Past};
use prost_types::Timestamp;
use serde_json::json;
use tonic::{Code, Status, Streaming};
use watchpost::pb::{self, RuleStop, test_alert_rule_request::Rule as Of, test_alert_rule_response::Update};

use super::{create, update};
use crate::support::{
    TestServer, always,
    calls::{at, between, object, seconds, strings},
    database::{Backend, on_both},
    detection, field, ingest, middle, reason, seed,
};

/// When the events began: midnight of a Tuesday in UTC.
const FIRST: i64 = 1_699_920_000;
const SECONDS: i64 = 2 * 86_400;
const EVENTS: usize = 2_500;
const TYPES: [&str; 3] = ["person", "dog", "car"];

/// A server with events of two cameras in no order, many of which began in the same second.
async fn ready(backend: Backend, events: usize) -> (TestServer, Vec<Past>) {
    let server = TestServer::start(backend).await;
    for id in ["door", "gate"] {
        server.camera(id).await;
    }
    let mut random = fastrand::Rng::with_seed(seed(7));
    let mut sending = tokio::task::JoinSet::new();
    for _ in 0..events {
        let mut past = Past {
            id: 0,
            camera: ["door", "gate"][random.usize(..2)],
            second: random.i64(0..SECONDS / 60) * 60,
            score: (random.u8(..4) > 0).then(|| random.i32(0..=100)),
            seen: Vec::new(),
        };
        for _ in 0..random.usize(..3) {
            past.seen.push((TYPES[random.usize(..3)], f64::from(random.i32(0..10)) / 10.0));
        }
        let seen = past.seen.iter().map(|(name, sure)| detection(name, *sure)).collect();
        let mut request = ingest(past.camera, seen);
        let event = request.event.as_mut().unwrap();
        (event.started_at, event.risk_score) = (at(FIRST + past.second), past.score);
        let mut events = server.events();
        if sending.len() >= 64 {
            sending.join_next().await.unwrap().unwrap();
        }
        sending.spawn(async move { drop(events.ingest_event(request).await.unwrap()) });
    }
    sending.join_all().await;
    let past = stored(&server).await;
    assert_eq!(past.len(), events);
    (server, past)
}

/// The events that are there, oldest first, as the API lists them.
async fn stored(server: &TestServer) -> Vec<Past> {
    let mut seen = std::collections::HashMap::<i64, Vec<(&'static str, f64)>>::new();
    let mut past = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = pb::ListEventsRequest { page_size: 1000, page_token, filter: None };
        let page = server.events().list_events(request).await.unwrap().into_inner();
        past.extend(page.events.into_iter().map(|event| Past {
            id: event.id,
            camera: if event.camera_id == "door" { "door" } else { "gate" },
            second: event.started_at.unwrap().seconds - FIRST,
            score: event.risk_score,
            seen: Vec::new(),
        }));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let sql = "SELECT event_id, object_type, confidence FROM event_detections \
               JOIN detections ON detections.id = detection_id ORDER BY detections.id";
    for row in crate::support::calls::query(server, sql).await {
        let name: String = row.try_get("", "object_type").unwrap();
        let name = TYPES.into_iter().find(|known| *known == name).unwrap();
        let sure = row.try_get("", "confidence").unwrap();
        seen.entry(row.try_get("", "event_id").unwrap()).or_default().push((name, sure));
    }
    for event in &mut past {
        event.seen = seen.remove(&event.id).unwrap_or_default();
    }
    past.sort_by_key(|event| (event.second, event.id));
    past
}

/// A test of a rule over all events.
fn over_all(rule: Of) -> pb::TestAlertRuleRequest {
    pb::TestAlertRuleRequest { rule: Some(rule), started_at: between(FIRST, FIRST + SECONDS), ..Default::default() }
}

async fn begin(
    server: &TestServer,
    request: pb::TestAlertRuleRequest,
) -> Result<Streaming<pb::TestAlertRuleResponse>, Status> {
    let reply = server.rules().test_alert_rule(request).await?;
    Ok(reply.into_inner())
}

/// All that is sent: the matches, how often progress was told, and the totals.
async fn run(
    server: &TestServer,
    request: pb::TestAlertRuleRequest,
) -> (Vec<pb::AlertRuleTestMatch>, usize, pb::AlertRuleTestTotals) {
    let mut responses = begin(server, request).await.unwrap();
    let (mut matches, mut told, mut totals) = (Vec::new(), 0, None);
    while let Some(response) = responses.message().await.unwrap() {
        assert_eq!(totals, None, "the totals are the last");
        match response.update.unwrap() {
            Update::Match(found) => matches.push(found),
            Update::Progress(progress) => {
                told += 1;
                assert!(progress.would_fire <= progress.matched && progress.matched <= progress.events);
                let reached: Timestamp = progress.reached.unwrap();
                assert!((FIRST..FIRST + SECONDS).contains(&reached.seconds));
            }
            Update::Totals(sent) => totals = Some(sent),
        }
    }
    (matches, told, totals.expect("totals"))
}

#[on_both]
async fn a_rule_is_tested_as_an_independent_judge_has_it(backend: Backend) {
    let (server, past) = ready(backend, EVENTS).await;
    for asked in [
        ANY,
        Asked { cooldown: 3_600, ..ANY },
        Asked { score: Some(50), cooldown: 60, template: "one", ..ANY },
        Asked { types: &["dog", "car"], cooldown: 7_200, template: "{camera_id}:{object_type}", ..ANY },
        Asked { types: &["dog"], sure: Some(0.5), hours: Some((6, 18)), cooldown: 86_400, ..ANY },
        Asked { camera: Some("gate"), sure: Some(0.9), cooldown: 1_800, ..ANY },
        Asked { cooldown: 31_536_000, template: "{event_id}", ..ANY },
    ] {
        let expected = asked.expected(&past);
        assert!(!expected.0.is_empty());
        let (matches, told, totals) = run(&server, over_all(Of::AlertRule(asked.rule()))).await;
        assert_eq!((&matches, &totals), (&expected.0, &expected.1), "{asked:?}");
        assert!(told > 0, "a long run shows life");

        let stored = server.rule(pb::AlertRule { enabled: Some(false), ..asked.rule() }).await;
        let (again, _, totals) = run(&server, over_all(Of::RuleId(stored.id))).await;
        assert_eq!((again, totals), expected, "{asked:?}");
    }
    server.stop().await;
}

#[on_both]
async fn a_test_is_narrowed_by_time_camera_and_number(backend: Backend) {
    let (server, past) = ready(backend, 300).await;
    let asked = Asked { cooldown: 1_800, ..ANY };
    let rule = || Of::AlertRule(asked.rule());
    // The first and the last second are those of events: the range is half-open.
    let (first, last) = (past[50].second, past[250].second);
    let within = pb::TestAlertRuleRequest { started_at: between(FIRST + first, FIRST + last), ..over_all(rule()) };
    let of = |event: &&Past| (first..last).contains(&event.second);
    let some: Vec<_> = past.iter().filter(of).cloned().collect();
    let (matches, _, totals) = run(&server, within.clone()).await;
    assert_eq!((matches, totals), asked.expected(&some));

    let gate: Vec<_> = some.iter().filter(|event| event.camera == "gate").cloned().collect();
    let request = pb::TestAlertRuleRequest { camera_ids: strings(&["gate", "none"]), ..within.clone() };
    let (matches, _, totals) = run(&server, request.clone()).await;
    let expected = asked.expected(&gate);
    assert_eq!((&matches, &totals), (&expected.0, &expected.1));

    // Those beyond the number are counted all the same.
    let (matches, _, totals) = run(&server, pb::TestAlertRuleRequest { max_results: 3, ..request }).await;
    assert_eq!((&matches[..], &totals), (&expected.0[..3], &expected.1));

    // A deleted event was none.
    let gone = some[0].id;
    server.events().delete_event(pb::DeleteEventRequest { id: gone }).await.unwrap();
    let (matches, _, totals) = run(&server, within).await;
    assert_eq!((matches, totals), asked.expected(&some[1..]));

    let before = pb::TestAlertRuleRequest { started_at: between(1, 2), ..over_all(rule()) };
    let (matches, _, totals) = run(&server, before).await;
    assert_eq!((matches, totals), (vec![], pb::AlertRuleTestTotals::default()));
    server.stop().await;
}

#[on_both]
async fn zones_and_old_conditions_are_tested_too(backend: Backend) {
    let (server, _) = ready(backend, 0).await;
    server.zone(middle("door", "mid")).await;
    let inside = pb::Detection {
        bbox_x: Some(45),
        bbox_y: Some(45),
        bbox_width: Some(10),
        bbox_height: Some(10),
        video_width: Some(100),
        video_height: Some(100),
        ..detection("dog", 0.9)
    };
    for (second, seen) in [(0, inside.clone()), (1, detection("dog", 0.9)), (2, inside)] {
        let mut request = ingest("door", vec![seen]);
        request.event.as_mut().unwrap().started_at = at(FIRST + second);
        server.events().ingest_event(request).await.unwrap();
    }
    let rule = pb::AlertRule {
        zone_ids: strings(&["mid"]),
        dedup_key_template: Some("{zone_id}:{rule_id}".into()),
        cooldown: seconds(2),
        conditions: object(&json!({ "object_types": ["DOG"] })),
        ..always("r")
    };
    let (matches, _, totals) = run(&server, over_all(Of::AlertRule(rule))).await;
    let told: Vec<_> = matches.iter().map(|found| (found.zone_id.as_deref(), found.would_fire)).collect();
    // The cooldown is over when the second one begins.
    assert_eq!(told, [(Some("mid"), true), (Some("mid"), true)]);
    assert_eq!(matches[0].dedup_key, "mid:00000000-0000-0000-0000-000000000000");
    let stop = pb::RuleStopCount { stopped_by: RuleStop::ZoneIds.into(), events: 1 };
    assert_eq!(totals.stops, [stop]);
    server.stop().await;
}

#[on_both]
async fn what_cannot_be_tested_is_refused_by_name(backend: Backend) {
    let (server, _) = ready(backend, 0).await;
    let good = over_all(Of::AlertRule(always("r")));
    let nobody = "01890a5d-ac96-774b-bcce-b302099a8057";
    let of = |rule: pb::AlertRule| over_all(Of::AlertRule(rule));
    for (request, path) in [
        (pb::TestAlertRuleRequest { rule: None, ..good.clone() }, "rule_id"),
        (over_all(Of::RuleId("x".into())), "rule_id"),
        (pb::TestAlertRuleRequest { started_at: None, ..good.clone() }, "started_at.start"),
        (
            pb::TestAlertRuleRequest { started_at: Some(pb::TimeRange { start: at(1), end: None }), ..good.clone() },
            "started_at.end",
        ),
        (pb::TestAlertRuleRequest { started_at: between(5, 5), ..good.clone() }, "started_at.end"),
        (pb::TestAlertRuleRequest { started_at: between(5, 4), ..good.clone() }, "started_at.end"),
        (pb::TestAlertRuleRequest { started_at: between(-1, 4), ..good.clone() }, "started_at.start"),
        (pb::TestAlertRuleRequest { camera_ids: strings(&["a", ""]), ..good.clone() }, "camera_ids[1]"),
        (pb::TestAlertRuleRequest { camera_ids: vec!["a".into(); 1_001], ..good.clone() }, "camera_ids"),
        (pb::TestAlertRuleRequest { max_results: -1, ..good.clone() }, "max_results"),
    ] {
        let status = begin(&server, request).await.unwrap_err();
        assert_eq!((status.code(), &*field(&status)), (Code::InvalidArgument, path));
    }
    // As a new rule is.
    for rule in [
        always(""),
        pb::AlertRule { risk_threshold: Some(101), ..always("r") },
        pb::AlertRule { dedup_key_template: Some("{x}".into()), ..always("r") },
        pb::AlertRule { conditions: object(&json!({ "nope": 1 })), ..always("r") },
        pb::AlertRule { zone_ids: strings(&["nope"]), ..always("r") },
    ] {
        let status = begin(&server, of(rule.clone())).await.unwrap_err();
        let created = create(&server, rule).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (created.code(), created.message()));
        assert_eq!((reason(&status), field(&status)), (reason(&created), field(&created)));
    }
    let status = begin(&server, over_all(Of::RuleId(nobody.into()))).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    server.stop().await;
}

#[on_both]
async fn a_test_ends_when_the_server_stops_and_is_no_faster_than_its_client(backend: Backend) {
    // More than the transport holds for a client that does not read.
    let (server, past) = ready(backend, 1_500).await;
    let long = pb::AlertRule { dedup_key_template: Some("x".repeat(255)), ..always("r") };
    let id = server.rule(long).await.id;
    let mut responses = begin(&server, over_all(Of::RuleId(id.clone()))).await.unwrap();
    let first = responses.message().await.unwrap().unwrap();
    let Some(Update::Match(found)) = first.update else { panic!("no match: {first:?}") };
    assert_eq!(found.event_id, past[0].id);
    // The rule is that of the beginning.
    update(&server, pb::AlertRule { id, enabled: Some(false), ..Default::default() }, &[]).await.unwrap();
    let stopping = tokio::spawn(server.stop());
    let mut read = 1;
    let status = loop {
        match responses.message().await {
            Ok(Some(_)) => read += 1,
            Ok(None) => panic!("all {read} were sent"),
            Err(status) => break status,
        }
    };
    assert_eq!((status.code(), &*reason(&status)), (Code::Unavailable, "SHUTTING_DOWN"));
    assert!(read < past.len());
    stopping.await.unwrap();
}

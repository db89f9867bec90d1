//! Lists that cannot be: bad filters, sizes and tokens.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use prost::Message;
use watchpost::pb::{self, TimeRange};

use super::{HUGE, ready, refused, unharmed};
use crate::support::{
    TestServer,
    calls::{Reply, at, rows, strings},
    database::{Backend, on_both},
    detection,
};

#[derive(Clone, Copy, Debug, PartialEq)]
enum List {
    Cameras,
    Events,
    Detections,
    Rules,
    Alerts,
}

use List::{Alerts, Cameras, Detections, Events, Rules};

const LISTS: [List; 5] = [Cameras, Events, Detections, Rules, Alerts];

/// One page, and the token of the next.
async fn page(server: &TestServer, list: List, page_size: i32, page_token: &str, filtered: Filtered) -> Reply<String> {
    let page_token = page_token.to_string();
    let narrow = filtered == Filtered::Yes;
    // The filters let everything through; only that they are other ones counts.
    macro_rules! call {
        ($client:ident, $method:ident, $request:ident, $filter:expr) => {{
            let filter = narrow.then(|| $filter);
            let request = pb::$request { page_size, page_token, filter };
            server.$client().$method(request).await.map(|reply| reply.map(|page| page.next_page_token))
        }};
    }
    match list {
        Cameras => call!(
            cameras,
            list_cameras,
            ListCamerasRequest,
            pb::CameraFilter { show_deleted: true, ..Default::default() }
        ),
        Events => call!(
            events,
            list_events,
            ListEventsRequest,
            pb::EventFilter { reviewed: Some(false), ..Default::default() }
        ),
        Detections => call!(
            events,
            list_detections,
            ListDetectionsRequest,
            pb::DetectionFilter { min_confidence: Some(0.0), ..Default::default() }
        ),
        Rules => call!(
            rules,
            list_alert_rules,
            ListAlertRulesRequest,
            pb::AlertRuleFilter { enabled: Some(true), ..Default::default() }
        ),
        Alerts => {
            call!(alerts, list_alerts, ListAlertsRequest, pb::AlertFilter { statuses: vec![1], ..Default::default() })
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Filtered {
    Yes,
    No,
}

/// What a token holds, to be forged.
#[derive(Clone, PartialEq, Message)]
struct Token {
    #[prost(fixed64, tag = "1")]
    list: u64,
    #[prost(int64, tag = "2")]
    micros: i64,
    #[prost(string, tag = "3")]
    id: String,
}

/// Ranges that are none, and what is wrong with them.
fn bad_ranges() -> [(Option<TimeRange>, &'static str); 5] {
    let range = |start, end| Some(TimeRange { start, end });
    let nanos = |nanos| Some(prost_types::Timestamp { seconds: 1, nanos });
    [
        (range(at(2), at(1)), "end"),
        (range(at(-1), None), "start"),
        (range(None, at(i64::MAX)), "end"),
        (range(nanos(-1), None), "start"),
        (range(None, nanos(1_000_000_000)), "end"),
    ]
}

#[on_both]
async fn a_bad_page_is_refused(backend: Backend) {
    let server = ready(backend).await;
    server.camera("gate").await;
    server.rule(crate::support::always("second")).await;
    server.ingest("door", vec![detection("cat", 1.0)]).await;
    let before = rows(&server).await;
    let mut tokens = Vec::new();
    for list in LISTS {
        for size in [-1, i32::MIN] {
            refused(page(&server, list, size, "", Filtered::No).await, "page_size");
        }
        let long = "A".repeat(HUGE);
        for garbage in ["x", " ", "AAAA", "%%%", "ü", "\0", "null", &long] {
            refused(page(&server, list, 0, garbage, Filtered::No).await, "page_token");
        }
        let token = page(&server, list, 1, "", Filtered::No).await.unwrap().into_inner();
        assert_ne!(token, "", "{list:?} has a second page");
        page(&server, list, 1, &token, Filtered::No).await.unwrap();
        refused(page(&server, list, 1, &token, Filtered::Yes).await, "page_token");
        for broken in [format!("{token}="), format!("{token}A"), token[1..].to_string()] {
            refused(page(&server, list, 1, &broken, Filtered::No).await, "page_token");
        }
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(&token).unwrap();
        let good = Token::decode(bytes.as_slice()).unwrap();
        for forged in [
            Token { list: good.list ^ 1, ..good.clone() },
            Token { micros: i64::MAX, ..good.clone() },
            Token { micros: i64::MIN, ..good.clone() },
            Token { micros: -8_000_000_000_000_000_000, ..good.clone() },
            Token { micros: 8_000_000_000_000_000_000, ..good.clone() },
            Token { id: "\0".into(), ..good.clone() },
        ] {
            let forged = BASE64_URL_SAFE_NO_PAD.encode(forged.encode_to_vec());
            refused(page(&server, list, 1, &forged, Filtered::No).await, "page_token");
        }
        tokens.push((list, token));
    }
    for (of, token) in tokens {
        for list in LISTS.into_iter().filter(|list| *list != of) {
            refused(page(&server, list, 1, &token, Filtered::No).await, "page_token");
        }
    }
    assert_eq!(rows(&server).await, before);
    server.stop().await;
}

#[on_both]
async fn a_bad_filter_is_refused(backend: Backend) {
    let server = ready(backend).await;
    let before = rows(&server).await;
    let many = || (0..1001).map(|n| n.to_string()).collect::<Vec<_>>();
    let any = pb::EventFilter::default;
    let events = async |filter| {
        let request = pb::ListEventsRequest { filter: Some(filter), ..Default::default() };
        server.events().list_events(request).await
    };
    for (filter, path) in [
        (pb::EventFilter { camera_ids: many(), ..any() }, "camera_ids"),
        (pb::EventFilter { camera_ids: strings(&["a\0"]), ..any() }, "camera_ids[0]"),
        (pb::EventFilter { min_risk_score: Some(-1), ..any() }, "min_risk_score"),
        (pb::EventFilter { max_risk_score: Some(101), ..any() }, "max_risk_score"),
        (pb::EventFilter { min_risk_score: Some(2), max_risk_score: Some(1), ..any() }, "max_risk_score"),
        (pb::EventFilter { risk_levels: vec![0], ..any() }, "risk_levels[0]"),
        (pb::EventFilter { risk_levels: vec![1, 9], ..any() }, "risk_levels[1]"),
        (pb::EventFilter { object_type: "x".repeat(256), ..any() }, "object_type"),
        (pb::EventFilter { object_type: "a,b".into(), ..any() }, "object_type"),
        (pb::EventFilter { object_type: "\0".into(), ..any() }, "object_type"),
        (pb::EventFilter { text: "t".repeat(256), ..any() }, "text"),
        (pb::EventFilter { text: "a \0".into(), ..any() }, "text"),
    ] {
        refused(events(filter).await, &format!("filter.{path}"));
    }
    let any = pb::DetectionFilter::default;
    let detections = async |filter| {
        let request = pb::ListDetectionsRequest { filter: Some(filter), ..Default::default() };
        server.events().list_detections(request).await
    };
    for (filter, path) in [
        (pb::DetectionFilter { event_id: Some(0), ..any() }, "event_id"),
        (pb::DetectionFilter { event_id: Some(i64::MIN), ..any() }, "event_id"),
        (pb::DetectionFilter { camera_ids: strings(&[""]), ..any() }, "camera_ids[0]"),
        (pb::DetectionFilter { object_type: "\0".into(), ..any() }, "object_type"),
        (pb::DetectionFilter { object_type: "a,b".into(), ..any() }, "object_type"),
        (pb::DetectionFilter { min_confidence: Some(1.1), ..any() }, "min_confidence"),
        (pb::DetectionFilter { min_confidence: Some(f64::NAN), ..any() }, "min_confidence"),
    ] {
        refused(detections(filter).await, &format!("filter.{path}"));
    }
    let any = pb::AlertFilter::default;
    let alerts = async |filter| {
        let request = pb::ListAlertsRequest { filter: Some(filter), ..Default::default() };
        server.alerts().list_alerts(request).await
    };
    for (filter, path) in [
        (pb::AlertFilter { statuses: vec![1, 5], ..any() }, "statuses[1]"),
        (pb::AlertFilter { severities: vec![0], ..any() }, "severities[0]"),
        (pb::AlertFilter { rule_ids: strings(&["1"]), ..any() }, "rule_ids[0]"),
        (pb::AlertFilter { rule_ids: many(), ..any() }, "rule_ids"),
        (pb::AlertFilter { camera_ids: strings(&["a", " "]), ..any() }, "camera_ids[1]"),
        (pb::AlertFilter { event_id: Some(-1), ..any() }, "event_id"),
        (pb::AlertFilter { dedup_key: "\0".into(), ..any() }, "dedup_key"),
        (pb::AlertFilter { dedup_key: "d".repeat(256), ..any() }, "dedup_key"),
    ] {
        refused(alerts(filter).await, &format!("filter.{path}"));
    }
    for (range, name) in bad_ranges() {
        refused(
            events(pb::EventFilter { started_at: range, ..Default::default() }).await,
            &format!("filter.started_at.{name}"),
        );
        refused(
            detections(pb::DetectionFilter { detected_at: range, ..Default::default() }).await,
            &format!("filter.detected_at.{name}"),
        );
        refused(
            alerts(pb::AlertFilter { created_at: range, ..Default::default() }).await,
            &format!("filter.created_at.{name}"),
        );
    }
    let cameras = pb::ListCamerasRequest {
        filter: Some(pb::CameraFilter { status: 9, ..Default::default() }),
        ..Default::default()
    };
    refused(server.cameras().list_cameras(cameras).await, "filter.status");
    for (filter, path) in [
        (pb::AlertRuleFilter { severity: -1, ..Default::default() }, "filter.severity"),
        (pb::AlertRuleFilter { name: "\0".into(), ..Default::default() }, "filter.name"),
        (pb::AlertRuleFilter { name: "n".repeat(256), ..Default::default() }, "filter.name"),
    ] {
        let rules = pb::ListAlertRulesRequest { filter: Some(filter), ..Default::default() };
        refused(server.rules().list_alert_rules(rules).await, path);
    }
    unharmed(&server, &before).await;
    server.stop().await;
}

#[on_both]
async fn a_filter_that_says_the_same_very_often_is_understood(backend: Backend) {
    let server = ready(backend).await;
    let often = vec![1; 100_000];
    let filter = Some(pb::AlertFilter {
        statuses: often.clone(),
        severities: [&often[..], &[2]].concat(),
        ..Default::default()
    });
    let alerts = server.alerts().list_alerts(pb::ListAlertsRequest { filter, ..Default::default() }).await;
    assert_eq!(alerts.unwrap().into_inner().alerts.len(), 1);
    let filter = Some(pb::EventFilter { risk_levels: often, ..Default::default() });
    let events = server.events().list_events(pb::ListEventsRequest { filter, ..Default::default() }).await;
    assert_eq!(events.unwrap().into_inner().events.len(), 0);
    server.stop().await;
}

//! What silences are refused for, and by the name of which field.

use watchpost::pb;

use super::create;
use crate::support::{
    TestServer,
    calls::{at, refused, rows, strings},
    database::{Backend, on_both},
    in_seconds, quiet,
};

#[on_both]
async fn a_bad_field_is_named(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    let before = rows(&server).await;
    let any = || quiet("door");
    let ends = |start: Option<i64>, end: i64| pb::Silence {
        starts_at: start.and_then(in_seconds),
        ends_at: in_seconds(end),
        ..any()
    };
    for (silence, path) in [
        (pb::Silence { camera_ids: vec!["door".into(); 1_001], ..any() }, "camera_ids"),
        (pb::Silence { camera_ids: strings(&["door", ""]), ..any() }, "camera_ids[1]"),
        (pb::Silence { camera_ids: vec!["x".repeat(65)], ..any() }, "camera_ids[0]"),
        (pb::Silence { rule_ids: strings(&["x"]), ..any() }, "rule_ids[0]"),
        (pb::Silence { rule_ids: vec!["x".into(); 1_001], ..any() }, "rule_ids"),
        (pb::Silence { severities: vec![0], ..any() }, "severities[0]"),
        (pb::Silence { severities: vec![1, 5], ..any() }, "severities[1]"),
        // Nobody silences all by oversight.
        (pb::Silence { camera_ids: vec![], ..any() }, "match_all"),
        (pb::Silence { match_all: true, ..any() }, "match_all"),
        (pb::Silence { ends_at: None, ..any() }, "ends_at"),
        (pb::Silence { ends_at: at(-1), ..any() }, "ends_at"),
        (pb::Silence { ends_at: at(1), ..any() }, "ends_at"),
        (pb::Silence { starts_at: at(-1), ..any() }, "starts_at"),
        (ends(None, -1), "ends_at"),
        (ends(Some(600), 600), "ends_at"),
        (ends(Some(600), 599), "ends_at"),
        (ends(None, 365 * 86_400 + 60), "ends_at"),
        (ends(Some(600), 365 * 86_400 + 601), "ends_at"),
        (pb::Silence { created_by: String::new(), ..any() }, "created_by"),
        (pb::Silence { created_by: " ".into(), ..any() }, "created_by"),
        (pb::Silence { created_by: "ü".repeat(101), ..any() }, "created_by"),
        (pb::Silence { reason: String::new(), ..any() }, "reason"),
        (pb::Silence { reason: "a\0".into(), ..any() }, "reason"),
        (pb::Silence { reason: "ü".repeat(1_001), ..any() }, "reason"),
    ] {
        refused(create(&server, silence).await, &format!("silence.{path}"));
    }
    refused(server.silences().create_silence(pb::CreateSilenceRequest::default()).await, "silence");
    refused(server.silences().update_silence(pb::UpdateSilenceRequest::default()).await, "silence");
    assert_eq!(rows(&server).await, before);
    create(&server, ends(Some(600), 365 * 86_400 + 600)).await.unwrap();
    server.stop().await;
}

#[on_both]
async fn a_bad_filter_is_named(backend: Backend) {
    let server = TestServer::start(backend).await;
    let any = pb::SilenceFilter::default;
    for (filter, path) in [
        (pb::SilenceFilter { statuses: vec![1, 0], ..any() }, "statuses[1]"),
        (pb::SilenceFilter { statuses: vec![4], ..any() }, "statuses[0]"),
        (pb::SilenceFilter { at: at(-1), ..any() }, "at"),
        (pb::SilenceFilter { camera_id: "x".repeat(65), ..any() }, "camera_id"),
        (pb::SilenceFilter { rule_id: "x".into(), ..any() }, "rule_id"),
        (pb::SilenceFilter { severity: 9, ..any() }, "severity"),
        (pb::SilenceFilter { reason: "x".repeat(1_001), ..any() }, "reason"),
    ] {
        let request = pb::ListSilencesRequest { filter: Some(filter), ..Default::default() };
        refused(server.silences().list_silences(request).await, &format!("filter.{path}"));
    }
    let any = pb::AlertSuppressionFilter::default;
    for (filter, path) in [
        (pb::AlertSuppressionFilter { rule_ids: strings(&["x"]), ..any() }, "rule_ids[0]"),
        (pb::AlertSuppressionFilter { event_id: Some(0), ..any() }, "event_id"),
        (pb::AlertSuppressionFilter { camera_ids: strings(&[""]), ..any() }, "camera_ids[0]"),
        (pb::AlertSuppressionFilter { silence_id: "x".into(), ..any() }, "silence_id"),
        (pb::AlertSuppressionFilter { reasons: vec![0], ..any() }, "reasons[0]"),
        (pb::AlertSuppressionFilter { reasons: vec![9], ..any() }, "reasons[0]"),
    ] {
        let request = pb::ListAlertSuppressionsRequest { filter: Some(filter), ..Default::default() };
        refused(server.silences().list_alert_suppressions(request).await, &format!("filter.{path}"));
    }
    for page_token in ["x", "AAAA"] {
        let request = pb::ListSilencesRequest { page_token: page_token.into(), ..Default::default() };
        refused(server.silences().list_silences(request).await, "page_token");
        let request = pb::ListAlertSuppressionsRequest { page_token: page_token.into(), ..Default::default() };
        refused(server.silences().list_alert_suppressions(request).await, "page_token");
    }
    server.stop().await;
}

//! Lists of silences: filters and pages.

use watchpost::pb::{self, Severity, SilenceStatus};

use super::expire;
use crate::support::{
    TestServer, always,
    calls::{at, execute, walk},
    database::{Backend, on_both},
    in_seconds, quiet,
};

async fn reasons(server: &TestServer, filter: pb::SilenceFilter) -> String {
    let request = pb::ListSilencesRequest { filter: Some(filter), ..Default::default() };
    let reply = server.silences().list_silences(request).await;
    let silences = reply.unwrap().into_inner().silences;
    let reasons: Vec<_> = silences.into_iter().map(|silence| silence.reason).collect();
    reasons.join(" ")
}

#[on_both]
async fn silences_are_listed_newest_first_by_every_filter(backend: Backend) {
    let server = TestServer::start(backend).await;
    for id in ["a_b", "a-b", "A_b"] {
        server.camera(id).await;
    }
    let rule = server.rule(always("r")).await.id;
    let other = server.rule(always("other")).await.id;
    let named = |reason: &str| pb::Silence { camera_ids: vec![], reason: reason.into(), ..quiet("") };
    server.silence(pb::Silence { match_all: true, ..named("All") }).await;
    server.silence(pb::Silence { camera_ids: vec!["a_b".into()], ..named("cam") }).await;
    server.silence(pb::Silence { rule_ids: vec![rule.clone()], starts_at: in_seconds(600), ..named("rule_1") }).await;
    let ended = server.silence(pb::Silence { severities: vec![3], ..named("high%") }).await;
    expire(&server, &ended.id).await.unwrap();
    let any = pb::SilenceFilter::default;
    let in_status = |statuses: &[SilenceStatus]| pb::SilenceFilter {
        statuses: statuses.iter().map(|status| (*status).into()).collect(),
        ..any()
    };
    let of_camera = |id: &str| pb::SilenceFilter { camera_id: id.into(), ..any() };
    let of_rule = |id: &str| pb::SilenceFilter { rule_id: id.into(), ..any() };
    let text = |text: &str| pb::SilenceFilter { reason: text.into(), ..any() };
    let (pending, active, expired) = (SilenceStatus::Pending, SilenceStatus::Active, SilenceStatus::Expired);
    for (filter, expected) in [
        (any(), "high% rule_1 cam All"),
        (in_status(&[active]), "cam All"),
        (in_status(&[pending]), "rule_1"),
        (in_status(&[expired]), "high%"),
        (in_status(&[expired, pending]), "high% rule_1"),
        (pb::SilenceFilter { at: in_seconds(700), ..in_status(&[active]) }, "rule_1 cam All"),
        (pb::SilenceFilter { at: in_seconds(4_000), ..in_status(&[active, pending]) }, ""),
        (pb::SilenceFilter { at: at(1), ..in_status(&[pending]) }, "high% rule_1 cam All"),
        // Also those that hold for any.
        (of_camera("a_b"), "high% rule_1 cam All"),
        (of_camera("a-b"), "high% rule_1 All"),
        (of_camera("A_b"), "high% rule_1 All"),
        (of_camera("a"), "high% rule_1 All"),
        (of_camera("\""), "high% rule_1 All"),
        (of_rule(&rule.to_uppercase()), "high% rule_1 cam All"),
        (of_rule(&other), "high% cam All"),
        (pb::SilenceFilter { severity: Severity::High.into(), ..any() }, "high% rule_1 cam All"),
        (pb::SilenceFilter { severity: Severity::Low.into(), ..any() }, "rule_1 cam All"),
        (text("ALL"), "All"),
        (text("_"), "rule_1"),
        (text("%"), "high%"),
        (pb::SilenceFilter { camera_id: "a_b".into(), ..text("c") }, "cam"),
    ] {
        assert_eq!(reasons(&server, filter.clone()).await, expected, "{filter:?}");
    }
    server.stop().await;
}

#[on_both]
async fn pages_neither_skip_nor_repeat_silences_of_equal_times(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    for n in 0..7 {
        server.silence(pb::Silence { reason: n.to_string(), ..quiet("door") }).await;
    }
    execute(&server, "UPDATE silences SET created_at = '2026-01-02T03:04:05.678901+00:00' WHERE reason <> '3'").await;
    walk(7, async |page_size, page_token| {
        let request = pb::ListSilencesRequest { page_size, page_token, filter: None };
        let page = server.silences().list_silences(request).await.unwrap().into_inner();
        (page.silences, page.next_page_token)
    })
    .await;
    server.stop().await;
}

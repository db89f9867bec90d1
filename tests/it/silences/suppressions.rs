//! The record of what was held back.

use watchpost::pb::{self, SuppressionReason};

use crate::support::{
    TestServer, always,
    calls::{Reply, at, execute, not_found, seconds, walk},
    database::{Backend, on_both},
    in_seconds, ingest, quiet,
};

async fn list(server: &TestServer, filter: pb::AlertSuppressionFilter) -> Vec<pb::AlertSuppression> {
    let request = pb::ListAlertSuppressionsRequest { filter: Some(filter), ..Default::default() };
    let page = server.silences().list_alert_suppressions(request).await;
    page.unwrap().into_inner().alert_suppressions
}

async fn snoozed(server: &TestServer, camera_id: &str) -> pb::IngestEventResponse {
    let mut request = ingest(camera_id, vec![]);
    request.event.as_mut().unwrap().snooze_until = in_seconds(600);
    server.events().ingest_event(request).await.unwrap().into_inner()
}

/// A server on which one thing of each kind was held back: silenced, snoozed, flapping.
async fn ready(backend: Backend) -> (TestServer, [i64; 3], pb::AlertRule, pb::Silence) {
    let server = TestServer::start(backend).await;
    for id in ["door", "gate"] {
        server.camera(id).await;
    }
    let rule = server
        .rule(pb::AlertRule {
            flap_threshold: Some(1),
            flap_window: seconds(86_400),
            dedup_key_template: Some("{camera_id}:x".into()),
            ..always("r")
        })
        .await;
    let silence = server.silence(quiet("gate")).await;
    let id = |response: pb::IngestEventResponse| response.event.unwrap().id;
    let silenced = id(server.ingest("gate", vec![]).await);
    let sleeping = id(snoozed(&server, "door").await);
    for _ in 0..2 {
        assert_eq!(server.ingest("door", vec![]).await.alerts.len(), 1);
    }
    let flapping = id(server.ingest("door", vec![]).await);
    (server, [silenced, sleeping, flapping], rule, silence)
}

#[on_both]
async fn a_repeat_within_a_cooldown_is_recorded_with_the_alert_that_stands_for_it(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    let rule = server.rule(pb::AlertRule { cooldown: seconds(3_600), ..always("r") }).await;
    let raised = server.ingest("door", vec![]).await.alerts.remove(0);
    let repeat = server.ingest("door", vec![]).await.event.unwrap().id;
    let found = list(&server, pb::AlertSuppressionFilter::default()).await;
    let [found] = &found[..] else { panic!("not one: {found:?}") };
    let told = (found.event_id, found.reason(), found.rule_id.as_ref(), found.alert_id.as_ref(), &found.dedup_key);
    assert_eq!(told, (repeat, SuppressionReason::Cooldown, Some(&rule.id), Some(&raised.id), &raised.dedup_key));
    server.stop().await;
}

#[on_both]
async fn what_is_held_back_is_recorded_and_found_by_every_filter(backend: Backend) {
    let (server, events, rule, silence) = ready(backend).await;
    let any = pb::AlertSuppressionFilter::default;
    let all = list(&server, any()).await;
    let [flapping, snoozed, silenced] = &all[..] else { panic!("not three: {all:?}") };
    let alerts = server.alerts().list_alerts(pb::ListAlertsRequest::default()).await.unwrap().into_inner().alerts;
    for (found, event, camera, reason, silence_id, alert_id) in [
        (silenced, events[0], "gate", SuppressionReason::Silenced, Some(silence.id.clone()), None),
        (snoozed, events[1], "door", SuppressionReason::Snoozed, None, None),
        (flapping, events[2], "door", SuppressionReason::Flapping, None, Some(alerts[0].id.clone())),
    ] {
        let expected = pb::AlertSuppression {
            id: found.id,
            event_id: event,
            rule_id: Some(rule.id.clone()),
            camera_id: camera.into(),
            dedup_key: format!("{camera}:x"),
            reason: reason.into(),
            silence_id,
            alert_id,
            created_at: found.created_at,
        };
        assert_eq!(*found, expected);
        assert!(found.created_at.unwrap().seconds > 1_000_000_000);
    }
    let other = server.rule(always("other")).await.id;
    let of = |reasons: &[SuppressionReason]| pb::AlertSuppressionFilter {
        reasons: reasons.iter().map(|reason| (*reason).into()).collect(),
        ..any()
    };
    let range = |start, end| Some(pb::TimeRange { start, end });
    let first = silenced.created_at;
    for (filter, expected) in [
        (
            pb::AlertSuppressionFilter { rule_ids: vec![rule.id.clone(), other.clone()], ..any() },
            vec![flapping, snoozed, silenced],
        ),
        (pb::AlertSuppressionFilter { rule_ids: vec![other], ..any() }, vec![]),
        (pb::AlertSuppressionFilter { event_id: Some(events[1]), ..any() }, vec![snoozed]),
        (pb::AlertSuppressionFilter { camera_ids: vec!["door".into()], ..any() }, vec![flapping, snoozed]),
        (pb::AlertSuppressionFilter { silence_id: silence.id.clone(), ..any() }, vec![silenced]),
        (of(&[SuppressionReason::Flapping, SuppressionReason::Silenced]), vec![flapping, silenced]),
        (pb::AlertSuppressionFilter { created_at: range(first, None), ..any() }, vec![flapping, snoozed, silenced]),
        (pb::AlertSuppressionFilter { created_at: range(None, first), ..any() }, vec![]),
        (
            pb::AlertSuppressionFilter {
                created_at: range(at(1), in_seconds(60)),
                ..of(&[SuppressionReason::Snoozed])
            },
            vec![snoozed],
        ),
    ] {
        let found = list(&server, filter.clone()).await;
        assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{filter:?}");
    }
    server.stop().await;
}

#[on_both]
async fn it_outlives_its_rule_but_not_its_event(backend: Backend) {
    let (server, _, rule, _) = ready(backend).await;
    let before = list(&server, pb::AlertSuppressionFilter::default()).await;
    let request = pb::DeleteAlertRuleRequest { id: rule.id, expected_version_id: None };
    server.rules().delete_alert_rule(request).await.unwrap();
    let expected = before.into_iter().map(|held| pb::AlertSuppression { rule_id: None, ..held });
    assert_eq!(list(&server, pb::AlertSuppressionFilter::default()).await, expected.collect::<Vec<_>>());
    execute(&server, "DELETE FROM events WHERE camera_id = 'door'").await;
    let left = list(&server, pb::AlertSuppressionFilter::default()).await;
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].camera_id, "gate");
    server.stop().await;
}

#[on_both]
async fn an_ingest_that_fails_or_matches_nothing_records_nothing(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    server.rule(pb::AlertRule { risk_threshold: Some(1), ..always("r") }).await;
    server.rule(pb::AlertRule { enabled: Some(false), ..always("off") }).await;
    server.silence(quiet("door")).await;
    snoozed(&server, "door").await;
    server.ingest("door", vec![]).await;
    let reply: Reply<_> = server.events().ingest_event(ingest("none", vec![])).await;
    reply.unwrap_err();
    assert_eq!(list(&server, pb::AlertSuppressionFilter::default()).await, []);
    let get = pb::GetSilenceRequest { id: "01890a5d-ac96-774b-bcce-b302099a8057".into() };
    not_found(server.silences().get_silence(get.clone()).await, "silence", get.id);
    server.stop().await;
}

#[on_both]
async fn pages_neither_skip_nor_repeat_what_was_held_back_at_one_time(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    server.rule(always("r")).await;
    server.silence(quiet("door")).await;
    for _ in 0..7 {
        server.ingest("door", vec![]).await;
    }
    execute(&server, "UPDATE alert_suppressions SET created_at = '2026-01-02T03:04:05.678901+00:00' WHERE id <> 3")
        .await;
    walk(7, async |page_size, page_token| {
        let request = pb::ListAlertSuppressionsRequest { page_size, page_token, filter: None };
        let page = server.silences().list_alert_suppressions(request).await.unwrap().into_inner();
        (page.alert_suppressions, page.next_page_token)
    })
    .await;
    server.stop().await;
}

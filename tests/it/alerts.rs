//! `AlertService`.

mod bulk;
mod delivery;
mod filters;
mod manual;
mod repeats;
mod stats;
mod transitions;

use prost_types::Timestamp;
use tonic::Code;
use watchpost::pb::{self, AlertStatus, Severity};

use crate::support::{
    TestServer, always,
    calls::{Reply, execute, failed, metadata, not_found, refused, strings, walk},
    database::{Backend, on_both},
    detection,
};

use AlertStatus::{Acknowledged, Delivered, Dismissed, Pending, Unspecified};

const NONE: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

async fn get(server: &TestServer, id: &str) -> Reply<pb::Alert> {
    let request = pb::GetAlertRequest { id: id.into() };
    server.alerts().get_alert(request).await
}

/// Moves an alert to this status.
async fn advance(server: &TestServer, id: &str, to: AlertStatus, expected_version_id: Option<i32>) -> Reply<pb::Alert> {
    let id = id.to_string();
    let mut alerts = server.alerts();
    if to == Acknowledged {
        let request = pb::AcknowledgeAlertRequest { id, expected_version_id, ..Default::default() };
        alerts.acknowledge_alert(request).await
    } else {
        let request = pb::DismissAlertRequest { id, expected_version_id, ..Default::default() };
        alerts.dismiss_alert(request).await
    }
}

async fn list(server: &TestServer, filter: pb::AlertFilter) -> Vec<pb::Alert> {
    let request = pb::ListAlertsRequest { filter: Some(filter), ..Default::default() };
    let reply = server.alerts().list_alerts(request).await;
    reply.unwrap().into_inner().alerts
}

/// The alert as it is once somebody on this machine has moved it.
fn stamped(mut alert: pb::Alert, to: AlertStatus, at: Option<Timestamp>) -> pb::Alert {
    let by = Some("ip:127.0.0.1".to_string());
    match to {
        Acknowledged => (alert.acknowledged_at, alert.acknowledged_by) = (at, by),
        Dismissed => (alert.dismissed_at, alert.dismissed_by) = (at, by),
        Unspecified | Pending | Delivered => {}
    }
    alert
}

/// A server with a camera and a rule that always fires.
async fn ready(backend: Backend) -> TestServer {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    server.rule(always("everything")).await;
    server
}

/// A new alert in this status.
async fn alert(server: &TestServer, status: AlertStatus) -> pb::Alert {
    let raised = server.ingest("door", vec![]).await.alerts.remove(0);
    match status {
        Acknowledged | Dismissed => advance(server, &raised.id, status, None).await.unwrap().into_inner(),
        Delivered => {
            execute(server, "UPDATE alerts SET status = 'delivered', version_id = 2 WHERE status = 'pending'").await;
            get(server, &raised.id).await.unwrap().into_inner()
        }
        Unspecified | Pending => raised,
    }
}

#[on_both]
async fn an_alert_moves_where_it_may_and_nowhere_else(backend: Backend) {
    let server = ready(backend).await;
    for (from, to, may) in [
        (Pending, Acknowledged, true),
        (Pending, Dismissed, true),
        (Delivered, Acknowledged, true),
        (Delivered, Dismissed, true),
        (Acknowledged, Dismissed, true),
        (Acknowledged, Acknowledged, false),
        (Dismissed, Acknowledged, false),
        (Dismissed, Dismissed, false),
    ] {
        let before = alert(&server, from).await;
        assert_eq!(before.status(), from);
        let reply = advance(&server, &before.id, to, Some(before.version_id)).await;
        if may {
            let after = reply.unwrap().into_inner();
            let expected = pb::Alert {
                status: to.into(),
                version_id: before.version_id + 1,
                updated_at: after.updated_at,
                ..stamped(before.clone(), to, after.updated_at)
            };
            assert_eq!(after, expected);
            let (then, now) = (before.updated_at.unwrap(), after.updated_at.unwrap());
            assert!((now.seconds, now.nanos) >= (then.seconds, then.nanos));
            assert_eq!(get(&server, &before.id).await.unwrap().into_inner(), after);
        } else {
            let status = failed(reply, Code::FailedPrecondition, "WRONG_STATUS");
            assert_eq!(format!("ALERT_STATUS_{}", metadata(&status, "status")), from.as_str_name());
            assert_eq!(get(&server, &before.id).await.unwrap().into_inner(), before);
        }
    }
    server.stop().await;
}

#[on_both]
async fn a_stale_version_is_refused_and_nothing_moves(backend: Backend) {
    let server = ready(backend).await;
    let pending = alert(&server, Pending).await;
    for to in [Acknowledged, Dismissed] {
        for stale in [0, 2, -1, i32::MIN, i32::MAX] {
            failed(advance(&server, &pending.id, to, Some(stale)).await, Code::Aborted, "STALE_VERSION");
        }
    }
    assert_eq!(get(&server, &pending.id).await.unwrap().into_inner(), pending);
    advance(&server, &pending.id, Acknowledged, Some(1)).await.unwrap();
    // Who saw an old version is told to look again, even where the status would forbid it as well.
    failed(advance(&server, &pending.id, Acknowledged, Some(1)).await, Code::Aborted, "STALE_VERSION");
    let dismissed = advance(&server, &pending.id, Dismissed, Some(2)).await.unwrap().into_inner();
    assert_eq!((dismissed.status(), dismissed.version_id), (Dismissed, 3));
    server.stop().await;
}

#[on_both]
async fn of_many_who_acknowledge_an_alert_one_succeeds(backend: Backend) {
    let server = ready(backend).await;
    for (expected, code) in [(Some(1), Code::Aborted), (None, Code::FailedPrecondition)] {
        let id = alert(&server, Pending).await.id;
        let tries: Vec<_> = (0..16)
            .map(|_| {
                let mut alerts = server.alerts();
                let request =
                    pb::AcknowledgeAlertRequest { id: id.clone(), expected_version_id: expected, ..Default::default() };
                tokio::spawn(async move { alerts.acknowledge_alert(request).await })
            })
            .collect();
        let mut succeeded = 0;
        for tried in tries {
            match tried.await.unwrap() {
                Ok(_) => succeeded += 1,
                Err(status) => assert_eq!(status.code(), code),
            }
        }
        assert_eq!(succeeded, 1);
        let after = get(&server, &id).await.unwrap().into_inner();
        assert_eq!((after.status(), after.version_id), (Acknowledged, 2));
    }
    server.stop().await;
}

#[on_both]
async fn an_unknown_alert_is_not_found(backend: Backend) {
    let server = ready(backend).await;
    not_found(get(&server, NONE).await, "alert", NONE);
    for to in [Acknowledged, Dismissed] {
        for expected in [None, Some(1)] {
            not_found(advance(&server, NONE, to, expected).await, "alert", NONE);
        }
        refused(advance(&server, "1", to, None).await, "id");
    }
    refused(get(&server, "").await, "id");
    server.stop().await;
}

#[on_both]
async fn many_alerts_are_got_at_once(backend: Backend) {
    let server = ready(backend).await;
    let mut raised = Vec::new();
    for _ in 0..10 {
        raised.push(alert(&server, Pending).await);
    }
    let gets: Vec<_> = (0..200)
        .map(|n| {
            let mut alerts = server.alerts();
            let id = raised.get(n % 11).map_or(NONE.into(), |alert| alert.id.clone());
            tokio::spawn(async move { alerts.get_alert(pb::GetAlertRequest { id }).await })
        })
        .collect();
    for (n, reply) in gets.into_iter().enumerate() {
        match raised.get(n % 11) {
            Some(alert) => assert_eq!(&reply.await.unwrap().unwrap().into_inner(), alert),
            None => not_found(reply.await.unwrap(), "alert", NONE),
        }
    }
    server.stop().await;
}

#[on_both]
async fn pages_neither_skip_nor_repeat_alerts_of_equal_times(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    let mut rules = Vec::new();
    for n in 0..6 {
        rules.push(server.rule(always(&n.to_string())).await.id);
    }
    // Six alerts of one event, then one of another.
    server.ingest("door", vec![]).await;
    let request =
        pb::SetAlertRulesEnabledRequest { ids: rules.split_off(1), enabled: Some(false), ..Default::default() };
    server.rules().set_alert_rules_enabled(request).await.unwrap();
    server.ingest("door", vec![]).await;
    walk(7, async |page_size, page_token| {
        let request = pb::ListAlertsRequest { page_size, page_token, filter: None };
        let page = server.alerts().list_alerts(request).await.unwrap().into_inner();
        (page.alerts, page.next_page_token)
    })
    .await;
    let times: Vec<_> =
        list(&server, pb::AlertFilter::default()).await.into_iter().map(|alert| alert.created_at).collect();
    assert!(times[0] != times[1] && times[1..].iter().all(|time| *time == times[1]), "{times:?}");
    server.stop().await;
}

#[on_both]
async fn alerts_are_listed_newest_first_by_every_filter(backend: Backend) {
    let server = TestServer::start(backend).await;
    for id in ["door", "gate"] {
        server.camera(id).await;
    }
    let of = |name: &str, severity: Severity| pb::AlertRule {
        object_types: strings(&[name]),
        severity: severity.into(),
        dedup_key_template: Some("{camera_id}:{object_type}".into()),
        ..always(name)
    };
    let dog = server.rule(of("dog", Severity::Low)).await.id;
    let car = server.rule(of("car", Severity::Critical)).await.id;
    let mut raised = Vec::new();
    for (camera, seen) in [("door", "dog"), ("gate", "car"), ("gate", "dog"), ("door", "car")] {
        raised.push(server.ingest(camera, vec![detection(seen, 1.0)]).await.alerts.remove(0));
    }
    advance(&server, &raised[0].id, Dismissed, None).await.unwrap();
    advance(&server, &raised[1].id, Acknowledged, None).await.unwrap();
    let any = pb::AlertFilter::default;
    let statuses = |statuses: &[AlertStatus]| pb::AlertFilter {
        statuses: statuses.iter().map(|status| (*status).into()).collect(),
        ..any()
    };
    let severities = |severities: &[Severity]| pb::AlertFilter {
        severities: severities.iter().map(|severity| (*severity).into()).collect(),
        ..any()
    };
    let created = |start: usize, end: usize| pb::AlertFilter {
        created_at: Some(pb::TimeRange { start: raised[start].created_at, end: raised[end].created_at }),
        ..any()
    };
    for (filter, expected) in [
        (any(), &[3, 2, 1, 0][..]),
        (statuses(&[Pending]), &[3, 2]),
        (statuses(&[Dismissed, Acknowledged, Dismissed]), &[1, 0]),
        (statuses(&[Delivered]), &[]),
        (severities(&[Severity::Low]), &[2, 0]),
        (severities(&[Severity::Critical, Severity::Low]), &[3, 2, 1, 0]),
        (severities(&[Severity::High]), &[]),
        (pb::AlertFilter { rule_ids: strings(&[&car]), ..any() }, &[3, 1]),
        (pb::AlertFilter { rule_ids: strings(&[&dog.to_uppercase(), NONE]), ..any() }, &[2, 0]),
        (pb::AlertFilter { rule_ids: strings(&[NONE]), ..any() }, &[]),
        (pb::AlertFilter { camera_ids: strings(&["gate"]), ..any() }, &[2, 1]),
        (pb::AlertFilter { camera_ids: strings(&["none", "door"]), ..any() }, &[3, 0]),
        (pb::AlertFilter { event_id: Some(raised[2].event_id), ..any() }, &[2]),
        (pb::AlertFilter { event_id: Some(i64::MAX), ..any() }, &[]),
        (pb::AlertFilter { dedup_key: "gate:car".into(), ..any() }, &[1]),
        (pb::AlertFilter { dedup_key: "GATE:car".into(), ..any() }, &[]),
        (created(1, 3), &[2, 1]),
        (created(0, 0), &[]),
        (
            pb::AlertFilter {
                severities: vec![Severity::Critical.into()],
                camera_ids: strings(&["gate"]),
                ..statuses(&[Acknowledged])
            },
            &[1],
        ),
    ] {
        let ids: Vec<_> = list(&server, filter.clone()).await.into_iter().map(|alert| alert.id).collect();
        let expected: Vec<_> = expected.iter().map(|at| raised[*at].id.clone()).collect();
        assert_eq!(ids, expected, "{filter:?}");
    }
    server.stop().await;
}

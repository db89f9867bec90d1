//! Numbers of alerts, against the same worked out from the alerts one by one.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use prost_types::{Duration, Timestamp};
use sea_orm::{ActiveModelTrait, ActiveValue::Set, EntityTrait, IntoActiveModel};
use watchpost::{
    entity::alert::{self, AlertStatus},
    pb::{self, Severity},
};

use super::list;
use crate::support::{
    TestServer, always,
    calls::{execute, refused, strings},
    database::{Backend, on_both},
    detection,
};

fn micros(time: Timestamp) -> i64 {
    time.seconds * 1_000_000 + i64::from(time.nanos / 1_000)
}

/// How many alerts, and how many repeats.
type Count = (i64, i64);

/// The largest first, those of one size in order.
fn ranked(counts: BTreeMap<Option<String>, Count>) -> Vec<(Option<String>, Count)> {
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, (alerts, _))| -alerts);
    counts
}

/// The mean of what is known of when an alert was dealt with, in microseconds.
fn mean(alerts: &[pb::Alert], when: impl Fn(&pb::Alert) -> Option<Timestamp>) -> Option<f64> {
    let took = |alert| Some(micros(when(alert)?) - micros(alert.created_at?));
    let took: Vec<i64> = alerts.iter().filter_map(took).collect();
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let mean = took.iter().sum::<i64>() as f64 / took.len() as f64;
    (!took.is_empty()).then_some(mean)
}

/// That the numbers are those of the alerts that the filter finds.
async fn agree(server: &TestServer, filter: pb::AlertFilter, width: i64) -> pb::AlertStats {
    let request = pb::GetAlertStatsRequest {
        filter: Some(filter.clone()),
        bucket_width: Some(Duration { seconds: width, nanos: 0 }),
    };
    let reply = server.alerts().get_alert_stats(request).await;
    let stats = reply.unwrap().into_inner();
    let request = pb::ListAlertsRequest { page_size: 1_000, filter: Some(filter), ..Default::default() };
    let alerts = server.alerts().list_alerts(request).await.unwrap();
    let alerts = alerts.into_inner().alerts;

    let (mut statuses, mut severities) = (BTreeMap::new(), BTreeMap::new());
    let (mut rules, mut cameras) = (BTreeMap::new(), BTreeMap::new());
    let mut buckets: BTreeMap<i64, Count> = BTreeMap::new();
    let (mut suppressed, mut open) = (0, Vec::new());
    for alert in &alerts {
        *statuses.entry(alert.status).or_insert(0) += 1;
        *severities.entry(alert.severity).or_insert(0) += 1;
        let at = micros(alert.created_at.unwrap());
        let bucket = at.div_euclid(width * 1_000_000) * width;
        for (alerts, repeats) in [
            rules.entry(alert.rule_id.clone()).or_default(),
            cameras.entry(alert.camera_id.clone()).or_default(),
            buckets.entry(bucket).or_default(),
        ] {
            *alerts += 1;
            *repeats += alert.suppressed_count;
        }
        suppressed += alert.suppressed_count;
        if matches!(alert.status, 1 | 2) {
            open.push(at);
        }
    }
    let total = i64::try_from(alerts.len()).unwrap();
    assert_eq!((stats.total, stats.suppressed), (total, suppressed));
    let found = stats.by_status.iter().map(|of| (of.status, of.alerts));
    assert_eq!(found.collect::<Vec<_>>(), Vec::from_iter(statuses));
    let found = stats.by_severity.iter().map(|of| (of.severity, of.alerts));
    assert_eq!(found.collect::<Vec<_>>(), Vec::from_iter(severities));
    let found = stats.by_rule.iter();
    let found = found.map(|of| (of.rule_id.clone(), (of.alerts, of.suppressed)));
    let found: Vec<_> = found.collect();
    assert!(found.is_sorted_by_key(|(_, (alerts, _))| -alerts));
    assert_eq!(BTreeMap::from_iter(found), rules);
    let found = stats.by_camera.iter();
    let found = found.map(|of| (of.camera_id.clone(), (of.alerts, of.suppressed)));
    assert_eq!(found.collect::<Vec<_>>(), ranked(cameras));
    let found = stats.buckets.iter();
    let found = found.map(|of| (of.start_time.unwrap().seconds, (of.alerts, of.suppressed)));
    assert_eq!(found.collect::<Vec<_>>(), Vec::from_iter(buckets));
    assert_eq!(stats.open, i64::try_from(open.len()).unwrap());
    assert_eq!(stats.oldest_open_at.map(micros), open.into_iter().min());
    for (found, expected) in [
        (stats.mean_time_to_acknowledge, mean(&alerts, |alert| alert.acknowledged_at)),
        (stats.mean_time_to_dismiss, mean(&alerts, |alert| alert.dismissed_at)),
    ] {
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let found = found.map(|mean| (mean.seconds * 1_000_000 + i64::from(mean.nanos) / 1_000) as f64);
        assert_eq!(found.is_some(), expected.is_some());
        let difference = found.unwrap_or_default() - expected.unwrap_or_default();
        assert!(difference.abs() <= 1.0, "{found:?} {expected:?}");
    }
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let ratio = (total > 0).then(|| suppressed as f64 / (total + suppressed) as f64);
    assert_eq!(stats.dedup_ratio, ratio);
    stats
}

/// Sets of every alert when it was raised and what became of it, anyhow but always the same.
async fn scatter(server: &TestServer) {
    let db = server.database.connect().await;
    let start: DateTime<Utc> = "2026-03-01T12:00:00Z".parse().unwrap();
    let mut alerts = alert::Entity::find().all(&db).await.unwrap();
    alerts.sort_by_key(|alert| alert.id);
    for (at, alert) in alerts.into_iter().enumerate() {
        let n = i64::try_from(at).unwrap();
        // Whole seconds, milliseconds and microseconds, just before and just after a minute.
        let offset = [0, 59_999_600, 60_000_000, 999, 59_999_999, 120_500_000][at % 6];
        let created_at = start + TimeDelta::microseconds(offset) + TimeDelta::minutes(n * 7 % 50);
        let after = |micros: i64| Some(created_at + TimeDelta::microseconds(micros));
        let status = [AlertStatus::Pending, AlertStatus::Delivered, AlertStatus::Acknowledged, AlertStatus::Dismissed]
            [at * 5 % 4];
        let is_acknowledged = status == AlertStatus::Acknowledged || n % 8 == 3;
        let mut row = alert.into_active_model();
        row.created_at = Set(created_at);
        row.status = Set(status);
        row.acknowledged_at = Set(after(n * 1_234_567 + 1).filter(|_| is_acknowledged));
        row.dismissed_at = Set(after(n * 7_654_321).filter(|_| status == AlertStatus::Dismissed));
        row.suppressed_count = Set(n % 3 * 10);
        row.update(&db).await.unwrap();
    }
    db.close().await.unwrap();
}

async fn ready(backend: Backend) -> TestServer {
    let server = TestServer::start(backend).await;
    for camera in ["door", "Gate", "yard"] {
        server.camera(camera).await;
    }
    for (name, severity) in [("dog", Severity::Low), ("car", Severity::High), ("fox", Severity::High)] {
        let rule = pb::AlertRule { object_types: strings(&[name]), severity: severity.into(), ..always(name) };
        server.rule(rule).await;
    }
    server
}

#[on_both]
async fn numbers_are_those_of_the_alerts(backend: Backend) {
    let server = ready(backend).await;
    for n in 0..60 {
        let camera = ["door", "Gate", "yard", "yard"][n % 4];
        let seen = ["dog", "car", "fox", "dog", "dog"][n % 5];
        server.ingest(camera, vec![detection(seen, 1.0)]).await;
    }
    scatter(&server).await;
    execute(
        &server,
        "UPDATE alerts SET rule_id = NULL WHERE rule_id IN (SELECT id FROM alert_rules WHERE name = 'fox')",
    )
    .await;
    let any = pb::AlertFilter::default;
    let stats = agree(&server, any(), 60).await;
    assert_eq!((stats.total, stats.by_status.len(), stats.by_rule.len(), stats.by_camera.len()), (60, 4, 3, 3));
    for width in [61, 3_600, 86_400, 31_622_400] {
        agree(&server, any(), width).await;
    }
    agree(&server, pb::AlertFilter { camera_ids: strings(&["Gate"]), ..any() }, 60).await;
    agree(&server, pb::AlertFilter { open: Some(true), ..any() }, 60).await;
    agree(&server, pb::AlertFilter { severities: vec![Severity::High.into()], suppressed: Some(true), ..any() }, 60)
        .await;
    let none = agree(&server, pb::AlertFilter { camera_ids: strings(&["none"]), ..any() }, 60).await;
    assert_eq!(none, pb::AlertStats::default());
    let plain = server.alerts().get_alert_stats(pb::GetAlertStatsRequest::default()).await.unwrap().into_inner();
    assert_eq!(plain, pb::AlertStats { buckets: vec![], ..stats });
    server.stop().await;
}

#[on_both]
async fn bad_widths_and_too_many_buckets_are_refused(backend: Backend) {
    let server = ready(backend).await;
    let widths = [(59, 0), (0, 0), (-60, 0), (60, 1), (31_622_401, 0), (i64::MAX, 0)];
    for (seconds, nanos) in widths {
        let bucket_width = Some(Duration { seconds, nanos });
        let request = pb::GetAlertStatsRequest { filter: None, bucket_width };
        refused(server.alerts().get_alert_stats(request).await, "bucket_width");
    }
    server.ingest("door", vec![detection("dog", 1.0)]).await;
    let (now, uuid) = match backend {
        Backend::Sqlite => {
            ("strftime('%Y-%m-%dT%H:%M:%S+00:00', '2020-01-01', (n * 61) || ' seconds')", "randomblob(16)")
        }
        Backend::Postgres => ("timestamptz '2020-01-01Z' + n * interval '61 seconds'", "gen_random_uuid()"),
    };
    let many = format!(
        "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 10000)
            INSERT INTO alerts (id, event_id, dedup_key, created_at)
            SELECT {uuid}, event_id, 'k', {now} FROM numbers, (SELECT event_id FROM alerts LIMIT 1) AS one"
    );
    execute(&server, &many).await;
    let stats = |seconds| {
        let bucket_width = Some(Duration { seconds, nanos: 0 });
        let mut alerts = server.alerts();
        async move { alerts.get_alert_stats(pb::GetAlertStatsRequest { filter: None, bucket_width }).await }
    };
    refused(stats(60).await, "bucket_width");
    assert!(stats(62).await.unwrap().into_inner().buckets.len() <= 10_000);
    assert_eq!(list(&server, pb::AlertFilter { dedup_key: "k".into(), ..Default::default() }).await.len(), 50);
    server.stop().await;
}

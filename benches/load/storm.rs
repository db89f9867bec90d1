//! Many events of one key at once on two servers: a check of cooldowns under load, and a figure.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use sea_orm::{ConnectionTrait, Database, DatabaseConnection, DbBackend, QueryResult, Statement};
use serde_json::json;
use watchpost::pb::{
    self, RuleStop, alert_rule_service_client::AlertRuleServiceClient, camera_service_client::CameraServiceClient,
    event_service_client::EventServiceClient,
};

use crate::{cluster::Cluster, guarantees, per_second, server::Server};

const CLIENTS: usize = 64;

/// Much less than the storm lasts.
const COOLDOWN_SECONDS: i32 = 3;

/// How far apart alerts are, in milliseconds.
const GAPS: &str = "SELECT coalesce(min(gap), 0)::bigint AS least, coalesce(max(gap), 0)::bigint AS most \
    FROM (SELECT floor(extract(epoch FROM created_at - lag(created_at) OVER (ORDER BY created_at)) * 1000) \
    AS gap FROM alerts) AS gaps";

/// What the cooldown has counted since the newest alert.
const NEWEST: &str = "SELECT alerts.id::text AS id, alerts.suppressed_count AS n FROM alerts \
    JOIN alert_cooldowns ON alert_id = alerts.id ORDER BY created_at DESC LIMIT 1";

/// What the servers answered.
#[derive(Default)]
struct Answers {
    fired: i64,
    /// By the alert that stood for them.
    suppressed: HashMap<String, i64>,
    wrong: i64,
}

/// Sends `events` of one key, and checks the database afterwards. Returns whether every alert kept its
/// distance and nothing was lost.
pub async fn check(cluster: &Cluster, events: usize) -> bool {
    let url = guarantees::database(cluster, "storm").await;
    let first = Server::start(Some(url.clone()));
    first.serving().await;
    let channel = first.connect().await;
    crate::create_camera(&mut CameraServiceClient::new(channel.clone())).await;
    let rule = pb::AlertRule {
        name: "storm".into(),
        cooldown: Some(prost_types::Duration { seconds: COOLDOWN_SECONDS.into(), nanos: 0 }),
        ..Default::default()
    };
    let request = pb::CreateAlertRuleRequest { alert_rule: Some(rule) };
    let mut rules = AlertRuleServiceClient::new(channel);
    rules.create_alert_rule(request).await.unwrap();
    // It reads the rule as it starts.
    let second = Server::start(Some(url.clone()));
    second.serving().await;

    let begun = Instant::now();
    let answers = storm(&[first, second], events).await;
    let rate = per_second(events, begun.elapsed());

    let db = Box::pin(Database::connect(url)).await.unwrap();
    let stored = row(&db, "SELECT count(*) AS n FROM events").await;
    let alerts = row(&db, "SELECT count(*) AS n FROM alerts").await;
    let (stored, alerts) = (number(&stored, "n"), number(&alerts, "n"));
    let gaps = row(&db, GAPS).await;
    let (least, most) = (number(&gaps, "least"), number(&gaps, "most"));
    let newest = row(&db, NEWEST).await;
    let id: String = newest.try_get("", "id").unwrap();
    let counted = answers.suppressed.get(&id).copied().unwrap_or_default();
    let suppressed: i64 = answers.suppressed.values().sum();
    let kept = answers.wrong == 0
        && stored == i64::try_from(events).unwrap()
        && alerts == answers.fired
        && stored == alerts + suppressed
        && (alerts < 2 || least >= i64::from(COOLDOWN_SECONDS) * 1_000)
        && counted == number(&newest, "n");
    let line = json!({
        "figure": "storm",
        "database": "postgres",
        "goal": "one alert per cooldown, nothing lost",
        "events": stored,
        "alerts": alerts,
        "suppressed": suppressed,
        "cooldown_ms": COOLDOWN_SECONDS * 1_000,
        "least_gap_ms": least,
        "most_gap_ms": most,
        "per_second": rate,
        "kept": kept,
    });
    println!("{line}");
    kept
}

/// Sends events from many clients, by the servers in turn.
async fn storm(servers: &[Server], events: usize) -> Answers {
    let left = Arc::new(AtomicUsize::new(events));
    let mut clients = Vec::new();
    for client in 0..CLIENTS {
        let channel = servers[client % servers.len()].connect().await;
        let left = left.clone();
        clients.push(tokio::spawn(async move {
            let mut client = EventServiceClient::new(channel);
            let mut answers = Answers::default();
            let take = |left: usize| left.checked_sub(1);
            while left.try_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
                let answer = client.ingest_event(crate::request()).await.unwrap();
                answers.add(answer.get_ref());
            }
            answers
        }));
    }
    let mut all = Answers::default();
    for client in clients {
        let answers = client.await.unwrap();
        all.fired += answers.fired;
        all.wrong += answers.wrong;
        for (alert_id, count) in answers.suppressed {
            *all.suppressed.entry(alert_id).or_default() += count;
        }
    }
    all
}

impl Answers {
    fn add(&mut self, answer: &pb::IngestEventResponse) {
        let [outcome] = &answer.rule_outcomes[..] else {
            self.wrong += 1;
            return;
        };
        match &outcome.alert_id {
            Some(_) if outcome.fired => self.fired += 1,
            Some(alert_id) if outcome.stopped_by() == RuleStop::Cooldown => {
                *self.suppressed.entry(alert_id.clone()).or_default() += 1;
            }
            _ => self.wrong += 1,
        }
    }
}

async fn row(db: &DatabaseConnection, sql: &str) -> QueryResult {
    let sql = Statement::from_string(DbBackend::Postgres, sql);
    db.query_one_raw(sql).await.unwrap().unwrap()
}

fn number(row: &QueryResult, column: &str) -> i64 {
    row.try_get("", column).unwrap()
}

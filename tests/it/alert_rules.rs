//! `AlertRuleService`, and what its rules do.

mod conditions;
mod cooldowns;
mod crud;
mod documents;
mod explain;
mod flapping;
mod keys;
mod manage;
mod outcomes;
mod schedules;
mod stats;
mod trial;

use watchpost::pb::{self, RuleStop};

use crate::support::{
    TestServer,
    calls::{Reply, mask},
};

async fn create(server: &TestServer, alert_rule: pb::AlertRule) -> Reply<pb::AlertRule> {
    let alert_rule = Some(alert_rule);
    server.rules().create_alert_rule(pb::CreateAlertRuleRequest { alert_rule }).await
}

async fn get(server: &TestServer, id: &str) -> Reply<pb::AlertRule> {
    let request = pb::GetAlertRuleRequest { id: id.into() };
    server.rules().get_alert_rule(request).await
}

async fn update(server: &TestServer, rule: pb::AlertRule, paths: &[&str]) -> Reply<pb::AlertRule> {
    let request =
        pb::UpdateAlertRuleRequest { alert_rule: Some(rule), update_mask: mask(paths), expected_version_id: None };
    server.rules().update_alert_rule(request).await
}

async fn delete(server: &TestServer, id: &str) -> Reply<()> {
    let request = pb::DeleteAlertRuleRequest { id: id.into(), expected_version_id: None };
    server.rules().delete_alert_rule(request).await
}

/// Ingests an event and gives what became of the only rule: `RULE_STOP_UNSPECIFIED` if it fired.
async fn stop(server: &TestServer, event: pb::Event, detections: Vec<pb::Detection>) -> RuleStop {
    let request = pb::IngestEventRequest { event: Some(event), detections, explain: true, ..Default::default() };
    let reply = server.events().ingest_event(request).await;
    let response = reply.unwrap().into_inner();
    let [outcome] = &response.rule_outcomes[..] else {
        panic!("not one rule: {response:?}");
    };
    let fired = outcome.stopped_by() == RuleStop::Unspecified;
    assert_eq!((outcome.fired, response.alerts.len()), (fired, usize::from(fired)));
    let told = response.alerts.first().map(|alert| alert.id.clone());
    assert!(!fired || outcome.alert_id == told, "{outcome:?}");
    outcome.stopped_by()
}

/// An event of the camera `door`.
fn event() -> pb::Event {
    pb::Event { camera_id: "door".into(), ..Default::default() }
}

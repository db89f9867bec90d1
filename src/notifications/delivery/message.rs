//! Messages of alerts: a `CloudEvents` event for programs, a mail for people.

use std::fmt::Write;

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::{
    entity::{alert, delivery, event},
    escape::escape,
};

/// Maximum size of a webhook body, in bytes. Standard Webhooks asks for less than 20 kB.
const MAX_BODY_BYTES: usize = 19_999;

/// Maximum length of the summary of an event, in characters.
const MAX_SUMMARY_CHARS: usize = 2_000;

/// Event type of a test message.
const TEST: &str = "watchpost.test";

/// Message to deliver.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    /// Id of the message, equal on every attempt.
    pub(crate) id: Uuid,
    kind: &'static str,
    subject: Option<String>,
    time: DateTime<Utc>,
    data: Value,
}

impl Message {
    /// Builds the message of an alert.
    pub(crate) fn for_alert(delivery: &delivery::Model, alert: &alert::Model, event: &event::Model) -> Self {
        let kind = if delivery.escalation_step == 0 { "watchpost.alert.raised" } else { "watchpost.alert.escalated" };
        let metadata = alert.metadata.clone().unwrap_or(Value::Null);
        let summary = event.summary.as_deref().map(truncated);
        let object_types: Vec<_> = event.object_types.as_deref().unwrap_or_default().split_terminator(',').collect();
        let data = json!({
            "alert": without_nulls(json!({
                "id": alert.id,
                "severity": label(&alert.severity),
                "rule_id": alert.rule_id,
                "rule_name": metadata.get("rule_name"),
                "camera_id": alert.camera_id,
                "dedup_key": alert.dedup_key,
                "created_at": time(alert.created_at),
                "metadata": metadata,
            })),
            "event": without_nulls(json!({
                "id": event.id,
                "started_at": time(event.started_at),
                "risk_score": event.risk_score,
                "risk_level": event.risk_level.as_ref().map(label),
                "summary": summary,
                "object_types": object_types,
            })),
            "escalation_step": delivery.escalation_step,
        });
        Self { id: delivery.id, kind, subject: alert.camera_id.clone(), time: alert.created_at, data }
    }

    /// Builds the test message of a channel.
    pub(crate) fn test(channel_name: &str, now: DateTime<Utc>) -> Self {
        Self { id: Uuid::now_v7(), kind: TEST, subject: None, time: now, data: json!({ "channel": channel_name }) }
    }

    /// Event in JSON. `source` names the sending installation.
    pub(crate) fn cloud_event(&self, source: &str) -> Vec<u8> {
        let encode = |data: &Value| {
            let event = without_nulls(json!({
                "specversion": "1.0",
                "id": self.id,
                "source": source,
                "type": self.kind,
                "subject": self.subject,
                "time": time(self.time),
                "datacontenttype": "application/json",
                "data": data,
            }));
            event.to_string().into_bytes()
        };
        let whole = encode(&self.data);
        if whole.len() <= MAX_BODY_BYTES {
            return whole;
        }
        // The lists of a rule can be long. All other values are bounded by their columns.
        let mut data = self.data.clone();
        for (part, name) in [("alert", "metadata"), ("event", "object_types")] {
            if let Some(part) = data.get_mut(part).and_then(Value::as_object_mut) {
                part.remove(name);
            }
        }
        data["truncated"] = true.into();
        encode(&data)
    }

    /// Subject of the mail, in one line.
    pub(crate) fn mail_subject(&self) -> String {
        let alert = &self.data["alert"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
        if self.kind == TEST {
            let subject = format!("Watchpost: a test of {}", text(&self.data["channel"]));
            return escape(&subject).into_owned();
        }
        let severity = text(&alert["severity"]).to_uppercase();
        let rule = match text(&alert["rule_name"]) {
            name if name.is_empty() => text(&alert["dedup_key"]),
            name => name,
        };
        let camera = text(&alert["camera_id"]);
        let again = if self.data["escalation_step"] == 0 { "" } else { "still open: " };
        let subject = format!("[{severity}] {again}{rule} at {camera}");
        let subject = subject.split_whitespace().collect::<Vec<_>>().join(" ");
        escape(&subject).into_owned()
    }

    /// Text of the mail.
    pub(crate) fn mail_text(&self) -> String {
        if self.kind == TEST {
            return "This is a test. Alerts will arrive like this.\n".to_string();
        }
        let (alert, event) = (&self.data["alert"], &self.data["event"]);
        let mut text = String::new();
        let mut line = |name: &str, value: &Value| {
            let value = match value {
                Value::Null => return,
                Value::String(text) => text.clone(),
                Value::Array(values) => {
                    values.iter().map(|value| value.as_str().unwrap_or_default()).collect::<Vec<_>>().join(", ")
                }
                Value::Bool(_) | Value::Number(_) | Value::Object(_) => value.to_string(),
            };
            if !value.is_empty() {
                // Writing to a string cannot fail.
                let _ = writeln!(text, "{name:<12}{}", escape(&value));
            }
        };
        line("Rule", &alert["rule_name"]);
        line("Severity", &alert["severity"]);
        line("Camera", &alert["camera_id"]);
        line("Raised", &alert["created_at"]);
        line("Event", &event["started_at"]);
        line("Risk score", &event["risk_score"]);
        line("Seen", &event["object_types"]);
        line("Why", &alert["metadata"]["matched_conditions"]);
        line("Alert", &alert["id"]);
        if let Some(summary) = event["summary"].as_str() {
            text.push('\n');
            for line in summary.lines() {
                let _ = writeln!(text, "{}", escape(line));
            }
        }
        text
    }
}

fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Micros, true)
}

fn label(value: &impl sea_orm::ActiveEnum<Value = String>) -> String {
    value.to_value()
}

fn truncated(text: &str) -> String {
    let mut prefix: String = text.chars().take(MAX_SUMMARY_CHARS).collect();
    if prefix.len() < text.len() {
        prefix.push('…');
    }
    prefix
}

/// Removes fields with null values.
fn without_nulls(value: Value) -> Value {
    let Value::Object(fields) = value else {
        return value;
    };
    let known = fields.into_iter().filter(|(_, value)| !value.is_null());
    Value::Object(known.collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use sea_orm::prelude::Uuid;

    use super::*;
    use crate::{
        entity::{
            self, Severity,
            alert::{AlertSeverity, AlertStatus},
            delivery::DeliveryStatus,
        },
        escape::is_unsafe,
    };

    fn message(conditions: usize, summary: &str) -> Message {
        let now = entity::now();
        let event = event::Model {
            id: 7,
            batch_id: "b".into(),
            camera_id: "door".into(),
            started_at: now,
            ended_at: None,
            risk_score: Some(80),
            risk_level: None,
            summary: Some(summary.into()),
            reasoning: None,
            llm_prompt: None,
            reviewed: false,
            notes: None,
            is_fast_path: false,
            object_types: Some("person,dog".into()),
            clip_path: None,
            deleted_at: None,
            snooze_until: None,
        };
        let alert = alert::Model {
            id: Uuid::now_v7(),
            event_id: 7,
            rule_id: None,
            severity: AlertSeverity::High,
            status: AlertStatus::Pending,
            created_at: now,
            updated_at: now,
            delivered_at: None,
            channels: None,
            dedup_key: "k".into(),
            metadata: Some(json!({
                "rule_name": "Front\r\nBcc: x\u{1b}[2J\u{202e}",
                "matched_conditions": vec!["x".repeat(64); conditions],
            })),
            version_id: 1,
            camera_id: Some("door".into()),
            suppressed_count: 0,
            last_suppressed_at: None,
            acknowledged_at: None,
            acknowledged_by: None,
            dismissed_at: None,
            dismissed_by: None,
        };
        let delivery = delivery::Model {
            id: Uuid::now_v7(),
            alert_id: alert.id,
            channel_id: None,
            channel_name: "ops".into(),
            escalation_step: 0,
            severity: Severity::High,
            status: DeliveryStatus::Queued,
            attempts: 0,
            failures: 0,
            next_attempt_at: Some(now),
            last_attempt_at: None,
            lease_id: None,
            last_error: None,
            last_status_code: None,
            created_at: now,
            updated_at: now,
            delivered_at: None,
        };
        Message::for_alert(&delivery, &alert, &event)
    }

    #[test]
    fn what_is_not_known_is_left_out_and_nothing_is_invented() {
        let message = message(1, "Somebody.");
        let event: Value = serde_json::from_slice(&message.cloud_event("here")).unwrap();
        assert_eq!(event["id"], message.id.to_string());
        assert_eq!(event["type"], "watchpost.alert.raised");
        assert_eq!(event["source"], "here");
        assert_eq!(event["data"]["event"]["object_types"], json!(["person", "dog"]));
        assert_eq!(event["data"]["alert"]["severity"], "high");
        let known = event["data"]["event"].as_object().unwrap();
        assert!(!known.contains_key("risk_level"));
        assert!(!event["data"]["alert"].as_object().unwrap().contains_key("rule_id"));
    }

    #[test]
    fn a_body_is_never_too_large() {
        let message = message(1_000, &"ü".repeat(65_000));
        let body = message.cloud_event("here");
        assert!(body.len() <= MAX_BODY_BYTES, "{}", body.len());
        let event: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(event["data"]["truncated"], true);
        assert_eq!(event["data"]["alert"]["dedup_key"], "k");
    }

    #[test]
    fn a_mail_has_one_line_of_subject() {
        let message = message(1, "Somebody.");
        let subject = "[HIGH] Front Bcc: x\\u{1b}[2J\\u{202e} at door";
        assert_eq!(message.mail_subject(), subject);
        let text = message.mail_text();
        let rule = r"Rule        Front\r\nBcc: x\u{1b}[2J\u{202e}";
        assert_eq!(text.lines().next(), Some(rule));
        assert!(!text.replace('\n', "").chars().any(is_unsafe), "{text:?}");
        assert!(text.contains("Risk score  80") && text.ends_with("\nSomebody.\n"), "{text}");
    }
}

//! Tests of valid documents and of the errors of invalid documents.

use serde_json::json;

use super::*;
use crate::rpc::time;

fn document(rules: &Value) -> String {
    json!({"format": FORMAT, "version": VERSION, "alert_rules": rules}).to_string()
}

/// Returns the error for a document with this rule in third position.
fn problem(rule: &Value) -> String {
    let rules = json!([{"name": "a"}, {"name": "b"}, rule]);
    without_position(&read(&document(&rules)).unwrap_err().to_string())
}

/// Removes line and column of a syntax error.
fn without_position(message: &str) -> String {
    let (text, _) = message.split_once(" at line ").unwrap_or((message, ""));
    text.to_string()
}

#[test]
fn a_rule_is_read_field_by_field() {
    let entries = read(&document(&json!([
        {"name": "short"},
        {
            "id": "01890A5D-AC96-774B-BCCE-B302099A8057",
            "name": "long", "description": "d", "enabled": false, "severity": "critical",
            "risk_threshold": 70, "object_types": ["person"], "camera_ids": ["door"], "zone_ids": ["z"],
            "min_confidence": 0.5,
            "schedule": {"days": ["monday", "sunday"], "start_time": "22:00", "end_time": "06:00"},
            "dedup_key_template": "x", "cooldown": "0s", "channels": ["mail"],
            "created_at": "2026-01-01T00:00:00Z", "updated_at": 1, "version_id": "x",
            "flap_threshold": 5, "flap_window": "60s"
        },
        {"id": null, "name": "nulls", "risk_threshold": null, "object_types": null, "schedule": null},
    ])))
    .unwrap();
    let [short, long, nulls] = &entries[..] else {
        panic!("not three: {entries:?}");
    };
    let named = |name: &str| pb::AlertRule { name: name.into(), ..Default::default() };
    assert_eq!((short.id, &short.rule), (None, &named("short")));
    assert_eq!((nulls.id, &nulls.rule), (None, &named("nulls")));
    let id = long.id.unwrap().to_string();
    assert_eq!(id, "01890a5d-ac96-774b-bcce-b302099a8057");
    let expected = pb::AlertRule {
        description: Some("d".into()),
        enabled: Some(false),
        severity: pb::Severity::Critical.into(),
        risk_threshold: Some(70),
        object_types: vec!["person".into()],
        camera_ids: vec!["door".into()],
        zone_ids: vec!["z".into()],
        min_confidence: Some(0.5),
        schedule: Some(pb::Schedule {
            days: vec![pb::DayOfWeek::Monday.into(), pb::DayOfWeek::Sunday.into()],
            start_time: "22:00".into(),
            end_time: "06:00".into(),
            time_zone: String::new(),
        }),
        dedup_key_template: Some("x".into()),
        cooldown: Some(time::duration_from_seconds(0)),
        channels: vec!["mail".into()],
        flap_threshold: Some(5),
        flap_window: Some(time::duration_from_seconds(60)),
        ..named("long")
    };
    assert_eq!(long.rule, expected);
}

#[test]
fn what_is_wrong_is_named_by_its_place() {
    let at = "alert_rules[2]";
    for (rule, expected) in [
        (json!(1), format!("`{at}` cannot be read: invalid type: integer `1`, expected an object")),
        (json!({"name": 1}), format!("`{at}.name` cannot be read: invalid type: integer `1`, expected a string")),
        (json!({"id": ""}), format!("`{at}.id` is required")),
        (json!({"id": "x"}), format!("`{at}.id` must be a UUID such as 01890a5d-ac96-774b-bcce-b302099a8057")),
        (
            json!({"enabled": "yes"}),
            format!("`{at}.enabled` cannot be read: invalid type: string \"yes\", expected a boolean"),
        ),
        (json!({"severity": "HIGH"}), format!("`{at}.severity` cannot be read: must be low, medium, high or critical")),
        (
            json!({"severity": 3}),
            format!("`{at}.severity` cannot be read: invalid type: integer `3`, expected a string"),
        ),
        (
            json!({"risk_threshold": 70.5}),
            format!("`{at}.risk_threshold` cannot be read: invalid type: floating point `70.5`, expected i32"),
        ),
        (
            json!({"risk_threshold": "70"}),
            format!("`{at}.risk_threshold` cannot be read: invalid type: string \"70\", expected i32"),
        ),
        (
            json!({"cooldown": 300}),
            format!("`{at}.cooldown` cannot be read: invalid type: integer `300`, expected a string"),
        ),
        (json!({"flap_window": "1h"}), format!("`{at}.flap_window` cannot be read: must be a duration such as `300s`")),
        (
            json!({"escalation": [{"after": "99999999999999999999s"}]}),
            format!("`{at}.escalation[0].after` cannot be read: must be a duration such as `300s`"),
        ),
        (
            json!({"min_confidence": "0.5"}),
            format!("`{at}.min_confidence` cannot be read: invalid type: string \"0.5\", expected f64"),
        ),
        (
            json!({"object_types": "person"}),
            format!("`{at}.object_types` cannot be read: invalid type: string \"person\", expected a sequence"),
        ),
        (
            json!({"object_types": ["person", 1]}),
            format!("`{at}.object_types[1]` cannot be read: invalid type: integer `1`, expected a string"),
        ),
        (
            json!({"channels": [null]}),
            format!("`{at}.channels[0]` cannot be read: invalid type: null, expected a string"),
        ),
        (
            json!({"schedule": []}),
            format!("`{at}.schedule` cannot be read: invalid type: sequence, expected an object"),
        ),
        (
            json!({"schedule": {"days": ["monday", "Tuesday"]}}),
            format!("`{at}.schedule.days[1]` cannot be read: must be a day, monday to sunday"),
        ),
        (
            json!({"schedule": {"start_time": 22}}),
            format!("`{at}.schedule.start_time` cannot be read: invalid type: integer `22`, expected a string"),
        ),
        (
            json!({"conditions": []}),
            format!("`{at}.conditions` cannot be read: invalid type: sequence, expected a map"),
        ),
    ] {
        assert_eq!(problem(&rule), expected, "{rule}");
    }
    for (rule, key) in [
        (json!({"nope": 1}), "nope"),
        (json!({"Name": "x"}), "Name"),
        (json!({"schedule": {"day": []}}), "schedule.day"),
        (json!({"escalation": [{"delay": 1}]}), "escalation[0].delay"),
    ] {
        let message = problem(&rule);
        let expected = format!("`{at}.{key}` cannot be read: unknown field `");
        assert!(message.starts_with(&expected), "{message}");
    }
    // An array of values in the order of the fields is no object.
    for rule in [json!(["x"]), json!({"escalation": [[60, ["ops"]]]})] {
        let message = problem(&rule);
        assert!(message.ends_with("invalid type: sequence, expected an object"), "{message}");
    }
}

#[test]
fn what_is_no_document_is_refused() {
    let id = "01890a5d-ac96-774b-bcce-b302099a8057";
    let twice = json!([{"id": id, "name": "a"}, {"name": "b"}, {"id": id.to_uppercase(), "name": "c"}]);
    let many = vec![json!({"name": "a"}); MAX_RULES + 1];
    for (text, expected) in [
        (String::new(), "`document` is required"),
        ("[]".into(), "`document` cannot be read: invalid type: sequence, expected an object"),
        ("{}".into(), "`format` must be `watchpost.alert_rules`"),
        (json!({"format": FORMAT}).to_string(), "`version` must be 1, the version that this server supports"),
        (
            json!({"format": FORMAT, "version": 2}).to_string(),
            "`version` must be 1, the version that this server supports",
        ),
        (json!({"format": FORMAT, "version": 1}).to_string(), "`alert_rules` is required"),
        (
            json!({"format": FORMAT, "version": 1, "alert_rules": {}}).to_string(),
            "`alert_rules` cannot be read: invalid type: map, expected a sequence",
        ),
        (
            json!({"format": FORMAT, "version": 1, "alert_rules": [], "x": 1}).to_string(),
            "`x` cannot be read: unknown field `x`, expected one of `format`, `version`, `alert_rules`",
        ),
        (document(&twice), "`alert_rules[2].id` must be unique, alert_rules[0] has the same id"),
        (document(&many.into()), "`alert_rules` must have at most 10000 entries"),
        (" ".repeat(MAX_BYTES + 1), "`document` must have at most 16777216 bytes"),
        ("{\n  \"format\": 1,,\n}".into(), "`document` cannot be read: key must be a string"),
        (
            r#"{"format": "x", "version": 1, "format": "y"}"#.into(),
            "`document` cannot be read: duplicate field `format`",
        ),
        (
            r#"{"format": "watchpost.alert_rules", "version": 1,
                "alert_rules": [{"name": "x", "name": "x"}]}"#
                .into(),
            "`alert_rules[0]` cannot be read: duplicate field `name`",
        ),
        (json!({"format": FORMAT, "version": 1}).to_string() + " {}", "`document` cannot be read: trailing characters"),
    ] {
        let message = without_position(&read(&text).unwrap_err().to_string());
        assert_eq!(message, expected, "{}", text.get(..100).unwrap_or(&text));
    }
    let nested = json!([{"conditions": {"x": "nested"}}]);
    let lists = "[".repeat(1_000) + &"]".repeat(1_000);
    let deep = document(&nested).replace("\"nested\"", &lists);
    let message = without_position(&read(&deep).unwrap_err().to_string());
    assert!(message.ends_with("recursion limit exceeded"), "{message}");
}

#[test]
fn what_is_written_is_read() {
    use crate::alerts::rules::document::write::Document;

    let row = alert_rule::Model {
        id: Uuid::from_u128(7),
        name: "Nachts 🌙 \"\\\n".into(),
        description: Some(String::new()),
        enabled: false,
        severity: AlertSeverity::Critical,
        risk_threshold: Some(0),
        object_types: Some(crate::entity::Strings(vec!["person".into(), "a, \"b\"".into()])),
        camera_ids: Some(crate::entity::Strings(vec![])),
        zone_ids: None,
        min_confidence: Some(0.1 + 0.2),
        schedule: Some(alert_rule::Schedule {
            days: vec![Weekday::Friday],
            start_time: Some("22:00".into()),
            end_time: Some("06:00".into()),
            timezone: "Europe/Berlin".into(),
        }),
        conditions: None,
        dedup_key_template: "x".into(),
        cooldown_seconds: 0,
        channels: None,
        created_at: chrono::DateTime::UNIX_EPOCH,
        updated_at: chrono::DateTime::UNIX_EPOCH,
        version_id: 3,
        flap_threshold: Some(1),
        flap_window_seconds: Some(2),
        escalation: Some(alert_rule::Escalation(vec![alert_rule::EscalationStep {
            after_seconds: 60,
            channels: vec!["ops".into()],
        }])),
    };
    for with_output_only in [false, true] {
        let mut document = Document::new(with_output_only);
        for id in 1..=2 {
            let row = alert_rule::Model { id: Uuid::from_u128(id), ..row.clone() };
            document.add(&row).unwrap();
        }
        let text = document.finish();
        assert_eq!(text.contains("\"version_id\": 3"), with_output_only);
        assert_eq!(text.contains("1970-01-01T00:00:00+00:00"), with_output_only);
        let entries = read(&text).unwrap();
        assert_eq!(entries.len(), 2);
        for (id, entry) in (1..).zip(entries) {
            assert_eq!(entry.id, Some(Uuid::from_u128(id)));
            let rule = pb::AlertRule {
                id: String::new(),
                created_at: None,
                updated_at: None,
                version_id: 0,
                ..row.clone().into()
            };
            assert_eq!(entry.rule, rule);
        }
    }
    let empty = Document::new(false).finish();
    assert_eq!(empty, "{\n  \"format\": \"watchpost.alert_rules\",\n  \"version\": 1,\n  \"alert_rules\": []\n}\n");
    assert_eq!(read(&empty).unwrap().len(), 0);
}

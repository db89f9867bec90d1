//! Which events a rule matches.

use chrono::DateTime;
use prost_types::Timestamp;
use watchpost::pb::{self, DayOfWeek, RuleStop, Severity};

use super::{delete, event, get, stop, update};
use crate::support::{
    TestServer, always,
    calls::{at, seconds, strings},
    database::{Backend, on_both},
    detection, ingest, middle,
};

use RuleStop::{CameraIds, MinConfidence, ObjectTypes, RiskThreshold, Snoozed, Unspecified, ZoneIds};

/// An instant as RFC 3339 has it.
fn time(text: &str) -> Option<Timestamp> {
    at(DateTime::parse_from_rfc3339(text).unwrap().timestamp())
}

fn scored(score: i32) -> pb::Event {
    pb::Event { risk_score: Some(score), ..event() }
}

fn untyped(confidence: f64) -> pb::Detection {
    pb::Detection { object_type: None, ..detection("", confidence) }
}

fn unsure(object_type: &str) -> pb::Detection {
    pb::Detection { confidence: None, ..detection(object_type, 0.0) }
}

#[on_both]
async fn every_condition_that_is_set_must_be_met(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    server.zone(middle("door", "z")).await;
    let any = || always("r");
    let of = |types: &[&str]| pb::AlertRule { object_types: strings(types), ..any() };
    let sure = |least| pb::AlertRule { min_confidence: Some(least), ..any() };
    let risky = |least| pb::AlertRule { risk_threshold: Some(least), ..any() };
    let both = || pb::AlertRule { min_confidence: Some(0.5), ..of(&["Person", "dog"]) };
    let (person, dog) = (|sure| detection("person", sure), |sure| detection("DOG", sure));
    let hour_ahead = Timestamp::from(std::time::SystemTime::now() + std::time::Duration::from_hours(1));
    let snoozed = |until| pb::Event { snooze_until: Some(until), ..event() };
    for (rule, event, detections, expected) in vec![
        (any(), event(), vec![], Unspecified),
        (risky(40), scored(40), vec![], Unspecified),
        (risky(41), scored(40), vec![], RiskThreshold),
        (risky(100), scored(100), vec![], Unspecified),
        (risky(0), event(), vec![], RiskThreshold),
        (risky(0), pb::Event { risk_level: Severity::Critical.into(), ..event() }, vec![], RiskThreshold),
        (risky(0), scored(0), vec![], Unspecified),
        (of(&["PERSON"]), event(), vec![dog(1.0), person(0.0)], Unspecified),
        (of(&["person"]), event(), vec![unsure("person")], Unspecified),
        (of(&["ära"]), event(), vec![unsure("ÄRA")], Unspecified),
        (of(&["person"]), event(), vec![detection("person ", 1.0), detection("persons", 1.0)], ObjectTypes),
        (of(&["person"]), event(), vec![], ObjectTypes),
        (of(&["person"]), event(), vec![untyped(1.0)], ObjectTypes),
        (of(&["unknown"]), event(), vec![untyped(1.0)], ObjectTypes),
        (sure(0.5), event(), vec![untyped(0.5)], Unspecified),
        (sure(0.5), event(), vec![dog(0.499_999_999)], MinConfidence),
        (sure(0.0), event(), vec![unsure("dog")], MinConfidence),
        (sure(0.0), event(), vec![], MinConfidence),
        (sure(0.0), event(), vec![dog(0.0)], Unspecified),
        (both(), event(), vec![person(0.4), dog(0.5)], Unspecified),
        (both(), event(), vec![person(0.4), detection("cat", 1.0), untyped(1.0), unsure("dog")], MinConfidence),
        (both(), event(), vec![detection("cat", 1.0)], ObjectTypes),
        (pb::AlertRule { camera_ids: strings(&["gate", "door"]), ..any() }, event(), vec![], Unspecified),
        (pb::AlertRule { camera_ids: strings(&["gate", "Door"]), ..any() }, event(), vec![], CameraIds),
        (pb::AlertRule { zone_ids: strings(&["z"]), ..any() }, event(), vec![person(1.0)], ZoneIds),
        (pb::AlertRule { zone_ids: strings(&["z"]), ..of(&["person"]) }, event(), vec![person(1.0)], ZoneIds),
        (any(), snoozed(hour_ahead), vec![], Snoozed),
        (any(), snoozed(Timestamp { seconds: 1_000, nanos: 0 }), vec![], Unspecified),
    ] {
        let id = server.rule(rule.clone()).await.id;
        assert_eq!(
            stop(&server, event.clone(), detections.clone()).await,
            expected,
            "{rule:?} {event:?} {detections:?}"
        );
        delete(&server, &id).await.unwrap();
    }
    server.stop().await;
}

#[on_both]
async fn a_schedule_is_judged_by_the_wall_clock_at_the_start_of_the_event(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    let weekdays =
        [DayOfWeek::Monday, DayOfWeek::Tuesday, DayOfWeek::Wednesday, DayOfWeek::Thursday, DayOfWeek::Friday];
    let on = |days: &[DayOfWeek], start: &str, end: &str, timezone: &str| pb::Schedule {
        days: days.iter().map(|day| (*day).into()).collect(),
        start_time: start.into(),
        end_time: end.into(),
        time_zone: timezone.into(),
    };
    // 2026-11-20 is a Friday. Berlin is an hour ahead of UTC then, and two hours in summer.
    for (schedule, inside, outside) in [
        (on(&[], "", "", ""), &["2026-11-20T00:00:00Z", "1970-01-01T00:00:00Z"][..], &[][..]),
        (on(&weekdays, "", "", ""), &["2026-11-20T23:59:59Z"], &["2026-11-21T00:00:00Z", "2026-11-22T12:00:00Z"]),
        (
            on(&[], "08:00", "18:00", "Europe/Berlin"),
            &["2026-11-20T07:00:00Z", "2026-11-20T16:59:59Z", "2026-07-10T06:00:00Z"],
            &["2026-11-20T06:59:59Z", "2026-11-20T17:00:00Z", "2026-07-10T16:00:00Z"],
        ),
        (
            on(&[DayOfWeek::Friday], "22:00", "06:00", "Europe/Berlin"),
            &["2026-11-20T21:00:00Z", "2026-11-21T04:59:59Z"],
            &["2026-11-20T04:00:00Z", "2026-11-20T20:59:59Z", "2026-11-21T05:00:00Z", "2026-11-21T21:30:00Z"],
        ),
        // In Kiribati it is Saturday already.
        (
            on(&[DayOfWeek::Saturday], "", "", "Pacific/Kiritimati"),
            &["2026-11-20T10:00:00Z"],
            &["2026-11-20T09:59:59Z", "2026-11-21T10:00:00Z"],
        ),
        (
            on(&[DayOfWeek::Sunday], "23:59", "00:00", "Asia/Kathmandu"),
            &["2026-11-22T18:14:30Z"],
            &["2026-11-22T18:13:59Z", "2026-11-22T18:15:00Z"],
        ),
    ] {
        let id = server.rule(pb::AlertRule { schedule: Some(schedule.clone()), ..always("r") }).await.id;
        for (times, expected) in [(inside, Unspecified), (outside, RuleStop::Schedule)] {
            for text in times {
                let event = pb::Event { started_at: time(text), ..event() };
                assert_eq!(stop(&server, event, vec![]).await, expected, "{text} {schedule:?}");
            }
        }
        delete(&server, &id).await.unwrap();
    }
    server.stop().await;
}

#[on_both]
async fn a_change_of_a_rule_is_in_force_for_the_next_event(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    server.streams(["sms"]).await;
    let rule = server.rule(always("r")).await;
    let change = pb::AlertRule { id: rule.id.clone(), ..Default::default() };
    let outcomes = async || server.explained("door", vec![detection("dog", 0.5)]).await;
    for round in 0..10 {
        assert_eq!(outcomes().await.alerts.len(), 1, "{round}");
        update(&server, pb::AlertRule { min_confidence: Some(0.6), ..change.clone() }, &[]).await.unwrap();
        let stopped = outcomes().await;
        assert_eq!((stopped.alerts, stopped.rule_outcomes[0].stopped_by()), (vec![], MinConfidence));
        update(&server, pb::AlertRule { enabled: Some(false), ..change.clone() }, &["enabled", "min_confidence"])
            .await
            .unwrap();
        assert_eq!(outcomes().await.rule_outcomes, [], "a disabled rule is not asked");
        let high = pb::AlertRule {
            enabled: Some(true),
            severity: Severity::High.into(),
            channels: strings(&["sms"]),
            name: format!("r{round}"),
            ..change.clone()
        };
        update(&server, high, &[]).await.unwrap();
        let raised = outcomes().await;
        assert_eq!((raised.alerts[0].severity(), &raised.alerts[0].channels), (Severity::High, &strings(&["sms"])));
        assert_eq!(raised.rule_outcomes[0].rule_name, format!("r{round}"));
    }
    delete(&server, &rule.id).await.unwrap();
    assert_eq!(outcomes().await.rule_outcomes, []);
    server.stop().await;
}

#[on_both]
async fn every_enabled_rule_is_asked_and_each_can_raise_an_alert(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    let template = Some("same".into());
    let first = server
        .rule(pb::AlertRule { dedup_key_template: template.clone(), cooldown: seconds(60), ..always("same name") })
        .await;
    server.rule(pb::AlertRule { enabled: Some(false), ..always("off") }).await;
    let second =
        server.rule(pb::AlertRule { dedup_key_template: template, cooldown: seconds(60), ..always("same name") }).await;
    let third = server.rule(pb::AlertRule { risk_threshold: Some(1), ..always("risk") }).await;
    let response = server.explained("door", vec![]).await;
    // A dedup key is one of its rule.
    let raised: Vec<_> = response.alerts.iter().filter_map(|alert| alert.rule_id.as_deref()).collect();
    assert_eq!(raised, [&first.id, &second.id]);
    let outcomes: Vec<_> =
        response.rule_outcomes.iter().map(|outcome| (outcome.rule_id.as_str(), outcome.fired)).collect();
    assert_eq!(outcomes, [(&*first.id, true), (&*second.id, true), (&*third.id, false)]);
    assert_eq!(response.rule_outcomes[2].detail, "no risk_score, 1 is required");
    server.stop().await;
}

#[on_both]
async fn rules_that_go_while_events_come_stop_no_event(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    for round in 0..10 {
        let cools_down = pb::AlertRule { cooldown: seconds(round % 2), ..always("cools down") };
        let rules = [server.rule(always("every")).await.id, server.rule(cools_down).await.id];
        let sent: Vec<_> = (0..32)
            .map(|_| {
                let mut events = server.events();
                tokio::spawn(async move { events.ingest_event(ingest("door", vec![])).await })
            })
            .collect();
        for id in &rules {
            delete(&server, id).await.unwrap();
        }
        for reply in sent {
            reply.await.unwrap().unwrap();
        }
        assert_eq!(server.explained("door", vec![]).await.rule_outcomes, []);
    }
    server.stop().await;
}

#[on_both]
async fn what_is_told_of_a_rule_is_short_whatever_was_seen(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    server.rule(pb::AlertRule { object_types: strings(&["cat"]), ..always("r") }).await;
    let few = server.explained("door", vec![detection("Dog", 1.0), detection("car", 1.0), detection("dog", 1.0)]).await;
    assert_eq!(few.rule_outcomes[0].detail, "only [car, dog] was seen");
    let many = (0..100).map(|n| detection(&format!("t{n:03}"), 1.0)).collect();
    let many = server.explained("door", many).await;
    let detail = &many.rule_outcomes[0].detail;
    assert!(detail.ends_with("t008, t009, …] was seen"), "{detail}");
    server.stop().await;
}

#[on_both]
async fn changes_of_different_fields_at_once_are_all_kept(backend: Backend) {
    let server = TestServer::start(backend).await;
    server.streams(["mail"]).await;
    let id = server.rule(always("r")).await.id;
    let change = pb::AlertRule { id: id.clone(), ..Default::default() };
    let changes = [
        pb::AlertRule { description: Some("d".into()), ..change.clone() },
        pb::AlertRule { risk_threshold: Some(5), ..change.clone() },
        pb::AlertRule { channels: strings(&["mail"]), ..change.clone() },
        pb::AlertRule { cooldown: seconds(7), ..change },
    ];
    let sent = changes.map(|rule| {
        let mut rules = server.rules();
        let request = pb::UpdateAlertRuleRequest { alert_rule: Some(rule), update_mask: None, ..Default::default() };
        tokio::spawn(async move { rules.update_alert_rule(request).await })
    });
    for reply in sent {
        reply.await.unwrap().unwrap();
    }
    let rule = get(&server, &id).await.unwrap().into_inner();
    let kept = (rule.description.as_deref(), rule.risk_threshold, rule.channels, rule.cooldown);
    assert_eq!(kept, (Some("d"), Some(5), strings(&["mail"]), seconds(7)));
    server.stop().await;
}

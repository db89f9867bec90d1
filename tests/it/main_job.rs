//! The main job: a camera sees something, a rule matches, and an alert arrives on a live stream.

use tonic::Code;
use watchpost::pb::{self, AlertChangeKind, AlertStatus, RuleStop, Topic};

use crate::support::{TestServer, always, database::on_both, detection, reason, topics};

on_both! {
    async fn an_alert_arrives_on_a_watch_because_a_camera_saw_something(backend) {
        let server = TestServer::start(backend).await;
        server.camera("door").await;
        let rule = pb::AlertRule {
            object_types: vec!["Person".into()],
            min_confidence: Some(0.8),
            severity: pb::Severity::High.into(),
            channels: vec!["mail".into()],
            ..always("people at the door")
        };
        let rule = server.rule(rule).await;
        let mut watch = server.watch(topics(&[Topic::Alerts])).await;

        let seen = vec![detection("person", 0.5), detection("dog", 0.9)];
        let quiet = server.ingest("door", seen).await;
        assert_eq!(quiet.alerts, []);
        assert_eq!(quiet.rule_outcomes.len(), 1);
        assert_eq!(quiet.rule_outcomes[0].stopped_by(), RuleStop::MinConfidence);
        assert_eq!(quiet.rule_outcomes[0].detail, "confidence 0.5 < 0.8");

        let seen = vec![detection("dog", 0.9), detection("PERSON", 0.8)];
        let loud = server.ingest("door", seen).await;
        let event = loud.event.unwrap();
        assert_eq!(event.object_types, ["dog", "person"]);
        assert_eq!(loud.alerts.len(), 1);
        assert!(loud.rule_outcomes[0].fired);

        let (kind, alert) = watch.alert().await;
        assert_eq!((kind, &alert), (AlertChangeKind::Created, &loud.alerts[0]));
        assert_eq!(alert.rule_id, Some(rule.id.clone()));
        assert_eq!(alert.camera_id.as_deref(), Some("door"));
        assert_eq!((alert.event_id, alert.version_id), (event.id, 1));
        assert_eq!(alert.dedup_key, format!("door:{}", rule.id));
        assert_eq!(alert.channels, ["mail"]);
        let got = server.alerts().get_alert(pb::GetAlertRequest { id: alert.id.clone() }).await;
        assert_eq!(got.unwrap().into_inner(), alert);

        let acknowledge = pb::AcknowledgeAlertRequest { id: alert.id.clone(), expected_version_id: Some(1) };
        let acknowledged = server.alerts().acknowledge_alert(acknowledge.clone()).await.unwrap().into_inner();
        assert_eq!((acknowledged.status(), acknowledged.version_id), (AlertStatus::Acknowledged, 2));
        assert_eq!(watch.alert().await, (AlertChangeKind::Acknowledged, acknowledged));
        let stale = server.alerts().acknowledge_alert(acknowledge).await.unwrap_err();
        assert_eq!((stale.code(), reason(&stale)), (Code::Aborted, "STALE_VERSION".into()));
        server.stop().await;
    }
}

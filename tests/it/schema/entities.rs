//! The entities and the migrations are one schema.

use chrono::TimeDelta;
use migration::{Migrator, MigratorTrait};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, DatabaseConnection, EntityTrait, IdenStatic, Iterable, QueryFilter, Set,
    prelude::Uuid,
};
use serde_json::json;
use watchpost::entity::{
    Strings, action_result, activity_baseline, alert, alert_cooldown, alert_flap, alert_request, alert_rule,
    alert_suppression, alert_transition, audit_log, backup_job, camera, camera_zone, change, class_baseline, delivery,
    demographics_result, detection, event, event_audit, event_detection, event_feedback, event_ingest, export_job,
    feed_incarnation, feed_state, gpu, gpu_claim, gpu_event, gpu_history_state, gpu_reporter, gpu_stats,
    gpu_stats_minute, gpu_stats_pending, job, job_attempt, job_log, job_queue, job_schedule, job_transition, job_type,
    log, manual_alert_cooldown, notification_channel, now, pose_result, reid_embedding, restore_job, silence,
    threat_detection,
};

use super::{catalogue, expected::Schema, rows};
use crate::support::database::{Backend, TestDatabase, on_both};

/// Columns that no entity has, and why.
const LEFT_OUT: &[(&str, &str)] = &[
    ("search_vector", "the database fills it, and only a search reads it"),
    ("xid", "the feed asks for it in SQL: SQLite has none"),
];

/// Checks the columns of one entity, and that it can read a row that it did not write.
async fn check<E: EntityTrait>(schema: &mut Schema, db: &DatabaseConnection) {
    let name = E::default().table_name().to_owned();
    let table = schema.tables.remove(&name).unwrap_or_else(|| panic!("no table {name}"));
    let migrated = table.columns.iter().map(|column| column.name.as_str());
    let migrated = migrated.filter(|column| LEFT_OUT.iter().all(|(left_out, _)| left_out != column));
    let entity = E::Column::iter().map(|column| column.as_str().to_owned());
    assert_eq!(entity.collect::<Vec<_>>(), migrated.collect::<Vec<_>>(), "{name}");
    let row = E::find().one(db).await.unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(row.is_some(), "no row in {name}");
}

macro_rules! check_each {
    ($schema:expr, $db:expr, [$($entity:ident),+ $(,)?]) => {
        $(check::<$entity::Entity>($schema, $db).await;)+
    };
}

#[on_both]
async fn entities_have_the_columns_of_their_tables(backend: Backend) {
    let database = TestDatabase::migrated(backend).await;
    let db = database.connect().await;
    rows::insert_everywhere(backend, &db).await;
    let mut schema = catalogue::schema(backend, &db).await;
    check_each!(
        &mut schema,
        &db,
        [
            action_result,
            activity_baseline,
            alert,
            alert_cooldown,
            alert_flap,
            alert_rule,
            alert_suppression,
            alert_request,
            alert_transition,
            manual_alert_cooldown,
            audit_log,
            backup_job,
            camera,
            camera_zone,
            change,
            class_baseline,
            delivery,
            notification_channel,
            demographics_result,
            detection,
            event,
            event_audit,
            event_detection,
            event_feedback,
            event_ingest,
            export_job,
            feed_incarnation,
            feed_state,
            gpu,
            gpu_claim,
            gpu_event,
            gpu_history_state,
            gpu_reporter,
            gpu_stats,
            gpu_stats_minute,
            gpu_stats_pending,
            job,
            job_attempt,
            job_log,
            job_queue,
            job_schedule,
            job_transition,
            job_type,
            log,
            pose_result,
            reid_embedding,
            restore_job,
            silence,
            threat_detection,
        ]
    );
    let without: Vec<_> = schema.tables.into_keys().collect();
    assert_eq!(without, Vec::<String>::new(), "tables without an entity");
}

#[on_both]
async fn a_rule_reads_back_as_it_was_written(backend: Backend) {
    let database = TestDatabase::migrated(backend).await;
    let db = database.connect().await;
    let schedule = json!({ "days": ["monday"], "start_time": "22:00", "end_time": "06:00" });
    let rule = alert_rule::ActiveModel {
        name: Set("At night".to_owned()),
        severity: Set(alert::AlertSeverity::Critical),
        object_types: Set(Some(Strings(vec!["person".to_owned()]))),
        schedule: Set(serde_json::from_value(schedule).unwrap()),
        conditions: Set(Some(json!({ "risk_threshold": 70 }))),
        ..Default::default()
    };
    let written = rule.insert(&db).await.unwrap();
    let read = alert_rule::Entity::find_by_id(written.id).one(&db).await.unwrap();
    assert_eq!(read.as_ref(), Some(&written));
    assert_eq!(written.schedule.map(|schedule| schedule.timezone), Some("UTC".to_owned()));
    assert_eq!((written.enabled, written.cooldown_seconds), (true, 300));
}

#[on_both]
async fn a_job_reads_back_as_it_was_written(backend: Backend) {
    let database = TestDatabase::migrated(backend).await;
    let db = database.connect().await;
    let policy = job::RetryPolicy { initial_ms: 1_000, max_ms: 60_000, multiplier: 1.5, jitter: 0.25 };
    let job = job::ActiveModel {
        job_type: Set("export".to_owned()),
        status: Set(job::JobStatus::Running),
        payload: Set(Some(json!({ "camera": "porch" }))),
        retry_policy: Set(Some(policy)),
        request_hash: Set(Some(vec![7; 32])),
        lease_id: Set(Some(Uuid::now_v7())),
        lease_expires_at: Set(Some(now())),
        ..Default::default()
    };
    let written = job.insert(&db).await.unwrap();
    let read = job::Entity::find_by_id(written.id).one(&db).await.unwrap();
    assert_eq!(read.as_ref(), Some(&written));
    assert_eq!((written.concurrency_key.as_str(), written.max_rescues), ("", 3));
    assert_eq!((written.dead_letter, written.unique_states, written.version_id), (true, 0, 1));

    // No CHECK knows the outcomes.
    for (number, outcome) in (1..).zip(job_attempt::AttemptOutcome::iter()) {
        let attempt = job_attempt::ActiveModel {
            job_id: Set(written.id),
            attempt_number: Set(number),
            outcome: Set(Some(outcome)),
            ..Default::default()
        };
        let written = attempt.insert(&db).await.unwrap();
        let read = job_attempt::Entity::find_by_id(written.id).one(&db).await.unwrap();
        assert_eq!(read, Some(written));
    }
}

#[on_both]
async fn defaults_of_the_database_are_those_of_the_entities(backend: Backend) {
    let database = TestDatabase::migrated(backend).await;
    let db = database.connect().await;
    rows::insert_everywhere(backend, &db).await;

    let attempt = job_attempt::Entity::find().one(&db).await.unwrap().unwrap();
    assert_eq!(attempt.id.get_version_num(), 7);
    let (seconds, _) = attempt.id.get_timestamp().unwrap().to_unix();
    assert!(now().timestamp().abs_diff(seconds.cast_signed()) < 60, "{}", attempt.id);
    assert!((now() - attempt.started_at).abs() < TimeDelta::minutes(1));
    // SQLite compares times as text: what it wrote has to be what the ORM would write.
    let found = job_attempt::Column::StartedAt.eq(attempt.started_at);
    let found = job_attempt::Entity::find().filter(found).one(&db).await.unwrap();
    assert_eq!(found.as_ref(), Some(&attempt));

    let export = export_job::Entity::find().one(&db).await.unwrap().unwrap();
    assert_eq!(export.expires_at, Some(export.created_at + TimeDelta::days(7)));
    assert_eq!(export.status, export_job::ExportJobStatus::Pending);
}

#[on_both]
async fn databases_are_told_apart(backend: Backend) {
    let mut ids = Vec::new();
    for _ in 0..2 {
        let database = TestDatabase::empty(backend).await;
        let db = database.connect().await;
        Migrator::up(&db, None).await.unwrap();
        let state = feed_state::Entity::find_by_id(1).one(&db).await.unwrap().unwrap();
        ids.push(state.database_id);
    }
    assert_ne!(ids[0], ids[1]);
}

//! `events`, `detections` and the links between them; `event_ingests` makes ingests idempotent.

use ForeignKeyAction::Cascade;
use sea_orm_migration::{
    prelude::*,
    schema::{
        big_integer, blob, blob_null, boolean, double_null, integer_null, json_binary_null, string, string_len_null,
        string_null, text_null, timestamp_with_time_zone, timestamp_with_time_zone_null,
    },
};

use crate::dialect::{
    brin_index, check, drop_tables, gin_index, indexes, number_key, per_backend, references, search_vector,
    timestamp_now, unique,
};

/// Trigger function that fills `events.search_vector`. Texts are cut because PostgreSQL refuses a row
/// whose vector exceeds 1 MiB.
const EVENT_SEARCH: &str = "
    CREATE FUNCTION watchpost_event_search_vector() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.search_vector := to_tsvector('english', concat_ws(' ',
            left(NEW.summary, 100000), left(NEW.reasoning, 100000), left(NEW.object_types, 10000),
            (SELECT name FROM cameras WHERE id = NEW.camera_id)));
        RETURN NEW;
    END $$";

/// Trigger function that fills `detections.search_vector`. Most detections have no enrichment, so its
/// words are extracted only where there is one.
const DETECTION_SEARCH: &str = "
    CREATE FUNCTION watchpost_detection_search_vector() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        words text := concat_ws(' ', NEW.object_type,
            (SELECT name FROM cameras WHERE id = NEW.camera_id));
    BEGIN
        IF NEW.enrichment_data IS NOT NULL THEN
            words := concat_ws(' ', words,
                NEW.enrichment_data #>> '{vehicle,make}',
                NEW.enrichment_data #>> '{vehicle,model}',
                NEW.enrichment_data #>> '{vehicle,color}',
                NEW.enrichment_data #>> '{pet,breed}',
                NEW.enrichment_data #>> '{pet,species}');
        END IF;
        NEW.search_vector := to_tsvector('english', left(words, 100000));
        RETURN NEW;
    END $$";

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        create_events(manager).await?;
        create_detections(manager).await?;
        create_event_detections(manager).await?;
        create_event_ingests(manager).await?;
        let postgres = &[
            EVENT_SEARCH,
            "CREATE TRIGGER events_search_vector
                BEFORE INSERT OR UPDATE OF summary, reasoning, object_types, camera_id ON events
                FOR EACH ROW EXECUTE FUNCTION watchpost_event_search_vector()",
            DETECTION_SEARCH,
            "CREATE TRIGGER detections_search_vector
                BEFORE INSERT OR UPDATE OF object_type, camera_id, enrichment_data ON detections
                FOR EACH ROW EXECUTE FUNCTION watchpost_detection_search_vector()",
        ];
        per_backend(manager, postgres, &[]).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let tables = ["event_ingests", "event_detections", "detections", "events"];
        drop_tables(manager, &tables).await?;
        let postgres =
            &["DROP FUNCTION watchpost_detection_search_vector()", "DROP FUNCTION watchpost_event_search_vector()"];
        per_backend(manager, postgres, &[]).await
    }
}

async fn create_events(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let events = Table::create()
        .table("events")
        .col(number_key("id"))
        .col(string("batch_id"))
        .col(string("camera_id"))
        .col(timestamp_with_time_zone("started_at"))
        .col(timestamp_with_time_zone_null("ended_at"))
        .col(integer_null("risk_score"))
        .col(string_null("risk_level"))
        .col(text_null("summary"))
        .col(text_null("reasoning"))
        .col(text_null("llm_prompt"))
        .col(boolean("reviewed").default(false))
        .col(text_null("notes"))
        .col(boolean("is_fast_path").default(false))
        .col(text_null("object_types"))
        .col(string_null("clip_path"))
        .col(search_vector(manager))
        .col(timestamp_with_time_zone_null("deleted_at"))
        .col(timestamp_with_time_zone_null("snooze_until"))
        .check(check(
            "ck_events_risk_level",
            "risk_level IS NULL OR risk_level IN ('low', 'medium', 'high', 'critical')",
        ))
        .check(check("ck_events_risk_score_range", "risk_score IS NULL OR (risk_score >= 0 AND risk_score <= 100)"))
        .check(check("ck_events_time_order", "ended_at IS NULL OR ended_at >= started_at"))
        .foreign_key(&mut references("events", "camera_id", "cameras", Cascade))
        .take();
    manager.create_table(events).await?;
    let on = "events";
    let btrees: &[(&str, &[&str])] = &[
        ("idx_events_camera_id", &["camera_id"]),
        ("idx_events_started_at", &["started_at"]),
        ("idx_events_risk_score", &["risk_score"]),
        ("idx_events_reviewed", &["reviewed"]),
        ("idx_events_batch_id", &["batch_id"]),
        ("idx_events_risk_level_started_at", &["risk_level", "started_at"]),
        ("idx_events_started_at_id", &["started_at", "id"]),
    ];
    indexes(manager, on, btrees).await?;
    let unreviewed = Index::create()
        .name("idx_events_unreviewed")
        .table(on)
        .col("id")
        .and_where(Expr::col("reviewed").eq(false))
        .take();
    manager.create_index(unreviewed).await?;
    gin_index(manager, on, "idx_events_search_vector", "search_vector").await?;
    brin_index(manager, on, "ix_events_started_at_brin", "started_at").await
}

async fn create_detections(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let detections = Table::create()
        .table("detections")
        .col(number_key("id"))
        .col(string("camera_id"))
        .col(string("file_path"))
        .col(string_null("file_type"))
        .col(timestamp_now(manager, "detected_at"))
        .col(string_null("object_type"))
        .col(double_null("confidence"))
        .col(integer_null("bbox_x"))
        .col(integer_null("bbox_y"))
        .col(integer_null("bbox_width"))
        .col(integer_null("bbox_height"))
        .col(string_null("thumbnail_path"))
        .col(string_null("media_type").default("image"))
        .col(double_null("duration"))
        .col(string_null("video_codec"))
        .col(integer_null("video_width"))
        .col(integer_null("video_height"))
        .col(json_binary_null("enrichment_data"))
        .col(search_vector(manager))
        .col(json_binary_null("labels"))
        .check(check("ck_detections_media_type", "media_type IS NULL OR media_type IN ('image', 'video')"))
        .check(check(
            "ck_detections_confidence_range",
            "confidence IS NULL OR (confidence >= 0.0 AND confidence <= 1.0)",
        ))
        .foreign_key(&mut references("detections", "camera_id", "cameras", Cascade))
        .take();
    manager.create_table(detections).await?;
    let btrees: &[(&str, &[&str])] = &[
        ("idx_detections_camera_id", &["camera_id"]),
        ("idx_detections_detected_at", &["detected_at"]),
        ("idx_detections_camera_time", &["camera_id", "detected_at"]),
        ("idx_detections_camera_object_type", &["camera_id", "object_type"]),
        ("ix_detections_object_type_detected_at", &["object_type", "detected_at"]),
    ];
    indexes(manager, "detections", btrees).await?;
    for (name, column) in [
        ("ix_detections_enrichment_data_gin", "enrichment_data jsonb_path_ops"),
        ("idx_detections_search_vector", "search_vector"),
        ("idx_detections_labels_gin", "labels"),
    ] {
        gin_index(manager, "detections", name, column).await?;
    }
    let name = "ix_detections_detected_at_brin";
    brin_index(manager, "detections", name, "detected_at").await
}

async fn create_event_detections(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let table = "event_detections";
    let links = Table::create()
        .table(table)
        .col(big_integer("event_id"))
        .col(big_integer("detection_id"))
        .col(timestamp_now(manager, "created_at"))
        .primary_key(Index::create().col("event_id").col("detection_id"))
        .foreign_key(&mut references(table, "event_id", "events", Cascade))
        .foreign_key(&mut references(table, "detection_id", "detections", Cascade))
        .take();
    manager.create_table(links).await?;
    let btrees: &[(&str, &[&str])] = &[
        ("idx_event_detections_event_id", &["event_id"]),
        ("idx_event_detections_detection_id", &["detection_id"]),
        ("idx_event_detections_created_at", &["created_at"]),
    ];
    indexes(manager, table, btrees).await
}

async fn create_event_ingests(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let table = "event_ingests";
    let ingests = Table::create()
        .table(table)
        .col(big_integer("event_id").primary_key())
        .col(string("camera_id"))
        .col(string_null("batch_id"))
        .col(string_len_null("request_id", 128))
        .col(blob("fingerprint"))
        .col(blob_null("outcomes"))
        .col(timestamp_now(manager, "created_at"))
        .index(&mut unique("uq_event_ingests_request_id", &["request_id"]))
        .index(&mut unique("uq_event_ingests_camera_batch", &["camera_id", "batch_id"]))
        .foreign_key(&mut references(table, "event_id", "events", Cascade))
        .take();
    manager.create_table(ingests).await?;
    let btrees: &[(&str, &[&str])] = &[("idx_event_ingests_created_at", &["created_at"])];
    indexes(manager, table, btrees).await
}

//! `logs`: log lines of the camera system's components, with full-text search.

use sea_orm_migration::{
    prelude::*,
    schema::{big_integer_null, integer_null, json_binary_null, string_len, string_len_null, text, text_null},
};

use crate::dialect::{
    brin_index, check, drop_tables, gin_index, indexes, number_key, per_backend, search_vector, timestamp_now,
};

/// Trigger that fills `logs.search_vector`. The message is cut because PostgreSQL refuses a row whose
/// vector exceeds 1 MiB.
const POSTGRES_SEARCH: &[&str] = &[
    "CREATE FUNCTION watchpost_log_search_vector() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.search_vector := setweight(to_tsvector('english', left(NEW.message, 100000)), 'A')
            || setweight(to_tsvector('english', NEW.component), 'B')
            || setweight(to_tsvector('english', NEW.level), 'C');
        RETURN NEW;
    END $$",
    "CREATE TRIGGER logs_search_vector
        BEFORE INSERT OR UPDATE OF message, component, level ON logs
        FOR EACH ROW EXECUTE FUNCTION watchpost_log_search_vector()",
];

/// FTS5 index `logs_fts`. The index stores no texts of its own (`content = 'logs'`), so triggers keep it
/// in step with the table. The tokenizer `porter` matches other forms of an English word, as
/// PostgreSQL's configuration `english` does.
const SQLITE_SEARCH: &[&str] = &[
    "CREATE VIRTUAL TABLE logs_fts USING fts5(
        message, component, level,
        content = 'logs', content_rowid = 'id', tokenize = 'porter unicode61')",
    "CREATE TRIGGER logs_fts_insert AFTER INSERT ON logs BEGIN
        INSERT INTO logs_fts (rowid, message, component, level)
        VALUES (new.id, new.message, new.component, new.level);
    END",
    "CREATE TRIGGER logs_fts_delete AFTER DELETE ON logs BEGIN
        INSERT INTO logs_fts (logs_fts, rowid, message, component, level)
        VALUES ('delete', old.id, old.message, old.component, old.level);
    END",
    "CREATE TRIGGER logs_fts_update AFTER UPDATE OF id, message, component, level ON logs BEGIN
        INSERT INTO logs_fts (logs_fts, rowid, message, component, level)
        VALUES ('delete', old.id, old.message, old.component, old.level);
        INSERT INTO logs_fts (rowid, message, component, level)
        VALUES (new.id, new.message, new.component, new.level);
    END",
];

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let logs = Table::create()
            .table("logs")
            .col(number_key("id"))
            .col(timestamp_now(manager, "timestamp"))
            .col(string_len("level", 10))
            .col(string_len("component", 50))
            .col(text("message"))
            .col(string_len_null("camera_id", 100))
            .col(big_integer_null("event_id"))
            .col(string_len_null("request_id", 36))
            .col(big_integer_null("detection_id"))
            .col(integer_null("duration_ms"))
            .col(json_binary_null("extra"))
            .col(string_len("source", 10).default("backend"))
            .col(text_null("user_agent"))
            .col(search_vector(manager))
            .check(check("ck_logs_level", "level IN ('DEBUG', 'INFO', 'WARNING', 'ERROR', 'CRITICAL')"))
            .check(check("ck_logs_source", "source IN ('backend', 'frontend')"))
            .take();
        manager.create_table(logs).await?;
        brin_index(manager, "logs", "ix_logs_timestamp_brin", "timestamp").await?;
        gin_index(manager, "logs", "idx_logs_search_vector", "search_vector").await?;
        per_backend(manager, POSTGRES_SEARCH, SQLITE_SEARCH).await?;
        let btrees: &[(&str, &[&str])] = &[
            ("idx_logs_timestamp", &["timestamp"]),
            ("idx_logs_level", &["level"]),
            ("idx_logs_component", &["component"]),
            ("idx_logs_camera_id", &["camera_id"]),
            ("idx_logs_source", &["source"]),
        ];
        indexes(manager, "logs", btrees).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        per_backend(manager, &[], &["DROP TABLE logs_fts"]).await?;
        drop_tables(manager, &["logs"]).await?;
        per_backend(manager, &["DROP FUNCTION watchpost_log_search_vector()"], &[]).await
    }
}

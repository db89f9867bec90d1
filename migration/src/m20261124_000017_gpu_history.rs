//! `gpu_stats_minutes`: what became of the samples, minute by minute; `gpu_stats_pending`: the
//! minutes that have still to be looked at; and `gpu_history_state`: how far samples are gone.

use sea_orm_migration::{
    prelude::*,
    schema::{big_integer, blob, integer, string_len},
};

use crate::dialect::{check, drop_tables, indexes, number_key, per_backend};

/// Marks the minutes of all rows of a statement. A mark of its own each time, instead of one per
/// minute: a writer waits for no other, and whoever deletes the marks that it has seen deletes none
/// of a transaction that has yet to commit.
const MARK_POSTGRES: &[&str] = &[
    "CREATE FUNCTION watchpost_gpu_stats_pending() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO gpu_stats_pending (gpu_uuid, minute)
        SELECT DISTINCT gpu_uuid, floor(extract(epoch FROM recorded_at) / 60)::bigint FROM new_rows
        WHERE gpu_uuid IS NOT NULL AND isfinite(recorded_at) AND recorded_at >= to_timestamp(0);
        IF TG_OP = 'UPDATE' THEN
            INSERT INTO gpu_stats_pending (gpu_uuid, minute)
            SELECT DISTINCT gpu_uuid, floor(extract(epoch FROM recorded_at) / 60)::bigint FROM old_rows
            WHERE gpu_uuid IS NOT NULL AND isfinite(recorded_at) AND recorded_at >= to_timestamp(0);
        END IF;
        RETURN NULL;
    END $$",
    "CREATE TRIGGER gpu_stats_pending_insert AFTER INSERT ON gpu_stats
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION watchpost_gpu_stats_pending()",
    "CREATE TRIGGER gpu_stats_pending_update AFTER UPDATE ON gpu_stats
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION watchpost_gpu_stats_pending()",
    "INSERT INTO gpu_stats_pending (gpu_uuid, minute)
    SELECT DISTINCT gpu_uuid, floor(extract(epoch FROM recorded_at) / 60)::bigint FROM gpu_stats
    WHERE gpu_uuid IS NOT NULL AND isfinite(recorded_at) AND recorded_at >= to_timestamp(0)",
];

/// SQLite has one writer at a time, and knows no statements, only rows: here one mark will do.
const MARK_SQLITE: &[&str] = &[
    "CREATE TRIGGER gpu_stats_pending_insert AFTER INSERT ON gpu_stats
    WHEN NEW.gpu_uuid IS NOT NULL AND unixepoch(NEW.recorded_at) >= 0 BEGIN
        INSERT INTO gpu_stats_pending (gpu_uuid, minute)
        SELECT NEW.gpu_uuid, unixepoch(NEW.recorded_at) / 60
        WHERE NOT EXISTS (SELECT 1 FROM gpu_stats_pending
            WHERE minute = unixepoch(NEW.recorded_at) / 60 AND gpu_uuid = NEW.gpu_uuid);
    END",
    "CREATE TRIGGER gpu_stats_pending_update AFTER UPDATE ON gpu_stats BEGIN
        INSERT INTO gpu_stats_pending (gpu_uuid, minute)
        SELECT NEW.gpu_uuid, unixepoch(NEW.recorded_at) / 60
        WHERE NEW.gpu_uuid IS NOT NULL AND unixepoch(NEW.recorded_at) >= 0;
        INSERT INTO gpu_stats_pending (gpu_uuid, minute)
        SELECT OLD.gpu_uuid, unixepoch(OLD.recorded_at) / 60
        WHERE OLD.gpu_uuid IS NOT NULL AND unixepoch(OLD.recorded_at) >= 0;
    END",
    "INSERT INTO gpu_stats_pending (gpu_uuid, minute)
    SELECT DISTINCT gpu_uuid, unixepoch(recorded_at) / 60 FROM gpu_stats
    WHERE gpu_uuid IS NOT NULL AND unixepoch(recorded_at) >= 0",
];

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let minutes = Table::create()
            .table("gpu_stats_minutes")
            .col(string_len("gpu_uuid", 96))
            .col(big_integer("minute"))
            .col(blob("summary"))
            .col(blob("distribution"))
            .primary_key(Index::create().col("gpu_uuid").col("minute"))
            .take();
        manager.create_table(minutes).await?;
        // Rows of some KB stay where they are, as they are: whoever reads one reads a day of them.
        let whole = &["ALTER TABLE gpu_stats_minutes
                SET (toast_tuple_target = 8160),
                ALTER COLUMN distribution SET STORAGE EXTERNAL"];
        per_backend(manager, whole, &[]).await?;
        let btrees: &[(&str, &[&str])] = &[("idx_gpu_stats_minutes_minute", &["minute"])];
        indexes(manager, "gpu_stats_minutes", btrees).await?;

        let pending = Table::create()
            .table("gpu_stats_pending")
            .col(number_key("id"))
            .col(string_len("gpu_uuid", 96))
            .col(big_integer("minute"))
            .take();
        manager.create_table(pending).await?;
        let btrees: &[(&str, &[&str])] = &[(
            "idx_gpu_stats_pending_minute_gpu_uuid",
            &["minute", "gpu_uuid"],
        )];
        indexes(manager, "gpu_stats_pending", btrees).await?;

        let state = Table::create()
            .table("gpu_history_state")
            .col(integer("id").primary_key())
            .col(big_integer("raw_from").default(0))
            .check(check("ck_gpu_history_state_one_row", "id = 1"))
            .take();
        manager.create_table(state).await?;
        let first = &["INSERT INTO gpu_history_state (id) VALUES (1)"];
        per_backend(manager, first, first).await?;
        per_backend(manager, MARK_POSTGRES, MARK_SQLITE).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let triggers = &[
            "DROP TRIGGER gpu_stats_pending_insert",
            "DROP TRIGGER gpu_stats_pending_update",
        ];
        let postgres = &[
            "DROP TRIGGER gpu_stats_pending_insert ON gpu_stats",
            "DROP TRIGGER gpu_stats_pending_update ON gpu_stats",
            "DROP FUNCTION watchpost_gpu_stats_pending()",
        ];
        per_backend(manager, postgres, triggers).await?;
        let tables = &[
            "gpu_history_state",
            "gpu_stats_pending",
            "gpu_stats_minutes",
        ];
        drop_tables(manager, tables).await
    }
}

//! `gpu_stats_pending`: minutes whose samples are not rolled up yet. Triggers on `gpu_stats` mark them.

use sea_orm_migration::{
    prelude::*,
    schema::{big_integer, string_len},
};

use crate::dialect::{indexes, number_key, per_backend};

const TABLE: &str = "gpu_stats_pending";

/// Triggers that mark the minutes of all rows of a statement. Every statement inserts marks of its own,
/// because one shared mark per minute would make writers wait for each other. The roll-up deletes only
/// marks that it has seen, so the mark of a transaction that commits later stays.
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
];

/// Triggers that mark the minute of each row: SQLite has no statement triggers. One mark per minute is
/// enough, because SQLite has one writer at a time.
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
];

pub(super) async fn create(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let pending = Table::create()
        .table(TABLE)
        .col(number_key("id"))
        .col(string_len("gpu_uuid", 96))
        .col(big_integer("minute"))
        .take();
    manager.create_table(pending).await?;
    let btrees: &[(&str, &[&str])] = &[("idx_gpu_stats_pending_minute_gpu_uuid", &["minute", "gpu_uuid"])];
    indexes(manager, TABLE, btrees).await?;
    per_backend(manager, MARK_POSTGRES, MARK_SQLITE).await
}

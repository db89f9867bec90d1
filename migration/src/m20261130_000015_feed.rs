//! `changes`: the change feed; `feed_state`: its identity and pruned end; `feed_incarnations`: starts
//! and breaks of its history.

use sea_orm_migration::{
    prelude::*,
    schema::{big_integer, big_integer_null, blob, integer, string_len, text_null, uuid, uuid_null},
};

use crate::dialect::{check, drop_tables, indexes, is_postgres, number_key, per_backend, timestamp_now, unique};

/// First incarnation, and the only row of `feed_state`, which refers to it.
const SEED_POSTGRES: &[&str] = &[
    "INSERT INTO feed_incarnations (id, kind) VALUES (gen_random_uuid(), 'initial')",
    "INSERT INTO feed_state (id, database_id, incarnation_id)
        SELECT 1, gen_random_uuid(), id FROM feed_incarnations",
];

/// The same rows as `SEED_POSTGRES`.
const SEED_SQLITE: &[&str] = &[
    "INSERT INTO feed_incarnations (id, kind) VALUES (randomblob(16), 'initial')",
    "INSERT INTO feed_state (id, database_id, incarnation_id)
        SELECT 1, randomblob(16), id FROM feed_incarnations",
];

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        create_changes(manager).await?;
        create_feed_state(manager).await?;
        create_feed_incarnations(manager).await?;
        per_backend(manager, SEED_POSTGRES, SEED_SQLITE).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_tables(manager, &["feed_incarnations", "feed_state", "changes"]).await
    }
}

async fn create_changes(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let mut changes = Table::create();
    changes
        .table("changes")
        .col(if is_postgres(manager) { big_integer("seq").auto_increment().take() } else { number_key("seq") })
        .col(string_len("topic", 32))
        .col(string_len("key", 255))
        .col(blob("message"))
        .col(timestamp_now(manager, "created_at"));
    if is_postgres(manager) {
        // PostgreSQL assigns `seq` before the commit, so a transaction could commit a lower `seq` after
        // a reader has passed it. The transaction id first in the key makes the order commit-safe.
        let xid = ColumnDef::new("xid").custom("xid8").not_null().default(Expr::cust("pg_current_xact_id()")).take();
        changes.col(xid).primary_key(Index::create().col("xid").col("seq"));
    }
    changes.col(big_integer_null("commit_seq"));
    manager.create_table(changes).await?;
    let btrees: &[(&str, &[&str])] = &[("idx_changes_created_at", &["created_at"])];
    indexes(manager, "changes", btrees).await
}

async fn create_feed_state(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let state = Table::create()
        .table("feed_state")
        .col(integer("id").primary_key())
        .col(uuid("database_id"))
        .col(big_integer("pruned_xid").default(0))
        .col(big_integer("pruned_seq").default(0))
        .col(big_integer("pruned_count").default(0))
        .col(uuid_null("incarnation_id"))
        .col(big_integer("xid_offset").default(0))
        .check(check("ck_feed_state_one_row", "id = 1"))
        .take();
    manager.create_table(state).await
}

async fn create_feed_incarnations(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let incarnations = Table::create()
        .table("feed_incarnations")
        .col(number_key("number"))
        .col(uuid("id"))
        .col(string_len("kind", 8))
        .col(big_integer("begin_xid").default(0))
        .col(big_integer("begin_seq").default(0))
        .col(text_null("identity"))
        .col(timestamp_now(manager, "created_at"))
        .index(&mut unique("uq_feed_incarnations_id", &["id"]))
        .check(check("ck_feed_incarnations_kind", "kind IN ('initial', 'start', 'break')"))
        .take();
    manager.create_table(incarnations).await
}

//! `changes`: what happened, in an order to be read in, and `feed_state`: what is gone of it.

use sea_orm_migration::{
    prelude::*,
    schema::{big_integer, blob, integer, string_len, uuid},
};

use crate::dialect::{check, drop_tables, indexes, number_key, per_backend, timestamp_now};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let changes = Table::create()
            .table("changes")
            .col(number_key("seq"))
            .col(string_len("topic", 32))
            .col(string_len("key", 255))
            .col(blob("message"))
            .col(timestamp_now(manager, "created_at"))
            .take();
        manager.create_table(changes).await?;
        // PostgreSQL gives out `seq` before the commit; only with the transaction's number
        // before it is the order one in which nothing appears behind a reader's back.
        let postgres = &["ALTER TABLE changes
                ADD COLUMN xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
                DROP CONSTRAINT changes_pkey,
                ADD CONSTRAINT changes_pkey PRIMARY KEY (xid, seq)"];
        per_backend(manager, postgres, &[]).await?;
        let btrees: &[(&str, &[&str])] = &[("idx_changes_created_at", &["created_at"])];
        indexes(manager, "changes", btrees).await?;

        let feed_state = Table::create()
            .table("feed_state")
            .col(integer("id").primary_key())
            .col(uuid("database_id"))
            .col(big_integer("pruned_xid").default(0))
            .col(big_integer("pruned_seq").default(0))
            .col(big_integer("pruned_count").default(0))
            .check(check("ck_feed_state_one_row", "id = 1"))
            .take();
        manager.create_table(feed_state).await?;
        per_backend(
            manager,
            &["INSERT INTO feed_state (id, database_id) VALUES (1, gen_random_uuid())"],
            &["INSERT INTO feed_state (id, database_id) VALUES (1, randomblob(16))"],
        )
        .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_tables(manager, &["feed_state", "changes"]).await
    }
}

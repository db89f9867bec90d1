//! `feed_incarnations`: the starts and breaks of the history that the change feed tells.

use sea_orm_migration::{
    prelude::*,
    schema::{big_integer, string_len, text_null, uuid, uuid_null},
};

use crate::dialect::{
    check, drop_tables, is_postgres, number_key, per_backend, timestamp_now, unique,
};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
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
            .check(check(
                "ck_feed_incarnations_kind",
                "kind IN ('initial', 'start', 'break')",
            ))
            .take();
        manager.create_table(incarnations).await?;
        for column in [
            uuid_null("incarnation_id"),
            big_integer("xid_offset").default(0).take(),
        ] {
            let feed_state = Table::alter().table("feed_state").add_column(column).take();
            manager.alter_table(feed_state).await?;
        }
        // Cursors that were issued before this migration belong to the initial incarnation.
        per_backend(
            manager,
            &["INSERT INTO feed_incarnations (id, kind) VALUES (gen_random_uuid(), 'initial')"],
            &["INSERT INTO feed_incarnations (id, kind) VALUES (randomblob(16), 'initial')"],
        )
        .await?;
        let current = "UPDATE feed_state SET incarnation_id = (SELECT id FROM feed_incarnations)";
        per_backend(manager, &[current], &[current]).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        if is_postgres(manager) {
            // The default adds `xid_offset` where that is not 0.
            let plain = "ALTER TABLE changes ALTER COLUMN xid SET DEFAULT pg_current_xact_id()";
            manager.get_connection().execute_unprepared(plain).await?;
        }
        for column in ["xid_offset", "incarnation_id"] {
            let feed_state = Table::alter()
                .table("feed_state")
                .drop_column(column)
                .take();
            manager.alter_table(feed_state).await?;
        }
        drop_tables(manager, &["feed_incarnations"]).await
    }
}

//! `changes.commit_seq`: which changes one transaction made, where its number does not tell.

use sea_orm_migration::{prelude::*, schema::big_integer_null};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let changes = Table::alter()
            .table("changes")
            .add_column(big_integer_null("commit_seq"))
            .take();
        manager.alter_table(changes).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let changes = Table::alter()
            .table("changes")
            .drop_column("commit_seq")
            .take();
        manager.alter_table(changes).await
    }
}

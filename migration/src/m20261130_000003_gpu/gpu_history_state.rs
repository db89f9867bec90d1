//! `gpu_history_state`: one row that says from which minute on all samples are kept.

use sea_orm_migration::{
    prelude::*,
    schema::{big_integer, integer},
};

use crate::dialect::{check, execute};

pub(super) async fn create(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let state = Table::create()
        .table("gpu_history_state")
        .col(integer("id").primary_key())
        .col(big_integer("raw_from").default(0))
        .check(check("ck_gpu_history_state_one_row", "id = 1"))
        .take();
    manager.create_table(state).await?;
    execute(manager, &["INSERT INTO gpu_history_state (id) VALUES (1)"]).await
}

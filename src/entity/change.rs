//! `changes`: what happened, in an order to be read in.

use sea_orm::{Set, entity::prelude::*};

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "changes")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub seq: i64,
    /// What kind of thing changed.
    pub topic: String,
    /// Which one.
    pub key: String,
    /// The change as it is sent, already encoded.
    pub message: Vec<u8>,
    pub created_at: DateTimeUtc,
    /// The same for all changes of one transaction, on SQLite; on PostgreSQL `xid` tells.
    pub commit_seq: Option<i64>,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        Self {
            created_at: Set(super::now()),
            ..<Self as ActiveModelTrait>::default()
        }
    }
}

//! Table `changes`: the change feed, in commit-safe order.

use sea_orm::{Set, entity::prelude::*};

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "changes")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub seq: i64,
    /// Kind of the changed object.
    pub topic: String,
    /// Id of the changed object.
    pub key: String,
    /// Encoded message for subscribers.
    pub message: Vec<u8>,
    pub created_at: DateTimeUtc,
    /// Number shared by all changes of a transaction on SQLite. On PostgreSQL the column `xid` has
    /// this role.
    pub commit_seq: Option<i64>,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        Self { created_at: Set(super::now()), ..<Self as ActiveModelTrait>::default() }
    }
}

//! Table `feed_state`: identity of the database, and extent of the pruned changes.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "feed_state")]
pub struct Model {
    /// Primary key, always 1: the table has a single row.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: i32,
    /// Id of the database, which distinguishes its cursors from cursors of other databases.
    pub database_id: Uuid,
    /// Transaction of the last pruned change; 0 on SQLite.
    pub pruned_xid: i64,
    /// Sequence number of the last pruned change.
    pub pruned_seq: i64,
    /// Number of pruned changes.
    pub pruned_count: i64,
    /// Current incarnation of the history, see [`super::feed_incarnation`].
    pub incarnation_id: Option<Uuid>,
    /// Offset added to PostgreSQL transaction ids in positions. After a restore, transaction ids
    /// may start below the ids of restored changes.
    pub xid_offset: i64,
}

impl ActiveModelBehavior for ActiveModel {}

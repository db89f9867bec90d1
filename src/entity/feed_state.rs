//! `feed_state`: which database this is, and what is gone of its changes.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "feed_state")]
pub struct Model {
    /// Always 1.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: i32,
    /// Tells the cursors of this database from those of another.
    pub database_id: Uuid,
    /// The last change that was pruned; 0 on SQLite.
    pub pruned_xid: i64,
    /// The last change that was pruned.
    pub pruned_seq: i64,
    /// How many changes were pruned.
    pub pruned_count: i64,
    /// The current incarnation of the history, see [`super::feed_incarnation`].
    pub incarnation_id: Option<Uuid>,
    /// Added to the transaction ids of PostgreSQL to give positions: after a restore they would start below those of
    /// the changes that were restored.
    pub xid_offset: i64,
}

impl ActiveModelBehavior for ActiveModel {}

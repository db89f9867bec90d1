//! Table `feed_incarnations`: starts and breaks in the history of the change feed.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "feed_incarnations")]
pub struct Model {
    /// Number of the incarnation, in ascending order.
    #[sea_orm(primary_key)]
    pub number: i64,
    /// Random id, so that two copies of a database never create the same incarnation.
    #[sea_orm(unique)]
    pub id: Uuid,
    /// Origin: `initial` for the time before incarnations, `start` for a process start, `break` for
    /// a detected replacement of the database.
    pub kind: String,
    /// Transaction up to which changes belong to earlier incarnations; 0 on SQLite.
    pub begin_xid: i64,
    /// Sequence number up to which changes belong to earlier incarnations.
    pub begin_seq: i64,
    /// Identity of the cluster, database, table and timeline on PostgreSQL; NULL on SQLite.
    pub identity: Option<String>,
    pub created_at: DateTimeUtc,
}

impl ActiveModelBehavior for ActiveModel {}

//! `feed_incarnations`: the starts and breaks of the history that the change feed tells.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "feed_incarnations")]
pub struct Model {
    /// Rises with every incarnation.
    #[sea_orm(primary_key)]
    pub number: i64,
    /// Random, so that no copy of the database gives the same id to an incarnation of its own.
    #[sea_orm(unique)]
    pub id: Uuid,
    /// `initial` for the time before there were incarnations, `start` when a process starts, `break` when the
    /// database is found to be another one, or an older one, than it was.
    pub kind: String,
    /// Position up to which changes belong to earlier incarnations; 0 on SQLite.
    pub begin_xid: i64,
    /// Position up to which changes belong to earlier incarnations.
    pub begin_seq: i64,
    /// Identity of the cluster, database, table and timeline on PostgreSQL; NULL on SQLite.
    pub identity: Option<String>,
    pub created_at: DateTimeUtc,
}

impl ActiveModelBehavior for ActiveModel {}

//! Table `gpu_stats_pending`: minutes whose samples are not completely rolled up. Triggers on
//! `gpu_stats` insert the rows, for every writer.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "gpu_stats_pending")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub gpu_uuid: String,
    /// Minutes since 1970, UTC.
    pub minute: i64,
}

impl ActiveModelBehavior for ActiveModel {}

//! `gpu_history_state`: how far the samples of the GPUs are gone.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "gpu_history_state")]
pub struct Model {
    /// Always 1.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: i32,
    /// Samples of minutes before this one may be gone; what `gpu_stats_minutes` says of them is final.
    /// Minutes since 1970, UTC.
    pub raw_from: i64,
}

impl ActiveModelBehavior for ActiveModel {}

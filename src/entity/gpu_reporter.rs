//! Table `gpu_reporters`: agents that report GPU samples, and their progress.

use sea_orm::{Set, entity::prelude::*};

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "gpu_reporters")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub reporter_id: String,
    pub host: String,
    /// Sequence number of the last stored batch; batches up to this number are repeats.
    pub last_sequence: i64,
    /// Total number of samples dropped by the reporter.
    pub lost: i64,
    pub last_seen_at: DateTimeUtc,
    /// Time at which the first batch was stored. NULL for reporters older than the column.
    pub first_seen_at: Option<DateTimeUtc>,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        Self { last_seen_at: Set(super::now()), ..<Self as ActiveModelTrait>::default() }
    }
}

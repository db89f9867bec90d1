//! `gpu_reporters`: who reports GPU samples, and how far each has come.

use sea_orm::{Set, entity::prelude::*};

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "gpu_reporters")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub reporter_id: String,
    pub host: String,
    /// The highest batch that is stored: what is not above it is a repetition.
    pub last_sequence: i64,
    /// How many samples the reporter has had to drop, in all.
    pub lost: i64,
    pub last_seen_at: DateTimeUtc,
    /// Time at which the first batch of the reporter was stored. NULL of a reporter that is older than the column.
    pub first_seen_at: Option<DateTimeUtc>,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        Self {
            last_seen_at: Set(super::now()),
            ..<Self as ActiveModelTrait>::default()
        }
    }
}

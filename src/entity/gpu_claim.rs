//! `gpu_claims`: which host has which GPU.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "gpu_claims")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub gpu_uuid: String,
    pub host: String,
    /// The `reporter_id` of an agent, or what a server calls itself from its start to its end.
    pub claimant: String,
    /// True if the GPU is reported to a server, rather than sampled by one.
    pub is_agent: bool,
    /// Time at which the claimant was first heard of: of one host the newer one has the GPU.
    pub claimant_since: DateTimeUtc,
    /// Time at which the claimant last told of the GPU, to half a minute.
    pub claimed_at: DateTimeUtc,
}

impl ActiveModelBehavior for ActiveModel {}

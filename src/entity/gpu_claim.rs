//! Table `gpu_claims`: ownership of GPUs by hosts.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "gpu_claims")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub gpu_uuid: String,
    pub host: String,
    /// Owner: the `reporter_id` of an agent, or the name of a server process from start to end.
    pub claimant: String,
    /// True if an agent reports the GPU; false if a server samples the GPU.
    pub is_agent: bool,
    /// Time of the claimant's first report. Among claimants of a host the newer one owns the GPU.
    pub claimant_since: DateTimeUtc,
    /// Time of the claimant's last report of the GPU, with a precision of half a minute.
    pub claimed_at: DateTimeUtc,
}

impl ActiveModelBehavior for ActiveModel {}

//! Claims of hosts on GPUs: samples and conditions of a GPU are taken from one claimant at a time.
//!
//! A claim is a row of `gpu_claims`, renewed in the transaction that stores what it is for, so that it holds between
//! processes. Another claimant gets the GPU once the one that has it has said nothing for [`SILENT_AFTER`]. Of the same
//! host and kind, as after a restart, the claimant that was first heard of later gets it at once.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{
    DatabaseTransaction, EntityTrait, QueryFilter, Set,
    sea_query::{Expr, ExprTrait, OnConflict},
};
use uuid::Uuid;

use crate::{
    db::Db,
    entity::{self, gpu_claim},
    error::Result,
    gpu::live::LiveGpus,
};

/// Time for which a host that says nothing of a GPU keeps its claim, and its condition is believed.
pub(crate) const SILENT_AFTER: TimeDelta = TimeDelta::minutes(3);

/// Age at which a claim is renewed.
const RENEW_EVERY: TimeDelta = TimeDelta::seconds(30);

/// A process that tells of GPUs.
#[derive(Debug, Clone)]
pub(crate) struct Claimant {
    id: String,
    is_agent: bool,
    since: DateTime<Utc>,
}

/// GPUs that are claimed: the hosts by the UUIDs of their GPUs, in the order in which rows are locked.
pub(crate) type Wanted = BTreeMap<String, String>;

/// Claims on the GPUs that were refused, by UUID.
pub(crate) type Refused = BTreeMap<String, gpu_claim::Model>;

/// The claims of the samplers of this process.
#[derive(Debug)]
pub(crate) struct Local {
    claimant: Claimant,
    host: String,
    live: LiveGpus,
}

impl Claimant {
    /// A server that samples the GPUs of its own host, from now on.
    pub(crate) fn server() -> Self {
        Self {
            id: Uuid::now_v7().to_string(),
            is_agent: false,
            since: entity::now(),
        }
    }

    /// A reporter.
    pub(crate) fn agent(reporter_id: &str, since: DateTime<Utc>) -> Self {
        Self {
            id: reporter_id.into(),
            is_agent: true,
            since,
        }
    }

    /// Claims GPUs. Returns those that others have.
    pub(crate) async fn claim(&self, tx: &DatabaseTransaction, wanted: &Wanted) -> Result<Refused> {
        let now = entity::now();
        let mut due: BTreeSet<_> = wanted.keys().cloned().collect();
        for claim in claims(tx, &due).await? {
            let age = now - claim.claimed_at;
            let is_fresh = (TimeDelta::zero()..RENEW_EVERY).contains(&age);
            let is_same = wanted.get(&claim.gpu_uuid) == Some(&claim.host);
            if claim.claimant == self.id && is_fresh && is_same {
                due.remove(&claim.gpu_uuid);
            }
        }
        if due.is_empty() {
            return Ok(Refused::new());
        }
        let rows = wanted.iter().filter(|(uuid, _)| due.contains(*uuid));
        let rows = rows.map(|(uuid, host)| gpu_claim::ActiveModel {
            gpu_uuid: Set(uuid.clone()),
            host: Set(host.clone()),
            claimant: Set(self.id.clone()),
            is_agent: Set(self.is_agent),
            claimant_since: Set(self.since),
            claimed_at: Set(now),
        });
        gpu_claim::Entity::insert_many(rows)
            .on_conflict(if_it_may_be_taken(now))
            .exec_without_returning(tx)
            .await?;
        // Who has waited for another transaction sees what that one has written.
        let held = claims(tx, &due).await?.into_iter();
        let others = held.filter(|claim| claim.claimant != self.id);
        let others = others.map(|claim| (claim.gpu_uuid.clone(), claim));
        Ok(others.collect())
    }
}

impl Local {
    pub(crate) fn new(host: String, live: LiveGpus) -> Self {
        let claimant = Claimant::server();
        Self {
            claimant,
            host,
            live,
        }
    }

    /// Claims GPUs that are sampled here. Returns those that others have.
    pub(crate) async fn claim(
        &self,
        tx: &DatabaseTransaction,
        uuids: impl Iterator<Item = String>,
    ) -> Result<Refused> {
        let wanted: Wanted = uuids.map(|uuid| (uuid, self.host.clone())).collect();
        self.claimant.claim(tx, &wanted).await
    }

    /// Has samplers tell nothing of GPUs that others have.
    pub(crate) fn refuse(&self, refused: &Refused) {
        for (uuid, claim) in refused {
            if self.live.refuse(uuid) {
                let (gpu, host) = (uuid.as_str(), claim.host.as_str());
                tracing::warn!(
                    gpu,
                    host,
                    "another host tells of a GPU that is sampled here; samples of it are neither stored nor told here"
                );
            }
        }
    }

    /// Claims the GPUs again that were refused.
    pub(crate) async fn retry(&self, db: &Db) -> Result<()> {
        let refused = self.live.refused();
        if refused.is_empty() {
            return Ok(());
        }
        let uuids = refused.iter().cloned();
        let claiming = db.write_unannounced(async |tx| self.claim(tx, uuids).await);
        let still = claiming.await?;
        for uuid in refused.iter().filter(|uuid| !still.contains_key(*uuid)) {
            self.live.accept(uuid);
            tracing::info!(gpu = uuid, "samples of a GPU are stored and told again");
        }
        Ok(())
    }
}

async fn claims(
    tx: &DatabaseTransaction,
    uuids: &BTreeSet<String>,
) -> Result<Vec<gpu_claim::Model>> {
    let uuids: Vec<_> = uuids.iter().cloned().collect();
    let claims = gpu_claim::Entity::find().filter(gpu_claim::COLUMN.gpu_uuid.is_in(uuids));
    Ok(claims.all(tx).await?)
}

/// Takes the claim over, or renews it, unless it is another's that counts.
fn if_it_may_be_taken(now: DateTime<Utc>) -> OnConflict {
    use gpu_claim::Column::{Claimant, ClaimantSince, ClaimedAt, GpuUuid, Host, IsAgent};
    let column = |column| Expr::col((gpu_claim::Entity, column));
    let new = |column: gpu_claim::Column| Expr::col(("excluded", column));
    let is_same = |name: gpu_claim::Column| column(name).eq(new(name));
    // A claim that a clock that was ahead has made lasts no longer than any other.
    let is_ahead = column(ClaimedAt).gt(now + RENEW_EVERY);
    let is_silent = column(ClaimedAt).lte(now - SILENT_AFTER).or(is_ahead);
    let is_older = column(ClaimantSince).lt(new(ClaimantSince));
    let is_before = is_same(Host).and(is_same(IsAgent)).and(is_older);
    OnConflict::column(GpuUuid)
        .update_columns([Host, Claimant, IsAgent, ClaimantSince, ClaimedAt])
        .action_and_where(is_same(Claimant).or(is_silent).or(is_before))
        .to_owned()
}

//! Claims of hosts on GPUs: samples and conditions of a GPU are accepted from one claimant at a
//! time.
//!
//! A claim is a row of `gpu_claims`. The transaction that stores samples or conditions also renews
//! the claim, so that claims hold between processes. Another claimant takes over a GPU after the
//! holder has been silent for [`SILENCE_TIMEOUT`]. A claimant of the same host and kind that
//! started later takes over at once, as after a restart.

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

/// Time after which the claim and the condition of a silent host expire.
pub(crate) const SILENCE_TIMEOUT: TimeDelta = TimeDelta::minutes(3);

/// Age at which a claim is renewed.
const RENEWAL_AGE: TimeDelta = TimeDelta::seconds(30);

/// Process that reports GPUs.
#[derive(Debug, Clone)]
pub(crate) struct Claimant {
    id: String,
    is_agent: bool,
    since: DateTime<Utc>,
}

/// Host names by UUID of the claimed GPU. The order by UUID is also the order of row locks.
pub(crate) type ClaimRequest = BTreeMap<String, String>;

/// Claims of other claimants that prevented a claim, by UUID of the GPU.
pub(crate) type Conflicts = BTreeMap<String, gpu_claim::Model>;

/// Claims of the samplers of this process.
#[derive(Debug)]
pub(crate) struct LocalClaims {
    claimant: Claimant,
    host: String,
    live: LiveGpus,
}

impl Claimant {
    /// Claimant for a server that samples the GPUs of its own host, starting now.
    pub(crate) fn server() -> Self {
        Self { id: Uuid::now_v7().to_string(), is_agent: false, since: entity::now() }
    }

    /// Claimant for an agent, identified by its reporter id.
    pub(crate) fn agent(reporter_id: &str, since: DateTime<Utc>) -> Self {
        Self { id: reporter_id.into(), is_agent: true, since }
    }

    /// Claims GPUs in the transaction. Returns the claims of other claimants on these GPUs.
    pub(crate) async fn claim(&self, tx: &DatabaseTransaction, request: &ClaimRequest) -> Result<Conflicts> {
        let now = entity::now();
        let mut due: BTreeSet<_> = request.keys().cloned().collect();
        for claim in find_claims(tx, &due).await? {
            let age = now - claim.claimed_at;
            let is_fresh = (TimeDelta::zero()..RENEWAL_AGE).contains(&age);
            let is_same = request.get(&claim.gpu_uuid) == Some(&claim.host);
            if claim.claimant == self.id && is_fresh && is_same {
                due.remove(&claim.gpu_uuid);
            }
        }
        if due.is_empty() {
            return Ok(Conflicts::new());
        }
        let due_claims = request.iter().filter(|(uuid, _)| due.contains(*uuid));
        let rows = due_claims.map(|(uuid, host)| gpu_claim::ActiveModel {
            gpu_uuid: Set(uuid.clone()),
            host: Set(host.clone()),
            claimant: Set(self.id.clone()),
            is_agent: Set(self.is_agent),
            claimant_since: Set(self.since),
            claimed_at: Set(now),
        });
        gpu_claim::Entity::insert_many(rows).on_conflict(on_claim_conflict(now)).exec_without_returning(tx).await?;
        // Read after the insert, because the insert may have waited for another claimant's
        // transaction.
        let current = find_claims(tx, &due).await?;
        Ok(current
            .into_iter()
            .filter(|claim| claim.claimant != self.id)
            .map(|claim| (claim.gpu_uuid.clone(), claim))
            .collect())
    }
}

impl LocalClaims {
    pub(crate) fn new(host: String, live: LiveGpus) -> Self {
        let claimant = Claimant::server();
        Self { claimant, host, live }
    }

    /// Claims GPUs that are sampled here. Returns the claims of other claimants on these GPUs.
    pub(crate) async fn claim(
        &self,
        tx: &DatabaseTransaction,
        uuids: impl Iterator<Item = String>,
    ) -> Result<Conflicts> {
        let request: ClaimRequest = uuids.map(|uuid| (uuid, self.host.clone())).collect();
        self.claimant.claim(tx, &request).await
    }

    /// Stops the publication of GPUs that other claimants hold.
    pub(crate) fn apply_conflicts(&self, conflicts: &Conflicts) {
        for (uuid, claim) in conflicts {
            if self.live.exclude(uuid) {
                let (gpu, host) = (uuid.as_str(), claim.host.as_str());
                tracing::warn!(
                    gpu,
                    host,
                    "another host reports a GPU that is sampled here; this process neither stores nor publishes samples of the GPU"
                );
            }
        }
    }

    /// Claims excluded GPUs again, and readmits those without a conflict.
    pub(crate) async fn retry_conflicts(&self, db: &Db) -> Result<()> {
        let excluded = self.live.excluded();
        if excluded.is_empty() {
            return Ok(());
        }
        let uuids = excluded.iter().cloned();
        let conflicts = db.write_unannounced(async |tx| self.claim(tx, uuids).await).await?;
        for uuid in excluded.iter().filter(|uuid| !conflicts.contains_key(*uuid)) {
            self.live.readmit(uuid);
            tracing::info!(gpu = uuid, "samples of a GPU are stored and published again");
        }
        Ok(())
    }
}

async fn find_claims(tx: &DatabaseTransaction, uuids: &BTreeSet<String>) -> Result<Vec<gpu_claim::Model>> {
    let uuids: Vec<_> = uuids.iter().cloned().collect();
    let find_claims = gpu_claim::Entity::find().filter(gpu_claim::COLUMN.gpu_uuid.is_in(uuids));
    Ok(find_claims.all(tx).await?)
}

/// Takes over or renews the claim, unless another claimant holds a valid claim.
fn on_claim_conflict(now: DateTime<Utc>) -> OnConflict {
    use gpu_claim::Column::{Claimant, ClaimantSince, ClaimedAt, GpuUuid, Host, IsAgent};
    let column = |column| Expr::col((gpu_claim::Entity, column));
    let new = |column: gpu_claim::Column| Expr::col(("excluded", column));
    let is_same = |name: gpu_claim::Column| column(name).eq(new(name));
    // A claim that was made by a clock ahead of ours counts as expired.
    let is_ahead = column(ClaimedAt).gt(now + RENEWAL_AGE);
    let is_silent = column(ClaimedAt).lte(now - SILENCE_TIMEOUT).or(is_ahead);
    let is_older = column(ClaimantSince).lt(new(ClaimantSince));
    let is_before = is_same(Host).and(is_same(IsAgent)).and(is_older);
    OnConflict::column(GpuUuid)
        .update_columns([Host, Claimant, IsAgent, ClaimantSince, ClaimedAt])
        .action_and_where(is_same(Claimant).or(is_silent).or(is_before))
        .to_owned()
}

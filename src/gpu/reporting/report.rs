//! `RecordGpuStats`: samples and events that other hosts report.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::Stream;
use sea_orm::{
    DatabaseTransaction, EntityTrait, QueryFilter, Set,
    sea_query::{Expr, ExprTrait, OnConflict},
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::check::{Batch, Reporter};
use crate::{
    db::Db,
    entity::{self, gpu_claim, gpu_reporter},
    error::{Error, Result},
    gpu::{
        live::{LiveGpus, Origin},
        store::{
            claims::Claimant,
            events,
            rows::{self, Seen},
        },
    },
    pb,
    rpc::layer,
};

/// How long a reporter is remembered after its last batch.
const REMEMBERED: TimeDelta = TimeDelta::days(30);

/// Takes in what is reported. Clones share all.
#[derive(Debug, Clone)]
pub struct Reports {
    /// Where it is kept.
    pub db: Db,
    /// Where it is live.
    pub live: LiveGpus,
    /// The largest batch that is accepted, in bytes.
    pub max_message_size: usize,
    /// Ends the streams.
    pub shutdown: CancellationToken,
}

/// One stream.
struct Report {
    reports: Reports,
    /// Known from the first batch on.
    reporter: Option<Reporter>,
    /// Time at which the first batch of the reporter was stored, once that is known.
    since: Option<DateTime<Utc>>,
    /// What this stream has written to `gpus`.
    seen: Seen,
}

impl Reports {
    /// Answers every batch once it is committed, up to the first one that fails.
    pub(crate) fn take_in(
        self,
        mut batches: Streaming<pb::RecordGpuStatsRequest>,
    ) -> impl Stream<Item = Result<pb::RecordGpuStatsResponse, Status>> + Send {
        let mut report = Report {
            reports: self,
            reporter: None,
            since: None,
            seen: Seen::default(),
        };
        async_stream::try_stream! {
            let shutdown = report.reports.shutdown.clone();
            let limit = report.reports.max_message_size;
            loop {
                let batch = tokio::select! {
                    biased;
                    () = shutdown.cancelled() => Err(Error::ShuttingDown.into()),
                    batch = layer::next_message(&mut batches, limit) => batch,
                };
                let Some(batch) = batch? else {
                    break;
                };
                yield report.take_in(batch).await?;
            }
        }
    }

    /// Forgets reporters that are long gone.
    async fn forget(&self) {
        let before = crate::clock::for_retention() - REMEMBERED;
        let gone = gpu_reporter::Entity::delete_many()
            .filter(gpu_reporter::COLUMN.last_seen_at.lt(before));
        let claims =
            gpu_claim::Entity::delete_many().filter(gpu_claim::COLUMN.claimed_at.lt(before));
        let forgotten = self.db.write(async |tx| {
            claims.exec(tx).await?;
            Ok(gone.exec(tx).await?)
        });
        if let Err(error) = forgotten.await {
            // The next stream tries it again.
            tracing::debug!(%error, "reporters that are gone could not be forgotten");
        }
    }
}

impl Report {
    async fn take_in(
        &mut self,
        request: pb::RecordGpuStatsRequest,
    ) -> Result<pb::RecordGpuStatsResponse> {
        let reporter = if let Some(reporter) = &self.reporter {
            reporter.is_same(&request)?;
            reporter.clone()
        } else {
            let reporter = Reporter::parse(&request)?;
            self.reports.forget().await;
            tracing::info!(reporter.id, reporter.host, "a host reports GPU samples");
            self.reporter.insert(reporter).clone()
        };
        let batch = Batch::parse(request, &reporter.host, entity::now())?;
        let stored = self.store(&reporter, &batch).await?;
        if stored {
            if batch.lost > 0 {
                let lost = batch.lost;
                tracing::warn!(
                    reporter.id,
                    reporter.host,
                    lost,
                    "a host had to drop GPU samples that it could not report"
                );
            }
            self.reports.live.events().add(&batch.events);
            for stats in batch.gpu_stats {
                self.reports.live.publish_newer(stats, Origin::Reported);
            }
        }
        Ok(pb::RecordGpuStatsResponse {
            sequence: batch.sequence,
            already_stored: !stored,
        })
    }

    /// Stores the batch in one transaction. Returns whether it had not been before.
    async fn store(&mut self, reporter: &Reporter, batch: &Batch) -> Result<bool> {
        let progress = gpu_reporter::ActiveModel {
            reporter_id: Set(reporter.id.clone()),
            host: Set(reporter.host.clone()),
            last_sequence: Set(batch.sequence),
            lost: Set(batch.lost),
            last_seen_at: Set(entity::now()),
            first_seen_at: Set(Some(entity::now())),
        };
        let found = batch.gpu_stats.iter().map(|stats| {
            let gpu = || Arc::new(gpu_of(stats, batch.driver_version.as_ref()));
            (stats, gpu)
        });
        let gpus = self.seen.news(found);
        let wanted = batch.wanted(&reporter.host);
        let since = self.since;
        let stored_since = self
            .reports
            .db
            .write(async |tx| {
                // The row is locked from here on: of two streams with one batch, one stores it.
                let raised = gpu_reporter::Entity::insert(progress)
                    .on_conflict(if_it_is_higher())
                    .exec_without_returning(tx)
                    .await?;
                if raised == 0 {
                    return Ok(None);
                }
                let since = match since {
                    Some(since) => since,
                    None => first_seen_at(tx, &reporter.id).await?,
                };
                let claimant = Claimant::agent(&reporter.id, since);
                let refused = claimant.claim(tx, &wanted).await?;
                if let Some((uuid, claim)) = refused.into_iter().next() {
                    return Err(Error::gpu_claimed(batch.field_of(&uuid), uuid, claim.host));
                }
                rows::insert(tx, batch.gpu_stats.iter(), &gpus).await?;
                events::insert(tx, batch.events.clone(), &batch.conditions).await?;
                Ok(Some(since))
            })
            .await?;
        if stored_since.is_some() {
            self.since = stored_since;
            self.seen.remember(gpus);
        }
        Ok(stored_since.is_some())
    }
}

/// Time at which the first batch of a reporter was stored; long ago for a reporter that is older than the column.
async fn first_seen_at(tx: &DatabaseTransaction, reporter_id: &str) -> Result<DateTime<Utc>> {
    let reporter = gpu_reporter::Entity::find_by_id(reporter_id)
        .one(tx)
        .await?;
    let first = reporter.and_then(|reporter| reporter.first_seen_at);
    Ok(first.unwrap_or_default())
}

/// What a sample tells of its GPU.
fn gpu_of(stats: &pb::GpuStats, driver_version: Option<&String>) -> pb::Gpu {
    pb::Gpu {
        uuid: stats.gpu_uuid.clone().unwrap_or_default(),
        host: stats.host.clone().unwrap_or_default(),
        gpu_index: stats.gpu_index,
        name: stats.gpu_name.clone(),
        pci_bus_id: stats.pci_bus_id.clone(),
        mig_parent_uuid: stats.mig_parent_uuid.clone(),
        driver_version: driver_version.cloned(),
        ..Default::default()
    }
}

/// Raises what is kept of the reporter, unless the batch is a repetition.
fn if_it_is_higher() -> OnConflict {
    use gpu_reporter::Column::{Host, LastSeenAt, LastSequence, Lost, ReporterId};
    let column = |column| Expr::col((gpu_reporter::Entity, column));
    let new = |column: gpu_reporter::Column| Expr::col(("excluded", column));
    OnConflict::column(ReporterId)
        .update_columns([Host, LastSequence, LastSeenAt])
        .value(Lost, column(Lost).add(new(Lost)))
        .action_and_where(column(LastSequence).lt(new(LastSequence)))
        .to_owned()
}

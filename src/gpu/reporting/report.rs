//! `RecordGpuStats`: receives samples, events and conditions from agents.

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
            rows::{self, WrittenGpus},
        },
    },
    pb,
    rpc::layer,
};

/// Time after the last batch at which a reporter is deleted.
const REPORTER_RETENTION: TimeDelta = TimeDelta::days(30);

/// Receiver of reports. Clones share all state.
#[derive(Debug, Clone)]
pub struct Reports {
    /// Database that stores the reports.
    pub db: Db,
    /// Live readings that the reports update.
    pub live: LiveGpus,
    /// Upper bound of a batch in bytes.
    pub max_message_size: usize,
    /// Ends the streams when cancelled.
    pub shutdown: CancellationToken,
}

/// State of one stream.
struct ReportStream {
    reports: Reports,
    /// Reporter. `None` before the first batch.
    reporter: Option<Reporter>,
    /// Time at which the first batch of the reporter was stored. `None` until known.
    since: Option<DateTime<Utc>>,
    /// Cache of the rows of `gpus` that this stream has written.
    written_gpus: WrittenGpus,
}

impl Reports {
    /// Answers every batch after its commit, up to the first failure.
    pub(crate) fn receive(
        self,
        mut batches: Streaming<pb::RecordGpuStatsRequest>,
    ) -> impl Stream<Item = Result<pb::RecordGpuStatsResponse, Status>> + Send {
        let mut report =
            ReportStream { reports: self, reporter: None, since: None, written_gpus: WrittenGpus::default() };
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
                yield report.store_batch(batch).await?;
            }
        }
    }

    /// Deletes reporters and claims that are older than [`REPORTER_RETENTION`].
    async fn delete_inactive(&self) {
        let cutoff = crate::clock::for_retention() - REPORTER_RETENTION;
        let reporters = gpu_reporter::Entity::delete_many().filter(gpu_reporter::COLUMN.last_seen_at.lt(cutoff));
        let claims = gpu_claim::Entity::delete_many().filter(gpu_claim::COLUMN.claimed_at.lt(cutoff));
        let deletion = self.db.write(async |tx| {
            claims.exec(tx).await?;
            Ok(reporters.exec(tx).await?)
        });
        if let Err(error) = deletion.await {
            // The next stream tries again.
            tracing::debug!(%error, "inactive reporters could not be deleted");
        }
    }
}

impl ReportStream {
    async fn store_batch(&mut self, request: pb::RecordGpuStatsRequest) -> Result<pb::RecordGpuStatsResponse> {
        let reporter = if let Some(reporter) = &self.reporter {
            reporter.check_same(&request)?;
            reporter.clone()
        } else {
            let reporter = Reporter::parse(&request)?;
            self.reports.delete_inactive().await;
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
            self.reports.live.event_counts().add(&batch.events);
            for stats in batch.gpu_stats {
                self.reports.live.publish_newer(stats, Origin::Reported);
            }
        }
        Ok(pb::RecordGpuStatsResponse { sequence: batch.sequence, already_stored: !stored })
    }

    /// Stores the batch in one transaction. Returns false if the batch was stored before.
    async fn store(&mut self, reporter: &Reporter, batch: &Batch) -> Result<bool> {
        let progress = gpu_reporter::ActiveModel {
            reporter_id: Set(reporter.id.clone()),
            host: Set(reporter.host.clone()),
            last_sequence: Set(batch.sequence),
            lost: Set(batch.lost),
            last_seen_at: Set(entity::now()),
            first_seen_at: Set(Some(entity::now())),
        };
        let samples = batch.gpu_stats.iter().map(|stats| {
            let gpu = || Arc::new(gpu_of(stats, batch.driver_version.as_ref()));
            (stats, gpu)
        });
        let updates = self.written_gpus.updates(samples);
        let claim_request = batch.claim_request(&reporter.host);
        let since = self.since;
        let stored_since = self
            .reports
            .db
            .write(async |tx| {
                // The row is locked from here on, so that one of two streams with the same batch
                // stores it.
                let raised = gpu_reporter::Entity::insert(progress)
                    .on_conflict(on_reporter_conflict())
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
                let conflicts = claimant.claim(tx, &claim_request).await?;
                if let Some((uuid, claim)) = conflicts.into_iter().next() {
                    return Err(Error::gpu_claimed(batch.field_of(&uuid), uuid, claim.host));
                }
                rows::insert(tx, batch.gpu_stats.iter(), &updates).await?;
                events::insert(tx, batch.events.clone(), &batch.conditions).await?;
                Ok(Some(since))
            })
            .await?;
        if stored_since.is_some() {
            self.since = stored_since;
            self.written_gpus.remember(updates);
        }
        Ok(stored_since.is_some())
    }
}

/// Time at which the first batch of the reporter was stored. The epoch 1970 for a reporter that is
/// older than the column.
async fn first_seen_at(tx: &DatabaseTransaction, reporter_id: &str) -> Result<DateTime<Utc>> {
    let reporter = gpu_reporter::Entity::find_by_id(reporter_id).one(tx).await?;
    let first = reporter.and_then(|reporter| reporter.first_seen_at);
    Ok(first.unwrap_or_default())
}

/// Facts about the GPU from a sample.
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

/// Updates the row of the reporter, unless the batch is a repetition.
fn on_reporter_conflict() -> OnConflict {
    use gpu_reporter::Column::{Host, LastSeenAt, LastSequence, Lost, ReporterId};
    let column = |column| Expr::col((gpu_reporter::Entity, column));
    let new = |column: gpu_reporter::Column| Expr::col(("excluded", column));
    OnConflict::column(ReporterId)
        .update_columns([Host, LastSequence, LastSeenAt])
        .value(Lost, column(Lost).add(new(Lost)))
        .action_and_where(column(LastSequence).lt(new(LastSequence)))
        .to_owned()
}

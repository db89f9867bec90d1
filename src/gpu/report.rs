//! `RecordGpuStats`: samples that other hosts report.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::Stream;
use sea_orm::{
    EntityTrait, QueryFilter, Set,
    sea_query::{Expr, ExprTrait, Func, OnConflict},
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::{
    check::{Batch, Reporter},
    columns::{has_values, recorded_at},
    live::LiveGpus,
    writer::{BATCH, SEEN_EVERY, gpu_row},
};
use crate::{
    db::Db,
    entity::{self, gpu, gpu_reporter, gpu_stats},
    error::{Error, Result},
    pb,
    rpc::layer,
};

/// How long a reporter is remembered after its last batch.
const REMEMBERED: TimeDelta = TimeDelta::days(30);

/// Of how many GPUs a stream remembers what it has written to `gpus`.
const MOST_SEEN: usize = 1_000;

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

/// A GPU as the reports describe it.
#[derive(Debug)]
struct Seen {
    gpu: Arc<pb::Gpu>,
    first: DateTime<Utc>,
    last: DateTime<Utc>,
}

/// One stream.
struct Report {
    reports: Reports,
    /// Known from the first batch on.
    reporter: Option<Reporter>,
    /// What this stream has written to `gpus`, and when it will be worth while again.
    seen: HashMap<String, (Arc<pb::Gpu>, DateTime<Utc>)>,
}

impl Reports {
    /// Answers every batch once it is committed, up to the first one that fails.
    pub(super) fn take_in(
        self,
        mut batches: Streaming<pb::RecordGpuStatsRequest>,
    ) -> impl Stream<Item = Result<pb::RecordGpuStatsResponse, Status>> + Send {
        let mut report = Report {
            reports: self,
            reporter: None,
            seen: HashMap::new(),
        };
        async_stream::try_stream! {
            let shutdown = report.reports.shutdown.clone();
            loop {
                let batch = tokio::select! {
                    biased;
                    () = shutdown.cancelled() => Err(Error::ShuttingDown.into()),
                    batch = batches.message() => batch,
                };
                let limit = report.reports.max_message_size;
                let Some(batch) = batch.map_err(|status| layer::of_stream(status, limit))? else {
                    break;
                };
                yield report.take_in(batch).await?;
            }
        }
    }

    /// Forgets reporters that are long gone.
    async fn forget(&self) {
        let before = entity::now() - REMEMBERED;
        let gone = gpu_reporter::Entity::delete_many()
            .filter(gpu_reporter::COLUMN.last_seen_at.lt(before));
        if let Err(error) = self.db.write(async |tx| Ok(gone.exec(tx).await?)).await {
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
            for stats in batch.gpu_stats {
                self.reports.live.publish_newer(stats);
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
        };
        let gpus = self.new_gpus(batch);
        let stored = self
            .reports
            .db
            .write(async |tx| {
                // The row is locked from here on: of two streams with one batch, one stores it.
                let raised = gpu_reporter::Entity::insert(progress)
                    .on_conflict(if_it_is_higher())
                    .exec_without_returning(tx)
                    .await?;
                if raised == 0 {
                    return Ok(false);
                }
                for some in batch.gpu_stats.chunks(BATCH) {
                    gpu_stats::Entity::insert_many(some.iter().map(gpu_stats::ActiveModel::from))
                        .exec_without_returning(tx)
                        .await?;
                }
                if !gpus.is_empty() {
                    gpu::Entity::insert_many(gpus.values().map(Seen::row))
                        .on_conflict(unless_it_is_older())
                        .exec_without_returning(tx)
                        .await?;
                }
                Ok(true)
            })
            .await?;
        if stored {
            if self.seen.len() > MOST_SEEN {
                self.seen.clear();
            }
            let gpus = gpus.into_iter();
            self.seen
                .extend(gpus.map(|(uuid, seen)| (uuid, (seen.gpu, seen.last))));
        }
        Ok(stored)
    }

    /// What of the batch has to go to `gpus`: by UUID, so that all lock the rows in one order.
    fn new_gpus(&self, batch: &Batch) -> BTreeMap<String, Seen> {
        let mut gpus = BTreeMap::<String, Seen>::new();
        for stats in batch.gpu_stats.iter().filter(|stats| has_values(stats)) {
            let at = recorded_at(stats);
            let gpu = || Arc::new(gpu_of(stats, batch.driver_version.as_ref()));
            let uuid = stats.gpu_uuid.clone().unwrap_or_default();
            gpus.entry(uuid)
                .and_modify(|seen| {
                    if at < seen.first {
                        seen.first = at;
                    }
                    if seen.last < at {
                        (seen.gpu, seen.last) = (gpu(), at);
                    }
                })
                .or_insert_with(|| Seen {
                    gpu: gpu(),
                    first: at,
                    last: at,
                });
        }
        gpus.retain(|uuid, now| {
            let known = self.seen.get(uuid);
            known.is_none_or(|(gpu, last)| *gpu != now.gpu || now.last - *last >= SEEN_EVERY)
        });
        gpus
    }
}

impl Seen {
    fn row(&self) -> gpu::ActiveModel {
        gpu::ActiveModel {
            first_seen_at: Set(self.first),
            ..gpu_row(&self.gpu, self.last)
        }
    }
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

/// Changes what is kept of a GPU, unless that is from a later sample.
fn unless_it_is_older() -> OnConflict {
    use gpu::Column::{
        DriverVersion, GpuIndex, Host, LastSeenAt, MigParentUuid, Name, PciBusId, Uuid,
    };
    let column = |column| Expr::col((gpu::Entity, column));
    let new = |column: gpu::Column| Expr::col(("excluded", column));
    // What the reporter leaves out stays known.
    let kept = |name: gpu::Column| (name, Func::coalesce([new(name), column(name)]).into());
    OnConflict::column(Uuid)
        .update_columns([Host, MigParentUuid, LastSeenAt])
        .values([GpuIndex, Name, PciBusId, DriverVersion].map(kept))
        .action_and_where(column(LastSeenAt).lte(new(LastSeenAt)))
        .to_owned()
}

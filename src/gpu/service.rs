//! Handlers of `GpuStatsService`, and conversions between rows and messages of GPUs and samples.

use std::{
    collections::{BTreeSet, HashMap},
    pin::Pin,
    sync::Arc,
};

use futures_util::Stream;
use sea_orm::{EntityTrait, QueryFilter, QueryTrait, Select, Set};
use tokio::{sync::Semaphore, time::timeout};
use tonic::{Request, Response, Status, Streaming};

use super::{
    columns::{self, recorded_at},
    events::list,
    history,
    live::LiveGpus,
    reporting::report::Reports,
};
use crate::{
    db::{Db, scans::MAX_WAIT},
    entity::{self, gpu, gpu_stats},
    error::{Error, Result},
    pb::{self, gpu_stats_service_server::GpuStatsService},
    rpc::{Reply, page::Page, time},
};

/// Upper bound of GPUs that a request may name, because each GPU costs a query or a query
/// parameter.
const MAX_GPU_UUIDS: usize = 1000;

/// Upper bound of `AggregateGpuStats` calls that read the database at the same time.
const MAX_CONCURRENT_AGGREGATIONS: usize = 2;

/// Handlers of `GpuStatsService`.
#[derive(Debug, Clone)]
pub struct GpuStats {
    db: Db,
    live: LiveGpus,
    reports: Reports,
    aggregations: Arc<Semaphore>,
}

impl GpuStats {
    pub fn new(reports: Reports) -> Self {
        Self {
            db: reports.db.clone(),
            live: reports.live.clone(),
            reports,
            aggregations: Arc::new(Semaphore::new(MAX_CONCURRENT_AGGREGATIONS)),
        }
    }
}

#[tonic::async_trait]
impl GpuStatsService for GpuStats {
    type RecordGpuStatsStream = Pin<Box<dyn Stream<Item = Result<pb::RecordGpuStatsResponse, Status>> + Send>>;

    async fn list_gpus(&self, _: Request<pb::ListGpusRequest>) -> Reply<pb::ListGpusResponse> {
        let gpus = gpu::Entity::find().all(self.db.reader()).await.map_err(Error::from)?;
        let mut gpus: Vec<pb::Gpu> = gpus.into_iter().map(Into::into).collect();
        for gpu in &mut gpus {
            // Conditions in memory are newer than the database for GPUs of this host.
            if let Some(condition) = self.live.condition(&gpu.uuid) {
                gpu.set_state(condition.state);
                gpu.memory_pressure = condition.memory_pressure.map(Into::into);
            }
        }
        let sort_key =
            |gpu: &pb::Gpu| (gpu.host.clone(), gpu.gpu_index, gpu.mig_parent_uuid.is_some(), gpu.uuid.clone());
        gpus.sort_by_cached_key(sort_key);
        Ok(Response::new(pb::ListGpusResponse { gpus }))
    }

    async fn get_latest_gpu_stats(
        &self,
        request: Request<pb::GetLatestGpuStatsRequest>,
    ) -> Reply<pb::GetLatestGpuStatsResponse> {
        let gpu_uuids = request.into_inner().gpu_uuids;
        check_gpu_uuids("gpu_uuids", &gpu_uuids)?;
        let gpu_stats = if gpu_uuids.is_empty() {
            self.latest_samples().await?
        } else {
            self.latest_samples_of(gpu_uuids.into_iter().collect()).await?
        };
        Ok(Response::new(pb::GetLatestGpuStatsResponse { gpu_stats }))
    }

    async fn list_gpu_stats(&self, request: Request<pb::ListGpuStatsRequest>) -> Reply<pb::ListGpuStatsResponse> {
        let request = request.into_inner();
        let filter = request.filter.unwrap_or_default();
        let page = Page::parse(request.page_size, &request.page_token, "gpu_stats", &filter)?;
        let columns = (gpu_stats::Column::RecordedAt, gpu_stats::Column::Id);
        let key = |row: &gpu_stats::Model| (row.recorded_at, row.id);
        let select = filter.select()?;
        let scan = self.db.scan_if(!filter.has_index()).await?;
        let (gpu_stats, next_page_token) = page.newest_first(scan.reader(), select, columns, key).await?;
        Ok(Response::new(pb::ListGpuStatsResponse { gpu_stats, next_page_token }))
    }

    async fn aggregate_gpu_stats(
        &self,
        request: Request<pb::AggregateGpuStatsRequest>,
    ) -> Reply<pb::AggregateGpuStatsResponse> {
        let acquired = timeout(MAX_WAIT, self.aggregations.acquire()).await;
        let permit = acquired.map_err(|_| Error::ScanTimeout { waited: MAX_WAIT })?;
        let _permit = permit.map_err(Error::internal)?;
        let response = history::aggregate::aggregate(&self.db, &request.into_inner()).await?;
        Ok(Response::new(response))
    }

    async fn list_gpu_events(&self, request: Request<pb::ListGpuEventsRequest>) -> Reply<pb::ListGpuEventsResponse> {
        Ok(Response::new(list::list_events(&self.db, request.into_inner()).await?))
    }

    async fn record_gpu_stats(
        &self,
        request: Request<Streaming<pb::RecordGpuStatsRequest>>,
    ) -> Reply<Self::RecordGpuStatsStream> {
        let answers = self.reports.clone().receive(request.into_inner());
        Ok(Response::new(Box::pin(answers)))
    }
}

impl GpuStats {
    /// UUIDs of all GPUs in the database and in memory.
    async fn known_uuids(&self) -> Result<BTreeSet<String>> {
        let stored = gpu::Entity::find().all(self.db.reader()).await?;
        let readings = self.live.readings();
        let live_uuids = readings.iter().filter_map(|reading| reading.stats.gpu_uuid.clone());
        let stored_uuids = stored.into_iter().map(|gpu| gpu.uuid);
        Ok(stored_uuids.chain(live_uuids).collect())
    }

    /// Newest sample of every GPU, ordered by host and index.
    pub(crate) async fn latest_samples(&self) -> Result<Vec<pb::GpuStats>> {
        self.latest_samples_of(self.known_uuids().await?).await
    }

    async fn latest_samples_of(&self, uuids: BTreeSet<String>) -> Result<Vec<pb::GpuStats>> {
        let mut gpu_stats = Vec::with_capacity(uuids.len());
        for uuid in uuids {
            gpu_stats.extend(self.latest_sample(&uuid).await?);
        }
        let sort_key = |stats: &pb::GpuStats| {
            (stats.host.clone(), stats.gpu_index, stats.mig_parent_uuid.is_some(), stats.gpu_uuid.clone())
        };
        gpu_stats.sort_by_cached_key(sort_key);
        Ok(gpu_stats)
    }

    /// Newest sample of a GPU, mostly from memory. A stored sample with a time in the future is
    /// returned only if no other sample is stored.
    async fn latest_sample(&self, uuid: &str) -> Result<Option<pb::GpuStats>> {
        let newest = || gpu_stats::Entity::newest_of(uuid);
        let past_samples = newest().filter(gpu_stats::COLUMN.recorded_at.lte(entity::now()));
        let past = past_samples.one(self.db.reader()).await?;
        let Some(live) = self.live.reading(uuid) else {
            let stored = match past {
                Some(past) => Some(past),
                None => newest().one(self.db.reader()).await?,
            };
            return Ok(stored.map(Into::into));
        };
        match past {
            // The stored copy of the sample is preferred, because only a stored sample has an id.
            Some(stored) if stored.recorded_at >= live.taken_at => Ok(Some(stored.into())),
            _ => Ok(Some(live.stats.clone())),
        }
    }
}

impl pb::GpuStatsFilter {
    /// Returns true if an index serves the filter: all samples, or the samples of one GPU.
    fn has_index(&self) -> bool {
        self.host.is_empty() && self.gpu_uuids.len() <= 1
    }

    fn select(&self) -> Result<Select<gpu_stats::Entity>> {
        use gpu_stats::COLUMN;
        check_gpu_uuids("filter.gpu_uuids", &self.gpu_uuids)?;
        let (start, end) = time::bounds("filter.recorded_at", self.recorded_at)?;
        let uuids = (!self.gpu_uuids.is_empty()).then_some(&self.gpu_uuids);
        let host = (!self.host.is_empty()).then_some(&self.host);
        Ok(gpu_stats::Entity::find()
            .apply_if(uuids, |select, uuids| select.filter(COLUMN.gpu_uuid.is_in(uuids.clone())))
            .apply_if(host, |select, host| select.filter(COLUMN.host.eq(host.as_str())))
            .apply_if(start, |select, start| select.filter(COLUMN.recorded_at.gte(start)))
            .apply_if(end, |select, end| select.filter(COLUMN.recorded_at.lt(end))))
    }
}

fn check_gpu_uuids(field: &'static str, uuids: &[String]) -> Result<()> {
    if uuids.len() > MAX_GPU_UUIDS {
        return Err(Error::invalid(field, format!("must not name more than {MAX_GPU_UUIDS} GPUs")));
    }
    Ok(())
}

impl From<gpu::Model> for pb::Gpu {
    fn from(row: gpu::Model) -> Self {
        let condition = row.condition(entity::now());
        Self {
            uuid: row.uuid,
            host: row.host,
            gpu_index: row.gpu_index,
            name: row.name,
            pci_bus_id: row.pci_bus_id,
            mig_parent_uuid: row.mig_parent_uuid,
            driver_version: row.driver_version,
            first_seen_at: Some(time::to_proto(row.first_seen_at)),
            last_seen_at: Some(time::to_proto(row.last_seen_at)),
            state: condition.state.into(),
            memory_pressure: condition.memory_pressure.map(Into::into),
        }
    }
}

impl From<gpu_stats::Model> for pb::GpuStats {
    fn from(row: gpu_stats::Model) -> Self {
        let mut stats = Self {
            id: Some(row.id),
            recorded_at: Some(time::to_proto(row.recorded_at)),
            gpu_name: row.gpu_name,
            gpu_utilization: row.gpu_utilization,
            memory_used: row.memory_used,
            memory_total: row.memory_total,
            temperature: row.temperature,
            power_usage: row.power_usage,
            inference_fps: row.inference_fps,
            fan_speed: row.fan_speed,
            sm_clock: row.sm_clock,
            memory_bandwidth_utilization: row.memory_bandwidth_utilization,
            pstate: row.pstate,
            throttle_reasons: row.throttle_reasons,
            power_limit: row.power_limit,
            sm_clock_max: row.sm_clock_max,
            compute_processes_count: row.compute_processes_count,
            pcie_replay_counter: row.pcie_replay_counter,
            temp_slowdown_threshold: row.temp_slowdown_threshold,
            memory_clock: row.memory_clock,
            memory_clock_max: row.memory_clock_max,
            pcie_link_gen: row.pcie_link_gen,
            pcie_link_width: row.pcie_link_width,
            pcie_tx_throughput: row.pcie_tx_throughput,
            pcie_rx_throughput: row.pcie_rx_throughput,
            encoder_utilization: row.encoder_utilization,
            decoder_utilization: row.decoder_utilization,
            bar1_used: row.bar1_used,
            gpu_uuid: row.gpu_uuid,
            gpu_index: row.gpu_index,
            host: row.host,
            pci_bus_id: row.pci_bus_id,
            mig_parent_uuid: row.mig_parent_uuid,
            absent_reasons: HashMap::new(),
            energy_consumption: row.energy_consumption,
            power_usage_instant: row.power_usage_instant,
            memory_temperature: row.memory_temperature,
            counter_epoch: row.counter_epoch,
        };
        let reason = |column: &str| match &row.absent_mask {
            Some(mask) => columns::decode_mask(mask, column),
            None => pb::AbsentReason::from_label(row.absent_reasons.as_ref()?.get(column)?.as_str()?),
        };
        stats.absent_reasons = columns::absent_columns(&stats)
            .map(|column| {
                let reason = reason(column).unwrap_or_default();
                (column.to_string(), reason.into())
            })
            .collect();
        stats
    }
}

impl From<&pb::GpuStats> for gpu_stats::ActiveModel {
    fn from(stats: &pb::GpuStats) -> Self {
        Self {
            recorded_at: Set(recorded_at(stats)),
            gpu_name: Set(stats.gpu_name.clone()),
            gpu_utilization: Set(stats.gpu_utilization),
            memory_used: Set(stats.memory_used),
            memory_total: Set(stats.memory_total),
            temperature: Set(stats.temperature),
            power_usage: Set(stats.power_usage),
            inference_fps: Set(stats.inference_fps),
            fan_speed: Set(stats.fan_speed),
            sm_clock: Set(stats.sm_clock),
            memory_bandwidth_utilization: Set(stats.memory_bandwidth_utilization),
            pstate: Set(stats.pstate),
            throttle_reasons: Set(stats.throttle_reasons),
            power_limit: Set(stats.power_limit),
            sm_clock_max: Set(stats.sm_clock_max),
            compute_processes_count: Set(stats.compute_processes_count),
            pcie_replay_counter: Set(stats.pcie_replay_counter),
            temp_slowdown_threshold: Set(stats.temp_slowdown_threshold),
            memory_clock: Set(stats.memory_clock),
            memory_clock_max: Set(stats.memory_clock_max),
            pcie_link_gen: Set(stats.pcie_link_gen),
            pcie_link_width: Set(stats.pcie_link_width),
            pcie_tx_throughput: Set(stats.pcie_tx_throughput),
            pcie_rx_throughput: Set(stats.pcie_rx_throughput),
            encoder_utilization: Set(stats.encoder_utilization),
            decoder_utilization: Set(stats.decoder_utilization),
            bar1_used: Set(stats.bar1_used),
            gpu_uuid: Set(stats.gpu_uuid.clone()),
            gpu_index: Set(stats.gpu_index),
            host: Set(stats.host.clone()),
            pci_bus_id: Set(stats.pci_bus_id.clone()),
            mig_parent_uuid: Set(stats.mig_parent_uuid.clone()),
            absent_reasons: Set(None),
            energy_consumption: Set(stats.energy_consumption),
            power_usage_instant: Set(stats.power_usage_instant),
            memory_temperature: Set(stats.memory_temperature),
            counter_epoch: Set(stats.counter_epoch),
            absent_mask: Set(Some(columns::encode_mask(stats))),
            ..Default::default()
        }
    }
}

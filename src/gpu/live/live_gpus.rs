//! Newest reading of every GPU, sampled here or reported, in memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use parking_lot::RwLock;
use prost::Message;
use tokio::sync::watch;

use crate::{
    entity,
    gpu::{
        columns::{self, recorded_at},
        condition::Condition,
        events::EventCounts,
        nvml::cost::Costs,
    },
    pb::{self, watch_response::Update},
};

/// Upper bound of GPUs with a reading, because reporters choose the UUIDs.
const MAX_GPUS: usize = 10_000;

/// Newest readings of all GPUs. Clones share the readings.
#[derive(Debug, Clone, Default)]
pub struct LiveGpus(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    newest: RwLock<BTreeMap<String, GpuEntry>>,
    published: watch::Sender<u64>,
    costs: Costs,
    events: EventCounts,
    /// Facts about the sampled GPUs, by UUID.
    gpus: RwLock<BTreeMap<String, Arc<pb::Gpu>>>,
    conditions: RwLock<BTreeMap<String, Condition>>,
    /// UUIDs of GPUs of this host that another host reports.
    excluded: RwLock<BTreeSet<String>>,
}

/// Newest reading of a GPU. The count of readings continues after `forget`.
#[derive(Debug, Default)]
struct GpuEntry {
    number: u64,
    reading: Option<Arc<Reading>>,
    /// Newest sample, completed with older values for the columns that were not due. `None` if all
    /// columns were due.
    carried: Option<pb::GpuStats>,
}

impl GpuEntry {
    fn replace(&mut self, stats: pb::GpuStats, origin: Origin) -> Arc<Reading> {
        self.number += 1;
        let previous = self.reading.as_ref();
        // Agents may skip columns for any length of time, so older values would be misleading.
        let has_gaps = stats.absent_reasons.values().any(|reason| *reason == i32::from(pb::AbsentReason::NotSampled));
        self.carried = previous.filter(|_| has_gaps && origin == Origin::Sampled).map(|previous| {
            let older = self.carried.as_ref().unwrap_or(&previous.stats);
            let mut carried = stats.clone();
            columns::carry_over(&mut carried, older);
            carried
        });
        let reading = Reading::new(self.number, stats);
        let since_previous = previous.map(|previous| reading.taken_at - previous.taken_at);
        let reading = Arc::new(Reading { since_previous, origin, ..reading });
        self.reading = Some(reading.clone());
        reading
    }
}

/// Origin of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Sampled by this process.
    Sampled,
    /// Reported to this process by an agent.
    Reported,
    /// Relayed by another process on the same database.
    Relayed,
}

/// One sample of one GPU.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// Number of the sample of this GPU since the start, from 1.
    pub number: u64,
    pub stats: pb::GpuStats,
    /// Time of the sample. For a sample with a time in the future, the time of arrival.
    pub taken_at: DateTime<Utc>,
    /// Time since the previous sample. `None` for the first sample.
    pub since_previous: Option<TimeDelta>,
    /// Origin of the sample.
    pub origin: Origin,
    /// Encoded update for watches, created at first use.
    encoded: OnceLock<Bytes>,
}

/// Current time for comparisons with times of samples: the earlier of the server's clock and the
/// clock of this host, because both clocks stamp samples.
pub fn present() -> DateTime<Utc> {
    entity::now().min(Utc::now())
}

impl Reading {
    /// Reading with the given number, sampled here.
    pub fn new(number: u64, stats: pb::GpuStats) -> Self {
        Self {
            number,
            taken_at: recorded_at(&stats).min(present()),
            stats,
            since_previous: None,
            origin: Origin::Sampled,
            encoded: OnceLock::new(),
        }
    }

    /// Sort key of samples. Of two samples that arrived from the future at the same time, the one
    /// with the later time is newer.
    fn order_key(&self) -> (DateTime<Utc>, DateTime<Utc>) {
        (self.taken_at, recorded_at(&self.stats))
    }

    /// The sample as the `update` of an encoded `WatchResponse`.
    pub fn encoded(&self) -> Bytes {
        let encode = || {
            let response =
                pb::WatchResponse { update: Some(Update::GpuStats(self.stats.clone())), ..Default::default() };
            response.encode_to_vec().into()
        };
        self.encoded.get_or_init(encode).clone()
    }
}

impl LiveGpus {
    /// Replaces the reading of the sample's GPU, and notifies subscribers.
    pub fn publish(&self, stats: pb::GpuStats) -> Arc<Reading> {
        let uuid = stats.gpu_uuid.clone().unwrap_or_default();
        let reading = {
            let mut entries = self.0.newest.write();
            entries.entry(uuid).or_default().replace(stats, Origin::Sampled)
        };
        self.0.published.send_modify(|count| *count += 1);
        reading
    }

    /// Records facts about a GPU.
    pub fn register(&self, gpu: &Arc<pb::Gpu>) {
        let known = self.gpu(&gpu.uuid);
        if known.is_none_or(|known| !Arc::ptr_eq(&known, gpu)) {
            let mut gpus = self.0.gpus.write();
            gpus.insert(gpu.uuid.clone(), gpu.clone());
        }
    }

    /// Facts about the GPU. `None` if no sampler of this process has the GPU.
    pub fn gpu(&self, uuid: &str) -> Option<Arc<pb::Gpu>> {
        let gpus = self.0.gpus.read();
        gpus.get(uuid).cloned()
    }

    /// The GPU and its MIG instances, as far as they have readings.
    pub(in crate::gpu) fn gpu_and_instances(&self, uuid: &str) -> Vec<Arc<pb::Gpu>> {
        let is_part = |gpu: &pb::Gpu| gpu.uuid == uuid || gpu.mig_parent_uuid.as_deref() == Some(uuid);
        let gpus = self.0.gpus.read();
        let parts = gpus.values().filter(|gpu| is_part(gpu)).cloned();
        parts.filter(|gpu| self.reading(&gpu.uuid).is_some()).collect()
    }

    /// Publishes a reported or relayed sample, unless the current reading is newer or the table of
    /// GPUs is full. A sample from the future counts as new as its arrival, so that it does not
    /// hide later measurements.
    pub(in crate::gpu) fn publish_newer(&self, stats: pb::GpuStats, origin: Origin) {
        let uuid = stats.gpu_uuid.clone().unwrap_or_default();
        {
            let mut entries = self.0.newest.write();
            if entries.len() >= MAX_GPUS && !entries.contains_key(&uuid) {
                return;
            }
            let newest = entries.entry(uuid).or_default();
            let recorded_at = recorded_at(&stats);
            let order_key = (recorded_at.min(present()), recorded_at);
            if newest.reading.as_ref().is_some_and(|reading| reading.order_key() >= order_key) {
                return;
            }
            newest.replace(stats, origin);
        }
        self.0.published.send_modify(|count| *count += 1);
    }

    /// Drops the reading of a removed GPU, such as a deleted MIG instance.
    pub fn forget(&self, uuid: &str) {
        if let Some(newest) = self.0.newest.write().get_mut(uuid) {
            newest.reading = None;
        }
        self.0.conditions.write().remove(uuid);
    }

    /// Records the conditions of GPUs, by UUID.
    pub(in crate::gpu) fn set_conditions<'a>(&self, conditions: impl Iterator<Item = (&'a String, Condition)>) {
        let mut known = self.0.conditions.write();
        for (uuid, condition) in conditions {
            match known.get_mut(uuid) {
                Some(current) => *current = condition,
                None => {
                    known.insert(uuid.clone(), condition);
                }
            }
        }
    }

    /// Stops publication of a GPU that another host reports. Returns true if the GPU was published
    /// before.
    pub(in crate::gpu) fn exclude(&self, uuid: &str) -> bool {
        let mut excluded = self.0.excluded.write();
        let is_new = excluded.insert(uuid.into());
        if is_new {
            self.forget(uuid);
        }
        is_new
    }

    /// Resumes publication of a GPU.
    pub(in crate::gpu) fn readmit(&self, uuid: &str) {
        self.0.excluded.write().remove(uuid);
    }

    /// UUIDs of the GPUs of this host that another host reports.
    pub(in crate::gpu) fn excluded(&self) -> Vec<String> {
        let excluded = self.0.excluded.read();
        excluded.iter().cloned().collect()
    }

    /// Returns true if another host reports the GPU.
    pub(in crate::gpu) fn is_excluded(&self, uuid: &str) -> bool {
        let excluded = self.0.excluded.read();
        excluded.contains(uuid)
    }

    /// Condition of a GPU of this host. `None` for other GPUs.
    pub fn condition(&self, uuid: &str) -> Option<Condition> {
        if self.is_excluded(uuid) {
            return None;
        }
        let conditions = self.0.conditions.read();
        conditions.get(uuid).copied()
    }

    /// Cost of the driver calls.
    pub fn costs(&self) -> &Costs {
        &self.0.costs
    }

    /// Counts of stored events.
    pub fn event_counts(&self) -> &EventCounts {
        &self.0.events
    }

    /// Receiver that changes with every published reading. The value is the number of readings.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.published.subscribe()
    }

    /// Newest reading of every GPU, ordered by UUID.
    pub fn readings(&self) -> Vec<Arc<Reading>> {
        let entries = self.0.newest.read();
        entries.values().filter_map(|newest| newest.reading.clone()).collect()
    }

    /// The given reading, completed with older values for the columns that were not due. Older
    /// values have at most the age of the slowest schedule, 30 s.
    pub fn carried(&self, reading: &Reading) -> pb::GpuStats {
        let uuid = reading.stats.gpu_uuid.as_deref().unwrap_or_default();
        let entries = self.0.newest.read();
        let newest = entries.get(uuid).filter(|newest| newest.number == reading.number);
        let carried = newest.and_then(|newest| newest.carried.clone());
        carried.unwrap_or_else(|| reading.stats.clone())
    }

    /// Newest reading of the GPU.
    pub fn reading(&self, uuid: &str) -> Option<Arc<Reading>> {
        let entries = self.0.newest.read();
        entries.get(uuid)?.reading.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::time::to_proto;

    fn stats(uuid: &str, temperature: f64) -> pb::GpuStats {
        pb::GpuStats { gpu_uuid: Some(uuid.into()), temperature: Some(temperature), ..Default::default() }
    }

    #[test]
    fn every_gpu_counts_for_itself_and_the_newest_reading_stays() {
        let live = LiveGpus::default();
        let changed = live.changed();
        for (uuid, temperature) in [("b", 40.0), ("a", 50.0), ("b", 41.0)] {
            live.publish(stats(uuid, temperature));
        }
        let readings = live.readings();
        let readings: Vec<_> = readings.iter().map(|reading| (reading.number, &reading.stats)).collect();
        assert_eq!(readings, [(1, &stats("a", 50.0)), (2, &stats("b", 41.0))]);
        assert_eq!(*changed.borrow(), 3);
        live.forget("b");
        assert_eq!(live.readings().len(), 1);
        assert_eq!(live.reading("b"), None);
        // The number must not repeat after the GPU was forgotten.
        assert_eq!(live.publish(stats("b", 42.0)).number, 3);
    }

    #[test]
    fn what_a_sample_did_not_ask_for_is_as_it_was_before() {
        let live = LiveGpus::default();
        let without = |reason: pb::AbsentReason| pb::GpuStats {
            temperature: None,
            absent_reasons: [("temperature".to_string(), reason.into())].into(),
            ..stats("a", 0.0)
        };
        let carried = || live.carried(&live.reading("a").unwrap()).temperature;
        live.publish(stats("a", 50.0));
        for _ in 0..2 {
            live.publish(without(pb::AbsentReason::NotSampled));
            assert_eq!(carried(), Some(50.0));
            assert_eq!(live.reading("a").unwrap().stats.temperature, None);
        }
        live.publish(without(pb::AbsentReason::GpuLost));
        assert_eq!(carried(), None);
        live.publish(without(pb::AbsentReason::NotSampled));
        assert_eq!(carried(), None);
    }

    #[test]
    fn a_late_sample_from_elsewhere_does_not_replace_a_newer_one() {
        let live = LiveGpus::default();
        let at = |seconds: i64| pb::GpuStats {
            recorded_at: Some(prost_types::Timestamp { seconds, nanos: 0 }),
            ..stats("a", 50.0)
        };
        for seconds in [10, 12, 11, 12] {
            live.publish_newer(at(seconds), Origin::Reported);
        }
        let reading = live.reading("a").unwrap();
        assert_eq!((reading.number, &reading.stats), (2, &at(12)));
        for gpu in 0..MAX_GPUS + 5 {
            live.publish_newer(stats(&format!("GPU-{gpu}"), 50.0), Origin::Relayed);
        }
        assert_eq!(live.readings().len(), MAX_GPUS);
    }
    #[test]
    fn a_sample_from_the_future_does_not_hide_those_that_come_after_it() {
        let live = LiveGpus::default();
        let at = |time: DateTime<Utc>, temperature: f64| pb::GpuStats {
            recorded_at: Some(to_proto(time)),
            ..stats("a", temperature)
        };
        let temperature = || live.reading("a").unwrap().stats.temperature;
        let ahead = present() + TimeDelta::minutes(4);
        live.publish_newer(at(ahead, 90.0), Origin::Reported);
        live.publish_newer(at(ahead + TimeDelta::seconds(1), 91.0), Origin::Relayed);
        assert_eq!(temperature(), Some(91.0));
        let arrived = present();
        while present() == arrived {
            std::hint::spin_loop();
        }
        live.publish_newer(at(present(), 50.0), Origin::Reported);
        assert_eq!(temperature(), Some(50.0));
        let late = present() - TimeDelta::minutes(1);
        live.publish_newer(at(late, 40.0), Origin::Reported);
        assert_eq!(temperature(), Some(50.0));
        assert!(live.reading("a").unwrap().since_previous.unwrap() < TimeDelta::minutes(1));
    }
}

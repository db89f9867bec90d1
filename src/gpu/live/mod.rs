//! The newest reading of every GPU, sampled here or reported, in memory, for whoever watches.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use parking_lot::RwLock;
use prost::Message;
use tokio::sync::watch;

use super::{
    columns::{self, recorded_at},
    events::Counts,
    nvml::cost::Costs,
};
use crate::{
    entity,
    pb::{self, watch_response::Update},
};

pub mod relay;

/// How many GPUs may be live: whoever reports names them as they like.
const MOST_GPUS: usize = 10_000;

/// The newest readings. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct LiveGpus(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    newest: RwLock<BTreeMap<String, Newest>>,
    published: watch::Sender<u64>,
    costs: Costs,
    events: Counts,
    /// The GPUs that were sampled, by UUID.
    gpus: RwLock<BTreeMap<String, Arc<pb::Gpu>>>,
    conditions: RwLock<BTreeMap<String, Condition>>,
    /// The GPUs of this host that another one tells of, by UUID.
    refused: RwLock<BTreeSet<String>>,
}

/// What is kept of a GPU. Its count goes on even if it is gone for a while.
#[derive(Debug, Default)]
struct Newest {
    number: u64,
    reading: Option<Arc<Reading>>,
    /// The sample with what it did not ask for as it was before, if that is anything.
    carried: Option<pb::GpuStats>,
}

/// How a GPU or a MIG instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    pub state: pb::GpuState,
    /// Absent where it is not known.
    pub memory_pressure: Option<pb::MemoryPressure>,
}

impl Newest {
    fn put(&mut self, stats: pb::GpuStats, origin: Origin) -> Arc<Reading> {
        self.number += 1;
        let before = self.reading.as_ref();
        // Of other hosts it is not known for how long they do not ask.
        let has_gaps = stats
            .absent_reasons
            .values()
            .any(|reason| *reason == i32::from(pb::AbsentReason::NotSampled));
        self.carried = before
            .filter(|_| has_gaps && origin == Origin::Sampled)
            .map(|before| {
                let before = self.carried.as_ref().unwrap_or(&before.stats);
                let mut carried = stats.clone();
                columns::carry(&mut carried, before);
                carried
            });
        let reading = Reading::new(self.number, stats);
        let after = before.map(|before| reading.at - before.at);
        let reading = Arc::new(Reading {
            after,
            origin,
            ..reading
        });
        self.reading = Some(reading.clone());
        reading
    }
}

/// Where a sample is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// This process has taken it.
    Sampled,
    /// It was reported to this process.
    Reported,
    /// Another process on the same database has it first hand.
    Relayed,
}

/// One sample of one GPU.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// Counts the samples of this GPU since the start, from 1.
    pub number: u64,
    pub stats: pb::GpuStats,
    /// Time at which the sample was taken; of a sample that says that it is from the future, its arrival.
    pub at: DateTime<Utc>,
    /// How long after the one before it was taken. `None` of the first.
    pub after: Option<TimeDelta>,
    /// Where it is from.
    pub origin: Origin,
    /// What watches are sent of it, made for the first of them.
    encoded: OnceLock<Bytes>,
}

/// The present by which samples are compared: by the clock that decides or by that of this host, which has
/// sampled some of them, whichever is behind.
pub fn present() -> DateTime<Utc> {
    entity::now().min(Utc::now())
}

impl Reading {
    /// A sample that has this number.
    pub fn new(number: u64, stats: pb::GpuStats) -> Self {
        Self {
            number,
            at: recorded_at(&stats).min(present()),
            stats,
            after: None,
            origin: Origin::Sampled,
            encoded: OnceLock::new(),
        }
    }

    /// Key by which samples are ordered. Of two that came from the future at the same time, the later one is
    /// the newer.
    fn age(&self) -> (DateTime<Utc>, DateTime<Utc>) {
        (self.at, recorded_at(&self.stats))
    }

    /// The sample as the `update` of an encoded `WatchResponse`.
    pub fn encoded(&self) -> Bytes {
        let encode = || {
            let response = pb::WatchResponse {
                update: Some(Update::GpuStats(self.stats.clone())),
                ..Default::default()
            };
            response.encode_to_vec().into()
        };
        self.encoded.get_or_init(encode).clone()
    }
}

impl LiveGpus {
    /// Replaces the reading of the sample's GPU, and tells whoever waits.
    pub fn publish(&self, stats: pb::GpuStats) -> Arc<Reading> {
        let uuid = stats.gpu_uuid.clone().unwrap_or_default();
        let reading = {
            let mut all = self.0.newest.write();
            all.entry(uuid).or_default().put(stats, Origin::Sampled)
        };
        self.0.published.send_modify(|count| *count += 1);
        reading
    }

    /// Says what is known of a GPU beside its readings.
    pub fn introduce(&self, gpu: &Arc<pb::Gpu>) {
        let known = self.gpu(&gpu.uuid);
        if known.is_none_or(|known| !Arc::ptr_eq(&known, gpu)) {
            let mut gpus = self.0.gpus.write();
            gpus.insert(gpu.uuid.clone(), gpu.clone());
        }
    }

    /// What is known of this GPU beside its readings.
    pub fn gpu(&self, uuid: &str) -> Option<Arc<pb::Gpu>> {
        let gpus = self.0.gpus.read();
        gpus.get(uuid).cloned()
    }

    /// This GPU and the MIG instances of it that have readings.
    pub(super) fn whole_and_parts(&self, uuid: &str) -> Vec<Arc<pb::Gpu>> {
        let of = |gpu: &pb::Gpu| gpu.uuid == uuid || gpu.mig_parent_uuid.as_deref() == Some(uuid);
        let gpus = self.0.gpus.read();
        let all = gpus.values().filter(|gpu| of(gpu)).cloned();
        all.filter(|gpu| self.reading(&gpu.uuid).is_some())
            .collect()
    }

    /// The same for a sample from elsewhere, unless it is not newer than the reading that is there,
    /// or is the first of a GPU for which there is no room. A sample from the future is as new as its
    /// arrival: it must not hide what is measured until then.
    pub(super) fn publish_newer(&self, stats: pb::GpuStats, origin: Origin) {
        let uuid = stats.gpu_uuid.clone().unwrap_or_default();
        {
            let mut all = self.0.newest.write();
            if all.len() >= MOST_GPUS && !all.contains_key(&uuid) {
                return;
            }
            let newest = all.entry(uuid).or_default();
            let recorded_at = recorded_at(&stats);
            let age = (recorded_at.min(present()), recorded_at);
            if newest
                .reading
                .as_ref()
                .is_some_and(|reading| reading.age() >= age)
            {
                return;
            }
            newest.put(stats, origin);
        }
        self.0.published.send_modify(|count| *count += 1);
    }

    /// Drops the reading of a GPU that is no more, as a MIG instance that was taken apart.
    pub fn forget(&self, uuid: &str) {
        if let Some(newest) = self.0.newest.write().get_mut(uuid) {
            newest.reading = None;
        }
        self.0.conditions.write().remove(uuid);
    }

    /// Takes over how GPUs are, by UUID.
    pub(super) fn set_conditions<'a>(
        &self,
        conditions: impl Iterator<Item = (&'a String, Condition)>,
    ) {
        let all = self.0.conditions.write();
        let mut all = all;
        for (uuid, condition) in conditions {
            match all.get_mut(uuid) {
                Some(known) => *known = condition,
                None => {
                    all.insert(uuid.clone(), condition);
                }
            }
        }
    }

    /// Has nothing told of a GPU that is sampled here, since another host tells of it. Returns whether that
    /// is new.
    pub(super) fn refuse(&self, uuid: &str) -> bool {
        let refused = self.0.refused.write();
        let mut refused = refused;
        let is_new = refused.insert(uuid.into());
        if is_new {
            self.forget(uuid);
        }
        is_new
    }

    /// Has it told again.
    pub(super) fn accept(&self, uuid: &str) {
        self.0.refused.write().remove(uuid);
    }

    /// The GPUs of this host that another one tells of.
    pub(super) fn refused(&self) -> Vec<String> {
        let refused = self.0.refused.read();
        let refused = refused;
        refused.iter().cloned().collect()
    }

    /// Returns true if this is one of them.
    pub(super) fn is_refused(&self, uuid: &str) -> bool {
        let refused = self.0.refused.read();
        refused.contains(uuid)
    }

    /// How this GPU of this host is.
    pub fn condition(&self, uuid: &str) -> Option<Condition> {
        if self.is_refused(uuid) {
            return None;
        }
        let all = self.0.conditions.read();
        let all = all;
        all.get(uuid).copied()
    }

    /// What sampling costs.
    pub fn costs(&self) -> &Costs {
        &self.0.costs
    }

    /// How many events were stored.
    pub fn events(&self) -> &Counts {
        &self.0.events
    }

    /// Changes with every reading: how many were published.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.published.subscribe()
    }

    /// The newest reading of every GPU, by UUID.
    pub fn readings(&self) -> Vec<Arc<Reading>> {
        let all = self.0.newest.read();
        all.values()
            .filter_map(|newest| newest.reading.clone())
            .collect()
    }

    /// The newest reading of this GPU, with the values that it did not ask for as they were before:
    /// at most half a minute old.
    pub fn carried(&self, reading: &Reading) -> pb::GpuStats {
        let uuid = reading.stats.gpu_uuid.as_deref().unwrap_or_default();
        let all = self.0.newest.read();
        let newest = all
            .get(uuid)
            .filter(|newest| newest.number == reading.number);
        let carried = newest.and_then(|newest| newest.carried.clone());
        carried.unwrap_or_else(|| reading.stats.clone())
    }

    /// The newest reading of this GPU.
    pub fn reading(&self, uuid: &str) -> Option<Arc<Reading>> {
        let all = self.0.newest.read();
        all.get(uuid)?.reading.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::time::to_proto;

    fn stats(uuid: &str, temperature: f64) -> pb::GpuStats {
        pb::GpuStats {
            gpu_uuid: Some(uuid.into()),
            temperature: Some(temperature),
            ..Default::default()
        }
    }

    #[test]
    fn every_gpu_counts_for_itself_and_the_newest_reading_stays() {
        let live = LiveGpus::default();
        let changed = live.changed();
        for (uuid, temperature) in [("b", 40.0), ("a", 50.0), ("b", 41.0)] {
            live.publish(stats(uuid, temperature));
        }
        let readings = live.readings();
        let readings: Vec<_> = readings
            .iter()
            .map(|reading| (reading.number, &reading.stats))
            .collect();
        assert_eq!(readings, [(1, &stats("a", 50.0)), (2, &stats("b", 41.0))]);
        assert_eq!(*changed.borrow(), 3);
        live.forget("b");
        assert_eq!(live.readings().len(), 1);
        assert_eq!(live.reading("b"), None);
        // Whoever has seen the second must not take the next one for an older one.
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
        for gpu in 0..MOST_GPUS + 5 {
            live.publish_newer(stats(&format!("GPU-{gpu}"), 50.0), Origin::Relayed);
        }
        assert_eq!(live.readings().len(), MOST_GPUS);
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
        assert!(live.reading("a").unwrap().after.unwrap() < TimeDelta::minutes(1));
    }
}

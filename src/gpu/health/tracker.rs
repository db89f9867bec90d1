//! Tracks the condition of each GPU of this host. Results of the samplers and the watchdog become
//! states, and changes of states become events.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use parking_lot::{Mutex, MutexGuard};

use super::{
    debounce::{Change, Debounced},
    pressure,
};
use crate::{
    entity::gpu_event::{GpuEventKind, GpuEventSource},
    gpu::{
        condition::Condition,
        events::{EventQueue, PendingEvent},
        live::LiveGpus,
        nvml::{Failure, FailureKind},
        pci_address::PciAddress,
    },
    pb::{self, GpuState, MemoryPressure},
};

/// Tracked GPUs of this host and their conditions.
#[derive(Debug)]
pub(crate) struct ConditionTracker {
    live: LiveGpus,
    events: Arc<EventQueue>,
    state: Mutex<TrackerState>,
}

#[derive(Debug, Default)]
struct TrackerState {
    gpus: BTreeMap<String, TrackedGpu>,
    /// Conditions from the database, of GPUs that were not found yet.
    stored: HashMap<String, StoredCondition>,
}

/// Condition of a GPU at the end of the previous process.
#[derive(Debug, Clone, Default)]
pub(crate) struct StoredCondition {
    pub state: Option<GpuState>,
    pub memory_pressure: Option<MemoryPressure>,
    pub driver_version: Option<String>,
}

/// State of a GPU, in more detail than clients see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Unknown,
    Ok,
    Unresponsive,
    Lost,
    ResetRequired,
    DriverGone,
    Asleep,
}

/// Tracked GPU with its MIG instances.
#[derive(Debug)]
struct TrackedGpu {
    gpu: Arc<pb::Gpu>,
    state: Debounced<State>,
    /// The GPU itself and its MIG instances, by UUID.
    parts: BTreeMap<String, Part>,
    was_sampled: bool,
    /// True if the MIG instances must be listed again.
    needs_relist: bool,
}

/// GPU or MIG instance, with memory of its own.
#[derive(Debug)]
struct Part {
    gpu: Arc<pb::Gpu>,
    pressure: Debounced<Option<MemoryPressure>>,
    /// True if the last sample contained the memory use.
    measured: bool,
}

impl ConditionTracker {
    pub(crate) fn new(live: LiveGpus, events: Arc<EventQueue>, stored: HashMap<String, StoredCondition>) -> Self {
        let state = Mutex::new(TrackerState { stored, ..TrackerState::default() });
        Self { live, events, state }
    }

    /// Adds a GPU, or updates the facts about a GPU that was found again. Queues an event if the
    /// driver version changed.
    pub(crate) fn register(&self, gpu: &Arc<pb::Gpu>) {
        let mut tracker = self.lock();
        let stored = tracker.stored.remove(&gpu.uuid).unwrap_or_default();
        let mut last_version = stored.driver_version;
        if let Some(tracked) = tracker.gpus.get_mut(&gpu.uuid) {
            last_version.clone_from(&tracked.gpu.driver_version);
            tracked.gpu = gpu.clone();
        } else {
            let state = stored.state.map_or(State::Unknown, Into::into);
            let part = Part::new(gpu.clone(), stored.memory_pressure);
            let tracked = TrackedGpu {
                gpu: gpu.clone(),
                state: Debounced::new(state),
                parts: BTreeMap::from([(gpu.uuid.clone(), part)]),
                was_sampled: false,
                needs_relist: false,
            };
            tracker.gpus.insert(gpu.uuid.clone(), tracked);
        }
        if let (Some(last), Some(current)) = (last_version, &gpu.driver_version)
            && last != *current
        {
            let detail = format!("{last} -> {current}");
            let kind = GpuEventKind::DriverChanged;
            let event = PendingEvent::new(gpu, kind, GpuEventSource::Handle, Some(detail));
            self.events.push(event);
        }
    }

    /// Records successful samples: of a GPU, followed by its MIG instances.
    pub(crate) fn record_samples<'a>(&self, samples: impl Iterator<Item = (&'a Arc<pb::Gpu>, &'a pb::GpuStats)>) {
        let samples: Vec<_> = samples.collect();
        let Some((whole, _)) = samples.first() else {
            return;
        };
        let mut tracker = self.lock();
        let TrackerState { gpus, stored } = &mut *tracker;
        let Some(tracked) = gpus.get_mut(&whole.uuid) else {
            return;
        };
        tracked.state.set(State::Ok, "");
        let part_changes = tracked.update_parts(samples.iter().map(|(gpu, _)| *gpu), stored);
        if let Some(detail) = part_changes.filter(|_| tracked.was_sampled) {
            let kind = GpuEventKind::MigChanged;
            let event = PendingEvent::new(whole, kind, GpuEventSource::Sampler, Some(detail));
            self.events.push(event);
        }
        tracked.was_sampled = true;
        for (gpu, stats) in samples {
            if let Some(part) = tracked.parts.get_mut(&gpu.uuid) {
                part.measure(stats);
            }
        }
        self.report_changes(tracked);
    }

    /// Records a failure to sample the GPU.
    pub(crate) fn record_failure(&self, uuid: &str, failure: &Failure) {
        let state = match failure.kind {
            FailureKind::Lost => State::Lost,
            FailureKind::ResetRequired => State::ResetRequired,
            FailureKind::Driver => State::DriverGone,
            FailureKind::Other => State::Unknown,
        };
        self.set(uuid, |tracked| {
            // An unclassified error does not mean that a lost GPU is back.
            let is_lost = matches!(tracked.state.current(), State::Lost | State::ResetRequired);
            if !(is_lost && state == State::Unknown) {
                tracked.state.set(state, &failure.text);
            }
        });
    }

    /// Records a hang of the GPU if `hangs` returns true.
    pub(crate) fn record_hang(&self, uuid: &str, hangs: impl FnOnce() -> bool) {
        self.set(uuid, |tracked| {
            // Evaluated under the lock, so that no sample can come in between.
            if hangs() {
                let reason = "a round of calls to the driver does not return";
                tracked.state.set(State::Unresponsive, reason);
            }
        });
    }

    /// Records that the GPU is suspended.
    pub(crate) fn record_sleep(&self, uuid: &str) {
        self.set(uuid, |tracked| tracked.state.set(State::Asleep, ""));
    }

    /// Records that the MIG configuration of the GPU changed.
    pub(crate) fn record_mig_change(&self, uuid: &str) {
        self.set(uuid, |tracked| tracked.needs_relist = true);
    }

    /// Returns true if the MIG instances must be listed again, and resets the request.
    pub(crate) fn take_relist(&self, uuid: &str) -> bool {
        let mut tracker = self.lock();
        let tracked = tracker.gpus.get_mut(uuid);
        tracked.is_some_and(|tracked| std::mem::take(&mut tracked.needs_relist))
    }

    /// The GPU, if its samples succeed.
    pub(crate) fn healthy_gpu(&self, uuid: &str) -> Option<Arc<pb::Gpu>> {
        let tracker = self.lock();
        let tracked = tracker.gpus.get(uuid)?;
        (tracked.state.current() == State::Ok).then(|| tracked.gpu.clone())
    }

    /// The GPU with the PCI address. A working GPU is preferred to a lost GPU with the same
    /// address.
    pub(crate) fn find_by_address(&self, address: PciAddress) -> Option<Arc<pb::Gpu>> {
        let tracker = self.lock();
        let is_at = |tracked: &&TrackedGpu| {
            let bus_id = tracked.gpu.pci_bus_id.as_deref();
            bus_id.and_then(PciAddress::parse) == Some(address)
        };
        tracker
            .gpus
            .values()
            .filter(is_at)
            .max_by_key(|tracked| tracked.state.current() != State::Lost)
            .map(|tracked| tracked.gpu.clone())
    }

    /// Last reported condition of every GPU and MIG instance, by UUID.
    pub(crate) fn reported(&self) -> Vec<(String, Condition)> {
        let tracker = self.lock();
        tracker
            .gpus
            .values()
            .flat_map(TrackedGpu::reported)
            .filter(|(uuid, _)| self.may_report(uuid))
            .map(|(uuid, condition)| (uuid.clone(), condition))
            .collect()
    }

    /// Returns true if this host may report the GPU, because no other host reports it.
    pub(crate) fn may_report(&self, uuid: &str) -> bool {
        !self.live.is_excluded(uuid)
    }

    fn set(&self, uuid: &str, change: impl FnOnce(&mut TrackedGpu)) {
        if let Some(tracked) = self.lock().gpus.get_mut(uuid) {
            change(tracked);
            self.report_changes(tracked);
        }
    }

    /// Queues events for due changes of a GPU.
    fn report_changes(&self, tracked: &mut TrackedGpu) {
        let now = Instant::now();
        let state = tracked.state.change(now);
        let pressures: Vec<_> = tracked.parts.values_mut().map(|part| part.change(now)).collect();
        // Published before the event, because a client may read the condition right after the
        // event.
        self.live.set_conditions(tracked.current());
        if state.is_none() && pressures.iter().all(Option::is_none) {
            return;
        }
        let conditions: Vec<_> = tracked.reported().map(|(uuid, condition)| (uuid.clone(), condition)).collect();
        if let Some(event) = state.and_then(|change| state_event(&tracked.gpu, change)) {
            let conditions = conditions.clone();
            self.events.push(PendingEvent { conditions, ..event });
        }
        // The order of the parts is the same in both lists.
        for (event, condition) in pressures.into_iter().zip(&conditions) {
            if let Some(event) = event {
                let conditions = vec![condition.clone()];
                self.events.push(PendingEvent { conditions, ..event });
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, TrackerState> {
        self.state.lock()
    }
}

impl TrackedGpu {
    /// Updates the MIG instances. Returns the added and removed instances as text, or `None`
    /// without changes.
    fn update_parts<'a>(
        &mut self,
        gpus: impl Iterator<Item = &'a Arc<pb::Gpu>>,
        stored: &mut HashMap<String, StoredCondition>,
    ) -> Option<String> {
        let gpus: Vec<_> = gpus.collect();
        let uuids: HashSet<_> = gpus.iter().map(|gpu| gpu.uuid.as_str()).collect();
        let removed: Vec<_> = self.parts.keys().filter(|uuid| !uuids.contains(&***uuid)).cloned().collect();
        let mut changes = Vec::new();
        for gpu in gpus {
            if let Some(part) = self.parts.get_mut(&gpu.uuid) {
                part.gpu = gpu.clone();
                continue;
            }
            let last = stored.remove(&gpu.uuid).unwrap_or_default();
            let part = Part::new(gpu.clone(), last.memory_pressure);
            self.parts.insert(gpu.uuid.clone(), part);
            changes.push(format!("+{}", gpu.uuid));
        }
        for uuid in removed {
            self.parts.remove(&uuid);
            changes.push(format!("-{uuid}"));
        }
        (!changes.is_empty()).then(|| changes.join(" "))
    }

    fn current(&self) -> impl Iterator<Item = (&String, Condition)> {
        self.conditions(self.state.current(), |part| part.pressure.current())
    }

    fn reported(&self) -> impl Iterator<Item = (&String, Condition)> {
        self.conditions(self.state.reported(), |part| part.pressure.reported())
    }

    fn conditions(
        &self,
        state: State,
        pressure: impl Fn(&Part) -> Option<MemoryPressure>,
    ) -> impl Iterator<Item = (&String, Condition)> {
        self.parts.iter().map(move |(uuid, part)| {
            let measured = part.measured && state == State::Ok;
            let condition = Condition { state: state.into(), memory_pressure: pressure(part).filter(|_| measured) };
            (uuid, condition)
        })
    }
}

impl Part {
    fn new(gpu: Arc<pb::Gpu>, pressure: Option<MemoryPressure>) -> Self {
        Self { gpu, pressure: Debounced::new(pressure), measured: false }
    }

    fn measure(&mut self, stats: &pb::GpuStats) {
        let memory = stats.memory_used.zip(stats.memory_total);
        let old_level = self.pressure.current();
        let level = memory.and_then(|(used, total)| Some((pressure::level(old_level, used, total)?, used, total)));
        self.measured = level.is_some();
        if let Some((level, used, total)) = level {
            self.pressure.set(Some(level), format!("{used} of {total} MiB"));
        }
    }

    fn change(&mut self, now: Instant) -> Option<PendingEvent> {
        let change = self.pressure.change(now)?;
        if change.from.is_none() && change.to == Some(MemoryPressure::Normal) {
            return None;
        }
        let (from, to) = (pressure::label(change.from), pressure::label(change.to));
        let detail = with_skipped(format!("{from} -> {to}: {}", change.reason), change.skipped);
        let kind = GpuEventKind::MemoryPressureChanged;
        let event = PendingEvent::new(&self.gpu, kind, GpuEventSource::Sampler, Some(detail));
        Some(PendingEvent { occurred_at: change.since, ..event })
    }
}

/// Event for a change of state. `None` if the change is not worth an event.
fn state_event(gpu: &Arc<pb::Gpu>, change: Change<State>) -> Option<PendingEvent> {
    use GpuEventKind::{Back, DriverChanged, Lost, ResetRequired, Responsive, Unresponsive};
    use GpuEventSource::{Handle, Watchdog};
    let (kind, source) = match (change.to, change.from) {
        (State::Unresponsive, _) => (Unresponsive, Watchdog),
        (State::Lost, _) => (Lost, Handle),
        (State::ResetRequired, _) => (ResetRequired, Handle),
        (State::DriverGone, _) => (DriverChanged, Handle),
        // An unclassified error is an answer too.
        (State::Ok | State::Unknown | State::Asleep, State::Unresponsive) => (Responsive, Watchdog),
        (State::Ok, State::Lost | State::ResetRequired | State::DriverGone) => (Back, Handle),
        (State::Ok, State::Ok | State::Asleep | State::Unknown) | (State::Asleep | State::Unknown, _) => return None,
    };
    let detail = with_skipped(change.reason, change.skipped);
    let detail = Some(detail).filter(|detail| !detail.is_empty());
    Some(PendingEvent { occurred_at: change.since, ..PendingEvent::new(gpu, kind, source, detail) })
}

fn with_skipped(text: String, skipped: u64) -> String {
    match (text.as_str(), skipped) {
        (_, 0) => text,
        ("", _) => format!("{skipped} earlier changes were not reported one by one"),
        _ => format!("{text}; {skipped} earlier changes were not reported one by one"),
    }
}

impl From<State> for GpuState {
    fn from(state: State) -> Self {
        match state {
            State::Unknown | State::DriverGone => Self::Unknown,
            State::Ok => Self::Ok,
            State::Unresponsive => Self::Unresponsive,
            State::Lost | State::ResetRequired => Self::Lost,
            State::Asleep => Self::Asleep,
        }
    }
}

impl From<GpuState> for State {
    fn from(state: GpuState) -> Self {
        match state {
            GpuState::Unspecified | GpuState::Unknown => Self::Unknown,
            GpuState::Ok => Self::Ok,
            GpuState::Unresponsive => Self::Unresponsive,
            GpuState::Lost => Self::Lost,
            GpuState::Asleep => Self::Asleep,
        }
    }
}

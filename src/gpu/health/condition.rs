//! How each GPU of this host is: what the samplers and the watchdog find out becomes a state, and
//! its changes become events.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use parking_lot::{Mutex, MutexGuard};

use super::{
    debounce::{Change, Settling},
    pressure,
};
use crate::{
    entity::gpu_event::{GpuEventKind, GpuEventSource},
    gpu::{
        events::{Happened, PciAddress, Queue},
        live::{Condition, LiveGpus},
        nvml::{Failure, Trouble},
    },
    pb::{self, GpuState, MemoryPressure},
};

/// The GPUs of this host, and how they are.
#[derive(Debug)]
pub(crate) struct Conditions {
    live: LiveGpus,
    events: Arc<Queue>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    gpus: BTreeMap<String, Tracked>,
    /// What the database has of GPUs that were not met yet.
    stored: HashMap<String, Stored>,
}

/// What was known of a GPU at the end of the process before.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stored {
    pub state: Option<GpuState>,
    pub memory_pressure: Option<MemoryPressure>,
    pub driver_version: Option<String>,
}

/// How a GPU is, more finely than clients are told.
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

/// A whole GPU.
#[derive(Debug)]
struct Tracked {
    gpu: Arc<pb::Gpu>,
    state: Settling<State>,
    /// Itself and its MIG instances, by UUID.
    parts: BTreeMap<String, Part>,
    sampled: bool,
    /// Whether its MIG instances have to be listed anew.
    relist: bool,
}

/// What has memory of its own.
#[derive(Debug)]
struct Part {
    gpu: Arc<pb::Gpu>,
    pressure: Settling<Option<MemoryPressure>>,
    /// Whether the last sample told how full it is.
    measured: bool,
}

impl Conditions {
    pub(crate) fn new(live: LiveGpus, events: Arc<Queue>, stored: HashMap<String, Stored>) -> Self {
        let known = Mutex::new(Known {
            stored,
            ..Known::default()
        });
        Self {
            live,
            events,
            known,
        }
    }

    /// A sampler has found this GPU, for the first time or again.
    pub(crate) fn introduce(&self, gpu: &Arc<pb::Gpu>) {
        let mut known = self.known();
        let stored = known.stored.remove(&gpu.uuid).unwrap_or_default();
        let mut before = stored.driver_version;
        if let Some(tracked) = known.gpus.get_mut(&gpu.uuid) {
            before.clone_from(&tracked.gpu.driver_version);
            tracked.gpu = gpu.clone();
        } else {
            let state = stored.state.map_or(State::Unknown, Into::into);
            let part = Part::new(gpu.clone(), stored.memory_pressure);
            let tracked = Tracked {
                gpu: gpu.clone(),
                state: Settling::new(state),
                parts: BTreeMap::from([(gpu.uuid.clone(), part)]),
                sampled: false,
                relist: false,
            };
            known.gpus.insert(gpu.uuid.clone(), tracked);
        }
        if let (Some(before), Some(now)) = (before, &gpu.driver_version)
            && before != *now
        {
            let detail = format!("{before} -> {now}");
            let kind = GpuEventKind::DriverChanged;
            let event = Happened::to(gpu, kind, GpuEventSource::Handle, Some(detail));
            self.events.push(event);
        }
    }

    /// A sampler has these samples: of a GPU, then of its MIG instances.
    pub(crate) fn sampled<'a>(
        &self,
        samples: impl Iterator<Item = (&'a Arc<pb::Gpu>, &'a pb::GpuStats)>,
    ) {
        let samples: Vec<_> = samples.collect();
        let Some((whole, _)) = samples.first() else {
            return;
        };
        let mut known = self.known();
        let Known { gpus, stored } = &mut *known;
        let Some(tracked) = gpus.get_mut(&whole.uuid) else {
            return;
        };
        tracked.state.set(State::Ok, "");
        let divided = tracked.divide(samples.iter().map(|(gpu, _)| *gpu), stored);
        if let Some(detail) = divided.filter(|_| tracked.sampled) {
            let kind = GpuEventKind::MigChanged;
            let event = Happened::to(whole, kind, GpuEventSource::Sampler, Some(detail));
            self.events.push(event);
        }
        tracked.sampled = true;
        for (gpu, stats) in samples {
            if let Some(part) = tracked.parts.get_mut(&gpu.uuid) {
                part.measure(stats);
            }
        }
        self.tell(tracked);
    }

    /// A sampler cannot go on with this GPU.
    pub(crate) fn failed(&self, uuid: &str, failure: &Failure) {
        let state = match failure.trouble {
            Trouble::Lost => State::Lost,
            Trouble::ResetRequired => State::ResetRequired,
            Trouble::Driver => State::DriverGone,
            Trouble::Other => State::Unknown,
        };
        self.set(uuid, |tracked| {
            // An error that says nothing does not bring a lost GPU nearer.
            let gone = matches!(tracked.state.now(), State::Lost | State::ResetRequired);
            if !(gone && state == State::Unknown) {
                tracked.state.set(state, &failure.text);
            }
        });
    }

    /// The watchdog has a look at this GPU: `hangs` says whether a call does not return.
    pub(crate) fn watch(&self, uuid: &str, hangs: impl FnOnce() -> bool) {
        self.set(uuid, |tracked| {
            // Asked here, where no sample can come in between.
            if hangs() {
                let why = "a round of calls to the driver does not return";
                tracked.state.set(State::Unresponsive, why);
            }
        });
    }

    /// The kernel says that this GPU sleeps.
    pub(crate) fn asleep(&self, uuid: &str) {
        self.set(uuid, |tracked| tracked.state.set(State::Asleep, ""));
    }

    /// NVML has said that this GPU was divided anew.
    pub(crate) fn divided(&self, uuid: &str) {
        self.set(uuid, |tracked| tracked.relist = true);
    }

    /// Whether the MIG instances of this GPU have to be listed anew; it is said once.
    pub(crate) fn take_relist(&self, uuid: &str) -> bool {
        let mut known = self.known();
        let tracked = known.gpus.get_mut(uuid);
        tracked.is_some_and(|tracked| std::mem::take(&mut tracked.relist))
    }

    /// This GPU, if it is sampled well.
    pub(crate) fn sound(&self, uuid: &str) -> Option<Arc<pb::Gpu>> {
        let known = self.known();
        let tracked = known.gpus.get(uuid)?;
        (tracked.state.now() == State::Ok).then(|| tracked.gpu.clone())
    }

    /// The GPU with this address: not one that is lost, if another one has taken its place.
    pub(crate) fn at(&self, address: PciAddress) -> Option<Arc<pb::Gpu>> {
        let known = self.known();
        let is_at = |tracked: &&Tracked| {
            let bus_id = tracked.gpu.pci_bus_id.as_deref();
            bus_id.and_then(PciAddress::parse) == Some(address)
        };
        let there = known.gpus.values().filter(is_at);
        let there = there.max_by_key(|tracked| tracked.state.now() != State::Lost);
        there.map(|tracked| tracked.gpu.clone())
    }

    /// How every GPU and MIG instance was last told to be, by UUID.
    pub(crate) fn told(&self) -> Vec<(String, Condition)> {
        let known = self.known();
        let told = known.gpus.values().flat_map(Tracked::told);
        let told = told.filter(|(uuid, _)| self.may_tell(uuid));
        told.map(|(uuid, told)| (uuid.clone(), told)).collect()
    }

    /// Returns true if it is for this host to say how this GPU is: no other one tells of it.
    pub(crate) fn may_tell(&self, uuid: &str) -> bool {
        !self.live.is_refused(uuid)
    }

    fn set(&self, uuid: &str, change: impl FnOnce(&mut Tracked)) {
        if let Some(tracked) = self.known().gpus.get_mut(uuid) {
            change(tracked);
            self.tell(tracked);
        }
    }

    /// Tells what is to be told of a GPU.
    fn tell(&self, tracked: &mut Tracked) {
        let now = Instant::now();
        let state = tracked.state.change(now);
        let pressures = tracked.parts.values_mut().map(|part| part.change(now));
        let pressures: Vec<_> = pressures.collect();
        // Whoever is told of a change may ask at once.
        self.live.set_conditions(tracked.now());
        if state.is_none() && pressures.iter().all(Option::is_none) {
            return;
        }
        let after = tracked.told();
        let after: Vec<_> = after.map(|(uuid, told)| (uuid.clone(), told)).collect();
        if let Some(event) = state.and_then(|change| of_state(&tracked.gpu, change)) {
            let after = after.clone();
            self.events.push(Happened { after, ..event });
        }
        // In the order of the parts, as the others.
        for (event, after) in pressures.into_iter().zip(&after) {
            if let Some(event) = event {
                let after = vec![after.clone()];
                self.events.push(Happened { after, ..event });
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock()
    }
}

impl Tracked {
    /// Takes over which parts there are. Returns which have come and gone, for people.
    fn divide<'a>(
        &mut self,
        now: impl Iterator<Item = &'a Arc<pb::Gpu>>,
        stored: &mut HashMap<String, Stored>,
    ) -> Option<String> {
        let now: Vec<_> = now.collect();
        let uuids: HashSet<_> = now.iter().map(|gpu| gpu.uuid.as_str()).collect();
        let gone = self.parts.keys().filter(|uuid| !uuids.contains(&***uuid));
        let gone: Vec<_> = gone.cloned().collect();
        let mut changes = Vec::new();
        for gpu in now {
            if let Some(part) = self.parts.get_mut(&gpu.uuid) {
                part.gpu = gpu.clone();
                continue;
            }
            let before = stored.remove(&gpu.uuid).unwrap_or_default();
            let part = Part::new(gpu.clone(), before.memory_pressure);
            self.parts.insert(gpu.uuid.clone(), part);
            changes.push(format!("+{}", gpu.uuid));
        }
        for uuid in gone {
            self.parts.remove(&uuid);
            changes.push(format!("-{uuid}"));
        }
        (!changes.is_empty()).then(|| changes.join(" "))
    }

    fn now(&self) -> impl Iterator<Item = (&String, Condition)> {
        self.conditions(self.state.now(), |part| part.pressure.now())
    }

    fn told(&self) -> impl Iterator<Item = (&String, Condition)> {
        self.conditions(self.state.told(), |part| part.pressure.told())
    }

    fn conditions(
        &self,
        state: State,
        pressure: impl Fn(&Part) -> Option<MemoryPressure>,
    ) -> impl Iterator<Item = (&String, Condition)> {
        self.parts.iter().map(move |(uuid, part)| {
            let measured = part.measured && state == State::Ok;
            let condition = Condition {
                state: state.into(),
                memory_pressure: pressure(part).filter(|_| measured),
            };
            (uuid, condition)
        })
    }
}

impl Part {
    fn new(gpu: Arc<pb::Gpu>, pressure: Option<MemoryPressure>) -> Self {
        Self {
            gpu,
            pressure: Settling::new(pressure),
            measured: false,
        }
    }

    fn measure(&mut self, stats: &pb::GpuStats) {
        let memory = stats.memory_used.zip(stats.memory_total);
        let before = self.pressure.now();
        let level = memory
            .and_then(|(used, total)| Some((pressure::level(before, used, total)?, used, total)));
        self.measured = level.is_some();
        if let Some((level, used, total)) = level {
            self.pressure
                .set(Some(level), format!("{used} of {total} MiB"));
        }
    }

    fn change(&mut self, now: Instant) -> Option<Happened> {
        let change = self.pressure.change(now)?;
        if change.from.is_none() && change.to == Some(MemoryPressure::Normal) {
            return None;
        }
        let (from, to) = (pressure::word(change.from), pressure::word(change.to));
        let detail = with_left_out(format!("{from} -> {to}: {}", change.why), change.left_out);
        let kind = GpuEventKind::MemoryPressureChanged;
        let event = Happened::to(&self.gpu, kind, GpuEventSource::Sampler, Some(detail));
        Some(Happened {
            at: change.at,
            ..event
        })
    }
}

/// What is told of a change of a state, if anything.
fn of_state(gpu: &Arc<pb::Gpu>, change: Change<State>) -> Option<Happened> {
    use GpuEventKind::{Back, DriverChanged, Lost, ResetRequired, Responsive, Unresponsive};
    use GpuEventSource::{Handle, Watchdog};
    let (kind, source) = match (change.to, change.from) {
        (State::Unresponsive, _) => (Unresponsive, Watchdog),
        (State::Lost, _) => (Lost, Handle),
        (State::ResetRequired, _) => (ResetRequired, Handle),
        (State::DriverGone, _) => (DriverChanged, Handle),
        // An error that says nothing is an answer too.
        (State::Ok | State::Unknown | State::Asleep, State::Unresponsive) => (Responsive, Watchdog),
        (State::Ok, State::Lost | State::ResetRequired | State::DriverGone) => (Back, Handle),
        (State::Ok, State::Ok | State::Asleep | State::Unknown)
        | (State::Asleep | State::Unknown, _) => return None,
    };
    let detail = with_left_out(change.why, change.left_out);
    let detail = Some(detail).filter(|detail| !detail.is_empty());
    Some(Happened {
        at: change.at,
        ..Happened::to(gpu, kind, source, detail)
    })
}

fn with_left_out(text: String, left_out: u64) -> String {
    match (text.as_str(), left_out) {
        (_, 0) => text,
        ("", _) => format!("{left_out} changes before it were not told one by one"),
        _ => format!("{text}; {left_out} changes before it were not told one by one"),
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

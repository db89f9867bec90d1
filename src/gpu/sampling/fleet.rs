//! Discovers the GPUs of this host, starts a sampler for each, and runs the watchdog.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{Arc, atomic::Ordering, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use super::{
    context::SamplingContext,
    event_listener,
    sampler::Sampler,
    sampler_state::{HANG_TIMEOUT, SamplerState},
};
use crate::{
    entity::gpu_event::{GpuEventKind, GpuEventSource},
    gpu::{events::PendingEvent, nvml::Session},
    pb,
};

/// Time between two discoveries. A replacement GPU is found within 10 s, including the wait for its
/// first answers.
const DISCOVERY_INTERVAL: Duration = Duration::from_secs(5);

/// Time between two attempts to open NVML for a discovery where NVML does not work, lists no GPU,
/// or would wake a GPU.
const OPEN_INTERVAL: Duration = Duration::from_mins(1);

/// Minimum time between two samples that say that a GPU does not answer.
const TIMED_OUT_SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// Time between two checks of the watchdog.
const WATCHDOG_INTERVAL: Duration = Duration::from_millis(100);

/// Time that the first report waits for GPUs that are slow to answer.
const FIRST_ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Discovers GPUs and starts their samplers.
struct Fleet {
    context: Arc<SamplingContext>,
    samplers: Arc<Samplers>,
    /// Last logged reason why there are no GPUs.
    last_error: Option<String>,
    /// Set after the first discovery.
    has_discovered: bool,
    /// UUIDs by index, as last listed by NVML.
    uuids: Vec<Option<String>>,
    /// Time of the last attempt to open NVML for a discovery.
    last_opened: Instant,
}

/// Watchdog of the samplers. Makes no driver call, so that no driver call can block it.
struct Watchdog<H> {
    context: Arc<SamplingContext>,
    samplers: Arc<Samplers>,
    health: H,
    serving: bool,
}

/// All samplers, including those about to end.
#[derive(Default)]
struct Samplers(Mutex<Vec<SamplerHandle>>);

/// A running sampler.
struct SamplerHandle {
    thread: JoinHandle<()>,
    state: Arc<SamplerState>,
    /// Set if the hang was logged.
    hang_logged: bool,
    /// Time of the last sample that said that the GPU does not answer. `None` while the GPU
    /// answers.
    timed_out_sample_at: Option<Instant>,
    /// Set if an event reported the hang before the UUID of the GPU was known.
    unidentified_hang: bool,
}

/// Starts the threads. `report` receives a human-readable result of the first discovery. `health`
/// is called when the first GPU begins, or the last GPU ceases, to be sampled.
pub(crate) fn spawn(
    context: Arc<SamplingContext>,
    health: impl Fn(bool) + Send + 'static,
    report: oneshot::Sender<String>,
) {
    let samplers = Arc::new(Samplers::default());
    let watchdog = Watchdog { context: context.clone(), samplers: samplers.clone(), health, serving: false };
    let fleet = Fleet {
        context,
        samplers,
        last_error: None,
        has_discovered: false,
        uuids: Vec::new(),
        last_opened: Instant::now(),
    };
    let thread = |name: &str| thread::Builder::new().name(name.into());
    let watchdog_thread = thread("gpu-watchdog").spawn(move || watchdog.run());
    // A thread of its own, because opening NVML may take seconds or block for ever.
    let fleet_thread = thread("gpu-fleet").spawn(move || fleet.run(report));
    for thread in [watchdog_thread, fleet_thread] {
        if let Err(error) = thread {
            tracing::error!(%error, "the thread that finds GPUs or the watchdog could not be started");
        }
    }
}

impl Fleet {
    fn run(mut self, report: oneshot::Sender<String>) {
        let result = self.discover();
        self.has_discovered = true;
        if let Err(result) = report.send(result) {
            tracing::info!(found = result, "NVML has answered");
        }
        while !self.context.stop.wait_until(Instant::now() + DISCOVERY_INTERVAL) {
            if self.may_discover() {
                self.discover();
            }
        }
    }

    /// Returns true if a discovery costs few calls, or is due in spite of its cost.
    fn may_discover(&mut self) -> bool {
        if self.context.library.current_session().is_some() {
            return true;
        }
        let cheap = self.last_error.is_none() && self.samplers.all_awake();
        if cheap || self.last_opened.elapsed() >= OPEN_INTERVAL {
            self.last_opened = Instant::now();
            return true;
        }
        false
    }

    /// Starts missing samplers, and ends the samplers of replaced GPUs. Returns a human-readable
    /// result.
    fn discover(&mut self) -> String {
        // Samplers share this session, so that NVML is opened once.
        let session = self.context.library.open();
        let counted = session.and_then(|session| {
            let count = session.count()?;
            Ok((session, count))
        });
        let (session, count) = match counted {
            Ok(counted) => counted,
            Err(failure) => {
                let message = format!("no GPUs: {}; NVML is tried again every minute", failure.text);
                // The result of the first discovery is logged at the start.
                if self.has_discovered && self.last_error.as_ref() != Some(&failure.text) {
                    tracing::warn!("{message}");
                }
                self.last_error = Some(failure.text);
                return message;
            }
        };
        self.context.gpu_count.store(count, Ordering::Relaxed);
        let uuids = self.list_uuids(&session, count);
        self.end_replaced(&session, &uuids);
        let (sender, answers) = mpsc::channel();
        self.launch_missing(&uuids, &sender);
        drop(sender);
        self.uuids = uuids;
        let gpus = summary(count, &answers);
        if self.last_error.take().is_some() {
            tracing::info!(found = gpus, "NVML is available");
        }
        gpus
    }

    /// UUIDs by index. `None` where NVML gives no UUID or no sampler runs, because the first call
    /// about a GPU may block for ever and is left to the sampler's thread.
    fn list_uuids(&self, session: &Session, count: u32) -> Vec<Option<String>> {
        // A call about a hanging GPU would hang too, and a call about a sleeping GPU would wake it.
        let answers: HashMap<_, _> = {
            let samplers = self.samplers.lock();
            let states = samplers.iter().map(|sampler| &sampler.state);
            let is_silent = |state: &SamplerState| state.is_asleep() || state.is_hanging();
            let answer = |state: &Arc<SamplerState>| {
                let silent = is_silent(state);
                let known = state.uuid().filter(|_| silent).map(ToString::to_string);
                (state.index(), (!silent, known))
            };
            states.map(answer).collect()
        };
        let uuid = |index| match answers.get(&index)? {
            (true, _) => session.uuid_at(index),
            (false, known) => known.clone(),
        };
        (0..count).map(uuid).collect()
    }

    /// Ends the samplers of GPUs whose index another GPU has taken, and samplers that found a GPU
    /// with a sampler. A GPU that is merely missing counts as lost, and its sampler keeps looking.
    /// Errors of NVML prove nothing.
    fn end_replaced(&self, session: &Session, uuids: &[Option<String>]) {
        let mut missing = Vec::new();
        let samplers = self.samplers.lock();
        let states = samplers.iter().map(|sampler| &sampler.state);
        let listed_uuid = |state: &SamplerState| {
            let index = usize::try_from(state.index()).unwrap_or(usize::MAX);
            uuids.get(index)?.as_deref()
        };
        for state in states.clone().filter(|state| !state.is_replaced()) {
            let Some(uuid) = state.uuid() else {
                let is_taken = |other: &str| states.clone().any(|state| state.uuid() == Some(other));
                if !state.is_hanging() && listed_uuid(state).is_some_and(is_taken) {
                    state.mark_replaced();
                }
                continue;
            };
            let mut indexed = (0..).zip(uuids);
            if let Some((index, _)) = indexed.find(|(_, other)| other.as_deref() == Some(uuid)) {
                state.set_index(index);
            } else if listed_uuid(state).is_some() {
                missing.push(state.clone());
            }
        }
        drop(samplers);
        // Released, because the watchdog needs the lock.
        for state in missing {
            if state.uuid().is_some_and(|uuid| session.is_missing(uuid)) {
                let (gpu, index) = (state.name(), state.index());
                tracing::warn!(gpu.name = gpu, index, "a GPU is gone, and another GPU has its index");
                state.mark_replaced();
            }
        }
    }

    fn launch_missing(&self, uuids: &[Option<String>], answers: &mpsc::Sender<(u32, Result<String, String>)>) {
        let mut samplers = self.samplers.lock();
        samplers.retain(|sampler| !sampler.thread.is_finished());
        for (index, uuid) in (0..).zip(uuids) {
            let mut handles = samplers.iter();
            if let Some(sampler) = handles.find(|sampler| sampler.samples(index, uuid.as_deref())) {
                let last_uuid = usize::try_from(index).ok().and_then(|index| self.uuids.get(index));
                if uuid.is_some() && last_uuid != Some(uuid) {
                    sampler.state.request_retry();
                }
                continue;
            }
            match self.launch(index, answers.clone()) {
                Ok(started) => samplers.push(started),
                Err(error) => {
                    tracing::error!(index, %error, "the sampler of a GPU could not be started");
                }
            }
        }
    }

    fn launch(&self, index: u32, answers: mpsc::Sender<(u32, Result<String, String>)>) -> io::Result<SamplerHandle> {
        let state = Arc::new(SamplerState::new(index));
        let sampler = Sampler::new(self.context.clone(), index, state.clone(), answers);
        let thread = thread::Builder::new().name(format!("gpu-{index}")).spawn(move || sampler.run())?;
        if let Err(error) = event_listener::spawn(self.context.clone(), index, &state) {
            tracing::error!(index, %error, "the thread that listens to a GPU could not be started");
        }
        Ok(SamplerHandle { thread, state, hang_logged: false, timed_out_sample_at: None, unidentified_hang: false })
    }
}

impl<H: Fn(bool)> Watchdog<H> {
    fn run(mut self) {
        while !self.context.stop.wait_until(Instant::now() + WATCHDOG_INTERVAL) {
            self.check_samplers();
        }
    }

    fn check_samplers(&mut self) {
        let mut samplers = self.samplers.lock();
        for sampler in samplers.iter_mut() {
            let state = &sampler.state;
            let is_hanging = state.is_hanging();
            if let Some(uuid) = state.uuid() {
                self.context.conditions.record_hang(uuid, || state.is_hanging());
            }
            let unidentified_hang = is_hanging && (state.uuid().is_none() || sampler.unidentified_hang);
            if unidentified_hang != sampler.unidentified_hang {
                sampler.unidentified_hang = unidentified_hang;
                self.push_unidentified_event(state.index(), unidentified_hang);
            }
            if is_hanging != sampler.hang_logged {
                sampler.hang_logged = is_hanging;
                let gpu = sampler.state.name();
                if is_hanging {
                    let limit_s = HANG_TIMEOUT.as_secs_f64();
                    tracing::warn!(
                        gpu.name = gpu,
                        limit_s,
                        "a GPU does not answer; the sampler waits for the driver call"
                    );
                } else {
                    tracing::info!(gpu.name = gpu, "a GPU answers again");
                }
            }
            if !is_hanging {
                sampler.timed_out_sample_at = None;
                continue;
            }
            let interval = self.context.interval.max(TIMED_OUT_SAMPLE_INTERVAL);
            if sampler.timed_out_sample_at.is_none_or(|published| published.elapsed() >= interval)
                && let Some(uuid) = sampler.state.uuid()
            {
                sampler.timed_out_sample_at = Some(Instant::now());
                self.context.publish_timed_out(uuid);
            }
        }
        let serving = samplers.iter().any(|sampler| sampler.state.is_working());
        drop(samplers);
        if serving != self.serving {
            self.serving = serving;
            (self.health)(serving);
        }
    }
}

impl<H> Watchdog<H> {
    /// Queues an event that a GPU hangs or answers again, for a GPU known only by index.
    fn push_unidentified_event(&self, index: u32, is_hanging: bool) {
        let gpu = pb::Gpu {
            host: self.context.host_name.clone(),
            gpu_index: i32::try_from(index).ok(),
            ..Default::default()
        };
        let (kind, detail) = if is_hanging {
            let reason = "the first calls about the GPU do not return";
            (GpuEventKind::Unresponsive, Some(reason.to_string()))
        } else {
            (GpuEventKind::Responsive, None)
        };
        let source = GpuEventSource::Watchdog;
        let event = PendingEvent::new(&Arc::new(gpu), kind, source, detail);
        self.context.events.push(event);
    }
}

impl Samplers {
    fn lock(&self) -> MutexGuard<'_, Vec<SamplerHandle>> {
        self.0.lock()
    }

    /// Returns true if there are samplers and no GPU sleeps.
    fn all_awake(&self) -> bool {
        let samplers = self.lock();
        let mut states = samplers.iter().map(|sampler| &sampler.state);
        !samplers.is_empty() && states.all(|state| !state.is_asleep())
    }
}

impl SamplerHandle {
    /// Returns true if this sampler has the GPU with the UUID, or with the index while a UUID is
    /// unknown.
    fn samples(&self, index: u32, uuid: Option<&str>) -> bool {
        if self.state.is_replaced() {
            return false;
        }
        match (self.state.uuid(), uuid) {
            (Some(own), Some(uuid)) => own == uuid,
            (None, _) | (_, None) => self.state.index() == index,
        }
    }
}

/// Human-readable list of the GPUs, after a short wait for the first answers of the samplers.
fn summary(count: u32, answers: &mpsc::Receiver<(u32, Result<String, String>)>) -> String {
    let deadline = Instant::now() + FIRST_ANSWER_TIMEOUT;
    let mut by_index = BTreeMap::new();
    while let Ok((index, answer)) = answers.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        by_index.insert(index, answer);
    }
    let answer = (0..count).map(|index| match by_index.remove(&index) {
        Some(Ok(name)) => name,
        Some(Err(reason)) => format!("GPU {index}, which cannot be sampled: {reason}"),
        None => format!("GPU {index}, which does not answer"),
    });
    let names = answer.collect::<Vec<_>>().join(", ");
    match count {
        0 => "no GPUs: NVML knows of none".into(),
        1 => format!("1 GPU: {names}"),
        count => format!("{count} GPUs: {names}"),
    }
}

//! Finds the GPUs of this host, gives each a sampler, and watches over them.

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
    event_listener,
    pulse::{HANGS_AFTER, Pulse},
    sampler::{Host, Sampler},
};
use crate::{
    entity::gpu_event::{GpuEventKind, GpuEventSource},
    gpu::{events::Happened, nvml::Session},
    pb,
};

/// Time between two looks at which GPUs there are: a GPU that takes the place of another is found within 10 s, the
/// wait for its first answers included.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Time between two attempts to open NVML for such a look where NVML does not work, knows of no GPU, or would wake one.
const OPEN_EVERY: Duration = Duration::from_mins(1);

/// How often, at most, it is told that a GPU that does not answer has no values.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// How often to look after the samplers.
const WATCH_EVERY: Duration = Duration::from_millis(100);

/// How long the first report waits for GPUs that are slow to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// Finds GPUs and starts their samplers.
struct Fleet {
    host: Arc<Host>,
    samplers: Arc<Samplers>,
    /// Why there are no GPUs, as last logged.
    trouble: Option<String>,
    /// Whether what was found first is known.
    looked: bool,
    /// The UUIDs by index, as NVML told them last.
    listed: Vec<Option<String>>,
    /// Time at which NVML was last opened for a look.
    opened: Instant,
}

/// Watches over the samplers. It makes no call to the driver, so that nothing can hold it up.
struct Watchdog<H> {
    host: Arc<Host>,
    samplers: Arc<Samplers>,
    health: H,
    serving: bool,
}

/// The samplers, those that are about to end included.
#[derive(Default)]
struct Samplers(Mutex<Vec<Started>>);

/// A sampler at work.
struct Started {
    thread: JoinHandle<()>,
    pulse: Arc<Pulse>,
    /// Whether it was logged that it hangs.
    hangs: bool,
    /// When it was last told that there are no values because of that.
    told: Option<Instant>,
    /// Whether it was told to hang before it was known which GPU it has.
    nameless: bool,
}

/// Starts the threads. They send `report` once they have looked for the GPUs, for people, and tell
/// `health` whenever the first GPU begins, or the last one ceases, to be sampled.
pub(crate) fn spawn(
    host: Arc<Host>,
    health: impl Fn(bool) + Send + 'static,
    report: oneshot::Sender<String>,
) {
    let samplers = Arc::new(Samplers::default());
    let watchdog = Watchdog {
        host: host.clone(),
        samplers: samplers.clone(),
        health,
        serving: false,
    };
    let fleet = Fleet {
        host,
        samplers,
        trouble: None,
        looked: false,
        listed: Vec::new(),
        opened: Instant::now(),
    };
    let thread = |name: &str| thread::Builder::new().name(name.into());
    let watching = thread("gpu-watchdog").spawn(move || watchdog.run());
    // Its own thread: to open NVML may take seconds, or for ever.
    let looking = thread("gpu-fleet").spawn(move || fleet.run(report));
    for thread in [watching, looking] {
        if let Err(error) = thread {
            tracing::error!(%error, "a thread that looks for GPUs or after them could not be started");
        }
    }
}

impl Fleet {
    fn run(mut self, report: oneshot::Sender<String>) {
        let found = self.look();
        self.looked = true;
        if let Err(found) = report.send(found) {
            tracing::info!(found, "NVML has answered");
        }
        while !self.host.stop.wait_until(Instant::now() + LOOK_EVERY) {
            if self.may_look() {
                self.look();
            }
        }
    }

    /// Returns true if a look costs no more than a few calls, or is due in spite of its cost.
    fn may_look(&mut self) -> bool {
        if self.host.library.joined().is_some() {
            return true;
        }
        let cheap = self.trouble.is_none() && self.samplers.are_awake();
        if cheap || self.opened.elapsed() >= OPEN_EVERY {
            self.opened = Instant::now();
            return true;
        }
        false
    }

    /// Gives every GPU that has none a sampler, and ends those of GPUs that were replaced. Returns what
    /// was found, for people.
    fn look(&mut self) -> String {
        // The samplers join this session, so that NVML is opened once.
        let session = self.host.library.open();
        let found = session.and_then(|session| {
            let count = session.count()?;
            Ok((session, count))
        });
        let (session, count) = match found {
            Ok(found) => found,
            Err(failure) => {
                let found = format!(
                    "no GPUs: {}; NVML is tried again every minute",
                    failure.text
                );
                // What is found first is told at the start.
                if self.looked && self.trouble.as_ref() != Some(&failure.text) {
                    tracing::warn!("{found}");
                }
                self.trouble = Some(failure.text);
                return found;
            }
        };
        self.host.count.store(count, Ordering::Relaxed);
        let listed = self.list(&session, count);
        self.end_replaced(&session, &listed);
        let (tell, told) = mpsc::channel();
        self.launch_missing(&listed, &tell);
        drop(tell);
        self.listed = listed;
        let found = summary(count, &told);
        if self.trouble.take().is_some() {
            tracing::info!(found, "NVML is there");
        }
        found
    }

    /// The UUIDs by index; nothing where NVML does not tell one, and where there is no sampler: to ask a GPU
    /// for the first time may take for ever, and is left to a thread of its own.
    fn list(&self, session: &Session, count: u32) -> Vec<Option<String>> {
        // Whoever asks one that hangs would hang, too, and one that sleeps would wake up.
        let asked: HashMap<_, _> = {
            let samplers = self.samplers.lock();
            let pulses = samplers.iter().map(|sampler| &sampler.pulse);
            let silent = |pulse: &Pulse| pulse.is_asleep() || pulse.hangs();
            let place = |pulse: &Arc<Pulse>| {
                let silent = silent(pulse);
                let known = pulse.uuid().filter(|_| silent).map(ToString::to_string);
                (pulse.index(), (!silent, known))
            };
            pulses.map(place).collect()
        };
        let uuid = |index| match asked.get(&index)? {
            (true, _) => session.uuid_at(index),
            (false, known) => known.clone(),
        };
        (0..count).map(uuid).collect()
    }

    /// Ends the samplers of GPUs that are gone and whose index another GPU has, and those that have found
    /// none because another sampler has theirs. A GPU that is only gone is lost, and looked for by its
    /// sampler; an error of NVML says nothing.
    fn end_replaced(&self, session: &Session, listed: &[Option<String>]) {
        let mut missing = Vec::new();
        let samplers = self.samplers.lock();
        let pulses = samplers.iter().map(|sampler| &sampler.pulse);
        let at = |pulse: &Pulse| {
            let place = usize::try_from(pulse.index()).unwrap_or(usize::MAX);
            listed.get(place)?.as_deref()
        };
        for pulse in pulses.clone().filter(|pulse| !pulse.is_replaced()) {
            let Some(uuid) = pulse.uuid() else {
                let is_taken =
                    |other: &str| pulses.clone().any(|pulse| pulse.uuid() == Some(other));
                if !pulse.hangs() && at(pulse).is_some_and(is_taken) {
                    pulse.replace();
                }
                continue;
            };
            let mut places = (0..).zip(listed);
            if let Some((index, _)) = places.find(|(_, other)| other.as_deref() == Some(uuid)) {
                pulse.set_index(index);
            } else if at(pulse).is_some() {
                missing.push(pulse.clone());
            }
        }
        drop(samplers);
        // Without the lock, which the watchdog needs.
        for pulse in missing {
            if pulse.uuid().is_some_and(|uuid| session.lacks(uuid)) {
                let (gpu, index) = (pulse.name(), pulse.index());
                tracing::warn!(
                    gpu.name = gpu,
                    index,
                    "a GPU is gone, and another one has its index"
                );
                pulse.replace();
            }
        }
    }

    fn launch_missing(
        &self,
        listed: &[Option<String>],
        tell: &mpsc::Sender<(u32, Result<String, String>)>,
    ) {
        let mut samplers = self.samplers.lock();
        samplers.retain(|sampler| !sampler.thread.is_finished());
        for (index, uuid) in (0..).zip(listed) {
            let mut there = samplers.iter();
            if let Some(sampler) = there.find(|sampler| sampler.has(index, uuid.as_deref())) {
                let before = usize::try_from(index)
                    .ok()
                    .and_then(|at| self.listed.get(at));
                if uuid.is_some() && before != Some(uuid) {
                    sampler.pulse.nudge();
                }
                continue;
            }
            match self.launch(index, tell.clone()) {
                Ok(started) => samplers.push(started),
                Err(error) => {
                    tracing::error!(index, %error, "the sampler of a GPU could not be started");
                }
            }
        }
    }

    fn launch(
        &self,
        index: u32,
        found: mpsc::Sender<(u32, Result<String, String>)>,
    ) -> io::Result<Started> {
        let pulse = Arc::new(Pulse::new(index));
        let sampler = Sampler::new(self.host.clone(), index, pulse.clone(), found);
        let thread = thread::Builder::new()
            .name(format!("gpu-{index}"))
            .spawn(move || sampler.run())?;
        if let Err(error) = event_listener::spawn(self.host.clone(), index, &pulse) {
            tracing::error!(index, %error, "the thread that listens to a GPU could not be started");
        }
        Ok(Started {
            thread,
            pulse,
            hangs: false,
            told: None,
            nameless: false,
        })
    }
}

impl<H: Fn(bool)> Watchdog<H> {
    fn run(mut self) {
        while !self.host.stop.wait_until(Instant::now() + WATCH_EVERY) {
            self.watch();
        }
    }

    fn watch(&mut self) {
        let mut samplers = self.samplers.lock();
        for sampler in samplers.iter_mut() {
            let pulse = &sampler.pulse;
            let hangs = pulse.hangs();
            if let Some(uuid) = pulse.uuid() {
                self.host.conditions.watch(uuid, || pulse.hangs());
            }
            let nameless = hangs && (pulse.uuid().is_none() || sampler.nameless);
            if nameless != sampler.nameless {
                sampler.nameless = nameless;
                self.tell_nameless(pulse.index(), nameless);
            }
            if hangs != sampler.hangs {
                sampler.hangs = hangs;
                let gpu = sampler.pulse.name();
                if hangs {
                    let limit_s = HANGS_AFTER.as_secs_f64();
                    tracing::warn!(
                        gpu.name = gpu,
                        limit_s,
                        "a GPU does not answer; it is waited for"
                    );
                } else {
                    tracing::info!(gpu.name = gpu, "a GPU answers again");
                }
            }
            if !hangs {
                sampler.told = None;
                continue;
            }
            let due = self.host.interval.max(TELL_EVERY);
            if sampler.told.is_none_or(|told| told.elapsed() >= due)
                && let Some(uuid) = sampler.pulse.uuid()
            {
                sampler.told = Some(Instant::now());
                self.host.publish_timed_out(uuid);
            }
        }
        let serving = samplers.iter().any(|sampler| sampler.pulse.works());
        drop(samplers);
        if serving != self.serving {
            self.serving = serving;
            (self.health)(serving);
        }
    }
}

impl<H> Watchdog<H> {
    /// Tells that a GPU hangs, or no longer does, of which nothing but the index is known.
    fn tell_nameless(&self, index: u32, hangs: bool) {
        let gpu = pb::Gpu {
            host: self.host.name.clone(),
            gpu_index: i32::try_from(index).ok(),
            ..Default::default()
        };
        let (kind, detail) = if hangs {
            let why = "the first calls about it do not return";
            (GpuEventKind::Unresponsive, Some(why.to_string()))
        } else {
            (GpuEventKind::Responsive, None)
        };
        let source = GpuEventSource::Watchdog;
        let event = Happened::to(&Arc::new(gpu), kind, source, detail);
        self.host.events.push(event);
    }
}

impl Samplers {
    fn lock(&self) -> MutexGuard<'_, Vec<Started>> {
        self.0.lock()
    }

    /// Returns true if there are samplers, and no GPU of theirs sleeps.
    fn are_awake(&self) -> bool {
        let samplers = self.lock();
        let mut pulses = samplers.iter().map(|sampler| &sampler.pulse);
        !samplers.is_empty() && pulses.all(|pulse| !pulse.is_asleep())
    }
}

impl Started {
    /// Returns true if this is the sampler of the GPU that has this index and, as far as NVML tells it, this UUID.
    fn has(&self, index: u32, uuid: Option<&str>) -> bool {
        if self.pulse.is_replaced() {
            return false;
        }
        match (self.pulse.uuid(), uuid) {
            (Some(own), Some(uuid)) => own == uuid,
            (None, _) | (_, None) => self.pulse.index() == index,
        }
    }
}

/// Waits a moment for the samplers to say which GPUs they have.
fn summary(count: u32, told: &mpsc::Receiver<(u32, Result<String, String>)>) -> String {
    let until = Instant::now() + ANSWER_WITHIN;
    let mut answers = BTreeMap::new();
    while let Ok((index, answer)) =
        told.recv_timeout(until.saturating_duration_since(Instant::now()))
    {
        answers.insert(index, answer);
    }
    let names = (0..count).map(|index| match answers.remove(&index) {
        Some(Ok(name)) => name,
        Some(Err(reason)) => format!("GPU {index}, which cannot be sampled: {reason}"),
        None => format!("GPU {index}, which does not answer"),
    });
    let names = names.collect::<Vec<_>>().join(", ");
    match count {
        0 => "no GPUs: NVML knows of none".into(),
        1 => format!("1 GPU: {names}"),
        count => format!("{count} GPUs: {names}"),
    }
}

//! Finds the GPUs of this host, gives each a sampler, and watches over them.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    events::{Happened, listener},
    sampler::{HANGS_AFTER, Host, Pulse, Sampler},
};
use crate::{
    entity::gpu_event::{GpuEventKind, GpuEventSource},
    pb,
};

/// How often to look for GPUs, and for NVML where there is none.
const LOOK_EVERY: Duration = Duration::from_mins(1);

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
}

/// Watches over the samplers. It makes no call to the driver, so that nothing can hold it up.
struct Watchdog<H> {
    host: Arc<Host>,
    samplers: Arc<Samplers>,
    health: H,
    serving: bool,
}

/// The samplers by the index of their GPU.
#[derive(Default)]
struct Samplers(Mutex<BTreeMap<u32, Started>>);

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
pub(super) fn spawn(
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
            self.look();
        }
    }

    /// Gives every GPU that has none a sampler. Returns what was found, for people.
    fn look(&mut self) -> String {
        // The samplers join this session, so that NVML is opened once.
        let session = self.host.library.open();
        let count = session
            .as_ref()
            .map_err(Clone::clone)
            .and_then(|session| session.count());
        let count = match count {
            Ok(count) => count,
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
        let (tell, told) = mpsc::channel();
        let mut samplers = self.samplers.lock();
        samplers.retain(|_, sampler| !sampler.thread.is_finished());
        for index in 0..count {
            if samplers.contains_key(&index) {
                continue;
            }
            match self.launch(index, tell.clone()) {
                Ok(started) => {
                    samplers.insert(index, started);
                }
                Err(error) => {
                    tracing::error!(index, %error, "the sampler of a GPU could not be started");
                }
            }
        }
        drop((samplers, tell));
        let found = summary(count, &told);
        if self.trouble.take().is_some() {
            tracing::info!(found, "NVML is there");
        }
        found
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
        if let Err(error) = listener::spawn(self.host.clone(), index, &pulse) {
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
        for (index, sampler) in samplers.iter_mut() {
            let pulse = &sampler.pulse;
            let hangs = pulse.hangs();
            if let Some(uuid) = pulse.uuid() {
                self.host.conditions.watch(uuid, || pulse.hangs());
            }
            let nameless = hangs && (pulse.uuid().is_none() || sampler.nameless);
            if nameless != sampler.nameless {
                sampler.nameless = nameless;
                self.tell_nameless(*index, nameless);
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
        let serving = samplers.values().any(|sampler| sampler.pulse.works());
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
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Started>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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

//! Finds the GPUs of this host, gives each a sampler, and watches over them.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, atomic::Ordering, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::sampler::{HANGS_AFTER, Host, Pulse, Sampler};

/// How often to look for GPUs, and for NVML where there is none.
const LOOK_EVERY: Duration = Duration::from_mins(1);

/// How often to look after the samplers.
const WATCH_EVERY: Duration = Duration::from_millis(200);

/// How long the first report waits for GPUs that are slow to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// The samplers by the index of their GPU.
struct Fleet<H> {
    host: Arc<Host>,
    samplers: BTreeMap<u32, Started>,
    health: H,
    serving: bool,
    /// Why there are no GPUs, as last logged.
    trouble: Option<String>,
    /// Whether what was found first is known.
    looked: bool,
}

/// A sampler at work.
struct Started {
    thread: JoinHandle<()>,
    pulse: Arc<Pulse>,
    /// Whether it was logged that it hangs.
    hangs: bool,
}

/// Starts the thread. It sends `report` once it has looked for the GPUs, for people, and tells
/// `health` whenever the first GPU begins, or the last one ceases, to be sampled.
pub(super) fn spawn(
    host: Arc<Host>,
    health: impl Fn(bool) + Send + 'static,
    report: oneshot::Sender<String>,
) {
    let fleet = Fleet {
        host,
        samplers: BTreeMap::new(),
        health,
        serving: false,
        trouble: None,
        looked: false,
    };
    // Its own thread: to open NVML may take seconds, or for ever.
    let thread = thread::Builder::new()
        .name("gpu-fleet".into())
        .spawn(move || fleet.run(report));
    if let Err(error) = thread {
        tracing::error!(%error, "the thread that looks for GPUs could not be started");
    }
}

impl<H: Fn(bool)> Fleet<H> {
    fn run(mut self, report: oneshot::Sender<String>) {
        let found = self.look();
        self.looked = true;
        if let Err(found) = report.send(found) {
            tracing::info!(found, "NVML has answered");
        }
        loop {
            let again = Instant::now() + LOOK_EVERY;
            while Instant::now() < again {
                if self.host.stop.wait_until(Instant::now() + WATCH_EVERY) {
                    return;
                }
                self.watch();
            }
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
        self.samplers
            .retain(|_, sampler| !sampler.thread.is_finished());
        let (tell, told) = mpsc::channel();
        for index in 0..count {
            if self.samplers.contains_key(&index) {
                continue;
            }
            match self.launch(index, tell.clone()) {
                Ok(started) => {
                    self.samplers.insert(index, started);
                }
                Err(error) => {
                    tracing::error!(index, %error, "the sampler of a GPU could not be started");
                }
            }
        }
        drop(tell);
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
        Ok(Started {
            thread,
            pulse,
            hangs: false,
        })
    }

    fn watch(&mut self) {
        for sampler in self.samplers.values_mut() {
            let hangs = sampler.pulse.hangs();
            if hangs != sampler.hangs {
                sampler.hangs = hangs;
                let gpu = sampler.pulse.name();
                if hangs {
                    let limit_s = HANGS_AFTER.as_secs();
                    tracing::warn!(
                        gpu.name = gpu,
                        limit_s,
                        "a GPU does not answer; it is waited for"
                    );
                } else {
                    tracing::info!(gpu.name = gpu, "a GPU answers again");
                }
            }
        }
        let serving = self.samplers.values().any(|sampler| sampler.pulse.works());
        if serving != self.serving {
            self.serving = serving;
            (self.health)(serving);
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

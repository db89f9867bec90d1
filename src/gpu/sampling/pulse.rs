//! State of a sampler that other threads can read while the thread of the sampler is stuck in a call.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Time that a round of calls may take before the GPU counts as hanging: whoever watches is to know
/// it two seconds after it began.
pub(crate) const HANGS_AFTER: Duration = Duration::from_millis(1_500);

/// State of a sampler that other threads can read.
#[derive(Debug)]
pub(crate) struct Pulse {
    started: Instant,
    /// Time at which the present calls began, in milliseconds after `started`; `IDLE` between calls.
    busy_since: AtomicU64,
    works: AtomicBool,
    /// The index of the GPU, as it was last found.
    index: AtomicU32,
    /// True if the GPU is suspended, and must not be woken.
    asleep: AtomicBool,
    /// True if another GPU has taken the place of this one.
    replaced: AtomicBool,
    /// Set to have the sampler try again now, however long the pause would be.
    nudged: AtomicBool,
    /// The name of the GPU for people.
    name: Mutex<String>,
    /// The GPU, once it is known which.
    uuid: OnceLock<String>,
}

const IDLE: u64 = u64::MAX;

impl Pulse {
    pub(crate) fn new(index: u32) -> Self {
        let name = Mutex::new(format!("GPU {index}"));
        Self {
            started: Instant::now(),
            busy_since: AtomicU64::new(IDLE),
            works: AtomicBool::new(false),
            index: AtomicU32::new(index),
            asleep: AtomicBool::new(false),
            replaced: AtomicBool::new(false),
            nudged: AtomicBool::new(false),
            name,
            uuid: OnceLock::new(),
        }
    }

    /// Says which GPU this is.
    pub(crate) fn introduce(&self, name: &str, uuid: &str) {
        let mut told = self.name.lock();
        name.clone_into(&mut told);
        let _ = self.uuid.set(uuid.into());
    }

    /// Returns true if the last sample was taken, and no call hangs.
    pub(crate) fn works(&self) -> bool {
        self.works.load(Ordering::Relaxed) && !self.hangs()
    }

    /// Says whether the last sample was taken.
    pub(crate) fn set_works(&self, works: bool) {
        self.works.store(works, Ordering::Relaxed);
    }

    /// Returns true if the calls that are being made do not come back.
    pub(crate) fn hangs(&self) -> bool {
        let since = self.busy_since.load(Ordering::Relaxed);
        since != IDLE && self.started.elapsed() >= Duration::from_millis(since) + HANGS_AFTER
    }

    /// The index of the GPU, as it was last found.
    pub(crate) fn index(&self) -> u32 {
        self.index.load(Ordering::Relaxed)
    }

    /// Takes over where the GPU was found.
    pub(crate) fn set_index(&self, index: u32) {
        self.index.store(index, Ordering::Relaxed);
    }

    /// Returns true if the GPU is suspended, and must not be woken.
    pub(crate) fn is_asleep(&self) -> bool {
        self.asleep.load(Ordering::Relaxed)
    }

    /// Says whether the GPU is suspended.
    pub(crate) fn set_asleep(&self, asleep: bool) {
        self.asleep.store(asleep, Ordering::Relaxed);
    }

    /// Ends the sampler: another GPU has taken the place of this one.
    pub(crate) fn replace(&self) {
        self.replaced.store(true, Ordering::Relaxed);
    }

    /// Returns true if another GPU has taken the place of this one.
    pub(crate) fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Relaxed)
    }

    /// Has a sampler that fails try again soon.
    pub(crate) fn nudge(&self) {
        self.nudged.store(true, Ordering::Relaxed);
    }

    /// Returns true if it was nudged since this was last asked.
    pub(crate) fn take_nudge(&self) -> bool {
        self.nudged.swap(false, Ordering::Relaxed)
    }

    /// The name of the GPU for people.
    pub(crate) fn name(&self) -> String {
        self.name.lock().clone()
    }

    /// The GPU, once it is known which.
    pub(crate) fn uuid(&self) -> Option<&str> {
        self.uuid.get().map(String::as_str)
    }

    /// A round of calls begins.
    pub(crate) fn begin(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(0);
        self.busy_since.store(now, Ordering::Relaxed);
    }

    /// It has ended.
    pub(crate) fn end(&self) {
        self.busy_since.store(IDLE, Ordering::Relaxed);
    }
}

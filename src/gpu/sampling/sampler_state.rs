//! State of a sampler that other threads can read while a driver call blocks the sampler's thread.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Time after which an unfinished round of calls counts as hanging. Clients see the state within 2
/// s of the start of the calls.
pub(crate) const HANG_TIMEOUT: Duration = Duration::from_millis(1_500);

/// State of a sampler, shared with other threads.
#[derive(Debug)]
pub(crate) struct SamplerState {
    started: Instant,
    /// Start of the current calls, in milliseconds after `started`; `IDLE` between calls.
    busy_since: AtomicU64,
    working: AtomicBool,
    /// Index of the GPU, as last found.
    index: AtomicU32,
    /// True if the GPU is suspended and must not be woken.
    asleep: AtomicBool,
    /// True if another GPU has taken the index of this GPU.
    replaced: AtomicBool,
    /// True if the sampler must retry now instead of waiting for the end of its pause.
    retry_requested: AtomicBool,
    /// Human-readable name of the GPU.
    name: Mutex<String>,
    /// UUID of the GPU, once known.
    uuid: OnceLock<String>,
}

const IDLE: u64 = u64::MAX;

impl SamplerState {
    pub(crate) fn new(index: u32) -> Self {
        let name = Mutex::new(format!("GPU {index}"));
        Self {
            started: Instant::now(),
            busy_since: AtomicU64::new(IDLE),
            working: AtomicBool::new(false),
            index: AtomicU32::new(index),
            asleep: AtomicBool::new(false),
            replaced: AtomicBool::new(false),
            retry_requested: AtomicBool::new(false),
            name,
            uuid: OnceLock::new(),
        }
    }

    /// Records the name and the UUID of the GPU.
    pub(crate) fn identify(&self, name: &str, uuid: &str) {
        name.clone_into(&mut self.name.lock());
        let _ = self.uuid.set(uuid.into());
    }

    /// Returns true if the last sample succeeded and no call hangs.
    pub(crate) fn is_working(&self) -> bool {
        self.working.load(Ordering::Relaxed) && !self.is_hanging()
    }

    /// Records whether the last sample succeeded.
    pub(crate) fn set_working(&self, working: bool) {
        self.working.store(working, Ordering::Relaxed);
    }

    /// Returns true if the current calls have taken longer than [`HANG_TIMEOUT`].
    pub(crate) fn is_hanging(&self) -> bool {
        let since = self.busy_since.load(Ordering::Relaxed);
        since != IDLE && self.started.elapsed() >= Duration::from_millis(since) + HANG_TIMEOUT
    }

    /// Index of the GPU, as last found.
    pub(crate) fn index(&self) -> u32 {
        self.index.load(Ordering::Relaxed)
    }

    /// Records the index of the GPU.
    pub(crate) fn set_index(&self, index: u32) {
        self.index.store(index, Ordering::Relaxed);
    }

    /// Returns true if the GPU is suspended and must not be woken.
    pub(crate) fn is_asleep(&self) -> bool {
        self.asleep.load(Ordering::Relaxed)
    }

    /// Records whether the GPU is suspended.
    pub(crate) fn set_asleep(&self, asleep: bool) {
        self.asleep.store(asleep, Ordering::Relaxed);
    }

    /// Ends the sampler, because another GPU has taken the index of this GPU.
    pub(crate) fn mark_replaced(&self) {
        self.replaced.store(true, Ordering::Relaxed);
    }

    /// Returns true if another GPU has taken the index of this GPU.
    pub(crate) fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Relaxed)
    }

    /// Requests a retry from a failing sampler.
    pub(crate) fn request_retry(&self) {
        self.retry_requested.store(true, Ordering::Relaxed);
    }

    /// Returns true if a retry was requested since the last call.
    pub(crate) fn take_retry_request(&self) -> bool {
        self.retry_requested.swap(false, Ordering::Relaxed)
    }

    /// Human-readable name of the GPU.
    pub(crate) fn name(&self) -> String {
        self.name.lock().clone()
    }

    /// UUID of the GPU, once known.
    pub(crate) fn uuid(&self) -> Option<&str> {
        self.uuid.get().map(String::as_str)
    }

    /// Marks the start of a round of calls.
    pub(crate) fn begin_calls(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(0);
        self.busy_since.store(now, Ordering::Relaxed);
    }

    /// Marks the end of a round of calls.
    pub(crate) fn end_calls(&self) {
        self.busy_since.store(IDLE, Ordering::Relaxed);
    }
}

//! Thread that samples one GPU on a steady schedule, and retries after failures.

use std::{
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use super::{
    context::SamplingContext,
    sampler_state::SamplerState,
    schedule::{Backoff, Ticks},
    sysfs::RuntimeStatus,
};
use crate::{
    gpu::{
        columns,
        nvml::{Failure, FailureKind, GpuSelector, Samples, plan::CallPlan},
    },
    pb,
};

/// Time after which a waiting sampler checks for its end or for a retry request.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Sampler of one GPU.
pub(crate) struct Sampler {
    context: Arc<SamplingContext>,
    index: u32,
    state: Arc<SamplerState>,
    /// Receives the name of the GPU, or the first failure, once.
    first_answer: Option<mpsc::Sender<(u32, Result<String, String>)>>,
    /// GPU of the last sample, followed by its MIG instances.
    gpus: Vec<Arc<pb::Gpu>>,
    /// Kernel file with the power state. `None` before the PCI address is known.
    runtime_status: Option<RuntimeStatus>,
    /// Current failure and its start. `None` while samples succeed.
    failure: Option<(Failure, Instant)>,
}

/// Reason for the end of a series of samples.
enum SamplingEnd {
    Stopped,
    Failed(Failure),
    Asleep,
}

impl Sampler {
    pub(crate) fn new(
        context: Arc<SamplingContext>,
        index: u32,
        state: Arc<SamplerState>,
        first_answer: mpsc::Sender<(u32, Result<String, String>)>,
    ) -> Self {
        Self {
            context,
            index,
            state,
            first_answer: Some(first_answer),
            gpus: Vec::new(),
            runtime_status: None,
            failure: None,
        }
    }

    /// Samples until the stop signal, or until another GPU takes the index of this GPU.
    pub(crate) fn run(mut self) {
        self.run_until_end();
        if self.state.is_replaced() && !self.context.stop.is_set() {
            self.publish_replaced();
        }
    }

    fn run_until_end(&mut self) {
        let context = self.context.clone();
        // The driver has one lock for all GPUs, so samplers spread over the interval.
        let offset = context.interval.mul_f64(f64::from(self.index % 8) / 8.0);
        let mut ticks = Ticks::new(Instant::now() + offset, context.interval);
        let mut backoff = Backoff::default();
        loop {
            let failure = match self.sample_until_failure(&mut ticks, &mut backoff) {
                SamplingEnd::Stopped => return,
                SamplingEnd::Failed(failure) => failure,
                // The session is closed here, because an open session keeps the GPU awake.
                SamplingEnd::Asleep => {
                    if self.wait_while_asleep(&mut ticks) {
                        return;
                    }
                    continue;
                }
            };
            let retry = Instant::now() + backoff.next();
            self.record_failure(failure);
            self.state.take_retry_request();
            while Instant::now() < retry && !self.state.take_retry_request() {
                // A GPU that was never found has no samples, not even empty ones.
                let until = if self.gpus.is_empty() {
                    retry.min(Instant::now() + CHECK_INTERVAL)
                } else {
                    ticks.next(Instant::now())
                };
                if self.wait_until(until) {
                    return;
                }
                self.publish_failure();
            }
        }
    }

    fn sample_until_failure(&mut self, ticks: &mut Ticks, backoff: &mut Backoff) -> SamplingEnd {
        let context = self.context.clone();
        // Opening may take seconds and is no call about this GPU, so the watchdog ignores it.
        let session = match context.library.open() {
            Ok(session) => session,
            Err(failure) => return SamplingEnd::Failed(failure),
        };
        self.state.begin_calls();
        let failed = |failure: Failure| {
            if failure.affects_session {
                context.library.discard(&session);
            }
            SamplingEnd::Failed(failure)
        };
        let selector =
            self.gpus.first().map_or(GpuSelector::Index(self.index), |gpu| GpuSelector::Uuid(gpu.uuid.clone()));
        let (tiers, interval) = (context.tiers, context.interval);
        let plan = move || CallPlan::new(tiers, interval);
        let mut gpu = match session.gpu(&selector, &context.host_name, plan) {
            Ok(gpu) => gpu,
            Err(failure) => return failed(failure),
        };
        if let Err(failure) = self.identify(gpu.identity()) {
            return failed(failure);
        }
        loop {
            self.state.end_calls();
            if self.wait_until(ticks.next(Instant::now())) {
                return SamplingEnd::Stopped;
            }
            if self.is_asleep() {
                return SamplingEnd::Asleep;
            }
            self.state.begin_calls();
            if context.conditions.take_relist(&gpu.identity().uuid) {
                gpu.request_instance_list();
            }
            let samples = gpu.sample(context.live.costs());
            self.state.end_calls();
            if self.state.is_replaced() {
                return SamplingEnd::Stopped;
            }
            let failure = samples.failure.clone();
            if failure.is_none() {
                backoff.reset();
                self.record_success();
                let samples = samples.stats.iter().map(|(gpu, stats)| (gpu, stats));
                context.conditions.record_samples(samples);
            }
            self.publish(samples);
            if let Some(failure) = failure {
                return failed(failure);
            }
        }
    }

    fn is_asleep(&mut self) -> bool {
        let status = self.runtime_status.as_mut();
        status.is_some_and(|status| status.is_asleep(Instant::now()))
    }

    /// Publishes samples without values while the GPU sleeps. Returns true if the sampler has to
    /// end.
    fn wait_while_asleep(&mut self, ticks: &mut Ticks) -> bool {
        self.state.set_asleep(true);
        let stops = self.publish_while_asleep(ticks);
        self.state.set_asleep(false);
        stops
    }

    fn publish_while_asleep(&mut self, ticks: &mut Ticks) -> bool {
        while self.is_asleep() {
            if let Some(gpu) = self.gpus.first() {
                self.context.conditions.record_sleep(&gpu.uuid);
            }
            self.publish_absent(pb::AbsentReason::Asleep);
            if self.wait_until(ticks.next(Instant::now())) {
                return true;
            }
        }
        false
    }

    /// Waits until `deadline`. Returns true if the sampler has to end.
    fn wait_until(&self, deadline: Instant) -> bool {
        loop {
            let until = deadline.min(Instant::now() + CHECK_INTERVAL);
            if self.context.stop.wait_until(until) || self.state.is_replaced() {
                return true;
            }
            if until == deadline {
                return false;
            }
        }
    }

    /// Publishes that the GPU is lost, because another GPU has its index.
    fn publish_replaced(&self) {
        self.state.set_working(false);
        let Some(gpu) = self.gpus.first() else {
            return;
        };
        let failure = Failure {
            text: "another GPU has its index".into(),
            reason: pb::AbsentReason::GpuLost,
            affects_session: false,
            kind: FailureKind::Lost,
        };
        self.context.conditions.record_failure(&gpu.uuid, &failure);
        self.publish_absent(failure.reason);
    }

    fn publish(&mut self, samples: Samples) {
        let context = &self.context;
        let (gpus, stats): (Vec<_>, Vec<_>) = samples.stats.into_iter().unzip();
        for removed in self.gpus.iter().filter(|known| gpus.iter().all(|gpu| gpu.uuid != known.uuid)) {
            context.live.forget(&removed.uuid);
        }
        self.gpus = gpus;
        context.publish(self.gpus.iter().zip(stats));
    }

    /// Publishes samples without values, with the reason of the current failure.
    fn publish_failure(&self) {
        if let Some((failure, _)) = &self.failure {
            self.publish_absent(failure.reason);
        }
    }

    fn publish_absent(&self, reason: pb::AbsentReason) {
        let absent = self.gpus.iter().map(|gpu| (gpu, columns::absent_sample(gpu, reason)));
        self.context.publish(absent);
    }

    /// Records the identity of the GPU. Fails if another sampler has the GPU, because indexes may
    /// change.
    fn identify(&mut self, gpu: &Arc<pb::Gpu>) -> Result<(), Failure> {
        if self.gpus.is_empty() && !self.context.sampled_uuids().insert(gpu.uuid.clone()) {
            let text = format!("{} is sampled under another index", gpu.uuid);
            return Err(Failure {
                text,
                reason: pb::AbsentReason::NotSampled,
                affects_session: false,
                kind: FailureKind::Other,
            });
        }
        let name = gpu.name.as_deref().unwrap_or("a GPU without a name");
        let label = format!("{name} ({})", gpu.uuid);
        self.state.identify(&label, &gpu.uuid);
        if let Some(Ok(index)) = gpu.gpu_index.map(u32::try_from) {
            self.state.set_index(index);
        }
        self.context.conditions.register(gpu);
        let bus_id = gpu.pci_bus_id.as_deref();
        self.runtime_status = bus_id.and_then(|id| RuntimeStatus::new(&self.context.sysfs, id));
        if self.gpus.is_empty() {
            self.gpus = vec![gpu.clone()];
        }
        if let Some(first_answer) = self.first_answer.take() {
            // The receiver is gone if the first answer took too long.
            let _ = first_answer.send((self.index, Ok(label)));
        }
        Ok(())
    }

    /// Records a failure. Logs the failure if it differs from the one before.
    fn record_failure(&mut self, failure: Failure) {
        self.state.end_calls();
        self.state.set_working(false);
        if let Some(gpu) = self.gpus.first() {
            self.context.conditions.record_failure(&gpu.uuid, &failure);
        }
        if let Some(first_answer) = self.first_answer.take() {
            let _ = first_answer.send((self.index, Err(failure.text.clone())));
        }
        let since = match &self.failure {
            Some((before, since)) if before.text == failure.text => *since,
            before => {
                let gpu = self.state.name();
                tracing::warn!(gpu.name = gpu, reason = failure.text, "a GPU cannot be sampled; it is tried again");
                before.as_ref().map_or_else(Instant::now, |(_, since)| *since)
            }
        };
        self.failure = Some((failure, since));
    }

    fn record_success(&mut self) {
        self.state.set_working(true);
        if let Some((_, since)) = self.failure.take() {
            let (gpu, failed_s) = (self.state.name(), since.elapsed().as_secs());
            tracing::info!(gpu.name = gpu, failed_s, "a GPU is sampled again");
        }
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        if let Some(gpu) = self.gpus.first() {
            self.context.sampled_uuids().remove(&gpu.uuid);
        }
    }
}

//! Thread that waits for NVML events of one GPU.
//!
//! Each GPU has a thread of its own. NVML names the GPU of an event only by a further call, and a
//! call about a failing GPU may block for ever.

use std::{
    io,
    sync::{Arc, Weak},
    thread,
    time::{Duration, Instant},
};

use super::{context::SamplingContext, sampler_state::SamplerState};
use crate::{
    entity::gpu_event::{GpuEventKind, GpuEventSource},
    gpu::{
        events::PendingEvent,
        nvml::{Event, Session},
    },
    pb,
};

/// Time that one call waits for an event, and time between two checks where no events are
/// available.
const WAIT_TIMEOUT: Duration = Duration::from_millis(500);

/// Upper bound of events that are read after the GPU stops working.
const MAX_FINAL_EVENTS: usize = 1_000;

/// Listener to the GPU of a sampler. Ends with the sampler.
struct Listener {
    context: Arc<SamplingContext>,
    sampler: Weak<SamplerState>,
}

/// Starts the thread that listens to the GPU of a sampler.
pub(in crate::gpu) fn spawn(context: Arc<SamplingContext>, index: u32, sampler: &Arc<SamplerState>) -> io::Result<()> {
    let sampler = Arc::downgrade(sampler);
    let listener = Listener { context, sampler };
    // Nobody joins this thread, because NVML may block the thread for ever.
    thread::Builder::new().name(format!("gpu-{index}-events")).spawn(move || listener.run())?;
    Ok(())
}

impl Listener {
    fn run(self) {
        while !self.context.stop.wait_until(Instant::now() + WAIT_TIMEOUT) {
            let Some(sampler) = self.sampler.upgrade() else {
                return;
            };
            // The listener never opens NVML itself: a lost GPU can be found again only after all
            // users have closed NVML.
            if let Some(gpu) = self.healthy_gpu(&sampler)
                && let Some(session) = self.context.library.current_session()
            {
                drop(sampler);
                self.listen(&session, &gpu);
            }
        }
    }

    /// The GPU, while its samples succeed.
    fn healthy_gpu(&self, sampler: &SamplerState) -> Option<Arc<pb::Gpu>> {
        self.context.conditions.healthy_gpu(sampler.uuid()?)
    }

    /// Reports all events until the GPU, the session or the sampler fails.
    fn listen(&self, session: &Arc<Session>, gpu: &Arc<pb::Gpu>) {
        let uuid = &gpu.uuid;
        let events = match session.events(uuid) {
            Ok(events) => events,
            Err(failure) => {
                let reason = failure.text;
                tracing::debug!(gpu.uuid = uuid, reason, "NVML cannot report events of this GPU");
                return;
            }
        };
        while self.context.library.is_open(session)
            && self.sampler.strong_count() > 0
            && self.context.conditions.healthy_gpu(uuid).is_some()
        {
            let Some(events) = &events else {
                if self.context.stop.wait_until(Instant::now() + WAIT_TIMEOUT) {
                    return;
                }
                continue;
            };
            match events.next(WAIT_TIMEOUT) {
                Ok(Some(event)) => self.push_event(gpu, event),
                Ok(None) => {}
                Err(failure) => {
                    let reason = failure.text;
                    tracing::debug!(gpu.uuid = uuid, reason, "NVML no longer reports events of this GPU");
                    return;
                }
            }
            if self.context.stop.is_set() {
                return;
            }
        }
        // Events before the failure are still reported, such as the XID of a lost GPU.
        let final_events = events.iter().flat_map(|events| {
            std::iter::from_fn(|| events.next(Duration::ZERO).ok().flatten()).take(MAX_FINAL_EVENTS)
        });
        final_events.for_each(|event| self.push_event(gpu, event));
    }

    fn push_event(&self, gpu: &Arc<pb::Gpu>, event: Event) {
        let (kind, code) = match event {
            Event::Xid(code) => (GpuEventKind::Xid, code),
            Event::EccSingleBit => (GpuEventKind::EccSingleBit, None),
            Event::EccDoubleBit => (GpuEventKind::EccDoubleBit, None),
            Event::PowerSource => (GpuEventKind::PowerSourceChanged, None),
            // The sampler lists the instances.
            Event::MigConfigChanged => return self.context.conditions.record_mig_change(&gpu.uuid),
        };
        self.context
            .events
            .push(PendingEvent { code, ..PendingEvent::new(gpu, kind, GpuEventSource::NvmlEvent, None) });
    }
}

//! The thread that waits for what NVML has to tell of one GPU.
//!
//! Each GPU has its own: NVML does not say which MIG instance or GPU an event is of without being
//! asked, and to ask a GPU in trouble may take for ever.

use std::{
    io,
    sync::{Arc, Weak},
    thread,
    time::{Duration, Instant},
};

use super::{pulse::Pulse, sampler::Host};
use crate::{
    entity::gpu_event::{GpuEventKind, GpuEventSource},
    gpu::{
        events::Happened,
        nvml::{Event, Session},
    },
    pb,
};

/// How long one call waits for an event, and how long to wait where there can be none.
const WAIT: Duration = Duration::from_millis(500);

/// How many events are still taken in when a GPU is given up for now.
const MOST_LAST: usize = 1_000;

/// Listens to the GPU of a sampler, as long as there is that sampler.
struct Listener {
    host: Arc<Host>,
    pulse: Weak<Pulse>,
}

/// Starts the thread that listens to the GPU of the sampler with this pulse.
pub(in crate::gpu) fn spawn(host: Arc<Host>, index: u32, pulse: &Arc<Pulse>) -> io::Result<()> {
    let pulse = Arc::downgrade(pulse);
    let listener = Listener { host, pulse };
    // It is not waited for: NVML may hold it for ever.
    thread::Builder::new()
        .name(format!("gpu-{index}-events"))
        .spawn(move || listener.run())?;
    Ok(())
}

impl Listener {
    fn run(self) {
        while !self.host.stop.wait_until(Instant::now() + WAIT) {
            let Some(pulse) = self.pulse.upgrade() else {
                return;
            };
            // Only what the samplers have opened: a GPU that is lost may be found again when all
            // have let go of NVML.
            if let Some(gpu) = self.gpu(&pulse)
                && let Some(session) = self.host.library.joined()
            {
                drop(pulse);
                self.listen(&session, &gpu);
            }
        }
    }

    /// The GPU, while it is sampled well.
    fn gpu(&self, pulse: &Pulse) -> Option<Arc<pb::Gpu>> {
        self.host.conditions.sound(pulse.uuid()?)
    }

    /// Tells of all events until something is wrong with the GPU, the session or the sampler.
    fn listen(&self, session: &Arc<Session>, gpu: &Arc<pb::Gpu>) {
        let name = &gpu.uuid;
        let events = match session.events(name) {
            Ok(events) => events,
            Err(failure) => {
                let reason = failure.text;
                tracing::debug!(gpu.uuid = name, reason, "NVML cannot tell of events");
                return;
            }
        };
        while self.host.library.is_open(session)
            && self.pulse.strong_count() > 0
            && self.host.conditions.sound(name).is_some()
        {
            let Some(events) = &events else {
                if self.host.stop.wait_until(Instant::now() + WAIT) {
                    return;
                }
                continue;
            };
            match events.next(WAIT) {
                Ok(Some(event)) => self.tell(gpu, event),
                Ok(None) => {}
                Err(failure) => {
                    let reason = failure.text;
                    tracing::debug!(gpu.uuid = name, reason, "NVML tells no more of events");
                    return;
                }
            }
            if self.host.stop.is_set() {
                return;
            }
        }
        // What was told of the end, as an XID of a GPU that is lost.
        let last = events.iter().flat_map(|events| {
            std::iter::from_fn(|| events.next(Duration::ZERO).ok().flatten()).take(MOST_LAST)
        });
        last.for_each(|event| self.tell(gpu, event));
    }

    fn tell(&self, gpu: &Arc<pb::Gpu>, event: Event) {
        let (kind, code) = match event {
            Event::Xid(code) => (GpuEventKind::Xid, code),
            Event::EccSingleBit => (GpuEventKind::EccSingleBit, None),
            Event::EccDoubleBit => (GpuEventKind::EccDoubleBit, None),
            Event::PowerSource => (GpuEventKind::PowerSourceChanged, None),
            // Which instances there are now is seen by the sampler.
            Event::Divided => return self.host.conditions.divided(&gpu.uuid),
        };
        self.host.events.push(Happened {
            code,
            ..Happened::to(gpu, kind, GpuEventSource::NvmlEvent, None)
        });
    }
}

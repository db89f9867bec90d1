//! What happens to GPUs: told to subscribers, stored for good, and the state that it leaves.

use std::path::PathBuf;

use watchpost::pb::{GpuEventKind, GpuEventSource as Source, GpuState, MemoryPressure, watch_response::Update};

use super::*;
use crate::support::{TestServer, Watch, eventually, topics};

mod conditions;
mod hosts;
mod list;
mod reports;

/// All that NVML can tell of.
const ALL: &str = "511";

/// Types of events as NVML numbers them.
const XID: u64 = 8;
const MIG: u64 = 256;

/// A GPU of its own place that tells of events.
pub(super) fn card(uuid: &str) -> Card {
    let number: u8 = uuid.trim_start_matches("GPU-").parse().unwrap();
    Card::geforce(uuid).with("pci_bus_id", &format!("00000000:{number:02X}:00.0")).with("events", ALL)
}

async fn serve(database: TestDatabase, fake: &FakeNvml) -> TestServer {
    serve_with(database, fake, "/no/such/kmsg".into()).await
}

async fn serve_with(database: TestDatabase, fake: &FakeNvml, kernel_log: PathBuf) -> TestServer {
    let library = fake.library();
    TestServer::start_with(database, |settings| {
        settings.nvml_library = Some(library);
        settings.kernel_log = kernel_log;
        settings.gpu_interval = Duration::from_millis(100);
        settings.host = Some("camera-box".into());
    })
    .await
}

/// Waits until NVML is listened to.
pub(super) async fn listened(fake: &FakeNvml, uuid: &str) {
    eventually("NVML is listened to", async || fake.calls(uuid, "register") > 0).await;
}

/// The next event.
async fn next(watch: &mut Watch) -> pb::GpuEvent {
    let event = async {
        loop {
            if let Update::GpuEvent(event) = watch.update().await {
                return event;
            }
        }
    };
    timeout(PATIENCE, event).await.expect("an event")
}

/// The next event, which must be of this kind and GPU.
async fn next_of(watch: &mut Watch, uuid: &str, kind: GpuEventKind) -> pb::GpuEvent {
    let event = next(watch).await;
    let told = (event.gpu_uuid.as_deref(), event.kind());
    assert_eq!(told, (Some(uuid), kind), "{event:?}");
    event
}

/// All events that are stored, newest first.
async fn listed(server: &TestServer, filter: pb::GpuEventFilter) -> Vec<pb::GpuEvent> {
    let request = pb::ListGpuEventsRequest { page_size: 1000, filter: Some(filter), ..Default::default() };
    let response = server.gpu_stats().list_gpu_events(request).await.unwrap();
    response.into_inner().gpu_events
}

/// How a GPU is.
async fn state(server: &TestServer, uuid: &str) -> (GpuState, Option<MemoryPressure>) {
    let gpus = server.gpu_stats().list_gpus(pb::ListGpusRequest {}).await;
    let gpus = gpus.unwrap().into_inner().gpus;
    let gpu = gpus.iter().find(|gpu| gpu.uuid == uuid);
    gpu.map_or((GpuState::Unspecified, None), |gpu| {
        let pressure = gpu.memory_pressure.map(|_| gpu.memory_pressure());
        (gpu.state(), pressure)
    })
}

async fn becomes(server: &TestServer, uuid: &str, expected: GpuState) {
    let good = async || state(server, uuid).await.0 == expected;
    eventually(&format!("{uuid} becomes {expected:?}"), good).await;
}

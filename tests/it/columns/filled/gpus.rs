//! What a host reports of its GPUs.

use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use watchpost::pb;

use crate::support::{PATIENCE, TestServer, in_seconds};

/// A GPU, a sample with everything that there is, and an event.
pub async fn fill(server: &TestServer) {
    let sample = pb::GpuStats {
        id: None,
        recorded_at: in_seconds(-60),
        gpu_name: Some("NVIDIA T4".into()),
        gpu_utilization: Some(41.5),
        memory_used: Some(4_096),
        memory_total: Some(16_384),
        temperature: Some(51.0),
        power_usage: Some(60.5),
        inference_fps: Some(12.5),
        fan_speed: None,
        sm_clock: Some(1_590),
        memory_bandwidth_utilization: Some(22.5),
        pstate: Some(2),
        throttle_reasons: Some(4),
        power_limit: Some(70.0),
        sm_clock_max: Some(1_591),
        compute_processes_count: Some(3),
        pcie_replay_counter: Some(5),
        temp_slowdown_threshold: Some(93.0),
        memory_clock: Some(5_000),
        memory_clock_max: Some(5_001),
        pcie_link_gen: Some(3),
        pcie_link_width: Some(16),
        pcie_tx_throughput: Some(700),
        pcie_rx_throughput: Some(800),
        encoder_utilization: Some(9),
        decoder_utilization: Some(8),
        bar1_used: Some(17),
        gpu_uuid: Some("GPU-a".into()),
        gpu_index: Some(1),
        host: Some("shed".into()),
        pci_bus_id: Some("00000000:01:00.0".into()),
        mig_parent_uuid: Some("GPU-parent".into()),
        absent_reasons: [("fan_speed".into(), pb::AbsentReason::NotSupported.into())].into(),
        energy_consumption: Some(123_456),
        power_usage_instant: Some(61.5),
        memory_temperature: Some(61.0),
        counter_epoch: Some(2),
    };
    let with_fan =
        pb::GpuStats { fan_speed: Some(33), absent_reasons: [].into(), recorded_at: in_seconds(-61), ..sample.clone() };
    let event = pb::GpuEvent {
        id: 0,
        occurred_at: in_seconds(-60),
        host: "shed".into(),
        gpu_uuid: Some("GPU-a".into()),
        gpu_index: Some(1),
        gpu_name: Some("NVIDIA T4".into()),
        pci_bus_id: Some("00000000:01:00.0".into()),
        mig_parent_uuid: Some("GPU-parent".into()),
        kind: pb::GpuEventKind::Xid.into(),
        code: Some(79),
        detail: Some("fallen off the bus".into()),
        source: pb::GpuEventSource::KernelLog.into(),
        occurrences: 3,
    };
    let condition = pb::GpuCondition {
        gpu_uuid: "GPU-a".into(),
        state: pb::GpuState::Ok.into(),
        memory_pressure: Some(pb::MemoryPressure::Warning.into()),
    };
    let batch = pb::RecordGpuStatsRequest {
        reporter_id: "shed-1".into(),
        host: "shed".into(),
        sequence: 1,
        gpu_stats: vec![with_fan, sample],
        lost: 0,
        driver_version: Some("580.95.05".into()),
        gpu_events: vec![event],
        gpu_conditions: vec![condition],
    };
    let (send, batches) = mpsc::channel(1);
    send.send(batch).await.unwrap();
    let batches = ReceiverStream::new(batches);
    let answers = server.gpu_stats().record_gpu_stats(batches).await.unwrap();
    let answer = timeout(PATIENCE, answers.into_inner().message()).await;
    answer.unwrap().unwrap().expect("the batch is stored");
}

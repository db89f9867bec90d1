//! Events and messages for tests.

use chrono::{DateTime, TimeDelta, Utc};
use prost_types::Timestamp;

use super::state::{ConnectionEvent, State};
use crate::{
    pb::{self, AlertChangeKind, AlertStatus, Severity, WatchResponse, watch_response::Update},
    rpc::time,
};

/// Current time of the tests.
pub(super) fn now() -> DateTime<Utc> {
    "2026-03-04T12:00:00Z".parse().unwrap()
}

fn timestamp(time: DateTime<Utc>) -> Timestamp {
    Timestamp { seconds: time.timestamp(), nanos: time.timestamp_subsec_nanos().try_into().unwrap() }
}

/// GPU with all values, sampled `seconds_ago`.
pub(super) fn gpu(index: i32, seconds_ago: i64) -> pb::GpuStats {
    pb::GpuStats {
        recorded_at: Some(timestamp(now() - TimeDelta::seconds(seconds_ago))),
        gpu_name: Some("NVIDIA RTX 4080".into()),
        gpu_utilization: Some(37.0),
        memory_used: Some(1_536),
        memory_total: Some(16_384),
        temperature: Some(51.0),
        power_usage: Some(87.6),
        power_limit: Some(320.0),
        fan_speed: Some(34),
        sm_clock: Some(2_535),
        memory_clock: Some(11_501),
        pcie_tx_throughput: Some(300_000),
        pcie_rx_throughput: Some(1_200_000),
        encoder_utilization: Some(21),
        decoder_utilization: Some(64),
        gpu_uuid: Some(format!("GPU-{index}")),
        gpu_index: Some(index),
        host: Some("camera-box".into()),
        ..Default::default()
    }
}

/// GPU with a name and no other values.
pub(super) fn silent_gpu(index: i32) -> pb::GpuStats {
    pb::GpuStats {
        recorded_at: Some(timestamp(now())),
        gpu_name: Some("NVIDIA Silent".into()),
        gpu_uuid: Some(format!("GPU-{index}")),
        gpu_index: Some(index),
        host: Some("camera-box".into()),
        ..Default::default()
    }
}

/// Pending alert, raised `seconds_ago`.
pub(super) fn alert(id: &str, seconds_ago: i64) -> pb::Alert {
    pb::Alert {
        id: id.into(),
        severity: Severity::High.into(),
        status: AlertStatus::Pending.into(),
        created_at: Some(timestamp(now() - TimeDelta::seconds(seconds_ago))),
        dedup_key: format!("key_{id}"),
        camera_id: Some("front_door".into()),
        ..Default::default()
    }
}

/// The alert with another status.
pub(super) fn with_status(alert: pb::Alert, status: AlertStatus) -> pb::Alert {
    let status = status.into();
    pb::Alert { status, ..alert }
}

pub(super) fn update(update: impl Into<Update>) -> ConnectionEvent {
    ConnectionEvent::Response(Box::new(WatchResponse { update: Some(update.into()), ..Default::default() }))
}

impl From<pb::GpuStats> for Update {
    fn from(stats: pb::GpuStats) -> Self {
        Self::GpuStats(stats)
    }
}

impl From<pb::Alert> for Update {
    fn from(alert: pb::Alert) -> Self {
        Self::Alert(pb::AlertChange { kind: AlertChangeKind::Created.into(), alert: Some(alert) })
    }
}

pub(super) fn snapshot_end() -> ConnectionEvent {
    update(Update::SnapshotEnd(pb::SnapshotEnd::default()))
}

/// Heartbeat of a server whose clock is `ahead` seconds ahead.
pub(super) fn heartbeat(ahead: i64, behind_changes: i64) -> ConnectionEvent {
    update(Update::Heartbeat(pb::Heartbeat {
        server_time: Some(timestamp(now() + TimeDelta::seconds(ahead))),
        behind_changes,
        behind: Some(time::duration_from_millis(behind_changes * 10)),
        history_id: String::new(),
    }))
}

/// State of a connected view after a complete snapshot.
pub(super) fn state(gpus: Vec<pb::GpuStats>, alerts: Vec<pb::Alert>) -> State {
    let mut state = State::new("http://box:50051".into(), now());
    let mut apply = |event| state.apply_event(event, now());
    apply(ConnectionEvent::Connected);
    apply(ConnectionEvent::Snapshot);
    apply(heartbeat(0, 0));
    for gpu in gpus {
        apply(update(gpu));
    }
    for alert in alerts {
        apply(update(alert));
    }
    apply(snapshot_end());
    state
}

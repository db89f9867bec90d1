//! The columns of `gpu_stats` that hold a value of the GPU.

use chrono::{DateTime, Utc};

use crate::{
    entity,
    pb::{self, AbsentReason},
    rpc::time::{from_proto, to_proto},
};

/// Of every reason's name in the API.
const PREFIX: &str = "ABSENT_REASON_";

macro_rules! columns {
    ($($column:ident),+ $(,)?) => {
        /// How many there are.
        const COUNT: usize = [$(stringify!($column)),+].len();

        /// Those that a sample has no value for, in the order of the table.
        pub(super) fn absent(stats: &pb::GpuStats) -> impl Iterator<Item = &'static str> {
            let columns = [$((stringify!($column), stats.$column.is_none())),+];
            columns.into_iter().filter(|(_, absent)| *absent).map(|(column, _)| column)
        }
    };
}

columns!(
    gpu_name,
    gpu_utilization,
    memory_used,
    memory_total,
    temperature,
    power_usage,
    inference_fps,
    fan_speed,
    sm_clock,
    memory_bandwidth_utilization,
    pstate,
    throttle_reasons,
    power_limit,
    sm_clock_max,
    compute_processes_count,
    pcie_replay_counter,
    temp_slowdown_threshold,
    memory_clock,
    memory_clock_max,
    pcie_link_gen,
    pcie_link_width,
    pcie_tx_throughput,
    pcie_rx_throughput,
    encoder_utilization,
    decoder_utilization,
    bar1_used,
);

/// A sample of this GPU, as yet without values.
pub(super) fn of(gpu: &pb::Gpu) -> pb::GpuStats {
    pb::GpuStats {
        gpu_uuid: Some(gpu.uuid.clone()),
        gpu_index: gpu.gpu_index,
        host: Some(gpu.host.clone()),
        pci_bus_id: gpu.pci_bus_id.clone(),
        mig_parent_uuid: gpu.mig_parent_uuid.clone(),
        ..Default::default()
    }
}

/// The sample of a GPU that cannot be asked.
pub(super) fn nothing_of(gpu: &pb::Gpu, reason: AbsentReason) -> pb::GpuStats {
    let mut stats = pb::GpuStats {
        recorded_at: Some(to_proto(entity::now())),
        gpu_name: gpu.name.clone(),
        ..of(gpu)
    };
    stats.absent_reasons = absent(&stats)
        .map(|column| (column.into(), reason.into()))
        .collect();
    // The GPU would not have known this one either.
    stats
        .absent_reasons
        .insert("inference_fps".into(), AbsentReason::NotReported.into());
    stats
}

/// Whether the GPU has told anything. Its name is known without asking.
pub fn has_values(stats: &pb::GpuStats) -> bool {
    absent(stats).filter(|column| *column != "gpu_name").count() < COUNT - 1
}

/// When a sample was taken.
pub fn recorded_at(stats: &pb::GpuStats) -> DateTime<Utc> {
    let at = stats
        .recorded_at
        .and_then(|at| from_proto("recorded_at", at).ok());
    at.unwrap_or_else(entity::now)
}

/// What is kept of a reason in the database: `not_supported`.
pub fn label(reason: AbsentReason) -> String {
    reason
        .as_str_name()
        .trim_start_matches(PREFIX)
        .to_lowercase()
}

/// The reason that is kept like this.
pub(super) fn reason(label: &str) -> Option<AbsentReason> {
    AbsentReason::from_str_name(&format!("{PREFIX}{}", label.to_uppercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_column_of_a_gpu_that_cannot_be_asked_has_a_reason() {
        let stats = nothing_of(&pb::Gpu::default(), AbsentReason::GpuLost);
        assert_eq!((stats.absent_reasons.len(), COUNT), (26, 26));
        assert!(!has_values(&stats));
        let name = Some("a GPU".to_string());
        assert!(!has_values(&nothing_of(
            &pb::Gpu {
                name,
                ..Default::default()
            },
            AbsentReason::GpuLost
        )));
        assert!(has_values(&pb::GpuStats {
            fan_speed: Some(0),
            ..stats.clone()
        }));
        assert_eq!(absent(&stats).count(), 26);
        let reported = stats
            .absent_reasons
            .values()
            .filter(|reason| **reason != AbsentReason::GpuLost as i32)
            .count();
        assert_eq!(reported, 1);
    }

    #[test]
    fn labels_can_be_read_again() {
        assert_eq!(label(AbsentReason::DriverTooOld), "driver_too_old");
        for number in 0..=8 {
            let reason_ = AbsentReason::try_from(number).unwrap();
            assert_eq!(reason(&label(reason_)), Some(reason_));
        }
        assert_eq!(reason("nonsense"), None);
    }
}

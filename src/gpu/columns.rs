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

        /// Fills in what a sample did not ask for, as it was before.
        pub(super) fn carry(stats: &mut pb::GpuStats, before: &pb::GpuStats) {
            $(
                let column = stringify!($column);
                if stats.$column.is_none() && before.$column.is_some() && is_not_sampled(stats, column) {
                    stats.$column.clone_from(&before.$column);
                    stats.absent_reasons.remove(column);
                }
            )+
        }

        /// Their names, in the order of `absent_mask`.
        const NAMES: [&str; COUNT] = [$(stringify!($column)),+];
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
    energy_consumption,
    power_usage_instant,
    memory_temperature,
);

fn is_not_sampled(stats: &pb::GpuStats, column: &str) -> bool {
    stats.absent_reasons.get(column) == Some(&AbsentReason::NotSampled.into())
}

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
pub(super) fn recorded_at(stats: &pb::GpuStats) -> DateTime<Utc> {
    let at = stats
        .recorded_at
        .and_then(|at| from_proto("recorded_at", at).ok());
    at.unwrap_or_else(entity::now)
}

/// The letters of `absent_mask`: what is there is a dot.
const LETTERS: [(AbsentReason, char); 11] = [
    (AbsentReason::Unspecified, '?'),
    (AbsentReason::NotSupported, 'N'),
    (AbsentReason::NoPermission, 'P'),
    (AbsentReason::DriverTooOld, 'O'),
    (AbsentReason::Mig, 'M'),
    (AbsentReason::GpuLost, 'L'),
    (AbsentReason::NotSampled, 'S'),
    (AbsentReason::NotReported, 'R'),
    (AbsentReason::DriverError, 'E'),
    (AbsentReason::TimedOut, 'T'),
    (AbsentReason::Asleep, 'A'),
];

/// Why values are absent, as the database has it: a letter for each column.
pub(super) fn mask(stats: &pb::GpuStats) -> String {
    let absent: Vec<_> = absent(stats).collect();
    let letter = |name: &&str| {
        if !absent.contains(name) {
            return '.';
        }
        let reason = stats.absent_reasons.get(*name).copied();
        LETTERS
            .iter()
            .find(|(known, _)| Some(*known as i32) == reason)
            .map_or('?', |(_, letter)| *letter)
    };
    NAMES.iter().map(letter).collect()
}

/// Why this column is absent, by the mask of its row.
pub(super) fn masked(mask: &str, column: &str) -> Option<AbsentReason> {
    let at = NAMES.iter().position(|name| *name == column)?;
    let letter = mask.chars().nth(at)?;
    LETTERS
        .iter()
        .find(|(_, known)| *known == letter)
        .map(|(reason, _)| *reason)
}

/// The reason that rows without a mask have by its name: `not_supported`.
pub(super) fn reason(label: &str) -> Option<AbsentReason> {
    AbsentReason::from_str_name(&format!("{PREFIX}{}", label.to_uppercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_column_of_a_gpu_that_cannot_be_asked_has_a_reason() {
        let stats = nothing_of(&pb::Gpu::default(), AbsentReason::GpuLost);
        assert_eq!((stats.absent_reasons.len(), COUNT), (29, 29));
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
        assert_eq!(absent(&stats).count(), 29);
        let reported = stats
            .absent_reasons
            .values()
            .filter(|reason| **reason != AbsentReason::GpuLost as i32)
            .count();
        assert_eq!(reported, 1);
    }

    #[test]
    fn masks_and_labels_can_be_read_again() {
        assert_eq!(reason("driver_too_old"), Some(AbsentReason::DriverTooOld));
        assert_eq!(reason("nonsense"), None);
        for (at, (reason, letter)) in LETTERS.into_iter().enumerate() {
            assert_eq!(reason as usize, at);
            let mut stats = nothing_of(&pb::Gpu::default(), reason);
            stats.temperature = Some(0.0);
            stats.absent_reasons.remove("temperature");
            let mask = mask(&stats);
            assert_eq!(mask.len(), COUNT);
            assert_eq!(masked(&mask, "fan_speed"), Some(reason), "{letter}");
            assert_eq!(
                masked(&mask, "inference_fps"),
                Some(AbsentReason::NotReported)
            );
            assert_eq!(masked(&mask, "temperature"), None);
        }
        assert_eq!(masked("..", "bar1_used"), None);
    }
}

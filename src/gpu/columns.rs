//! Columns of `gpu_stats` that hold a value of the GPU, and the encoding of the reasons for absent
//! values.

use chrono::{DateTime, Utc};

use crate::{
    entity,
    pb::{self, AbsentReason},
    rpc::time::{from_proto, to_proto},
};

/// Character of `absent_mask` for a column that has a value.
const PRESENT: char = '.';

macro_rules! columns {
    ($($column:ident),+ $(,)?) => {
        /// Number of value columns.
        const COLUMN_COUNT: usize = [$(stringify!($column)),+].len();

        /// Names of the columns without a value in the sample, in the order of the table.
        pub(super) fn absent_columns(stats: &pb::GpuStats) -> impl Iterator<Item = &'static str> {
            let columns = [$((stringify!($column), stats.$column.is_none())),+];
            columns.into_iter().filter(|(_, absent)| *absent).map(|(column, _)| column)
        }

        /// Copies values that the sample left out because of its schedule from the sample before.
        pub(super) fn carry_over(stats: &mut pb::GpuStats, before: &pb::GpuStats) {
            $(
                let column = stringify!($column);
                if stats.$column.is_none() && before.$column.is_some() && is_not_sampled(stats, column) {
                    stats.$column.clone_from(&before.$column);
                    stats.absent_reasons.remove(column);
                }
            )+
        }

        /// Names of the value columns, in the order of the letters of `absent_mask`.
        const COLUMN_NAMES: [&str; COLUMN_COUNT] = [$(stringify!($column)),+];
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

/// Returns true if the sample's round of calls left the column out.
fn is_not_sampled(stats: &pb::GpuStats, column: &str) -> bool {
    stats.absent_reasons.get(column) == Some(&AbsentReason::NotSampled.into())
}

/// Sample of the GPU without any values.
pub(super) fn empty_sample(gpu: &pb::Gpu) -> pb::GpuStats {
    pb::GpuStats {
        gpu_uuid: Some(gpu.uuid.clone()),
        gpu_index: gpu.gpu_index,
        host: Some(gpu.host.clone()),
        pci_bus_id: gpu.pci_bus_id.clone(),
        mig_parent_uuid: gpu.mig_parent_uuid.clone(),
        ..Default::default()
    }
}

/// Sample of a GPU that cannot be queried: every value is absent for the given reason.
pub(super) fn absent_sample(gpu: &pb::Gpu, reason: AbsentReason) -> pb::GpuStats {
    let mut stats =
        pb::GpuStats { recorded_at: Some(to_proto(entity::now())), gpu_name: gpu.name.clone(), ..empty_sample(gpu) };
    stats.absent_reasons = absent_columns(&stats).map(|column| (column.into(), reason.into())).collect();
    // A working GPU does not report this value either.
    stats.absent_reasons.insert("inference_fps".into(), AbsentReason::NotReported.into());
    stats
}

/// Returns true if the sample has a value that was measured. The name of the GPU does not count,
/// because the name is known without a measurement.
pub fn has_values(stats: &pb::GpuStats) -> bool {
    absent_columns(stats).filter(|column| *column != "gpu_name").count() < COLUMN_COUNT - 1
}

/// Time of the sample. The current time if the sample has no valid time.
pub(super) fn recorded_at(stats: &pb::GpuStats) -> DateTime<Utc> {
    stats.recorded_at.and_then(|time| from_proto("recorded_at", time).ok()).unwrap_or_else(entity::now)
}

/// Value of the column `absent_mask`: one letter per column for the reason of absence, a dot for a
/// present value.
pub(super) fn encode_mask(stats: &pb::GpuStats) -> String {
    let absent: Vec<_> = absent_columns(stats).collect();
    let letter = |name: &&str| {
        if !absent.contains(name) {
            return PRESENT;
        }
        let number = stats.absent_reasons.get(*name).copied();
        AbsentReason::letter(number.unwrap_or_default())
    };
    COLUMN_NAMES.iter().map(letter).collect()
}

/// Reason for which a column is absent, from the mask of the row. `None` if the column has a value or
/// the mask is too short.
pub(super) fn decode_mask(mask: &str, column: &str) -> Option<AbsentReason> {
    let index = COLUMN_NAMES.iter().position(|name| *name == column)?;
    AbsentReason::from_letter(mask.chars().nth(index)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_column_of_a_gpu_that_cannot_be_asked_has_a_reason() {
        let stats = absent_sample(&pb::Gpu::default(), AbsentReason::GpuLost);
        assert_eq!((stats.absent_reasons.len(), COLUMN_COUNT), (29, 29));
        assert!(!has_values(&stats));
        let name = Some("a GPU".to_string());
        assert!(!has_values(&absent_sample(&pb::Gpu { name, ..Default::default() }, AbsentReason::GpuLost)));
        assert!(has_values(&pb::GpuStats { fan_speed: Some(0), ..stats.clone() }));
        assert_eq!(absent_columns(&stats).count(), 29);
        let reported = stats.absent_reasons.values().filter(|reason| **reason != AbsentReason::GpuLost as i32).count();
        assert_eq!(reported, 1);
    }

    #[test]
    fn masks_can_be_read_again() {
        for reason in (0..).map_while(|number| AbsentReason::try_from(number).ok()) {
            let mut stats = absent_sample(&pb::Gpu::default(), reason);
            stats.temperature = Some(0.0);
            stats.absent_reasons.remove("temperature");
            let mask = encode_mask(&stats);
            assert_eq!(mask.len(), COLUMN_COUNT);
            assert_eq!(decode_mask(&mask, "fan_speed"), Some(reason));
            assert_eq!(decode_mask(&mask, "inference_fps"), Some(AbsentReason::NotReported));
            assert_eq!(decode_mask(&mask, "temperature"), None);
        }
        assert_eq!(decode_mask("..", "bar1_used"), None);
    }
}

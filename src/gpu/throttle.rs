//! The reasons for which the driver holds clocks down, by their bits in NVML's mask.

use crate::pb::{GpuStats, ThrottleReason};

/// The reasons that have a bit, from the lowest to the highest.
pub const REASONS: [(u64, ThrottleReason); 10] = [
    (0x1, ThrottleReason::GpuIdle),
    (0x2, ThrottleReason::ApplicationsClocksSetting),
    (0x4, ThrottleReason::SwPowerCap),
    (0x8, ThrottleReason::HwSlowdown),
    (0x10, ThrottleReason::SyncBoost),
    (0x20, ThrottleReason::SwThermalSlowdown),
    (0x40, ThrottleReason::HwThermalSlowdown),
    (0x80, ThrottleReason::HwPowerBrakeSlowdown),
    (0x100, ThrottleReason::DisplayClockSetting),
    (1 << 63, ThrottleReason::Unknown),
];

/// The mask of a sample. The API and the databases keep it as a signed number, whose sign is bit 63.
pub fn mask(stats: &GpuStats) -> Option<u64> {
    stats.throttle_reasons.map(i64::cast_unsigned)
}

/// The bits of a mask that have no name.
pub fn unnamed(mask: u64) -> u64 {
    REASONS.iter().fold(mask, |rest, (bit, _)| rest & !bit)
}

//! Reasons for which the driver throttles clocks, by bit in NVML's mask.

use crate::pb::{GpuStats, ThrottleReason};

/// Reasons with a bit of NVML's mask, from the lowest bit to the highest.
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

/// Mask of a sample. The API and the databases store the mask as a signed number, with bit 63 as
/// the sign.
pub fn mask(stats: &GpuStats) -> Option<u64> {
    stats.throttle_reasons.map(i64::cast_unsigned)
}

/// Bits of the mask without a named reason.
pub fn unnamed_bits(mask: u64) -> u64 {
    REASONS.iter().fold(mask, |rest, (bit, _)| rest & !bit)
}

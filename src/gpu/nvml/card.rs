//! Reads the values of a sample from a GPU or a MIG instance.
//!
//! Values are never estimated. A value that the driver does not give is absent, with the reason. A
//! value outside of the range that NVML documents counts as a driver error.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{SubsecRound, Utc};
use nvml_wrapper::{
    Device,
    enum_wrappers::device::{Clock, PerformanceState, TemperatureSensor, TemperatureThreshold},
    error::{Bits, NvmlError},
};

use super::{epoch::Epoch, failure::Failure, pcie::Pcie, plan::CallPlan};
use crate::{
    gpu::{columns, value::Value},
    pb::{
        self,
        AbsentReason::{self, DriverError},
    },
    rpc::time::to_proto,
};

/// Time for which a value with a period of one second is reused.
const REUSE_WINDOW: Duration = Duration::from_millis(1_100);

/// Upper bound of an absolute slowdown temperature, in °C. Some cards only know a margin, and
/// return a small negative number as an unsigned one.
const MAX_SLOWDOWN_CELSIUS: u32 = 150;

/// GPU or MIG instance with a handle of NVML.
#[derive(Debug)]
pub(super) struct Card<'nvml> {
    pub(super) device: Device<'nvml>,
    pub(super) gpu: Arc<pb::Gpu>,
    /// True if the GPU has MIG enabled, which is then the reason for unsupported values.
    pub(super) mig: bool,
    /// Reasons of calls that will fail until the GPU is found again, by name of the call.
    pub(super) permanent_failures: HashMap<&'static str, AbsentReason>,
    /// Values that never change for this card, by name of the call.
    pub(super) constants: HashMap<&'static str, Value<u32>>,
    pub(super) plan: CallPlan,
    /// Last values of the columns that are not read in every sample, and the times of measurement.
    measured: pb::GpuStats,
    measured_at: HashMap<&'static str, Instant>,
    pub(super) pcie: Pcie,
    epoch: Epoch,
    pub(super) failure: Option<Failure>,
}

/// Stores each value in its column, or the reason for its absence. Columns with `reuse` repeat a
/// fresh value when the call is not due.
macro_rules! fill {
    ($card:ident, $stats:ident, $now:ident { $($column:ident = $value:expr $(, $reuse:ident)?;)+ }) => {$(
        let value = $value;
        $(let value = fill!(@$reuse $card, $column, value, $now);)?
        match value {
            Ok(value) => $stats.$column = Some(value),
            Err(reason) => {
                $stats.absent_reasons.insert(stringify!($column).into(), reason.into());
            }
        }
    )+};
    (@reuse $card:ident, $column:ident, $value:ident, $now:ident) => {
        match $value {
            Ok(value) => {
                $card.measured.$column = Some(value);
                $card.measured_at.insert(stringify!($column), $now);
                Ok(value)
            }
            Err(AbsentReason::NotSampled) if $card.is_fresh(stringify!($column), $now) => {
                $card.measured.$column.ok_or(AbsentReason::NotSampled)
            }
            Err(reason) => Err(reason),
        }
    };
}

impl<'nvml> Card<'nvml> {
    pub(super) fn new(device: Device<'nvml>, gpu: pb::Gpu, max_link: Option<(u32, u32)>, plan: CallPlan) -> Self {
        let (permanent_failures, pcie) = (HashMap::new(), Pcie::new(max_link));
        Self {
            device,
            gpu: Arc::new(gpu),
            mig: false,
            permanent_failures,
            constants: HashMap::new(),
            plan,
            measured: pb::GpuStats::default(),
            measured_at: HashMap::new(),
            pcie,
            epoch: Epoch::new(Utc::now().timestamp_millis()),
            failure: None,
        }
    }

    /// Begins a sample.
    pub(super) fn begin_sample(&mut self) {
        if let Some(calls) = self.plan.begin_sample(Instant::now()) {
            let gpu = self.gpu.uuid.as_str();
            tracing::info!(gpu, calls, "calls into the driver are made as its budget allows");
        }
    }

    pub(super) fn sample(&mut self) -> pb::GpuStats {
        let (started_at, started) = (Utc::now(), Instant::now());
        let rates = self.query("utilization", |card| card.utilization_rates().map(|rates| (rates.gpu, rates.memory)));
        let memory_info = self.query("memory", |card| card.memory_info().map(|memory| (memory.used, memory.total)));
        let memory =
            memory_info.and_then(|(used, total)| if used <= total { Ok((used, total)) } else { Err(DriverError) });
        let encoder = self.query("encoder", |card| card.encoder_utilization().map(|encoder| encoder.utilization));
        let decoder = self.query("decoder", |card| card.decoder_utilization().map(|decoder| decoder.utilization));
        let bar1 = self.query("bar1", |card| card.bar1_memory_info().map(|bar1| bar1.used));
        let pcie = self.pcie();
        let processes = self.query_number("processes", Device::running_compute_processes_count);
        let chip = TemperatureSensor::Gpu;
        let (power_instant, memory_temperature) = self.power_and_memory_temperature();
        let energy_counter = self.query("energy", Device::total_energy_consumption);
        let energy = energy_counter.and_then(|energy| i64::try_from(energy).map_err(|_| DriverError));
        let replays = self.query("replays", Device::pcie_replay_counter).map(i64::from);
        let mut stats = columns::empty_sample(&self.gpu);
        fill!(self, stats, started {
            gpu_name = self.gpu.name.clone().ok_or(DriverError);
            gpu_utilization = rates.and_then(|(gpu, _)| percent(gpu).map(f64::from));
            memory_used = memory.and_then(|(used, _)| mib(used));
            memory_total = memory.and_then(|(_, total)| mib(total));
            temperature = self.query_number("temperature", |card| card.temperature(chip)).map(f64::from), reuse;
            power_usage = self.query_number("power_usage", Device::power_usage).map(watts), reuse;
            inference_fps = Err(AbsentReason::NotReported);
            fan_speed = self.fan_speed(), reuse;
            sm_clock = self.query_number("sm_clock", |card| card.clock_info(Clock::SM));
            memory_bandwidth_utilization = rates.and_then(|(_, busy)| percent(busy).map(f64::from));
            pstate = self.pstate();
            throttle_reasons = self.query("throttle_reasons", throttle_reasons);
            power_limit = self.query_number("power_limit", Device::enforced_power_limit).map(watts), reuse;
            sm_clock_max = self.constant("sm_max", |card| card.max_clock_info(Clock::SM)).and_then(signed);
            compute_processes_count = processes, reuse;
            pcie_replay_counter = replays, reuse;
            temp_slowdown_threshold = self.temp_slowdown_threshold();
            memory_clock = self.query_number("memory_clock", |card| card.clock_info(Clock::Memory));
            memory_clock_max = self.constant("memory_max", |card| card.max_clock_info(Clock::Memory)).and_then(signed);
            pcie_link_gen = self.query_number("link_gen", Device::current_pcie_link_gen), reuse;
            pcie_link_width = self.query_number("link_width", Device::current_pcie_link_width), reuse;
            pcie_tx_throughput = pcie.sent;
            pcie_rx_throughput = pcie.received;
            encoder_utilization = encoder.and_then(percent), reuse;
            decoder_utilization = decoder.and_then(percent), reuse;
            bar1_used = bar1.and_then(mib), reuse;
            energy_consumption = energy, reuse;
            power_usage_instant = power_instant, reuse;
            memory_temperature = memory_temperature, reuse;
        });
        let now = started_at.timestamp_millis();
        let epoch = self.epoch.of_counters(now, [energy.ok(), replays.ok()]);
        stats.counter_epoch = Some(epoch);
        // The middle of the calls is closest to all measurements.
        let recorded_at = started_at + started.elapsed() / 2;
        stats.recorded_at = Some(to_proto(recorded_at.trunc_subsecs(6)));
        stats
    }

    /// Returns true if the column was measured within [`REUSE_WINDOW`].
    fn is_fresh(&self, column: &str, now: Instant) -> bool {
        let measured_at = self.measured_at.get(column);
        measured_at.is_some_and(|time| now.duration_since(*time) <= REUSE_WINDOW)
    }

    /// Makes a call, unless the call is not due or will fail.
    pub(super) fn query<T>(
        &mut self,
        call_name: &'static str,
        call: impl FnOnce(&Device<'nvml>) -> Result<T, NvmlError>,
    ) -> Value<T> {
        // A lost GPU may answer each call slowly.
        if let Some(failure) = &self.failure {
            return Err(failure.reason);
        }
        if let Some(reason) = self.permanent_failures.get(call_name) {
            return Err(*reason);
        }
        if !self.plan.is_due(call_name) {
            return Err(AbsentReason::NotSampled);
        }
        let started = Instant::now();
        let result = call(&self.device);
        self.plan.record(call_name, started.elapsed());
        result.map_err(|error| {
            let reason = self.classify_error(error);
            if is_permanent(reason) {
                self.permanent_failures.insert(call_name, reason);
            }
            reason
        })
    }

    fn query_number(
        &mut self,
        call_name: &'static str,
        call: impl FnOnce(&Device<'nvml>) -> Result<u32, NvmlError>,
    ) -> Value<i32> {
        // Larger values are negative numbers, or `NVML_VALUE_NOT_AVAILABLE`.
        self.query(call_name, call).and_then(signed)
    }

    /// Value that never changes for this card. The call is repeated rarely, and the value is reused
    /// in between.
    fn constant(
        &mut self,
        call_name: &'static str,
        call: impl FnOnce(&Device<'nvml>) -> Result<u32, NvmlError>,
    ) -> Value<u32> {
        if let Some(failure) = &self.failure {
            return Err(failure.reason);
        }
        if let Some(value) = self.constants.get(call_name)
            && !self.plan.is_due(call_name)
        {
            return *value;
        }
        let value = self.query(call_name, call);
        if self.failure.is_none() {
            self.constants.insert(call_name, value);
        }
        value
    }

    fn fan_speed(&mut self) -> Value<i32> {
        let fans = self.query("fans", Device::num_fans)?;
        let mut fastest = None;
        for fan in 0..fans {
            fastest = fastest.max(Some(self.query_number("fan_speed", |card| card.fan_speed(fan))?));
        }
        fastest.ok_or_else(|| self.unsupported())
    }

    fn pstate(&mut self) -> Value<i32> {
        let pstate = self.query("pstate", |card| match card.performance_state() {
            // An unknown performance state must not be read as a return code.
            Err(NvmlError::UnexpectedVariant(_)) => Err(NvmlError::Unknown),
            pstate => pstate,
        })?;
        if pstate == PerformanceState::Unknown {
            return Err(self.unsupported());
        }
        i32::try_from(pstate.as_c()).map_err(|_| DriverError)
    }

    fn temp_slowdown_threshold(&mut self) -> Value<f64> {
        let slowdown = TemperatureThreshold::Slowdown;
        let threshold = self.constant("temp_slowdown_threshold", |card| card.temperature_threshold(slowdown))?;
        if (1..=MAX_SLOWDOWN_CELSIUS).contains(&threshold) { Ok(threshold.into()) } else { Err(self.unsupported()) }
    }

    /// Reason for absence after an error. A severe error also ends the sample.
    pub(super) fn classify_error(&mut self, error: NvmlError) -> AbsentReason {
        let taken_apart = self.gpu.mig_parent_uuid.is_some() && matches!(error, NvmlError::InvalidArg);
        let failure = Failure::from(error);
        let reason = failure.reason;
        if taken_apart || failure.affects_session || reason == AbsentReason::GpuLost {
            self.failure = Some(failure);
        }
        if reason == AbsentReason::NotSupported { self.unsupported() } else { reason }
    }

    fn unsupported(&self) -> AbsentReason {
        if self.mig { AbsentReason::Mig } else { AbsentReason::NotSupported }
    }
}

/// Returns true if the reason persists until the GPU is found again.
pub(super) fn is_permanent(reason: AbsentReason) -> bool {
    matches!(reason, AbsentReason::NotSupported | AbsentReason::Mig | AbsentReason::DriverTooOld)
}

/// Mask as given by the driver. The wrapper returns unknown bits as an error.
fn throttle_reasons(card: &Device<'_>) -> Result<i64, NvmlError> {
    match card.current_throttle_reasons_strict() {
        Ok(reasons) => Ok(reasons.bits().cast_signed()),
        Err(NvmlError::IncorrectBits(Bits::U64(mask))) => Ok(mask.cast_signed()),
        Err(error) => Err(error),
    }
}

fn signed(value: u32) -> Value<i32> {
    i32::try_from(value).map_err(|_| DriverError)
}

fn percent(value: u32) -> Value<i32> {
    i32::try_from(value).ok().filter(|value| *value <= 100).ok_or(DriverError)
}

pub(super) fn watts(milliwatts: i32) -> f64 {
    f64::from(milliwatts) / 1_000.0
}

fn mib(bytes: u64) -> Value<i64> {
    if bytes == u64::MAX { Err(DriverError) } else { Ok((bytes >> 20).cast_signed()) }
}

//! Asks a GPU, or a MIG instance, for every value of a sample.
//!
//! No value is made up. What the driver does not tell is absent, with the reason; a value outside
//! of what NVML promises counts as an error of the driver.

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

use super::{Failure, fields::Epoch};
use super::{pcie::Pcie, plan::Plan};
use crate::{
    gpu::{Value, columns},
    pb::{
        self,
        AbsentReason::{self, DriverError},
    },
    rpc::time::to_proto,
};

/// How long a value may be told again that is asked for once a second.
const FRESH: Duration = Duration::from_millis(1_100);

/// Absolute slowdown temperatures lie below, in °C. Cards that only know a margin give it instead,
/// as a small negative number in an unsigned one.
const HOTTEST: u32 = 150;

/// What NVML gives a handle for.
#[derive(Debug)]
pub(super) struct Card<'nvml> {
    pub(super) device: Device<'nvml>,
    pub(super) gpu: Arc<pb::Gpu>,
    /// Whether the GPU is divided: that is why it does not support what it does not.
    pub(super) mig: bool,
    /// Calls that are not worth making again, by what they are for.
    pub(super) refused: HashMap<&'static str, AbsentReason>,
    /// What does not change as long as the card is there.
    pub(super) facts: HashMap<&'static str, Value<u32>>,
    pub(super) plan: Plan,
    /// The last values of what is not asked for in every sample, and when they were measured.
    measured: pb::GpuStats,
    measured_at: HashMap<&'static str, Instant>,
    pub(super) pcie: Pcie,
    epoch: Epoch,
    pub(super) failure: Option<Failure>,
}

/// Puts every value into its column, or the reason why there is none beside it. What was measured a
/// moment ago and is not asked for in this sample is told `again`.
macro_rules! fill {
    ($card:ident, $stats:ident, $now:ident { $($column:ident = $value:expr $(, $again:ident)?;)+ }) => {$(
        let value = $value;
        $(let value = fill!(@$again $card, $column, value, $now);)?
        match value {
            Ok(value) => $stats.$column = Some(value),
            Err(reason) => {
                $stats.absent_reasons.insert(stringify!($column).into(), reason.into());
            }
        }
    )+};
    (@again $card:ident, $column:ident, $value:ident, $now:ident) => {
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
    pub(super) fn new(
        device: Device<'nvml>,
        gpu: pb::Gpu,
        max_link: Option<(u32, u32)>,
        plan: Plan,
    ) -> Self {
        let (refused, pcie) = (HashMap::new(), Pcie::new(max_link));
        Self {
            device,
            gpu: Arc::new(gpu),
            mig: false,
            refused,
            facts: HashMap::new(),
            plan,
            measured: pb::GpuStats::default(),
            measured_at: HashMap::new(),
            pcie,
            epoch: Epoch::new(Utc::now().timestamp_millis()),
            failure: None,
        }
    }

    /// Begins a sample.
    pub(super) fn begin(&mut self) {
        if let Some(calls) = self.plan.begin(Instant::now()) {
            let gpu = self.gpu.uuid.as_str();
            tracing::info!(
                gpu,
                calls,
                "calls into the driver are made as its budget allows"
            );
        }
    }

    pub(super) fn sample(&mut self) -> pb::GpuStats {
        let (started_at, started) = (Utc::now(), Instant::now());
        let rates = self.ask("utilization", |card| {
            card.utilization_rates()
                .map(|rates| (rates.gpu, rates.memory))
        });
        let memory = self.ask("memory", |card| {
            card.memory_info().map(|memory| (memory.used, memory.total))
        });
        let memory = memory.and_then(|(used, total)| {
            if used <= total {
                Ok((used, total))
            } else {
                Err(DriverError)
            }
        });
        let encoder = self.ask("encoder", |card| {
            card.encoder_utilization()
                .map(|encoder| encoder.utilization)
        });
        let decoder = self.ask("decoder", |card| {
            card.decoder_utilization()
                .map(|decoder| decoder.utilization)
        });
        let bar1 = self.ask("bar1", |card| card.bar1_memory_info().map(|bar1| bar1.used));
        let pcie = self.pcie();
        let processes = self.number("processes", Device::running_compute_processes_count);
        let chip = TemperatureSensor::Gpu;
        let (power_instant, memory_temperature) = self.more();
        let energy = self.ask("energy", Device::total_energy_consumption);
        let energy = energy.and_then(|energy| i64::try_from(energy).map_err(|_| DriverError));
        let replays = self
            .ask("replays", Device::pcie_replay_counter)
            .map(i64::from);
        let mut stats = columns::of(&self.gpu);
        fill!(self, stats, started {
            gpu_name = self.gpu.name.clone().ok_or(DriverError);
            gpu_utilization = rates.and_then(|(gpu, _)| percent(gpu).map(f64::from));
            memory_used = memory.and_then(|(used, _)| mib(used));
            memory_total = memory.and_then(|(_, total)| mib(total));
            temperature = self.number("temperature", |card| card.temperature(chip)).map(f64::from), again;
            power_usage = self.number("power_usage", Device::power_usage).map(watts), again;
            inference_fps = Err(AbsentReason::NotReported);
            fan_speed = self.fan_speed(), again;
            sm_clock = self.number("sm_clock", |card| card.clock_info(Clock::SM));
            memory_bandwidth_utilization = rates.and_then(|(_, busy)| percent(busy).map(f64::from));
            pstate = self.pstate();
            throttle_reasons = self.ask("throttle_reasons", throttle_reasons);
            power_limit = self.number("power_limit", Device::enforced_power_limit).map(watts), again;
            sm_clock_max = self.fact("sm_max", |card| card.max_clock_info(Clock::SM)).and_then(signed);
            compute_processes_count = processes, again;
            pcie_replay_counter = replays, again;
            temp_slowdown_threshold = self.temp_slowdown_threshold();
            memory_clock = self.number("memory_clock", |card| card.clock_info(Clock::Memory));
            memory_clock_max = self.fact("memory_max", |card| card.max_clock_info(Clock::Memory)).and_then(signed);
            pcie_link_gen = self.number("link_gen", Device::current_pcie_link_gen), again;
            pcie_link_width = self.number("link_width", Device::current_pcie_link_width), again;
            pcie_tx_throughput = pcie.sent;
            pcie_rx_throughput = pcie.received;
            encoder_utilization = encoder.and_then(percent), again;
            decoder_utilization = decoder.and_then(percent), again;
            bar1_used = bar1.and_then(mib), again;
            energy_consumption = energy, again;
            power_usage_instant = power_instant, again;
            memory_temperature = memory_temperature, again;
        });
        let now = started_at.timestamp_millis();
        let epoch = self.epoch.after(now, [energy.ok(), replays.ok()]);
        stats.counter_epoch = Some(epoch);
        // The middle of the calls is nearest to all of them.
        let recorded_at = started_at + started.elapsed() / 2;
        stats.recorded_at = Some(to_proto(recorded_at.trunc_subsecs(6)));
        stats
    }

    /// Whether this column was measured a moment ago.
    fn is_fresh(&self, column: &str, now: Instant) -> bool {
        let at = self.measured_at.get(column);
        at.is_some_and(|at| now.duration_since(*at) <= FRESH)
    }

    /// Makes a call, unless it is known to be in vain.
    pub(super) fn ask<T>(
        &mut self,
        what: &'static str,
        call: impl FnOnce(&Device<'nvml>) -> Result<T, NvmlError>,
    ) -> Value<T> {
        // A GPU that is gone may take its time to say so, every time.
        if let Some(failure) = &self.failure {
            return Err(failure.reason);
        }
        if let Some(reason) = self.refused.get(what) {
            return Err(*reason);
        }
        if !self.plan.is_due(what) {
            return Err(AbsentReason::NotSampled);
        }
        let begun = Instant::now();
        let answer = call(&self.device);
        self.plan.took(what, begun.elapsed());
        answer.map_err(|error| {
            let reason = self.refusal(error);
            if is_final(reason) {
                self.refused.insert(what, reason);
            }
            reason
        })
    }

    fn number(
        &mut self,
        what: &'static str,
        call: impl FnOnce(&Device<'nvml>) -> Result<u32, NvmlError>,
    ) -> Value<i32> {
        // What is larger is a negative number, or `NVML_VALUE_NOT_AVAILABLE`.
        self.ask(what, call).and_then(signed)
    }

    /// What stays the same as long as the card is there is asked for now and then, and told again in
    /// between.
    fn fact(
        &mut self,
        what: &'static str,
        call: impl FnOnce(&Device<'nvml>) -> Result<u32, NvmlError>,
    ) -> Value<u32> {
        if let Some(failure) = &self.failure {
            return Err(failure.reason);
        }
        if let Some(value) = self.facts.get(what)
            && !self.plan.is_due(what)
        {
            return *value;
        }
        let value = self.ask(what, call);
        if self.failure.is_none() {
            self.facts.insert(what, value);
        }
        value
    }

    fn fan_speed(&mut self) -> Value<i32> {
        let fans = self.ask("fans", Device::num_fans)?;
        let mut fastest = None;
        for fan in 0..fans {
            fastest = fastest.max(Some(self.number("fan_speed", |card| card.fan_speed(fan))?));
        }
        fastest.ok_or_else(|| self.unsupported())
    }

    fn pstate(&mut self) -> Value<i32> {
        let pstate = self.ask("pstate", |card| match card.performance_state() {
            // A state that the wrapper does not know, which must not be read as a return code.
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
        let threshold = self.fact("temp_slowdown_threshold", |card| {
            card.temperature_threshold(slowdown)
        })?;
        if (1..=HOTTEST).contains(&threshold) {
            Ok(threshold.into())
        } else {
            Err(self.unsupported())
        }
    }

    /// Why there is no value after this error, which may be the last of this sample.
    pub(super) fn refusal(&mut self, error: NvmlError) -> AbsentReason {
        let taken_apart =
            self.gpu.mig_parent_uuid.is_some() && matches!(error, NvmlError::InvalidArg);
        let failure = Failure::from(error);
        let reason = failure.reason;
        if taken_apart || failure.everywhere || reason == AbsentReason::GpuLost {
            self.failure = Some(failure);
        }
        if reason == AbsentReason::NotSupported {
            self.unsupported()
        } else {
            reason
        }
    }

    fn unsupported(&self) -> AbsentReason {
        if self.mig {
            AbsentReason::Mig
        } else {
            AbsentReason::NotSupported
        }
    }
}

/// Whether the answer stays the same until the GPU is found anew.
pub(super) fn is_final(reason: AbsentReason) -> bool {
    matches!(
        reason,
        AbsentReason::NotSupported | AbsentReason::Mig | AbsentReason::DriverTooOld
    )
}

/// The driver's mask as it is: the wrapper gives the bits that it does not know as an error.
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
    i32::try_from(value)
        .ok()
        .filter(|value| *value <= 100)
        .ok_or(DriverError)
}

pub(super) fn watts(milliwatts: i32) -> f64 {
    f64::from(milliwatts) / 1_000.0
}

fn mib(bytes: u64) -> Value<i64> {
    if bytes == u64::MAX {
        Err(DriverError)
    } else {
        Ok((bytes >> 20).cast_signed())
    }
}

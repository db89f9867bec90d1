//! Values that NVML gives as numbered fields.

use std::time::Instant;

use nvml_wrapper::{
    enum_wrappers::device::PcieUtilCounter, enums::device::SampleValue, error::NvmlError,
    struct_wrappers::device::FieldValueSample, structs::device::FieldId,
};

use super::card::{Card, is_permanent, watts};
use super::pcie::{Counter, Directions};
use crate::{
    gpu::value::Value,
    pb::AbsentReason::{self, DriverError},
};

/// `NVML_FI_DEV_PCIE_COUNT_TX_BYTES` and `NVML_FI_DEV_PCIE_COUNT_RX_BYTES`.
const PCIE_BYTES: [FieldId; 2] = [FieldId(197), FieldId(198)];

/// `NVML_FI_DEV_POWER_INSTANT` and `NVML_FI_DEV_MEMORY_TEMP`.
const POWER_AND_MEMORY_TEMPERATURE: [FieldId; 2] = [FieldId(186), FieldId(82)];

impl Card<'_> {
    pub(super) fn pcie(&mut self) -> Directions<Value<i64>> {
        let now = Instant::now();
        let replies = self.query("pcie_bytes", |card| {
            // Matched by position, because the field numbers in a reply are internal to the driver.
            let [sent, received] = card.field_values_for(&PCIE_BYTES)?.try_into().map_err(|_| NvmlError::Unknown)?;
            Ok(Directions { sent, received })
        });
        if let Err(AbsentReason::NotSampled) = replies {
            // The counters of the sample before are kept for the next sample.
            let not_sampled = Err(AbsentReason::NotSampled);
            return Directions { sent: not_sampled, received: not_sampled };
        }
        let counters = match replies {
            Ok(replies) => Directions { sent: self.counter(replies.sent), received: self.counter(replies.received) },
            Err(reason) => Directions { sent: Err(reason), received: Err(reason) },
        };
        if let (Err(reason), Err(_)) = (counters.sent, counters.received)
            && is_permanent(reason)
        {
            self.permanent_failures.insert("pcie_bytes", reason);
        }
        let rates = self.pcie.rates(now, counters);
        let needs_throughput = rates.sent.is_none() || rates.received.is_none();
        let may_query = needs_throughput && self.pcie.may_query_throughput(now);
        let mut throughput = |call_name, counter| match self.permanent_failures.get(call_name) {
            None if !may_query => Err(AbsentReason::NotSampled),
            _ => self.query(call_name, |card| card.pcie_throughput(counter)).map(i64::from),
        };
        Directions {
            sent: rates.sent.unwrap_or_else(|| throughput("pcie_send", PcieUtilCounter::Send)),
            received: rates.received.unwrap_or_else(|| throughput("pcie_receive", PcieUtilCounter::Receive)),
        }
    }

    /// Current power draw in W, and temperature of the memory in °C.
    pub(super) fn power_and_memory_temperature(&mut self) -> (Value<f64>, Value<f64>) {
        let replies = self.query("fields", |card| {
            let [power, memory] =
                card.field_values_for(&POWER_AND_MEMORY_TEMPERATURE)?.try_into().map_err(|_| NvmlError::Unknown)?;
            Ok((power, memory))
        });
        let (power, memory) = match replies {
            Ok((power, memory)) => (self.reading(power), self.reading(memory)),
            Err(reason) => (Err(reason), Err(reason)),
        };
        if let (Err(reason), Err(_)) = (power, memory)
            && is_permanent(reason)
        {
            self.permanent_failures.insert("fields", reason);
        }
        (power.map(watts), memory.map(f64::from))
    }

    /// Field value from 0 to 2^31 - 1.
    fn reading(&mut self, reply: Result<FieldValueSample, NvmlError>) -> Value<i32> {
        match reply.and_then(|reply| reply.value) {
            Ok(SampleValue::U32(value)) => i32::try_from(value).map_err(|_| DriverError),
            Ok(SampleValue::U64(value)) => i32::try_from(value).map_err(|_| DriverError),
            Ok(SampleValue::I64(value)) => i32::try_from(value).ok().filter(|value| *value >= 0).ok_or(DriverError),
            Ok(SampleValue::F64(_)) => Err(DriverError),
            Err(error) => Err(self.classify_error(error)),
        }
    }

    fn counter(&mut self, reply: Result<FieldValueSample, NvmlError>) -> Value<Counter> {
        match reply.and_then(|reply| reply.value) {
            Ok(SampleValue::U32(bytes)) => Ok(Counter::Narrow(bytes)),
            Ok(SampleValue::U64(bytes)) => Ok(Counter::Wide(bytes)),
            Ok(SampleValue::I64(bytes)) => u64::try_from(bytes).map(Counter::Wide).map_err(|_| DriverError),
            Ok(SampleValue::F64(_)) => Err(DriverError),
            Err(error) => Err(self.classify_error(error)),
        }
    }
}

//! What a card tells as numbered fields, and what its counters say.

use std::time::Instant;

use nvml_wrapper::{
    enum_wrappers::device::PcieUtilCounter, enums::device::SampleValue, error::NvmlError,
    struct_wrappers::device::FieldValueSample, structs::device::FieldId,
};

use super::card::{Card, is_final, watts};
use super::pcie::{Counter, Directions};
use crate::{
    gpu::Value,
    pb::AbsentReason::{self, DriverError},
};

/// `NVML_FI_DEV_PCIE_COUNT_TX_BYTES` and `NVML_FI_DEV_PCIE_COUNT_RX_BYTES`.
const PCIE_BYTES: [FieldId; 2] = [FieldId(197), FieldId(198)];

/// `NVML_FI_DEV_POWER_INSTANT` and `NVML_FI_DEV_MEMORY_TEMP`.
const MORE: [FieldId; 2] = [FieldId(186), FieldId(82)];

impl Card<'_> {
    pub(super) fn pcie(&mut self) -> Directions<Value<i64>> {
        let at = Instant::now();
        let replies = self.ask("pcie_bytes", |card| {
            // By position: the number of a field in a reply is the driver's own.
            let [sent, received] = card
                .field_values_for(&PCIE_BYTES)?
                .try_into()
                .map_err(|_| NvmlError::Unknown)?;
            Ok(Directions { sent, received })
        });
        if let Err(AbsentReason::NotSampled) = replies {
            // The counters of the sample before are kept for the next one.
            let nothing = Err(AbsentReason::NotSampled);
            return Directions {
                sent: nothing,
                received: nothing,
            };
        }
        let counters = match replies {
            Ok(replies) => Directions {
                sent: self.counter(replies.sent),
                received: self.counter(replies.received),
            },
            Err(reason) => Directions {
                sent: Err(reason),
                received: Err(reason),
            },
        };
        if let (Err(reason), Err(_)) = (counters.sent, counters.received)
            && is_final(reason)
        {
            self.refused.insert("pcie_bytes", reason);
        }
        let rates = self.pcie.rates(at, counters);
        let blind = rates.sent.is_none() || rates.received.is_none();
        let may_ask = blind && self.pcie.may_ask_throughput(at);
        let mut throughput = |what, counter| match self.refused.get(what) {
            None if !may_ask => Err(AbsentReason::NotSampled),
            _ => self
                .ask(what, |card| card.pcie_throughput(counter))
                .map(i64::from),
        };
        Directions {
            sent: rates
                .sent
                .unwrap_or_else(|| throughput("pcie_send", PcieUtilCounter::Send)),
            received: rates
                .received
                .unwrap_or_else(|| throughput("pcie_receive", PcieUtilCounter::Receive)),
        }
    }

    /// The power of this moment, in W, and the temperature of the memory, in °C.
    pub(super) fn more(&mut self) -> (Value<f64>, Value<f64>) {
        let replies = self.ask("fields", |card| {
            let [power, memory] = card
                .field_values_for(&MORE)?
                .try_into()
                .map_err(|_| NvmlError::Unknown)?;
            Ok((power, memory))
        });
        let (power, memory) = match replies {
            Ok((power, memory)) => (self.reading(power), self.reading(memory)),
            Err(reason) => (Err(reason), Err(reason)),
        };
        if let (Err(reason), Err(_)) = (power, memory)
            && is_final(reason)
        {
            self.refused.insert("fields", reason);
        }
        (power.map(watts), memory.map(f64::from))
    }

    /// A number that must be small, and not below zero.
    fn reading(&mut self, reply: Result<FieldValueSample, NvmlError>) -> Value<i32> {
        match reply.and_then(|reply| reply.value) {
            Ok(SampleValue::U32(value)) => i32::try_from(value).map_err(|_| DriverError),
            Ok(SampleValue::U64(value)) => i32::try_from(value).map_err(|_| DriverError),
            Ok(SampleValue::I64(value)) => i32::try_from(value)
                .ok()
                .filter(|value| *value >= 0)
                .ok_or(DriverError),
            Ok(SampleValue::F64(_)) => Err(DriverError),
            Err(error) => Err(self.refusal(error)),
        }
    }

    fn counter(&mut self, reply: Result<FieldValueSample, NvmlError>) -> Value<Counter> {
        match reply.and_then(|reply| reply.value) {
            Ok(SampleValue::U32(bytes)) => Ok(Counter::Narrow(bytes)),
            Ok(SampleValue::U64(bytes)) => Ok(Counter::Wide(bytes)),
            Ok(SampleValue::I64(bytes)) => u64::try_from(bytes)
                .map(Counter::Wide)
                .map_err(|_| DriverError),
            Ok(SampleValue::F64(_)) => Err(DriverError),
            Err(error) => Err(self.refusal(error)),
        }
    }
}

/// The stretch in which counters have only grown.
#[derive(Debug)]
pub(super) struct Epoch {
    /// Its name: when it began, in milliseconds since 1970.
    name: i64,
    before: [Option<i64>; 2],
}

impl Epoch {
    pub(super) fn new(now: i64) -> Self {
        Self {
            name: now,
            before: [None; 2],
        }
    }

    /// The epoch that these counters belong to, read at this time in milliseconds since 1970.
    pub(super) fn after(&mut self, now: i64, counters: [Option<i64>; 2]) -> i64 {
        let backwards = self.before.iter().zip(counters).any(|(before, counter)| {
            before.is_some_and(|before| counter.is_some_and(|counter| counter < before))
        });
        if backwards {
            // Clocks are set back; epochs must differ all the same.
            *self = Self::new(now.max(self.name + 1));
        }
        for (before, counter) in self.before.iter_mut().zip(counters) {
            *before = counter.or(*before);
        }
        self.name
    }
}

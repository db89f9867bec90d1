//! Events that NVML reports.

use std::time::Duration;

use nvml_wrapper::{EventSet, bitmasks::event::EventTypes, enums::event::XidError, error::NvmlError};

use super::{failure::Failure, session::Session};

/// Types of events to report. Changes of clocks and performance states are left out, because they
/// occur many times per second.
const EVENT_TYPES: EventTypes = EventTypes::CRITICAL_XID_ERROR
    .union(EventTypes::SINGLE_BIT_ECC_ERROR)
    .union(EventTypes::DOUBLE_BIT_ECC_ERROR)
    .union(EventTypes::POWER_SOURCE_CHANGE)
    .union(EventTypes::MIG_CONFIG_CHANGE);

/// Registered events of one GPU.
#[derive(Debug)]
pub(in crate::gpu) struct Events<'nvml>(EventSet<'nvml>);

/// Event of a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::gpu) enum Event {
    /// Driver error, with its number if NVML knows the number.
    Xid(Option<i64>),
    EccSingleBit,
    EccDoubleBit,
    PowerSource,
    /// MIG instances of the GPU were created or deleted.
    MigConfigChanged,
}

impl Session {
    /// Registers for the events of a GPU. `None` if the GPU reports no events.
    pub(in crate::gpu) fn events(&self, uuid: &str) -> Result<Option<Events<'_>>, Failure> {
        let device = self.nvml.device_by_uuid(uuid)?;
        let supported = match device.supported_event_types() {
            Ok(supported) => supported & EVENT_TYPES,
            Err(NvmlError::NotSupported) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if supported.is_empty() {
            return Ok(None);
        }
        let empty_set = self.nvml.create_event_set()?;
        let event_set = device.register_events(supported, empty_set).map_err(|error| error.error)?;
        Ok(Some(Events(event_set)))
    }
}

impl Events<'_> {
    /// Next event. `None` if no event came within `wait`.
    pub(in crate::gpu) fn next(&self, wait: Duration) -> Result<Option<Event>, Failure> {
        let millis = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
        let event = match self.0.wait(millis) {
            Ok(event) => event,
            Err(NvmlError::Timeout) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let xid = event.event_data.map(|xid| match xid {
            XidError::Value(number) => Event::Xid(i64::try_from(number).ok()),
            XidError::Unknown => Event::Xid(None),
        });
        let other_kinds = [
            (EventTypes::DOUBLE_BIT_ECC_ERROR, Event::EccDoubleBit),
            (EventTypes::SINGLE_BIT_ECC_ERROR, Event::EccSingleBit),
            (EventTypes::POWER_SOURCE_CHANGE, Event::PowerSource),
            (EventTypes::MIG_CONFIG_CHANGE, Event::MigConfigChanged),
        ];
        let other_event =
            other_kinds.into_iter().find(|(kind, _)| event.event_type.contains(*kind)).map(|(_, event)| event);
        Ok(xid.or(other_event))
    }
}

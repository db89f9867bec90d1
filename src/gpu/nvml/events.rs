//! What NVML tells by itself.

use std::time::Duration;

use nvml_wrapper::{
    EventSet, bitmasks::event::EventTypes, enums::event::XidError, error::NvmlError,
};

use super::{Failure, Session};

/// What is worth being told of. Changes of clocks and performance states are everyday, and come
/// many a second.
const WANTED: EventTypes = EventTypes::CRITICAL_XID_ERROR
    .union(EventTypes::SINGLE_BIT_ECC_ERROR)
    .union(EventTypes::DOUBLE_BIT_ECC_ERROR)
    .union(EventTypes::POWER_SOURCE_CHANGE)
    .union(EventTypes::MIG_CONFIG_CHANGE);

/// The events of one GPU.
#[derive(Debug)]
pub(in crate::gpu) struct Events<'nvml>(EventSet<'nvml>);

/// Something that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::gpu) enum Event {
    /// An error of the driver, with its number unless NVML does not know it.
    Xid(Option<i64>),
    EccSingleBit,
    EccDoubleBit,
    PowerSource,
    /// The GPU was divided into other MIG instances.
    Divided,
}

impl Session {
    /// Listens to a GPU. `None` if it has nothing to tell.
    pub(in crate::gpu) fn events(&self, uuid: &str) -> Result<Option<Events<'_>>, Failure> {
        let device = self.nvml.device_by_uuid(uuid)?;
        let supported = match device.supported_event_types() {
            Ok(supported) => supported & WANTED,
            Err(NvmlError::NotSupported) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if supported.is_empty() {
            return Ok(None);
        }
        let set = self.nvml.create_event_set()?;
        let set = device
            .register_events(supported, set)
            .map_err(|error| error.error)?;
        Ok(Some(Events(set)))
    }
}

impl Events<'_> {
    /// Waits for the next event, at most so long.
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
        let others = [
            (EventTypes::DOUBLE_BIT_ECC_ERROR, Event::EccDoubleBit),
            (EventTypes::SINGLE_BIT_ECC_ERROR, Event::EccSingleBit),
            (EventTypes::POWER_SOURCE_CHANGE, Event::PowerSource),
            (EventTypes::MIG_CONFIG_CHANGE, Event::Divided),
        ];
        let mut others = others.into_iter();
        let other = others.find(|(kind, _)| event.event_type.contains(*kind));
        Ok(xid.or(other.map(|(_, event)| event)))
    }
}

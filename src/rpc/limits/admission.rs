//! Admission of requests by the memory of their decoded messages, per message and in total.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::layout::{MessageLayouts, SizeError};
use crate::error::{Error, Result};

/// Maximum decoded size of a message, as a multiple of the maximum encoded size.
const EXPANSION_FACTOR: u64 = 10;

/// Unit of memory accounting, in bytes.
const UNIT_BYTES: u64 = 1 << 10;

/// Requests up to this decoded size, in bytes, are not counted; their total is negligible.
const MAX_UNCOUNTED_BYTES: u64 = 4 << 10;

/// Error message for exhausted memory.
const NO_MEMORY: &str = "the memory for concurrent requests is exhausted; retry later";

tokio::task_local! {
    /// Memory of the call whose messages are being decoded.
    static CURRENT: Arc<RequestMemory>;
}

/// Admission of requests. Clones share the memory.
#[derive(Debug, Clone)]
pub struct Admission {
    layouts: Arc<MessageLayouts>,
    /// Free memory, in units.
    pool: Arc<Semaphore>,
    pool_size: u64,
    /// Maximum memory of a message, in bytes.
    max_message_memory: u64,
}

/// Memory held by the last message of a call.
#[derive(Debug)]
pub struct RequestMemory {
    admission: Admission,
    input: Option<usize>,
    permit_slot: Mutex<Option<OwnedSemaphorePermit>>,
}

impl Admission {
    /// Creates the admission for methods of encoded descriptors. Requests have up to
    /// `max_message_size` bytes each, and take up to `memory` bytes together.
    pub fn new(descriptors: &[&[u8]], max_message_size: usize, memory: u64) -> Self {
        let max_message_memory = max_message_size as u64 * EXPANSION_FACTOR;
        // A single request must fit.
        let needed_units = memory.max(max_message_memory).div_ceil(UNIT_BYTES);
        let units = usize::try_from(needed_units)
            .unwrap_or(Semaphore::MAX_PERMITS)
            .min(u32::MAX as usize)
            .min(Semaphore::MAX_PERMITS);
        Self {
            layouts: Arc::new(MessageLayouts::new(descriptors)),
            pool: Arc::new(Semaphore::new(units)),
            pool_size: units as u64 * UNIT_BYTES,
            max_message_memory,
        }
    }

    /// Returns the used and total memory, in bytes.
    pub fn memory(&self) -> (u64, u64) {
        let left = self.pool.available_permits() as u64 * UNIT_BYTES;
        (self.pool_size.saturating_sub(left), self.pool_size)
    }

    /// Creates the accounting of a call of this method.
    pub fn begin_call(&self, path: &str) -> Arc<RequestMemory> {
        Arc::new(RequestMemory {
            input: self.layouts.input(path),
            admission: self.clone(),
            permit_slot: Mutex::new(None),
        })
    }
}

impl RequestMemory {
    /// Runs the call with this accounting in scope.
    pub fn scope<F: Future>(self: Arc<Self>, call: F) -> impl Future<Output = F::Output> + use<F> {
        CURRENT.scope(self, call)
    }

    /// Returns the accounting of the current call, on a server.
    pub fn current() -> Option<Arc<Self>> {
        CURRENT.try_with(Clone::clone).ok()
    }

    /// Admits a message before decoding, or refuses it. The memory is held until the next message
    /// or the end of the call.
    pub fn admit(&self, message: &[u8]) -> Result<()> {
        let Some(input) = self.input else {
            return Ok(());
        };
        let mut permit_slot = self.permit_slot.lock();
        *permit_slot = None;
        let admission = &self.admission;
        let memory = match admission.layouts.memory(input, message, admission.max_message_memory) {
            Ok(memory) => memory + message.len() as u64,
            Err(SizeError::LimitExceeded) => {
                return Err(Error::TooManyElements { limit: admission.max_message_memory });
            }
            Err(SizeError::Malformed) => return Err(Error::Malformed),
        };
        if memory > MAX_UNCOUNTED_BYTES {
            let units = u32::try_from(memory.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX);
            let permit = admission.pool.clone().try_acquire_many_owned(units);
            *permit_slot = Some(permit.map_err(|_| Error::Busy(NO_MEMORY))?);
        }
        Ok(())
    }
}

//! Admission of requests by the memory of their decoded messages, per message and in total.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::shape::{Shapes, Unknown};
use crate::error::{Error, Result};

/// Maximum decoded size of a message, as a multiple of the maximum encoded size.
const EXPANSION: u64 = 10;

/// Unit of memory accounting, in bytes.
const UNIT: u64 = 1 << 10;

/// Requests up to this decoded size, in bytes, are not counted; their total is negligible.
const SMALL: u64 = 4 << 10;

/// Error message for exhausted memory.
const NO_MEMORY: &str = "the requests under way take all the memory that this server gives them";

tokio::task_local! {
    /// Memory of the call whose messages are being decoded.
    static CURRENT: Arc<Call>;
}

/// Admission of requests. Clones share the memory.
#[derive(Debug, Clone)]
pub struct Admission {
    shapes: Arc<Shapes>,
    /// Free memory, in units.
    pool: Arc<Semaphore>,
    pool_size: u64,
    /// Maximum memory of a message, in bytes.
    most: u64,
}

/// Memory held by the last message of a call.
#[derive(Debug)]
pub struct Call {
    admission: Admission,
    input: Option<usize>,
    held: Mutex<Option<OwnedSemaphorePermit>>,
}

impl Admission {
    /// Creates the admission for methods of encoded descriptors. Requests have up to
    /// `max_message_size` bytes each, and take up to `memory` bytes together.
    pub fn new(descriptors: &[&[u8]], max_message_size: usize, memory: u64) -> Self {
        let most = max_message_size as u64 * EXPANSION;
        // A single request must fit.
        let units = memory.max(most).div_ceil(UNIT);
        let units = usize::try_from(units).unwrap_or(Semaphore::MAX_PERMITS);
        let units = units.min(u32::MAX as usize).min(Semaphore::MAX_PERMITS);
        Self {
            shapes: Arc::new(Shapes::new(descriptors)),
            pool: Arc::new(Semaphore::new(units)),
            pool_size: units as u64 * UNIT,
            most,
        }
    }

    /// Returns the used and total memory, in bytes.
    pub fn memory(&self) -> (u64, u64) {
        let left = self.pool.available_permits() as u64 * UNIT;
        (self.pool_size.saturating_sub(left), self.pool_size)
    }

    /// Creates the accounting of a call of this method.
    pub fn call(&self, path: &str) -> Arc<Call> {
        Arc::new(Call {
            input: self.shapes.input(path),
            admission: self.clone(),
            held: Mutex::new(None),
        })
    }
}

impl Call {
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
        let mut held = self.held.lock();
        *held = None;
        let admission = &self.admission;
        let memory = match admission.shapes.memory(input, message, admission.most) {
            Ok(memory) => memory + message.len() as u64,
            Err(Unknown::TooMuch) => {
                return Err(Error::TooManyElements {
                    limit: admission.most,
                });
            }
            Err(Unknown::Malformed) => return Err(Error::Malformed),
        };
        if memory > SMALL {
            let units = u32::try_from(memory.div_ceil(UNIT)).unwrap_or(u32::MAX);
            let permit = admission.pool.clone().try_acquire_many_owned(units);
            *held = Some(permit.map_err(|_| Error::Busy(NO_MEMORY))?);
        }
        Ok(())
    }
}

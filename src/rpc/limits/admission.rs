//! Which requests are let in: by the memory that each takes once it is decoded, and that all under way take together.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::shape::{Shapes, Unknown};
use crate::error::{Error, Result};

/// The memory that a message may take, as a multiple of its largest size on the wire.
const EXPANSION: u64 = 10;

/// The unit in which memory is counted, in bytes.
const UNIT: u64 = 1 << 10;

/// Requests that take less are not counted: there cannot be enough of them to matter.
const SMALL: u64 = 4 << 10;

/// Failure of a request for which there is no memory.
const NO_MEMORY: &str = "the requests under way take all the memory that this server gives them";

tokio::task_local! {
    /// The call to which the messages belong that are decoded.
    static CURRENT: Arc<Call>;
}

/// Lets requests in. Clones share the memory.
#[derive(Debug, Clone)]
pub struct Admission {
    shapes: Arc<Shapes>,
    /// The memory that is left to requests, in units.
    pool: Arc<Semaphore>,
    pool_size: u64,
    /// The memory that one message may take, in bytes.
    most: u64,
}

/// A call, and the memory that its last message takes.
#[derive(Debug)]
pub struct Call {
    admission: Admission,
    input: Option<usize>,
    held: Mutex<Option<OwnedSemaphorePermit>>,
}

impl Admission {
    /// Lets in requests of the methods that these encoded descriptions name, of up to `max_message_size` bytes each,
    /// that take up to `memory` bytes together.
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

    /// The memory that requests under way take and may take, in bytes.
    pub fn memory(&self) -> (u64, u64) {
        let left = self.pool.available_permits() as u64 * UNIT;
        (self.pool_size.saturating_sub(left), self.pool_size)
    }

    /// A call of this method that begins.
    pub fn call(&self, path: &str) -> Arc<Call> {
        Arc::new(Call {
            input: self.shapes.input(path),
            admission: self.clone(),
            held: Mutex::new(None),
        })
    }
}

impl Call {
    /// Runs the call, whose messages are decoded meanwhile.
    pub fn scope<F: Future>(self: Arc<Self>, call: F) -> impl Future<Output = F::Output> + use<F> {
        CURRENT.scope(self, call)
    }

    /// The call that is running, on a server.
    pub fn current() -> Option<Arc<Self>> {
        CURRENT.try_with(Clone::clone).ok()
    }

    /// Lets a message in that is about to be decoded, or refuses it. Its memory is held until the next message of
    /// the call, or the end of the call.
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

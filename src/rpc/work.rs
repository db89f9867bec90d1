//! Execution of long computations outside of the runtime's threads, so that other tasks are not
//! blocked.

use std::sync::LazyLock;

use tokio::{sync::Semaphore, task::spawn_blocking};

use crate::error::{Error, Result};

/// Encoded size in bytes up to which a request is processed on the runtime's threads, in less than
/// a millisecond.
const MAX_INLINE_BYTES: usize = 32 << 10;

/// Bounds the memory and processor time of large requests together.
static PERMITS: LazyLock<Semaphore> = LazyLock::new(|| {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    Semaphore::new(processors)
});

/// Runs the check or conversion of a request. A request above 32 KiB runs on a separate thread.
pub async fn run_by_size<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    if bytes <= MAX_INLINE_BYTES {
        return work();
    }
    run_blocking(work).await
}

/// Runs a long computation on a separate thread, at most one per processor at a time.
pub async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    // The semaphore is never closed.
    let permit = PERMITS.acquire().await.map_err(Error::internal)?;
    let result = spawn_blocking(work).await;
    drop(permit);
    result.map_err(Error::internal)?
}

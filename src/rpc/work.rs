//! Execution of long computations outside of the runtime's threads, so that other tasks are not
//! blocked.

use std::sync::LazyLock;

use tokio::{sync::Semaphore, task::spawn_blocking};

use crate::error::{Error, Result};

/// Encoded size in bytes up to which a request is processed on the runtime's threads, in less than
/// a millisecond.
const SMALL: usize = 32 << 10;

/// Bounds the memory and processor time of large requests together.
static TURNS: LazyLock<Semaphore> = LazyLock::new(|| {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    Semaphore::new(processors)
});

/// Runs the check or conversion of a request. A request above 32 KiB runs on a separate thread.
pub async fn by_size<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    if bytes <= SMALL {
        return work();
    }
    off_runtime(work).await
}

/// Runs a long computation on a separate thread, at most one per processor at a time.
pub async fn off_runtime<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    // The semaphore is never closed.
    let turn = TURNS.acquire().await.map_err(Error::internal)?;
    let done = spawn_blocking(work).await;
    drop(turn);
    done.map_err(Error::internal)?
}

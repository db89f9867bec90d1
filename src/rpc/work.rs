//! Work on large requests, which would hold up everything else on the runtime's threads.

use std::sync::LazyLock;

use tokio::{sync::Semaphore, task::spawn_blocking};

use crate::error::{Error, Result};

/// Encoded size up to which a request is checked on the runtime's threads, which takes less than a millisecond.
const SMALL: usize = 32 << 10;

/// Bounds the memory and the processor time that large requests take together.
static TURNS: LazyLock<Semaphore> = LazyLock::new(|| {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    Semaphore::new(processors)
});

/// Checks or converts a request of so many encoded bytes. Of a large one on a thread of its own.
pub async fn by_size<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    if bytes <= SMALL {
        return work();
    }
    off_runtime(work).await
}

/// Does work that takes long on a thread of its own, as many at a time as there are processors.
pub async fn off_runtime<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    // The semaphore is never closed.
    let turn = TURNS.acquire().await.map_err(Error::internal)?;
    let done = spawn_blocking(work).await;
    drop(turn);
    done.map_err(Error::internal)?
}

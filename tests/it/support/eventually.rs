//! Polling for expected events.

use std::{fmt::Display, time::Duration};

use tokio::time::{sleep, timeout};

use super::PATIENCE;

/// Pause after the first probe. Each further pause is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(2);

/// Longest pause between two probes.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// Waits until `holds` is true. Panics with `what` after [`PATIENCE`].
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    eventually_some(what, async || holds().await.then_some(())).await;
}

/// Calls `probe` until it returns a value, and returns that value. Panics with `what` after [`PATIENCE`].
pub async fn eventually_some<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let found = poll(async || probe().await.ok_or(())).await;
    found.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}

/// Calls `probe` until it succeeds, and returns its value. Panics with `what` and the last error after
/// [`PATIENCE`].
pub async fn eventually_ok<T, E: Display>(what: &str, probe: impl AsyncFnMut() -> Result<T, E>) -> T {
    match poll(probe).await {
        Ok(value) => value,
        Err(Some(last)) => panic!("not within {PATIENCE:?}: {what}; the last probe gave: {last}"),
        Err(None) => panic!("not within {PATIENCE:?}: {what}; no probe came to its end"),
    }
}

/// The first value of `probe`, or its last error when [`PATIENCE`] is over.
async fn poll<T, E>(mut probe: impl AsyncFnMut() -> Result<T, E>) -> Result<T, Option<E>> {
    let mut last = None;
    let polling = async {
        let mut pause = FIRST_PAUSE;
        loop {
            match probe().await {
                Ok(value) => return value,
                Err(error) => last = Some(error),
            }
            sleep(pause).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    };
    let polled = timeout(PATIENCE, polling).await;
    polled.map_err(|_| last)
}

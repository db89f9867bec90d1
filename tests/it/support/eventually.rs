//! Waiting for what comes in time, by asking for it again and again.

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

/// Asks `probe` again and again until it gives a value, and gives that value. Panics with `what` after [`PATIENCE`].
pub async fn eventually_some<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let found = ask(async || probe().await.ok_or(())).await;
    found.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}

/// Asks `probe` again and again until it succeeds, and gives its value. Panics with `what` and the last error after
/// [`PATIENCE`].
pub async fn eventually_ok<T, E: Display>(what: &str, probe: impl AsyncFnMut() -> Result<T, E>) -> T {
    match ask(probe).await {
        Ok(value) => value,
        Err(Some(last)) => panic!("not within {PATIENCE:?}: {what}; the last probe gave: {last}"),
        Err(None) => panic!("not within {PATIENCE:?}: {what}; no probe came to its end"),
    }
}

/// The first value of `probe`, or its last error when [`PATIENCE`] is over.
async fn ask<T, E>(mut probe: impl AsyncFnMut() -> Result<T, E>) -> Result<T, Option<E>> {
    let mut last = None;
    let asking = async {
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
    let asked = timeout(PATIENCE, asking).await;
    asked.map_err(|_| last)
}

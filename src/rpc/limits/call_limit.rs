//! Limit of concurrent calls over all connections.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Result};

/// Path of the method with a reserve beyond the limit.
const HEALTH_CHECK_PATH: &str = "/grpc.health.v1.Health/Check";

/// Number of concurrent health checks beyond the limit.
const MAX_EXTRA_HEALTH_CHECKS: usize = 256;

/// Limit and statistics of concurrent calls. Clones share the state.
#[derive(Debug, Clone)]
pub struct CallLimit(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    free: Arc<Semaphore>,
    limit: usize,
    /// Permits for health checks while the limit is reached.
    health_checks: Arc<Semaphore>,
    refused: AtomicU64,
}

impl CallLimit {
    /// Creates a limit of concurrent calls.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Counts {
            free: Arc::new(Semaphore::new(limit)),
            limit,
            health_checks: Arc::new(Semaphore::new(MAX_EXTRA_HEALTH_CHECKS)),
            refused: AtomicU64::new(0),
        }))
    }

    /// Returns the number of running calls.
    pub fn open(&self) -> usize {
        let calls = self.0.limit - self.0.free.available_permits();
        calls + MAX_EXTRA_HEALTH_CHECKS - self.0.health_checks.available_permits()
    }

    /// Returns the maximum number of concurrent calls, without the reserve for health checks.
    pub fn limit(&self) -> usize {
        self.0.limit
    }

    /// Returns the number of calls refused because of the limit.
    pub fn refused(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }

    /// Acquires a permit for a call of the method at this path. The call counts until the permit is
    /// dropped.
    pub(crate) fn acquire(&self, path: &str) -> Result<OwnedSemaphorePermit> {
        let counts = &self.0;
        if let Ok(permit) = counts.free.clone().try_acquire_owned() {
            return Ok(permit);
        }
        if path == HEALTH_CHECK_PATH
            && let Ok(permit) = counts.health_checks.clone().try_acquire_owned()
        {
            return Ok(permit);
        }
        counts.refused.fetch_add(1, Ordering::Relaxed);
        Err(Error::TooManyCalls { limit: counts.limit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_checks_have_a_reserve_and_health_watches_have_none() {
        let limit = CallLimit::new(1);
        let call = limit.acquire("/watchpost.v1.CameraService/GetCamera").unwrap();
        assert!(limit.acquire("/grpc.health.v1.Health/Watch").is_err());
        let checks: Vec<_> = (0..MAX_EXTRA_HEALTH_CHECKS).map(|_| limit.acquire(HEALTH_CHECK_PATH).unwrap()).collect();
        assert!(limit.acquire(HEALTH_CHECK_PATH).is_err());
        assert_eq!((limit.open(), limit.refused()), (1 + MAX_EXTRA_HEALTH_CHECKS, 2));
        drop((call, checks));
        assert_eq!(limit.open(), 0);
    }
}

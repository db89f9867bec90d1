//! Timeouts shared by the pools of connections.

use std::time::Duration;

/// Maximum wait of a call for a PostgreSQL connection.
pub(super) const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);

/// Idle time after which a PostgreSQL connection is tested before use.
pub(super) const IDLE_BEFORE_TEST: Duration = Duration::from_millis(500);

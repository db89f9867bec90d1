//! Deadline of a call, set by the client in the header `grpc-timeout`.

use std::time::Duration;

use http::{HeaderMap, HeaderName};
use tokio::time::{Instant, timeout_at};

/// Header with the timeout of a call.
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Maximum number of digits of a gRPC timeout.
const MAX_DIGITS: usize = 8;

tokio::task_local! {
    /// Deadline of the call of the current task.
    static DEADLINE: Option<Instant>;
}

/// Returns the deadline in request headers. `None` without a valid timeout.
pub fn from_headers(headers: &HeaderMap) -> Option<Instant> {
    let text = headers.get(&GRPC_TIMEOUT)?.to_str().ok()?;
    Instant::now().checked_add(parse_timeout(text)?)
}

/// Returns the deadline of the call of the current task.
pub fn current() -> Option<Instant> {
    DEADLINE.try_with(|deadline| *deadline).ok().flatten()
}

/// Runs `work` with this deadline in scope. At the deadline `work` is dropped, and the result is
/// `None`.
pub async fn run<F: Future>(deadline: Option<Instant>, work: F) -> Option<F::Output> {
    let work = DEADLINE.scope(deadline, work);
    match deadline {
        Some(deadline) => timeout_at(deadline, work).await.ok(),
        None => Some(work.await),
    }
}

/// Runs the synchronous `work` with this deadline in scope.
pub fn run_sync<T>(deadline: Option<Instant>, work: impl FnOnce() -> T) -> T {
    DEADLINE.sync_scope(deadline, work)
}

/// Parses a number and its unit: `1500m` is a second and a half.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if number.len() > MAX_DIGITS || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = number.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_hours(number)),
        "M" => Some(Duration::from_mins(number)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_numbers_with_a_unit() {
        for (text, timeout) in [
            ("1H", Some(Duration::from_hours(1))),
            ("2M", Some(Duration::from_mins(2))),
            ("99999999S", Some(Duration::from_secs(99_999_999))),
            ("1500m", Some(Duration::from_millis(1_500))),
            ("7u", Some(Duration::from_micros(7))),
            ("0n", Some(Duration::ZERO)),
            ("", None),
            ("S", None),
            ("5", None),
            ("5x", None),
            ("+5S", None),
            ("-5S", None),
            ("123456789S", None),
            ("5ß", None),
        ] {
            assert_eq!(parse_timeout(text), timeout, "{text}");
        }
    }

    #[tokio::test]
    async fn work_is_dropped_at_its_deadline() {
        let passed = Some(Instant::now());
        assert_eq!(run(passed, std::future::pending::<()>()).await, None);
        let deadline = Some(Instant::now() + Duration::from_hours(1));
        assert_eq!(run(deadline, async { current() }).await, Some(deadline));
        assert_eq!(run(None, async { current() }).await, Some(None));
        assert_eq!(run_sync(deadline, current), deadline);
        assert_eq!(current(), None);
    }
}

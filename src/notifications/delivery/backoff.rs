//! Exponential back-off between the attempts of a delivery.

use std::time::Duration;

/// Maximum number of attempts of a delivery.
pub(crate) const MAX_ATTEMPTS: i32 = 10;

/// Longest delay between two attempts, also if the receiver asks for more.
pub(crate) const MAX_DELAY: Duration = Duration::from_hours(24);

/// Delay after the first failure, multiplied by four after each further failure, up to a day.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// Delay after the first failure.
    pub first: Duration,
}

impl Backoff {
    /// Delay after a number of failures, up to a fifth longer or shorter by `jitter` in [0, 1). The jitter spreads
    /// deliveries that failed together. `None` after the last attempt.
    pub fn delay_after(self, failures: i32, jitter: f64) -> Option<Duration> {
        if failures >= MAX_ATTEMPTS {
            return None;
        }
        let steps = u32::try_from(failures - 1).unwrap_or(0);
        let delay = self.first.saturating_mul(4_u32.saturating_pow(steps));
        Some(delay.min(MAX_DELAY).mul_f64(0.8 + 0.4 * jitter).min(MAX_DELAY))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_between_attempts_grows_up_to_a_day_and_ends() {
        let backoff = Backoff { first: Duration::from_secs(5) };
        let seconds: Vec<_> =
            (1..=10).map_while(|failures| backoff.delay_after(failures, 0.5)).map(|delay| delay.as_secs()).collect();
        let expected = [5, 20, 80, 320, 1280, 5120, 20480, 81920, 86400];
        assert_eq!(seconds, expected);
        for jitter in [0.0, 0.25, 0.999] {
            let delay = backoff.delay_after(2, jitter).unwrap();
            assert!((16.0..24.0).contains(&delay.as_secs_f64()), "{delay:?}");
            assert!(backoff.delay_after(9, jitter).unwrap() <= MAX_DELAY);
        }
    }
}

//! When a delivery that has failed is tried again.

use std::time::Duration;

/// How often a delivery is tried.
pub(crate) const ATTEMPTS: i32 = 10;

/// The longest time between two attempts, and the longest that a receiver may ask to wait.
pub(crate) const LONGEST: Duration = Duration::from_hours(24);

/// How long to wait after the first failure; after each further one it is four times as long, up to a day.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// After the first one.
    pub first: Duration,
}

impl Backoff {
    /// How long to wait after this many failures, up to a fifth more or less by `jitter` in [0, 1), so that what has
    /// failed together is not tried together for ever. `None`: it is not tried any more.
    pub fn after(self, failures: i32, jitter: f64) -> Option<Duration> {
        if failures >= ATTEMPTS {
            return None;
        }
        let steps = u32::try_from(failures - 1).unwrap_or(0);
        let delay = self.first.saturating_mul(4_u32.saturating_pow(steps));
        Some(delay.min(LONGEST).mul_f64(0.8 + 0.4 * jitter).min(LONGEST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_between_attempts_grows_up_to_a_day_and_ends() {
        let backoff = Backoff {
            first: Duration::from_secs(5),
        };
        let seconds: Vec<_> = (1..=10)
            .map_while(|failures| backoff.after(failures, 0.5))
            .map(|delay| delay.as_secs())
            .collect();
        let expected = [5, 20, 80, 320, 1280, 5120, 20480, 81920, 86400];
        assert_eq!(seconds, expected);
        for jitter in [0.0, 0.25, 0.999] {
            let delay = backoff.after(2, jitter).unwrap();
            assert!((16.0..24.0).contains(&delay.as_secs_f64()), "{delay:?}");
            assert!(backoff.after(9, jitter).unwrap() <= LONGEST);
        }
    }
}

//! When the threads of this family run: steady ticks, pauses that grow, and the end.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// The first pause after a failure, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));

/// Ends the threads: each waits on it between two ticks.
#[derive(Debug, Default)]
pub(crate) struct Stop {
    set: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    pub(crate) fn set(&self) {
        *self.set.lock() = true;
        self.changed.notify_all();
    }

    pub(crate) fn is_set(&self) -> bool {
        *self.set.lock()
    }

    /// Acts, unless it is set. Once [`Stop::set`] has returned, nobody acts any more.
    pub(crate) fn unless_set(&self, act: impl FnOnce()) {
        let set = self.set.lock();
        if !*set {
            act();
        }
    }

    /// Waits until `at`, or until it is set: whether it is.
    pub(crate) fn wait_until(&self, at: Instant) -> bool {
        let mut set = self.set.lock();
        self.changed.wait_while_until(&mut set, |set| !*set, at);
        *set
    }
}

/// Instants at equal distances. Whoever comes late misses some, and is on time again for the next.
#[derive(Debug)]
pub(crate) struct Ticks {
    next: Instant,
    every: Duration,
}

impl Ticks {
    pub(crate) fn new(first: Instant, every: Duration) -> Self {
        Self { next: first, every }
    }

    /// The first tick that is not over at `now`.
    pub(crate) fn next(&mut self, now: Instant) -> Instant {
        let late = now.saturating_duration_since(self.next);
        let missed = late.as_nanos().div_ceil(self.every.as_nanos().max(1));
        let at = self.next + self.every * u32::try_from(missed).unwrap_or(u32::MAX);
        self.next = at + self.every;
        at
    }
}

/// Pauses between attempts, each twice as long as the one before, up to a minute.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    last: Option<Duration>,
}

impl Backoff {
    pub(crate) fn next(&mut self) -> Duration {
        let (first, longest) = PAUSES;
        let pause = self.last.map_or(first, |last| (last * 2).min(longest));
        self.last = Some(pause);
        pause
    }

    /// After a success the next pause is short again.
    pub(crate) fn reset(&mut self) {
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_ticks_are_left_out_and_do_not_shift_the_schedule() {
        let start = Instant::now();
        let ms = |ms| start + Duration::from_millis(ms);
        let mut ticks = Ticks::new(start, Duration::from_millis(100));
        for (now, next) in [
            (0, 0),
            (3, 100),
            (190, 200),
            (300, 300),
            (301, 400),
            (405, 500),
            (1234, 1300),
            (1300, 1400),
        ] {
            assert_eq!(ticks.next(ms(now)), ms(next), "at {now} ms");
        }
    }

    #[test]
    fn pauses_grow_to_a_minute_and_start_over() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..8).map(|_| backoff.next().as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        backoff.reset();
        assert_eq!(backoff.next().as_secs(), 1);
    }

    #[test]
    fn a_stop_ends_a_wait_at_once() {
        let stop = Stop::default();
        assert!(!stop.wait_until(Instant::now()));
        let started = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| assert!(stop.wait_until(started + Duration::from_mins(10))));
            stop.set();
        });
        assert!(started.elapsed() < Duration::from_mins(1));
        stop.unless_set(|| panic!("it is set"));
    }
}

//! Schedule of the sampling threads: steady ticks, backoff, and the stop signal.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Shortest and longest pause of a backoff.
const MIN_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_mins(1);

/// Signal that ends the sampling threads. Each thread waits on the signal between two ticks.
#[derive(Debug, Default)]
pub(crate) struct StopSignal {
    set: Mutex<bool>,
    changed: Condvar,
}

impl StopSignal {
    pub(crate) fn set(&self) {
        *self.set.lock() = true;
        self.changed.notify_all();
    }

    pub(crate) fn is_set(&self) -> bool {
        *self.set.lock()
    }

    /// Calls `act`, unless the signal is set. No `act` runs after [`StopSignal::set`] has returned.
    pub(crate) fn unless_set(&self, act: impl FnOnce()) {
        let set = self.set.lock();
        if !*set {
            act();
        }
    }

    /// Waits until `deadline` or the signal. Returns true if the signal is set.
    pub(crate) fn wait_until(&self, deadline: Instant) -> bool {
        let mut set = self.set.lock();
        self.changed.wait_while_until(&mut set, |set| !*set, deadline);
        *set
    }
}

/// Ticks at equal distances. A late caller skips the missed ticks and keeps the schedule.
#[derive(Debug)]
pub(crate) struct Ticks {
    next: Instant,
    interval: Duration,
}

impl Ticks {
    pub(crate) fn new(first: Instant, interval: Duration) -> Self {
        Self { next: first, interval }
    }

    /// The first tick at or after `now`.
    pub(crate) fn next(&mut self, now: Instant) -> Instant {
        let delay = now.saturating_duration_since(self.next);
        let missed = delay.as_nanos().div_ceil(self.interval.as_nanos().max(1));
        let tick = self.next + self.interval * u32::try_from(missed).unwrap_or(u32::MAX);
        self.next = tick + self.interval;
        tick
    }
}

/// Pauses between attempts. Each pause is twice as long as the one before, up to a minute.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    last: Option<Duration>,
}

impl Backoff {
    pub(crate) fn next(&mut self) -> Duration {
        let pause = self.last.map_or(MIN_PAUSE, |last| (last * 2).min(MAX_PAUSE));
        self.last = Some(pause);
        pause
    }

    /// Makes the next pause the shortest. Called after a success.
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
        for (now, next) in
            [(0, 0), (3, 100), (190, 200), (300, 300), (301, 400), (405, 500), (1234, 1300), (1300, 1400)]
        {
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
        let stop = StopSignal::default();
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

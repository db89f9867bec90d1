//! How much a GPU moves over PCI Express: rates from its byte counters.

use std::time::{Duration, Instant};

use crate::{gpu::Value, pb::AbsentReason};

/// How often the call may be made that holds up the sampler for 20 ms per direction.
const THROUGHPUT_EVERY: Duration = Duration::from_secs(30);

/// What one lane moves at most, in bytes per second, from generation 1 on.
const BYTES_PER_LANE: [f64; 6] = [250e6, 500e6, 985e6, 1_970e6, 3_940e6, 7_880e6];

/// A byte counter as the driver gives it: how wide it is depends on the card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counter {
    /// Goes round every 4 GiB.
    Narrow(u32),
    Wide(u64),
}

/// Both directions of something, as the GPU sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Directions<T> {
    pub sent: T,
    pub received: T,
}

/// What is remembered of one GPU from one sample to the next.
#[derive(Debug)]
pub(crate) struct Pcie {
    /// What the link moves at most, in bytes per second, if known.
    capacity: Option<f64>,
    before: Option<(Instant, Directions<Value<Counter>>)>,
    throughput_asked: Option<Instant>,
}

impl Pcie {
    /// For a link that never goes above this generation and number of lanes.
    pub(crate) fn new(max_link: Option<(u32, u32)>) -> Self {
        let capacity = max_link.and_then(|(generation, lanes)| {
            let at = usize::try_from(generation).ok()?.checked_sub(1)?;
            Some(BYTES_PER_LANE.get(at)? * f64::from(lanes))
        });
        Self {
            capacity,
            before: None,
            throughput_asked: None,
        }
    }

    /// The rates in KB/s since the counters that were given before. `None` where these counters
    /// cannot tell, whatever the sample before.
    pub(crate) fn rates(
        &mut self,
        at: Instant,
        counters: Directions<Value<Counter>>,
    ) -> Directions<Option<Value<i64>>> {
        let before = self.before.replace((at, counters));
        let rate = |now: Value<Counter>, before: Option<Value<Counter>>, elapsed: f64| {
            let now = match now {
                Err(
                    AbsentReason::NotSupported | AbsentReason::Mig | AbsentReason::DriverTooOld,
                ) => return None,
                Err(reason) => return Some(Err(reason)),
                Ok(now) => now,
            };
            let Some(Ok(before)) = before else {
                return Some(Err(AbsentReason::NotSampled));
            };
            let bytes = match (before, now) {
                (Counter::Wide(before), Counter::Wide(now)) => now.checked_sub(before),
                // More than one round would go unseen, and the rate would be an invention.
                (Counter::Narrow(_), Counter::Narrow(_)) if !self.stays_below_a_round(elapsed) => {
                    return None;
                }
                (Counter::Narrow(before), Counter::Narrow(now)) => {
                    now.checked_sub(before).map(u64::from)
                }
                _ => None,
            };
            Some(
                bytes
                    .and_then(|bytes| kb_per_second(bytes, elapsed))
                    .ok_or(AbsentReason::NotSampled),
            )
        };
        let elapsed = before.map_or(0.0, |(before, _)| at.duration_since(before).as_secs_f64());
        let before = before.map(|(_, counters)| counters);
        Directions {
            sent: rate(counters.sent, before.map(|before| before.sent), elapsed),
            received: rate(
                counters.received,
                before.map(|before| before.received),
                elapsed,
            ),
        }
    }

    /// Whether the blocking call may be made now. If so, it counts as made.
    pub(crate) fn may_ask_throughput(&mut self, now: Instant) -> bool {
        let due = self
            .throughput_asked
            .is_none_or(|asked| now.duration_since(asked) >= THROUGHPUT_EVERY);
        if due {
            self.throughput_asked = Some(now);
        }
        due
    }

    fn stays_below_a_round(&self, elapsed: f64) -> bool {
        self.capacity
            .is_some_and(|capacity| capacity * elapsed < f64::from(u32::MAX))
    }
}

/// KB/s, of 1,000 bytes, rounded down.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "2^53 KB/s is beyond any link"
)]
fn kb_per_second(bytes: u64, elapsed: f64) -> Option<i64> {
    (elapsed > 0.0).then(|| (bytes as f64 / elapsed / 1_000.0) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Counter::{Narrow, Wide};

    const GIB: u64 = 1 << 30;

    /// The rate of the second of two counters, `millis` apart, on such a link.
    fn rate(
        link: Option<(u32, u32)>,
        millis: u64,
        before: Value<Counter>,
        now: Value<Counter>,
    ) -> Option<Value<i64>> {
        let mut pcie = Pcie::new(link);
        let start = Instant::now();
        let other = Err(AbsentReason::NoPermission);
        pcie.rates(
            start,
            Directions {
                sent: before,
                received: other,
            },
        );
        let rates = pcie.rates(
            start + Duration::from_millis(millis),
            Directions {
                sent: now,
                received: other,
            },
        );
        assert_eq!(rates.received, Some(Err(AbsentReason::NoPermission)));
        rates.sent
    }

    #[test]
    fn a_rate_is_bytes_over_time_and_never_a_guess() {
        let not_sampled = Some(Err(AbsentReason::NotSampled));
        let lost = AbsentReason::GpuLost;
        for (link, millis, before, now, expected) in [
            (
                None,
                1000,
                Ok(Wide(500)),
                Ok(Wide(2_000_500)),
                Some(Ok(2_000)),
            ),
            (
                None,
                500,
                Ok(Wide(0)),
                Ok(Wide(64 * GIB)),
                Some(Ok(137_438_953)),
            ),
            (None, 1000, Ok(Wide(7)), Ok(Wide(7)), Some(Ok(0))),
            // Backwards: wrapped, or the driver was loaded anew.
            (None, 1000, Ok(Wide(8)), Ok(Wide(7)), not_sampled),
            (None, 1000, Err(lost), Ok(Wide(7)), not_sampled),
            (None, 1000, Ok(Wide(7)), Err(lost), Some(Err(lost))),
            (None, 0, Ok(Wide(0)), Ok(Wide(7)), not_sampled),
            // 16 lanes of generation 4 go round in 136 ms.
            (
                Some((4, 16)),
                1000,
                Ok(Narrow(0)),
                Ok(Narrow(2_000_000)),
                None,
            ),
            (
                Some((4, 16)),
                100,
                Ok(Narrow(0)),
                Ok(Narrow(2_000_000)),
                Some(Ok(20_000)),
            ),
            (
                Some((4, 16)),
                100,
                Ok(Narrow(u32::MAX)),
                Ok(Narrow(5)),
                not_sampled,
            ),
            (
                Some((1, 1)),
                1000,
                Ok(Narrow(0)),
                Ok(Narrow(2_000_000)),
                Some(Ok(2_000)),
            ),
            (Some((9, 16)), 1000, Ok(Narrow(0)), Ok(Narrow(1)), None),
            (None, 1000, Ok(Narrow(0)), Ok(Narrow(1)), None),
            (Some((1, 1)), 1000, Ok(Narrow(0)), Ok(Wide(1)), not_sampled),
            (
                None,
                1000,
                Ok(Wide(7)),
                Err(AbsentReason::NotSupported),
                None,
            ),
            (
                None,
                1000,
                Ok(Wide(7)),
                Err(AbsentReason::DriverTooOld),
                None,
            ),
        ] {
            assert_eq!(
                rate(link, millis, before, now),
                expected,
                "{before:?} {now:?} in {millis} ms, link {link:?}"
            );
        }
    }

    #[test]
    fn the_first_counters_give_no_rate() {
        let counters = Directions {
            sent: Ok(Wide(7)),
            received: Ok(Wide(7)),
        };
        let rates = Pcie::new(None).rates(Instant::now(), counters);
        assert_eq!(rates.sent, Some(Err(AbsentReason::NotSampled)));
    }

    #[test]
    fn the_blocking_call_is_made_every_30_seconds_at_most() {
        let mut pcie = Pcie::new(None);
        let start = Instant::now();
        let asked: Vec<_> = (0..65)
            .filter(|s| pcie.may_ask_throughput(start + Duration::from_secs(*s)))
            .collect();
        assert_eq!(asked, [0, 30, 60]);
    }
}

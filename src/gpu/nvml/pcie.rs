//! PCI Express throughput of a GPU, from byte counters.

use std::time::{Duration, Instant};

use crate::{gpu::value::Value, pb::AbsentReason};

/// Minimum time between two throughput calls, because a call blocks the sampler for 20 ms per
/// direction.
const THROUGHPUT_INTERVAL: Duration = Duration::from_secs(30);

/// Throughput of one lane in bytes per second, by generation from 1.
const LANE_BYTES_PER_SECOND: [f64; 6] = [250e6, 500e6, 985e6, 1_970e6, 3_940e6, 7_880e6];

/// Byte counter of the driver. The width depends on the card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counter {
    /// 32-bit counter, which wraps every 4 GiB.
    Narrow(u32),
    Wide(u64),
}

/// Values of both directions, as seen by the GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Directions<T> {
    pub sent: T,
    pub received: T,
}

/// State of one GPU between samples.
#[derive(Debug)]
pub(crate) struct Pcie {
    /// Throughput of the link in bytes per second, if known.
    capacity: Option<f64>,
    previous: Option<(Instant, Directions<Value<Counter>>)>,
    last_throughput_query: Option<Instant>,
}

impl Pcie {
    /// State for a link with the given maximum generation and number of lanes.
    pub(crate) fn new(max_link: Option<(u32, u32)>) -> Self {
        let capacity = max_link.and_then(|(generation, lanes)| {
            let index = usize::try_from(generation).ok()?.checked_sub(1)?;
            Some(LANE_BYTES_PER_SECOND.get(index)? * f64::from(lanes))
        });
        Self { capacity, previous: None, last_throughput_query: None }
    }

    /// Rates in KB/s since the previous counters. `None` where the counters can never give a rate.
    pub(crate) fn rates(
        &mut self,
        now: Instant,
        counters: Directions<Value<Counter>>,
    ) -> Directions<Option<Value<i64>>> {
        let previous = self.previous.replace((now, counters));
        let rate = |current: Value<Counter>, earlier: Option<Value<Counter>>, elapsed: f64| {
            let current = match current {
                Err(AbsentReason::NotSupported | AbsentReason::Mig | AbsentReason::DriverTooOld) => return None,
                Err(reason) => return Some(Err(reason)),
                Ok(counter) => counter,
            };
            let Some(Ok(earlier)) = earlier else {
                return Some(Err(AbsentReason::NotSampled));
            };
            let bytes = match (earlier, current) {
                (Counter::Wide(earlier), Counter::Wide(current)) => current.checked_sub(earlier),
                // The counter may have wrapped more than once, so the rate is unknown.
                (Counter::Narrow(_), Counter::Narrow(_)) if !self.is_within_one_wrap(elapsed) => {
                    return None;
                }
                (Counter::Narrow(earlier), Counter::Narrow(current)) => current.checked_sub(earlier).map(u64::from),
                _ => None,
            };
            Some(bytes.and_then(|bytes| kb_per_second(bytes, elapsed)).ok_or(AbsentReason::NotSampled))
        };
        let elapsed = previous.map_or(0.0, |(time, _)| now.duration_since(time).as_secs_f64());
        let earlier = previous.map(|(_, counters)| counters);
        Directions {
            sent: rate(counters.sent, earlier.map(|earlier| earlier.sent), elapsed),
            received: rate(counters.received, earlier.map(|earlier| earlier.received), elapsed),
        }
    }

    /// Returns true if the blocking call may be made now, and records the call.
    pub(crate) fn may_query_throughput(&mut self, now: Instant) -> bool {
        let due = self.last_throughput_query.is_none_or(|last| now.duration_since(last) >= THROUGHPUT_INTERVAL);
        if due {
            self.last_throughput_query = Some(now);
        }
        due
    }

    fn is_within_one_wrap(&self, elapsed: f64) -> bool {
        self.capacity.is_some_and(|capacity| capacity * elapsed < f64::from(u32::MAX))
    }
}

/// Rate in KB/s, of 1,000 bytes, rounded down.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "2^53 KB/s is beyond any link")]
fn kb_per_second(bytes: u64, elapsed: f64) -> Option<i64> {
    (elapsed > 0.0).then(|| (bytes as f64 / elapsed / 1_000.0) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Counter::{Narrow, Wide};

    const GIB: u64 = 1 << 30;

    /// Rate between two counters that were read `millis` apart, on the given link.
    fn rate(link: Option<(u32, u32)>, millis: u64, before: Value<Counter>, now: Value<Counter>) -> Option<Value<i64>> {
        let mut pcie = Pcie::new(link);
        let start = Instant::now();
        let other = Err(AbsentReason::NoPermission);
        pcie.rates(start, Directions { sent: before, received: other });
        let rates = pcie.rates(start + Duration::from_millis(millis), Directions { sent: now, received: other });
        assert_eq!(rates.received, Some(Err(AbsentReason::NoPermission)));
        rates.sent
    }

    #[test]
    fn a_rate_is_bytes_over_time_and_never_a_guess() {
        let not_sampled = Some(Err(AbsentReason::NotSampled));
        let lost = AbsentReason::GpuLost;
        for (link, millis, before, now, expected) in [
            (None, 1000, Ok(Wide(500)), Ok(Wide(2_000_500)), Some(Ok(2_000))),
            (None, 500, Ok(Wide(0)), Ok(Wide(64 * GIB)), Some(Ok(137_438_953))),
            (None, 1000, Ok(Wide(7)), Ok(Wide(7)), Some(Ok(0))),
            // The counter decreased: it wrapped, or the driver was loaded again.
            (None, 1000, Ok(Wide(8)), Ok(Wide(7)), not_sampled),
            (None, 1000, Err(lost), Ok(Wide(7)), not_sampled),
            (None, 1000, Ok(Wide(7)), Err(lost), Some(Err(lost))),
            (None, 0, Ok(Wide(0)), Ok(Wide(7)), not_sampled),
            // A counter of 16 lanes of generation 4 wraps in 136 ms.
            (Some((4, 16)), 1000, Ok(Narrow(0)), Ok(Narrow(2_000_000)), None),
            (Some((4, 16)), 100, Ok(Narrow(0)), Ok(Narrow(2_000_000)), Some(Ok(20_000))),
            (Some((4, 16)), 100, Ok(Narrow(u32::MAX)), Ok(Narrow(5)), not_sampled),
            (Some((1, 1)), 1000, Ok(Narrow(0)), Ok(Narrow(2_000_000)), Some(Ok(2_000))),
            (Some((9, 16)), 1000, Ok(Narrow(0)), Ok(Narrow(1)), None),
            (None, 1000, Ok(Narrow(0)), Ok(Narrow(1)), None),
            (Some((1, 1)), 1000, Ok(Narrow(0)), Ok(Wide(1)), not_sampled),
            (None, 1000, Ok(Wide(7)), Err(AbsentReason::NotSupported), None),
            (None, 1000, Ok(Wide(7)), Err(AbsentReason::DriverTooOld), None),
        ] {
            assert_eq!(rate(link, millis, before, now), expected, "{before:?} {now:?} in {millis} ms, link {link:?}");
        }
    }

    #[test]
    fn the_first_counters_give_no_rate() {
        let counters = Directions { sent: Ok(Wide(7)), received: Ok(Wide(7)) };
        let rates = Pcie::new(None).rates(Instant::now(), counters);
        assert_eq!(rates.sent, Some(Err(AbsentReason::NotSampled)));
    }

    #[test]
    fn the_blocking_call_is_made_every_30_seconds_at_most() {
        let mut pcie = Pcie::new(None);
        let start = Instant::now();
        let due_seconds: Vec<_> =
            (0..65).filter(|s| pcie.may_query_throughput(start + Duration::from_secs(*s))).collect();
        assert_eq!(due_seconds, [0, 30, 60]);
    }
}

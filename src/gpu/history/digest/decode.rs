//! Decoder of digests, which reads the sections without copying.

use super::{CONSTANT, DOUBLES, ONCE, THOUSANDTHS, VERSION, WHOLE};
use crate::{
    error::{Error, Result},
    gpu::history::{distribution::Distribution, sample::METRICS},
    pb,
};

/// Sections of a summary.
#[derive(Debug, Clone, Copy)]
pub(in crate::gpu::history) struct Summary<'a> {
    pub samples: u64,
    times: NumberReader<'a>,
    throttle: NumberReader<'a>,
    energy: NumberReader<'a>,
    metric_buckets: NumberReader<'a>,
}

/// Energy readings of one epoch that do not decrease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::gpu::history) struct EnergyRun {
    pub readings: u64,
    pub epoch: i64,
    pub first: i64,
    pub last: i64,
}

impl<'a> Summary<'a> {
    pub(in crate::gpu::history) fn parse(bytes: &'a [u8]) -> Result<Self> {
        let mut numbers = NumberReader::new(bytes)?;
        let mut parse = || {
            Some(Self {
                samples: numbers.next()?,
                times: numbers.section()?,
                throttle: numbers.section()?,
                energy: numbers.section()?,
                metric_buckets: numbers,
            })
        };
        parse().ok_or_else(damaged_error)
    }

    /// Calls `each` with the time of every sample, in milliseconds. `start` is the start of the
    /// encoded minute.
    pub(in crate::gpu::history) fn times(&self, start: i64, mut each: impl FnMut(i64)) -> Result<()> {
        let mut numbers = self.times;
        let mut read = || {
            let mut time = start;
            let mut step = 0;
            for sample in 0..self.samples {
                match sample {
                    0 => time += numbers.next()?.cast_signed(),
                    1 => {
                        step = numbers.next()?.cast_signed();
                        time += step;
                    }
                    _ => {
                        step += numbers.signed()?;
                        time += step;
                    }
                }
                each(time);
            }
            Some(())
        };
        read().ok_or_else(damaged_error)
    }

    /// Calls `each` with the number of samples of every run, and their mask.
    pub(in crate::gpu::history) fn throttle(&self, mut each: impl FnMut(u64, Option<u64>)) -> Result<()> {
        let mut numbers = self.throttle;
        let mut read = || {
            while !numbers.is_empty() {
                let samples = numbers.next()?;
                let mask = if numbers.next()? == 0 { None } else { Some(numbers.next()?) };
                each(samples, mask);
            }
            Some(())
        };
        read().ok_or_else(damaged_error)
    }

    /// Calls `each` with every run of energy readings.
    pub(in crate::gpu::history) fn energy(&self, mut each: impl FnMut(EnergyRun)) -> Result<()> {
        let mut numbers = self.energy;
        let mut read = || {
            while !numbers.is_empty() {
                let readings = numbers.next()?;
                let epoch = numbers.signed()?;
                let first = numbers.next()?.cast_signed();
                let last = first.checked_add(numbers.next()?.cast_signed())?;
                each(EnergyRun { readings, epoch, first, last });
            }
            Some(())
        };
        read().ok_or_else(damaged_error)
    }

    /// Calls `each` with the number of every metric that has values, less 1, and its aggregates.
    pub(in crate::gpu::history) fn metric_buckets(
        &self,
        mut each: impl FnMut(usize, pb::GpuMetricBucket),
    ) -> Result<()> {
        let mut numbers = self.metric_buckets;
        let mut read = || {
            while !numbers.is_empty() {
                let metric = usize::try_from(numbers.next()?).ok()?.checked_sub(1)?;
                each(metric, numbers.metric_bucket()?);
            }
            Some(())
        };
        read().ok_or_else(damaged_error)
    }
}

/// Adds values to the distributions. The index of a distribution is the number of the metric less
/// 1.
pub(in crate::gpu::history) fn add_values(
    distribution: &[u8],
    places: &mut [Option<Distribution>; METRICS],
) -> Result<()> {
    let mut numbers = NumberReader::new(distribution)?;
    let mut read = || {
        while !numbers.is_empty() {
            let metric = usize::try_from(numbers.next()?).ok()?.checked_sub(1)?;
            let values = numbers.section()?;
            if let Some(Some(distribution)) = places.get_mut(metric) {
                distribution.add(values)?;
            }
        }
        Some(())
    };
    read().ok_or_else(damaged_error)
}

impl Distribution {
    /// Adds the values that `encode_values` has written.
    #[expect(clippy::cast_precision_loss, reason = "only exact doubles are written in these formats")]
    fn add(&mut self, mut numbers: NumberReader<'_>) -> Option<()> {
        let format = numbers.next()?;
        let distinct = usize::try_from(numbers.next()?).ok()?;
        let last_index = usize::try_from(numbers.next()?).ok()?;
        let counts = self.start_run();
        let start = counts.len();
        let mut value = 0;
        match format % ONCE {
            WHOLE => {
                for index in 0..distinct {
                    value = numbers.next_ascending(value, index)?;
                    counts.push((value as f64, 1));
                }
            }
            THOUSANDTHS => {
                for index in 0..distinct {
                    value = numbers.next_ascending(value, index)?;
                    counts.push((value as f64 / 1_000.0, 1));
                }
            }
            _ => {
                for _ in 0..distinct {
                    counts.push((numbers.double()?, 1));
                }
            }
        }
        if format < ONCE {
            for (_, count) in &mut counts[start..] {
                *count = numbers.next()?;
            }
        }
        let last = counts[start..].get(last_index)?.0;
        self.set_last(last);
        Some(())
    }
}

/// Reader of encoded numbers. Returns `None` at an early end.
#[derive(Debug, Clone, Copy)]
struct NumberReader<'a>(&'a [u8]);

impl<'a> NumberReader<'a> {
    /// Reader of the numbers after the version.
    fn new(bytes: &'a [u8]) -> Result<Self> {
        let mut numbers = Self(bytes);
        match numbers.next() {
            Some(version) if version == u64::from(VERSION) => Ok(numbers),
            Some(version) => {
                let problem = format!("the roll-up has version {version}, but this server reads {VERSION}");
                Err(Error::internal(problem))
            }
            None => Err(damaged_error()),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "only exact doubles are written in these formats")]
    fn metric_bucket(&mut self) -> Option<pb::GpuMetricBucket> {
        let format = self.next()?;
        let samples = self.next()?.cast_signed();
        let is_constant = format >= CONSTANT;
        let mut values = [0.0; 4];
        let given = if is_constant { 1 } else { values.len() };
        if format % CONSTANT == DOUBLES {
            for value in &mut values[..given] {
                *value = self.double()?;
            }
        } else {
            let scale = if format % CONSTANT == WHOLE { 1.0 } else { 1_000.0 };
            let least = self.signed()?;
            values[0] = least as f64 / scale;
            for value in &mut values[1..given] {
                let difference = self.next()?.cast_signed();
                *value = least.checked_add(difference)? as f64 / scale;
            }
        }
        let [min, max, p95, last] = if is_constant { [values[0]; 4] } else { values };
        let avg = if is_constant { min } else { self.double()? };
        Some(pb::GpuMetricBucket {
            samples,
            avg: Some(avg),
            min: Some(min),
            max: Some(max),
            p95: Some(p95),
            last: Some(last),
        })
    }

    fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    fn next(&mut self) -> Option<u64> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        if *first < 0x80 {
            return Some(u64::from(*first));
        }
        let mut number = u64::from(*first & 0x7f);
        for shift in (7..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            number |= u64::from(*byte & 0x7f) << shift;
            if *byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn signed(&mut self) -> Option<i64> {
        let number = self.next()?;
        Some((number >> 1).cast_signed() ^ -(number & 1).cast_signed())
    }

    /// Next of several ascending values. The first value is encoded whole, the others as a
    /// difference.
    fn next_ascending(&mut self, before: i64, index: usize) -> Option<i64> {
        if index == 0 {
            return self.signed();
        }
        before.checked_add(self.next()?.cast_signed())
    }

    fn double(&mut self) -> Option<f64> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(f64::from_le_bytes(*bytes))
    }

    fn section(&mut self) -> Option<Self> {
        let length = usize::try_from(self.next()?).ok()?;
        let (section, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(Self(section))
    }
}

fn damaged_error() -> Error {
    Error::internal("a roll-up is damaged")
}

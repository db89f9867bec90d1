//! Reading a digest, part by part, without a copy.

use super::{CONSTANT, DOUBLES, ONCE, THOUSANDTHS, VERSION, WHOLE};
use crate::{
    error::{Error, Result},
    gpu::history::{sample::METRICS, series::Distribution},
    pb,
};

/// The parts of a summary.
#[derive(Debug, Clone, Copy)]
pub(in crate::gpu::history) struct Summary<'a> {
    pub samples: u64,
    times: Numbers<'a>,
    throttle: Numbers<'a>,
    energy: Numbers<'a>,
    told: Numbers<'a>,
}

/// Readings of one epoch that do not fall.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::gpu::history) struct EnergyRun {
    pub readings: u64,
    pub epoch: i64,
    pub first: i64,
    pub last: i64,
}

impl<'a> Summary<'a> {
    pub(in crate::gpu::history) fn parse(bytes: &'a [u8]) -> Result<Self> {
        let mut numbers = Numbers::of(bytes)?;
        let mut parse = || {
            Some(Self {
                samples: numbers.next()?,
                times: numbers.section()?,
                throttle: numbers.section()?,
                energy: numbers.section()?,
                told: numbers,
            })
        };
        parse().ok_or_else(damaged)
    }

    /// Calls `each` with the time of every sample, in milliseconds; `start` is what it was encoded with.
    pub(in crate::gpu::history) fn times(
        &self,
        start: i64,
        mut each: impl FnMut(i64),
    ) -> Result<()> {
        let mut numbers = self.times;
        let mut read = || {
            let mut at = start;
            let mut step = 0;
            for sample in 0..self.samples {
                match sample {
                    0 => at += numbers.next()?.cast_signed(),
                    1 => {
                        step = numbers.next()?.cast_signed();
                        at += step;
                    }
                    _ => {
                        step += numbers.signed()?;
                        at += step;
                    }
                }
                each(at);
            }
            Some(())
        };
        read().ok_or_else(damaged)
    }

    /// Calls `each` with every run of samples, and the mask that they have.
    pub(in crate::gpu::history) fn throttle(
        &self,
        mut each: impl FnMut(u64, Option<u64>),
    ) -> Result<()> {
        let mut numbers = self.throttle;
        let mut read = || {
            while !numbers.is_empty() {
                let samples = numbers.next()?;
                let mask = if numbers.next()? == 0 {
                    None
                } else {
                    Some(numbers.next()?)
                };
                each(samples, mask);
            }
            Some(())
        };
        read().ok_or_else(damaged)
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
                each(EnergyRun {
                    readings,
                    epoch,
                    first,
                    last,
                });
            }
            Some(())
        };
        read().ok_or_else(damaged)
    }

    /// Calls `each` with the number of every metric that has values, less 1, and what is told of it.
    pub(in crate::gpu::history) fn told(
        &self,
        mut each: impl FnMut(usize, pb::GpuMetricBucket),
    ) -> Result<()> {
        let mut numbers = self.told;
        let mut read = || {
            while !numbers.is_empty() {
                let metric = usize::try_from(numbers.next()?).ok()?.checked_sub(1)?;
                each(metric, numbers.told()?);
            }
            Some(())
        };
        read().ok_or_else(damaged)
    }
}

/// Adds the values of every metric for which there is a place, by its number less 1.
pub(in crate::gpu::history) fn add_values(
    distribution: &[u8],
    places: &mut [Option<Distribution>; METRICS],
) -> Result<()> {
    let mut numbers = Numbers::of(distribution)?;
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
    read().ok_or_else(damaged)
}

impl Distribution {
    /// Adds the values that `write_values` has written.
    #[expect(
        clippy::cast_precision_loss,
        reason = "only what fits a double is written so"
    )]
    fn add(&mut self, mut numbers: Numbers<'_>) -> Option<()> {
        let form = numbers.next()?;
        let distinct = usize::try_from(numbers.next()?).ok()?;
        let last = usize::try_from(numbers.next()?).ok()?;
        let counts = self.more();
        let start = counts.len();
        let mut value = 0;
        match form % ONCE {
            WHOLE => {
                for at in 0..distinct {
                    value = numbers.after(value, at)?;
                    counts.push((value as f64, 1));
                }
            }
            THOUSANDTHS => {
                for at in 0..distinct {
                    value = numbers.after(value, at)?;
                    counts.push((value as f64 / 1_000.0, 1));
                }
            }
            _ => {
                for _ in 0..distinct {
                    counts.push((numbers.double()?, 1));
                }
            }
        }
        if form < ONCE {
            for (_, count) in &mut counts[start..] {
                *count = numbers.next()?;
            }
        }
        let last = counts[start..].get(last)?.0;
        self.set_last(last);
        Some(())
    }
}

/// Numbers that are still to be read. What ends too early gives nothing.
#[derive(Debug, Clone, Copy)]
struct Numbers<'a>(&'a [u8]);

impl<'a> Numbers<'a> {
    /// What comes after the version.
    fn of(bytes: &'a [u8]) -> Result<Self> {
        let mut numbers = Self(bytes);
        match numbers.next() {
            Some(version) if version == u64::from(VERSION) => Ok(numbers),
            Some(version) => {
                let problem = format!("a roll-up has version {version}, which is not known here");
                Err(Error::internal(problem))
            }
            None => Err(damaged()),
        }
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "only what fits a double is written so"
    )]
    fn told(&mut self) -> Option<pb::GpuMetricBucket> {
        let form = self.next()?;
        let samples = self.next()?.cast_signed();
        let constant = form >= CONSTANT;
        let mut values = [0.0; 4];
        let given = if constant { 1 } else { values.len() };
        if form % CONSTANT == DOUBLES {
            for value in &mut values[..given] {
                *value = self.double()?;
            }
        } else {
            let scale = if form % CONSTANT == WHOLE {
                1.0
            } else {
                1_000.0
            };
            let least = self.signed()?;
            values[0] = least as f64 / scale;
            for value in &mut values[1..given] {
                let more = self.next()?.cast_signed();
                *value = least.checked_add(more)? as f64 / scale;
            }
        }
        let [min, max, p95, last] = if constant { [values[0]; 4] } else { values };
        let avg = if constant { min } else { self.double()? };
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

    /// A value after another: the first is told whole.
    fn after(&mut self, before: i64, at: usize) -> Option<i64> {
        if at == 0 {
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

fn damaged() -> Error {
    Error::internal("a roll-up is damaged")
}

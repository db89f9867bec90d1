//! `inference_fps` of the one GPU of this host, as far as this process knows it.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::{gpu::columns::has_values, pb};

/// The time that is counted over.
const WINDOW: Duration = Duration::from_mins(1);

/// How exact the window is.
const STEP: Duration = Duration::from_millis(500);

/// How many detections this process has ingested of late. Clones share the count.
#[derive(Debug, Clone, Default)]
pub struct Detections(Arc<Mutex<Steps>>);

/// When each step began, and what was counted in it; steps without any are left out.
type Steps = VecDeque<(Instant, u64)>;

impl Detections {
    /// Counts detections that were ingested just now.
    pub fn count(&self, detections: usize) {
        self.count_at(detections, Instant::now());
    }

    /// Puts the rate into a sample that has none, of a whole GPU that has told something.
    pub(crate) fn fill(&self, stats: &mut pb::GpuStats) {
        if stats.inference_fps.is_some() || stats.mig_parent_uuid.is_some() || !has_values(stats) {
            return;
        }
        if let Some(rate) = self.per_second(Instant::now()) {
            stats.inference_fps = Some(rate);
            stats.absent_reasons.remove("inference_fps");
        }
    }

    fn count_at(&self, detections: usize, now: Instant) {
        if detections == 0 {
            return;
        }
        let detections = detections as u64;
        let mut steps = self.0.lock();
        match steps.back_mut() {
            Some((began, count)) if now.saturating_duration_since(*began) < STEP => {
                *count += detections;
            }
            Some(_) | None => steps.push_back((now, detections)),
        }
        forget(&mut steps, now);
    }

    /// Nothing if nothing was ingested: then nobody knows.
    fn per_second(&self, now: Instant) -> Option<f64> {
        let mut steps = self.0.lock();
        forget(&mut steps, now);
        let count: u64 = steps.iter().map(|(_, count)| count).sum();
        #[expect(clippy::cast_precision_loss, reason = "nobody ingests 2^53 a minute")]
        let rate = count as f64 / WINDOW.as_secs_f64();
        (count > 0).then_some(rate)
    }
}

fn forget(steps: &mut Steps, now: Instant) {
    while steps
        .pop_front_if(|(began, _)| now.saturating_duration_since(*began) >= WINDOW)
        .is_some()
    {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_minute_counts_and_nothing_is_not_zero() {
        let (detections, start) = (Detections::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(detections.per_second(at(0)), None);
        for (count, second) in [(20, 0), (10, 0), (0, 5), (90, 30)] {
            detections.count_at(count, at(second));
        }
        assert_eq!(detections.per_second(at(31)), Some(2.0));
        assert_eq!(detections.per_second(at(60)), Some(1.5));
        assert_eq!(detections.per_second(at(90)), None);
    }

    #[test]
    fn only_whole_gpus_that_work_get_the_rate_and_what_was_reported_stays() {
        let detections = Detections::default();
        detections.count(60);
        let filled = |stats: pb::GpuStats| {
            let mut stats = stats;
            detections.fill(&mut stats);
            stats.inference_fps
        };
        let works = pb::GpuStats {
            temperature: Some(50.0),
            ..Default::default()
        };
        assert_eq!(filled(works.clone()), Some(1.0));
        let reported = pb::GpuStats {
            inference_fps: Some(7.0),
            ..works.clone()
        };
        assert_eq!(filled(reported), Some(7.0));
        let instance = pb::GpuStats {
            mig_parent_uuid: Some("GPU-0".into()),
            ..works
        };
        assert_eq!(filled(instance), None);
        assert_eq!(filled(pb::GpuStats::default()), None);
    }
}

//! `inference_fps` of a host with one GPU, derived from the detections that this process ingests.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::{gpu::columns::has_values, pb};

/// Period over which detections are counted.
const WINDOW: Duration = Duration::from_mins(1);

/// Precision of the period.
const STEP: Duration = Duration::from_millis(500);

/// Number of recently ingested detections. Clones share the count.
#[derive(Debug, Clone, Default)]
pub struct Detections(Arc<Mutex<Steps>>);

/// Start of each step, with the detections counted in it. Steps without detections are omitted.
type Steps = VecDeque<(Instant, u64)>;

impl Detections {
    /// Counts detections that were ingested now.
    pub fn count(&self, detections: usize) {
        self.count_at(detections, Instant::now());
    }

    /// Sets `inference_fps` in a sample of a whole GPU that has other values but no rate.
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
        drop_expired(&mut steps, now);
    }

    /// Detections per second. `None` without detections, because the rate is then unknown.
    fn per_second(&self, now: Instant) -> Option<f64> {
        let mut steps = self.0.lock();
        drop_expired(&mut steps, now);
        let count: u64 = steps.iter().map(|(_, count)| count).sum();
        #[expect(clippy::cast_precision_loss, reason = "2^53 detections per minute are out of reach")]
        let rate = count as f64 / WINDOW.as_secs_f64();
        (count > 0).then_some(rate)
    }
}

fn drop_expired(steps: &mut Steps, now: Instant) {
    while steps.pop_front_if(|(began, _)| now.saturating_duration_since(*began) >= WINDOW).is_some() {}
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
        let works = pb::GpuStats { temperature: Some(50.0), ..Default::default() };
        assert_eq!(filled(works.clone()), Some(1.0));
        let reported = pb::GpuStats { inference_fps: Some(7.0), ..works.clone() };
        assert_eq!(filled(reported), Some(7.0));
        let instance = pb::GpuStats { mig_parent_uuid: Some("GPU-0".into()), ..works };
        assert_eq!(filled(instance), None);
        assert_eq!(filled(pb::GpuStats::default()), None);
    }
}

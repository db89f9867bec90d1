//! Bounded queue of samples in memory, for the writer of a server or the reporter of an agent.

use std::{collections::VecDeque, sync::Arc};

use chrono::TimeDelta;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use crate::{
    gpu::{columns::recorded_at, live::Reading},
    pb,
};

/// Upper bound of samples in one transaction.
pub(crate) const MAX_SAMPLES_PER_BATCH: usize = 500;

/// Age at which a queued sample is dropped.
const MAX_SAMPLE_AGE: TimeDelta = TimeDelta::minutes(10);

/// Sample that waits to be stored or reported.
#[derive(Debug, Clone)]
pub(crate) struct QueuedSample {
    pub gpu: Arc<pb::Gpu>,
    pub reading: Arc<Reading>,
}

/// Queue of samples that wait to be stored or reported. A full queue drops the oldest samples.
#[derive(Debug)]
pub(crate) struct SampleQueue {
    max_samples: usize,
    state: Mutex<QueueState>,
    batch_ready: Notify,
}

#[derive(Debug, Default)]
struct QueueState {
    samples: VecDeque<QueuedSample>,
    /// Number of samples removed so far, stored or dropped: the sequence number of the first queued
    /// sample.
    removed: u64,
    dropped: u64,
}

impl SampleQueue {
    /// Creates a queue for at most `max_samples` samples.
    pub(crate) fn new(max_samples: usize) -> Self {
        Self { max_samples, state: Mutex::default(), batch_ready: Notify::new() }
    }

    /// Waits until the queue holds enough samples for a batch.
    pub(crate) async fn batch_ready(&self) {
        self.batch_ready.notified().await;
    }

    /// Number of queued samples.
    pub(crate) fn len(&self) -> usize {
        self.lock().samples.len()
    }

    pub(crate) fn push(&self, sample: QueuedSample) {
        let newest = recorded_at(&sample.reading.stats);
        let mut state = self.lock();
        state.samples.push_back(sample);
        let is_old = |row: &QueuedSample| newest - recorded_at(&row.reading.stats) > MAX_SAMPLE_AGE;
        while state.samples.len() > self.max_samples || state.samples.front().is_some_and(is_old) {
            if state.dropped == 0 {
                tracing::warn!("too many GPU samples wait in memory; the oldest are dropped");
            }
            state.samples.pop_front();
            state.removed += 1;
            state.dropped += 1;
        }
        if state.samples.len() >= MAX_SAMPLES_PER_BATCH {
            self.batch_ready.notify_one();
        }
    }

    /// The oldest samples, and the sequence number after the last of them. The samples stay queued.
    pub(crate) fn peek(&self, limit: usize) -> (Vec<QueuedSample>, u64) {
        let state = self.lock();
        let rows: Vec<_> = state.samples.iter().take(limit).cloned().collect();
        let end = state.removed + rows.len() as u64;
        (rows, end)
    }

    /// Removes the samples before the sequence number `end`. Some may have been dropped since
    /// `peek`.
    pub(crate) fn remove_up_to(&self, end: u64) {
        let mut state = self.lock();
        while state.removed < end && state.samples.pop_front().is_some() {
            state.removed += 1;
        }
    }

    /// Removes the oldest samples while `fits` accepts them. Also returns the number of samples
    /// dropped since the last call.
    pub(crate) fn take(&self, mut fits: impl FnMut(&QueuedSample) -> bool) -> (Vec<QueuedSample>, u64) {
        let mut state = self.lock();
        let mut rows = Vec::new();
        while let Some(row) = state.samples.pop_front_if(|row| fits(row)) {
            state.removed += 1;
            rows.push(row);
        }
        (rows, std::mem::take(&mut state.dropped))
    }

    /// Number of samples dropped since the last call.
    pub(crate) fn take_dropped(&self) -> u64 {
        std::mem::take(&mut self.lock().dropped)
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::MAX_QUEUED_SAMPLES;
    use crate::rpc::time::to_proto;
    use chrono::DateTime;

    fn row(seconds: i64) -> QueuedSample {
        let recorded_at = DateTime::from_timestamp(1_800_000_000 + seconds, 0).map(to_proto);
        let stats = pb::GpuStats { recorded_at, ..Default::default() };
        QueuedSample { gpu: Arc::default(), reading: Arc::new(Reading::new(1, stats)) }
    }

    fn waiting(queue: &SampleQueue) -> Vec<i64> {
        let (rows, _) = queue.peek(usize::MAX);
        rows.iter().map(|row| recorded_at(&row.reading.stats).timestamp() - 1_800_000_000).collect()
    }

    #[test]
    fn ten_minutes_of_samples_are_kept_and_the_oldest_dropped() {
        let queue = SampleQueue::new(MAX_QUEUED_SAMPLES);
        for second in [0, 1, 600, 601, 1201] {
            queue.push(row(second));
        }
        assert_eq!(waiting(&queue), [601, 1201]);
        assert_eq!((queue.take_dropped(), queue.take_dropped()), (3, 0));
    }

    #[test]
    fn no_more_are_kept_than_there_is_room_for() {
        let queue = SampleQueue::new(MAX_QUEUED_SAMPLES);
        for _ in 0..MAX_QUEUED_SAMPLES + 7 {
            queue.push(row(0));
        }
        assert_eq!(waiting(&queue).len(), MAX_QUEUED_SAMPLES);
        assert_eq!(queue.take_dropped(), 7);
    }

    #[test]
    fn rows_that_are_dropped_while_a_batch_is_stored_are_not_counted_twice() {
        let queue = SampleQueue::new(MAX_QUEUED_SAMPLES);
        for second in [0, 1, 2, 3] {
            queue.push(row(second));
        }
        let (batch, end) = queue.peek(3);
        assert_eq!(batch.len(), 3);
        queue.push(row(602));
        assert_eq!(waiting(&queue), [2, 3, 602]);
        queue.remove_up_to(end);
        assert_eq!(waiting(&queue), [3, 602]);
    }

    #[test]
    fn what_is_taken_is_out_and_tells_what_was_dropped_before_it() {
        let queue = SampleQueue::new(3);
        for second in [0, 1, 2, 3, 4] {
            queue.push(row(second));
        }
        let mut limit = 2;
        let (rows, dropped) = queue.take(|_| {
            limit -= 1;
            limit >= 0
        });
        assert_eq!((rows.len(), dropped), (2, 2));
        assert_eq!(waiting(&queue), [4]);
        assert_eq!(queue.take(|_| true).1, 0);
    }
}

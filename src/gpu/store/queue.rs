//! The samples that wait, in memory: for the writer, or in an agent for its server.

use std::{collections::VecDeque, sync::Arc};

use chrono::TimeDelta;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use super::rows::BATCH;
use crate::{
    gpu::{columns::recorded_at, live::Reading},
    pb,
};

/// How old a sample in memory may become.
const KEEP_FOR: TimeDelta = TimeDelta::minutes(10);

/// A sample to be stored or reported.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub gpu: Arc<pb::Gpu>,
    pub reading: Arc<Reading>,
}

/// The samples that wait to be stored or reported. When there are too many, the oldest are dropped.
#[derive(Debug)]
pub(crate) struct Queue {
    most: usize,
    waiting: Mutex<Waiting>,
    batch: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    rows: VecDeque<Row>,
    /// How many rows have left, stored or dropped: the number of the first one that is there.
    left: u64,
    dropped: u64,
}

impl Queue {
    /// A queue that keeps this many.
    pub(crate) fn of(most: usize) -> Self {
        Self {
            most,
            waiting: Mutex::default(),
            batch: Notify::new(),
        }
    }

    /// Wakes up when there is enough for a batch.
    pub(crate) async fn filled(&self) {
        self.batch.notified().await;
    }

    /// How many rows wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting().rows.len()
    }

    pub(crate) fn push(&self, row: Row) {
        let newest = recorded_at(&row.reading.stats);
        let mut waiting = self.waiting();
        waiting.rows.push_back(row);
        let is_old = |row: &Row| newest - recorded_at(&row.reading.stats) > KEEP_FOR;
        while waiting.rows.len() > self.most || waiting.rows.front().is_some_and(is_old) {
            if waiting.dropped == 0 {
                tracing::warn!("too many GPU samples are waiting: the oldest are dropped");
            }
            waiting.rows.pop_front();
            waiting.left += 1;
            waiting.dropped += 1;
        }
        if waiting.rows.len() >= BATCH {
            self.batch.notify_one();
        }
    }

    /// The oldest rows, and the number of the first one after them. They stay.
    pub(crate) fn first(&self, most: usize) -> (Vec<Row>, u64) {
        let waiting = self.waiting();
        let rows: Vec<_> = waiting.rows.iter().take(most).cloned().collect();
        let end = waiting.left + rows.len() as u64;
        (rows, end)
    }

    /// Removes the rows before that number, some of which may have been dropped meanwhile.
    pub(crate) fn remove_up_to(&self, end: u64) {
        let mut waiting = self.waiting();
        while waiting.left < end && waiting.rows.pop_front().is_some() {
            waiting.left += 1;
        }
    }

    /// Takes the oldest rows out, as many as `fits` accepts, with how many were dropped before them.
    pub(crate) fn take(&self, mut fits: impl FnMut(&Row) -> bool) -> (Vec<Row>, u64) {
        let mut waiting = self.waiting();
        let mut rows = Vec::new();
        while let Some(row) = waiting.rows.pop_front_if(|row| fits(row)) {
            waiting.left += 1;
            rows.push(row);
        }
        (rows, std::mem::take(&mut waiting.dropped))
    }

    /// How many rows were dropped since this was last asked.
    pub(crate) fn take_dropped(&self) -> u64 {
        std::mem::take(&mut self.waiting().dropped)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::KEEP_AT_MOST;
    use crate::rpc::time::to_proto;
    use chrono::DateTime;

    fn row(seconds: i64) -> Row {
        let recorded_at = DateTime::from_timestamp(1_800_000_000 + seconds, 0).map(to_proto);
        let stats = pb::GpuStats {
            recorded_at,
            ..Default::default()
        };
        Row {
            gpu: Arc::default(),
            reading: Arc::new(Reading::new(1, stats)),
        }
    }

    fn waiting(queue: &Queue) -> Vec<i64> {
        let (rows, _) = queue.first(usize::MAX);
        rows.iter()
            .map(|row| recorded_at(&row.reading.stats).timestamp() - 1_800_000_000)
            .collect()
    }

    #[test]
    fn ten_minutes_of_samples_are_kept_and_the_oldest_dropped() {
        let queue = Queue::of(KEEP_AT_MOST);
        for second in [0, 1, 600, 601, 1201] {
            queue.push(row(second));
        }
        assert_eq!(waiting(&queue), [601, 1201]);
        assert_eq!((queue.take_dropped(), queue.take_dropped()), (3, 0));
    }

    #[test]
    fn no_more_are_kept_than_there_is_room_for() {
        let queue = Queue::of(KEEP_AT_MOST);
        for _ in 0..KEEP_AT_MOST + 7 {
            queue.push(row(0));
        }
        assert_eq!(waiting(&queue).len(), KEEP_AT_MOST);
        assert_eq!(queue.take_dropped(), 7);
    }

    #[test]
    fn rows_that_are_dropped_while_a_batch_is_stored_are_not_counted_twice() {
        let queue = Queue::of(KEEP_AT_MOST);
        for second in [0, 1, 2, 3] {
            queue.push(row(second));
        }
        let (batch, end) = queue.first(3);
        assert_eq!(batch.len(), 3);
        queue.push(row(602));
        assert_eq!(waiting(&queue), [2, 3, 602]);
        queue.remove_up_to(end);
        assert_eq!(waiting(&queue), [3, 602]);
    }

    #[test]
    fn what_is_taken_is_out_and_tells_what_was_dropped_before_it() {
        let queue = Queue::of(3);
        for second in [0, 1, 2, 3, 4] {
            queue.push(row(second));
        }
        let mut left = 2;
        let (rows, dropped) = queue.take(|_| {
            left -= 1;
            left >= 0
        });
        assert_eq!((rows.len(), dropped), (2, 2));
        assert_eq!(waiting(&queue), [4]);
        assert_eq!(queue.take(|_| true).1, 0);
    }
}

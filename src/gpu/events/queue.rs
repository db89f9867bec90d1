//! The events that are not yet stored: so many that there is room for, and a count of the others.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use chrono::{DateTime, SecondsFormat, Utc};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use super::{Happened, pairing::Twins};
use crate::entity::gpu_event::GpuEventKind;

/// How many events wait to be stored.
const ROOM: usize = 1_000;

/// How many reports of one kind, code and GPU are let through at once, and how long it takes until
/// one more is.
const BURST: f64 = 20.0;
const ONE_MORE: Duration = Duration::from_secs(10);

/// How long what is only counted is counted before it is stored.
const COUNT_FOR: Duration = Duration::from_secs(10);

/// How many kinds, codes and GPUs are told apart. Beyond, only kinds are.
const KEYS: usize = 256;

/// The events that are not yet stored. What there is no room for is counted, and becomes one event
/// that stands for all: nothing is lost unseen.
#[derive(Debug, Default)]
pub(in crate::gpu) struct Queue {
    waiting: Mutex<Waiting>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    rows: VecDeque<Happened>,
    buckets: HashMap<Key, Bucket>,
    counted: HashMap<Key, Counted>,
    twins: Twins,
}

/// What is counted together: a GPU, a kind, a code.
type Key = (Option<String>, GpuEventKind, Option<i64>);

/// How many more are let through.
#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

/// Events that were not let through.
#[derive(Debug)]
struct Counted {
    last: Happened,
    first_at: DateTime<Utc>,
    since: Instant,
}

impl Queue {
    /// Adds an event to those that are to be stored.
    pub(in crate::gpu) fn push(&self, event: Happened) {
        self.push_at(event, Instant::now());
    }

    fn push_at(&self, event: Happened, now: Instant) {
        let mut waiting = self.waiting();
        if event.kind == GpuEventKind::Xid
            && waiting
                .twins
                .pair(event.whom(), event.code, event.source, now)
        {
            waiting.complete(event);
            return;
        }
        let passes = !may_storm(event.kind) || waiting.take(&event, now);
        if passes && waiting.rows.len() < ROOM {
            waiting.rows.push_back(event);
            self.filled.notify_one();
        } else {
            waiting.count(event, now);
        }
    }

    /// Waits until there is something to store.
    pub(in crate::gpu) async fn filled(&self) {
        self.filled.notified().await;
    }

    /// The oldest events, which stay.
    pub(in crate::gpu) fn first(&self, most: usize) -> Vec<Happened> {
        self.waiting().rows.iter().take(most).cloned().collect()
    }

    /// Removes the oldest events: they are stored.
    pub(in crate::gpu) fn remove(&self, count: usize) {
        let mut waiting = self.waiting();
        let count = count.min(waiting.rows.len());
        waiting.rows.drain(..count);
    }

    /// Has what was counted for long enough stored; all of it if there is no time left.
    pub(in crate::gpu) fn settle(&self, now: Option<Instant>) {
        let mut waiting = self.waiting();
        let due = |counted: &Counted| {
            now.is_none_or(|now| now.saturating_duration_since(counted.since) >= COUNT_FOR)
        };
        let keys = waiting.counted.iter();
        let due = keys.filter(|(_, counted)| due(counted));
        let mut due: Vec<_> = due
            .map(|(key, counted)| (counted.last.at, key.clone()))
            .collect();
        // What became of a GPU last is told last.
        due.sort_unstable_by_key(|(at, _)| *at);
        for (_, key) in due {
            if waiting.rows.len() >= ROOM && now.is_some() {
                break;
            }
            if let Some(counted) = waiting.counted.remove(&key) {
                waiting.rows.push_back(counted.into());
            }
        }
        if let Some(now) = now {
            waiting.buckets.retain(|_, bucket| bucket.fill(now) < BURST);
        }
    }

    /// How many events are not stored.
    pub(in crate::gpu) fn unstored(&self) -> i64 {
        let waiting = self.waiting();
        let counted = waiting.counted.values().map(|counted| &counted.last);
        let all = waiting.rows.iter().chain(counted);
        all.map(|event| event.occurrences).sum()
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock()
    }
}

impl Waiting {
    /// Adds to an XID that waits what its twin knows.
    fn complete(&mut self, twin: Happened) {
        let same = |event: &&mut Happened| {
            let is = event.kind == twin.kind && event.code == twin.code;
            is && event.detail.is_none() && event.whom() == twin.whom()
        };
        if let Some(event) = self.rows.iter_mut().find(same) {
            event.detail = twin.detail;
        }
    }

    /// Whether one more of these is let through.
    fn take(&mut self, event: &Happened, now: Instant) -> bool {
        let key = key(event);
        if self.buckets.len() >= KEYS && !self.buckets.contains_key(&key) {
            self.buckets.retain(|_, bucket| bucket.fill(now) < BURST);
            if self.buckets.len() >= KEYS {
                return false;
            }
        }
        let full = || Bucket {
            left: BURST,
            at: now,
        };
        let bucket = self.buckets.entry(key).or_insert_with(full);
        let passes = bucket.fill(now) >= 1.0;
        if passes {
            bucket.left -= 1.0;
        }
        passes
    }

    fn count(&mut self, mut event: Happened, now: Instant) {
        let mut key = key(&event);
        if self.counted.len() >= KEYS && !self.counted.contains_key(&key) {
            key = (None, event.kind, None);
            event.gpu = None;
            event.address = None;
            event.code = None;
        }
        let Some(counted) = self.counted.get_mut(&key) else {
            let counted = Counted {
                first_at: event.at,
                last: event,
                since: now,
            };
            self.counted.insert(key, counted);
            return;
        };
        event.occurrences += counted.last.occurrences;
        let mut after = std::mem::take(&mut counted.last.after);
        after.retain(|(uuid, _)| event.after.iter().all(|(newer, _)| newer != uuid));
        event.after.extend(after);
        counted.last = event;
    }
}

impl Bucket {
    /// How many are let through at this instant.
    fn fill(&mut self, now: Instant) -> f64 {
        let more = now.saturating_duration_since(self.at).as_secs_f64() / ONE_MORE.as_secs_f64();
        self.left = (self.left + more).min(BURST);
        self.at = now;
        self.left
    }
}

impl From<Counted> for Happened {
    fn from(counted: Counted) -> Self {
        let mut event = counted.last;
        if event.occurrences > 1 {
            let since = counted
                .first_at
                .to_rfc3339_opts(SecondsFormat::Millis, true);
            let detail = format!("{} events since {since}", event.occurrences);
            event.detail = Some(match event.detail {
                Some(last) => format!("{detail}, the last one: {last}"),
                None => detail,
            });
        }
        event
    }
}

fn key(event: &Happened) -> Key {
    (event.whom(), event.kind, event.code)
}

/// Whether there may be thousands of them in a second. Changes of state come one in a second.
fn may_storm(kind: GpuEventKind) -> bool {
    use GpuEventKind::{
        Back, DriverChanged, EccDoubleBit, EccSingleBit, Lost, MemoryPressureChanged, MigChanged,
        PowerSourceChanged, ResetRequired, Responsive, Unresponsive, Xid,
    };
    match kind {
        Xid | EccDoubleBit | EccSingleBit | MigChanged | PowerSourceChanged => true,
        Lost
        | Back
        | Unresponsive
        | Responsive
        | DriverChanged
        | ResetRequired
        | MemoryPressureChanged => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{entity::gpu_event::GpuEventSource, pb};

    fn event(uuid: &str, kind: GpuEventKind, code: Option<i64>) -> Happened {
        let gpu = Arc::new(pb::Gpu {
            uuid: uuid.into(),
            ..Default::default()
        });
        let source = GpuEventSource::NvmlEvent;
        Happened {
            code,
            ..Happened::to(&gpu, kind, source, None)
        }
    }

    fn counts(queue: &Queue) -> Vec<i64> {
        let rows = queue.first(usize::MAX);
        rows.iter().map(|event| event.occurrences).collect()
    }

    #[test]
    fn of_a_storm_some_are_stored_and_the_others_counted() {
        let (queue, start) = (Queue::default(), Instant::now());
        for _ in 0..500 {
            queue.push_at(event("a", GpuEventKind::Xid, Some(31)), start);
        }
        queue.push_at(event("a", GpuEventKind::Xid, Some(79)), start);
        queue.push_at(event("b", GpuEventKind::Xid, Some(31)), start);
        assert_eq!(counts(&queue), [1; 22]);
        queue.settle(Some(start + Duration::from_secs(9)));
        assert_eq!(counts(&queue), [1; 22]);
        assert_eq!(queue.unstored(), 502);
        queue.settle(Some(start + COUNT_FOR));
        assert_eq!(counts(&queue)[22..], [480]);
        let last = queue.first(usize::MAX).pop().unwrap();
        assert!(last.detail.unwrap().starts_with("480 events since "));
        // One more after ten seconds, and not two.
        for _ in 0..2 {
            queue.push_at(event("a", GpuEventKind::Xid, Some(31)), start + ONE_MORE);
        }
        assert_eq!(counts(&queue)[23..], [1]);
    }

    #[test]
    fn what_there_is_no_room_for_is_counted() {
        let queue = Queue::default();
        for number in 0..ROOM + 300 {
            let uuid = format!("{}", number % 10);
            let kind = [GpuEventKind::Lost, GpuEventKind::Back][number / 10 % 2];
            queue.push(event(&uuid, kind, None));
        }
        assert_eq!(counts(&queue).len(), ROOM);
        queue.remove(ROOM);
        queue.settle(None);
        // Ten GPUs, lost and back, 15 times each.
        assert_eq!(counts(&queue), [15; 20]);
        assert_eq!(queue.unstored(), 300);
        let last: Vec<_> = queue.first(20).iter().map(|event| event.kind).collect();
        assert_eq!(last[10..], [GpuEventKind::Back; 10]);
    }

    #[test]
    fn an_endless_number_of_kinds_takes_no_endless_room() {
        let queue = Queue::default();
        for number in 0..10_000 {
            queue.push(event("a", GpuEventKind::Xid, Some(number)));
        }
        queue.settle(None);
        let counts = counts(&queue);
        assert!(counts.len() <= ROOM + KEYS + 12, "{}", counts.len());
        assert_eq!(counts.iter().sum::<i64>(), 10_000);
    }

    #[test]
    fn the_kernel_log_adds_to_what_nvml_told() {
        let queue = Queue::default();
        queue.push(event("a", GpuEventKind::Xid, Some(79)));
        queue.push(Happened {
            source: GpuEventSource::KernelLog,
            detail: Some("pid=1".into()),
            ..event("a", GpuEventKind::Xid, Some(79))
        });
        let rows = queue.first(usize::MAX);
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].detail.as_deref(), Some("pid=1"));
    }
}

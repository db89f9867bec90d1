//! Bounded queue of events that are not stored yet, with summaries of the events beyond the bound.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use chrono::{DateTime, SecondsFormat, Utc};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use super::{PendingEvent, pairing::XidPairing};
use crate::entity::gpu_event::GpuEventKind;

/// Upper bound of queued events.
const MAX_QUEUED_EVENTS: usize = 1_000;

/// Token bucket of each kind, code and GPU: its capacity, and the time in which one token is added.
const BURST: f64 = 20.0;
const REFILL_INTERVAL: Duration = Duration::from_secs(10);

/// Time that a summary collects events before the summary is queued.
const SUMMARY_INTERVAL: Duration = Duration::from_secs(10);

/// Upper bound of token buckets and of summaries. Events beyond the bound are summarized by kind
/// only.
const MAX_KEYS: usize = 256;

/// Queue of events that are not stored yet. Events beyond a bound become one event with a number of
/// occurrences, so that no loss goes unseen.
#[derive(Debug, Default)]
pub(in crate::gpu) struct EventQueue {
    state: Mutex<QueueState>,
    ready: Notify,
}

#[derive(Debug, Default)]
struct QueueState {
    events: VecDeque<PendingEvent>,
    buckets: HashMap<Key, TokenBucket>,
    summaries: HashMap<Key, EventSummary>,
    pairing: XidPairing,
}

/// Key of a token bucket and of a summary: GPU, kind and code.
type Key = (Option<String>, GpuEventKind, Option<i64>);

/// Token bucket of a key.
#[derive(Debug)]
struct TokenBucket {
    tokens: f64,
    refilled_at: Instant,
}

/// Events beyond a bound, merged into the last of them.
#[derive(Debug)]
struct EventSummary {
    last: PendingEvent,
    first_at: DateTime<Utc>,
    since: Instant,
}

impl EventQueue {
    /// Queues an event, or adds the event to a summary.
    pub(in crate::gpu) fn push(&self, event: PendingEvent) {
        self.push_at(event, Instant::now());
    }

    fn push_at(&self, event: PendingEvent, now: Instant) {
        let mut state = self.lock();
        if event.kind == GpuEventKind::Xid && state.pairing.pair(event.subject(), event.code, event.source, now) {
            state.add_detail(event);
            return;
        }
        let passes = !is_rate_limited(event.kind) || state.try_take_token(&event, now);
        if passes && state.events.len() < MAX_QUEUED_EVENTS {
            state.events.push_back(event);
            self.ready.notify_one();
        } else {
            state.summarize(event, now);
        }
    }

    /// Waits until an event is queued.
    pub(in crate::gpu) async fn wait_for_event(&self) {
        self.ready.notified().await;
    }

    /// The oldest events. The events stay queued.
    pub(in crate::gpu) fn peek(&self, limit: usize) -> Vec<PendingEvent> {
        self.lock().events.iter().take(limit).cloned().collect()
    }

    /// Removes the oldest events after they are stored.
    pub(in crate::gpu) fn remove(&self, count: usize) {
        let mut state = self.lock();
        let count = count.min(state.events.len());
        state.events.drain(..count);
    }

    /// Queues the summaries that are due at `now`, or all summaries if `now` is `None`.
    pub(in crate::gpu) fn flush_summaries(&self, now: Option<Instant>) {
        let mut state = self.lock();
        let is_due = |summary: &EventSummary| {
            now.is_none_or(|now| now.saturating_duration_since(summary.since) >= SUMMARY_INTERVAL)
        };
        let mut due: Vec<_> = state
            .summaries
            .iter()
            .filter(|(_, summary)| is_due(summary))
            .map(|(key, summary)| (summary.last.occurred_at, key.clone()))
            .collect();
        // The latest state of a GPU has to come last.
        due.sort_unstable_by_key(|(time, _)| *time);
        for (_, key) in due {
            if state.events.len() >= MAX_QUEUED_EVENTS && now.is_some() {
                break;
            }
            if let Some(summary) = state.summaries.remove(&key) {
                state.events.push_back(summary.into());
            }
        }
        if let Some(now) = now {
            state.buckets.retain(|_, bucket| bucket.refill(now) < BURST);
        }
    }

    /// Number of event occurrences that are not stored.
    pub(in crate::gpu) fn unstored_occurrences(&self) -> i64 {
        let state = self.lock();
        let summarized = state.summaries.values().map(|summary| &summary.last);
        let unstored = state.events.iter().chain(summarized);
        unstored.map(|event| event.occurrences).sum()
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock()
    }
}

impl QueueState {
    /// Adds the detail of a second report to the queued XID.
    fn add_detail(&mut self, duplicate: PendingEvent) {
        let is_incomplete = |event: &&mut PendingEvent| {
            let same_xid = event.kind == duplicate.kind && event.code == duplicate.code;
            same_xid && event.detail.is_none() && event.subject() == duplicate.subject()
        };
        if let Some(event) = self.events.iter_mut().find(is_incomplete) {
            event.detail = duplicate.detail;
        }
    }

    /// Takes a token from the bucket of the event. Returns false if the bucket is empty or there
    /// are too many buckets.
    fn try_take_token(&mut self, event: &PendingEvent, now: Instant) -> bool {
        let key = key(event);
        if self.buckets.len() >= MAX_KEYS && !self.buckets.contains_key(&key) {
            self.buckets.retain(|_, bucket| bucket.refill(now) < BURST);
            if self.buckets.len() >= MAX_KEYS {
                return false;
            }
        }
        let new_bucket = || TokenBucket { tokens: BURST, refilled_at: now };
        let bucket = self.buckets.entry(key).or_insert_with(new_bucket);
        let passes = bucket.refill(now) >= 1.0;
        if passes {
            bucket.tokens -= 1.0;
        }
        passes
    }

    fn summarize(&mut self, mut event: PendingEvent, now: Instant) {
        let mut key = key(&event);
        if self.summaries.len() >= MAX_KEYS && !self.summaries.contains_key(&key) {
            key = (None, event.kind, None);
            event.gpu = None;
            event.address = None;
            event.code = None;
        }
        let Some(summary) = self.summaries.get_mut(&key) else {
            let summary = EventSummary { first_at: event.occurred_at, last: event, since: now };
            self.summaries.insert(key, summary);
            return;
        };
        event.occurrences += summary.last.occurrences;
        let mut conditions = std::mem::take(&mut summary.last.conditions);
        conditions.retain(|(uuid, _)| event.conditions.iter().all(|(newer, _)| newer != uuid));
        event.conditions.extend(conditions);
        summary.last = event;
    }
}

impl TokenBucket {
    /// Adds the tokens due at `now`. Returns the number of tokens.
    fn refill(&mut self, now: Instant) -> f64 {
        let new_tokens = now.saturating_duration_since(self.refilled_at).as_secs_f64() / REFILL_INTERVAL.as_secs_f64();
        self.tokens = (self.tokens + new_tokens).min(BURST);
        self.refilled_at = now;
        self.tokens
    }
}

impl From<EventSummary> for PendingEvent {
    fn from(summary: EventSummary) -> Self {
        let mut event = summary.last;
        if event.occurrences > 1 {
            let since = summary.first_at.to_rfc3339_opts(SecondsFormat::Millis, true);
            let detail = format!("{} events since {since}", event.occurrences);
            event.detail = Some(match event.detail {
                Some(last) => format!("{detail}, the last one: {last}"),
                None => detail,
            });
        }
        event
    }
}

fn key(event: &PendingEvent) -> Key {
    (event.subject(), event.kind, event.code)
}

/// Returns true if the kind may occur thousands of times per second. Changes of state are debounced
/// to one per second.
fn is_rate_limited(kind: GpuEventKind) -> bool {
    use GpuEventKind::{
        Back, DriverChanged, EccDoubleBit, EccSingleBit, Lost, MemoryPressureChanged, MigChanged, PowerSourceChanged,
        ResetRequired, Responsive, Unresponsive, Xid,
    };
    match kind {
        Xid | EccDoubleBit | EccSingleBit | MigChanged | PowerSourceChanged => true,
        Lost | Back | Unresponsive | Responsive | DriverChanged | ResetRequired | MemoryPressureChanged => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{entity::gpu_event::GpuEventSource, pb};

    fn event(uuid: &str, kind: GpuEventKind, code: Option<i64>) -> PendingEvent {
        let gpu = Arc::new(pb::Gpu { uuid: uuid.into(), ..Default::default() });
        let source = GpuEventSource::NvmlEvent;
        PendingEvent { code, ..PendingEvent::new(&gpu, kind, source, None) }
    }

    fn counts(queue: &EventQueue) -> Vec<i64> {
        let events = queue.peek(usize::MAX);
        events.iter().map(|event| event.occurrences).collect()
    }

    #[test]
    fn of_a_storm_some_are_stored_and_the_others_counted() {
        let (queue, start) = (EventQueue::default(), Instant::now());
        for _ in 0..500 {
            queue.push_at(event("a", GpuEventKind::Xid, Some(31)), start);
        }
        queue.push_at(event("a", GpuEventKind::Xid, Some(79)), start);
        queue.push_at(event("b", GpuEventKind::Xid, Some(31)), start);
        assert_eq!(counts(&queue), [1; 22]);
        queue.flush_summaries(Some(start + Duration::from_secs(9)));
        assert_eq!(counts(&queue), [1; 22]);
        assert_eq!(queue.unstored_occurrences(), 502);
        queue.flush_summaries(Some(start + SUMMARY_INTERVAL));
        assert_eq!(counts(&queue)[22..], [480]);
        let last = queue.peek(usize::MAX).pop().unwrap();
        assert!(last.detail.unwrap().starts_with("480 events since "));
        // One token is added in ten seconds, so one of two events passes.
        for _ in 0..2 {
            queue.push_at(event("a", GpuEventKind::Xid, Some(31)), start + REFILL_INTERVAL);
        }
        assert_eq!(counts(&queue)[23..], [1]);
    }

    #[test]
    fn what_there_is_no_room_for_is_counted() {
        let queue = EventQueue::default();
        for number in 0..MAX_QUEUED_EVENTS + 300 {
            let uuid = format!("{}", number % 10);
            let kind = [GpuEventKind::Lost, GpuEventKind::Back][number / 10 % 2];
            queue.push(event(&uuid, kind, None));
        }
        assert_eq!(counts(&queue).len(), MAX_QUEUED_EVENTS);
        queue.remove(MAX_QUEUED_EVENTS);
        queue.flush_summaries(None);
        // Each of the ten GPUs was lost and back 15 times.
        assert_eq!(counts(&queue), [15; 20]);
        assert_eq!(queue.unstored_occurrences(), 300);
        let last: Vec<_> = queue.peek(20).iter().map(|event| event.kind).collect();
        assert_eq!(last[10..], [GpuEventKind::Back; 10]);
    }

    #[test]
    fn an_endless_number_of_kinds_takes_no_endless_room() {
        let queue = EventQueue::default();
        for number in 0..10_000 {
            queue.push(event("a", GpuEventKind::Xid, Some(number)));
        }
        queue.flush_summaries(None);
        let counts = counts(&queue);
        assert!(counts.len() <= MAX_QUEUED_EVENTS + MAX_KEYS + 12, "{}", counts.len());
        assert_eq!(counts.iter().sum::<i64>(), 10_000);
    }

    #[test]
    fn the_kernel_log_adds_to_what_nvml_told() {
        let queue = EventQueue::default();
        queue.push(event("a", GpuEventKind::Xid, Some(79)));
        queue.push(PendingEvent {
            source: GpuEventSource::KernelLog,
            detail: Some("pid=1".into()),
            ..event("a", GpuEventKind::Xid, Some(79))
        });
        let events = queue.peek(usize::MAX);
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].detail.as_deref(), Some("pid=1"));
    }
}

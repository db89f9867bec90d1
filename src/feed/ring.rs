//! The newest changes, as all subscribers share them.

use std::{collections::VecDeque, sync::Arc};

use super::Position;

/// How many changes are shared at most.
const RING_CHANGES: usize = 8_192;

/// How many bytes of messages are shared at most.
const RING_BYTES: usize = 16 << 20;

/// How many changes a subscriber is given at a time.
const PAGE: usize = 256;

/// A change as subscribers share it: read once, made into a `T` once.
#[derive(Debug)]
pub struct Entry<T> {
    /// Its place in the feed.
    pub position: Position,
    /// Whether it is the last change of its transaction.
    pub ends_commit: bool,
    /// What subscribers need of it.
    pub item: T,
    pub(super) bytes: usize,
}

/// A change that subscribers share, which may be one that could not be decoded.
pub trait Readable {
    /// The reason why the change could not be decoded, if it could not.
    fn problem(&self) -> Option<&str>;
}

/// The newest changes.
pub(super) struct Ring<T> {
    /// The place before the first entry.
    start: Position,
    entries: VecDeque<Arc<Entry<T>>>,
    bytes: usize,
}

impl<T> Default for Ring<T> {
    fn default() -> Self {
        Self {
            start: Position::default(),
            entries: VecDeque::new(),
            bytes: 0,
        }
    }
}

impl<T> Ring<T> {
    /// Forgets all, and goes on after this place.
    pub(super) fn restart(&mut self, start: Position) {
        self.entries.clear();
        self.bytes = 0;
        self.start = start;
    }

    pub(super) fn push(&mut self, entries: Vec<Arc<Entry<T>>>) {
        for entry in entries {
            self.bytes += entry.bytes;
            self.entries.push_back(entry);
        }
        while self.entries.len() > RING_CHANGES || self.bytes > RING_BYTES {
            let Some(oldest) = self.entries.pop_front() else {
                return;
            };
            self.bytes -= oldest.bytes;
            self.start = oldest.position;
        }
    }

    /// Entries after a place; `None` if that reaches back before the ring.
    pub(super) fn after(&self, position: Position) -> Option<Vec<Arc<Entry<T>>>> {
        if position < self.start {
            return None;
        }
        let first = self
            .entries
            .partition_point(|entry| entry.position <= position);
        Some(self.entries.range(first..).take(PAGE).cloned().collect())
    }
}

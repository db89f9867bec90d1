//! In-memory ring of the newest changes, shared by all subscribers.

use std::{collections::VecDeque, sync::Arc};

use super::Position;

/// Maximum number of changes in the ring.
const MAX_CHANGES: usize = 8_192;

/// Maximum total size of the messages in the ring, in bytes.
const MAX_BYTES: usize = 16 << 20;

/// Maximum number of changes returned at a time.
const MAX_ENTRIES_PER_READ: usize = 256;

/// Change shared by subscribers: read once and converted to `T` once.
#[derive(Debug)]
pub struct Entry<T> {
    /// Position of the change in the feed.
    pub position: Position,
    /// True for the last change of a transaction.
    pub ends_commit: bool,
    /// Change as converted for subscribers.
    pub item: T,
    pub(super) bytes: usize,
}

/// Shared change that may have failed to decode.
pub trait Readable {
    /// Returns the decoding error, if decoding failed.
    fn problem(&self) -> Option<&str>;
}

/// Newest changes, oldest first.
pub(super) struct Ring<T> {
    /// Position before the first entry.
    start: Position,
    entries: VecDeque<Arc<Entry<T>>>,
    bytes: usize,
}

impl<T> Default for Ring<T> {
    fn default() -> Self {
        Self { start: Position::default(), entries: VecDeque::new(), bytes: 0 }
    }
}

impl<T> Ring<T> {
    /// Removes all entries, and continues after this position.
    pub(super) fn reset(&mut self, start: Position) {
        self.entries.clear();
        self.bytes = 0;
        self.start = start;
    }

    pub(super) fn push(&mut self, entries: Vec<Arc<Entry<T>>>) {
        for entry in entries {
            self.bytes += entry.bytes;
            self.entries.push_back(entry);
        }
        while self.entries.len() > MAX_CHANGES || self.bytes > MAX_BYTES {
            let Some(oldest) = self.entries.pop_front() else {
                return;
            };
            self.bytes -= oldest.bytes;
            self.start = oldest.position;
        }
    }

    /// Returns entries after a position; none if the position lies before the ring.
    pub(super) fn after(&self, position: Position) -> Option<Vec<Arc<Entry<T>>>> {
        if position < self.start {
            return None;
        }
        let first = self.entries.partition_point(|entry| entry.position <= position);
        Some(self.entries.range(first..).take(MAX_ENTRIES_PER_READ).cloned().collect())
    }
}

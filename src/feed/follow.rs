//! Following the feed to keep something in memory up to date with the tables.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use super::{Entry, Feed, Position, Readable};

/// How long to wait after changes were missed before the feed is read again.
const RETRY: Duration = Duration::from_millis(250);

/// A reader of the feed that goes on whatever happens to the feed.
pub struct Follower<T> {
    feed: Feed<T>,
    position: Position,
    /// Whether the last news were that changes were missed.
    has_missed: bool,
}

/// What a follower learns.
pub enum News<T> {
    /// These changes were recorded.
    Changes(Vec<Arc<Entry<T>>>),
    /// Changes were missed: they were pruned, the history was replaced, or the database is in trouble. What is in memory
    /// has to be read from the tables again.
    Missed,
}

impl<T: Readable + Send + Sync + 'static> Follower<T> {
    /// A follower of the feed from this position on.
    pub fn new(feed: Feed<T>, from: Position) -> Self {
        Self {
            feed,
            position: from,
            has_missed: false,
        }
    }

    /// Waits for the next news. Safe to drop while waiting.
    pub async fn next(&mut self) -> News<T> {
        if self.has_missed {
            sleep(RETRY).await;
            self.has_missed = false;
        }
        if let Ok(entries) = self.feed.after(self.position).await {
            self.position = entries.last().map_or(self.position, |entry| entry.position);
            return News::Changes(entries);
        }
        self.position = self.position.max(self.feed.head());
        self.has_missed = true;
        News::Missed
    }
}

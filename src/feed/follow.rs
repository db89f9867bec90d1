//! Follows the feed to keep in-memory data up to date with the tables.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{Entry, Feed, Position, Readable};

/// Pause between a gap and the next read of the feed.
const RETRY: Duration = Duration::from_millis(250);

/// Reader of the feed that continues after gaps and failures.
pub struct Follower<T> {
    feed: Feed<T>,
    position: Position,
    /// True if the last update was a gap.
    had_gap: bool,
}

/// Update from a follower.
pub enum FeedUpdate<T> {
    /// Changes that were recorded, in order.
    Changes(Vec<Arc<Entry<T>>>),
    /// Changes are missing: pruned, of a replaced history, or the database is unavailable.
    /// In-memory data must be read from the tables again.
    Gap,
}

/// Follows the feed after this position until shutdown, and hands each update to `handle`.
pub async fn follow<T: Readable + Send + Sync + 'static, F: Future<Output = ()>>(
    feed: Feed<T>,
    from: Position,
    shutdown: CancellationToken,
    mut handle: impl FnMut(FeedUpdate<T>) -> F,
) {
    let mut follower = Follower::new(feed, from);
    let following = async {
        loop {
            handle(follower.next().await).await;
        }
    };
    shutdown.run_until_cancelled(following).await;
}

impl<T: Readable + Send + Sync + 'static> Follower<T> {
    /// Creates a follower that starts after this position.
    pub fn new(feed: Feed<T>, from: Position) -> Self {
        Self { feed, position: from, had_gap: false }
    }

    /// Waits for the next update. Cancel safe.
    pub async fn next(&mut self) -> FeedUpdate<T> {
        if self.had_gap {
            sleep(RETRY).await;
            self.had_gap = false;
        }
        if let Ok(entries) = self.feed.after(self.position).await {
            self.position = entries.last().map_or(self.position, |entry| entry.position);
            return FeedUpdate::Changes(entries);
        }
        self.position = self.position.max(self.feed.head());
        self.had_gap = true;
        FeedUpdate::Gap
    }
}

//! The tailer: one task per process reads the feed and shares the changes.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use chrono::{DateTime, Utc};
use sea_orm::DbBackend;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{
    Entry, Feed, Readable, bounds,
    history::History,
    incarnations::{self, CheckReason},
    read::{self, Instance, Page, QueryPlan},
    reader::{MAX_CHANGES_PER_READ, RETRY},
};
use crate::{
    db::{
        Db,
        signals::{self, SignalHandler},
    },
    error::Result,
};

/// Delay until a commit of another process is noticed after a lost signal.
const POLL: Duration = Duration::from_millis(500);

/// Pause between reads while committed changes wait for a running transaction, whose end sends no
/// signal.
const POLL_UNSETTLED: Duration = Duration::from_millis(2);

/// Minimum time between two signals to other processes.
const DEBOUNCE: Duration = Duration::from_millis(5);

/// PostgreSQL channel on which processes notify each other of commits.
const CHANNEL: &str = "watchpost_changes";

/// State between two reads, used to detect a replaced database.
#[derive(Debug, Default)]
struct TailState {
    /// Location of the database at the last read.
    instance: Option<Instance>,
    /// Time at which the change at the head was recorded; absent if unknown.
    head_recorded_at: Option<DateTime<Utc>>,
}

impl<T: Readable + Send + Sync + 'static> Feed<T> {
    /// Returns the channel and handler for commits of other processes. Without signals, commits are
    /// noticed by polling.
    pub fn signal_handler(&self) -> (&'static str, SignalHandler) {
        let (db, process) = (self.0.db.clone(), self.0.process.clone());
        let handler = move |payload: Option<&str>| {
            // Commits of this process are already known.
            if payload != Some(&process) {
                db.notify_feed();
            }
        };
        (CHANNEL, Box::new(handler))
    }

    /// Reads the feed until shutdown.
    pub async fn run(self, shutdown: CancellationToken) {
        let background = shutdown.child_token();
        if self.0.db.backend() == DbBackend::Postgres {
            let (db, process) = (self.0.db.clone(), self.0.process.clone());
            tokio::spawn(notify_processes(db, process, background.clone()));
        }
        let mut state = TailState::default();
        while !shutdown.is_cancelled() {
            let pause = match self.advance(&mut state).await {
                Ok(pause) => {
                    self.0.reading.send_if_modified(|reading| !std::mem::replace(reading, true));
                    pause
                }
                Err(error) => {
                    if self.0.reading.send_replace(false) {
                        tracing::warn!(%error, "the change feed cannot be read; watches wait");
                    }
                    RETRY
                }
            };
            if pause.is_zero() {
                continue;
            }
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = self.0.db.committed() => {}
                () = sleep(pause) => {}
            }
        }
        background.cancel();
    }

    /// Logs and counts changes that could not be decoded. Subscribers receive them as undecodable.
    fn report_unreadable(&self, entries: &[Arc<Entry<T>>]) {
        for entry in entries {
            if let Some(problem) = entry.item.problem() {
                let seq = entry.position.seq;
                tracing::error!(change.seq = seq, %problem, "a change of the feed cannot be decoded");
                self.0.unreadable_count.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Reads new changes. Returns the pause before the next read, which a commit may cut short.
    async fn advance(&self, state: &mut TailState) -> Result<Duration> {
        let mut head = self.head();
        let page = read::after(&self.0.by_key, QueryPlan::Cached, head, MAX_CHANGES_PER_READ).await?;
        if !self.is_same_history(&page, state).await? {
            return Ok(Duration::ZERO);
        }
        let is_full = i64::try_from(page.changes.len()) == Ok(MAX_CHANGES_PER_READ);
        let pruned = page.pruned;
        let is_gap = head < pruned;
        if is_gap {
            // Changes were pruned before this process had read them. Subscribers at the head read
            // the table, because the ring no longer reaches back to their position.
            tracing::warn!("changes were pruned before they were read; watches must restart");
            head = pruned;
            state.head_recorded_at = None;
        }
        let cursors = self.cursors();
        let entries: Vec<_> = page
            .changes
            .iter()
            .filter(|change| change.position > head)
            .map(|change| Arc::new(self.entry(change, &cursors)))
            .collect();
        self.report_unreadable(&entries);
        if is_gap || !entries.is_empty() {
            let count = u64::try_from(entries.len()).unwrap_or(0);
            let last = entries.last().map_or(head, |entry| entry.position);
            if !entries.is_empty() {
                state.head_recorded_at = page.changes.last().map(|change| change.created_at);
            }
            let mut ring = self.0.ring.write();
            if is_gap {
                ring.reset(pruned);
            }
            ring.push(entries);
            drop(ring);
            self.0.head.send_replace(last);
            self.0.read_count.fetch_add(count, Ordering::Relaxed);
        }
        self.0.waiting.store(page.waiting, Ordering::Relaxed);
        Ok(match (is_full, page.waiting) {
            (true, _) => Duration::ZERO,
            (false, true) => POLL_UNSETTLED,
            (false, false) => POLL,
        })
    }

    /// Returns true if a page continues the known history. Otherwise the feed restarts at its
    /// present end.
    async fn is_same_history(&self, page: &Page, state: &mut TailState) -> Result<bool> {
        let head = self.head();
        let known = self.history();
        let is_lost =
            head > page.pruned && state.head_recorded_at.is_some() && state.head_recorded_at != page.recorded_at;
        let has_moved = state.instance.is_some_and(|instance| instance != page.instance);
        if !self.0.is_start_recorded.load(Ordering::Relaxed) {
            self.record_start().await?;
        }
        if is_lost || has_moved || page.incarnation != Some(known.current()) {
            let reason = CheckReason::Mismatch { known: &known, is_lost };
            incarnations::record(&self.0.by_key, reason).await?;
            let history = incarnations::load(self.0.by_key.reader(), known.generation).await?;
            if is_lost || self.extend(history.clone()).is_none() {
                self.switch_history(history).await?;
                *state = TailState::default();
                return Ok(false);
            }
        }
        state.instance = Some(page.instance);
        if state.head_recorded_at.is_none() {
            state.head_recorded_at = page.recorded_at;
        }
        Ok(true)
    }

    /// Switches to another history: every watch ends, and every follower reloads its tables.
    async fn switch_history(&self, history: History) -> Result<()> {
        let generation = history.generation + 1;
        self.0.db.renew_connections();
        let (by_key, backend) = (self.0.by_key.reader(), self.0.db.backend());
        let (end, _) = bounds::now_in(by_key, backend, generation).await?;
        let history = self.install(History { generation, ..history });
        tracing::warn!(
            feed.history_id = %history.current(),
            "the history of the database was replaced; watches end, and caches are reloaded"
        );
        self.reset_to(end.position);
        Ok(())
    }
}

/// Notifies other processes of commits. A signal within the transaction would serialize commits, so
/// signals are sent afterwards.
async fn notify_processes(db: Db, process: String, shutdown: CancellationToken) {
    let notifying = async {
        loop {
            db.announcement_due().await;
            let next = Instant::now() + DEBOUNCE;
            if let Err(error) = signals::notify(&db, CHANNEL, &process).await {
                // The other processes poll.
                tracing::debug!(%error, "other processes could not be notified of a commit");
            }
            sleep_until(next).await;
        }
    };
    shutdown.run_until_cancelled(notifying).await;
}

//! Throttle of progress events: rows have the exact progress, watchers receive it at a bounded rate.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::jobs::{state::Move, store::writer::JobWriter};

/// Minimum interval between two progress events of a job.
const MIN_INTERVAL: Duration = Duration::from_millis(500);

/// Interval between two checks for delayed events.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Times of the last progress events by job. Clones share the state.
#[derive(Debug, Clone, Default)]
pub(crate) struct ProgressThrottle(Arc<Mutex<HashMap<Uuid, Publication>>>);

#[derive(Debug)]
struct Publication {
    at: Instant,
    /// True if progress was held back since.
    has_delayed: bool,
}

impl ProgressThrottle {
    /// Returns true if a progress event may be published now. Otherwise the event is delayed.
    pub(crate) fn try_publish(&self, id: Uuid) -> bool {
        let now = Instant::now();
        let mut publications = self.0.lock();
        match publications.get_mut(&id) {
            Some(publication) if now < publication.at + MIN_INTERVAL => {
                publication.has_delayed = true;
                false
            }
            _ => {
                publications.insert(id, Publication { at: now, has_delayed: false });
                true
            }
        }
    }

    /// Publishes delayed events until shutdown.
    pub(crate) async fn run(self, writer: JobWriter, shutdown: CancellationToken) {
        let publishing = async {
            loop {
                sleep(POLL_INTERVAL).await;
                for id in self.due() {
                    if let Err(error) = writer.apply_move(id, Move::PublishProgress).await {
                        tracing::debug!(%error, job.id = %id, "failed to publish the progress of a job");
                    }
                }
            }
        };
        shutdown.run_until_cancelled(publishing).await;
    }

    /// Jobs with a delayed event due now.
    fn due(&self) -> Vec<Uuid> {
        let now = Instant::now();
        let mut publications = self.0.lock();
        let mut due = Vec::new();
        publications.retain(|id, publication| {
            let is_over = now >= publication.at + MIN_INTERVAL;
            if is_over && publication.has_delayed {
                due.push(*id);
                *publication = Publication { at: now, has_delayed: false };
                return true;
            }
            !is_over
        });
        due
    }
}

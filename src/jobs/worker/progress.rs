//! Progress is exact in the row, and told to watchers at most so often.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::jobs::{state::Move, store::writer::Desk};

/// How long there is between two tellings of one job at least.
const EVERY: Duration = Duration::from_millis(500);

/// How often those are looked for that were not told.
const LOOK: Duration = Duration::from_millis(50);

/// When watchers were told of progress. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Throttle(Arc<Mutex<HashMap<Uuid, Told>>>);

#[derive(Debug)]
struct Told {
    at: Instant,
    /// Whether there was progress since.
    more: bool,
}

impl Throttle {
    /// Whether watchers are to be told of a job's progress now; else they will be later.
    pub(crate) fn may_tell(&self, id: Uuid) -> bool {
        let now = Instant::now();
        let mut told = self.0.lock();
        match told.get_mut(&id) {
            Some(told) if now < told.at + EVERY => {
                told.more = true;
                false
            }
            _ => {
                told.insert(
                    id,
                    Told {
                        at: now,
                        more: false,
                    },
                );
                true
            }
        }
    }

    /// Tells what was not told in time, until shutdown.
    pub(crate) async fn run(self, desk: Desk, shutdown: CancellationToken) {
        let telling = async {
            loop {
                sleep(LOOK).await;
                for id in self.due() {
                    if let Err(error) = desk.carry_out(id, Move::Tell).await {
                        tracing::debug!(%error, job.id = %id, "progress was not told");
                    }
                }
            }
        };
        shutdown.run_until_cancelled(telling).await;
    }

    /// Jobs of whose progress watchers are to be told now.
    fn due(&self) -> Vec<Uuid> {
        let now = Instant::now();
        let mut told = self.0.lock();
        let mut due = Vec::new();
        told.retain(|id, told| {
            let passed = now >= told.at + EVERY;
            if passed && told.more {
                due.push(*id);
                *told = Told {
                    at: now,
                    more: false,
                };
                return true;
            }
            !passed
        });
        due
    }
}

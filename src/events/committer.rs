//! Group commit: ingests that arrive together share a transaction, and with it the wait for the disk.

use std::{collections::HashSet, sync::Arc};

use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    batch::{self, Answer, Judged},
    check::Ingest,
    replay,
};
use crate::{
    alerts::rules::{RuleSet, Rules},
    db::Db,
    entity,
    error::Error,
};

/// How many ingests wait at most; a caller beyond that waits for a place among them.
const QUEUE: usize = 1_024;

/// How many ingests share a transaction at most.
const BATCH: usize = 64;

/// How many detections they have together at most, unless a single one has more.
const DETECTIONS: usize = 2_000;

/// How many batches are under way at the same time. SQLite has one writer, but while one batch is
/// written the next is judged, and the one before is answered.
const COMMITTERS: usize = 2;

/// How often an ingest is tried whose rule was deleted under it.
const TRIES: usize = 3;

type Waiting = (Ingest, oneshot::Sender<Answer>);

/// Stores ingests.
#[derive(Debug)]
pub struct Committer {
    queue: mpsc::Sender<Waiting>,
}

impl Committer {
    /// Starts committing. What is queued at shutdown is still stored.
    pub fn start(db: &Db, rules: &Rules, shutdown: &CancellationToken) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..COMMITTERS {
            let work = Work {
                db: db.clone(),
                rules: rules.clone(),
            };
            tokio::spawn(work.run(waiting.clone(), shutdown.clone()));
        }
        Self { queue }
    }

    /// Stores an ingest. Returns when it is committed.
    pub(super) async fn store(&self, ingest: Ingest) -> Answer {
        let (reply, answer) = oneshot::channel();
        self.queue
            .send((ingest, reply))
            .await
            .map_err(|_| Error::ShuttingDown)?;
        answer.await.map_err(|_| Error::ShuttingDown)?
    }
}

struct Work {
    db: Db,
    rules: Rules,
}

impl Work {
    async fn run(self, queue: Arc<Mutex<mpsc::Receiver<Waiting>>>, shutdown: CancellationToken) {
        let mut waiting: Vec<Waiting> = Vec::new();
        loop {
            if waiting.is_empty() {
                // The lock is held while waiting, so that one task gathers while the other commits.
                let mut queue = queue.lock().await;
                tokio::select! {
                    biased;
                    count = queue.recv_many(&mut waiting, BATCH) => if count == 0 { return },
                    () = shutdown.cancelled() => queue.close(),
                }
            }
            let batch = next_batch(&mut waiting);
            if !batch.is_empty() {
                self.commit(batch).await;
            }
        }
    }

    async fn commit(&self, batch: Vec<Waiting>) {
        let (ingests, replies): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        let rules = self.rules.current();
        let judged = judge(&ingests, &rules);
        let stored = self
            .db
            .write(async |tx| batch::store(tx, &ingests, judged, &rules).await);
        match stored.await {
            Ok(answers) => {
                for (reply, answer) in replies.into_iter().zip(answers) {
                    // Whoever asked may have gone.
                    let _ = reply.send(answer);
                }
            }
            Err(Error::DatabaseAway) => {
                for reply in replies {
                    let _ = reply.send(Err(Error::DatabaseAway));
                }
            }
            Err(error) => {
                tracing::debug!(%error, ingests = ingests.len(), "a batch failed; its ingests are tried one by one");
                for (ingest, reply) in ingests.into_iter().zip(replies) {
                    let _ = reply.send(self.commit_alone(ingest).await);
                }
            }
        }
    }

    /// So that an ingest fails by what is wrong with itself only.
    async fn commit_alone(&self, ingest: Ingest) -> Answer {
        let mut tries = 1;
        loop {
            let rules = self.rules.current();
            let ingest = std::slice::from_ref(&ingest);
            let judged = judge(ingest, &rules);
            let stored = self
                .db
                .write(async |tx| batch::store(tx, ingest, judged, &rules).await);
            match stored.await {
                Ok(answers) => {
                    return answers
                        .into_iter()
                        .next()
                        .unwrap_or(Err(Error::internal("an ingest was forgotten")));
                }
                // A rule was deleted, or the same request is being stored by another process.
                Err(Error::BrokenReference { .. } | Error::AlreadyExists { .. })
                    if tries < TRIES =>
                {
                    self.rules.reload().await?;
                    tries += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

fn judge<'a>(ingests: &[Ingest], rules: &'a RuleSet) -> Vec<Judged<'a>> {
    let now = entity::now();
    ingests
        .iter()
        .map(|ingest| batch::judge(ingest, rules, now))
        .collect()
}

/// Takes what can share a transaction. Repetitions of a request in it must wait for the next one, which sees it stored.
fn next_batch(waiting: &mut Vec<Waiting>) -> Vec<Waiting> {
    let (mut batch, mut later) = (Vec::new(), Vec::new());
    let (mut keys, mut detections) = (HashSet::new(), 0);
    for (ingest, reply) in waiting.drain(..) {
        if reply.is_closed() {
            // The caller has gone, and nothing was stored yet.
            continue;
        }
        let full = detections > 0 && detections + ingest.detections.len() > DETECTIONS;
        if full || replay::share_a_key(&ingest, &mut keys) {
            later.push((ingest, reply));
        } else {
            detections += ingest.detections.len();
            batch.push((ingest, reply));
        }
    }
    *waiting = later;
    batch
}

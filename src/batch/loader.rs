//! Many lookups at once: requests for single rows that arrive together share one query.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    hash::Hash,
    sync::Arc,
};

use tokio::sync::{Mutex, mpsc, oneshot};

use crate::error::{Error, Result};

/// How many rows one query looks up at most.
const BATCH: usize = 128;

/// Looks rows up by key.
///
/// Nobody waits for a batch to fill: a query takes whatever has been asked for
/// while the one before it ran. Each query starts after the lookups in it were
/// asked for, so a lookup sees all that was committed before.
#[derive(Debug)]
pub struct Loader<K, V> {
    asked: mpsc::Sender<(K, oneshot::Sender<Result<Option<V>>>)>,
}

impl<K, V> Loader<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Starts `queries` tasks, each of which runs one `fetch` at a time. They end with the loader.
    pub fn start<F>(
        queries: usize,
        fetch: impl Fn(Vec<K>) -> F + Clone + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<HashMap<K, V>>> + Send,
    {
        let (asked, lookups) = mpsc::channel(BATCH);
        let lookups = Arc::new(Mutex::new(lookups));
        for _ in 0..queries {
            let (lookups, fetch) = (lookups.clone(), fetch.clone());
            tokio::spawn(async move {
                let mut batch = Vec::with_capacity(BATCH);
                // The lock is held while waiting, so that one task gathers while the others query.
                while lookups.lock().await.recv_many(&mut batch, BATCH).await > 0 {
                    answer(&fetch, &mut batch).await;
                }
            });
        }
        Self { asked }
    }

    /// Looks up one row.
    pub async fn load(&self, key: K) -> Result<Option<V>> {
        let (reply, answer) = oneshot::channel();
        self.asked
            .send((key, reply))
            .await
            .map_err(Error::internal_ended)?;
        answer.await.map_err(Error::internal)?
    }
}

async fn answer<K, V, F>(
    fetch: &impl Fn(Vec<K>) -> F,
    batch: &mut Vec<(K, oneshot::Sender<Result<Option<V>>>)>,
) where
    K: Clone + Eq + Hash,
    V: Clone,
    F: Future<Output = Result<HashMap<K, V>>>,
{
    let keys: HashSet<K> = batch.iter().map(|(key, _)| key.clone()).collect();
    let rows = fetch(keys.into_iter().collect()).await;
    for (key, reply) in batch.drain(..) {
        let found = match &rows {
            Ok(rows) => Ok(rows.get(&key).cloned()),
            Err(error) => Err(error.again()),
        };
        // Whoever asked may have gone.
        let _ = reply.send(found);
    }
}

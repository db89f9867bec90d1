//! Coalesced lookups: concurrent requests for single rows share one query.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    hash::Hash,
    sync::Arc,
};

use tokio::sync::{Mutex, mpsc, oneshot};

use crate::error::{Error, Result};

/// Maximum number of rows in one query.
const MAX_ROWS_PER_QUERY: usize = 128;

/// Looks up rows by key.
///
/// No lookup waits for a batch to fill: a query takes all lookups that arrived during the previous
/// query. Each query starts after the arrival of its lookups, so a lookup sees everything committed
/// before.
#[derive(Debug)]
pub struct Loader<K, V> {
    queue: mpsc::Sender<(K, oneshot::Sender<Result<Option<V>>>)>,
}

impl<K, V> Loader<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Starts `queries` tasks, each with one `fetch` at a time. The tasks end when the loader is
    /// dropped.
    pub fn start<F>(queries: usize, fetch: impl Fn(Vec<K>) -> F + Clone + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<HashMap<K, V>>> + Send,
    {
        let (queue, lookups) = mpsc::channel(MAX_ROWS_PER_QUERY);
        let lookups = Arc::new(Mutex::new(lookups));
        for _ in 0..queries {
            let (lookups, fetch) = (lookups.clone(), fetch.clone());
            tokio::spawn(async move {
                let mut batch = Vec::with_capacity(MAX_ROWS_PER_QUERY);
                // The lock is held while waiting, so that one task collects lookups while the
                // others query.
                while lookups.lock().await.recv_many(&mut batch, MAX_ROWS_PER_QUERY).await > 0 {
                    run_batch(&fetch, &mut batch).await;
                }
            });
        }
        Self { queue }
    }

    /// Looks up one row.
    pub async fn load(&self, key: K) -> Result<Option<V>> {
        let (reply, answer) = oneshot::channel();
        self.queue.send((key, reply)).await.map_err(Error::task_ended)?;
        answer.await.map_err(Error::internal)?
    }
}

async fn run_batch<K, V, F>(fetch: &impl Fn(Vec<K>) -> F, batch: &mut Vec<(K, oneshot::Sender<Result<Option<V>>>)>)
where
    K: Clone + Eq + Hash,
    V: Clone,
    F: Future<Output = Result<HashMap<K, V>>>,
{
    let keys: HashSet<K> = batch.iter().map(|(key, _)| key.clone()).collect();
    let rows = fetch(keys.into_iter().collect()).await;
    for (key, reply) in batch.drain(..) {
        let result = match &rows {
            Ok(rows) => Ok(rows.get(&key).cloned()),
            Err(error) => Err(error.duplicate()),
        };
        // A caller may have been cancelled, so failed sends are ignored.
        let _ = reply.send(result);
    }
}

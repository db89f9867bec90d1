//! Group commit: items that arrive during a transaction share the next transaction and its disk
//! sync.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};

/// Maximum number of queued items; further callers wait for free capacity.
const QUEUE: usize = 4_096;

/// Time that a group waits for recent callers, because larger groups are cheaper. A lone caller is
/// never delayed.
pub const SIBLINGS: Duration = Duration::from_millis(2);

/// Counter of concurrent callers.
#[derive(Debug, Default)]
pub struct Callers {
    now: AtomicUsize,
    /// Highest concurrency since the last call of [`Callers::take_peak`].
    most: AtomicUsize,
}

impl Callers {
    /// Counts a caller until the returned guard is dropped.
    pub fn enter(&self) -> impl Drop {
        struct Caller<'a>(&'a AtomicUsize);
        impl Drop for Caller<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(now, Ordering::Relaxed);
        Caller(&self.now)
    }

    /// Returns the highest concurrency since the last call, and resets the peak to the present
    /// number.
    pub fn most(&self) -> usize {
        self.most
            .swap(self.now.load(Ordering::Relaxed), Ordering::Relaxed)
    }
}

/// Writes groups of items.
pub trait Writer: Send + Sync + 'static {
    /// Input of one write.
    type Item: Send + 'static;
    /// Result of one written item.
    type Answer: Send + 'static;

    /// Writes all items in one transaction and returns one answer per item, in order. An error
    /// applies to every item: nothing was written.
    fn write(
        &self,
        items: Vec<Self::Item>,
    ) -> impl Future<Output = Result<Vec<Result<Self::Answer>>>> + Send;

    /// Size of an item, counted against the `max_size` of [`GroupCommit::start`].
    fn size(_item: &Self::Item) -> usize {
        1
    }
}

type Waiting<W> = (
    <W as Writer>::Item,
    oneshot::Sender<Result<<W as Writer>::Answer>>,
);

/// Queue of items to be written. Clones share the queue.
#[derive(Debug)]
pub struct GroupCommit<W: Writer> {
    queue: mpsc::Sender<Waiting<W>>,
    callers: Arc<Callers>,
}

impl<W: Writer> Clone for GroupCommit<W> {
    fn clone(&self) -> Self {
        Self {
            queue: self.queue.clone(),
            callers: self.callers.clone(),
        }
    }
}

impl<W: Writer> GroupCommit<W> {
    /// Starts the writer with at most `max_groups` concurrent groups.
    /// A group holds at most `max_size`; a single larger item forms a group alone. Items queued at
    /// shutdown are still written.
    pub fn start(writer: Arc<W>, at_once: usize, room: usize, shutdown: CancellationToken) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let callers = Arc::new(Callers::default());
        let group = Self {
            queue,
            callers: callers.clone(),
        };
        tokio::spawn(gather(writer, waiting, callers, at_once, room, shutdown));
        group
    }

    /// Writes an item and returns after the commit or the failure.
    pub async fn write(&self, item: W::Item) -> Result<W::Answer> {
        let _caller = self.callers.enter();
        let answer = self.send(item).await?;
        answer.await.map_err(|_| Error::ShuttingDown)?
    }

    /// Enqueues an item and returns the receiver of the answer. Items of one caller keep their
    /// order.
    pub async fn send(&self, item: W::Item) -> Result<oneshot::Receiver<Result<W::Answer>>> {
        let (reply, answer) = oneshot::channel();
        let sent = self.queue.send((item, reply)).await;
        sent.map_err(|_| Error::ShuttingDown)?;
        Ok(answer)
    }
}

async fn gather<W: Writer>(
    writer: Arc<W>,
    mut queue: mpsc::Receiver<Waiting<W>>,
    callers: Arc<Callers>,
    at_once: usize,
    room: usize,
    shutdown: CancellationToken,
) {
    let turns = Arc::new(Semaphore::new(at_once));
    let mut next = None;
    loop {
        let first = if let Some(first) = next.take() {
            first
        } else {
            tokio::select! {
                biased;
                first = queue.recv() => match first {
                    Some(first) => first,
                    None => return,
                },
                () = shutdown.cancelled(), if !queue.is_closed() => {
                    queue.close();
                    continue;
                }
            }
        };
        // The semaphore is never closed.
        let Ok(turn) = turns.clone().acquire_owned().await else {
            return;
        };
        let mut size = W::size(&first.0);
        let mut group = vec![first];
        let siblings = callers.most().div_ceil(at_once);
        let until = Instant::now() + SIBLINGS;
        loop {
            let another = match queue.try_recv() {
                Ok(another) => another,
                Err(_) if group.len() < siblings => match timeout_at(until, queue.recv()).await {
                    Ok(Some(another)) => another,
                    Ok(None) | Err(_) => break,
                },
                Err(_) => break,
            };
            size += W::size(&another.0);
            if size > room {
                next = Some(another);
                break;
            }
            group.push(another);
        }
        let writer = writer.clone();
        tokio::spawn(async move {
            write(writer.as_ref(), group).await;
            drop(turn);
        });
    }
}

async fn write<W: Writer>(writer: &W, group: Vec<Waiting<W>>) {
    let (items, replies): (Vec<_>, Vec<_>) = group.into_iter().unzip();
    // A caller may have been cancelled, so failed sends are ignored.
    match writer.write(items).await {
        Ok(answers) => {
            for (reply, answer) in replies.into_iter().zip(answers) {
                let _ = reply.send(answer);
            }
        }
        Err(error) => {
            for reply in replies {
                let _ = reply.send(Err(error.again()));
            }
        }
    }
}

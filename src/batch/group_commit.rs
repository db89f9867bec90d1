//! Group commit: what arrives while others are being written shares the next transaction, and with it the
//! wait for the disk.

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

/// How much waits at most; whoever comes beyond that waits for a place.
const QUEUE: usize = 4_096;

/// How long to wait for callers who were just answered, and who probably come again at once. One who comes alone
/// waits for nobody.
pub const SIBLINGS: Duration = Duration::from_millis(2);

/// How many callers there are at a time.
#[derive(Debug, Default)]
pub struct Callers {
    now: AtomicUsize,
    /// The most since it was last asked.
    most: AtomicUsize,
}

impl Callers {
    /// Counts a caller until what is returned is dropped.
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

    /// The most at a time since it was last asked.
    pub fn most(&self) -> usize {
        self.most
            .swap(self.now.load(Ordering::Relaxed), Ordering::Relaxed)
    }
}

/// Writes groups of items.
pub trait Writer: Send + Sync + 'static {
    /// What is written.
    type Item: Send + 'static;
    /// What comes of it.
    type Answer: Send + 'static;

    /// Writes items in one transaction, and answers each, in their order. An error is that of all, and nothing
    /// was written.
    fn write(
        &self,
        items: Vec<Self::Item>,
    ) -> impl Future<Output = Result<Vec<Result<Self::Answer>>>> + Send;

    /// How much of a group an item takes up. The room is [`GroupCommit::start`]'s.
    fn size(_item: &Self::Item) -> usize {
        1
    }
}

type Waiting<W> = (
    <W as Writer>::Item,
    oneshot::Sender<Result<<W as Writer>::Answer>>,
);

/// Items that wait to be written. Clones share them.
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
    /// Starts writing: up to `at_once` groups at the same time, each with no more than `room` for items unless a
    /// single one needs more. What waits at shutdown is still written.
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

    /// Writes an item. Returns when it is committed, or is not going to be.
    pub async fn write(&self, item: W::Item) -> Result<W::Answer> {
        let _caller = self.callers.enter();
        let answer = self.send(item).await?;
        answer.await.map_err(|_| Error::ShuttingDown)?
    }

    /// Has an item written. Those of one caller keep their order.
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
    // Whoever asked may have gone.
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

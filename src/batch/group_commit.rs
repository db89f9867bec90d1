//! Group commit: items that arrive during a transaction share the next transaction and its disk
//! sync.

use std::{
    collections::{HashSet, VecDeque},
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
const QUEUE_CAPACITY: usize = 4_096;

/// Time that a group waits for recent callers, because larger groups are cheaper. A lone caller is
/// never delayed.
const CALLER_GRACE: Duration = Duration::from_millis(2);

/// Largest number of items that are deferred to a later group. Further items stay queued.
const MAX_DEFERRED: usize = 64;

/// Counter of concurrent callers.
#[derive(Debug, Default)]
struct Callers {
    current: AtomicUsize,
    /// Highest concurrency since the last call of [`Callers::take_peak`].
    peak: AtomicUsize,
}

impl Callers {
    /// Counts a caller until the returned guard is dropped.
    fn enter(&self) -> impl Drop {
        struct Caller<'a>(&'a AtomicUsize);
        impl Drop for Caller<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let current = self.current.fetch_add(1, Ordering::Relaxed) + 1;
        self.peak.fetch_max(current, Ordering::Relaxed);
        Caller(&self.current)
    }

    /// Returns the highest concurrency since the last call, and resets the peak to the present
    /// number.
    fn take_peak(&self) -> usize {
        self.peak.swap(self.current.load(Ordering::Relaxed), Ordering::Relaxed)
    }
}

/// Key that items of one group must not share: a scope and a value.
pub type Key = (Option<String>, String);

/// Writes groups of items.
pub trait Writer: Send + Sync + 'static {
    /// Input of one write.
    type Item: Send + 'static;
    /// Result of one written item.
    type Answer: Send + 'static;

    /// Writes all items in one transaction and returns one answer per item, in order. An error
    /// applies to every item: nothing was written.
    fn write(&self, items: Vec<Self::Item>) -> impl Future<Output = Result<Vec<Result<Self::Answer>>>> + Send;

    /// Size of an item, counted against the `max_size` of [`GroupCommit::start`].
    fn size(_item: &Self::Item) -> usize {
        1
    }

    /// Keys of an item. Items with a common key are written in different groups, so that the later
    /// item finds the result of the earlier item in the database.
    fn keys(_item: &Self::Item) -> Vec<Key> {
        Vec::new()
    }

    /// Drops items before the write if the receiver of the answer is gone.
    const DROPS_CANCELLED: bool = false;
}

type Pending<W> = (<W as Writer>::Item, oneshot::Sender<Result<<W as Writer>::Answer>>);

/// Queue of items to be written. Clones share the queue.
#[derive(Debug)]
pub struct GroupCommit<W: Writer> {
    queue: mpsc::Sender<Pending<W>>,
    callers: Arc<Callers>,
}

impl<W: Writer> Clone for GroupCommit<W> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), callers: self.callers.clone() }
    }
}

impl<W: Writer> GroupCommit<W> {
    /// Starts the writer with at most `max_groups` concurrent groups.
    /// A group holds at most `max_size`; a single larger item forms a group alone. Items queued at
    /// shutdown are still written.
    pub fn start(writer: Arc<W>, max_groups: usize, max_size: usize, shutdown: CancellationToken) -> Self {
        let (queue, items) = mpsc::channel(QUEUE_CAPACITY);
        let callers = Arc::new(Callers::default());
        let group = Self { queue, callers: callers.clone() };
        tokio::spawn(collect_groups(writer, items, callers, max_groups, max_size, shutdown));
        group
    }

    /// Counts a caller that prepares an item for [`Self::enqueue`], until the guard is dropped. Groups
    /// wait for counted callers.
    pub fn enter(&self) -> impl Drop {
        self.callers.enter()
    }

    /// Writes an item and returns after the commit or the failure.
    pub async fn submit(&self, item: W::Item) -> Result<W::Answer> {
        let _caller = self.enter();
        let answer = self.enqueue(item).await?;
        answer.await.map_err(|_| Error::ShuttingDown)?
    }

    /// Enqueues an item and returns the receiver of the answer. Items of one caller keep their
    /// order.
    pub async fn enqueue(&self, item: W::Item) -> Result<oneshot::Receiver<Result<W::Answer>>> {
        let (reply, answer) = oneshot::channel();
        let sent = self.queue.send((item, reply)).await;
        sent.map_err(|_| Error::ShuttingDown)?;
        Ok(answer)
    }
}

/// Items that are written in one transaction.
struct Group<W: Writer> {
    items: Vec<Pending<W>>,
    size: usize,
    max_size: usize,
    keys: HashSet<Key>,
}

/// Reason for an item to wait for a later group.
enum Refusal<W: Writer> {
    Full(Pending<W>),
    KeyTaken(Pending<W>),
}

impl<W: Writer> Group<W> {
    fn new(max_size: usize) -> Self {
        Self { items: Vec::new(), size: 0, max_size, keys: HashSet::new() }
    }

    fn is_full(&self) -> bool {
        self.size >= self.max_size
    }

    fn add(&mut self, pending: Pending<W>) -> Result<(), Refusal<W>> {
        let (item, reply) = &pending;
        if W::DROPS_CANCELLED && reply.is_closed() {
            return Ok(());
        }
        let size = self.size + W::size(item);
        if !self.items.is_empty() && size > self.max_size {
            return Err(Refusal::Full(pending));
        }
        let keys = W::keys(item);
        if keys.iter().any(|key| self.keys.contains(key)) {
            return Err(Refusal::KeyTaken(pending));
        }
        self.keys.extend(keys);
        self.size = size;
        self.items.push(pending);
        Ok(())
    }

    /// Moves as many deferred items as possible into the group, and keeps the order of the others.
    fn add_deferred(&mut self, deferred: &mut VecDeque<Pending<W>>) {
        for pending in std::mem::take(deferred) {
            if self.is_full() {
                deferred.push_back(pending);
                continue;
            }
            if let Err(Refusal::Full(pending) | Refusal::KeyTaken(pending)) = self.add(pending) {
                deferred.push_back(pending);
            }
        }
    }
}

async fn collect_groups<W: Writer>(
    writer: Arc<W>,
    mut queue: mpsc::Receiver<Pending<W>>,
    callers: Arc<Callers>,
    max_groups: usize,
    max_size: usize,
    shutdown: CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(max_groups));
    let mut deferred = VecDeque::new();
    loop {
        if deferred.is_empty() {
            tokio::select! {
                biased;
                first = queue.recv() => match first {
                    Some(first) => deferred.push_back(first),
                    None => return,
                },
                () = shutdown.cancelled(), if !queue.is_closed() => {
                    queue.close();
                    continue;
                }
            }
        }
        // The semaphore is never closed.
        let Ok(permit) = permits.clone().acquire_owned().await else {
            return;
        };
        let mut group = Group::<W>::new(max_size);
        group.add_deferred(&mut deferred);
        let recent_callers = callers.take_peak().div_ceil(max_groups);
        let deadline = Instant::now() + CALLER_GRACE;
        while !group.is_full() && deferred.len() < MAX_DEFERRED {
            let item = match queue.try_recv() {
                Ok(item) => item,
                Err(_) if group.items.len() < recent_callers => match timeout_at(deadline, queue.recv()).await {
                    Ok(Some(item)) => item,
                    Ok(None) | Err(_) => break,
                },
                Err(_) => break,
            };
            match group.add(item) {
                Ok(()) => {}
                Err(Refusal::KeyTaken(item)) => deferred.push_back(item),
                Err(Refusal::Full(item)) => {
                    deferred.push_back(item);
                    break;
                }
            }
        }
        if group.items.is_empty() {
            continue;
        }
        let writer = writer.clone();
        tokio::spawn(async move {
            commit_group(writer.as_ref(), group.items).await;
            drop(permit);
        });
    }
}

async fn commit_group<W: Writer>(writer: &W, group: Vec<Pending<W>>) {
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
                let _ = reply.send(Err(error.duplicate()));
            }
        }
    }
}

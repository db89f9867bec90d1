//! Requests that have not arrived whole: their time, their number and their bytes are bounded.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::{Status, body::Body};

use super::framing::Framing;
use crate::error::Error;

/// Largest number of unfinished messages. For each of them the decoder reserves address space of its announced length.
const MESSAGES: usize = 4_096;

/// Failure of a message that was evicted.
const EVICTED: Error =
    Error::Busy("newer requests need the memory of this one, which has not arrived whole");

/// Accounts of unfinished messages. Clones share them.
#[derive(Debug, Clone)]
pub struct Unfinished(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    within: Duration,
    most_bytes: u64,
    accounts: Mutex<Accounts>,
    timed_out: AtomicU64,
    evicted: AtomicU64,
}

#[derive(Debug, Default)]
struct Accounts {
    next: u64,
    bytes: u64,
    /// By number: the message that began first comes first.
    messages: BTreeMap<u64, Account>,
}

#[derive(Debug, Default)]
struct Account {
    bytes: u64,
    /// Task that waits for more of the message.
    waiting: Option<Waker>,
}

impl Unfinished {
    /// Accounts of messages that must arrive within this time, and together hold up to `memory` bytes. A single message of
    /// the largest size always fits.
    pub fn new(within: Duration, memory: u64, max_message_size: usize) -> Self {
        Self(Arc::new(Shared {
            within,
            most_bytes: memory.max(max_message_size as u64 + Framing::PREFIX as u64),
            accounts: Mutex::default(),
            timed_out: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
        }))
    }

    /// Number of unfinished messages of which a part has arrived.
    pub fn messages(&self) -> usize {
        self.accounts().messages.len()
    }

    /// Bytes of unfinished messages that have arrived, and that may have arrived.
    pub fn memory(&self) -> (u64, u64) {
        (self.accounts().bytes, self.0.most_bytes)
    }

    /// Number of requests that did not arrive whole in time.
    pub fn timed_out(&self) -> u64 {
        self.0.timed_out.load(Ordering::Relaxed)
    }

    /// Number of requests that were ended because newer ones needed their memory.
    pub fn evicted(&self) -> u64 {
        self.0.evicted.load(Ordering::Relaxed)
    }

    /// The body of a request, bounded. The messages of a `stream` may be far apart: time counts only within a message.
    pub(crate) fn bound(&self, body: Body, stream: bool) -> Body {
        Body::new(Bounded {
            body,
            unfinished: self.clone(),
            stream,
            framing: Framing::default(),
            begun: Instant::now(),
            deadline: None,
            held: None,
            over: false,
        })
    }

    fn accounts(&self) -> MutexGuard<'_, Accounts> {
        let accounts = self.0.accounts.lock();
        accounts.unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the account of a message.
    fn open(&self) -> Held {
        let mut accounts = self.accounts();
        let number = accounts.next;
        accounts.next += 1;
        accounts.messages.insert(number, Account::default());
        drop(accounts);
        Held {
            unfinished: self.clone(),
            number,
        }
    }
}

/// A part of an unfinished message that has arrived. Its bytes are free again when this is dropped.
#[derive(Debug)]
struct Held {
    unfinished: Unfinished,
    number: u64,
}

impl Held {
    /// Counts bytes that have arrived. Messages that began first are evicted where there is no room. Returns whether this
    /// message is still accounted for.
    fn grow(&self, bytes: u64) -> bool {
        let mut evicted = Vec::new();
        let mut accounts = self.unfinished.accounts();
        if let Some(account) = accounts.messages.get_mut(&self.number) {
            account.bytes += bytes;
            accounts.bytes += bytes;
        }
        while accounts.bytes > self.unfinished.0.most_bytes || accounts.messages.len() > MESSAGES {
            let Some((_, account)) = accounts.messages.pop_first() else {
                break;
            };
            accounts.bytes -= account.bytes;
            evicted.push(account.waiting);
        }
        let is_kept = accounts.messages.contains_key(&self.number);
        drop(accounts);
        let count = &self.unfinished.0.evicted;
        count.fetch_add(evicted.len() as u64, Ordering::Relaxed);
        evicted.into_iter().flatten().for_each(Waker::wake);
        is_kept
    }

    /// Returns true if the message is still accounted for. If it is, an eviction wakes the task.
    fn is_kept(&self, cx: &Context<'_>) -> bool {
        let mut accounts = self.unfinished.accounts();
        let Some(account) = accounts.messages.get_mut(&self.number) else {
            return false;
        };
        match &mut account.waiting {
            Some(waiting) => waiting.clone_from(cx.waker()),
            waiting @ None => *waiting = Some(cx.waker().clone()),
        }
        true
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut accounts = self.unfinished.accounts();
        if let Some(account) = accounts.messages.remove(&self.number) {
            accounts.bytes -= account.bytes;
        }
    }
}

/// Waits until a body has begun to arrive. What is returned has all of it.
pub(super) async fn begun(mut body: Body) -> Body {
    match body.frame().await {
        Some(first) => Body::new(Begun {
            first: Some(first),
            rest: body,
        }),
        None => Body::empty(),
    }
}

/// A body whose first frame has been read.
struct Begun {
    first: Option<Result<Frame<Bytes>, Status>>,
    rest: Body,
}

impl http_body::Body for Begun {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.first.take() {
            Some(first) => Poll::Ready(Some(first)),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_end_stream()
    }
}

/// The body of a request that must arrive in time.
struct Bounded {
    body: Body,
    unfinished: Unfinished,
    /// True if the request is a stream of messages.
    stream: bool,
    framing: Framing,
    /// Begin of the current message; of the call, unless it is a stream.
    begun: Instant,
    /// Set when something was waited for since then.
    deadline: Option<Pin<Box<Sleep>>>,
    held: Option<Held>,
    over: bool,
}

impl Bounded {
    /// Accounts for bytes that have arrived. Returns whether more are taken.
    fn arrived(&mut self, bytes: &[u8]) -> bool {
        let (begins, held_before) = (self.framing.begins(), self.framing.held());
        self.framing.read(bytes);
        let is_another = self.framing.begins() != begins;
        if is_another || !self.framing.is_within() {
            self.held = None;
            if self.stream {
                self.begun = Instant::now();
                self.deadline = None;
            }
        }
        if !self.framing.is_within() {
            return true;
        }
        let counted = if self.held.is_some() { held_before } else { 0 };
        let unfinished = &self.unfinished;
        let held = self.held.get_or_insert_with(|| unfinished.open());
        held.grow(self.framing.held() - counted)
    }

    fn end(&mut self, error: Error) -> Status {
        self.end_quietly();
        error.into()
    }

    fn end_quietly(&mut self) {
        self.held = None;
        self.over = true;
    }

    /// Ready with the reason when no more is waited for.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        if let Some(held) = &self.held
            && !held.is_kept(cx)
        {
            return Poll::Ready(EVICTED);
        }
        if self.stream && !self.framing.is_within() {
            return Poll::Pending;
        }
        let within = self.unfinished.0.within;
        let until = self.begun + within;
        let deadline = self
            .deadline
            .get_or_insert_with(|| Box::pin(sleep_until(until)));
        deadline.as_mut().poll(cx).map(|()| {
            self.unfinished.0.timed_out.fetch_add(1, Ordering::Relaxed);
            Error::MessageTimeout { within }
        })
    }
}

impl http_body::Body for Bounded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.over {
            return Poll::Ready(None);
        }
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            match &frame {
                Some(Ok(frame)) => {
                    if let Some(bytes) = frame.data_ref()
                        && !self.arrived(bytes)
                    {
                        return Poll::Ready(Some(Err(self.end(EVICTED))));
                    }
                }
                Some(Err(_)) | None => self.end_quietly(),
            }
            return Poll::Ready(frame);
        }
        match self.poll_over(cx) {
            Poll::Ready(error) => Poll::Ready(Some(Err(self.end(error)))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.over || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

//! Bounds of incomplete requests: time, number and bytes.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http_body::Frame;
use http_body_util::BodyExt;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::{Status, body::Body};

use self::body_buffer::BodyBuffer;
use super::framing::Framing;
use crate::error::{Error, Result};

mod body_buffer;
#[cfg(test)]
mod tests;

/// Maximum number of incomplete requests. Each is a call, which takes some KiB.
const MAX_REQUESTS: usize = 1_024;

/// Age from which a request is evicted before younger requests.
const EVICTION_AGE: Duration = Duration::from_secs(1);

/// Time without progress after which a request counts as stalled, and number of bytes that count as
/// progress.
const STALL_TIMEOUT: Duration = Duration::from_secs(1);
const PROGRESS_BYTES: u64 = 16 << 10;

/// Error of an evicted request.
const EVICTED: Error = Error::Busy("the incomplete request was ended, because other requests needed its memory");

/// Accounts of incomplete requests: nothing has arrived, or the end is missing.
///
/// A stream of messages is incomplete before its first message and within each message. Clones
/// share the accounts.
#[derive(Debug, Clone)]
pub struct UnfinishedRequests(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    within: Duration,
    max_bytes: u64,
    /// Maximum size of a message, in bytes.
    max_message_size: usize,
    accounts: Mutex<Accounts>,
    timed_out: AtomicU64,
    evicted: AtomicU64,
}

#[derive(Debug, Default)]
struct Accounts {
    next: u64,
    bytes: u64,
    /// Accounts by number, in the order of opening.
    requests: BTreeMap<u64, Account>,
}

#[derive(Debug)]
struct Account {
    bytes: u64,
    begun: Instant,
    /// Time of the last progress, and number of bytes received by then.
    progressed: Instant,
    progressed_bytes: u64,
    /// Waker of the task that waits for more bytes.
    waiting: Option<Waker>,
}

impl Account {
    fn new(now: Instant) -> Self {
        Self { bytes: 0, begun: now, progressed: now, progressed_bytes: 0, waiting: None }
    }

    fn set(&mut self, bytes: u64, now: Instant) {
        self.bytes = bytes;
        if bytes >= self.progressed_bytes + PROGRESS_BYTES {
            (self.progressed, self.progressed_bytes) = (now, bytes);
        }
    }
}

impl Accounts {
    /// Selects the request to be evicted.
    ///
    /// The request that stalled first is preferred, then the newest, so that older requests can
    /// complete. Requests younger than a second are spared, because most complete within
    /// milliseconds. If all are younger, the oldest is selected.
    fn eviction_candidate(&self, now: Instant) -> Option<u64> {
        let mature = || {
            let all = self.requests.iter();
            all.filter(|(_, account)| now - account.begun >= EVICTION_AGE)
        };
        let stalled = mature()
            .filter(|(_, account)| now - account.progressed >= STALL_TIMEOUT)
            .min_by_key(|(_, account)| account.progressed);
        let newest = || mature().next_back();
        let oldest = || self.requests.first_key_value();
        let eviction_candidate = stalled.or_else(newest).or_else(oldest);
        eviction_candidate.map(|(number, _)| *number)
    }
}

impl UnfinishedRequests {
    /// Creates accounts for requests that must arrive within `timeout`, and hold up to `memory`
    /// bytes together. A message of the maximum size always fits.
    pub fn new(within: Duration, memory: u64, max_message_size: usize) -> Self {
        Self(Arc::new(Shared {
            within,
            max_message_size,
            max_bytes: memory.max(max_message_size as u64 + Framing::PREFIX_BYTES as u64),
            accounts: Mutex::default(),
            timed_out: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
        }))
    }

    /// Returns the number of incomplete requests.
    pub fn requests(&self) -> usize {
        self.accounts().requests.len()
    }

    /// Returns the received bytes of incomplete requests, and the maximum.
    pub fn memory(&self) -> (u64, u64) {
        (self.accounts().bytes, self.0.max_bytes)
    }

    /// Returns the number of requests that did not arrive in time.
    pub fn timed_out(&self) -> u64 {
        self.0.timed_out.load(Ordering::Relaxed)
    }

    /// Returns the number of evicted requests.
    pub fn evicted(&self) -> u64 {
        self.0.evicted.load(Ordering::Relaxed)
    }

    /// Wraps a request body. The wrapper yields each message once it is complete. The timeout of a
    /// `stream` runs only within a message.
    pub(crate) fn bound(&self, body: Body, stream: bool) -> BoundedBody {
        BoundedBody {
            body,
            unfinished: self.clone(),
            stream,
            framing: Framing::default(),
            begun: Instant::now(),
            buffer: BodyBuffer::default(),
            next: None,
            deadline: None,
            account_guard: None,
            is_over: false,
        }
    }

    fn accounts(&self) -> MutexGuard<'_, Accounts> {
        self.0.accounts.lock()
    }

    /// Opens the account of a request.
    fn open(&self) -> AccountGuard {
        let mut accounts = self.accounts();
        let number = accounts.next;
        accounts.next += 1;
        accounts.requests.insert(number, Account::new(Instant::now()));
        drop(accounts);
        AccountGuard { unfinished: self.clone(), number }
    }
}

/// Account of an incomplete request, closed when dropped.
#[derive(Debug)]
struct AccountGuard {
    unfinished: UnfinishedRequests,
    number: u64,
}

impl AccountGuard {
    /// Sets the number of received bytes, and evicts requests if a limit is exceeded. Returns false
    /// if this request was evicted.
    fn set(&self, bytes: u64) -> bool {
        let (mut evicted, now) = (Vec::new(), Instant::now());
        let mut accounts = self.unfinished.accounts();
        if let Some(account) = accounts.requests.get_mut(&self.number) {
            let before = account.bytes;
            account.set(bytes, now);
            accounts.bytes = accounts.bytes - before + bytes;
        }
        while accounts.bytes > self.unfinished.0.max_bytes || accounts.requests.len() > MAX_REQUESTS {
            let eviction_candidate = accounts.eviction_candidate(now);
            let Some(account) = eviction_candidate.and_then(|number| accounts.requests.remove(&number)) else {
                break;
            };
            accounts.bytes -= account.bytes;
            evicted.push(account.waiting);
        }
        let is_open = accounts.requests.contains_key(&self.number);
        drop(accounts);
        let count = &self.unfinished.0.evicted;
        count.fetch_add(evicted.len() as u64, Ordering::Relaxed);
        evicted.into_iter().flatten().for_each(Waker::wake);
        is_open
    }

    /// Returns true if the account is still open, and registers the task to be woken by an
    /// eviction.
    fn is_open(&self, cx: &Context<'_>) -> bool {
        let mut accounts = self.unfinished.accounts();
        let Some(account) = accounts.requests.get_mut(&self.number) else {
            return false;
        };
        match &mut account.waiting {
            Some(waiting) => waiting.clone_from(cx.waker()),
            waiting @ None => *waiting = Some(cx.waker().clone()),
        }
        true
    }
}

impl Drop for AccountGuard {
    fn drop(&mut self) {
        let mut accounts = self.unfinished.accounts();
        if let Some(account) = accounts.requests.remove(&self.number) {
            accounts.bytes -= account.bytes;
        }
    }
}

/// Request body that must arrive in time. Bytes of a message are held back until the message is
/// complete.
pub(crate) struct BoundedBody {
    body: Body,
    unfinished: UnfinishedRequests,
    /// True if the request is a stream of messages.
    stream: bool,
    framing: Framing,
    /// Begin of the current message in a stream, or of a unary call.
    begun: Instant,
    buffer: BodyBuffer,
    /// Frame that follows the buffered bytes.
    next: Option<Result<Frame<Bytes>, Status>>,
    /// Timer of the timeout, created by the first wait.
    deadline: Option<Pin<Box<Sleep>>>,
    account_guard: Option<AccountGuard>,
    is_over: bool,
}

impl BoundedBody {
    /// Waits until a complete message or the end can be read.
    pub(crate) async fn wait_readable(&mut self) {
        if let Some(frame) = self.frame().await {
            match frame.map(Frame::into_data) {
                Ok(Ok(bytes)) => self.buffer.put_back(bytes),
                Ok(Err(other)) => self.next = Some(Ok(other)),
                Err(status) => self.next = Some(Err(status)),
            }
        }
    }

    /// Receives bytes and updates the account.
    fn receive(&mut self, mut bytes: Bytes) -> Result<()> {
        let messages_before = self.framing.message_count();
        let complete = self.framing.read(&bytes);
        let is_new_message = self.framing.message_count() != messages_before;
        if !self.stream && self.framing.message_count() > 1 {
            // A unary request has a single message.
            return Err(Error::Malformed);
        }
        let limit = self.unfinished.0.max_message_size;
        if self.framing.length() > limit as u64 {
            if complete == 0 {
                return Err(Error::TooLarge { limit });
            }
            self.buffer.release(bytes.split_to(complete));
            self.end_with(Some(Err(Error::TooLarge { limit }.into())));
            return Ok(());
        }
        if self.stream && (is_new_message || !self.framing.is_inside_message()) {
            self.account_guard = None;
            self.begun = Instant::now();
            self.deadline = None;
        }
        // A unary message is released together with the end of the request, because its memory
        // would be held until then.
        if complete > 0 && (self.stream || http_body::Body::is_end_stream(&self.body)) {
            self.buffer.release(bytes.split_to(complete));
        }
        self.buffer.hold_back(&bytes);
        // A complete message needs no account, unless the end of the request is still missing.
        if self.account_guard.is_some() || self.framing.is_inside_message() {
            return self.update_account();
        }
        Ok(())
    }

    /// Updates the account. Fails if the request was evicted.
    fn update_account(&mut self) -> Result<()> {
        let unfinished = &self.unfinished;
        let account_guard = self.account_guard.get_or_insert_with(|| unfinished.open());
        if account_guard.set(self.buffer.held_back()) { Ok(()) } else { Err(EVICTED) }
    }

    /// Returns true if a waiting request needs an account: always, except between the messages of a
    /// stream.
    fn is_unfinished(&self) -> bool {
        !self.stream || self.framing.is_inside_message() || self.framing.message_count() == 0
    }

    fn end(&mut self, error: Error) -> Status {
        self.buffer = BodyBuffer::default();
        self.finish();
        error.into()
    }

    fn finish(&mut self) {
        self.account_guard = None;
        self.is_over = true;
    }

    /// Ends the body after the buffered bytes and this frame.
    fn end_with(&mut self, frame: Option<Result<Frame<Bytes>, Status>>) {
        self.buffer.release(Bytes::new());
        self.next = frame;
        self.finish();
    }

    /// Ready with the error when the request is evicted or times out.
    fn poll_termination(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        if self.account_guard.is_none()
            && self.is_unfinished()
            && let Err(error) = self.update_account()
        {
            return Poll::Ready(error);
        }
        if let Some(account_guard) = &self.account_guard
            && !account_guard.is_open(cx)
        {
            return Poll::Ready(EVICTED);
        }
        if self.stream && !self.framing.is_inside_message() {
            return Poll::Pending;
        }
        let within = self.unfinished.0.within;
        let until = self.begun + within;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep_until(until)));
        deadline.as_mut().poll(cx).map(|()| {
            self.unfinished.0.timed_out.fetch_add(1, Ordering::Relaxed);
            Error::MessageTimeout { within }
        })
    }
}

impl http_body::Body for BoundedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(bytes) = self.buffer.next() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if let Some(next) = self.next.take() {
                return Poll::Ready(Some(next));
            }
            if self.is_over {
                return Poll::Ready(None);
            }
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
                break;
            };
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(bytes))) => {
                    if let Err(error) = self.receive(bytes) {
                        return Poll::Ready(Some(Err(self.end(error))));
                    }
                }
                Some(Ok(Err(trailers))) => self.end_with(Some(Ok(trailers))),
                Some(Err(status)) => self.end_with(Some(Err(status))),
                None => self.end_with(None),
            }
        }
        match self.poll_termination(cx) {
            Poll::Ready(error) => Poll::Ready(Some(Err(self.end(error)))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        let is_over = self.is_over || self.body.is_end_stream();
        is_over && self.next.is_none() && self.buffer.is_empty()
    }
}

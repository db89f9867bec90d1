//! Connections of the gRPC listener: limit of open connections, and deadline for the HTTP/2
//! preface.
//!
//! A connection is passed to the server after its first byte. A silent connection therefore costs
//! little more than a socket, and is closed after the deadline.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::Stream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, Sleep, sleep, sleep_until, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::{Connected, TcpConnectInfo};

/// Time from the connection to the end of the client's preface: greeting and first settings.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);

/// Length of the shortest preface in bytes: the greeting and an empty settings frame.
const MIN_PREFACE_BYTES: usize = 24 + 9;

/// Pause after a failed accept, as when no file can be opened.
const RETRY: Duration = Duration::from_millis(100);

/// Maximum number of connections waiting for the server.
const MAX_PENDING_CONNECTIONS: usize = 64;

/// File descriptors reserved for the database, the log and outgoing calls.
const RESERVED_FILES: u64 = 256;

/// Connection limit and statistics. Clones share the state.
#[derive(Debug, Clone)]
pub struct Connections(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    free: Arc<Semaphore>,
    limit: usize,
    refused: AtomicU64,
    timed_out: AtomicU64,
}

impl Connections {
    /// Creates a limit of `max_connections`, or less if the process may open fewer files.
    pub fn new(max_connections: usize) -> Self {
        let max_files = usize::try_from(available_files()).unwrap_or(usize::MAX);
        let limit = max_connections.min(max_files);
        if limit < max_connections {
            tracing::warn!(
                limit,
                "the limit of open files is too low for --max-connections; accepting fewer connections"
            );
        }
        Self(Arc::new(Counts {
            free: Arc::new(Semaphore::new(limit)),
            limit,
            refused: AtomicU64::new(0),
            timed_out: AtomicU64::new(0),
        }))
    }

    /// Returns the number of open connections.
    pub fn open(&self) -> usize {
        self.0.limit - self.0.free.available_permits()
    }

    /// Returns the maximum number of open connections.
    pub fn limit(&self) -> usize {
        self.0.limit
    }

    /// Returns the number of connections closed at once because of the limit.
    pub fn refused(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }

    /// Returns the number of connections closed because the preface was late.
    pub fn timed_out(&self) -> u64 {
        self.0.timed_out.load(Ordering::Relaxed)
    }

    /// Accepts connections until shutdown. The stream yields connections after the client's first
    /// byte.
    pub(crate) fn accept(
        &self,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) -> impl Stream<Item = io::Result<Connection>> + use<> {
        let (ready, incoming) = mpsc::channel(MAX_PENDING_CONNECTIONS);
        let connections = self.clone();
        tokio::spawn(async move {
            let accepting = connections.accept_all(&listener, &ready, &shutdown);
            shutdown.run_until_cancelled(accepting).await;
        });
        ReceiverStream::new(incoming)
    }

    async fn accept_all(
        &self,
        listener: &TcpListener,
        ready: &mpsc::Sender<io::Result<Connection>>,
        shutdown: &CancellationToken,
    ) {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, "a connection could not be accepted");
                    sleep(RETRY).await;
                    continue;
                }
            };
            let Ok(permit) = self.0.free.clone().try_acquire_owned() else {
                self.0.refused.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            let (connections, ready) = (self.clone(), ready.clone());
            let shutdown = shutdown.clone();
            tokio::spawn(async move {
                let handover = connections.hand_over(stream, permit, &ready);
                shutdown.run_until_cancelled(handover).await;
            });
        }
    }

    /// Waits for the first byte, then passes the connection to the server.
    async fn hand_over(
        &self,
        stream: TcpStream,
        permit: OwnedSemaphorePermit,
        ready: &mpsc::Sender<io::Result<Connection>>,
    ) {
        let deadline = Instant::now() + PREFACE_TIMEOUT;
        // A socket may be reported readable without data, so the byte is read.
        let mut first = [0];
        let first_byte = timeout_at(deadline, stream.peek(&mut first)).await;
        match first_byte {
            Ok(Ok(bytes)) if bytes > 0 => {}
            // The client has disconnected.
            Ok(_) => return,
            Err(_) => {
                self.0.timed_out.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection was closed by the client");
            return;
        }
        let connection = Connection {
            stream,
            preface: Some(Preface {
                missing: MIN_PREFACE_BYTES,
                deadline: Box::pin(sleep_until(deadline)),
                connections: self.clone(),
            }),
            _permit: permit,
        };
        // The server ends with the process.
        let _ = ready.send(Ok(connection)).await;
    }
}

/// Connection to a client. Reads fail if the client's preface is late.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    /// Pending preface; absent after its arrival.
    preface: Option<Preface>,
    _permit: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct Preface {
    /// Number of missing bytes.
    missing: usize,
    deadline: Pin<Box<Sleep>>,
    connections: Connections,
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let connection = self.get_mut();
        let filled_before = buffer.filled().len();
        let polled = Pin::new(&mut connection.stream).poll_read(cx, buffer);
        let Some(preface) = &mut connection.preface else {
            return polled;
        };
        preface.missing = preface.missing.saturating_sub(buffer.filled().len() - filled_before);
        if preface.missing == 0 {
            connection.preface = None;
            return polled;
        }
        if polled.is_pending() && preface.deadline.as_mut().poll(cx).is_ready() {
            let timed_out = &preface.connections.0.timed_out;
            timed_out.fetch_add(1, Ordering::Relaxed);
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        polled
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

/// Returns the number of files available to connections, after raising the soft limit to the hard
/// limit.
#[cfg(target_os = "linux")]
fn available_files() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let maximum = limit.maximum;
        let raised = Rlimit { current: maximum, maximum };
        if setrlimit(Resource::Nofile, raised).is_ok() {
            limit.current = maximum;
        }
    }
    // A missing limit means unlimited.
    let open_files = limit.current.unwrap_or(u64::MAX);
    open_files.saturating_sub(RESERVED_FILES).max(open_files / 2)
}

#[cfg(not(target_os = "linux"))]
fn available_files() -> u64 {
    u64::MAX
}

//! A TCP proxy between a client and a server, which can cut connections as a crash does, or stop forwarding
//! without anybody being told.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

/// A proxy. What goes through it ends when it is dropped.
pub struct Proxy {
    pub address: SocketAddr,
    forwards: watch::Sender<bool>,
    tasks: Arc<Mutex<Vec<JoinHandle<()>>>>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// A proxy to this server.
    pub async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (forwards, forwarding) = watch::channel(true);
        let tasks: Arc<Mutex<Vec<JoinHandle<()>>>> = Arc::default();
        let accepted = tasks.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(server).await else {
                    continue;
                };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                let up = forward(from_client, to_server, forwarding.clone());
                let down = forward(from_server, to_client, forwarding.clone());
                let mut tasks = accepted.lock().unwrap();
                tasks.push(tokio::spawn(up));
                tasks.push(tokio::spawn(down));
            }
        });
        Self { address, forwards, tasks, accepting }
    }

    /// Cuts all connections.
    pub fn cut(&self) {
        for task in self.tasks.lock().unwrap().drain(..) {
            task.abort();
        }
    }

    /// Stops forwarding, or goes on. Connections stay open.
    pub fn forward(&self, forwards: bool) {
        self.forwards.send_replace(forwards);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut();
        self.accepting.abort();
    }
}

async fn forward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut forwards: watch::Receiver<bool>) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read) = from.read(&mut buffer).await {
        // What was read meanwhile is not forwarded before it goes on.
        if read == 0
            || forwards.wait_for(|forwards| *forwards).await.is_err()
            || to.write_all(&buffer[..read]).await.is_err()
        {
            return;
        }
    }
}

//! What is refused: each by its code, reason and field, and with nothing written.

mod cameras;
mod depth;
mod events;
mod floods;
mod lists;
mod messages;
mod rules;
mod watches;

use tonic::{Code, Status};

use crate::support::{
    TestServer, always,
    calls::{Reply, failed, rows},
    database::Backend,
    detection, field,
};

/// What no name and no text may be longer than.
const HUGE: usize = 1 << 17;

/// A server that has one of everything.
async fn ready(backend: Backend) -> TestServer {
    let server = TestServer::start(backend).await;
    server.camera("door").await;
    server.rule(always("everything")).await;
    server.ingest("door", vec![detection("dog", 0.5)]).await;
    server
}

/// That what was refused has left no trace, and that the server still works.
async fn unharmed(server: &TestServer, before: &[(&'static str, i64)]) {
    assert_eq!(rows(server).await, before);
    assert_eq!(server.ingest("door", vec![]).await.alerts.len(), 1);
}

/// That a call was refused because of this field, in an answer that every client can read.
#[track_caller]
fn refused<T: std::fmt::Debug>(reply: Reply<T>, path: &str) {
    let status = failed_by_field(reply);
    assert_eq!(field(&status), path, "{}", status.message());
    // The headers of an answer have little room, whatever was sent.
    let size = status.message().len() + status.details().len();
    assert!(size < 4096, "{size} bytes");
}

#[track_caller]
fn failed_by_field<T: std::fmt::Debug>(reply: Reply<T>) -> Status {
    failed(reply, Code::InvalidArgument, "INVALID_FIELD")
}

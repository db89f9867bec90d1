//! `WorkJobs`: the stream between the server and a worker.

mod context;
mod hello;
mod messages;
mod session;

use futures_util::Stream;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

pub(crate) use self::context::SessionContext;
use crate::pb;

/// Maximum number of responses queued for a worker.
const MAX_QUEUED_RESPONSES: usize = 256;

/// Serves a stream in a task of its own. The stream keeps its `place` until the end.
pub(crate) fn open(
    context: SessionContext,
    place: OwnedSemaphorePermit,
    incoming: Streaming<pb::WorkJobsRequest>,
) -> impl Stream<Item = Result<pb::WorkJobsResponse, Status>> + Send {
    let (sender, responses) = mpsc::channel(MAX_QUEUED_RESPONSES);
    tokio::spawn(async move {
        let _place = place;
        let error_sender = sender.clone();
        if let Err(error) = hello::serve(context, incoming, sender).await {
            let _ = error_sender.send(Err(error.into())).await;
        }
    });
    ReceiverStream::new(responses)
}

//! Response bodies that end early: at shutdown, or at the deadline of the call.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use tokio::time::Instant;
use tonic::{Status, body::Body};

use crate::{deadline, error::Error};

/// Body that ends with an error once `end` resolves.
pub(super) struct EarlyEndBody {
    body: Body,
    /// True if the client may still be sending; such a stream can only be reset.
    is_client_streaming: bool,
    /// Deadline of the call, in force while the body is polled.
    deadline: Option<Instant>,
    end: Pin<Box<dyn Future<Output = Error> + Send>>,
    ended: bool,
}

impl EarlyEndBody {
    /// Creates a body that ends with the error of `end`.
    pub(super) fn new(
        body: Body,
        is_client_streaming: bool,
        end: impl Future<Output = Error> + Send + 'static,
    ) -> Self {
        Self { body, is_client_streaming, deadline: None, end: Box::pin(end), ended: false }
    }

    /// Creates a body that ends at the deadline of the call.
    pub(super) fn at_deadline(body: Body, is_client_streaming: bool, deadline: Instant) -> Self {
        let end = async move {
            tokio::time::sleep_until(deadline).await;
            Error::DeadlineExceeded
        };
        Self { deadline: Some(deadline), ..Self::new(body, is_client_streaming, end) }
    }
}

impl http_body::Body for EarlyEndBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        let body = &mut this.body;
        let frame = deadline::run_sync(this.deadline, || Pin::new(body).poll_frame(cx));
        if frame.is_ready() {
            return frame;
        }
        let Poll::Ready(error) = this.end.as_mut().poll(cx) else {
            return Poll::Pending;
        };
        this.ended = true;
        // Drops the producer of the body.
        this.body = Body::empty();
        let status = Status::from(error);
        if this.is_client_streaming {
            return Poll::Ready(Some(Err(status)));
        }
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }
}

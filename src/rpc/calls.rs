//! Call statistics: started calls, ended calls by status code, and durations.
//!
//! Methods come from the API descriptors. Calls of unknown methods are counted together as one
//! method without a name, so that clients cannot create metric labels.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Response};
use http_body::{Frame, SizeHint};
use prometheus::{Histogram, HistogramOpts};
use prost::Message;
use prost_types::FileDescriptorSet;
use tokio::sync::OwnedSemaphorePermit;
use tonic::{Code, Status, body::Body};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// Number of gRPC status codes.
const STATUS_CODES: usize = 17;

/// Histogram buckets in seconds: from a cached read to a stream of a minute.
const BUCKETS_SECONDS: [f64; 16] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

/// Statistics of all methods. Clones share the state.
#[derive(Debug, Clone)]
pub struct Calls(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Statistics of known methods, by path of the method.
    methods: HashMap<String, Arc<Method>>,
    unknown: Arc<Method>,
}

/// Statistics of a method.
#[derive(Debug)]
pub struct Method {
    /// `unary`, `client_stream`, `server_stream` or `bidi_stream`.
    pub kind: &'static str,
    /// Full name of the service; empty for the method of unknown calls.
    pub service: String,
    pub name: String,
    started: AtomicU64,
    ended: [AtomicU64; STATUS_CODES],
    /// Duration of calls in seconds; for a stream, the time until its end.
    pub seconds: Histogram,
}

impl Calls {
    /// Creates statistics for the methods of encoded descriptors.
    pub fn new(descriptors: &[&[u8]]) -> Self {
        let files = descriptors.iter().filter_map(|set| FileDescriptorSet::decode(*set).ok()).flat_map(|set| set.file);
        let mut methods = HashMap::new();
        for file in files {
            for service in &file.service {
                let service_name = format!("{}.{}", file.package(), service.name());
                for method in &service.method {
                    let kind = match (method.client_streaming(), method.server_streaming()) {
                        (false, false) => "unary",
                        (true, false) => "client_stream",
                        (false, true) => "server_stream",
                        (true, true) => "bidi_stream",
                    };
                    let path = format!("/{service_name}/{}", method.name());
                    let method = Method::new(kind, &service_name, method.name());
                    methods.insert(path, Arc::new(method));
                }
            }
        }
        let unknown = Arc::new(Method::new("unary", "", ""));
        Self(Arc::new(Shared { methods, unknown }))
    }

    /// Counts the start of a call. Without a recorded end, the call ends as cancelled.
    pub fn begin(&self, path: &str) -> Call {
        let method = self.0.methods.get(path).unwrap_or(&self.0.unknown).clone();
        method.started.fetch_add(1, Ordering::Relaxed);
        Call { method, started_at: Instant::now(), ended: false, permit: None }
    }

    /// Returns every method that was called, by service and name.
    pub fn methods(&self) -> Vec<Arc<Method>> {
        let methods = self.0.methods.values().chain([&self.0.unknown]);
        let mut called: Vec<_> = methods.filter(|method| method.started() > 0).cloned().collect();
        called.sort_by(|a, b| (&a.service, &a.name).cmp(&(&b.service, &b.name)));
        called
    }
}

impl Method {
    fn new(kind: &'static str, service: &str, name: &str) -> Self {
        let seconds = HistogramOpts::new("seconds", "seconds").buckets(BUCKETS_SECONDS.into());
        Self {
            kind,
            service: service.into(),
            name: name.into(),
            started: AtomicU64::new(0),
            ended: std::array::from_fn(|_| AtomicU64::new(0)),
            seconds: Histogram::with_opts(seconds).expect("buckets in order"),
        }
    }

    /// Returns the number of started calls.
    pub fn started(&self) -> u64 {
        self.started.load(Ordering::Relaxed)
    }

    /// Returns the number of ended calls per status code. Codes without calls are left out, except
    /// `OK`.
    pub fn ended(&self) -> impl Iterator<Item = (Code, u64)> {
        let counts = (0i32..).zip(&self.ended).map(|(code, count)| (Code::from(code), count.load(Ordering::Relaxed)));
        counts.filter(|(code, count)| *code == Code::Ok || *count > 0)
    }
}

/// Running call, counted as ended when dropped.
#[derive(Debug)]
pub struct Call {
    method: Arc<Method>,
    started_at: Instant,
    ended: bool,
    permit: Option<OwnedSemaphorePermit>,
}

impl Call {
    /// Holds a permit until the end of the call.
    pub fn hold_permit(&mut self, permit: OwnedSemaphorePermit) {
        self.permit = Some(permit);
    }

    /// Returns true if the method exists.
    pub fn is_known(&self) -> bool {
        !self.method.service.is_empty()
    }

    /// Returns true if the client may send several messages.
    pub fn is_client_streaming(&self) -> bool {
        ["client_stream", "bidi_stream"].contains(&self.method.kind)
    }

    /// Records the end of the call, now or with the trailers of the response.
    pub fn track_response(mut self, response: Response<Body>) -> Response<Body> {
        if let Some(code) = status_code(response.headers()) {
            self.end(code);
            return response;
        }
        response.map(|body| Body::new(CountedBody { body, call: self }))
    }

    fn end(&mut self, code: Code) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let count = usize::try_from(i32::from(code)).ok();
        if let Some(count) = count.and_then(|code| self.method.ended.get(code)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.method.seconds.observe(self.started_at.elapsed().as_secs_f64());
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

fn status_code(headers: &HeaderMap) -> Option<Code> {
    Some(Code::from_bytes(headers.get(&GRPC_STATUS)?.as_bytes()))
}

/// Response body whose trailers hold the status of the call.
struct CountedBody {
    body: Body,
    call: Call,
}

impl http_body::Body for CountedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    let code = status_code(trailers).unwrap_or(Code::Unknown);
                    self.call.end(code);
                }
            }
            Some(Err(status)) => self.call.end(status.code()),
            None => self.call.end(Code::Unknown),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(method: &Method) -> Vec<(Code, u64)> {
        method.ended().collect()
    }

    #[test]
    fn a_call_ends_once_and_what_does_not_exist_is_one_method() {
        let calls = Calls::new(&[crate::pb::FILE_DESCRIPTOR_SET]);
        assert!(calls.methods().is_empty());
        let status = |code: Code| Status::new(code, "").into_http();
        let path = "/watchpost.v1.MonitorService/Watch";
        calls.begin(path).track_response(status(Code::NotFound));
        // The client disconnects before the answer.
        drop(calls.begin(path));
        drop(calls.begin(path).track_response(Response::new(Body::empty())));
        for path in ["/nope/nope", "/other", ""] {
            calls.begin(path).track_response(status(Code::Unimplemented));
        }
        let methods = calls.methods();
        let [unknown, watch] = &methods[..] else { panic!("{methods:?}") };
        assert_eq!((unknown.service.as_str(), unknown.started()), ("", 3));
        assert_eq!(ended(unknown), [(Code::Ok, 0), (Code::Unimplemented, 3)]);
        assert_eq!((watch.kind, watch.name.as_str()), ("server_stream", "Watch"));
        assert_eq!(ended(watch), [(Code::Ok, 0), (Code::Cancelled, 2), (Code::NotFound, 1)]);
        assert_eq!(watch.seconds.get_sample_count(), 3);
    }

    #[tokio::test]
    async fn trailers_tell_how_a_call_ended() {
        use http_body_util::BodyExt;

        let calls = Calls::new(&[crate::pb::FILE_DESCRIPTOR_SET]);
        let mut trailers = HeaderMap::new();
        trailers.insert(GRPC_STATUS, "0".parse().unwrap());
        let frames = [Ok::<_, Status>(Frame::data(Bytes::from_static(b"x"))), Ok(Frame::trailers(trailers))];
        let body = http_body_util::StreamBody::new(tokio_stream::iter(frames));
        let path = "/watchpost.v1.CameraService/GetCamera";
        let response = calls.begin(path).track_response(Response::new(Body::new(body)));
        assert_eq!(ended(&calls.methods()[0]), [(Code::Ok, 0)]);
        response.into_body().collect().await.unwrap();
        assert_eq!(ended(&calls.methods()[0]), [(Code::Ok, 1)]);
    }
}

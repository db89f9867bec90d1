//! Bytes that are not the messages that they should be.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::Frame;
use prost::Message;
use tonic::{Code, Status, body::Body, codec::CompressionEncoding};
use tower::{Service, ServiceExt};
use watchpost::pb;

use super::{ready, unharmed};
use crate::support::{
    TestServer,
    calls::{failed, rows},
    database::{Backend, on_both},
    ingest, reason,
};

/// A request body as it is.
struct Raw(Option<Bytes>);

impl http_body::Body for Raw {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// Calls a method with these bytes as the body, and gives the status that comes of it.
pub async fn call(server: &TestServer, method: &str, body: &[u8]) -> Result<(), Status> {
    let request = http::Request::post(format!("/watchpost.v1.{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::new(Raw(Some(Bytes::copy_from_slice(body)))))
        .unwrap();
    let mut channel = server.channel.clone();
    let response = channel.ready().await.unwrap().call(request).await.unwrap();
    // An error is all that an answer has, so that it is in the first headers.
    Status::from_header_map(response.headers()).map_or(Ok(()), Err)
}

/// A message with the five bytes that gRPC puts before it.
pub fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap();
    [&[0][..], &length.to_be_bytes(), message].concat()
}

#[on_both]
async fn bytes_that_are_not_the_message_are_refused(backend: Backend) {
    let server = ready(backend).await;
    let before = rows(&server).await;
    let nested = |depth: usize| {
        use prost_types::{Struct, Value, value::Kind};
        let mut object = Struct::default();
        for _ in 0..depth {
            let value = Value { kind: Some(Kind::StructValue(object)) };
            object = Struct { fields: [("a".to_string(), value)].into() };
        }
        let seen = pb::Detection { enrichment_data: Some(object), ..Default::default() };
        framed(&ingest("door", vec![seen]).encode_to_vec())
    };
    let whole = framed(&ingest("door", vec![]).encode_to_vec());
    let bodies = [
        ("a wire type that is none", framed(&[0x0f])),
        ("a number where the event should be", framed(&[0x08, 0x01])),
        ("a length that is longer than the message", framed(&[0x0a, 0x7f])),
        ("a text that is not UTF-8", framed(&[0x1a, 0x01, 0xff])),
        ("a number that does not end", framed(&[0xff; 11])),
        ("text", framed(b"{\"event\": {}}")),
        ("too many levels", nested(200)),
        ("nothing", vec![]),
        ("half a prefix", whole[..3].to_vec()),
        ("half a message", whole[..whole.len() - 1].to_vec()),
        ("a flag that is none", [&[7], &whole[1..]].concat()),
        ("a compressed message, uncompressed", [&[1], &whole[1..]].concat()),
    ];
    for (what, body) in bodies {
        let status = call(&server, "EventService/IngestEvent", &body).await.unwrap_err();
        assert!(status.details() != b"", "{what}: {status:?}");
        assert_eq!((status.code(), reason(&status)), (Code::InvalidArgument, "MALFORMED_MESSAGE".into()), "{what}");
    }
    for method in [
        "CameraService/GetCamera",
        "AlertRuleService/CreateAlertRule",
        "AlertService/DismissAlert",
        "MonitorService/Watch",
    ] {
        let status = call(&server, method, &framed(&[0x0f])).await.unwrap_err();
        assert_eq!((status.code(), reason(&status)), (Code::InvalidArgument, "MALFORMED_MESSAGE".into()), "{method}");
    }
    unharmed(&server, &before).await;
    server.stop().await;
}

#[on_both]
async fn a_message_that_is_too_large_is_refused(backend: Backend) {
    let server = ready(backend).await;
    let before = rows(&server).await;
    for size in [4 * 1024 * 1024, 5 * 1024 * 1024] {
        let mut request = ingest("door", vec![]);
        request.event.as_mut().unwrap().llm_prompt = Some("x".repeat(size));
        let reply = server.events().ingest_event(request).await;
        failed(reply, Code::ResourceExhausted, "MESSAGE_TOO_LARGE");
    }
    let camera = Some(pb::Camera { id: "x".into(), name: "n".repeat(5 << 20), ..Default::default() });
    let reply = server.cameras().create_camera(pb::CreateCameraRequest { camera }).await;
    failed(reply, Code::ResourceExhausted, "MESSAGE_TOO_LARGE");
    let request = pb::WatchRequest { cursor: "c".repeat(5 << 20), ..Default::default() };
    let reply = server.monitor().watch(request).await.map(|_| tonic::Response::new(()));
    failed(reply, Code::ResourceExhausted, "MESSAGE_TOO_LARGE");
    // Small on the way, and large once it is not compressed any more.
    let mut request = ingest("door", vec![]);
    request.event.as_mut().unwrap().llm_prompt = Some("x".repeat(64 << 20));
    let mut events = server.events().send_compressed(CompressionEncoding::Gzip);
    failed(events.ingest_event(request).await, Code::ResourceExhausted, "MESSAGE_TOO_LARGE");
    // The frame says four gigabytes, and nothing follows.
    let status = call(&server, "EventService/IngestEvent", &[0, 0xff, 0xff, 0xff, 0xff]).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE".into()));
    unharmed(&server, &before).await;
    server.stop().await;
}

#[on_both]
async fn fields_of_a_newer_client_are_passed_over(backend: Backend) {
    let server = ready(backend).await;
    let mut bytes = ingest("door", vec![]).encode_to_vec();
    bytes.extend([0xfa, 0x7f, 0x02, b'h', b'i']); // field 2047
    call(&server, "EventService/IngestEvent", &framed(&bytes)).await.unwrap();
    let counted = rows(&server).await;
    assert!(counted.contains(&("events", 2)), "{counted:?}");
    server.stop().await;
}

use futures_util::{StreamExt, stream};
use http_body_util::StreamBody;
use tokio::time::timeout;

use super::*;

const LARGEST: usize = 8;

/// A body of these frames, which does not end.
fn arriving(frames: &[&[u8]], stream: bool) -> (Unfinished, Bounded) {
    let unfinished = Unfinished::new(Duration::from_secs(30), 1_000, LARGEST);
    let frames: Vec<_> = frames
        .iter()
        .map(|frame| Ok::<_, Status>(Frame::data(Bytes::copy_from_slice(frame))))
        .collect();
    let body = StreamBody::new(stream::iter(frames).chain(stream::pending()));
    let bounded = unfinished.bound(Body::new(body), stream);
    (unfinished, bounded)
}

/// What can be read before the body waits.
async fn read(body: &mut Bounded) -> Vec<Vec<u8>> {
    let mut read = Vec::new();
    while let Ok(Some(frame)) = timeout(Duration::ZERO, body.frame()).await {
        read.push(frame.unwrap().into_data().unwrap().to_vec());
    }
    read
}

#[tokio::test]
async fn a_message_is_given_when_all_of_it_has_arrived() {
    let (first, second) = (*b"\0\0\0\0\x03abc", *b"\0\0\0\0\x05defgh");
    let all = [&first[..], &second].concat();
    for cut in 0..all.len() {
        let (unfinished, mut body) = arriving(&[&all[..cut], &all[cut..all.len() - 1]], true);
        let given = read(&mut body).await.concat();
        assert_eq!(given, first, "cut after {cut}");
        assert_eq!((unfinished.requests(), unfinished.memory().0), (1, 9));
        drop(body);
        assert_eq!((unfinished.requests(), unfinished.memory().0), (0, 0));
        let (unfinished, mut body) = arriving(&[&all[..cut], &all[cut..]], true);
        assert_eq!(read(&mut body).await.concat(), all, "cut after {cut}");
        assert_eq!(unfinished.requests(), 0);
    }
}

#[tokio::test]
async fn a_unary_request_begins_with_its_whole_message() {
    let (_, mut body) = arriving(&[b"\0\0\0", b"\0\x03a", b"bc"], false);
    timeout(Duration::from_secs(5), body.begin()).await.unwrap();
    let given = read(&mut body).await.concat();
    assert_eq!(given, b"\0\0\0\0\x03abc");
    let (unfinished, mut body) = arriving(&[b"\0\0\0\0\x03ab"], false);
    let begin = timeout(Duration::from_millis(1), body.begin()).await;
    assert!(begin.is_err());
    assert_eq!(unfinished.memory().0, 7);
}

#[tokio::test]
async fn a_message_that_is_too_long_is_not_waited_for() {
    let (_, mut body) = arriving(&[b"\0\0\0", b"\0\x09a"], true);
    assert_eq!(read(&mut body).await.concat(), b"\0\0\0\0\x09a");
}

#[tokio::test]
async fn what_has_arrived_is_given_before_the_end() {
    let part = Bytes::from_static(b"\0\0\0\0\x05ab");
    let unfinished = Unfinished::new(Duration::from_secs(30), 1_000, LARGEST);
    let mut body = unfinished.bound(Body::new(http_body_util::Full::new(part.clone())), false);
    assert_eq!(read(&mut body).await, [part]);
    assert!(body.frame().await.is_none() && http_body::Body::is_end_stream(&body));
    assert_eq!(unfinished.requests(), 0);
}

use futures_util::{StreamExt, stream};
use http_body_util::StreamBody;
use tokio::time::timeout;

use super::*;

const LARGEST: usize = 8;

/// Creates an endless body that starts with these frames.
fn arriving(frames: &[&[u8]], stream: bool) -> (UnfinishedRequests, BoundedBody) {
    let unfinished = UnfinishedRequests::new(Duration::from_secs(30), 1_000, LARGEST);
    let frames: Vec<_> =
        frames.iter().map(|frame| Ok::<_, Status>(Frame::data(Bytes::copy_from_slice(frame)))).collect();
    let body = StreamBody::new(stream::iter(frames).chain(stream::pending()));
    let bounded = unfinished.bound(Body::new(body), stream);
    (unfinished, bounded)
}

/// Reads until the body waits.
async fn read(body: &mut BoundedBody) -> Vec<Vec<u8>> {
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
async fn a_unary_request_is_read_when_its_end_has_arrived() {
    let complete = Bytes::from_static(b"\0\0\0\0\x03abc");
    let (unfinished, mut body) = arriving(&[b"\0\0\0", b"\0\x03a", b"bc"], false);
    let begin = timeout(Duration::from_millis(1), body.wait_readable()).await;
    assert!(begin.is_err());
    assert_eq!((unfinished.requests(), unfinished.memory().0), (1, 8));
    drop(body);
    assert_eq!((unfinished.requests(), unfinished.memory().0), (0, 0));
    let full = http_body_util::Full::new(complete.clone());
    let mut body = unfinished.bound(Body::new(full), false);
    body.wait_readable().await;
    assert_eq!(read(&mut body).await, [complete]);
}

/// Returns the status code with which a body of these frames ends.
async fn refused(frames: &[&[u8]], stream: bool) -> tonic::Code {
    let (unfinished, mut body) = arriving(frames, stream);
    let status = body.frame().await.unwrap().unwrap_err();
    assert!(body.frame().await.is_none());
    assert_eq!(unfinished.memory().0, 0);
    status.code()
}

#[tokio::test]
async fn what_cannot_be_a_message_is_not_waited_for() {
    use tonic::Code::{InvalidArgument, ResourceExhausted};

    for stream in [false, true] {
        let long: [&[u8]; 2] = [b"\0\0\0", b"\0\x09a"];
        assert_eq!(refused(&long, stream).await, ResourceExhausted);
    }
    // A complete earlier message is still delivered.
    let (_, mut body) = arriving(&[b"\0\0\0\0\x01a\0\0\0\0\x09b"], true);
    let first = body.frame().await.unwrap().unwrap();
    assert_eq!(first.into_data().unwrap(), b"\0\0\0\0\x01a"[..]);
    let status = body.frame().await.unwrap().unwrap_err();
    assert_eq!(status.code(), ResourceExhausted);
    assert!(body.frame().await.is_none());
    let two = [&b"\0\0\0\0\x01a"[..], b"\0"];
    assert_eq!(refused(&two, false).await, InvalidArgument);
}

#[test]
fn requests_that_stalled_give_way_first_and_those_that_just_began_last() {
    let begin = Instant::now();
    let at = |millis| begin + Duration::from_millis(millis);
    let mut accounts = Accounts::default();
    for (number, begun) in [(1, 0), (2, 100), (3, 200), (4, 2_900), (5, 2_950)] {
        accounts.requests.insert(number, Account::new(at(begun)));
    }
    let set = |accounts: &mut Accounts, number, bytes, millis| {
        let account = accounts.requests.get_mut(&number).unwrap();
        account.set(bytes, at(millis));
    };
    for number in [1, 3] {
        set(&mut accounts, number, 2 * PROGRESS_BYTES, 2_500);
    }
    // Less than `PROGRESS_BYTES` is no progress.
    set(&mut accounts, 2, 1, 2_500);
    let eviction_candidate = |accounts: &mut Accounts| {
        let eviction_candidate = accounts.eviction_candidate(at(3_000)).unwrap();
        accounts.requests.remove(&eviction_candidate);
        eviction_candidate
    };
    let evicted_numbers: Vec<_> = (0..5).map(|_| eviction_candidate(&mut accounts)).collect();
    assert_eq!(evicted_numbers, [2, 3, 1, 4, 5]);
}

#[tokio::test]
async fn what_has_arrived_is_given_before_the_end() {
    let part = Bytes::from_static(b"\0\0\0\0\x05ab");
    let unfinished = UnfinishedRequests::new(Duration::from_secs(30), 1_000, LARGEST);
    let mut body = unfinished.bound(Body::new(http_body_util::Full::new(part.clone())), false);
    assert_eq!(read(&mut body).await, [part]);
    assert!(body.frame().await.is_none() && http_body::Body::is_end_stream(&body));
    assert_eq!(unfinished.requests(), 0);
}

//! Small requests that would become large.

use prost::Message;
use tonic::{Code, codec::CompressionEncoding};
use watchpost::pb;

use super::{
    messages::{call, framed},
    ready, refused, unharmed,
};
use crate::support::{
    TestServer,
    calls::{failed, rows},
    database::{Backend, TestDatabase, on_both},
    ingest, reason,
};

/// So many submessages of this field, without content.
fn empty(field: u8, count: usize) -> Vec<u8> {
    [field << 3 | 2, 0].repeat(count)
}

/// A submessage of this field.
fn within(field: u8, content: Vec<u8>) -> Vec<u8> {
    let mut message = Vec::new();
    prost::encoding::encode_varint(u64::from(field) << 3 | 2, &mut message);
    prost::encode_length_delimiter(content.len(), &mut message).unwrap();
    message.extend(content);
    message
}

#[on_both]
async fn many_empty_messages_are_refused_before_they_are_decoded(backend: Backend) {
    let server = ready(backend).await;
    let before = rows(&server).await;
    // {"a": [null, null, …]} in a job's payload: two bytes for each.
    let value = within(6, empty(1, 2_000_000));
    let entry = [within(1, b"a".to_vec()), within(2, value)].concat();
    let job = within(1, within(17, within(1, entry)));
    let watch = within(3, empty(3, 2_000_000));
    for (method, body) in [
        ("EventService/IngestEvent", empty(2, 2_000_000)),
        ("JobService/BatchCreateJobs", empty(1, 2_000_000)),
        ("JobService/CreateJob", job),
        ("JobWorkerService/CompleteJobs", empty(1, 2_000_000)),
        ("JobWorkerService/AppendJobLogs", empty(3, 2_000_000)),
        ("MonitorService/Watch", watch),
    ] {
        let status = call(&server, method, &framed(&body)).await.unwrap_err();
        assert_eq!((status.code(), reason(&status)), (Code::ResourceExhausted, "TOO_MANY_ELEMENTS".into()), "{method}");
    }
    // The same in a few kilobytes.
    let request = pb::BatchCreateJobsRequest { requests: vec![pb::CreateJobRequest::default(); 1_000_000] };
    let mut jobs = server.jobs().send_compressed(CompressionEncoding::Gzip);
    failed(jobs.batch_create_jobs(request).await, Code::ResourceExhausted, "TOO_MANY_ELEMENTS");
    unharmed(&server, &before).await;
    server.stop().await;
}

#[on_both]
async fn an_ingest_whose_answer_would_be_too_large_is_not_stored(backend: Backend) {
    let server = ready(backend).await;
    let before = rows(&server).await;
    let seen = pb::Detection { labels: (0..64).map(|_| "x".repeat(255)).collect(), ..Default::default() };
    let request = ingest("door", vec![seen; 240]);
    assert!(request.encoded_len() < 4 << 20);
    refused(server.events().ingest_event(request).await, "detections");
    unharmed(&server, &before).await;
    server.stop().await;
}

#[on_both]
async fn requests_beyond_the_memory_are_told_to_come_again(backend: Backend) {
    let database = TestDatabase::migrated(backend).await;
    let server = TestServer::start_with(database, |settings| settings.request_memory = 64 << 20).await;
    server.camera("door").await;
    let job = |at: usize| pb::CreateJobRequest {
        job: Some(pb::Job { job_type: format!("t{at}"), ..Default::default() }),
        ..Default::default()
    };
    let request = pb::BatchCreateJobsRequest { requests: (0..10_000).map(job).collect() };
    let calls = (0..16).map(|_| {
        let (mut jobs, request) = (server.jobs(), request.clone());
        tokio::spawn(async move { jobs.batch_create_jobs(request).await })
    });
    let (mut done, mut busy) = (0, 0);
    for call in calls.collect::<Vec<_>>() {
        match call.await.unwrap() {
            Ok(_) => done += 1,
            Err(status) => {
                assert_eq!((status.code(), reason(&status)), (Code::Unavailable, "SERVER_BUSY".into()));
                busy += 1;
            }
        }
    }
    assert!(done > 0 && busy > 0, "{done} {busy}");
    // The memory is given back.
    server.jobs().batch_create_jobs(request).await.unwrap();
    server.stop().await;
}

use prost::Message;
use prost_types::{ListValue, Struct, Value, value::Kind as ValueKind};

use super::*;
use crate::pb;

const INGEST: &str = "/watchpost.v1.EventService/IngestEvent";
const CREATE: &str = "/watchpost.v1.JobService/CreateJob";
const BATCH: &str = "/watchpost.v1.JobService/BatchCreateJobs";

fn memory(path: &str, message: &impl Message, max_bytes: u64) -> Result<u64, SizeError> {
    let layouts = MessageLayouts::new(&[pb::FILE_DESCRIPTOR_SET]);
    layouts.memory(layouts.input(path).unwrap(), &message.encode_to_vec(), max_bytes)
}

#[test]
fn a_message_takes_no_less_than_it_has() {
    let layouts = MessageLayouts::new(&[pb::FILE_DESCRIPTOR_SET]);
    let size = |path| layouts.messages[layouts.input(path).unwrap()].size;
    assert!(size(INGEST) >= size_of::<pb::IngestEventRequest>() as u64);
    assert!(size(CREATE) >= size_of::<pb::CreateJobRequest>() as u64);
    let text = pb::CreateJobRequest { request_id: "x".repeat(1_000), ..Default::default() };
    let expected = size(CREATE) + 1_000;
    assert_eq!(memory(CREATE, &text, expected), Ok(expected));
    assert_eq!(memory(CREATE, &text, expected - 1), Err(SizeError::LimitExceeded));
}

#[test]
fn many_small_elements_take_much() {
    let max_bytes = 40 << 20;
    let detections = vec![pb::Detection::default(); 100_000];
    let request = pb::IngestEventRequest { detections, ..Default::default() };
    assert_eq!(memory(INGEST, &request, max_bytes), Err(SizeError::LimitExceeded));
    let list = |values: usize| {
        let list = ListValue { values: vec![Value::default(); values] };
        let kind = Some(ValueKind::ListValue(list));
        let payload = Struct { fields: [("a".to_string(), Value { kind })].into() };
        let job = pb::Job { payload: Some(payload), ..Default::default() };
        pb::CreateJobRequest { job: Some(job), ..Default::default() }
    };
    assert_eq!(memory(CREATE, &list(2_000_000), max_bytes), Err(SizeError::LimitExceeded));
    let values = 100_000;
    let decoded_size = memory(CREATE, &list(values), max_bytes).unwrap();
    assert!(decoded_size >= (values * size_of::<Value>()) as u64, "{decoded_size}");
    let requests = vec![list(10); 10_000];
    let decoded_size = memory(BATCH, &pb::BatchCreateJobsRequest { requests }, max_bytes);
    assert!(decoded_size.is_ok(), "{decoded_size:?}");
}

#[test]
fn packed_numbers_are_counted() {
    let filter = pb::JobFilter { statuses: vec![1; 1_000], ..Default::default() };
    let request = pb::ListJobsRequest { filter: Some(filter), ..Default::default() };
    let decoded_size = memory("/watchpost.v1.JobService/ListJobs", &request, 1 << 20).unwrap();
    assert!(decoded_size >= 8_000, "{decoded_size}");
}

#[test]
fn the_same_bytes_are_malformed_as_for_the_decoder() {
    let layouts = MessageLayouts::new(&[pb::FILE_DESCRIPTOR_SET]);
    let ingest = layouts.input(INGEST).unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    let whole = pb::IngestEventRequest {
        detections: vec![pb::Detection::default(); 3],
        request_id: "r".into(),
        ..Default::default()
    };
    let whole = whole.encode_to_vec();
    for _ in 0..20_000 {
        let mut bytes = whole.clone();
        for _ in 0..random.usize(1..4) {
            let index = random.usize(..bytes.len());
            bytes[index] = random.u8(..);
        }
        bytes.extend((0..random.usize(..6)).map(|_| random.u8(..)));
        // Bytes accepted by the decoder must never be malformed here; their memory would be
        // unbounded.
        if pb::IngestEventRequest::decode(&*bytes).is_ok() {
            let memory = layouts.memory(ingest, &bytes, 1 << 30);
            assert!(memory.is_ok(), "{bytes:?}");
        }
    }
}

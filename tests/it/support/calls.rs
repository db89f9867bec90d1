//! What tests of single calls say over and over: times, masks, JSON, pages, and what errors tell.
#![expect(clippy::unnecessary_wraps, reason = "the fields of messages are options")]

use std::fmt::{Debug, Display};

use prost_types::{Duration, FieldMask, Struct, Timestamp};
use sea_orm::{ConnectionTrait, QueryResult, Statement};
use tonic::{Code, Response, Status, transport::Channel};
use tonic_types::StatusExt;
use watchpost::pb::{self, camera_service_client::CameraServiceClient};

use super::{TestServer, field, reason};

/// The reply to a call.
pub type Reply<T> = Result<Response<T>, Status>;

/// The tables that the calls write to.
const TABLES: [&str; 18] = [
    "cameras",
    "camera_zones",
    "events",
    "detections",
    "event_detections",
    "event_ingests",
    "alert_rules",
    "alerts",
    "alert_cooldowns",
    "notification_channels",
    "deliveries",
    "alert_flaps",
    "alert_suppressions",
    "silences",
    "alert_transitions",
    "manual_alert_cooldowns",
    "alert_requests",
    "changes",
];

/// A request that creates a camera of this id and name.
pub fn new_camera(id: &str) -> pb::CreateCameraRequest {
    let camera = pb::Camera { id: id.into(), name: id.into(), ..Default::default() };
    pb::CreateCameraRequest { camera: Some(camera) }
}

/// Creates a camera.
pub async fn create_camera(channel: &Channel, id: &str) -> pb::Camera {
    let mut cameras = CameraServiceClient::new(channel.clone());
    let created = cameras.create_camera(new_camera(id)).await;
    created.unwrap().into_inner()
}

/// A length of time in seconds.
pub fn seconds(seconds: i64) -> Option<Duration> {
    Some(Duration { seconds, nanos: 0 })
}

/// A length of time in milliseconds that is not below zero.
pub fn millis(millis: i64) -> Option<Duration> {
    let nanos = i32::try_from(millis % 1_000 * 1_000_000).unwrap();
    Some(Duration { seconds: millis / 1_000, nanos })
}

/// A length of time that has no whole seconds.
pub fn nanos(nanos: i32) -> Option<Duration> {
    Some(Duration { seconds: 0, nanos })
}

/// How many milliseconds a length of time has.
pub fn in_millis(length: Duration) -> i64 {
    length.seconds * 1_000 + i64::from(length.nanos / 1_000_000)
}

/// A whole second since 1970.
pub fn at(seconds: i64) -> Option<Timestamp> {
    Some(Timestamp { seconds, nanos: 0 })
}

/// From the first second up to, and without, the second one.
pub fn between(start: i64, end: i64) -> Option<pb::TimeRange> {
    Some(pb::TimeRange { start: at(start), end: at(end) })
}

/// An update mask of these paths.
pub fn mask(paths: &[&str]) -> Option<FieldMask> {
    Some(FieldMask { paths: strings(paths) })
}

/// Owned texts.
pub fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

/// A JSON object as it is sent.
pub fn object(json: &serde_json::Value) -> Option<Struct> {
    let prost_types::value::Kind::StructValue(object) = kind(json) else {
        panic!("not an object: {json}");
    };
    Some(object)
}

fn kind(json: &serde_json::Value) -> prost_types::value::Kind {
    use prost_types::{ListValue, Value, value::Kind};
    use serde_json::Value as Json;
    let value = |json| Value { kind: Some(kind(json)) };
    match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(*value),
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap()),
        Json::String(text) => Kind::StringValue(text.clone()),
        Json::Array(values) => Kind::ListValue(ListValue { values: values.iter().map(value).collect() }),
        Json::Object(fields) => {
            Kind::StructValue(Struct { fields: fields.iter().map(|(key, json)| (key.clone(), value(json))).collect() })
        }
    }
}

/// That a call failed with this code and for this reason.
#[track_caller]
pub fn failed<T: Debug>(reply: Reply<T>, code: Code, why: &str) -> Status {
    let status = reply.expect_err("the call fails");
    let told = (status.code(), reason(&status));
    assert_eq!(told, (code, why.to_string()), "{}", status.message());
    status
}

/// That a call was refused because of this field.
#[track_caller]
pub fn refused<T: Debug>(reply: Reply<T>, path: &str) {
    let status = match reply {
        Ok(reply) => panic!("`{path}` is accepted: {reply:?}"),
        Err(status) => status,
    };
    let told = (status.code(), reason(&status), field(&status));
    let expected = (Code::InvalidArgument, "INVALID_FIELD".into(), path.into());
    assert_eq!(told, expected, "{}", status.message());
    let named = status.message().starts_with(&format!("`{path}` "));
    assert!(named, "the message names the field: {}", status.message());
}

/// That a call failed because there is no such resource.
#[track_caller]
pub fn not_found<T: Debug>(reply: Reply<T>, resource: &str, id: impl Display) {
    let status = failed(reply, Code::NotFound, "NOT_FOUND");
    for (key, value) in [("resource", resource), ("id", &id.to_string())] {
        assert_eq!(metadata(&status, key), value);
    }
}

/// What the reason of an error says under this key.
#[track_caller]
pub fn metadata(status: &Status, key: &str) -> String {
    let details = status.get_error_details();
    let info = details.error_info().expect("an error has a reason");
    info.metadata.get(key).cloned().unwrap_or_default()
}

/// Walks all pages of a list of `total` with every size, and checks that each walk gives all, in the
/// order of the first page of all.
pub async fn walk<T: Debug + PartialEq>(total: usize, list: impl AsyncFn(i32, String) -> (Vec<T>, String)) {
    let (all, token) = list(1000, String::new()).await;
    assert_eq!((all.len(), token.as_str()), (total, ""));
    for size in 1..=total + 1 {
        let (mut walked, mut token) = (Vec::new(), String::new());
        loop {
            let (page, next) = list(i32::try_from(size).unwrap(), token).await;
            let full = page.len() == size;
            walked.extend(page);
            if next.is_empty() {
                break;
            }
            assert!(full, "only the last page is shorter than {size}");
            token = next;
        }
        assert_eq!(walked, all, "pages of {size}");
    }
}

/// How many rows every table has.
pub async fn rows(server: &TestServer) -> Vec<(&'static str, i64)> {
    let db = server.database.connect().await;
    let mut rows = Vec::new();
    for table in TABLES {
        let sql = format!("SELECT count(*) AS n FROM {table}");
        let sql = Statement::from_string(db.get_database_backend(), sql);
        let row = db.query_one_raw(sql).await.unwrap().unwrap();
        rows.push((table, row.try_get("", "n").unwrap()));
    }
    db.close().await.unwrap();
    rows
}

/// What a query gives, asked beside the server.
pub async fn query(server: &TestServer, sql: &str) -> Vec<QueryResult> {
    let db = server.database.connect().await;
    let sql = Statement::from_string(db.get_database_backend(), sql);
    let rows = db.query_all_raw(sql).await.unwrap();
    db.close().await.unwrap();
    rows
}

/// Runs one statement beside the server.
pub async fn execute(server: &TestServer, sql: &str) {
    let db = server.database.connect().await;
    db.execute_unprepared(sql).await.unwrap();
    db.close().await.unwrap();
}

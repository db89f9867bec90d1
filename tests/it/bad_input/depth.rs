//! JSON that is too deep or too large: refused on input, and harmless where it is stored already.

use sea_orm::{ActiveModelTrait, ActiveValue::Set, ConnectionTrait, DbBackend, Statement};
use serde_json::{Value as Json, json};
use tokio::time::timeout;
use tonic::codec::CompressionEncoding;
use watchpost::{
    entity::change,
    pb::{self, JobStatus, Topic, job_schedule_service_client::JobScheduleServiceClient, watch_response::Update},
};

use super::{ready, unharmed};
use crate::support::{
    PATIENCE, TestServer, always,
    calls::{execute, object, refused, rows},
    database::{Backend, on_both},
    detection, eventually, ingest, topics,
};

const OMITTED: &str = "watchpost.omitted";

/// Objects inside of each other.
fn nested(levels: usize) -> Json {
    (1..levels).fold(json!({}), |inner, _| json!({ "a": inner }))
}

fn job(payload: &Json) -> pb::CreateJobRequest {
    let job = pb::Job { job_type: "export".into(), payload: object(payload), ..Default::default() };
    pb::CreateJobRequest { job: Some(job), ..Default::default() }
}

async fn claim(server: &TestServer, max_jobs: i32) -> Vec<pb::ClaimedJob> {
    let request = pb::ClaimJobsRequest { worker_id: "w".into(), max_jobs, ..Default::default() };
    let claimed = server.job_workers().claim_jobs(request).await;
    claimed.unwrap().into_inner().jobs
}

fn enriched(data: &Json) -> pb::IngestEventRequest {
    let seen = pb::Detection { enrichment_data: object(data), ..detection("dog", 0.5) };
    ingest("door", vec![seen])
}

fn raised(event_id: i64, metadata: &Json) -> pb::CreateAlertRequest {
    let alert = pb::Alert { event_id, dedup_key: "k".into(), metadata: object(metadata), ..Default::default() };
    pb::CreateAlertRequest { alert: Some(alert), ..Default::default() }
}

fn schedule(payload: &Json) -> pb::JobSchedule {
    pb::JobSchedule {
        name: "nightly".into(),
        cron: "0 3 * * *".into(),
        job_type: "export".into(),
        payload: object(payload),
        ..Default::default()
    }
}

/// Overwrites a JSON column of every row.
async fn overwrite(server: &TestServer, table: &str, column: &str, condition: &str, json: &Json) {
    let db = server.database.connect().await;
    let sql = if db.get_database_backend() == DbBackend::Postgres {
        format!("UPDATE {table} SET {column} = $1::text::jsonb WHERE {condition}")
    } else {
        format!("UPDATE {table} SET {column} = $1 WHERE {condition}")
    };
    let values = [json.to_string().into()];
    let update = Statement::from_sql_and_values(db.get_database_backend(), sql, values);
    assert_eq!(db.execute_raw(update).await.unwrap().rows_affected(), 1);
    db.close().await.unwrap();
}

#[on_both]
async fn json_that_is_too_deep_is_refused_by_its_path(backend: Backend) {
    let server = ready(backend).await;
    let mut schedules = JobScheduleServiceClient::new(server.channel.clone());
    server.jobs().create_job(job(&nested(20))).await.unwrap();
    let claimed = claim(&server, 1).await.remove(0);
    assert_eq!(claimed.job.as_ref().unwrap().payload, object(&nested(20)));
    let create = pb::CreateJobScheduleRequest { job_schedule: Some(schedule(&nested(20))) };
    let made = schedules.create_job_schedule(create).await.unwrap().into_inner();
    let event = server.events().ingest_event(enriched(&nested(20))).await.unwrap().into_inner();
    let event_id = event.event.unwrap().id;
    let before = rows(&server).await;
    // 32 levels is the most that a request can hold.
    for levels in [21, 30] {
        let deep = nested(levels);
        let path = |field: &str| format!("{field}{}", ".a".repeat(20));
        refused(server.jobs().create_job(job(&deep)).await, &path("job.payload"));
        let requests = vec![job(&json!({})), job(&deep)];
        let batch = pb::BatchCreateJobsRequest { requests };
        refused(server.jobs().batch_create_jobs(batch).await, &path("requests[1].job.payload"));
        let create = pb::CreateJobScheduleRequest {
            job_schedule: Some(pb::JobSchedule { name: "other".into(), ..schedule(&deep) }),
        };
        refused(schedules.create_job_schedule(create).await, &path("job_schedule.payload"));
        let update = pb::UpdateJobScheduleRequest {
            job_schedule: Some(pb::JobSchedule { id: made.id.clone(), ..schedule(&deep) }),
            ..Default::default()
        };
        refused(schedules.update_job_schedule(update).await, &path("job_schedule.payload"));
        refused(server.events().ingest_event(enriched(&deep)).await, &path("detections[0].enrichment_data"));
        refused(server.alerts().create_alert(raised(event_id, &deep)).await, &path("alert.metadata"));
        let done = pb::JobCompletion {
            job_id: claimed.job.as_ref().unwrap().id.clone(),
            lease_id: claimed.lease_id.clone(),
            result: object(&deep),
        };
        let complete = pb::CompleteJobsRequest { completions: vec![done.clone()] };
        refused(server.job_workers().complete_jobs(complete).await, &path("completions[0].result"));
        let line = pb::JobLogLine { message: "m".into(), context: object(&deep), ..Default::default() };
        let logs = pb::AppendJobLogsRequest {
            job_id: done.job_id,
            lease_id: done.lease_id,
            lines: vec![line],
            ..Default::default()
        };
        refused(server.job_workers().append_job_logs(logs).await, &path("lines[0].context"));
    }
    unharmed(&server, &before).await;
    server.stop().await;
}

#[on_both]
async fn a_long_key_before_many_values_stops_nobody(backend: Backend) {
    let server = ready(backend).await;
    let before = rows(&server).await;
    let many = json!({ "k".repeat(1_000_000): vec![Json::Null; 100_000] });
    let mut jobs = server.jobs().send_compressed(CompressionEncoding::Gzip);
    let refusing = timeout(PATIENCE, jobs.create_job(job(&many)));
    refused(refusing.await.expect("an answer in time"), "job.payload");
    let small = json!({ "k".repeat(40_000): vec![Json::Null; 100] });
    let mut events = server.events().send_compressed(CompressionEncoding::Gzip);
    let storing = timeout(PATIENCE, events.ingest_event(enriched(&small)));
    storing.await.expect("an answer in time").unwrap();
    let storing = timeout(PATIENCE, events.ingest_event(enriched(&many)));
    refused(storing.await.expect("an answer in time"), "detections[0].enrichment_data");
    assert_ne!(rows(&server).await, before);
    server.stop().await;
}

#[on_both]
async fn a_stored_payload_that_is_too_deep_fails_its_own_job_only(backend: Backend) {
    let server = ready(backend).await;
    let requests = (0..5).map(|at| job(&json!({ "at": at }))).collect();
    let batch = pb::BatchCreateJobsRequest { requests };
    let made = server.jobs().batch_create_jobs(batch).await.unwrap().into_inner();
    let ids: Vec<_> = made.results.into_iter().map(|result| result.job_id).collect();
    let third = if backend == crate::support::database::Backend::Sqlite {
        format!("lower(hex(id)) = '{}'", ids[2].replace('-', ""))
    } else {
        format!("id = '{}'", ids[2])
    };
    overwrite(&server, "jobs", "payload", &third, &nested(31)).await;
    let mut claimed = Vec::new();
    while claimed.len() < 4 {
        claimed.extend(claim(&server, 5).await);
    }
    let mut got: Vec<_> = claimed.into_iter().map(|claimed| claimed.job.unwrap().id).collect();
    got.sort();
    let mut expected = ids.clone();
    expected.remove(2);
    expected.sort();
    assert_eq!(got, expected);
    assert!(claim(&server, 5).await.is_empty());
    let request = pb::GetJobRequest { id: ids[2].clone() };
    let failed = server.jobs().get_job(request).await.unwrap().into_inner();
    assert_eq!((failed.status(), failed.error_code.as_deref()), (JobStatus::Failed, Some("PAYLOAD_UNDELIVERABLE")));
    assert!(failed.payload.unwrap().fields.contains_key(OMITTED));
    server.stop().await;
}

#[on_both]
async fn a_stored_object_that_is_too_deep_is_delivered_as_omitted(backend: Backend) {
    let server = ready(backend).await;
    overwrite(&server, "detections", "enrichment_data", "TRUE", &nested(40)).await;
    let listed = server.events().list_detections(pb::ListDetectionsRequest::default()).await;
    let seen = listed.unwrap().into_inner().detections.remove(0);
    assert!(seen.enrichment_data.unwrap().fields.contains_key(OMITTED));
    overwrite(&server, "alerts", "metadata", "TRUE", &nested(40)).await;
    let start = pb::WatchStart::Snapshot.into();
    let mut watch = server.watch(pb::WatchRequest { start, ..topics(&[Topic::Alerts]) }).await;
    let (_, alert) = watch.alert().await;
    assert!(alert.metadata.unwrap().fields.contains_key(OMITTED));
    // An Update of something else keeps what is stored.
    let mut schedules = JobScheduleServiceClient::new(server.channel.clone());
    let create = pb::CreateJobScheduleRequest { job_schedule: Some(schedule(&json!({}))) };
    let made = schedules.create_job_schedule(create).await.unwrap().into_inner();
    overwrite(&server, "job_schedules", "payload", "TRUE", &nested(22)).await;
    let update = pb::UpdateJobScheduleRequest {
        job_schedule: Some(pb::JobSchedule { id: made.id, name: "renamed".into(), ..Default::default() }),
        ..Default::default()
    };
    let updated = schedules.update_job_schedule(update).await.unwrap().into_inner();
    assert!(updated.payload.unwrap().fields.contains_key(OMITTED));
    let stored = crate::support::calls::query(&server, "SELECT payload FROM job_schedules").await;
    assert_eq!(stored[0].try_get::<Json>("", "payload").unwrap(), nested(22));
    server.stop().await;
}

#[on_both]
async fn a_change_that_cannot_be_decoded_is_told(backend: Backend) {
    let server = ready(backend).await;
    let mut alerts = server.watch(topics(&[Topic::Alerts])).await;
    let mut cameras = server.watch(topics(&[Topic::Cameras])).await;
    let rule = server.rule(always("second")).await;
    // Another process whose rules have changed in a way that this one cannot decode.
    execute(&server, "DELETE FROM alert_rules WHERE name = 'second'").await;
    let db = server.database.connect().await;
    for topic in ["alerts", "alert_rules"] {
        let broken = change::ActiveModel {
            topic: Set(topic.into()),
            key: Set(rule.id.clone()),
            message: Set(vec![0x0f]),
            ..Default::default()
        };
        broken.insert(&db).await.unwrap();
    }
    db.close().await.unwrap();
    let Update::Unreadable(told) = alerts.update().await else {
        panic!("the change is told as unreadable");
    };
    assert_eq!((told.topic.as_str(), told.key), ("alerts", rule.id));
    assert!(told.sequence > 0 && !told.problem.is_empty());
    // What follows is delivered, and the rules were read again.
    let judged = async || server.ingest("door", vec![]).await.alerts.len() <= 1;
    eventually("the rules are read again", judged).await;
    alerts.alert().await;
    server.camera("gate").await;
    assert!(matches!(cameras.update().await, Update::Camera(_)), "other topics are not told");
    server.stop().await;
}

//! What jobs have logged.

use chrono::TimeDelta;
use uuid::Uuid;
use watchpost::{
    entity::job_log::{self, JobLogLevel},
    pb::{self, JobLogLevel as Level},
};

use super::rows::{client, insert, line, now, queued};
use crate::support::{
    TestServer,
    calls::{at, refused, walk},
    database::{Backend, on_both},
};

async fn list(server: &TestServer, job_id: Uuid, filter: pb::JobLogFilter) -> Vec<pb::JobLog> {
    let request = pb::ListJobLogsRequest {
        job_id: job_id.to_string(),
        filter: Some(filter),
        page_size: 1_000,
        ..Default::default()
    };
    let page = client(server).list_job_logs(request).await.unwrap();
    page.into_inner().logs
}

fn any() -> pb::JobLogFilter {
    pb::JobLogFilter::default()
}

#[on_both]
async fn a_log_is_told_line_by_line(backend: Backend) {
    let server = TestServer::start(backend).await;
    let db = server.database.connect().await;
    let (job, other) = (queued("a"), queued("b"));
    let (id, other_id) = (job.id, other.id);
    insert(&db, [job, other]).await;
    let now = now();
    // Workers' clocks need not be right; another writer numbers nothing.
    let mut lines: Vec<_> = (1..=12)
        .map(|number| job_log::Model {
            timestamp: now - TimeDelta::seconds(number % 3),
            context: Some(serde_json::json!({"n": number})),
            ..line(id, Some(number), JobLogLevel::Info, &format!("line {number}"))
        })
        .collect();
    lines.extend((0..3).map(|_| job_log::Model { timestamp: now, ..line(id, None, JobLogLevel::Info, "foreign") }));
    lines.push(job_log::Model { timestamp: now - TimeDelta::seconds(1), ..line(id, None, JobLogLevel::Info, "older") });
    insert(&db, lines.clone().into_iter().rev()).await;
    insert(&db, [line(other_id, Some(1), JobLogLevel::Info, "other")]).await;
    lines[12..].sort_by_key(|line| (line.timestamp, line.id));
    let told = list(&server, id, any()).await;
    let ids: Vec<_> = told.iter().map(|line| line.id.clone()).collect();
    assert_eq!(ids, lines.iter().map(|line| line.id.to_string()).collect::<Vec<_>>());
    assert_eq!((told[0].line, told[0].message.as_str(), told[0].level()), (Some(1), "line 1", Level::Info));
    assert_eq!((told[12].line, told[12].message.as_str()), (None, "older"));
    walk(16, async |page_size, page_token| {
        let request = pb::ListJobLogsRequest { job_id: id.to_string(), filter: None, page_size, page_token };
        let page = client(&server).list_job_logs(request).await.unwrap().into_inner();
        (page.logs, page.next_page_token)
    })
    .await;
    db.close().await.unwrap();
    server.stop().await;
}

#[on_both]
async fn lines_are_found_by_what_they_say(backend: Backend) {
    let server = TestServer::start(backend).await;
    let db = server.database.connect().await;
    let job = queued("a");
    let id = job.id;
    insert(&db, [job]).await;
    let levels = [JobLogLevel::Debug, JobLogLevel::Info, JobLogLevel::Warning, JobLogLevel::Error];
    let start: chrono::DateTime<chrono::Utc> = "2026-03-01T12:00:00Z".parse().unwrap();
    let texts = ["Read 100% of it", "a_b", "a\\b", "Ärger"];
    let lines = (0..8_usize).map(|n| job_log::Model {
        timestamp: start + TimeDelta::seconds(i64::try_from(n).unwrap()),
        attempt_number: if n < 4 { 1 } else { 2 },
        ..line(id, Some(i64::try_from(n).unwrap() + 1), levels[n % 4], texts[n / 2])
    });
    insert(&db, lines).await;
    let start = start.timestamp();
    let text = |text: &str| pb::JobLogFilter { text: text.into(), ..any() };
    let range = |from: Option<i64>, to: Option<i64>| pb::JobLogFilter {
        timestamp: Some(pb::TimeRange {
            start: from.and_then(|from| at(start + from)),
            end: to.and_then(|to| at(start + to)),
        }),
        ..any()
    };
    let level = |level: Level| pb::JobLogFilter { min_level: level.into(), ..any() };
    for (filter, expected) in [
        (any(), &[1, 2, 3, 4, 5, 6, 7, 8][..]),
        (level(Level::Debug), &[1, 2, 3, 4, 5, 6, 7, 8]),
        (level(Level::Info), &[2, 3, 4, 6, 7, 8]),
        (level(Level::Warning), &[3, 4, 7, 8]),
        (level(Level::Error), &[4, 8]),
        (range(Some(2), None), &[3, 4, 5, 6, 7, 8]),
        (range(None, Some(2)), &[1, 2]),
        (range(Some(2), Some(2)), &[]),
        (range(None, None), &[1, 2, 3, 4, 5, 6, 7, 8]),
        (pb::JobLogFilter { attempt_number: Some(2), ..any() }, &[5, 6, 7, 8]),
        (pb::JobLogFilter { attempt_number: Some(3), ..any() }, &[]),
        (text("READ"), &[1, 2]),
        (text("%"), &[1, 2]),
        (text("_"), &[3, 4]),
        (text("\\"), &[5, 6]),
        (text("Ä"), &[7, 8]),
        (text("ä"), &[]),
        (pb::JobLogFilter { min_level: Level::Error.into(), attempt_number: Some(1), ..text("a_") }, &[4]),
    ] {
        let found: Vec<_> = list(&server, id, filter.clone()).await.iter().map(|line| line.line.unwrap()).collect();
        assert_eq!(found, expected, "{filter:?}");
    }
    let backwards = pb::TimeRange { start: at(2), end: at(1) };
    for (filter, path) in [
        (pb::JobLogFilter { min_level: 5, ..any() }, "filter.min_level"),
        (pb::JobLogFilter { timestamp: Some(backwards), ..any() }, "filter.timestamp.end"),
        (pb::JobLogFilter { attempt_number: Some(0), ..any() }, "filter.attempt_number"),
        (text(&"a".repeat(201)), "filter.text"),
        (text("\0"), "filter.text"),
    ] {
        let request = pb::ListJobLogsRequest { job_id: id.to_string(), filter: Some(filter), ..Default::default() };
        refused(client(&server).list_job_logs(request).await, path);
    }
    // A token is good for its filter.
    let request = |filter, page_token| pb::ListJobLogsRequest {
        job_id: id.to_string(),
        filter: Some(filter),
        page_size: 1,
        page_token,
    };
    let token =
        client(&server).list_job_logs(request(any(), String::new())).await.unwrap().into_inner().next_page_token;
    refused(client(&server).list_job_logs(request(text("a"), token)).await, "page_token");
    db.close().await.unwrap();
    server.stop().await;
}

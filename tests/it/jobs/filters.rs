//! Which jobs lists find, in which order, against the same worked out from the rows one by one.

mod model;

use chrono::{DateTime, TimeDelta, Utc};
use fastrand::Rng;
use prost_types::Duration;
use uuid::Uuid;
use watchpost::{
    entity::job::{self, JobStatus},
    pb::{self, JobOrder},
};

use self::model::{ORDERS, Row, STATUSES, compare, filter, holds, passes, random};
use super::rows::{client, finished, insert, queued, running};
use crate::support::{
    TestServer,
    calls::{at, refused, strings, walk},
    database::{Backend, on_both},
    seed,
};

struct Jobs {
    server: TestServer,
    rows: Vec<Row>,
    schedules: [Uuid; 2],
}

async fn jobs(backend: Backend, rng: &mut Rng, count: usize) -> Jobs {
    let server = TestServer::start(backend).await;
    let db = server.database.connect().await;
    let schedules = [Uuid::now_v7(), Uuid::now_v7()];
    let (mut rows, mut all_attempts) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let (row, attempts) = random(rng, &schedules);
        rows.push(row);
        all_attempts.extend(attempts);
    }
    insert(&db, rows.iter().map(|row| row.job.clone())).await;
    insert(&db, all_attempts).await;
    db.close().await.unwrap();
    Jobs { server, rows, schedules }
}

impl Jobs {
    /// The ids of the jobs that pass, in this order.
    fn expected(&self, order: JobOrder, passes: impl Fn(&Row) -> bool) -> Vec<String> {
        let mut found: Vec<_> = self.rows.iter().filter(|row| passes(row)).collect();
        found.sort_by(|a, b| compare(order, &a.job, &b.job));
        found.iter().map(|row| row.job.id.to_string()).collect()
    }

    async fn list(&self, filter: &pb::JobFilter, order: JobOrder) -> Vec<String> {
        let request = pb::ListJobsRequest {
            filter: Some(filter.clone()),
            order: order.into(),
            page_size: 1_000,
            ..Default::default()
        };
        let page = client(&self.server).list_jobs(request).await.unwrap();
        page.into_inner().jobs.into_iter().map(|job| job.id).collect()
    }
}

#[on_both]
async fn filters_and_orders_find_what_is_worked_out_one_by_one(backend: Backend) {
    let mut rng = Rng::with_seed(seed(7));
    let jobs = jobs(backend, &mut rng, 150).await;
    let mut found = 0;
    for round in 0..140 {
        let filter = filter(&mut rng, &jobs.rows, &jobs.schedules);
        let order = ORDERS[round % ORDERS.len()];
        let expected = jobs.expected(order, |row| passes(&filter, row));
        found += usize::from(!expected.is_empty());
        assert_eq!(jobs.list(&filter, order).await, expected, "{order:?} {filter:?}");
    }
    assert!(found > 70, "most filters find some: {found}");
    jobs.server.stop().await;
}

#[on_both]
async fn no_page_of_any_order_skips_or_repeats_a_job(backend: Backend) {
    let mut rng = Rng::with_seed(seed(11));
    let jobs = jobs(backend, &mut rng, 24).await;
    for order in ORDERS {
        let expected = jobs.expected(order, |_| true);
        walk(24, async |page_size, page_token| {
            let request = pb::ListJobsRequest { filter: None, order: order.into(), page_size, page_token };
            let page = client(&jobs.server).list_jobs(request).await.unwrap().into_inner();
            let ids: Vec<_> = page.jobs.into_iter().map(|job| job.id).collect();
            assert!(page_size < 24 || ids == expected, "{order:?}");
            (ids, page.next_page_token)
        })
        .await;
    }
    jobs.server.stop().await;
}

#[on_both]
async fn a_search_finds_and_counts_what_holds_the_text(backend: Backend) {
    let mut rng = Rng::with_seed(seed(13));
    let jobs = jobs(backend, &mut rng, 120).await;
    let some_id = jobs.rows[3].job.id.to_string();
    for (round, query) in [
        "",
        "EXPORT",
        "slow",
        "%",
        "_",
        "reading",
        "space LEFT",
        "enospc",
        "w-",
        "door",
        "clip\\7",
        "ä",
        "Ä",
        "'",
        "-",
        &some_id,
        &some_id[..13],
        &some_id[..9].to_uppercase(),
        &some_id[..1],
        &some_id.replace('-', ""),
        &format!("{some_id}0"),
    ]
    .into_iter()
    .enumerate()
    {
        let filter =
            if round % 2 == 0 { pb::JobFilter::default() } else { filter(&mut rng, &jobs.rows, &jobs.schedules) };
        let order = ORDERS[round % ORDERS.len()];
        let pass = |row: &Row| (query.is_empty() || holds(query, &row.job)) && passes(&filter, row);
        let expected = jobs.expected(order, pass);
        let request = pb::SearchJobsRequest {
            query: query.into(),
            filter: Some(filter.clone()),
            order: order.into(),
            page_size: 20,
            ..Default::default()
        };
        let (mut found, mut token) = (Vec::new(), String::new());
        loop {
            let request = pb::SearchJobsRequest { page_token: token, ..request.clone() };
            let page = client(&jobs.server).search_jobs(request).await.unwrap().into_inner();
            assert_eq!(page.total, i64::try_from(expected.len()).unwrap(), "{query}");
            let count = |matches: &dyn Fn(&job::Model) -> bool| {
                i64::try_from(jobs.rows.iter().filter(|row| pass(row) && matches(&row.job)).count()).unwrap()
            };
            let statuses =
                STATUSES.iter().zip(1..).map(|(status, number)| (number, count(&|job| job.status == *status)));
            let statuses: Vec<_> = statuses.filter(|(_, jobs)| *jobs > 0).collect();
            assert_eq!(page.by_status.iter().map(|of| (of.status, of.jobs)).collect::<Vec<_>>(), statuses);
            let types =
                ["Backup", "Zoom", "ai_analysis", "export", "äther"].map(|of| (of, count(&|job| job.job_type == of)));
            let mut types: Vec<_> = types.into_iter().filter(|(_, jobs)| *jobs > 0).collect();
            types.sort_by_key(|(_, jobs)| -jobs);
            assert_eq!(page.by_type.iter().map(|of| (of.job_type.as_str(), of.jobs)).collect::<Vec<_>>(), types);
            found.extend(page.jobs.into_iter().map(|job| job.id));
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(found, expected, "{query} {order:?} {filter:?}");
    }
    jobs.server.stop().await;
}

#[on_both]
async fn lists_leave_out_what_is_large(backend: Backend) {
    let server = TestServer::start(backend).await;
    let db = server.database.connect().await;
    let large = job::Model {
        payload: Some(serde_json::json!({"a": 1})),
        result: Some(serde_json::json!({"a": 1})),
        error_traceback: Some("at line 7".into()),
        ..finished("a", JobStatus::Failed, 1)
    };
    let id = large.id.to_string();
    insert(&db, [large]).await;
    let whole = client(&server).get_job(pb::GetJobRequest { id }).await.unwrap().into_inner();
    assert!(whole.payload.is_some() && whole.result.is_some() && whole.error_traceback.is_some());
    let light = pb::Job { payload: None, result: None, error_traceback: None, timing: None, ..whole };
    for order in [JobOrder::Unspecified, JobOrder::CompletedAt] {
        let request = pb::ListJobsRequest { order: order.into(), ..Default::default() };
        assert_eq!(client(&server).list_jobs(request).await.unwrap().into_inner().jobs, std::slice::from_ref(&light));
    }
    let found = client(&server).search_jobs(pb::SearchJobsRequest::default()).await.unwrap().into_inner();
    assert_eq!(found.jobs, [light]);
    db.close().await.unwrap();
    server.stop().await;
}

#[on_both]
async fn how_long_attempts_took_is_exact_to_the_microsecond(backend: Backend) {
    let server = TestServer::start(backend).await;
    let db = server.database.connect().await;
    let start: DateTime<Utc> = "2026-03-01T12:00:00.9Z".parse().unwrap();
    let took = |micros| job::Model {
        created_at: start,
        started_at: Some(start),
        completed_at: Some(start + TimeDelta::microseconds(micros)),
        ..finished("a", JobStatus::Completed, 1)
    };
    let durations = [0, 1, 99_999, 100_000, 100_001, 2_000_000];
    let rows = durations.map(took);
    let ids = rows.clone().map(|job| job.id.to_string());
    insert(&db, rows).await;
    let now_running = running("a", 3_600);
    insert(&db, [now_running.clone(), queued("a")]).await;
    let find = async |least: Option<i32>, most: Option<i32>| {
        let micros = |micros: i32| Duration { seconds: 0, nanos: micros * 1_000 };
        let filter =
            pb::JobFilter { min_duration: least.map(micros), max_duration: most.map(micros), ..Default::default() };
        let request = pb::ListJobsRequest { filter: Some(filter), ..Default::default() };
        let page = client(&server).list_jobs(request).await.unwrap().into_inner();
        let mut found: Vec<_> = page.jobs.into_iter().map(|job| job.id).collect();
        found.sort();
        found
    };
    assert_eq!(find(None, Some(0)).await, ids[..1]);
    assert_eq!(find(Some(1), Some(1)).await, ids[1..2]);
    assert_eq!(find(Some(99_999), Some(100_000)).await, ids[2..4]);
    assert_eq!(find(Some(100_001), None).await.len(), 3);
    assert_eq!(find(Some(0), None).await.len(), 7);
    db.close().await.unwrap();
    server.stop().await;
}

#[on_both]
async fn bad_filters_orders_and_tokens_are_refused_by_path(backend: Backend) {
    let server = TestServer::start(backend).await;
    let db = server.database.connect().await;
    insert(&db, [queued("a"), running("b", 1), finished("c", JobStatus::Completed, 1)]).await;
    db.close().await.unwrap();
    let any = pb::JobFilter::default;
    let backwards = Some(pb::TimeRange { start: at(2), end: at(1) });
    let span = |seconds, nanos| Some(Duration { seconds, nanos });
    for (filter, path) in [
        (pb::JobFilter { statuses: vec![0], ..any() }, "filter.statuses[0]"),
        (pb::JobFilter { statuses: vec![1, 6], ..any() }, "filter.statuses[1]"),
        (pb::JobFilter { job_types: strings(&["a", ""]), ..any() }, "filter.job_types[1]"),
        (pb::JobFilter { job_types: vec!["a".repeat(51)], ..any() }, "filter.job_types[0]"),
        (pb::JobFilter { queue_names: vec!["a".into(); 1_001], ..any() }, "filter.queue_names"),
        (pb::JobFilter { priorities: vec![0, 5], ..any() }, "filter.priorities[1]"),
        (pb::JobFilter { priorities: vec![0; 1_001], ..any() }, "filter.priorities"),
        (pb::JobFilter { ids: strings(&["x"]), ..any() }, "filter.ids[0]"),
        (pb::JobFilter { created_at: backwards, ..any() }, "filter.created_at.end"),
        (pb::JobFilter { completed_at: backwards, ..any() }, "filter.completed_at.end"),
        (pb::JobFilter { scheduled_at: backwards, ..any() }, "filter.scheduled_at.end"),
        (pb::JobFilter { min_duration: span(-1, 0), ..any() }, "filter.min_duration"),
        (pb::JobFilter { min_duration: span(0, -1), ..any() }, "filter.min_duration"),
        (pb::JobFilter { max_duration: span(1, 1_000_000_000), ..any() }, "filter.max_duration"),
        (
            pb::JobFilter { min_duration: span(2, 0), max_duration: span(1, 999_999_999), ..any() },
            "filter.max_duration",
        ),
        (pb::JobFilter { worker_id: "a".repeat(101), ..any() }, "filter.worker_id"),
        (pb::JobFilter { concurrency_keys: strings(&["\0"]), ..any() }, "filter.concurrency_keys[0]"),
        (pb::JobFilter { schedule_id: "x".into(), ..any() }, "filter.schedule_id"),
        (pb::JobFilter { error_codes: strings(&[" "]), ..any() }, "filter.error_codes[0]"),
    ] {
        let filter = Some(filter);
        refused(
            client(&server).list_jobs(pb::ListJobsRequest { filter: filter.clone(), ..Default::default() }).await,
            path,
        );
        refused(
            client(&server).search_jobs(pb::SearchJobsRequest { filter: filter.clone(), ..Default::default() }).await,
            path,
        );
        refused(client(&server).get_job_stats(pb::GetJobStatsRequest { filter, window: None }).await, path);
    }
    // The longest that can be said is no mistake.
    let longest = pb::JobFilter { min_duration: span(i64::MAX, 999_999_999), ..any() };
    let request = pb::ListJobsRequest { filter: Some(longest), ..Default::default() };
    assert_eq!(client(&server).list_jobs(request).await.unwrap().into_inner().jobs, []);
    for order in [14, -1] {
        refused(client(&server).list_jobs(pb::ListJobsRequest { order, ..Default::default() }).await, "order");
        refused(client(&server).search_jobs(pb::SearchJobsRequest { order, ..Default::default() }).await, "order");
    }
    for query in ["a".repeat(201), "\0".into()] {
        refused(client(&server).search_jobs(pb::SearchJobsRequest { query, ..Default::default() }).await, "query");
    }

    let list = |order: JobOrder, filter, page_token| {
        let request = pb::ListJobsRequest { filter, order: order.into(), page_size: 1, page_token };
        let mut jobs = client(&server);
        async move { jobs.list_jobs(request).await }
    };
    let search = |query: &str, page_token| {
        let request = pb::SearchJobsRequest { query: query.into(), page_size: 1, page_token, ..Default::default() };
        let mut jobs = client(&server);
        async move { jobs.search_jobs(request).await }
    };
    let token = list(JobOrder::Progress, None, String::new()).await.unwrap().into_inner().next_page_token;
    assert!(list(JobOrder::Progress, None, token.clone()).await.is_ok());
    refused(list(JobOrder::ProgressDesc, None, token.clone()).await, "page_token");
    refused(
        list(JobOrder::Progress, Some(pb::JobFilter { priorities: vec![2], ..any() }), token.clone()).await,
        "page_token",
    );
    refused(search("", token).await, "page_token");
    let token = search("d", String::new()).await.unwrap().into_inner().next_page_token;
    assert!(search("d", token.clone()).await.is_ok());
    refused(search("de", token.clone()).await, "page_token");
    for bad in ["x", "%%%", &token[1..]] {
        refused(search("d", bad.into()).await, "page_token");
    }
    refused(client(&server).list_jobs(pb::ListJobsRequest { page_size: -1, ..Default::default() }).await, "page_size");
    server.stop().await;
}

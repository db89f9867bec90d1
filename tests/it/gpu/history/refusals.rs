//! What is refused, and by which field.

use prost_types::Duration as Span;

use super::*;

#[on_both]
async fn bad_requests_are_refused_by_name(backend: Backend) {
    let server = TestServer::start(backend).await;
    let db = server.database.connect().await;
    let start = midnight(40);
    for gpu in 0..9 {
        insert(&db, &format!("GPU-{gpu}"), &[Row::warm(start, 1.0)]).await;
    }
    let good = || request(start, start + HOUR, MINUTE);
    let with_range = |start, end| {
        let range = Some(pb::TimeRange { start, end });
        pb::AggregateGpuStatsRequest { range, ..good() }
    };
    let with_width =
        |seconds, nanos| pb::AggregateGpuStatsRequest { bucket_width: Some(Span { seconds, nanos }), ..good() };
    let beyond = Some(Timestamp { seconds: i64::MAX, nanos: 0 });
    let all_days = |width: i64| request(start, start + 40 * 24 * HOUR, width);
    let refused = [
        ("range.start", pb::AggregateGpuStatsRequest { range: None, ..good() }),
        ("range.start", with_range(None, at(start))),
        ("range.start", with_range(beyond, beyond)),
        ("range.end", with_range(at(start), None)),
        ("range.end", with_range(at(start), at(start))),
        ("range.end", with_range(at(start), at(start - 1))),
        ("range.end", with_range(at(start), beyond)),
        ("bucket_width", pb::AggregateGpuStatsRequest { bucket_width: None, ..good() }),
        ("bucket_width", with_width(0, 0)),
        ("bucket_width", with_width(0, 999_000_000)),
        ("bucket_width", with_width(1, 1)),
        ("bucket_width", with_width(2, -500_000_000)),
        ("bucket_width", with_width(-60, 0)),
        ("bucket_width", with_width(86_400, 1_000_000)),
        ("bucket_width", with_width(i64::MAX, 0)),
        ("gpu_uuids", pb::AggregateGpuStatsRequest { gpu_uuids: vec!["x".into(); 1_001], ..good() }),
        ("gpu_uuids[1]", pb::AggregateGpuStatsRequest { gpu_uuids: vec!["x".into(), String::new()], ..good() }),
        ("gpu_uuids[0]", pb::AggregateGpuStatsRequest { gpu_uuids: vec!["x".repeat(97)], ..good() }),
        ("gpu_uuids[0]", pb::AggregateGpuStatsRequest { gpu_uuids: vec!["a\0b".into()], ..good() }),
        ("host", pb::AggregateGpuStatsRequest { host: "a\0b".into(), ..good() }),
        ("host", pb::AggregateGpuStatsRequest { host: "x".repeat(256), ..good() }),
        ("metrics[0]", pb::AggregateGpuStatsRequest { metrics: vec![0], ..good() }),
        ("metrics[1]", pb::AggregateGpuStatsRequest { metrics: vec![1, 27], ..good() }),
        // Nine GPUs for forty days, in whole minutes; for a day and a half, in seconds.
        ("range.end", all_days(HOUR)),
        ("range.end", request(midnight(3), midnight(3) + 36 * HOUR, 1_500)),
        // Nine GPUs, 10 days of minutes, three metrics.
        ("bucket_width", request(start, start + 11 * 24 * HOUR, MINUTE)),
        ("range.end", with_range(at(0), at(253_402_300_799_000))),
    ];
    for (number, (path, request)) in refused.into_iter().enumerate() {
        let reply = server.gpu_stats().aggregate_gpu_stats(request).await;
        let status = failed(reply, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(field(&status), path, "{number}: {}", status.message());
    }
    // What is just within bounds is answered.
    let one = pb::AggregateGpuStatsRequest { gpu_uuids: vec!["GPU-1".into()], ..all_days(24 * HOUR) };
    let told = aggregate(&server, one).await;
    assert_eq!((told[0].buckets.len(), first(&told)[0].0), (40, 0));
    assert_eq!(told[0].series[1].buckets[0].samples, 1);
    let end = 253_402_300_799_999;
    assert_eq!(aggregate(&server, request(end - HOUR, end, MINUTE)).await.len(), 9);
    server.stop().await;
}

#[on_both]
async fn an_empty_database_has_no_gpus(backend: Backend) {
    let server = TestServer::start(backend).await;
    let all = pb::AggregateGpuStatsRequest { metrics: vec![], ..request(0, HOUR, MINUTE) };
    assert_eq!(aggregate(&server, all.clone()).await, []);
    let db = server.database.connect().await;
    insert(&db, "GPU-1", &[Row::warm(HOUR, 1.0)]).await;
    let told = aggregate(&server, all).await;
    let metrics: Vec<_> = told[0].series.iter().map(|series| series.metric).collect();
    assert_eq!(metrics, (1..=26).collect::<Vec<_>>());
    assert!(first(&told).iter().all(|bucket| *bucket == (0, None)));
    server.stop().await;
}

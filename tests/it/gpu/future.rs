//! Samples of hosts whose clocks are ahead: none of them hides what is measured after it.

use chrono::{DateTime, TimeDelta, Utc};
use watchpost::{entity::now, pb::watch_response::Update, rpc::time};

use super::{report::Reporter, *};
use crate::support::{self, TestServer, Watch, topics};

/// A batch of one sample.
fn batch(sequence: i64, at: DateTime<Utc>, temperature: f64) -> pb::RecordGpuStatsRequest {
    let sample = pb::GpuStats {
        recorded_at: Some(time::to_proto(at)),
        gpu_uuid: Some("GPU-a".into()),
        gpu_index: i32::try_from(sequence).ok(),
        temperature: Some(temperature),
        ..Default::default()
    };
    pb::RecordGpuStatsRequest {
        reporter_id: "shed-1".into(),
        host: "shed".into(),
        sequence,
        gpu_stats: vec![sample],
        ..Default::default()
    }
}

/// The newest temperature, as clients get it.
async fn latest(server: &TestServer) -> Option<f64> {
    let request = pb::GetLatestGpuStatsRequest::default();
    let latest = server.gpu_stats().get_latest_gpu_stats(request).await;
    latest.unwrap().into_inner().gpu_stats[0].temperature
}

/// Waits for a sample with this temperature.
async fn watched(watch: &mut Watch, temperature: f64) {
    let waiting = async {
        loop {
            if let Update::GpuStats(stats) = watch.update().await
                && stats.temperature == Some(temperature)
            {
                return;
            }
        }
    };
    timeout(PATIENCE, waiting).await.expect("the sample");
}

#[on_both]
async fn a_sample_from_the_future_hides_no_newer_one(backend: Backend) {
    let server = TestServer::start(backend).await;
    let mut watch = server.watch(topics(&[pb::Topic::GpuStats])).await;
    let mut reporter = Reporter::open(&server).await;
    let ahead = now() + TimeDelta::minutes(4);
    assert_eq!(reporter.report(batch(1, ahead, 90.0)).await.unwrap(), (1, false));
    assert_eq!(latest(&server).await, Some(90.0));
    watched(&mut watch, 90.0).await;
    let measured = now();
    assert_eq!(reporter.report(batch(2, measured, 50.0)).await.unwrap(), (2, false));
    assert_eq!(latest(&server).await, Some(50.0));
    watched(&mut watch, 50.0).await;
    // What is late hides nothing, either.
    let late = measured - TimeDelta::minutes(1);
    assert_eq!(reporter.report(batch(3, late, 30.0)).await.unwrap(), (3, false));
    assert_eq!(latest(&server).await, Some(50.0));

    let gpus = server.gpu_stats().list_gpus(pb::ListGpusRequest {}).await.unwrap();
    let gpu = gpus.into_inner().gpus.remove(0);
    assert_eq!(gpu.gpu_index, Some(2));
    assert_eq!(gpu.last_seen_at, Some(time::to_proto(measured)));

    // Of what is stored, too.
    let server = TestServer::start_with(server.stop().await, |_| {}).await;
    assert_eq!(latest(&server).await, Some(50.0));
    server.stop().await;
}

#[tokio::test]
async fn a_sample_from_the_future_hides_no_newer_one_on_other_processes() {
    let one = TestServer::start(Backend::Postgres).await;
    let two = support::start(one.database.url(), |_| {}).await;
    let channel = support::connect(&format!("http://{}", two.address)).await;
    let mut monitor = pb::monitor_service_client::MonitorServiceClient::new(channel);
    let request = topics(&[pb::Topic::GpuStats]);
    let mut watch = Watch::from(monitor.watch(request).await.unwrap().into_inner());
    let mut reporter = Reporter::open(&one).await;
    let ahead = now() + TimeDelta::minutes(4);
    reporter.report(batch(1, ahead, 90.0)).await.unwrap();
    watched(&mut watch, 90.0).await;
    reporter.report(batch(2, now(), 50.0)).await.unwrap();
    watched(&mut watch, 50.0).await;
    drop(watch);
    assert!(two.stop().await);
    one.stop().await;
}

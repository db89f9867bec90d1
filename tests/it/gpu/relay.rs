//! What one process samples or takes in, the others on the same PostgreSQL have live, too.

use sea_orm::ConnectionTrait;
use watchpost::pb::watch_response::Update;

use super::{report::Reporter, *};
use crate::support::{self, TestServer, Watch, topics};

/// The next sample of each of these GPUs that is newer than those.
async fn newer(
    watch: &mut Watch,
    than: &BTreeMap<String, pb::GpuStats>,
    uuids: &[&str],
) -> BTreeMap<String, pb::GpuStats> {
    let mut found = BTreeMap::new();
    let waiting = async {
        while found.len() < uuids.len() {
            let Update::GpuStats(stats) = watch.update().await else {
                continue;
            };
            let uuid = stats.gpu_uuid().to_string();
            assert!(uuids.contains(&uuid.as_str()), "{uuid}");
            let at = |stats: &pb::GpuStats| stats.recorded_at.map(|at| (at.seconds, at.nanos));
            if than.get(&uuid).is_none_or(|old| at(&stats) > at(old)) {
                found.insert(uuid, stats);
            }
        }
    };
    timeout(PATIENCE, waiting).await.expect("samples of all GPUs");
    found
}

#[tokio::test]
async fn whoever_watches_sees_the_gpus_of_every_process() {
    let fakes = [FakeNvml::new(&[Card::geforce("GPU-1")]), FakeNvml::new(&[Card::h200("GPU-2")])];
    let database = TestDatabase::migrated(Backend::Postgres).await;
    let with = |fake: &FakeNvml, host: &str| {
        let (library, host) = (fake.library(), host.to_string());
        move |settings: &mut watchpost::config::Settings| {
            settings.nvml_library = Some(library);
            settings.gpu_interval = Duration::from_millis(100);
            settings.host = Some(host);
            settings.metrics_listen = Some("127.0.0.1:0".into());
        }
    };
    let one = TestServer::start_with(database, with(&fakes[0], "shed")).await;
    let two = support::start(one.database.url(), with(&fakes[1], "attic")).await;
    let channel = support::connect(&format!("http://{}", two.address)).await;
    let mut monitor = pb::monitor_service_client::MonitorServiceClient::new(channel);
    let request = || topics(&[pb::Topic::GpuStats]);
    let mut watches = [one.watch(request()).await, Watch::from(monitor.watch(request()).await.unwrap().into_inner())];
    // What is reported to one of them is seen at the other.
    let mut reporter = Reporter::open(&one).await;
    let sample = pb::GpuStats {
        recorded_at: Some(watchpost::rpc::time::to_proto(watchpost::entity::now())),
        gpu_uuid: Some("GPU-3".into()),
        temperature: Some(33.0),
        ..Default::default()
    };
    let batch = pb::RecordGpuStatsRequest {
        reporter_id: "cellar-1".into(),
        host: "cellar".into(),
        sequence: 1,
        gpu_stats: vec![sample],
        ..Default::default()
    };
    reporter.report(batch).await.unwrap();
    let all = ["GPU-1", "GPU-2", "GPU-3"];
    for watch in &mut watches {
        let seen = newer(watch, &BTreeMap::new(), &all).await;
        let told = all.map(|uuid| (seen[uuid].host(), seen[uuid].gpu_name()));
        assert_eq!(told, [("shed", "NVIDIA GeForce RTX 4080 SUPER"), ("attic", "NVIDIA H200"), ("cellar", "")]);
        assert_eq!(seen["GPU-3"].temperature, Some(33.0));
        assert_eq!(seen["GPU-2"].absent_reasons["fan_speed"], i32::from(AbsentReason::NotSupported));
        // And again and again.
        newer(watch, &seen, &all[..2]).await;
    }

    // A signal that is not one of theirs is passed over.
    let db = one.database.connect().await;
    for payload in ["", "nonsense", "AAAA"] {
        db.execute_unprepared(&format!("NOTIFY watchpost_gpu_stats, '{payload}'")).await.unwrap();
    }
    db.close().await.unwrap();
    let seen = newer(&mut watches[1], &BTreeMap::new(), &all[..2]).await;
    newer(&mut watches[1], &seen, &all[..2]).await;

    // Each GPU is in the metrics of one of them only.
    for (address, own) in [(one.metrics_address(), &["GPU-1", "GPU-3"][..]), (two.metrics_address, &["GPU-2"])] {
        let (_, text) = crate::metrics::get(address.unwrap(), "/metrics").await;
        for uuid in all {
            let label = format!("UUID=\"{uuid}\"");
            assert_eq!(text.contains(&label), own.contains(&uuid), "{uuid}");
        }
    }
    drop(watches);
    assert!(two.stop().await);
    one.stop().await;
}

//! GPUs in the database, and the answers about them.

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ConnectionTrait, DatabaseConnection, EntityTrait, PaginatorTrait, QueryFilter, QueryOrder, Set};
use tonic::{Code, Status};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use watchpost::{
    entity::{gpu as gpus, gpu_stats},
    pb::watch_response::Update,
};

use super::*;
use crate::support::{TestServer, field, topics};

#[on_both]
async fn samples_are_stored_with_the_reason_for_every_null(backend: Backend) {
    let divided = Card::h100_divided("GPU-1");
    let instance = Card::instance("MIG-1", "GPU-1");
    let fake = FakeNvml::new(&[Card::geforce("GPU-0"), divided, instance]);
    let rig = Rig::on(TestDatabase::migrated(backend).await, &fake, INTERVAL).await;
    rig.readings(|all| all.len() == 3 && all.values().all(|reading| reading.number >= 5)).await;
    let live = rig.live.clone();
    // What was not stored yet is stored at the end.
    let database = rig.stop().await;
    let db = database.connect().await;
    for reading in live.readings() {
        let uuid = reading.stats.gpu_uuid.as_deref().unwrap();
        let rows = stored(&db, uuid).await;
        assert_eq!(rows.len() as u64, reading.number, "{uuid}");
        let newest = rows.into_iter().next().unwrap();
        if uuid == "GPU-1" {
            assert_eq!(newest.gpu_utilization, None);
            // The name is there, the utilization not because of MIG, the frames nobody reports.
            let mask = newest.absent_mask.as_deref().unwrap();
            assert_eq!((&mask[..2], &mask[6..7]), (".M", "R"));
        }
        let stored = pb::GpuStats::from(newest);
        assert!(stored.id.is_some());
        assert_eq!(pb::GpuStats { id: None, ..stored }, reading.stats);
    }
    let rows = gpus::Entity::find().order_by_asc(gpus::Column::Uuid).all(&db).await.unwrap();
    let parent = |gpu: &gpus::Model| (gpu.uuid.clone(), gpu.mig_parent_uuid.clone());
    let parents: Vec<_> = rows.iter().map(parent).collect();
    let of = |uuid: &str| uuid.to_string();
    let expected = [(of("GPU-0"), None), (of("GPU-1"), None), (of("MIG-1"), Some(of("GPU-1")))];
    assert_eq!(parents, expected);
}

#[on_both]
async fn samples_are_kept_while_they_cannot_be_stored(backend: Backend) {
    let fake = FakeNvml::new(&[Card::geforce("GPU-0")]);
    let database = TestDatabase::migrated(backend).await;
    let db = database.connect().await;
    db.execute_unprepared("ALTER TABLE gpu_stats RENAME TO gpu_stats_away").await.unwrap();
    let rig = Rig::on(database, &fake, Duration::from_millis(5)).await;
    // More than one batch, so that it was tried.
    rig.readings(|all| all.get("GPU-0").is_some_and(|reading| reading.number > 600)).await;
    db.execute_unprepared("ALTER TABLE gpu_stats_away RENAME TO gpu_stats").await.unwrap();
    let live = rig.live.clone();
    let _database = rig.stop().await;
    let stored = gpu_stats::Entity::find().count(&db).await.unwrap();
    assert_eq!(stored, live.reading("GPU-0").unwrap().number);
}

#[on_both]
async fn a_gpu_that_is_seen_again_keeps_when_it_was_first_seen(backend: Backend) {
    let fake = FakeNvml::new(&[Card::geforce("GPU-0")]);
    let rig = Rig::on(TestDatabase::migrated(backend).await, &fake, INTERVAL).await;
    rig.next("GPU-0").await;
    let database = rig.stop().await;
    let db = database.connect().await;
    let seen = async || gpus::Entity::find_by_id("GPU-0").one(&db).await.unwrap().unwrap();
    let first = seen().await;
    assert_eq!(first.driver_version.as_deref(), Some("580.95.05"));

    fake.set(&[Card::h200("GPU-new"), Card::geforce("GPU-0")]);
    let rig = Rig::on(database, &fake, INTERVAL).await;
    rig.next("GPU-0").await;
    let _database = rig.stop().await;
    let again = seen().await;
    assert_eq!(again.first_seen_at, first.first_seen_at);
    assert!(again.last_seen_at > first.last_seen_at);
    assert_eq!((first.gpu_index, again.gpu_index), (Some(0), Some(1)));
}

#[on_both]
async fn the_latest_sample_is_the_one_in_memory_or_the_newest_stored(backend: Backend) {
    let database = TestDatabase::migrated(backend).await;
    let now = watchpost::entity::now();
    let old = TimeDelta::days(1);
    insert(
        &database,
        &[
            row("GPU-far", "a", now),
            row("GPU-far", "a", now - old),
            row("GPU-0", "z", now - old),
            row("GPU-1", "z", now + old),
        ],
    )
    .await;
    insert_gpus(&database, [gpu("GPU-far", "a", 0), gpu("GPU-never", "b", 0)]).await;
    let fake = FakeNvml::new(&[Card::geforce("GPU-0"), Card::h200("GPU-1")]);
    let server = serve(database, &fake).await;
    let mut watch = server.watch(topics(&[pb::Topic::GpuStats])).await;
    let mut seen = BTreeMap::new();
    while seen.len() < 2 {
        let response = watch.next().await;
        if let Some(Update::GpuStats(stats)) = response.update {
            seen.insert(stats.gpu_uuid.clone().unwrap(), stats);
        }
    }
    let latest = async |gpu_uuids: Vec<String>| {
        let request = pb::GetLatestGpuStatsRequest { gpu_uuids };
        let response = server.gpu_stats().get_latest_gpu_stats(request).await?;
        Ok::<_, Status>(response.into_inner().gpu_stats)
    };
    let all = latest(vec![]).await.unwrap();
    let uuids: Vec<_> = all.iter().map(|stats| stats.gpu_uuid.as_deref().unwrap()).collect();
    assert_eq!(uuids, ["GPU-far", "GPU-0", "GPU-1"]);
    assert_eq!(all[0].recorded_at, Some(proto(now)));
    assert!(all[1].recorded_at.unwrap().seconds >= now.timestamp());
    assert_eq!(all[1].temperature, Some(51.0));
    // What another program has stored for tomorrow hides nothing of today.
    assert!(all[2].recorded_at.unwrap().seconds < (now + old).timestamp());
    assert_eq!(all[2].temperature, Some(51.0));
    // Nobody knows why another program has left a value out.
    let unknown = all[0].absent_reasons["temperature"];
    assert_eq!((unknown, all[0].absent_reasons.len()), (AbsentReason::Unspecified as i32, 28));

    let named = ["GPU-1", "GPU-1", "GPU-never", "nonsense"].map(String::from);
    assert_eq!(latest(named.into()).await.unwrap().len(), 1);
    let status = latest(vec!["x".into(); 1001]).await.unwrap_err();
    assert_eq!((status.code(), &*field(&status)), (Code::InvalidArgument, "gpu_uuids"));
    server.stop().await;
}

#[on_both]
async fn gpus_are_listed_by_host_and_index(backend: Backend) {
    let database = TestDatabase::migrated(backend).await;
    let mut instance = gpu("A-mig", "a", 1);
    instance.mig_parent_uuid = Set(Some("GPU-1".into()));
    let rows = [gpu("GPU-3", "b", 0), instance, gpu("GPU-2", "a", 2), gpu("GPU-1", "a", 1)];
    insert_gpus(&database, rows).await;
    let server = TestServer::start_with(database, |_| {}).await;
    let listed = server.gpu_stats().list_gpus(pb::ListGpusRequest {}).await.unwrap();
    let listed = listed.into_inner().gpus;
    let uuids: Vec<_> = listed.iter().map(|gpu| gpu.uuid.as_str()).collect();
    assert_eq!(uuids, ["GPU-1", "A-mig", "GPU-2", "GPU-3"]);
    assert!(listed.iter().all(|gpu| gpu.first_seen_at.is_some() && gpu.last_seen_at.is_some()));
    server.stop().await;
}

#[on_both]
async fn samples_are_listed_newest_first_and_no_page_skips_or_repeats_one(backend: Backend) {
    let database = TestDatabase::migrated(backend).await;
    let now = watchpost::entity::now();
    // Samples of several GPUs are often of the same time.
    let rows: Vec<_> = (0..11_usize)
        .map(|at| {
            let ago = TimeDelta::seconds(i64::try_from(at / 4).unwrap());
            row(["GPU-0", "GPU-1", "GPU-2"][at % 3], ["a", "b"][at % 2], now - ago)
        })
        .collect();
    insert(&database, &rows).await;
    let server = TestServer::start_with(database, |_| {}).await;
    let list = async |page_size, page_token: &str, filter: &pb::GpuStatsFilter| {
        let (page_token, filter) = (page_token.to_string(), Some(filter.clone()));
        let request = pb::ListGpuStatsRequest { page_size, page_token, filter };
        Ok::<_, Status>(server.gpu_stats().list_gpu_stats(request).await?.into_inner())
    };
    let pages = async |filter: pb::GpuStatsFilter| {
        let (mut all, mut token) = (Vec::new(), String::new());
        loop {
            let page = list(2, &token, &filter).await.unwrap();
            all.extend(page.gpu_stats.iter().map(|stats| (stats.recorded_at.unwrap().seconds, stats.id.unwrap())));
            if page.next_page_token.is_empty() {
                return all;
            }
            token = page.next_page_token;
        }
    };
    let all = pages(pb::GpuStatsFilter::default()).await;
    let mut sorted = all.clone();
    sorted.sort_unstable();
    sorted.dedup();
    sorted.reverse();
    assert_eq!((all.len(), all), (11, sorted));

    let gpu_uuids = vec!["GPU-0".into(), "GPU-2".into()];
    let some = pb::GpuStatsFilter { gpu_uuids, host: "a".into(), ..Default::default() };
    assert_eq!(pages(some).await.len(), 4);
    let (start, end) = (Some(proto(now - TimeDelta::seconds(1))), Some(proto(now)));
    let recorded_at = Some(pb::TimeRange { start, end });
    assert_eq!(pages(pb::GpuStatsFilter { recorded_at, ..Default::default() }).await.len(), 4);

    let page = list(2, "", &pb::GpuStatsFilter::default()).await.unwrap();
    let other = pb::GpuStatsFilter { host: "a".into(), ..Default::default() };
    let status = list(2, &page.next_page_token, &other).await.unwrap_err();
    assert_eq!((status.code(), &*field(&status)), (Code::InvalidArgument, "page_token"));
    let recorded_at = Some(pb::TimeRange { start: end, end: start });
    let backwards = pb::GpuStatsFilter { recorded_at, ..Default::default() };
    let status = list(2, "", &backwards).await.unwrap_err();
    assert_eq!(field(&status), "filter.recorded_at.end");
    server.stop().await;
}

#[tokio::test]
async fn a_server_without_nvml_serves_all_but_live_stats() {
    let server = TestServer::start(Backend::Sqlite).await;
    let health = async |service: &str| {
        let request = HealthCheckRequest { service: service.into() };
        let mut health = HealthClient::new(server.channel.clone());
        health.check(request).await.unwrap().into_inner().status()
    };
    assert_eq!(health("watchpost.v1.GpuStatsService").await, ServingStatus::NotServing);
    assert_eq!(health("watchpost.v1.AlertService").await, ServingStatus::Serving);
    let listed = server.gpu_stats().list_gpus(pb::ListGpusRequest {}).await.unwrap().into_inner();
    assert!(listed.gpus.is_empty());
    server.stop().await;
}

#[tokio::test]
async fn a_server_with_gpus_says_that_it_serves_them() {
    let fake = FakeNvml::new(&[Card::geforce("GPU-0")]);
    let server = serve(TestDatabase::migrated(Backend::Sqlite).await, &fake).await;
    let request = HealthCheckRequest { service: "watchpost.v1.GpuStatsService".into() };
    let mut health = HealthClient::new(server.channel.clone());
    let mut told = health.watch(request).await.unwrap().into_inner();
    let serving = async { while told.message().await.unwrap().unwrap().status() != ServingStatus::Serving {} };
    timeout(PATIENCE, serving).await.unwrap();
    server.stop().await;
}

/// A server with these GPUs.
async fn serve(database: TestDatabase, fake: &FakeNvml) -> TestServer {
    let library = fake.library();
    TestServer::start_with(database, |settings| {
        settings.nvml_library = Some(library);
        settings.gpu_interval = Duration::from_millis(100);
    })
    .await
}

/// The samples of a GPU, newest first.
async fn stored(db: &DatabaseConnection, uuid: &str) -> Vec<gpu_stats::Model> {
    let of = gpu_stats::Entity::find().filter(gpu_stats::COLUMN.gpu_uuid.eq(uuid));
    of.order_by_desc(gpu_stats::Column::Id).all(db).await.unwrap()
}

/// A sample as another program might write it.
fn row(uuid: &str, host: &str, at: DateTime<Utc>) -> gpu_stats::ActiveModel {
    gpu_stats::ActiveModel {
        recorded_at: Set(at),
        gpu_uuid: Set(Some(uuid.into())),
        host: Set(Some(host.into())),
        gpu_index: Set(Some(0)),
        gpu_utilization: Set(Some(1.5)),
        ..Default::default()
    }
}

async fn insert(database: &TestDatabase, rows: &[gpu_stats::ActiveModel]) {
    let db = database.connect().await;
    let inserted = gpu_stats::Entity::insert_many(rows.to_vec()).exec_without_returning(&db).await;
    inserted.unwrap();
    db.close().await.unwrap();
}

fn gpu(uuid: &str, host: &str, index: i32) -> gpus::ActiveModel {
    gpus::ActiveModel {
        uuid: Set(uuid.into()),
        host: Set(host.into()),
        gpu_index: Set(Some(index)),
        ..Default::default()
    }
}

async fn insert_gpus<const N: usize>(database: &TestDatabase, rows: [gpus::ActiveModel; N]) {
    let db = database.connect().await;
    // Rows of several shapes: one by one.
    for row in rows {
        gpus::Entity::insert(row).exec_without_returning(&db).await.unwrap();
    }
    db.close().await.unwrap();
}

fn proto(time: DateTime<Utc>) -> prost_types::Timestamp {
    watchpost::rpc::time::to_proto(time)
}

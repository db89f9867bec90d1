//! One GPU that two claimants tell of: the second is refused, on this process and on others.

use chrono::TimeDelta;
use sea_orm::{ConnectionTrait, DatabaseConnection, EntityTrait, PaginatorTrait, QueryFilter, sea_query::Expr};
use tonic::{Code, Status};
use tonic_types::StatusExt;
use watchpost::{
    entity::{gpu as gpus, gpu_claim, gpu_stats, now},
    rpc::time,
};

use super::{
    agent::{agent, stop},
    report::Reporter,
    *,
};
use crate::support::{self, TestServer, eventually, field, reason};

/// A batch of one sample of each GPU.
fn batch((reporter_id, host): (&str, &str), sequence: i64, uuids: &[&str]) -> pb::RecordGpuStatsRequest {
    let sample = |uuid: &&str| pb::GpuStats {
        recorded_at: Some(time::to_proto(now())),
        gpu_uuid: Some((*uuid).into()),
        temperature: Some(50.0),
        ..Default::default()
    };
    pb::RecordGpuStatsRequest {
        reporter_id: reporter_id.into(),
        host: host.into(),
        sequence,
        gpu_stats: uuids.iter().map(sample).collect(),
        ..Default::default()
    }
}

/// The reply to a batch, on a stream of its own.
async fn report(
    server: &TestServer,
    claimant: (&str, &str),
    sequence: i64,
    uuids: &[&str],
) -> Result<(i64, bool), Status> {
    let batch = batch(claimant, sequence, uuids);
    Reporter::open(server).await.report(batch).await
}

/// Checks that this is refused since that host has the GPU.
#[track_caller]
fn refused<T: std::fmt::Debug>(reply: Result<T, Status>, name: &str, uuid: &str, host: &str) {
    let status = reply.expect_err(name);
    assert_eq!(
        (status.code(), &*reason(&status), &*field(&status)),
        (Code::FailedPrecondition, "GPU_CLAIMED", name),
        "{status:?}"
    );
    assert!(status.message().contains(host), "{}", status.message());
    let details = status.get_error_details();
    let metadata = &details.error_info().unwrap().metadata;
    assert_eq!((&*metadata["gpu_uuid"], &*metadata["host"]), (uuid, host));
}

/// Has the claim of a GPU be silent for so long.
async fn silent(db: &DatabaseConnection, uuid: &str, seconds: i64) {
    let claimed_at = now() - TimeDelta::seconds(seconds);
    let update = gpu_claim::Entity::update_many()
        .col_expr(gpu_claim::Column::ClaimedAt, Expr::value(claimed_at))
        .filter(gpu_claim::COLUMN.gpu_uuid.eq(uuid));
    assert_eq!(update.exec(db).await.unwrap().rows_affected, 1);
}

async fn rows(db: &DatabaseConnection) -> u64 {
    gpu_stats::Entity::find().count(db).await.unwrap()
}

#[on_both]
async fn a_gpu_that_another_host_reports_is_refused(backend: Backend) {
    let server = TestServer::start(backend).await;
    let db = server.database.connect().await;
    let (shed, attic) = (("shed-1", "shed"), ("attic-1", "attic"));
    assert_eq!(report(&server, shed, 1, &["GPU-a"]).await.unwrap(), (1, false));
    let both = report(&server, attic, 1, &["GPU-b", "GPU-a"]).await;
    refused(both, "gpu_stats[1].gpu_uuid", "GPU-a", "shed");
    // Nothing of the batch is stored, nor of the claim to the other GPU.
    assert_eq!(rows(&db).await, 1);
    assert_eq!(gpu_claim::Entity::find().count(&db).await.unwrap(), 1);
    let mut conditions = batch(attic, 1, &[]);
    conditions.gpu_conditions =
        vec![pb::GpuCondition { gpu_uuid: "GPU-a".into(), state: pb::GpuState::Lost.into(), memory_pressure: None }];
    let condition = Reporter::open(&server).await.report(conditions).await;
    refused(condition, "gpu_conditions[0].gpu_uuid", "GPU-a", "shed");
    assert_eq!(report(&server, attic, 1, &["GPU-b"]).await.unwrap(), (1, false));
    assert_eq!(report(&server, shed, 2, &["GPU-a"]).await.unwrap(), (2, false));

    // It is kept for three minutes without a word, and not longer.
    silent(&db, "GPU-a", 150).await;
    refused(report(&server, attic, 2, &["GPU-a"]).await, "gpu_stats[0].gpu_uuid", "GPU-a", "shed");
    silent(&db, "GPU-a", 181).await;
    assert_eq!(report(&server, attic, 2, &["GPU-a"]).await.unwrap(), (2, false));
    refused(report(&server, shed, 3, &["GPU-a"]).await, "gpu_stats[0].gpu_uuid", "GPU-a", "attic");
    let gpu = gpus::Entity::find_by_id("GPU-a").one(&db).await.unwrap().unwrap();
    assert_eq!(gpu.host, "attic");
    // A clock that was ahead does not prolong it.
    silent(&db, "GPU-a", -3_600).await;
    assert_eq!(report(&server, shed, 3, &["GPU-a"]).await.unwrap(), (3, false));
    db.close().await.unwrap();
    server.stop().await;
}

#[on_both]
async fn what_is_said_renews_a_claim(backend: Backend) {
    let server = TestServer::start(backend).await;
    let db = server.database.connect().await;
    let (shed, attic) = (("shed-1", "shed"), ("attic-1", "attic"));
    report(&server, shed, 1, &["GPU-a"]).await.unwrap();
    silent(&db, "GPU-a", 150).await;
    report(&server, shed, 2, &["GPU-a"]).await.unwrap();
    let claim = gpu_claim::Entity::find_by_id("GPU-a").one(&db).await.unwrap().unwrap();
    assert!(now() - claim.claimed_at < TimeDelta::seconds(100));
    refused(report(&server, attic, 1, &["GPU-a"]).await, "gpu_stats[0].gpu_uuid", "GPU-a", "shed");
    db.close().await.unwrap();
    server.stop().await;
}

#[on_both]
async fn an_agent_that_starts_anew_takes_its_gpus_over(backend: Backend) {
    let server = TestServer::start(backend).await;
    let (old, new) = (("shed-1", "shed"), ("shed-2", "shed"));
    report(&server, old, 1, &["GPU-a"]).await.unwrap();
    assert_eq!(report(&server, new, 1, &["GPU-a"]).await.unwrap(), (1, false));
    // If both run, samples are not stored twice.
    refused(report(&server, old, 2, &["GPU-a"]).await, "gpu_stats[0].gpu_uuid", "GPU-a", "shed");
    assert_eq!(report(&server, new, 2, &["GPU-a"]).await.unwrap(), (2, false));
    server.stop().await;
}

#[on_both]
async fn of_an_agent_and_a_sampler_the_first_has_the_gpu(backend: Backend) {
    let fake = FakeNvml::new(&[Card::geforce("GPU-a")]);
    let rig = Rig::on(TestDatabase::migrated(backend).await, &fake, INTERVAL).await;
    rig.next("GPU-a").await;
    // What waits is stored at the end, and claimed with it.
    let server = TestServer::start_with(rig.stop().await, |_| {}).await;
    let shed = ("shed-1", "shed");
    refused(report(&server, shed, 1, &["GPU-a"]).await, "gpu_stats[0].gpu_uuid", "GPU-a", "camera-box");
    // Nor an agent of the same host.
    let here = ("here-1", "camera-box");
    refused(report(&server, here, 1, &["GPU-a"]).await, "gpu_stats[0].gpu_uuid", "GPU-a", "camera-box");
    let db = server.database.connect().await;
    silent(&db, "GPU-a", 181).await;
    assert_eq!(report(&server, shed, 1, &["GPU-a"]).await.unwrap(), (1, false));
    let database = server.stop().await;

    // Now the agent is the first.
    let before = rows(&db).await;
    let rig = Rig::on(database, &fake, INTERVAL).await;
    rig.readings(|all| !all.is_empty()).await;
    let is_refused = async || rig.live.reading("GPU-a").is_none() && fake.calls("GPU-a", "utilization") > 0;
    eventually("the samples of the sampler are refused", is_refused).await;
    assert_eq!(rig.live.condition("GPU-a"), None);
    assert_eq!(rows(&db).await, before);
    silent(&db, "GPU-a", 181).await;
    assert!(rig.next("GPU-a").await.temperature.is_some());
    let _database = rig.stop().await;
    assert!(rows(&db).await > before);
    db.close().await.unwrap();
}

#[on_both]
async fn an_agent_reports_the_gpus_that_no_other_host_has(backend: Backend) {
    let server = TestServer::start(backend).await;
    let db = server.database.connect().await;
    report(&server, ("attic-1", "attic"), 1, &["GPU-0"]).await.unwrap();
    let fake = FakeNvml::new(&[Card::geforce("GPU-0"), Card::h200("GPU-1")]);
    let mut agent = agent(&fake, &format!("http://{}", server.address()), &[]);
    agent.says("another host reports this GPU").await;
    let told = async || gpus::Entity::find_by_id("GPU-1").one(&db).await.unwrap().is_some();
    eventually("the other GPU is reported", told).await;
    let gpu = gpus::Entity::find_by_id("GPU-0").one(&db).await.unwrap().unwrap();
    assert_eq!(gpu.host, "attic");
    stop(agent).await;
    db.close().await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_claim_holds_between_processes() {
    let one = TestServer::start(Backend::Postgres).await;
    let two = support::start(one.database.url(), |_| {}).await;
    let channel = support::connect(&format!("http://{}", two.address)).await;
    let other = async |batch: pb::RecordGpuStatsRequest| {
        let mut client = pb::gpu_stats_service_client::GpuStatsServiceClient::new(channel.clone());
        let answers = client.record_gpu_stats(tokio_stream::once(batch)).await?;
        let answer = answers.into_inner().message().await?;
        Ok::<_, Status>(answer.expect("an answer").sequence)
    };
    let (shed, attic) = (("shed-1", "shed"), ("attic-1", "attic"));
    report(&one, shed, 1, &["GPU-a"]).await.unwrap();
    let reply = other(batch(attic, 1, &["GPU-a"])).await;
    refused(reply, "gpu_stats[0].gpu_uuid", "GPU-a", "shed");

    // Of two that come at the same time, one gets it.
    for number in 0..10 {
        let uuid = format!("GPU-{number}");
        let uuids = [uuid.as_str()];
        let (first, second) =
            tokio::join!(report(&one, shed, number + 2, &uuids), other(batch(attic, number + 1, &uuids)));
        assert_ne!(first.is_ok(), second.is_ok(), "{first:?} {second:?}");
        if first.is_ok() {
            refused(second, "gpu_stats[0].gpu_uuid", &uuid, "shed");
        } else {
            refused(first, "gpu_stats[0].gpu_uuid", &uuid, "attic");
        }
    }
    let db = one.database.connect().await;
    let stored = "SELECT 1 FROM gpu_stats GROUP BY gpu_uuid HAVING count(*) > 1";
    let statement = sea_orm::Statement::from_string(db.get_database_backend(), stored);
    assert!(db.query_all_raw(statement).await.unwrap().is_empty());
    db.close().await.unwrap();
    assert!(two.stop().await);
    one.stop().await;
}

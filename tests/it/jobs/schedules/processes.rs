//! Several processes that share schedules, processes that are killed, and a database that goes away.

use std::time::Duration;

use chrono::TimeDelta;
use tokio::time::sleep;
use tonic::transport::Channel;
use watchpost::pb::{self, MissedPolicy, job_schedule_service_client::JobScheduleServiceClient};

use super::{cron, jobs, ticks};
use crate::support::{
    self, connect,
    database::{Backend, Cluster, TestDatabase, on_both},
    eventually_some,
    process::Process,
};

/// How many schedules tick at the same time.
const SCHEDULES: usize = 5;

/// How often a process is killed.
const KILLS: usize = 3;

async fn start(database: &TestDatabase) -> Process {
    Process::start(database.url(), "127.0.0.1:0").await
}

async fn create(channel: &Channel, name: &str) -> String {
    let schedule = pb::JobSchedule { missed_policy: MissedPolicy::RunAll.into(), ..cron(name, "* * * * * *") };
    let job_schedule = Some(schedule);
    let request = pb::CreateJobScheduleRequest { job_schedule };
    let mut schedules = JobScheduleServiceClient::new(channel.clone());
    schedules.create_job_schedule(request).await.unwrap().into_inner().id
}

/// Waits until a schedule has ticked so many seconds after `first`. Calls may fail meanwhile.
async fn ticked(channel: &Channel, id: &str, after: i64) -> i64 {
    let mut schedules = JobScheduleServiceClient::new(channel.clone());
    eventually_some("the schedule ticks", async || {
        let request = pb::GetJobScheduleRequest { id: id.into() };
        let schedule = schedules.get_job_schedule(request).await.ok()?;
        let last = schedule.into_inner().last_tick_at?.seconds;
        (last > after).then_some(last)
    })
    .await
}

#[on_both]
async fn each_tick_has_one_job_however_many_processes_there_are_and_are_killed(backend: Backend) {
    let database = TestDatabase::migrated(backend).await;
    // SQLite is for one.
    let processes = if backend == Backend::Postgres { 3 } else { 1 };
    let mut running = Vec::new();
    for _ in 0..processes {
        let process = start(&database).await;
        process.serving().await;
        running.push(process);
    }
    let mut channel = connect(&running[0].address).await;
    let mut ids = Vec::new();
    for number in 0..SCHEDULES {
        ids.push(create(&channel, &format!("s{number}")).await);
    }
    let mut last = 0;
    for kill in 0..KILLS {
        last = ticked(&channel, &ids[0], last).await;
        last = ticked(&channel, &ids[0], last).await;
        running.remove(0).kill().await;
        if kill % 2 == 0 || processes == 1 {
            let process = start(&database).await;
            process.serving().await;
            running.push(process);
        }
        channel = connect(&running[0].address).await;
    }
    for id in &ids {
        ticked(&channel, id, last + 2).await;
    }
    for process in running {
        process.kill().await;
    }
    for id in &ids {
        let ticks = ticks(&jobs(&database, id).await);
        assert!(ticks.len() > 2 * KILLS, "{ticks:?}");
        let apart = |pair: &[chrono::DateTime<chrono::Utc>]| pair[1] - pair[0];
        assert!(ticks.windows(2).all(|pair| apart(pair) == TimeDelta::seconds(1)), "{ticks:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_goes_away_and_comes_back_costs_no_tick() {
    let cluster = Cluster::start().await;
    let server = support::start(&cluster.url("postgres"), |_| {}).await;
    let channel = connect(&format!("http://{}", server.address)).await;
    let id = create(&channel, "s").await;
    let first = ticked(&channel, &id, 0).await;
    cluster.stop().await;
    // At least one tick falls into the outage.
    sleep(Duration::from_millis(1_100)).await;
    cluster.restart().await;
    let last = ticked(&channel, &id, first + 3).await;
    let mut schedules = JobScheduleServiceClient::new(channel.clone());
    let request = pb::GetJobScheduleRequest { id: id.clone() };
    let schedule = schedules.get_job_schedule(request).await.unwrap().into_inner();
    assert_eq!(schedule.missed_ticks, 0);
    let db = sea_orm::Database::connect(cluster.url("postgres")).await.unwrap();
    let made: Vec<_> = {
        use sea_orm::{EntityTrait, QueryOrder};
        use watchpost::entity::job;
        let jobs = job::Entity::find().order_by_asc(job::Column::TickAt).all(&db).await.unwrap();
        ticks(&jobs)
    };
    db.close().await.unwrap();
    assert!(made.iter().any(|tick| tick.timestamp() == first));
    assert!(made.last().unwrap().timestamp() >= last);
    assert!(made.windows(2).all(|pair| pair[1] - pair[0] == TimeDelta::seconds(1)), "{made:?}");
    drop((schedules, channel));
    assert!(server.stop().await);
}

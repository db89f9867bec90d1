//! Clocks that are wrong: what decides is the clock of the database, and nothing that was stored reaches further into the
//! future than its own length.

use std::{ffi::OsString, path::Path};

use chrono::{TimeDelta, Utc};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, sea_query::Expr};
use tonic::transport::Channel;
use uuid::Uuid;
use watchpost::{
    entity::job,
    pb::{
        self, SilenceStatus, alert_rule_service_client::AlertRuleServiceClient,
        delivery_service_client::DeliveryServiceClient, event_service_client::EventServiceClient,
        job_schedule_service_client::JobScheduleServiceClient, job_service_client::JobServiceClient,
        job_worker_service_client::JobWorkerServiceClient,
        notification_channel_service_client::NotificationChannelServiceClient,
        silence_service_client::SilenceServiceClient,
    },
};

use crate::{
    clock_shim::WrongClock,
    metrics::get,
    notifications::webhook,
    support::{
        always,
        calls::{at, create_camera, seconds},
        database::{Backend, Cluster, on_both},
        eventually, ingest,
        process::Process,
        quiet,
        receiver::{Answer, Receiver},
    },
};

const HOUR: i64 = 3_600;

/// A database whose clock is wrong: that of the process on SQLite, that of the server on PostgreSQL.
struct World {
    clock: WrongClock,
    cluster: Option<Cluster>,
    folder: tempfile::TempDir,
}

impl World {
    async fn ahead(backend: Backend, seconds: i64) -> Self {
        let clock = WrongClock::ahead(seconds);
        let cluster = match backend {
            Backend::Sqlite => None,
            Backend::Postgres => Some(Cluster::start_with(clock.variables()).await),
        };
        Self { clock, cluster, folder: tempfile::tempdir().unwrap() }
    }

    fn url(&self) -> String {
        match &self.cluster {
            None => format!("sqlite://{}", self.folder.path().join("watchpost.db").display()),
            Some(cluster) => cluster.url("postgres"),
        }
    }

    async fn start(&self, args: &[&str]) -> (Process, Channel) {
        let variables = if self.cluster.is_some() { vec![] } else { self.clock.variables().to_vec() };
        start(&self.url(), self.folder.path(), &variables, args).await
    }
}

async fn start(url: &str, folder: &Path, variables: &[(&'static str, OsString)], args: &[&str]) -> (Process, Channel) {
    let data = folder.to_str().unwrap();
    let fixed = ["--data-dir", data, "--notification-networks", "127.0.0.0/8", "--notification-retry", "1s"];
    let process = Process::start_with(url, "127.0.0.1:0", variables, &[&fixed[..], args].concat()).await;
    let channel = process.serving().await;
    (process, channel)
}

async fn stop(process: Process) {
    process.signal("TERM").await;
    process.ended().await;
}

async fn camera_and_rule(channel: &Channel, rule: pb::AlertRule) {
    create_camera(channel, "door").await;
    let request = pb::CreateAlertRuleRequest { alert_rule: Some(rule) };
    AlertRuleServiceClient::new(channel.clone()).create_alert_rule(request).await.unwrap();
}

/// The alerts that an event raises.
async fn raised(channel: &Channel) -> Vec<pb::Alert> {
    let mut events = EventServiceClient::new(channel.clone());
    let ingested = events.ingest_event(ingest("door", vec![])).await;
    ingested.unwrap().into_inner().alerts
}

async fn delivery(channel: &Channel) -> pb::Delivery {
    let mut deliveries = DeliveryServiceClient::new(channel.clone());
    let listed = deliveries.list_deliveries(pb::ListDeliveriesRequest::default()).await;
    // The oldest.
    listed.unwrap().into_inner().deliveries.pop().unwrap()
}

async fn claims(channel: &Channel) -> bool {
    let request = pb::ClaimJobsRequest { worker_id: "w".into(), max_jobs: 1, ..Default::default() };
    let mut workers = JobWorkerServiceClient::new(channel.clone());
    !workers.claim_jobs(request).await.unwrap().into_inner().jobs.is_empty()
}

async fn create_job(channel: &Channel) -> pb::Job {
    let request = pb::CreateJobRequest {
        job: Some(pb::Job { job_type: "report".into(), ..Default::default() }),
        ..Default::default()
    };
    let created = JobServiceClient::new(channel.clone()).create_job(request).await;
    created.unwrap().into_inner()
}

/// Moves the creation and the end of a job into the past, while no server runs.
async fn finished_days_ago(url: &str, finished: &pb::Job, days: i64) {
    let db = sea_orm::Database::connect(url).await.unwrap();
    let id: Uuid = finished.id.parse().unwrap();
    let time = Utc::now() - TimeDelta::days(days);
    let update = job::Entity::update_many()
        .col_expr(job::Column::CreatedAt, Expr::value(time))
        .col_expr(job::Column::CompletedAt, Expr::value(time))
        .filter(job::Column::Id.eq(id));
    assert_eq!(update.exec(&db).await.unwrap().rows_affected, 1);
    db.close().await.unwrap();
}

#[on_both]
async fn what_a_clock_that_was_ahead_has_stored_lasts_no_longer_than_its_own_length(backend: Backend) {
    let world = World::ahead(backend, HOUR).await;
    let (process, channel) = world.start(&[]).await;
    let receiver = Receiver::start().await;
    receiver.answer(Answer::Status(429, vec![]));
    let request = pb::CreateNotificationChannelRequest { notification_channel: Some(webhook("ops", receiver.url())) };
    NotificationChannelServiceClient::new(channel.clone()).create_notification_channel(request).await.unwrap();
    let rule = pb::AlertRule {
        cooldown: seconds(2),
        flap_threshold: Some(100),
        flap_window: seconds(60),
        channels: vec!["ops".into()],
        ..always("everything")
    };
    camera_and_rule(&channel, rule).await;
    assert_eq!(raised(&channel).await.len(), 1);
    eventually("it is tried", async || delivery(&channel).await.last_error.is_some()).await;
    create_job(&channel).await;
    let schedule = pb::JobSchedule {
        name: "every minute".into(),
        cron: "* * * * *".into(),
        job_type: "tick".into(),
        queue_name: "ticks".into(),
        ..Default::default()
    };
    let request = pb::CreateJobScheduleRequest { job_schedule: Some(schedule) };
    let mut schedules = JobScheduleServiceClient::new(channel.clone());
    let schedule = schedules.create_job_schedule(request).await.unwrap().into_inner();
    let ahead = schedule.next_tick_at.unwrap().seconds - Utc::now().timestamp();
    assert!((HOUR - 60..HOUR + 120).contains(&ahead), "{ahead}");
    create_camera(&channel, "window").await;
    let silence = pb::Silence { ends_at: at(Utc::now().timestamp() + 10 * HOUR), ..quiet("window") };
    let request = pb::CreateSilenceRequest { silence: Some(silence) };
    let mut silences = SilenceServiceClient::new(channel.clone());
    let silence = silences.create_silence(request).await.unwrap().into_inner();

    world.clock.step_to(0);
    receiver.answer(Answer::Status(204, vec![]));
    eventually("the job is claimed", async || claims(&channel).await).await;
    eventually("the cooldown ends", async || !raised(&channel).await.is_empty()).await;
    eventually("it is delivered", async || delivery(&channel).await.delivered_at.is_some()).await;
    let next_tick = async || {
        let request = pb::GetJobScheduleRequest { id: schedule.id.clone() };
        let schedule = schedules.clone().get_job_schedule(request).await.unwrap().into_inner();
        schedule.next_tick_at.unwrap().seconds - Utc::now().timestamp()
    };
    eventually("the schedule ticks", async || next_tick().await <= 60).await;
    let request = pb::GetSilenceRequest { id: silence.id };
    let silence = silences.get_silence(request).await.unwrap().into_inner();
    assert_eq!(silence.status(), SilenceStatus::Active);
    stop(process).await;
}

#[on_both]
async fn retention_does_not_delete_by_a_clock_that_is_far_ahead(backend: Backend) {
    let world = World::ahead(backend, 0).await;
    let (process, channel) = world.start(&[]).await;
    let (job, old_job) = (create_job(&channel).await, create_job(&channel).await);
    for job in [&job, &old_job] {
        let request = pb::CancelJobRequest { id: job.id.clone(), ..Default::default() };
        JobServiceClient::new(channel.clone()).cancel_job(request).await.unwrap();
    }
    let args = ["--job-retention-cancelled", "2d"];
    let there = async |channel: &Channel, job: &pb::Job| {
        let request = pb::GetJobRequest { id: job.id.clone() };
        JobServiceClient::new(channel.clone()).get_job(request).await.is_ok()
    };
    stop(process).await;
    finished_days_ago(&world.url(), &old_job, 10).await;
    world.clock.step_to(400 * 24 * HOUR);
    // Retention deletes when the server starts.
    let (process, channel) = world.start(&args).await;
    eventually("the old job is deleted", async || !there(&channel, &old_job).await).await;
    assert!(there(&channel, &job).await);
    stop(process).await;
    world.clock.step_to(0);
    let (process, channel) = world.start(&args).await;
    assert!(there(&channel, &job).await);
    stop(process).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_whose_clock_is_wrong_goes_by_the_database_and_says_so() {
    let cluster = Cluster::start().await;
    let url = cluster.url("postgres");
    let folder = tempfile::tempdir().unwrap();
    let clock = WrongClock::ahead(HOUR);
    let metrics = ["--metrics-listen", "127.0.0.1:0"];
    let (right, right_channel) = start(&url, folder.path(), &[], &metrics).await;
    let (mut wrong, wrong_channel) = start(&url, folder.path(), &clock.variables(), &metrics).await;
    let address = wrong.metrics_address().await.parse().unwrap();
    wrong.says("s ahead of that of the database").await;
    let (_, details) = get(address, "/readyz?verbose").await;
    assert!(details.contains("clock: the clock of this host is 3"), "{details}");
    let (_, text) = get(address, "/metrics").await;
    let skew = text.lines().find_map(|line| line.strip_prefix("watchpost_clock_skew_seconds "));
    let skew: f64 = skew.unwrap().parse().unwrap();
    assert!((3_599.0..3_601.0).contains(&skew), "{skew}");

    let rule = pb::AlertRule { cooldown: seconds(2), ..always("everything") };
    camera_and_rule(&wrong_channel, rule).await;
    let alert = raised(&wrong_channel).await.remove(0);
    let ahead = alert.created_at.unwrap().seconds - Utc::now().timestamp();
    assert!((-5..=5).contains(&ahead), "{ahead}");
    eventually("the rule is known", async || {
        let request = pb::ListAlertRulesRequest::default();
        let mut rules = AlertRuleServiceClient::new(right_channel.clone());
        !rules.list_alert_rules(request).await.unwrap().into_inner().alert_rules.is_empty()
    })
    .await;
    eventually("the cooldown ends", async || !raised(&right_channel).await.is_empty()).await;
    create_job(&wrong_channel).await;
    eventually("the job is claimed", async || claims(&right_channel).await).await;

    clock.step_to(0);
    wrong.says("that of the database again").await;
    stop(wrong).await;
    stop(right).await;
}

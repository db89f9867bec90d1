//! A server whose tables are filled through the API, so that every column has a value that its service wrote.

use std::time::Duration;

use serde_json::json;
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use watchpost::pb::{self, Severity, notification_channel::Kind};

use super::read::{queue_client, schedule_client, type_client};
use crate::support::{
    PATIENCE, TestServer,
    calls::{at, execute, mask, object, query, strings},
    database::{Backend, TestDatabase},
    detection, in_seconds, quiet,
    receiver::{Answer, Receiver},
};

const SECRET: &str = "whsec_AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB";

/// A server whose tables are filled, and that does nothing by itself any more.
pub async fn server(backend: Backend) -> TestServer {
    let server = started(backend).await;
    cameras(&server).await;
    jobs(&server).await;
    alerts(&server).await;
    gpus(&server).await;
    server
}

/// A server that may send notifications to loopback.
pub async fn started(backend: Backend) -> TestServer {
    let database = TestDatabase::migrated(backend).await;
    TestServer::start_with(database, |settings| {
        settings.notification_networks = vec!["127.0.0.0/8".parse().unwrap()];
        settings.notification_retry = Duration::from_hours(1);
    })
    .await
}

/// Waits until a query gives a row.
pub async fn until(server: &TestServer, sql: &str) {
    let waiting = async {
        while query(server, sql).await.is_empty() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = timeout(PATIENCE, waiting).await;
    waited.unwrap_or_else(|_| panic!("no row: {sql}"));
}

#[expect(clippy::unnecessary_wraps, reason = "a field of a message")]
pub fn span(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

async fn cameras(server: &TestServer) {
    for id in ["porch", "gate", "gone"] {
        let camera = pb::Camera {
            id: id.into(),
            name: format!("The {id}"),
            folder_path: format!("/{id}"),
            status: pb::CameraStatus::Offline.into(),
            ..Default::default()
        };
        let request = pb::CreateCameraRequest { camera: Some(camera) };
        server.cameras().create_camera(request).await.unwrap();
    }
    let request = pb::DeleteCameraRequest { id: "gone".into() };
    server.cameras().delete_camera(request).await.unwrap();
    server.zone(zone("steps")).await;
}

/// A zone with everything that there is.
pub fn zone(id: &str) -> pb::CameraZone {
    let corners = [(0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75)];
    pb::CameraZone {
        id: id.into(),
        camera_id: "porch".into(),
        name: format!("The {id}"),
        zone_type: pb::CameraZoneType::EntryPoint.into(),
        coordinates: corners.map(|(x, y)| pb::Point { x, y }).into(),
        shape: pb::CameraZoneShape::Polygon.into(),
        color: Some("#A0B0C0".into()),
        enabled: Some(false),
        priority: 3,
        anchor: pb::CameraZoneAnchor::Overlap.into(),
        min_overlap: Some(0.75),
        created_at: None,
        updated_at: None,
        version_id: 0,
    }
}

/// A rule with everything that there is, which never fires.
pub fn rule(name: &str) -> pb::AlertRule {
    let rule = pb::AlertRule {
        name: name.into(),
        description: Some("Somebody at night.".into()),
        enabled: Some(false),
        severity: Severity::High.into(),
        risk_threshold: Some(60),
        object_types: strings(&["person"]),
        camera_ids: strings(&["porch"]),
        zone_ids: strings(&["steps"]),
        min_confidence: Some(0.5),
        schedule: Some(schedule()),
        dedup_key_template: Some("{camera_id}".into()),
        channels: strings(&["ops"]),
        flap_threshold: Some(5),
        escalation: vec![escalation(3_600)],
        ..Default::default()
    };
    with_cooldown(rule, 3_600, Some(7_200))
}

/// The lengths of time of a rule: of its cooldown, and of its flap window.
pub fn with_cooldown(rule: pb::AlertRule, cooldown: i32, flap_window: Option<i32>) -> pb::AlertRule {
    pb::AlertRule {
        cooldown: span(cooldown.into()),
        flap_window: flap_window.and_then(|seconds| span(seconds.into())),
        ..rule
    }
}

/// A step that tells the channel `later` after so many seconds.
pub fn escalation(after: i32) -> pb::EscalationStep {
    pb::EscalationStep { after: span(after.into()), channels: strings(&["later"]) }
}

pub fn schedule() -> pb::Schedule {
    pb::Schedule {
        days: vec![pb::DayOfWeek::Sunday.into()],
        start_time: "22:00".into(),
        end_time: "06:00".into(),
        time_zone: "Europe/Berlin".into(),
    }
}

/// A webhook with everything that there is.
pub fn channel(name: &str, url: String) -> pb::NotificationChannel {
    pb::NotificationChannel {
        name: name.into(),
        description: Some("Whoever is on duty.".into()),
        quiet_times: vec![pb::Schedule { start_time: "04:00".into(), end_time: "04:01".into(), ..schedule() }],
        quiet_except: Severity::Medium.into(),
        kind: Some(Kind::Webhook(pb::WebhookChannel {
            url,
            signing_secrets: strings(&[SECRET]),
            headers: [("x-team".into(), "red".into())].into(),
            timeout: span(9),
            ..Default::default()
        })),
        ..Default::default()
    }
}

/// A silence with everything that there is, which is still to begin.
pub fn silence() -> pb::Silence {
    pb::Silence {
        severities: vec![Severity::Critical.into()],
        starts_at: in_seconds(3_600),
        ends_at: in_seconds(7_200),
        ..quiet("porch")
    }
}

/// An event with everything that there is.
fn event() -> pb::Event {
    pb::Event {
        batch_id: "batch-1".into(),
        camera_id: "porch".into(),
        started_at: at(1_772_366_400),
        ended_at: at(1_772_366_430),
        risk_score: Some(80),
        risk_level: Severity::High.into(),
        summary: Some("A person.".into()),
        reasoning: Some("It has legs.".into()),
        llm_prompt: Some("What is it?".into()),
        is_fast_path: true,
        object_types: strings(&["person"]),
        clip_path: Some("/porch/1.mp4".into()),
        snooze_until: in_seconds(3_600),
        ..Default::default()
    }
}

fn full_detection() -> pb::Detection {
    pb::Detection {
        id: 0,
        camera_id: String::new(),
        file_path: "/porch/1.mp4".into(),
        file_type: Some("video/mp4".into()),
        detected_at: at(1_772_366_410),
        object_type: Some("person".into()),
        confidence: Some(0.75),
        bbox_x: Some(10),
        bbox_y: Some(20),
        bbox_width: Some(30),
        bbox_height: Some(40),
        thumbnail_path: Some("/porch/1.jpg".into()),
        media_type: pb::MediaType::Video.into(),
        duration: Some(prost_types::Duration { seconds: 12, nanos: 500_000_000 }),
        video_codec: Some("h264".into()),
        video_width: Some(640),
        video_height: Some(480),
        enrichment_data: object(&json!({"pet": {"breed": "beagle"}})),
        labels: strings(&["suspicious"]),
    }
}

/// Events, rules, silences, channels, and the alerts and deliveries that come of them.
async fn alerts(server: &TestServer) {
    let (receiver, gone) = (Receiver::start().await, Receiver::start().await);
    gone.answer(Answer::Status(410, vec![]));
    server.notification_channel(channel("ops", receiver.url())).await;
    server.notification_channel(channel("gone", gone.url())).await;
    let later = pb::NotificationChannel { enabled: Some(false), ..channel("later", gone.url()) };
    server.notification_channel(later).await;
    let full = server.rule(rule("full")).await;
    let firing = pb::AlertRule {
        name: "firing".into(),
        severity: Severity::High.into(),
        channels: strings(&["ops", "gone"]),
        escalation: vec![escalation(3_600)],
        dedup_key_template: Some("{object_type}".into()),
        ..Default::default()
    };
    let firing = server.rule(with_cooldown(firing, 3_600, None)).await;
    let silence = server.silence(silence()).await;
    updates(server, &full.id, &silence.id).await;
    let rules =
        pb::Silence { rule_ids: vec![firing.id.clone()], severities: vec![Severity::High.into()], ..quiet("gate") };
    server.silence(rules).await;
    let everything = pb::Silence {
        camera_ids: vec![],
        match_all: true,
        starts_at: in_seconds(36_000),
        ends_at: in_seconds(72_000),
        ..quiet("porch")
    };
    server.silence(everything).await;

    // Each answer of the receiver leaves other columns behind.
    let answers = [
        Answer::Status(204, vec![]),
        Answer::Status(400, vec![]),
        Answer::Status(429, vec![("retry-after", "3600".into())]),
    ];
    let mut raised = Vec::new();
    for (answer, kind) in answers.into_iter().zip(["person", "dog", "cat"]) {
        receiver.answer(answer);
        let reply = server.ingest("porch", vec![detection(kind, 0.5)]).await;
        raised.extend(reply.alerts);
        receiver.wait_for(raised.len()).await;
        let attempted = "channel_name = 'ops' AND attempts = 1 AND lease_id IS NULL";
        let count = format!("SELECT count(*) AS n FROM deliveries WHERE {attempted}");
        let all = format!("SELECT 1 FROM ({count}) AS attempted WHERE n = {}", raised.len());
        until(server, &all).await;
    }
    until(server, "SELECT 1 FROM notification_channels WHERE NOT enabled").await;
    until(server, "SELECT 1 FROM notification_channels WHERE throttled_until IS NOT NULL").await;
    let deleted = server.ingest("porch", vec![]).await.event.unwrap().id;
    let request = pb::DeleteEventRequest { id: deleted };
    server.events().delete_event(request).await.unwrap();
    // A repeat, one that is silenced, and one of which everything is known.
    server.ingest("porch", vec![detection("person", 0.5)]).await;
    server.ingest("gate", vec![detection("person", 0.5)]).await;
    let request =
        pb::IngestEventRequest { event: Some(event()), detections: vec![full_detection()], ..Default::default() };
    let event = server.events().ingest_event(request).await.unwrap();
    let id = event.into_inner().event.unwrap().id;
    let request = pb::ReviewEventRequest { id, reviewed: Some(true), notes: Some("The postman.".into()) };
    server.events().review_event(request).await.unwrap();

    let alert = pb::Alert {
        event_id: id,
        severity: Severity::Low.into(),
        dedup_key: "by-hand".into(),
        metadata: object(&json!({"seen": "twice"})),
        ..Default::default()
    };
    let request =
        pb::CreateAlertRequest { alert: Some(alert), actor: "ann".into(), reason: "seen".into(), ..Default::default() };
    server.alerts().create_alert(request).await.unwrap();
    let request = pb::AcknowledgeAlertRequest {
        id: raised[0].id.clone(),
        actor: "ann".into(),
        reason: "known".into(),
        ..Default::default()
    };
    server.alerts().acknowledge_alert(request).await.unwrap();
    let request = pb::DismissAlertRequest { id: raised[0].id.clone(), actor: "bob".into(), ..Default::default() };
    server.alerts().dismiss_alert(request).await.unwrap();
    // Nothing is sent while columns of channels are changed.
    let later = "UPDATE deliveries SET next_attempt_at = '2032-01-02T03:04:05+00:00' WHERE status = 'queued'";
    execute(server, later).await;
}

/// Updates resources, so that they have another version than the first.
async fn updates(server: &TestServer, rule_id: &str, silence_id: &str) {
    let alert_rule =
        pb::AlertRule { id: rule_id.into(), description: Some("Anybody at night.".into()), ..Default::default() };
    let request = pb::UpdateAlertRuleRequest { alert_rule: Some(alert_rule), ..Default::default() };
    server.rules().update_alert_rule(request).await.unwrap();
    let silence = pb::Silence { id: silence_id.into(), reason: "rain".into(), ..Default::default() };
    let request = pb::UpdateSilenceRequest { silence: Some(silence), ..Default::default() };
    server.silences().update_silence(request).await.unwrap();
    let camera_zone = pb::CameraZone { id: "steps".into(), priority: 5, ..Default::default() };
    let request = pb::UpdateCameraZoneRequest { camera_zone: Some(camera_zone), ..Default::default() };
    server.zones().update_camera_zone(request).await.unwrap();
    for description in ["Trains.", "Trains models."] {
        let job_type = pb::JobType { description: Some(description.into()), ..job_type() };
        let request = pb::UpdateJobTypeRequest { job_type: Some(job_type), ..Default::default() };
        type_client(server).update_job_type(request).await.unwrap();
    }
}

/// A request for a job with everything that there is.
pub fn job(key: &str) -> pb::CreateJobRequest {
    let job = pb::Job {
        job_type: "export".into(),
        queue_name: Some("media".into()),
        priority: Some(3),
        payload: object(&json!({"camera": "porch"})),
        scheduled_at: at(1_772_366_400),
        max_attempts: Some(5),
        timeout: span(7_200),
        deadline: span(36_000),
        unique: Some(pb::UniqueJob { key: key.into(), states: vec![], period: span(86_400) }),
        concurrency_key: "porch".into(),
        max_rescues: Some(7),
        retry_policy: Some(pb::RetryPolicy {
            initial_delay: span(3_600),
            max_delay: span(7_200),
            multiplier: Some(1.5),
            jitter: Some(0.25),
        }),
        dead_letter: Some(false),
        ..Default::default()
    };
    pb::CreateJobRequest { job: Some(job), request_id: format!("request {key}") }
}

/// Claims a job of the queue `media`, which must be there or come.
pub async fn claim(server: &TestServer, lease_seconds: i64) -> pb::ClaimedJob {
    let request = pb::ClaimJobsRequest {
        worker_id: "worker-1".into(),
        queue_names: strings(&["media"]),
        max_jobs: 1,
        wait: span(20),
        lease_duration: span(lease_seconds),
        ..Default::default()
    };
    let claimed = server.job_workers().claim_jobs(request).await.unwrap();
    let mut jobs = claimed.into_inner().jobs;
    jobs.pop().expect("a job comes in time")
}

pub async fn progress(server: &TestServer, (job_id, lease_id): (&str, &str)) {
    let request = pb::UpdateJobProgressRequest {
        job_id: job_id.into(),
        lease_id: lease_id.into(),
        progress_percent: Some(31),
        current_step: Some("encoding".into()),
        items_processed: Some(11),
        items_total: Some(33),
    };
    let mut workers = server.job_workers();
    workers.update_job_progress(request).await.unwrap();
}

pub async fn log(server: &TestServer, (job_id, lease_id): (&str, &str)) {
    let line = pb::JobLogLine {
        message: "no space left".into(),
        level: pb::JobLogLevel::Error.into(),
        timestamp: at(1_772_366_400),
        context: object(&json!({"disk": 1})),
    };
    let request =
        pb::AppendJobLogsRequest { job_id: job_id.into(), lease_id: lease_id.into(), lines: vec![line], offset: None };
    server.job_workers().append_job_logs(request).await.unwrap();
}

pub async fn complete(server: &TestServer, (job_id, lease_id): (&str, &str)) {
    let completion =
        pb::JobCompletion { job_id: job_id.into(), lease_id: lease_id.into(), result: object(&json!({"rows": 10})) };
    let request = pb::CompleteJobsRequest { completions: vec![completion] };
    server.job_workers().complete_jobs(request).await.unwrap();
}

pub async fn fail(server: &TestServer, (job_id, lease_id): (&str, &str), retryable: bool) {
    let request = pb::FailJobRequest {
        job_id: job_id.into(),
        lease_id: lease_id.into(),
        error_message: "no space left".into(),
        error_traceback: Some("line 7".into()),
        error_code: Some("ENOSPC".into()),
        retryable: Some(retryable),
        retry_after: None,
    };
    server.job_workers().fail_job(request).await.unwrap();
}

pub async fn cancel(server: &TestServer, id: &str) {
    let request = pb::CancelJobRequest { id: id.into(), actor: "ann".into(), reason: "not needed".into() };
    server.jobs().cancel_job(request).await.unwrap();
}

/// Jobs in every status, with the settings of queues and types, and the jobs of schedules.
async fn jobs(server: &TestServer) {
    settings(server).await;
    // Its lease ends, and the next attempt goes on.
    server.jobs().create_job(job("rescued")).await.unwrap();
    let lost = claim(server, 1).await;
    let claimed = claim(server, 3_600).await;
    assert_eq!(claimed.job.as_ref().unwrap().id, lost.job.as_ref().unwrap().id);
    let lease = |claimed: &pb::ClaimedJob| {
        let id = claimed.job.as_ref().unwrap().id.clone();
        (id, claimed.lease_id.clone())
    };
    let (id, lease_id) = lease(&claimed);
    progress(server, (&id, &lease_id)).await;
    log(server, (&id, &lease_id)).await;
    cancel(server, &id).await;

    for key in ["completed", "retried", "failed"] {
        let mut request = job(key);
        request.job.as_mut().unwrap().dead_letter = Some(true);
        server.jobs().create_job(request).await.unwrap();
        let claimed = claim(server, 3_600).await;
        let (id, lease_id) = lease(&claimed);
        match key {
            "completed" => complete(server, (&id, &lease_id)).await,
            "retried" => fail(server, (&id, &lease_id), true).await,
            _ => fail(server, (&id, &lease_id), false).await,
        }
    }
    schedules(server).await;
}

async fn settings(server: &TestServer) {
    let queue = pb::JobQueue {
        name: "night".into(),
        description: Some("At night.".into()),
        max_running: Some(5),
        max_running_per_key: Some(2),
        ..Default::default()
    };
    let request = pb::UpdateJobQueueRequest { job_queue: Some(queue), ..Default::default() };
    let mut queues = queue_client(server);
    queues.update_job_queue(request).await.unwrap();
    let request =
        pb::PauseJobQueueRequest { name: "night".into(), actor: "ann".into(), reason: "work on the disks".into() };
    queues.pause_job_queue(request).await.unwrap();
}

/// A type with everything that there is.
pub fn job_type() -> pb::JobType {
    pb::JobType {
        name: "train".into(),
        description: Some("Trains models.".into()),
        priority: Some(3),
        max_attempts: Some(9),
        max_rescues: Some(8),
        timeout: span(3_600),
        deadline: span(7_200),
        retry_initial_delay: span(2),
        retry_max_delay: span(20),
        retry_multiplier: Some(1.5),
        retry_jitter: Some(0.5),
        dead_letter: Some(false),
        ..Default::default()
    }
}

/// A schedule with everything that there is.
pub fn job_schedule(name: &str) -> pb::JobSchedule {
    pb::JobSchedule {
        name: name.into(),
        description: Some("Every night.".into()),
        enabled: Some(false),
        cron: "17 3 29 2 *".into(),
        time_zone: "Europe/Berlin".into(),
        missed_policy: pb::MissedPolicy::Skip.into(),
        job_type: "scheduled".into(),
        queue_name: "night".into(),
        priority: Some(3),
        max_attempts: Some(6),
        payload: object(&json!({"days": 30})),
        skip_if_active: true,
        ..Default::default()
    }
}

async fn schedules(server: &TestServer) {
    let mut client = schedule_client(server);
    let mut ids = Vec::new();
    for (name, cron) in [("ticking", "* * * * * *"), ("missed", "17 3 29 2 *")] {
        let schedule = pb::JobSchedule { enabled: Some(true), cron: cron.into(), ..job_schedule(name) };
        let request = pb::CreateJobScheduleRequest { job_schedule: Some(schedule) };
        let created = client.create_job_schedule(request).await.unwrap();
        ids.push(created.into_inner().id);
    }
    let missed = "UPDATE job_schedules SET next_tick_at = '2019-02-28T02:17:00+00:00' WHERE name = 'missed'";
    execute(server, missed).await;
    until(server, "SELECT 1 FROM jobs WHERE tick_at IS NOT NULL").await;
    until(server, "SELECT 1 FROM job_schedules WHERE missed_ticks > 0").await;
    until(server, "SELECT 1 FROM job_schedules WHERE last_job_id IS NOT NULL").await;
    // The other one does not tick soon.
    let schedule = pb::JobSchedule { id: ids[0].clone(), enabled: Some(false), ..Default::default() };
    let request = pb::UpdateJobScheduleRequest {
        job_schedule: Some(schedule),
        update_mask: mask(&["enabled"]),
        expected_version_id: None,
    };
    client.update_job_schedule(request).await.unwrap();
    let later = "UPDATE job_schedules SET next_tick_at = '2032-01-02T03:04:05+00:00' WHERE NOT enabled";
    execute(server, later).await;
}

/// A GPU, a sample with everything that there is, and an event.
async fn gpus(server: &TestServer) {
    let sample = pb::GpuStats {
        id: None,
        recorded_at: in_seconds(-60),
        gpu_name: Some("NVIDIA T4".into()),
        gpu_utilization: Some(41.5),
        memory_used: Some(4_096),
        memory_total: Some(16_384),
        temperature: Some(51.0),
        power_usage: Some(60.5),
        inference_fps: Some(12.5),
        fan_speed: None,
        sm_clock: Some(1_590),
        memory_bandwidth_utilization: Some(22.5),
        pstate: Some(2),
        throttle_reasons: Some(4),
        power_limit: Some(70.0),
        sm_clock_max: Some(1_591),
        compute_processes_count: Some(3),
        pcie_replay_counter: Some(5),
        temp_slowdown_threshold: Some(93.0),
        memory_clock: Some(5_000),
        memory_clock_max: Some(5_001),
        pcie_link_gen: Some(3),
        pcie_link_width: Some(16),
        pcie_tx_throughput: Some(700),
        pcie_rx_throughput: Some(800),
        encoder_utilization: Some(9),
        decoder_utilization: Some(8),
        bar1_used: Some(17),
        gpu_uuid: Some("GPU-a".into()),
        gpu_index: Some(1),
        host: Some("shed".into()),
        pci_bus_id: Some("00000000:01:00.0".into()),
        mig_parent_uuid: Some("GPU-parent".into()),
        absent_reasons: [("fan_speed".into(), pb::AbsentReason::NotSupported.into())].into(),
        energy_consumption: Some(123_456),
        power_usage_instant: Some(61.5),
        memory_temperature: Some(61.0),
        counter_epoch: Some(2),
    };
    let with_fan =
        pb::GpuStats { fan_speed: Some(33), absent_reasons: [].into(), recorded_at: in_seconds(-61), ..sample.clone() };
    let event = pb::GpuEvent {
        id: 0,
        occurred_at: in_seconds(-60),
        host: "shed".into(),
        gpu_uuid: Some("GPU-a".into()),
        gpu_index: Some(1),
        gpu_name: Some("NVIDIA T4".into()),
        pci_bus_id: Some("00000000:01:00.0".into()),
        mig_parent_uuid: Some("GPU-parent".into()),
        kind: pb::GpuEventKind::Xid.into(),
        code: Some(79),
        detail: Some("fallen off the bus".into()),
        source: pb::GpuEventSource::KernelLog.into(),
        occurrences: 3,
    };
    let condition = pb::GpuCondition {
        gpu_uuid: "GPU-a".into(),
        state: pb::GpuState::Ok.into(),
        memory_pressure: Some(pb::MemoryPressure::Warning.into()),
    };
    let batch = pb::RecordGpuStatsRequest {
        reporter_id: "shed-1".into(),
        host: "shed".into(),
        sequence: 1,
        gpu_stats: vec![with_fan, sample],
        lost: 0,
        driver_version: Some("580.95.05".into()),
        gpu_events: vec![event],
        gpu_conditions: vec![condition],
    };
    let (send, batches) = mpsc::channel(1);
    send.send(batch).await.unwrap();
    let batches = ReceiverStream::new(batches);
    let answers = server.gpu_stats().record_gpu_stats(batches).await.unwrap();
    let answer = timeout(PATIENCE, answers.into_inner().message()).await;
    answer.unwrap().unwrap().expect("the batch is stored");
}

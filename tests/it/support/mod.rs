//! A server of its own for every test, and what the tests say over and over.

pub mod calls;
pub mod database;
mod eventually;
pub mod fake_nvml;
pub mod process;
pub mod receiver;
mod seed;
pub mod terminal;

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use database::{Backend, TestDatabase};
pub use eventually::{eventually, eventually_ok, eventually_some};
use prost_types::Timestamp;
pub use seed::seed;
use tokio::time::timeout;
use tonic::{Status, Streaming, transport::Channel};
use tonic_types::StatusExt;
use watchpost::{
    config::{self, Settings},
    pb::{
        self, alert_rule_service_client::AlertRuleServiceClient, alert_service_client::AlertServiceClient,
        camera_service_client::CameraServiceClient, camera_zone_service_client::CameraZoneServiceClient,
        delivery_service_client::DeliveryServiceClient, event_service_client::EventServiceClient,
        gpu_stats_service_client::GpuStatsServiceClient, job_service_client::JobServiceClient,
        job_worker_service_client::JobWorkerServiceClient, monitor_service_client::MonitorServiceClient,
        notification_channel::Kind, notification_channel_service_client::NotificationChannelServiceClient,
        silence_service_client::SilenceServiceClient, watch_response::Update,
    },
    server::Server,
};

/// Longest time that a test waits for an expected event, on the slowest machine.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// A real server on a real database.
pub struct TestServer {
    pub channel: Channel,
    pub database: TestDatabase,
    server: Server,
}

impl TestServer {
    /// A server on a database of its own.
    pub async fn start(backend: Backend) -> Self {
        Self::start_with(TestDatabase::migrated(backend).await, |_| {}).await
    }

    /// A server on this database, with other settings than the defaults.
    pub async fn start_with(database: TestDatabase, change: impl FnOnce(&mut Settings)) -> Self {
        let server = start(database.url(), change).await;
        let address = format!("http://{}", server.address);
        let channel = connect(&address).await;
        Self { channel, database, server }
    }

    /// Where the server serves metrics, if it does.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.server.metrics_address
    }

    /// Stops the server, which must end all calls by itself, and gives back its database.
    pub async fn stop(self) -> TestDatabase {
        let Self { database, server, channel, .. } = self;
        let ended = timeout(PATIENCE, server.stop()).await.expect("the server stops");
        drop(channel);
        assert!(ended, "all calls ended within the grace time");
        database
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address
    }

    pub fn cameras(&self) -> CameraServiceClient<Channel> {
        CameraServiceClient::new(self.channel.clone())
    }

    pub fn zones(&self) -> CameraZoneServiceClient<Channel> {
        CameraZoneServiceClient::new(self.channel.clone())
    }

    pub fn events(&self) -> EventServiceClient<Channel> {
        EventServiceClient::new(self.channel.clone())
    }

    pub fn rules(&self) -> AlertRuleServiceClient<Channel> {
        AlertRuleServiceClient::new(self.channel.clone())
    }

    pub fn alerts(&self) -> AlertServiceClient<Channel> {
        AlertServiceClient::new(self.channel.clone())
    }

    pub fn channels(&self) -> NotificationChannelServiceClient<Channel> {
        NotificationChannelServiceClient::new(self.channel.clone())
    }

    pub fn deliveries(&self) -> DeliveryServiceClient<Channel> {
        DeliveryServiceClient::new(self.channel.clone())
    }

    pub fn silences(&self) -> SilenceServiceClient<Channel> {
        SilenceServiceClient::new(self.channel.clone())
    }

    pub fn gpu_stats(&self) -> GpuStatsServiceClient<Channel> {
        GpuStatsServiceClient::new(self.channel.clone())
    }

    pub fn jobs(&self) -> JobServiceClient<Channel> {
        JobServiceClient::new(self.channel.clone())
    }

    pub fn job_workers(&self) -> JobWorkerServiceClient<Channel> {
        JobWorkerServiceClient::new(self.channel.clone())
    }

    pub fn monitor(&self) -> MonitorServiceClient<Channel> {
        MonitorServiceClient::new(self.channel.clone())
    }

    /// Creates a camera.
    pub async fn camera(&self, id: &str) -> pb::Camera {
        calls::create_camera(&self.channel, id).await
    }

    /// Creates a zone.
    pub async fn zone(&self, camera_zone: pb::CameraZone) -> pb::CameraZone {
        let request = pb::CreateCameraZoneRequest { camera_zone: Some(camera_zone) };
        self.zones().create_camera_zone(request).await.unwrap().into_inner()
    }

    /// Creates a channel.
    pub async fn notification_channel(&self, channel: pb::NotificationChannel) -> pb::NotificationChannel {
        let request = pb::CreateNotificationChannelRequest { notification_channel: Some(channel) };
        self.channels().create_notification_channel(request).await.unwrap().into_inner()
    }

    /// Creates channels that only stream.
    pub async fn streams<T: Into<String>>(&self, names: impl IntoIterator<Item = T>) {
        for name in names {
            let channel = pb::NotificationChannel {
                name: name.into(),
                kind: Some(Kind::Stream(pb::StreamChannel {})),
                ..Default::default()
            };
            self.notification_channel(channel).await;
        }
    }

    /// Creates a rule.
    pub async fn rule(&self, alert_rule: pb::AlertRule) -> pb::AlertRule {
        let request = pb::CreateAlertRuleRequest { alert_rule: Some(alert_rule) };
        self.rules().create_alert_rule(request).await.unwrap().into_inner()
    }

    /// Creates a silence.
    pub async fn silence(&self, silence: pb::Silence) -> pb::Silence {
        let request = pb::CreateSilenceRequest { silence: Some(silence) };
        let silence = self.silences().create_silence(request).await;
        silence.unwrap().into_inner()
    }

    /// Ingests an event of this camera with these detections.
    pub async fn ingest(&self, camera_id: &str, detections: Vec<pb::Detection>) -> pb::IngestEventResponse {
        let request = ingest(camera_id, detections);
        self.events().ingest_event(request).await.unwrap().into_inner()
    }

    /// The same, told of every rule what stopped it.
    pub async fn explained(&self, camera_id: &str, detections: Vec<pb::Detection>) -> pb::IngestEventResponse {
        let request = pb::IngestEventRequest { explain: true, ..ingest(camera_id, detections) };
        let response = self.events().ingest_event(request).await;
        response.unwrap().into_inner()
    }

    /// Opens a watch, and takes its first heartbeat.
    pub async fn watch(&self, request: pb::WatchRequest) -> Watch {
        let in_snapshot = request.start() == pb::WatchStart::Snapshot;
        let responses = self.monitor().watch(request).await.unwrap().into_inner();
        let mut watch = Watch::from(responses);
        watch.in_snapshot = in_snapshot;
        let first = watch.next().await;
        assert!(matches!(first.update, Some(Update::Heartbeat(_))), "{first:?}");
        watch
    }
}

/// Starts a server in this process, ready to work.
pub async fn start(database_url: &str, change: impl FnOnce(&mut Settings)) -> Server {
    let args = ["watchpost", "--listen", "127.0.0.1:0", "--database-url", database_url];
    let mut settings = config::read(args).unwrap().settings;
    // Tests of GPUs bring a library of their own.
    settings.nvml_library = Some("/no/such/libnvidia-ml.so.1".into());
    settings.kernel_log = "/no/such/kmsg".into();
    // Tests put old jobs beside the server, and want them to stay.
    settings.job_retention_completed = Duration::ZERO;
    settings.job_retention_failed = Duration::ZERO;
    settings.job_retention_dead = Duration::ZERO;
    settings.job_retention_cancelled = Duration::ZERO;
    settings.secret_key_file = Some(concat!(env!("CARGO_TARGET_TMPDIR"), "/secret.key").into());
    change(&mut settings);
    let mut server = Server::start(&settings).await.unwrap();
    let ready = timeout(PATIENCE, server.ready()).await.expect("the server gets ready");
    assert!(ready, "the server starts");
    server
}

/// Connects to a server.
pub async fn connect(address: &str) -> Channel {
    Channel::from_shared(address.to_string()).unwrap().connect().await.unwrap()
}

/// The end of a watch where a client has it.
pub struct Watch {
    responses: Streaming<pb::WatchResponse>,
    /// Of the last response.
    pub cursor: String,
    /// Whether a snapshot is being sent, whose responses have no cursor.
    in_snapshot: bool,
}

impl From<Streaming<pb::WatchResponse>> for Watch {
    fn from(responses: Streaming<pb::WatchResponse>) -> Self {
        Self { responses, cursor: String::new(), in_snapshot: false }
    }
}

impl Watch {
    /// The next response, whatever it is.
    pub async fn next(&mut self) -> pb::WatchResponse {
        self.try_next().await.unwrap()
    }

    /// The next response, or how the stream ended.
    pub async fn try_next(&mut self) -> Result<pb::WatchResponse, Status> {
        let next = timeout(PATIENCE, self.responses.message()).await;
        let response = next.expect("a response comes in time")?.expect("a watch ends with a status");
        if matches!(response.update, Some(Update::SnapshotEnd(_))) {
            self.in_snapshot = false;
        }
        let has_cursor = !response.cursor.is_empty();
        assert_eq!(has_cursor, !self.in_snapshot, "{response:?}");
        self.cursor.clone_from(&response.cursor);
        Ok(response)
    }

    /// The next response that is not a heartbeat: one comes whenever a test takes long.
    pub async fn change(&mut self) -> pb::WatchResponse {
        loop {
            let response = self.next().await;
            if !matches!(response.update, Some(Update::Heartbeat(_))) {
                return response;
            }
        }
    }

    /// The next update that is not a heartbeat.
    pub async fn update(&mut self) -> Update {
        self.change().await.update.expect("a response says something")
    }

    /// The next, which must be a change of an alert.
    pub async fn alert(&mut self) -> (pb::AlertChangeKind, pb::Alert) {
        match self.update().await {
            Update::Alert(change) => (change.kind(), change.alert.unwrap()),
            other => panic!("not an alert: {other:?}"),
        }
    }
}

/// A request to ingest an event of this camera with these detections.
pub fn ingest(camera_id: &str, detections: Vec<pb::Detection>) -> pb::IngestEventRequest {
    let event = pb::Event { camera_id: camera_id.into(), ..Default::default() };
    pb::IngestEventRequest { event: Some(event), detections, ..Default::default() }
}

/// A detection of this type.
pub fn detection(object_type: &str, confidence: f64) -> pb::Detection {
    pb::Detection { object_type: Some(object_type.into()), confidence: Some(confidence), ..Default::default() }
}

/// A rule without conditions and without cooldown.
pub fn always(name: &str) -> pb::AlertRule {
    pb::AlertRule { name: name.into(), cooldown: calls::seconds(0), ..Default::default() }
}

/// A silence of this camera from now on, for an hour.
pub fn quiet(camera_id: &str) -> pb::Silence {
    pb::Silence {
        camera_ids: vec![camera_id.into()],
        ends_at: in_seconds(3_600),
        created_by: "ann".into(),
        reason: "work on the roof".into(),
        ..Default::default()
    }
}

/// A time so many seconds from now.
#[expect(clippy::unnecessary_wraps, reason = "the fields of messages are options")]
pub fn in_seconds(seconds: i64) -> Option<Timestamp> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = i64::try_from(now.unwrap().as_secs()).unwrap();
    Some(Timestamp { seconds: now + seconds, nanos: 0 })
}

/// A zone of this camera: a rectangle in the middle of the picture, half as wide and half as high.
pub fn middle(camera_id: &str, id: &str) -> pb::CameraZone {
    let corners = [(0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75)];
    pb::CameraZone {
        id: id.into(),
        camera_id: camera_id.into(),
        name: id.into(),
        coordinates: corners.map(|(x, y)| pb::Point { x, y }).into(),
        ..Default::default()
    }
}

/// A watch of these topics from now on.
pub fn topics(topics: &[pb::Topic]) -> pb::WatchRequest {
    let topics = topics.iter().map(|topic| (*topic).into()).collect();
    pb::WatchRequest { topics, ..Default::default() }
}

/// The reason of an error.
pub fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("no reason: {status:?}"));
    assert_eq!(info.domain, "watchpost.v1");
    info.reason.clone()
}

/// The field that an error names.
pub fn field(status: &Status) -> String {
    let details = status.get_error_details();
    let request = details.bad_request().unwrap_or_else(|| panic!("no field: {status:?}"));
    request.field_violations[0].field.clone()
}

//! The server: all services, background loops, health and shutdown, on one listener.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use sea_orm::{
    DbErr,
    sqlx::{postgres::PgConnectOptions, sqlite::SqliteConnectOptions},
};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tonic::{codec::CompressionEncoding::Gzip, transport::server::Router};
use tonic_health::pb::health_server::{Health as HealthService, HealthServer};
use tower::layer::util::{Identity, Stack};

use self::connections::Connections;
use crate::{
    alerts::{
        engine::live::LiveRules,
        lifecycle::{deliveries::DeliveryWakeup, service::Alerts},
        rules::service::AlertRules,
        silences::{LiveSilences, Silences},
    },
    cameras::Cameras,
    config::Settings,
    db::{self, Db},
    error::Chain,
    events::{Committer, Events},
    gpu::{self, Detections, GpuStats, LiveGpus, Reports},
    health::Health,
    jobs::Queue,
    metrics::Metrics,
    monitor::{self, Announcement, Feed, Monitor, MonitorServer, Snapshots, WatchSlots},
    notifications::{Backoff, Deliverer, Deliveries, NotificationChannels},
    pb::{
        FILE_DESCRIPTOR_SET, alert_rule_service_server::AlertRuleServiceServer,
        alert_service_server::AlertServiceServer, camera_service_server::CameraServiceServer,
        camera_zone_service_server::CameraZoneServiceServer, delivery_service_server::DeliveryServiceServer,
        event_service_server::EventServiceServer, gpu_stats_service_server::GpuStatsServiceServer,
        notification_channel_service_server::NotificationChannelServiceServer,
        silence_service_server::SilenceServiceServer,
    },
    rpc::{
        calls::Calls,
        layer::RequestLayer,
        limits::{admission::Admission, snapshots::SnapshotMemory},
    },
    time_zones,
    zones::{CameraZones, LiveZones},
};

mod clock_repair;
pub mod connections;
pub mod http;
mod jobs;
mod prepare;
mod transport;

use transport::{CALL_DESCRIPTORS, reflection};

/// Failure that prevents the start or ends the server.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be bound.
    #[error("cannot listen on {address}: {source}")]
    Listen { address: String, source: std::io::Error },
    /// The database is unusable, and a retry would not help.
    #[error("cannot use the database: {0}")]
    Database(String),
    /// The database file was replaced by another file.
    #[error("the database file or its write-ahead log was replaced while the server was running; restart the server")]
    Replaced,
    /// The encryption keys cannot be read or replaced.
    #[error("cannot use the keys of secrets: {0}")]
    Keys(String),
    /// The gRPC listener failed or ended.
    #[error("cannot serve: {0}")]
    Serve(String),
}

impl From<DbErr> for StartError {
    fn from(error: DbErr) -> Self {
        Self::Database(Chain(&error).to_string())
    }
}

/// Running server with its listeners and tasks.
#[derive(Debug)]
pub struct Server {
    /// Address of the gRPC listener.
    pub address: SocketAddr,
    /// Address of the metrics listener; absent without metrics.
    pub metrics_address: Option<SocketAddr>,
    db: Db,
    health: Health,
    shutdown: CancellationToken,
    grace: Duration,
    serving: JoinHandle<Result<(), tonic::transport::Error>>,
    serving_http: Option<JoinHandle<()>>,
    /// Task that prepares the database and starts the loops; absent after its failure was returned.
    preparing: Option<JoinHandle<Result<RunningTasks, StartError>>>,
    prepared: watch::Receiver<bool>,
}

/// Time after the grace period for loops to end and the database to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Tasks that must end before the database is closed.
#[derive(Debug)]
struct RunningTasks {
    gpus: gpu::GpuTasks,
    deliverer: JoinHandle<()>,
}

/// Components shared by services and loops.
#[derive(Clone)]
struct Components {
    db: Db,
    feed: Feed,
    rules: LiveRules,
    gpus: LiveGpus,
    detections: Detections,
    deliverer: Deliverer,
    queue: Queue,
    health: Health,
    shutdown: CancellationToken,
}

impl Server {
    /// Binds the listeners and prepares the database in the background. Until the preparation ends,
    /// calls fail with `STARTING`.
    pub async fn start(settings: &Settings) -> Result<Self, StartError> {
        let database = settings.database();
        tracing::info!("database: {}", describe_database(&database));
        tracing::info!("time zones: {}", time_zones::source());
        let db = Db::connect_exclusive(&database, "serve").await?;
        let (listener, address) = listen(&settings.listen).await?;
        let http = match &settings.metrics_listen {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        let metrics_address = http.as_ref().map(|(_, address)| *address);

        let (health, health_service) = Health::new();
        let backoff = Backoff { first: settings.notification_retry };
        let shutdown = CancellationToken::new();
        let components = Components {
            queue: Queue::new(db.clone(), shutdown.clone()),
            feed: Feed::new(db.clone(), Announcement::from_change),
            rules: LiveRules::new(db.clone(), LiveZones::new(db.clone()), LiveSilences::new(db.clone())),
            gpus: LiveGpus::default(),
            detections: Detections::default(),
            deliverer: Deliverer::new(db.clone(), settings.senders(), backoff, DeliveryWakeup::default()),
            shutdown,
            health,
            db,
        };
        let ready = Arc::new(AtomicBool::new(false));
        let connections = Connections::new(settings.max_connections as usize);
        let (routes, metrics) = routes(settings, &components, health_service, connections.clone(), ready.clone())?;
        let incoming = connections.accept(listener, components.shutdown.clone());
        let stop = components.shutdown.clone().cancelled_owned();
        let serving = tokio::spawn(routes.serve_with_incoming_shutdown(incoming, stop));
        tracing::info!("listening on {address}");
        let serving_http = http.map(|(listener, address)| {
            tracing::info!("metrics and health at http://{address}");
            tokio::spawn(http::serve(listener, metrics, components.shutdown.clone()))
        });

        let (sender, prepared) = watch::channel(false);
        let (db, health, shutdown) = (components.db.clone(), components.health.clone(), components.shutdown.clone());
        let preparing = tokio::spawn(prepare::prepare(components, settings.clone(), ready, sender));
        Ok(Self {
            address,
            metrics_address,
            db,
            health,
            shutdown,
            grace: settings.shutdown_grace,
            serving,
            serving_http,
            preparing: Some(preparing),
            prepared,
        })
    }

    /// Waits until the preparation ends. Returns false if the preparation failed.
    pub async fn ready(&mut self) -> bool {
        self.prepared.wait_for(|ready| *ready).await.is_ok()
    }

    /// Waits until the server can no longer run. Stays pending otherwise.
    pub async fn failed(&mut self) -> StartError {
        // `prepare` drops its sender at the end, in success and in failure.
        if self.ready().await {
            let serve_result = tokio::select! {
                ended = &mut self.serving => ended,
                () = self.db.storage().replaced() => return StartError::Replaced,
            };
            return match serve_result {
                Ok(Ok(())) => StartError::Serve("the listener has ended".to_string()),
                Ok(Err(error)) => StartError::Serve(Chain(&error).to_string()),
                Err(error) => StartError::Serve(error.to_string()),
            };
        }
        let Some(preparing) = &mut self.preparing else {
            return std::future::pending().await;
        };
        let prepared = preparing.await;
        // A task returns its result only once.
        self.preparing = None;
        match prepared {
            Ok(Err(error)) => error,
            Ok(Ok(_)) => StartError::Serve("the preparation has ended early".to_string()),
            Err(error) => StartError::Serve(error.to_string()),
        }
    }

    /// Stops the server: streams end, running calls are awaited, and the database is closed.
    ///
    /// Returns true if all calls ended within the grace period. Remaining work is aborted one
    /// second after the grace period.
    pub async fn stop(mut self) -> bool {
        let deadline = Instant::now() + self.grace;
        self.health.set_stopping().await;
        self.shutdown.cancel();
        let ended = self.serving.is_finished() || timeout_at(deadline, &mut self.serving).await.is_ok();
        if !ended {
            tracing::warn!(grace = ?self.grace, "the grace period has ended; aborting the remaining calls");
            self.serving.abort();
        }
        let closing = async {
            if let Some(http) = self.serving_http {
                let _ = http.await;
            }
            if let Some(mut preparing) = self.preparing {
                if preparing.is_finished()
                    && let Ok(Ok(running)) = (&mut preparing).await
                {
                    running.gpus.finish().await;
                    let _ = running.deliverer.await;
                }
                preparing.abort();
            }
            self.db.close().await;
        };
        if timeout_at(deadline + CLOSE_TIMEOUT, closing).await.is_err() {
            tracing::warn!("the database did not close in time; aborting its connections");
        }
        ended
    }
}

async fn listen(address: &str) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Listen { address: address.to_string(), source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// Builds all services and the sources of their metrics.
fn routes<H: HealthService>(
    settings: &Settings,
    components: &Components,
    health_service: HealthServer<H>,
    connections: Connections,
    ready: Arc<AtomicBool>,
) -> Result<(Router<Stack<RequestLayer, Identity>>, Metrics), StartError> {
    let limit = settings.max_message_size as usize;
    let Components { db, feed, rules, gpus, health, detections, deliverer, queue: _, shutdown } = components.clone();
    let committer = Arc::new(Committer::start(&db, &rules, deliverer.wakeup(), &shutdown));
    let gpu_stats = GpuStats::new(Reports {
        db: db.clone(),
        live: gpus.clone(),
        max_message_size: limit,
        shutdown: shutdown.clone(),
    });
    let places = WatchSlots::new(settings.max_watches as usize);
    let limits = transport::limits(settings);
    let monitor = monitor(settings, components, &gpu_stats, &places, &limits.snapshots);
    let calls = Calls::new(&CALL_DESCRIPTORS);
    let admission = Admission::new(&[FILE_DESCRIPTOR_SET], limit, settings.request_memory);
    let metrics = Metrics {
        admission: admission.clone(),
        calls: calls.clone(),
        connections,
        db: db.clone(),
        feed,
        gpus,
        gpu_interval: settings.gpu_interval,
        health,
        deliveries: deliverer.counts().clone(),
        ingests: committer.metrics().clone(),
        limits: limits.clone(),
        monitor: monitor.clone(),
    };
    let cameras = Cameras { db: db.clone() };
    let camera_zones = CameraZones { db: db.clone(), zones: rules.zones().clone() };
    let silences = Silences { db: db.clone(), silences: rules.silences().clone() };
    let events = Events { db: db.clone(), committer, detections };
    let alert_rules = AlertRules { db: db.clone(), rules, shutdown: shutdown.clone() };
    let channels = NotificationChannels::new(db.clone(), &deliverer);
    let deliveries = Deliveries::new(db.clone(), deliverer.wakeup().clone());
    let alerts = Alerts::new(db, deliverer.wakeup().clone());
    let to_start_error = |error: tonic_reflection::server::Error| StartError::Serve(error.to_string());
    macro_rules! with_limits {
        ($service:expr) => {
            $service.max_decoding_message_size(limit).accept_compressed(Gzip)
        };
    }
    let layer = RequestLayer {
        ready,
        max_message_size: limit,
        admission,
        calls,
        call_limit: limits.calls.clone(),
        unfinished: limits.unfinished.clone(),
        shutdown,
    };
    let routes = transport::builder(settings)
        .layer(layer)
        .add_routes(jobs::routes(components, &places, &limits.snapshots, limit))
        .add_service(health_service)
        .add_service(reflection().build_v1().map_err(to_start_error)?)
        .add_service(reflection().build_v1alpha().map_err(to_start_error)?)
        .add_service(MonitorServer { monitor, max_message_size: limit })
        .add_service(with_limits!(CameraServiceServer::new(cameras)))
        .add_service(with_limits!(CameraZoneServiceServer::new(camera_zones)))
        .add_service(with_limits!(EventServiceServer::new(events)))
        .add_service(with_limits!(AlertRuleServiceServer::new(alert_rules)))
        .add_service(with_limits!(AlertServiceServer::new(alerts)))
        .add_service(with_limits!(NotificationChannelServiceServer::new(channels)))
        .add_service(with_limits!(DeliveryServiceServer::new(deliveries)))
        .add_service(with_limits!(SilenceServiceServer::new(silences)))
        .add_service(with_limits!(GpuStatsServiceServer::new(gpu_stats)));
    Ok((routes, metrics))
}

fn monitor(
    settings: &Settings,
    components: &Components,
    gpus: &GpuStats,
    places: &WatchSlots,
    memory: &SnapshotMemory,
) -> Monitor {
    Monitor::new(
        components.feed.clone(),
        components.gpus.clone(),
        Snapshots::new(components.db.clone(), components.feed.clone(), gpus.clone(), memory.clone()),
        monitor::Settings { slots: places.clone(), retention: settings.feed_retention() },
        components.shutdown.clone(),
    )
}

/// Describes the database without passwords.
fn describe_database(settings: &db::Settings) -> String {
    if let Ok(options) = settings.url.parse::<SqliteConnectOptions>()
        && settings.url.starts_with("sqlite:")
    {
        return format!("SQLite at {}", options.get_filename().display());
    }
    match settings.url.parse::<PgConnectOptions>() {
        Ok(options) => {
            let (host, port) = (options.get_host(), options.get_port());
            format!("PostgreSQL {} at {host}:{port}", options.get_database().unwrap_or_else(|| options.get_username()))
        }
        Err(_) => "an unreadable address".to_string(),
    }
}

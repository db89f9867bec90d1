//! Every service, loop, health and shutdown on one listener.

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
    http,
    jobs::Queue,
    metrics::Metrics,
    monitor::{self, Announcement, Feed, Monitor, MonitorServer, Places, Snapshots},
    notifications::{Backoff, Deliverer, Deliveries, NotificationChannels},
    pb::{
        FILE_DESCRIPTOR_SET, alert_rule_service_server::AlertRuleServiceServer,
        alert_service_server::AlertServiceServer, camera_service_server::CameraServiceServer,
        camera_zone_service_server::CameraZoneServiceServer,
        delivery_service_server::DeliveryServiceServer, event_service_server::EventServiceServer,
        gpu_stats_service_server::GpuStatsServiceServer,
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
mod jobs;
mod prepare;
mod transport;

use transport::{CALLED, reflection};

/// What keeps the server from starting, or from going on.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        address: String,
        source: std::io::Error,
    },
    /// The database cannot be used, and waiting will not help.
    #[error("cannot use the database: {0}")]
    Database(String),
    /// Another file lies where the database was.
    #[error(
        "the database file, or its log, was replaced while the server ran; start the server again"
    )]
    Replaced,
    /// The keys of secrets cannot be read or replaced.
    #[error("cannot use the keys of secrets: {0}")]
    Keys(String),
    /// The listener failed.
    #[error("cannot serve: {0}")]
    Serve(String),
}

impl From<DbErr> for StartError {
    fn from(error: DbErr) -> Self {
        Self::Database(Chain(&error).to_string())
    }
}

/// A server that listens.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    /// Where it serves metrics, if it does.
    pub metrics_address: Option<SocketAddr>,
    db: Db,
    health: Health,
    shutdown: CancellationToken,
    grace: Duration,
    serving: JoinHandle<Result<(), tonic::transport::Error>>,
    serving_http: Option<JoinHandle<()>>,
    /// The start of the work; none once its failure was returned.
    preparing: Option<JoinHandle<Result<Running, StartError>>>,
    prepared: watch::Receiver<bool>,
}

/// Time after the grace time in which loops end and the database is closed.
const CLOSING: Duration = Duration::from_secs(1);

/// What has to come to its end before the database is closed.
#[derive(Debug)]
struct Running {
    gpus: gpu::Running,
    deliverer: JoinHandle<()>,
}

/// What the services and loops share.
#[derive(Clone)]
struct Parts {
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
    /// Listens, and prepares the database meanwhile; until that is done calls are answered with `STARTING`.
    pub async fn start(settings: &Settings) -> Result<Self, StartError> {
        let database = settings.database();
        tracing::info!("database: {}", describe(&database));
        tracing::info!("time zones: {}", time_zones::source());
        let db = Db::connect_alone(&database, "serve").await?;
        let (listener, address) = listen(&settings.listen).await?;
        let http = match &settings.metrics_listen {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        let metrics_address = http.as_ref().map(|(_, address)| *address);

        let (health, health_service) = Health::new();
        let backoff = Backoff {
            first: settings.notification_retry,
        };
        let shutdown = CancellationToken::new();
        let parts = Parts {
            queue: Queue::new(db.clone(), shutdown.clone()),
            feed: Feed::new(db.clone(), Announcement::make),
            rules: LiveRules::new(
                db.clone(),
                LiveZones::new(db.clone()),
                LiveSilences::new(db.clone()),
            ),
            gpus: LiveGpus::default(),
            detections: Detections::default(),
            deliverer: Deliverer::new(
                db.clone(),
                settings.senders(),
                backoff,
                DeliveryWakeup::default(),
            ),
            shutdown,
            health,
            db,
        };
        let ready = Arc::new(AtomicBool::new(false));
        let connections = Connections::new(settings.max_connections as usize);
        let (routes, metrics) = routes(
            settings,
            &parts,
            health_service,
            connections.clone(),
            ready.clone(),
        )?;
        let incoming = connections.accept(listener, parts.shutdown.clone());
        let stop = parts.shutdown.clone().cancelled_owned();
        let serving = tokio::spawn(routes.serve_with_incoming_shutdown(incoming, stop));
        tracing::info!("listening on {address}");
        let serving_http = http.map(|(listener, address)| {
            tracing::info!("metrics and health at http://{address}");
            tokio::spawn(http::serve(listener, metrics, parts.shutdown.clone()))
        });

        let (done, prepared) = watch::channel(false);
        let (db, health, shutdown) = (
            parts.db.clone(),
            parts.health.clone(),
            parts.shutdown.clone(),
        );
        let preparing = tokio::spawn(prepare::prepare(parts, settings.clone(), ready, done));
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

    /// Waits until the server is ready to work. Returns whether it is: `false` if the start has failed.
    pub async fn ready(&mut self) -> bool {
        self.prepared.wait_for(|ready| *ready).await.is_ok()
    }

    /// Waits until the server cannot go on. Does not end otherwise.
    pub async fn failed(&mut self) -> StartError {
        // When `prepare` ends, having said that all is ready or not, it has let go of its end.
        if self.ready().await {
            let ended = tokio::select! {
                ended = &mut self.serving => ended,
                () = self.db.storage().replaced() => return StartError::Replaced,
            };
            return match ended {
                Ok(Ok(())) => StartError::Serve("the listener has ended".to_string()),
                Ok(Err(error)) => StartError::Serve(Chain(&error).to_string()),
                Err(error) => StartError::Serve(error.to_string()),
            };
        }
        let Some(preparing) = &mut self.preparing else {
            return std::future::pending().await;
        };
        let prepared = preparing.await;
        // A task gives its result once.
        self.preparing = None;
        match prepared {
            Ok(Err(error)) => error,
            Ok(Ok(_)) => StartError::Serve("the start has ended early".to_string()),
            Err(error) => StartError::Serve(error.to_string()),
        }
    }

    /// Ends every stream, waits for calls that are under way, and closes the database. Returns whether all
    /// calls ended within the grace time. What hangs is left behind a second after the grace time.
    pub async fn stop(mut self) -> bool {
        let deadline = Instant::now() + self.grace;
        self.health.stopping().await;
        self.shutdown.cancel();
        let ended =
            self.serving.is_finished() || timeout_at(deadline, &mut self.serving).await.is_ok();
        if !ended {
            tracing::warn!(grace = ?self.grace, "calls are still under way; they are cut off");
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
        if timeout_at(deadline + CLOSING, closing).await.is_err() {
            tracing::warn!("the database is still at work; its connections are cut off");
        }
        ended
    }
}

async fn listen(address: &str) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Listen {
        address: address.to_string(),
        source,
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// Every service, and where their figures come from.
fn routes<H: HealthService>(
    settings: &Settings,
    parts: &Parts,
    health_service: HealthServer<H>,
    connections: Connections,
    ready: Arc<AtomicBool>,
) -> Result<(Router<Stack<RequestLayer, Identity>>, Metrics), StartError> {
    let limit = settings.max_message_size as usize;
    let Parts {
        db,
        feed,
        rules,
        gpus,
        health,
        detections,
        deliverer,
        queue: _,
        shutdown,
    } = parts.clone();
    let committer = Committer::start(&db, &rules, deliverer.wakeup(), &shutdown);
    let committer = Arc::new(committer);
    let gpu_stats = GpuStats::new(Reports {
        db: db.clone(),
        live: gpus.clone(),
        max_message_size: limit,
        shutdown: shutdown.clone(),
    });
    let places = Places::new(settings.max_watches as usize);
    let limits = transport::limits(settings);
    let monitor = monitor(settings, parts, &gpu_stats, &places, &limits.snapshots);
    let calls = Calls::new(&CALLED);
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
    let camera_zones = CameraZones {
        db: db.clone(),
        zones: rules.zones().clone(),
    };
    let silences = Silences {
        db: db.clone(),
        silences: rules.silences().clone(),
    };
    let events = Events {
        db: db.clone(),
        committer,
        detections,
    };
    let alert_rules = AlertRules {
        db: db.clone(),
        rules,
        shutdown: shutdown.clone(),
    };
    let channels = NotificationChannels::new(db.clone(), &deliverer);
    let deliveries = Deliveries::new(db.clone(), deliverer.wakeup().clone());
    let alerts = Alerts::new(db, deliverer.wakeup().clone());
    let broken = |error: tonic_reflection::server::Error| StartError::Serve(error.to_string());
    macro_rules! accepting {
        ($service:expr) => {
            $service
                .max_decoding_message_size(limit)
                .accept_compressed(Gzip)
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
        .add_routes(jobs::routes(parts, &places, &limits.snapshots, limit))
        .add_service(health_service)
        .add_service(reflection().build_v1().map_err(broken)?)
        .add_service(reflection().build_v1alpha().map_err(broken)?)
        .add_service(MonitorServer {
            monitor,
            max_message_size: limit,
        })
        .add_service(accepting!(CameraServiceServer::new(cameras)))
        .add_service(accepting!(CameraZoneServiceServer::new(camera_zones)))
        .add_service(accepting!(EventServiceServer::new(events)))
        .add_service(accepting!(AlertRuleServiceServer::new(alert_rules)))
        .add_service(accepting!(AlertServiceServer::new(alerts)))
        .add_service(accepting!(NotificationChannelServiceServer::new(channels)))
        .add_service(accepting!(DeliveryServiceServer::new(deliveries)))
        .add_service(accepting!(SilenceServiceServer::new(silences)))
        .add_service(accepting!(GpuStatsServiceServer::new(gpu_stats)));
    Ok((routes, metrics))
}

fn monitor(
    settings: &Settings,
    parts: &Parts,
    gpus: &GpuStats,
    places: &Places,
    memory: &SnapshotMemory,
) -> Monitor {
    Monitor::new(
        parts.feed.clone(),
        parts.gpus.clone(),
        Snapshots::new(
            parts.db.clone(),
            parts.feed.clone(),
            gpus.clone(),
            memory.clone(),
        ),
        monitor::Settings {
            places: places.clone(),
            retention: settings.feed_retention(),
        },
        parts.shutdown.clone(),
    )
}

/// The database for people, without passwords.
fn describe(settings: &db::Settings) -> String {
    if let Ok(options) = settings.url.parse::<SqliteConnectOptions>()
        && settings.url.starts_with("sqlite:")
    {
        return format!("SQLite at {}", options.get_filename().display());
    }
    match settings.url.parse::<PgConnectOptions>() {
        Ok(options) => {
            let (host, port) = (options.get_host(), options.get_port());
            format!(
                "PostgreSQL {} at {host}:{port}",
                options
                    .get_database()
                    .unwrap_or_else(|| options.get_username())
            )
        }
        Err(_) => "an unreadable address".to_string(),
    }
}

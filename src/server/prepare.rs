//! Preparation of the server: migrates the database and starts every background loop.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chrono::TimeDelta;
use sea_orm::{DbBackend, DbErr};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Components, RunningTasks, StartError, clock_repair};
use crate::{
    clock,
    config::Settings,
    db::{self, Db, signals},
    error::{Chain, Error},
    events, feed, gpu,
    health::Health,
    jobs,
    log::reminder::Reminder,
    monitor::Feed,
    notifications::{Deliverer, secrets::reseal},
    time_zones,
};

/// Pause between two checks of the database.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Time for running deliveries to end at shutdown. Interrupted deliveries are retried.
const MAX_DELIVERY_GRACE: Duration = Duration::from_secs(2);

/// Pause between two attempts to open the database at the start.
const RETRY: Duration = Duration::from_secs(1);

/// Migrates the database, starts every loop, and admits calls.
pub(super) async fn prepare(
    components: Components,
    settings: Settings,
    ready: Arc<AtomicBool>,
    prepared: watch::Sender<bool>,
) -> Result<RunningTasks, StartError> {
    open_with_retry(&components).await?;
    let Components { db, feed, rules, gpus, detections, deliverer, queue, health, shutdown } = components;
    let start = feed.head();
    if db.backend() == DbBackend::Postgres {
        let (relay, handler) = gpu::live::relay::new(db.clone(), gpus.clone());
        let handlers = vec![feed.signal_handler(), handler];
        tokio::spawn(signals::listen(db.clone(), handlers, shutdown.clone()));
        tokio::spawn(relay.run(shutdown.clone()));
    }
    tokio::spawn(feed.clone().run(shutdown.clone()));
    let silences = rules.silences().clone();
    tokio::spawn(clock_repair::follow(db.clone(), silences, shutdown.clone()));
    tokio::spawn(rules.follow(feed.clone(), start, shutdown.clone()));
    queue.start(feed.clone(), start);
    tokio::spawn(feed::retention::run(db.clone(), settings.feed_retention(), shutdown.clone()));
    tokio::spawn(time_zones::follow(shutdown.clone()));
    tokio::spawn(events::retention::run(db.clone(), shutdown.clone()));
    tokio::spawn(jobs::store::retention::run(db.clone(), settings.job_retention(), shutdown.clone()));
    tokio::spawn(gpu::history::rollup::run(db.clone(), shutdown.clone()));
    let kept = gpu::history::retention::RetentionPeriods {
        samples: settings.gpu_stats_retention,
        rollups: settings.gpu_rollup_retention,
    };
    tokio::spawn(gpu::history::retention::run(db.clone(), kept, shutdown.clone()));
    monitor_secrets(&db, &deliverer, &health, &shutdown).await;
    let deliverer =
        tokio::spawn(deliverer.run(Ord::min(settings.shutdown_grace, MAX_DELIVERY_GRACE), shutdown.clone()));
    tokio::spawn(watch_database(db.clone(), feed, health.clone(), shutdown.clone()));
    tokio::spawn(watch_storage(db.clone(), health.clone(), shutdown.clone()));
    tokio::spawn(watch_feed_blockers(db.clone(), health.clone(), shutdown.clone()));
    ready.store(true, Ordering::Release);
    health.set_database(true);
    health.wait_reported().await;
    tracing::info!("ready");
    prepared.send_replace(true);

    let gpu_settings = gpu::Settings {
        library: settings.nvml_library.clone(),
        interval: settings.gpu_interval,
        host: settings.host(),
        tiers: settings.tiers(),
        kernel_log: Some(settings.kernel_log.clone()),
        sysfs: settings.sysfs.clone(),
        detections,
    };
    let gpu_health = health.clone();
    let gpus = gpu::start(gpu_settings, db, gpus, move |serving| gpu_health.set_gpus(serving), shutdown).await;
    tracing::info!("{}", gpus.summary);
    Ok(RunningTasks { gpus, deliverer })
}

/// Opens the database, and retries while unreachable. Fails if a retry would not help, and at
/// shutdown.
async fn open_with_retry(components: &Components) -> Result<(), StartError> {
    let mut reminder = Reminder::default();
    while let Err(error) = open(components).await {
        if !error.is_transient() {
            return Err(StartError::Database(error.to_string()));
        }
        if reminder.is_due() {
            let problem = components.db.connect_problem().await;
            let error = problem.unwrap_or_else(|| error.to_string());
            tracing::warn!(%error, "the database is unreachable; retrying");
        }
        tokio::select! {
            () = components.shutdown.cancelled() => return Err(StartError::Serve("stopped".to_string())),
            () = sleep(RETRY) => {}
        }
    }
    Ok(())
}

/// Re-encrypts older forms of secrets, then monitors their readability.
async fn monitor_secrets(db: &Db, deliverer: &Deliverer, health: &Health, shutdown: &CancellationToken) {
    let keyring = deliverer.senders().keyring();
    reseal::run(db, keyring).await;
    tokio::spawn(reseal::watch(
        db.clone(),
        keyring.clone(),
        deliverer.counts().clone(),
        health.clone(),
        shutdown.clone(),
    ));
}

/// Failure to open the database.
enum OpenError {
    Migrating(DbErr),
    Reading(Error),
}

impl OpenError {
    /// Returns true if a retry may succeed.
    fn is_transient(&self) -> bool {
        match self {
            Self::Migrating(error) => db::is_transient(error),
            Self::Reading(error) => error.is_unavailable(),
        }
    }
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Migrating(error) => Chain(error).fmt(f),
            Self::Reading(error) => Chain(error).fmt(f),
        }
    }
}

async fn open(components: &Components) -> Result<(), OpenError> {
    // Connects first, so its error decides if a retry may succeed.
    components.db.migrate_up().await.map_err(OpenError::Migrating)?;
    clock::compare(&components.db).await.map_err(OpenError::Reading)?;
    if let Some(recorded_at) = feed::newest_recorded_at(&components.db).await.map_err(OpenError::Reading)? {
        clock::trust(recorded_at);
    }
    components.feed.open().await.map_err(OpenError::Reading)?;
    components.queue.open().await.map_err(OpenError::Reading)?;
    let zones = components.rules.zones();
    zones.reload().await.map_err(OpenError::Reading)?;
    let silences = components.rules.silences();
    silences.reload().await.map_err(OpenError::Reading)?;
    components.rules.reload().await.map_err(OpenError::Reading)
}

/// Reports storage faults to health until shutdown.
async fn watch_storage(db: Db, health: Health, shutdown: CancellationToken) {
    let report = |fault| health.set_storage(fault);
    db.storage().monitor(&db, report, shutdown).await;
}

/// Reports transactions that block the change feed to health, until shutdown.
async fn watch_feed_blockers(db: Db, health: Health, shutdown: CancellationToken) {
    feed::blockers::watch(db, |blocker| health.set_feed_blocker(blocker), shutdown).await;
}

/// Reports a wrong clock of this host to health and to the log. Returns true if the clock is wrong.
fn report_skew(health: &Health, was_skewed: bool) -> bool {
    let skew = clock::skew().filter(|skew| skew.abs() >= clock::REPORTED_SKEW);
    let note = skew.map(|skew| {
        let (seconds, side) =
            (skew.abs().as_seconds_f64(), if skew > TimeDelta::zero() { "ahead of" } else { "behind" });
        format!("clock: the clock of this host is {seconds:.1} s {side} that of the database, which decides")
    });
    match (&note, was_skewed) {
        (Some(note), false) => tracing::warn!("{note}"),
        (None, true) => {
            tracing::info!("clock: the clock of this host is that of the database again");
        }
        (Some(_), true) | (None, false) => {}
    }
    health.set_note("clock", note);
    skew.is_some()
}

/// Reports the reachability of the database to health until shutdown.
async fn watch_database(db: Db, feed: Feed, health: Health, shutdown: CancellationToken) {
    let mut reading = feed.reading();
    let watching = async {
        let mut reminder = Reminder::default();
        let mut is_skewed = false;
        loop {
            let comparison = clock::compare(&db).await;
            is_skewed = report_skew(&health, is_skewed);
            // A busy database is reachable.
            let is_busy = matches!(comparison, Err(Error::DatabaseBusy));
            health.set_database(comparison.is_ok() || is_busy);
            match comparison {
                Err(_) if is_busy => {}
                Err(error) if reminder.is_due() => {
                    let problem = db.connect_problem().await;
                    let error = problem.unwrap_or_else(|| Chain(&error).to_string());
                    tracing::warn!(
                        %error,
                        "the database is unreachable; calls that need the database fail with UNAVAILABLE"
                    );
                }
                Ok(()) if reminder.ended() => tracing::info!("the database is reachable again"),
                _ => {}
            }
            // The feed may notice a failure first.
            let _ = timeout(CHECK_INTERVAL, reading.changed()).await;
        }
    };
    shutdown.run_until_cancelled(watching).await;
}

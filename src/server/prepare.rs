//! The start of the work: the database is brought up to date, and every loop is started.

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

use super::{Parts, Running, StartError, clock_repair};
use crate::{
    clock,
    config::Settings,
    db::{self, Db, signals},
    error::{Chain, Error},
    events, feed, gpu,
    health::Health,
    jobs,
    monitor::Feed,
    notifications::{Deliverer, secrets::reseal},
    reminder::Reminder,
    time_zones,
};

/// How often the database is asked for a sign of life.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

/// How long deliveries that are under way may take at shutdown. Who is cut off is tried again.
const DELIVERIES_END: Duration = Duration::from_secs(2);

/// How long to wait before a database that is away is asked again at the start.
const RETRY: Duration = Duration::from_secs(1);

/// Brings the database up to date, starts every loop, and opens the gate.
pub(super) async fn prepare(
    parts: Parts,
    settings: Settings,
    ready: Arc<AtomicBool>,
    done: watch::Sender<bool>,
) -> Result<Running, StartError> {
    open_when_there(&parts).await?;
    let Parts {
        db,
        feed,
        rules,
        gpus,
        detections,
        deliverer,
        queue,
        health,
        shutdown,
    } = parts;
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
    tokio::spawn(feed::retention::run(
        db.clone(),
        settings.feed_retention(),
        shutdown.clone(),
    ));
    tokio::spawn(time_zones::follow(shutdown.clone()));
    tokio::spawn(events::retention::run(db.clone(), shutdown.clone()));
    tokio::spawn(jobs::store::retention::run(
        db.clone(),
        settings.job_retention(),
        shutdown.clone(),
    ));
    tokio::spawn(gpu::history::rollup::run(db.clone(), shutdown.clone()));
    let kept = gpu::history::retention::RetentionPeriods {
        samples: settings.gpu_stats_retention,
        rollups: settings.gpu_rollup_retention,
    };
    tokio::spawn(gpu::history::retention::run(
        db.clone(),
        kept,
        shutdown.clone(),
    ));
    keep_secrets_readable(&db, &deliverer, &health, &shutdown).await;
    let deliverer = tokio::spawn(deliverer.run(
        Ord::min(settings.shutdown_grace, DELIVERIES_END),
        shutdown.clone(),
    ));
    tokio::spawn(watch_database(
        db.clone(),
        feed,
        health.clone(),
        shutdown.clone(),
    ));
    tokio::spawn(watch_storage(db.clone(), health.clone(), shutdown.clone()));
    tokio::spawn(watch_holders(db.clone(), health.clone(), shutdown.clone()));
    ready.store(true, Ordering::Release);
    health.database(true);
    health.settled().await;
    tracing::info!("ready");
    done.send_replace(true);

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
    let gpus = gpu::start(
        gpu_settings,
        db,
        gpus,
        move |serving| gpu_health.gpus(serving),
        shutdown,
    )
    .await;
    tracing::info!("{}", gpus.summary);
    Ok(Running { gpus, deliverer })
}

/// Opens the database, as soon as it is there. Fails if waiting does not help, and at shutdown.
async fn open_when_there(parts: &Parts) -> Result<(), StartError> {
    let mut reminder = Reminder::default();
    while let Err(error) = open(parts).await {
        if !error.may_pass() {
            return Err(StartError::Database(error.to_string()));
        }
        if reminder.is_due() {
            let problem = parts.db.connect_problem().await;
            let error = problem.unwrap_or_else(|| error.to_string());
            tracing::warn!(%error, "the database is away; it is waited for");
        }
        tokio::select! {
            () = parts.shutdown.cancelled() => return Err(StartError::Serve("stopped".to_string())),
            () = sleep(RETRY) => {}
        }
    }
    Ok(())
}

/// Encrypts older forms of secrets again, and tells from then on whether they can be decrypted.
async fn keep_secrets_readable(
    db: &Db,
    deliverer: &Deliverer,
    health: &Health,
    shutdown: &CancellationToken,
) {
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

/// Why the database could not be opened.
enum OpenError {
    Migrating(DbErr),
    Reading(Error),
}

impl OpenError {
    /// Whether waiting may help.
    fn may_pass(&self) -> bool {
        match self {
            Self::Migrating(error) => db::may_pass(error),
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

async fn open(parts: &Parts) -> Result<(), OpenError> {
    // The first to connect: its error says whether waiting may help.
    parts.db.migrate_up().await.map_err(OpenError::Migrating)?;
    clock::compare(&parts.db)
        .await
        .map_err(OpenError::Reading)?;
    if let Some(newest) = feed::newest(&parts.db).await.map_err(OpenError::Reading)? {
        clock::trust(newest);
    }
    parts.feed.open().await.map_err(OpenError::Reading)?;
    parts.queue.open().await.map_err(OpenError::Reading)?;
    let zones = parts.rules.zones();
    zones.reload().await.map_err(OpenError::Reading)?;
    let silences = parts.rules.silences();
    silences.reload().await.map_err(OpenError::Reading)?;
    parts.rules.reload().await.map_err(OpenError::Reading)
}

/// Tells health whether the database can be written, until shutdown.
async fn watch_storage(db: Db, health: Health, shutdown: CancellationToken) {
    let tell = |fault| health.storage(fault);
    db.storage().monitor(&db, tell, shutdown).await;
}

/// Tells health which transaction holds the change feed back, until shutdown.
async fn watch_holders(db: Db, health: Health, shutdown: CancellationToken) {
    feed::holders::watch(db, |holder| health.feed_holder(holder), shutdown).await;
}

/// Tells health and the log if the clock of this process is wrong. Returns whether it is.
fn tell_skew(health: &Health, was_skewed: bool) -> bool {
    let skew = clock::skew().filter(|skew| skew.abs() >= clock::TOLD);
    let note = skew.map(|skew| {
        let (seconds, side) = (skew.abs().as_seconds_f64(), if skew > TimeDelta::zero() { "ahead of" } else { "behind" });
        format!("clock: the clock of this host is {seconds:.1} s {side} that of the database, which decides")
    });
    match (&note, was_skewed) {
        (Some(note), false) => tracing::warn!("{note}"),
        (None, true) => {
            tracing::info!("clock: the clock of this host is that of the database again");
        }
        (Some(_), true) | (None, false) => {}
    }
    health.note("clock", note);
    skew.is_some()
}

/// Tells health when the database goes away and when it comes back, until shutdown.
async fn watch_database(db: Db, feed: Feed, health: Health, shutdown: CancellationToken) {
    let mut reading = feed.reading();
    let watching = async {
        let mut reminder = Reminder::default();
        let mut skewed = false;
        loop {
            let alive = clock::compare(&db).await;
            skewed = tell_skew(&health, skewed);
            // A database that is busy is there.
            let is_busy = matches!(alive, Err(Error::DatabaseBusy));
            health.database(alive.is_ok() || is_busy);
            match alive {
                Err(_) if is_busy => {}
                Err(error) if reminder.is_due() => {
                    let problem = db.connect_problem().await;
                    let error = problem.unwrap_or_else(|| Chain(&error).to_string());
                    tracing::warn!(
                        %error,
                        "the database is away; calls that need it are answered with UNAVAILABLE"
                    );
                }
                Ok(()) if reminder.ended() => tracing::info!("the database is back"),
                _ => {}
            }
            // The feed may notice first.
            let _ = timeout(SIGN_OF_LIFE, reading.changed()).await;
        }
    };
    shutdown.run_until_cancelled(watching).await;
}

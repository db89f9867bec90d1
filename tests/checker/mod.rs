//! A check of what watches are promised, independent of how the server does it.
//!
//! Writers write and subscribers record what they are sent, while servers are killed with
//! SIGKILL and started again, some subscribers read slowly, and the feed is pruned. Then the
//! histories are judged against the database. What happens when is drawn from a seed.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use watchpost::{
    db::{self, Db},
    feed::retention::{Retention, prune},
};

mod history;
mod judge;
mod servers;
mod subscribers;
mod truth;
mod writers;

use history::History;
use judge::judge;
use servers::Servers;
use subscribers::{Subscriber, Wants};

/// What a run does.
#[derive(Debug, Clone)]
pub struct Plan {
    /// An empty or migrated database.
    pub database_url: String,
    /// How many servers share it.
    pub servers: usize,
    /// How often one of them is killed.
    pub kills: u32,
    /// What chance is drawn from.
    pub seed: u64,
    /// Whether the feed is pruned, so that slow subscribers fall out of it.
    pub prune: bool,
    /// How long everything that was written may take to arrive, once writing has ended.
    pub patience: Duration,
}

/// What came of a run.
#[derive(Debug, Default)]
pub struct Report {
    /// What should not have happened, for people. Empty if all promises were kept.
    pub violations: Vec<String>,
    /// How many changes were written.
    pub changes: usize,
    /// How many changes were sent, to all subscribers together.
    pub delivered: usize,
    pub subscribers: usize,
    /// How often subscribers connected again.
    pub reconnects: usize,
    /// How often a subscriber was told that what it had not read was pruned.
    pub fallen_out: usize,
    pub kills: u32,
}

/// What the parts of a run share.
#[derive(Debug)]
struct Run {
    seed: u64,
    servers: Servers,
    /// Set once writing has ended: the last event.
    last_event: watch::Sender<Option<i64>>,
    /// Alerts that were raised, for whoever wants to acknowledge one.
    alerts: Mutex<Vec<String>>,
    /// The events that a server has said are stored.
    acknowledged: Mutex<Vec<i64>>,
    stop: watch::Sender<bool>,
}

/// A random generator of its own for each part of a run.
fn random(seed: u64, part: usize) -> fastrand::Rng {
    let part = u64::try_from(part).unwrap();
    fastrand::Rng::with_seed(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ part)
}

/// Runs the plan.
pub async fn run(plan: Plan) -> Report {
    let run = Arc::new(Run {
        seed: plan.seed,
        servers: Servers::start(&plan.database_url, plan.servers).await,
        last_event: watch::Sender::new(None),
        alerts: Mutex::default(),
        acknowledged: Mutex::default(),
        stop: watch::Sender::new(false),
    });
    writers::prepare(&run).await;
    let subscribers: Vec<_> = Wants::all()
        .into_iter()
        .enumerate()
        .map(|(at, (wants, slow))| {
            let subscriber = Subscriber::new(run.clone(), at, wants, slow);
            tokio::spawn(record(run.clone(), plan.patience, subscriber))
        })
        .collect();
    let writers: Vec<_> = (0..6).map(|at| tokio::spawn(writers::write(run.clone(), at))).collect();
    let pruning = tokio::spawn(prune_now_and_then(plan.clone(), run.stop.subscribe()));

    let mut random = random(plan.seed, 1_000);
    for _ in 0..plan.kills {
        sleep(Duration::from_millis(random.u64(200..1_200))).await;
        let at = random.usize(0..plan.servers);
        let pause = Duration::from_millis(random.u64(0..150));
        run.servers.kill_and_start(at, pause).await;
    }
    sleep(Duration::from_millis(500)).await;

    run.stop.send_replace(true);
    let mut written = 0;
    for writer in writers {
        written += writer.await.unwrap();
    }
    pruning.await.unwrap();
    let last = writers::last(&run).await;
    run.last_event.send_replace(Some(last));

    let mut histories = Vec::new();
    for subscriber in subscribers {
        histories.push(subscriber.await.unwrap());
    }
    let truth = truth::read(&plan.database_url).await;
    let mut violations = judge(&truth, &histories);
    // Every request that was answered, or sent again until it was, is one event.
    if truth.events.len() != written + 1 {
        let stored = truth.events.len();
        violations.push(format!("{} events were written, {stored} are stored", written + 1));
    }
    for id in run.acknowledged.lock().unwrap().iter() {
        if !truth.events.contains_key(id) {
            violations.push(format!("event {id} was said to be stored, and is not"));
        }
    }
    Report {
        violations,
        changes: truth.changes(),
        delivered: histories.iter().map(History::delivered).sum(),
        subscribers: histories.len(),
        reconnects: histories.iter().map(|history| history.reconnects).sum(),
        fallen_out: histories.iter().map(History::fallen_out).sum(),
        kills: plan.kills,
    }
}

/// Lets a subscriber record its history. One that does not get to the end in time says so.
async fn record(run: Arc<Run>, patience: Duration, mut subscriber: Subscriber) -> History {
    let mut last = run.last_event.subscribe();
    let end = async {
        let _ = last.wait_for(Option::is_some).await;
        sleep(patience).await;
    };
    tokio::select! {
        () = subscriber.run() => {}
        () = end => subscriber.history.gave_up = true,
    }
    subscriber.history
}

/// Prunes the feed as a server does, but more often, and down to less.
async fn prune_now_and_then(plan: Plan, mut stop: watch::Receiver<bool>) {
    if !plan.prune {
        return;
    }
    let settings =
        db::Settings { url: plan.database_url.clone(), connections: 4, sqlite_synchronous: db::Synchronous::Full };
    let db = Db::connect(&settings).await.unwrap();
    let mut random = random(plan.seed, 2_000);
    loop {
        let pause = Duration::from_millis(random.u64(100..500));
        if timeout(pause, stop.wait_for(|stop| *stop)).await.is_ok() {
            break;
        }
        let retention = Retention { max_age: Duration::from_hours(1), max_changes: random.u64(20..200) };
        // A server that is being killed may hold things up.
        let _ = prune(&db, retention).await;
    }
    db.close().await;
}

/// By key, for what several parts collect.
type Map<K, V> = HashMap<K, V>;

//! Jobs while servers and workers are killed, and connections are cut or hang: whether each comes to a legal end, none is
//! lost or completed twice, and the tables tell one story.

pub mod proxy;
pub mod story;
pub mod workers;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use fastrand::Rng;
use sea_orm::{DatabaseConnection, EntityTrait, QuerySelect};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};
use watchpost::entity::job;

use proxy::Proxy;

/// How long everything has to come to its end.
const END: Duration = Duration::from_mins(2);

/// A server that can be killed.
pub trait Killable {
    /// Starts it, on the same address and database each time, and waits until it listens.
    fn start(&mut self) -> impl Future<Output = ()>;
    /// Kills it with SIGKILL.
    fn kill(&mut self) -> impl Future<Output = ()>;
}

/// What is done to the jobs.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub seed: u64,
    /// How often a server is killed, or connections are cut or hang.
    pub cycles: usize,
    pub jobs: u64,
}

/// Kills the server while workers are killed and connections are cut, and tells what is wrong afterwards. The
/// server listens at `address`, and has been started.
pub async fn run(server: &mut impl Killable, db: &DatabaseConnection, address: &str, plan: Plan) -> Vec<String> {
    let mut random = Rng::with_seed(plan.seed);
    let proxy = Proxy::to(address.parse().unwrap()).await;
    let (direct, through) = (format!("http://{address}"), format!("http://{}", proxy.address));
    let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let workers: Vec<JoinHandle<()>> = (0..4)
        .map(|number| {
            let address = if number % 2 == 0 { &direct } else { &through };
            let seed = random.u64(..);
            tokio::spawn(workers::work(number, address.clone(), seed, stop.clone()))
        })
        .collect();
    let producing = workers::produce(direct.clone(), plan.jobs, plan.seed, made.clone());
    let producer = tokio::spawn(producing);
    for _ in 0..plan.cycles {
        sleep(Duration::from_millis(random.u64(100..1_000))).await;
        match random.u8(0..4) {
            0 => proxy.cut(),
            1 => {
                proxy.forward(false);
                sleep(Duration::from_millis(random.u64(100..2_500))).await;
                proxy.cut();
                proxy.forward(true);
            }
            _ => {
                server.kill().await;
                sleep(Duration::from_millis(random.u64(1..300))).await;
                server.start().await;
            }
        }
    }
    producer.await.unwrap();
    let problems = end(db, made.load(Ordering::Relaxed)).await;
    stop.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.abort();
    }
    problems
}

/// Waits until everything that was put in has come to an end, and tells what is wrong.
pub async fn end(db: &DatabaseConnection, made: u64) -> Vec<String> {
    let begun = Instant::now();
    loop {
        let statuses: Vec<job::JobStatus> =
            job::Entity::find().select_only().column(job::Column::Status).into_tuple().all(db).await.unwrap();
        let there = statuses.len() as u64;
        if there != made {
            return vec![format!("{made} jobs were put in, and {there} are there")];
        }
        let left = statuses.iter().filter(|status| !status.is_finished());
        let left = left.count();
        if left == 0 {
            return story::problems(db).await;
        }
        if begun.elapsed() > END {
            return vec![format!("{left} of {made} jobs do not come to an end")];
        }
        sleep(Duration::from_millis(50)).await;
    }
}

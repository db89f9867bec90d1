//! What it costs to sample eight GPUs ten times a second.
//!
//! They are those of the fake NVML of the tests, whose calls take as long as was published of real
//! cards: short ones keep the processor busy, long ones wait. What they keep busy themselves is told
//! apart from what sampling costs.

#[path = "../../tests/it/support/fake_nvml.rs"]
#[allow(dead_code, unreachable_pub)]
mod fake_nvml;

use std::{fs, time::Duration};

use fake_nvml::{Card, FakeNvml};
use serde_json::json;
use tempfile::TempDir;
use tokio::time::sleep;
use watchpost::{
    db::{self, Db},
    gpu::{self, Cost, Detections, LiveGpus, Tiers},
};

const GPUS: f64 = 8.0;

/// Longer calls of the fake NVML sleep.
const SHORT: Duration = Duration::from_micros(90);

/// Samples in this process, so that nothing but sampling and storing is in it.
pub async fn run(seconds: u64) {
    // Cards for desks, since they answer every call.
    let cards: Vec<_> = (0..8).map(|at| with_costs(Card::geforce(&format!("GPU-{at}")))).collect();
    let fake = FakeNvml::new(&cards);
    fake.set_with("driver = 580.95.05\nfrozen = 1", &cards);
    let folder = TempDir::new().unwrap();
    let settings = db::Settings {
        url: format!("sqlite://{}/watchpost.db", folder.path().display()),
        connections: 4,
        sqlite_synchronous: db::Synchronous::Full,
    };
    let db = Db::connect(&settings).await.unwrap();
    db.migrate_up().await.unwrap();
    for hz in [10, 1] {
        let settings = gpu::Settings {
            library: Some(fake.library()),
            interval: Duration::from_secs(1) / hz,
            host: "bench".into(),
            tiers: Tiers::default(),
            kernel_log: None,
            sysfs: "/sys".into(),
            detections: Detections::default(),
        };
        let (live, shutdown) = (LiveGpus::default(), tokio_util::sync::CancellationToken::new());
        let running = gpu::start(settings, db.clone(), live.clone(), |_| {}, shutdown.clone());
        let running = running.await;
        // What is only done when GPUs are found is not what is measured.
        sleep(Duration::from_secs(3)).await;
        let before = (cpu("gpu-"), cpu(""), nvml(&live));
        sleep(Duration::from_secs(seconds)).await;
        let percent = |nanos: u64| rounded(nanos_per_second(nanos, seconds) / 1e7);
        let (threads, process) = (cpu("gpu-") - before.0, cpu("") - before.1);
        let after = nvml(&live);
        let (nvml, busy) = (after.0 - before.2.0, after.1 - before.2.1);
        let nvml = nanos_per_second(nvml, seconds) / GPUS / 1e6;
        println!(
            "{}",
            json!({
                "figure": "sampler",
                "goal": "<= 1 % of one core, <= 5 ms of NVML per GPU and second",
                "gpus": GPUS, "hz": hz,
                "percent_of_a_core": percent(process - busy),
                "of_it_sampling": percent(threads - busy),
                "beside_it_in_nvml": percent(busy),
                "nvml_ms_per_gpu_and_second": rounded(nvml),
            })
        );
        shutdown.cancel();
        running.finish().await;
    }
}

/// A card whose calls take as long as was published of real ones: an RTX 4090, where it is known of
/// one, else a few microseconds; the power as on a K40m, the slowest known.
fn with_costs(card: Card) -> Card {
    card.with("us", "5")
        .with("utilization.us", "3")
        .with("memory.us", "12")
        .with("fan_speed_0.us", "137")
        .with("fan_speed_1.us", "137")
        .with("power_usage.us", "365")
        .with("power_instant.us", "50")
        .with("processes.us", "100")
}

/// The processor time of the threads whose names begin so, in nanoseconds.
fn cpu(name: &str) -> u64 {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let tasks =
        tasks.filter(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.starts_with(name)));
    let nanos = tasks.filter_map(|task| {
        let stat = fs::read_to_string(task.path().join("schedstat")).ok()?;
        stat.split_whitespace().next()?.parse::<u64>().ok()
    });
    nanos.sum()
}

/// The time that NVML took, of all GPUs, in nanoseconds: all of it, and that of short calls, which keep
/// the processor busy.
fn nvml(live: &LiveGpus) -> (u64, u64) {
    let costs = live.costs().snapshot();
    let total = |least: bool| -> u64 {
        let costs = costs.iter().map(|(_, _, cost)| cost);
        let costs = costs.filter(|cost| !least || cost.total < SHORT * calls(cost));
        let total: Duration = costs.map(|cost| cost.total).sum();
        u64::try_from(total.as_nanos()).unwrap()
    };
    (total(false), total(true))
}

fn calls(cost: &Cost) -> u32 {
    u32::try_from(cost.calls).unwrap()
}

#[allow(clippy::cast_precision_loss)]
fn nanos_per_second(nanos: u64, seconds: u64) -> f64 {
    nanos as f64 / seconds as f64
}

fn rounded(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

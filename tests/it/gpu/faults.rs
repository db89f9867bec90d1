//! What GPUs and drivers do that they should not.

use super::{
    values::{check, values, without_values},
    *,
};

/// What a server without GPUs promises.
const AGAIN: &str = "NVML is tried again every minute";

#[tokio::test]
async fn a_gpu_that_hangs_stops_neither_the_others_nor_the_end() {
    let cards =
        |answer| [Card::geforce("GPU-0"), Card::geforce("GPU-1").with("temperature", answer), Card::h200("GPU-2")];
    let fake = FakeNvml::new(&cards("50"));
    let mut rig = Rig::start(&fake).await;
    rig.readings(|all| all.len() == 3).await;
    fake.set(&cards("hang"));
    // At most one sample was on its way.
    let stuck = rig.live.reading("GPU-1").unwrap().number;
    rig.readings(|all| all["GPU-0"].number >= stuck + 20 && all["GPU-2"].number >= stuck + 20).await;
    // Old values are not told again: there are none.
    let silent = rig.readings(|all| all["GPU-1"].stats.temperature.is_none()).await;
    check(&silent["GPU-1"].stats, &without_values("TIMED_OUT"));
    assert!(silent["GPU-1"].number <= stuck + 3);
    rig.healthy(true).await;

    fake.set(&cards("49"));
    assert_eq!(rig.next("GPU-1").await.temperature, Some(49.0));

    fake.set(&[Card::geforce("GPU-0").with("all", "hang"), Card::geforce("GPU-1").with("all", "hang")]);
    rig.healthy(false).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_gpu_that_hangs_from_the_start_does_not_hold_up_the_start() {
    let fake = FakeNvml::new(&[Card::geforce("GPU-0").with("name", "hang"), Card::h200("GPU-1")]);
    let rig = Rig::start(&fake).await;
    assert_eq!(rig.running.summary, "2 GPUs: GPU 0, which does not answer, NVIDIA H200 (GPU-1)");
    rig.next("GPU-1").await;
    fake.set(&[Card::geforce("GPU-0"), Card::h200("GPU-1")]);
    rig.next("GPU-0").await;
    rig.stop().await;
}

#[tokio::test]
async fn a_lost_gpu_is_told_and_comes_back() {
    let fake = FakeNvml::new(&[Card::geforce("GPU-0"), Card::h200("GPU-1")]);
    let mut rig = Rig::start(&fake).await;
    let before = rig.next("GPU-0").await;
    check(&before, &[]);

    fake.set(&[Card::geforce("GPU-0").with("all", "!15"), Card::h200("GPU-1")]);
    check(&rig.next("GPU-0").await, &without_values("GPU_LOST"));
    assert_eq!(rig.next("GPU-1").await.absent_reasons.len(), 3);
    rig.healthy(true).await;

    fake.set(&[Card::geforce("GPU-0").with("all", "!16"), Card::h200("GPU-1").with("all", "!15")]);
    check(&rig.next("GPU-0").await, &without_values("GPU_LOST"));
    rig.healthy(false).await;

    // Indexes change with what the driver finds at first; the UUID tells the GPUs apart.
    fake.set(&[Card::h200("GPU-1"), Card::geforce("GPU-0")]);
    let back = rig.readings(|all| all.values().all(|reading| reading.stats.temperature.is_some())).await;
    assert_eq!(back["GPU-0"].stats.gpu_index, Some(1));
    assert_eq!(back["GPU-1"].stats.gpu_index, Some(0));
    check(&rig.next("GPU-0").await, &[]);
    rig.healthy(true).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_driver_upgrade_is_survived() {
    let cards = |answers: &[(&'static str, &str)]| {
        let with = |card: Card| answers.iter().fold(card, |card, (call, answer)| card.with(call, answer));
        [with(Card::geforce("GPU-0")), with(Card::h200("GPU-1"))]
    };
    let fake = FakeNvml::new(&cards(&[]));
    let rig = Rig::start(&fake).await;
    rig.readings(|all| all.len() == 2).await;
    fake.set(&cards(&[("all", "!18")]));
    check(&rig.next("GPU-0").await, &without_values("DRIVER_ERROR"));
    fake.set(&cards(&[("temperature", "77")]));
    rig.readings(|all| all.values().all(|reading| reading.stats.temperature == Some(77.0))).await;
    rig.stop().await;
}

#[tokio::test]
async fn nvml_is_opened_anew_even_if_a_thread_hangs_in_it() {
    let cards = |answer| {
        let hanging = Card::geforce("GPU-0").with("temperature", answer);
        [hanging, Card::h200("GPU-1")]
    };
    let fake = FakeNvml::new(&cards("50"));
    let rig = Rig::start(&fake).await;
    rig.readings(|all| all.len() == 2).await;
    fake.set(&cards("hang"));
    let lost = |stats: &pb::GpuStats| stats.temperature.is_none();
    // Else nobody would have the library open for a moment, which then counts anew.
    rig.readings(|all| lost(&all["GPU-0"].stats)).await;
    fake.set_with("reopen = 2", &cards("hang"));
    rig.readings(|all| lost(&all["GPU-1"].stats)).await;
    rig.readings(|all| !lost(&all["GPU-1"].stats)).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_gpu_is_sampled_once_even_if_indexes_change() {
    let lost = Card::geforce("GPU-0").with("all", "!15");
    let fake = FakeNvml::new(&[lost, Card::h200("GPU-1")]);
    let rig = Rig::start(&fake).await;
    assert!(rig.running.summary.contains("GPU 0, which cannot be sampled: "), "{}", rig.running.summary);
    let seen = rig.next("GPU-1").await;
    assert_eq!(seen.gpu_index, Some(1));
    // The index of the lost one is now that of the other, whose sampler does not notice.
    fake.set(&[Card::h200("GPU-1")]);
    let opened = fake.calls("GPU-1", "handle");
    rig.readings(|_| fake.calls("GPU-1", "handle") > opened).await;
    let before = rig.live.reading("GPU-1").unwrap().number;
    rig.readings(|all| {
        assert_eq!(all["GPU-1"].stats.gpu_index, Some(1));
        all["GPU-1"].number > before + 20
    })
    .await;
    rig.stop().await;
}

#[tokio::test]
async fn mig_instances_come_and_go() {
    let whole = Card::h200("GPU-0");
    let divided = [Card::h100_divided("GPU-0"), Card::instance("MIG-1", "GPU-0"), Card::instance("MIG-2", "GPU-0")];
    let fake = FakeNvml::new(std::slice::from_ref(&whole));
    let rig = Rig::start(&fake).await;
    assert_eq!(rig.next("GPU-0").await.gpu_utilization, Some(37.0));
    fake.set(&divided);
    let readings = rig.readings(|all| all.len() == 3).await;
    assert_eq!(values(&readings["GPU-0"].stats)["gpu_utilization"], "MIG");
    fake.set(&divided[..2]);
    rig.readings(|all| all.len() == 2 && all.contains_key("MIG-1")).await;
    fake.set(&[whole]);
    rig.readings(|all| all.len() == 1 && all["GPU-0"].stats.gpu_utilization.is_some()).await;
    rig.stop().await;
}

#[tokio::test]
async fn sixty_four_gpus_are_sampled() {
    let cards: Vec<_> = (0..64).map(|index| Card::geforce(&format!("GPU-{index}"))).collect();
    let fake = FakeNvml::new(&cards);
    let database = TestDatabase::migrated(Backend::Sqlite).await;
    let rig = Rig::on(database, &fake, Duration::from_millis(500)).await;
    rig.readings(|all| all.len() == 64 && all.values().all(|reading| reading.number >= 2)).await;
    rig.stop().await;
}

#[tokio::test]
async fn without_nvml_the_reason_is_told() {
    let fake = FakeNvml::new(&[]);
    let database = TestDatabase::migrated(Backend::Sqlite).await;
    let rig = Rig::on(database, &fake, INTERVAL).await;
    assert_eq!(rig.running.summary, "no GPUs: NVML knows of none");
    let database = rig.stop().await;

    let missing = fake.library();
    std::fs::remove_file(&missing).unwrap();
    let rig = Rig::on(database, &fake, INTERVAL).await;
    assert_eq!(rig.running.summary, format!("no GPUs: {} was not found; {AGAIN}", missing.display()));
    assert!(!*rig.health.borrow());
    let database = rig.stop().await;

    let unloaded = FakeNvml::new(&[]);
    unloaded.set_with("init = !9", &[]);
    let rig = Rig::on(database, &unloaded, INTERVAL).await;
    assert_eq!(rig.running.summary, format!("no GPUs: the NVIDIA driver is not loaded; {AGAIN}"));
    let database = rig.stop().await;

    std::fs::write(&missing, "no library").unwrap();
    let rig = Rig::on(database, &fake, INTERVAL).await;
    assert!(rig.running.summary.contains("does not load"), "{}", rig.running.summary);
    rig.stop().await;
}

#[tokio::test]
async fn a_gpu_that_sleeps_is_not_woken() {
    let other = Card::h200("GPU-1").with("pci_bus_id", "00000000:41:00.0");
    let fake = FakeNvml::new(&[Card::geforce("GPU-0"), other]);
    let rig = Rig::start(&fake).await;
    check(&rig.next("GPU-0").await, &[]);

    fake.sleeps("0000:01:00.0", true);
    let asleep = rig.readings(|all| all["GPU-0"].stats.temperature.is_none()).await;
    check(&asleep["GPU-0"].stats, &without_values("ASLEEP"));
    let condition = rig.live.condition("GPU-0").unwrap();
    assert_eq!(condition.state, pb::GpuState::Asleep);
    let calls = fake.calls("GPU-0", "utilization") + fake.calls("GPU-0", "handle");
    let before = rig.live.reading("GPU-1").unwrap().number;
    let readings = rig.readings(|all| all["GPU-1"].number >= before + 20).await;
    assert!(readings["GPU-1"].stats.temperature.is_some());
    let later = fake.calls("GPU-0", "utilization") + fake.calls("GPU-0", "handle");
    assert_eq!(later, calls, "nothing was asked of it");

    fake.sleeps("0000:01:00.0", false);
    check(&rig.next("GPU-0").await, &[]);
    let condition = rig.live.condition("GPU-0").unwrap();
    assert_eq!(condition.state, pb::GpuState::Ok);
    rig.stop().await;
}

#[tokio::test]
async fn of_eight_cards_one_that_hangs_costs_the_others_nothing() {
    let fake = FakeNvml::new(&Card::server());
    let rig = Rig::start(&fake).await;
    rig.readings(|all| all.len() == 8).await;
    let mut cards = Card::server();
    cards[3] = cards[3].clone().with("temperature", "hang");
    fake.set(&cards);
    rig.readings(|all| all["GPU-3"].stats.temperature.is_none()).await;
    let before: BTreeMap<_, _> = rig
        .live
        .readings()
        .into_iter()
        .map(|reading| (reading.stats.gpu_uuid.clone().unwrap(), reading.number))
        .collect();
    let others = |all: &BTreeMap<String, Arc<Reading>>| {
        all.iter().all(|(uuid, reading)| {
            let sampled = reading.number >= before[uuid] + 20 && reading.stats.temperature.is_some();
            uuid == "GPU-3" || sampled
        })
    };
    let all = rig.readings(others).await;
    check(&all["GPU-3"].stats, &[without_values("TIMED_OUT"), vec![("gpu_name", "\"NVIDIA H200\"")]].concat());
    fake.set(&Card::server());
    assert!(rig.next("GPU-3").await.temperature.is_some());
    rig.stop().await;
}

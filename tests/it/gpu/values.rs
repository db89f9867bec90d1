//! Every value of a sample: the driver's, or absent with its reason.

use super::*;

/// The values of a sample by their columns, as text; for absent ones the reason.
pub(super) fn values(stats: &pb::GpuStats) -> BTreeMap<&'static str, String> {
    macro_rules! values {
        ($($column:ident)+) => {[$((
            stringify!($column),
            match (&stats.$column, stats.absent_reasons.get(stringify!($column))) {
                (Some(value), None) => format!("{value:?}"),
                (None, Some(reason)) => {
                    let reason = AbsentReason::try_from(*reason).unwrap();
                    reason.as_str_name().replace("ABSENT_REASON_", "")
                }
                neither_or_both => format!("{neither_or_both:?}"),
            },
        )),+]};
    }
    let values = values!(
        gpu_name gpu_utilization memory_used memory_total temperature power_usage inference_fps
        fan_speed sm_clock memory_bandwidth_utilization pstate throttle_reasons power_limit
        sm_clock_max compute_processes_count pcie_replay_counter temp_slowdown_threshold
        memory_clock memory_clock_max pcie_link_gen pcie_link_width pcie_tx_throughput
        pcie_rx_throughput encoder_utilization decoder_utilization bar1_used
        energy_consumption power_usage_instant memory_temperature
    );
    assert_eq!(stats.absent_reasons.len(), values.iter().filter(|(_, value)| is_reason(value)).count());
    values.into()
}

fn is_reason(value: &str) -> bool {
    value.chars().all(|letter| letter.is_ascii_uppercase() || letter == '_')
}

/// What a desktop card shows, but for the rates.
const GEFORCE: [(&str, &str); 27] = [
    ("gpu_name", "\"NVIDIA GeForce RTX 4080 SUPER\""),
    ("gpu_utilization", "37.0"),
    ("memory_used", "1536"),
    ("memory_total", "16376"),
    ("temperature", "51.0"),
    ("power_usage", "87.654"),
    ("inference_fps", "NOT_REPORTED"),
    ("fan_speed", "34"),
    ("sm_clock", "2535"),
    ("memory_bandwidth_utilization", "12.0"),
    ("pstate", "2"),
    ("throttle_reasons", "4"),
    ("power_limit", "320.0"),
    ("sm_clock_max", "3105"),
    ("compute_processes_count", "3"),
    ("pcie_replay_counter", "0"),
    ("temp_slowdown_threshold", "96.0"),
    ("memory_clock", "11501"),
    ("memory_clock_max", "11502"),
    ("pcie_link_gen", "4"),
    ("pcie_link_width", "16"),
    ("encoder_utilization", "21"),
    ("decoder_utilization", "64"),
    ("bar1_used", "16"),
    ("energy_consumption", "123456789012"),
    ("power_usage_instant", "119.88"),
    ("memory_temperature", "NOT_SUPPORTED"),
];

/// Checks every value: those of a desktop card, and what differs. Rates depend on time; they are
/// left out where nothing is said of them.
#[track_caller]
pub(super) fn check(stats: &pb::GpuStats, different: &[(&'static str, &str)]) {
    let mut expected: BTreeMap<_, _> = GEFORCE.iter().chain(different).copied().collect();
    let values = values(stats);
    for rate in ["pcie_tx_throughput", "pcie_rx_throughput"] {
        expected.entry(rate).or_insert(&values[rate]);
    }
    let values: BTreeMap<_, _> = values.iter().map(|(column, value)| (*column, value.as_str())).collect();
    assert_eq!(values, expected);
}

/// All columns but the name of a GPU that cannot be asked.
pub(super) fn without_values(reason: &'static str) -> Vec<(&'static str, &'static str)> {
    let columns = GEFORCE.iter().map(|(column, _)| *column).chain(["pcie_tx_throughput", "pcie_rx_throughput"]);
    let columns = columns.filter(|column| !["gpu_name", "inference_fps"].contains(column));
    columns.map(|column| (column, reason)).collect()
}

#[tokio::test]
async fn every_value_is_the_drivers_or_absent_with_its_reason() {
    const H200: [(&str, &str); 8] = [
        ("gpu_name", "\"NVIDIA H200\""),
        ("memory_temperature", "38.0"),
        ("fan_speed", "NOT_SUPPORTED"),
        ("temp_slowdown_threshold", "NOT_SUPPORTED"),
        ("pstate", "0"),
        ("throttle_reasons", "1"),
        ("pcie_replay_counter", "4"),
        ("encoder_utilization", "0"),
    ];
    const DIVIDED: [(&str, &str); 11] = [
        ("memory_temperature", "38.0"),
        ("gpu_name", "\"NVIDIA H100 80GB HBM3\""),
        ("fan_speed", "MIG"),
        ("temp_slowdown_threshold", "MIG"),
        ("pstate", "0"),
        ("throttle_reasons", "1"),
        ("pcie_replay_counter", "4"),
        ("gpu_utilization", "MIG"),
        ("memory_bandwidth_utilization", "MIG"),
        ("encoder_utilization", "MIG"),
        ("decoder_utilization", "MIG"),
    ];
    let odd = Card::geforce("GPU-odd")
        .with("utilization", "101 50")
        .with("memory", "4096 0 1024")
        .with("temperature", "4294967295")
        .with("power_usage", "!999")
        .with("power_limit", "!4")
        .with("pstate", "32")
        .with("throttle_reasons", "9223372036854775813")
        .with("pcie_bytes", "!4")
        .with("encoder_utilization", "!26")
        .with("decoder_utilization", "!25")
        .with("sm_clock_max", "!13");
    let odd_values = [
        ("gpu_utilization", "DRIVER_ERROR"),
        ("memory_bandwidth_utilization", "50.0"),
        ("memory_used", "DRIVER_ERROR"),
        ("memory_total", "DRIVER_ERROR"),
        ("temperature", "DRIVER_ERROR"),
        ("power_usage", "DRIVER_ERROR"),
        ("power_limit", "NO_PERMISSION"),
        ("pstate", "NOT_SUPPORTED"),
        // The highest bit is kept too, as the sign.
        ("throttle_reasons", "-9223372036854775803"),
        ("pcie_tx_throughput", "NO_PERMISSION"),
        ("pcie_rx_throughput", "NO_PERMISSION"),
        ("encoder_utilization", "NOT_SUPPORTED"),
        ("decoder_utilization", "DRIVER_TOO_OLD"),
        ("sm_clock_max", "DRIVER_TOO_OLD"),
    ];
    let instance = [
        without_values("MIG"),
        vec![("gpu_name", "\"NVIDIA H100 80GB HBM3 MIG 1g.10gb\""), ("memory_used", "15"), ("memory_total", "9728")],
    ];
    let cards = [
        Card::geforce("GPU-geforce"),
        Card::h200("GPU-h200"),
        Card::h100_divided("GPU-divided"),
        Card::instance("MIG-1", "GPU-divided"),
        Card::instance("MIG-2", "GPU-divided"),
        odd,
    ];
    let fake = FakeNvml::new(&cards);
    let rig = Rig::start(&fake).await;
    assert!(rig.running.summary.starts_with("4 GPUs: NVIDIA GeForce RTX 4080 SUPER (GPU-geforce), NVIDIA H200"));
    check(&rig.next("GPU-geforce").await, &[]);
    check(&rig.next("GPU-h200").await, &H200);
    check(&rig.next("GPU-divided").await, &DIVIDED);
    check(&rig.next("MIG-1").await, &instance.concat());
    check(&rig.next("MIG-2").await, &instance.concat());
    check(&rig.next("GPU-odd").await, &odd_values);
    let stats = rig.next("MIG-2").await;
    assert_eq!((stats.gpu_index, stats.mig_parent_uuid.as_deref()), (Some(2), Some("GPU-divided")));
    assert_eq!((stats.host.as_deref(), stats.pci_bus_id.as_deref()), (Some("camera-box"), Some("00000000:01:00.0")));
    rig.stop().await;
}

#[tokio::test]
async fn an_old_driver_lacks_values_and_not_the_rest() {
    let fake = FakeNvml::of_an_old_driver(&[Card::geforce("GPU-1").with("pcie_sent", "812")]);
    let rig = Rig::start(&fake).await;
    let first = rig.readings(|all| !all.is_empty()).await;
    let old = "DRIVER_TOO_OLD";
    let mut different = vec![
        ("memory_used", old),
        ("memory_total", old),
        ("fan_speed", old),
        ("compute_processes_count", old),
        ("power_usage_instant", old),
        ("memory_temperature", old),
        // Of the blocking call, which takes the place of the counters once every half minute.
        ("pcie_tx_throughput", "812"),
        ("pcie_rx_throughput", "NOT_SUPPORTED"),
    ];
    let first = &first["GPU-1"];
    if first.number == 1 {
        check(&first.stats, &different);
    }
    let sent = different.iter_mut().find(|(column, _)| *column == "pcie_tx_throughput");
    sent.unwrap().1 = "NOT_SAMPLED";
    check(&rig.next("GPU-1").await, &different);
    assert_eq!(fake.calls("GPU-1", "pcie_sent"), 1);
    rig.stop().await;
}

#[tokio::test]
async fn what_a_card_does_not_support_is_asked_once() {
    let fake = FakeNvml::new(&[Card::h200("GPU-1").with("power_limit", "!4").with("pcie_bytes", "!3")]);
    let rig = Rig::start(&fake).await;
    let readings = rig.readings(|all| all.values().any(|reading| reading.number >= 10)).await;
    let calls = |call| fake.calls("GPU-1", call);
    assert!(readings["GPU-1"].number >= 10 && calls("temperature") >= 10);
    for call in ["fans", "pcie_bytes", "pcie_sent", "pcie_received"] {
        assert_eq!(calls(call), 1, "{call}");
    }
    // A permission may be given while the server runs.
    assert!(calls("power_limit") >= 10);
    rig.stop().await;
}

#[tokio::test]
async fn what_moves_over_pcie_is_counted_and_never_guessed() {
    let narrow = Card::geforce("GPU-narrow").with("pcie_bytes", "narrow 300000000 700000000");
    let narrow = narrow.with("pcie_sent", "299999").with("pcie_received", "700001");
    let slow = Card::geforce("GPU-slow").with("pcie_bytes", "narrow 30000000 70000000");
    let slow = slow.with("pcie_link_gen_max", "1").with("pcie_link_width_max", "1");
    let fake = FakeNvml::new(&[Card::geforce("GPU-wide"), narrow, slow]);
    let database = TestDatabase::migrated(Backend::Sqlite).await;
    // In this time 16 lanes of generation 4 may overrun a narrow counter, one of generation 1 not.
    let rig = Rig::on(database, &fake, Duration::from_millis(250)).await;
    let readings = rig.readings(|all| all.len() == 3 && all.values().all(|reading| reading.number >= 2)).await;
    let rates = |uuid: &str| {
        let stats = &readings[uuid].stats;
        (stats.pcie_tx_throughput.unwrap_or(-1), stats.pcie_rx_throughput.unwrap_or(-1))
    };
    for (uuid, sent, received) in [("GPU-wide", 300_000, 700_000), ("GPU-slow", 30_000, 70_000)] {
        let (tx, rx) = rates(uuid);
        // The library reads its clock a moment after the sampler.
        assert!(((sent / 2)..(sent * 2)).contains(&tx), "{uuid} sends {tx}");
        assert!(((received / 2)..(received * 2)).contains(&rx), "{uuid} receives {rx}");
    }
    if readings["GPU-narrow"].number == 2 {
        assert_eq!(rates("GPU-narrow"), (299_999, 700_001));
    }
    let stats = rig.next("GPU-narrow").await;
    assert_eq!(values(&stats)["pcie_tx_throughput"], "NOT_SAMPLED");
    rig.stop().await;
}

#[tokio::test]
async fn a_counter_that_goes_backwards_begins_an_epoch() {
    let fake = FakeNvml::new(&[Card::geforce("GPU-1"), Card::geforce("GPU-2")]);
    let rig = Rig::start(&fake).await;
    let epoch = |stats: &pb::GpuStats| stats.counter_epoch.unwrap();
    let first = epoch(&rig.next("GPU-1").await);
    let grown = |energy: &str, replays: &str| {
        Card::geforce("GPU-1").with("energy", energy).with("pcie_replay_counter", replays)
    };
    let sampled = async |card: Card, energy: i64, replays: i64| {
        fake.set(&[card, Card::geforce("GPU-2")]);
        loop {
            let stats = rig.next("GPU-1").await;
            let counters = (stats.energy_consumption, stats.pcie_replay_counter);
            if counters == (Some(energy), Some(replays)) {
                return epoch(&stats);
            }
        }
    };
    let more = sampled(grown("200000000000", "7"), 200_000_000_000, 7).await;
    assert_eq!(more, first);
    let less_energy = sampled(grown("5", "7"), 5, 7).await;
    assert!(less_energy > first);
    let fewer_replays = sampled(grown("6", "0"), 6, 0).await;
    assert!(fewer_replays > less_energy);
    let other = rig.next("GPU-2").await;
    assert!(epoch(&other) < less_energy, "each GPU has its own");
    rig.stop().await;
}

/// The same rig as a server has it.
async fn as_a_server_does(fake: &FakeNvml, interval: Duration) -> Rig {
    let database = TestDatabase::migrated(Backend::Sqlite).await;
    Rig::with_tiers(database, fake, interval, gpu::Tiers::default()).await
}

#[tokio::test]
async fn between_two_slow_samples_only_what_changes_fast_is_asked() {
    let fake = FakeNvml::new(&[Card::geforce("GPU-1")]);
    let rig = as_a_server_does(&fake, Duration::from_millis(50)).await;
    let asked = rig.readings(|all| all.values().any(|reading| reading.number >= 30)).await;
    let stats = rig.next("GPU-1").await;
    assert!(stats.gpu_utilization.is_some() && stats.memory_used.is_some());
    // What stays the same is told in every sample.
    assert_eq!(stats.sm_clock_max, Some(3105));
    assert_eq!(stats.temp_slowdown_threshold, Some(96.0));
    let samples = usize::try_from(asked["GPU-1"].number).unwrap();
    let calls = |call| fake.calls("GPU-1", call);
    assert!(calls("memory") >= samples);
    assert!(calls("temperature") < samples / 2 && calls("bar1") < samples / 2);
    assert_eq!(calls("sm_clock_max"), 1);
    // What was measured within the last second is told all the same.
    assert_eq!((stats.temperature, stats.bar1_used), (Some(51.0), Some(16)));
    fake.set(&[Card::geforce("GPU-1").with("temperature", "77")]);
    rig.readings(|all| all["GPU-1"].stats.temperature == Some(77.0)).await;
    rig.stop().await;
}

#[tokio::test]
async fn calls_that_do_not_fit_the_budget_are_made_less_often() {
    let fake = FakeNvml::new(&[Card::geforce("GPU-1").with("processes.us", "30000")]);
    let rig = as_a_server_does(&fake, Duration::from_millis(500)).await;
    let is_dear = |reading: &Reading| reading.stats.compute_processes_count.is_none();
    let dear = rig.readings(|all| all.values().any(|reading| is_dear(reading))).await;
    let stats = &dear["GPU-1"].stats;
    assert_eq!(values(stats)["compute_processes_count"], "NOT_SAMPLED");
    // What it costs can be seen.
    let costs = rig.live.costs().snapshot();
    let (gpu, _, cost) = costs.iter().find(|(_, kind, _)| *kind == "processes").unwrap();
    assert_eq!(gpu, "GPU-1");
    assert!(cost.calls >= 1 && cost.longest >= Duration::from_millis(30));
    rig.stop().await;
}

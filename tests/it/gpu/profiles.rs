//! Cards as they are: every value that is stored of them is the driver's, or absent with its reason.

use sea_orm::{EntityTrait, QueryFilter, QueryOrder};
use watchpost::entity::gpu_stats;

use super::{values::values, *};

/// The values of a sample by their columns, as text.
type Values = BTreeMap<&'static str, String>;

/// A column, and what is to be in it.
type Expected = [(&'static str, &'static str)];

const RTX_2080S: &Expected = &[
    ("gpu_name", "\"NVIDIA GeForce RTX 2080 SUPER\""),
    ("gpu_utilization", "0.0"),
    ("memory_used", "211"),
    ("memory_total", "8192"),
    ("temperature", "34.0"),
    ("power_usage", "38.89"),
    ("power_limit", "250.0"),
    ("fan_speed", "38"),
    ("sm_clock", "300"),
    ("sm_clock_max", "2100"),
    ("memory_bandwidth_utilization", "10.0"),
    ("memory_clock", "405"),
    ("memory_clock_max", "7751"),
    ("pstate", "8"),
    ("throttle_reasons", "1"),
    ("compute_processes_count", "0"),
    ("temp_slowdown_threshold", "97.0"),
    ("pcie_link_gen", "1"),
    ("encoder_utilization", "0"),
    ("decoder_utilization", "0"),
    ("bar1_used", "5"),
    ("energy_consumption", "98765"),
    ("power_usage_instant", "37.21"),
];

const L40S: &Expected = &[
    ("gpu_name", "\"NVIDIA L40S\""),
    ("memory_used", "28672"),
    ("memory_total", "46068"),
    ("power_usage", "183.28"),
    ("power_limit", "350.0"),
    ("fan_speed", "NOT_SUPPORTED"),
    ("temp_slowdown_threshold", "NOT_SUPPORTED"),
    ("pstate", "0"),
    ("bar1_used", "2"),
];

const H200: &Expected = &[
    ("gpu_name", "\"NVIDIA H200\""),
    ("fan_speed", "NOT_SUPPORTED"),
    ("temp_slowdown_threshold", "NOT_SUPPORTED"),
    ("pstate", "0"),
    ("throttle_reasons", "1"),
    ("pcie_replay_counter", "4"),
    ("encoder_utilization", "0"),
    ("memory_temperature", "38.0"),
];

const DIVIDED: &Expected = &[
    ("gpu_name", "\"NVIDIA H100 80GB HBM3\""),
    ("gpu_utilization", "MIG"),
    ("memory_bandwidth_utilization", "MIG"),
    ("encoder_utilization", "MIG"),
    ("decoder_utilization", "MIG"),
    ("fan_speed", "MIG"),
    ("temp_slowdown_threshold", "MIG"),
];

const GB10: &Expected = &[
    ("gpu_name", "\"NVIDIA GB10\""),
    ("gpu_utilization", "41.0"),
    ("memory_bandwidth_utilization", "0.0"),
    ("memory_used", "NOT_SUPPORTED"),
    ("memory_total", "NOT_SUPPORTED"),
    ("fan_speed", "NOT_SUPPORTED"),
    ("power_limit", "NOT_SUPPORTED"),
    ("temp_slowdown_threshold", "NOT_SUPPORTED"),
    ("memory_clock", "NOT_SUPPORTED"),
    ("memory_clock_max", "NOT_SUPPORTED"),
    ("pcie_link_gen", "1"),
    ("pcie_link_width", "1"),
    ("pcie_tx_throughput", "NOT_SUPPORTED"),
    ("pcie_rx_throughput", "NOT_SUPPORTED"),
    ("bar1_used", "NOT_SUPPORTED"),
    ("power_usage_instant", "NOT_SUPPORTED"),
];

/// What stands for every value that needs a sample before it.
const RATES: [&str; 2] = ["pcie_tx_throughput", "pcie_rx_throughput"];

#[on_both]
async fn no_row_holds_a_value_that_the_card_did_not_give(backend: Backend) {
    let cards = [
        Card::geforce("GPU-4080s"),
        Card::rtx_2080s("GPU-2080s"),
        Card::l40s("GPU-l40s"),
        Card::h200("GPU-h200"),
        Card::h100_divided("GPU-h100"),
        Card::instance("MIG-1", "GPU-h100"),
        Card::gb10("GPU-gb10"),
    ];
    let fake = FakeNvml::new(&cards);
    let database = TestDatabase::migrated(backend).await;
    let rig = Rig::on(database, &fake, Duration::from_millis(50)).await;
    rig.readings(|all| all.len() == 7 && all.values().all(|reading| reading.number >= 4)).await;
    let database = rig.stop().await;
    let of_geforce = rows(&database, "GPU-4080s").await;
    let geforce = values(of_geforce.last().unwrap());
    for (uuid, expected) in
        [("GPU-4080s", &[][..]), ("GPU-2080s", RTX_2080S), ("GPU-l40s", L40S), ("GPU-h200", H200), ("GPU-gb10", GB10)]
    {
        check_all(&rows(&database, uuid).await, &geforce, expected);
    }
    let divided: Vec<_> = H200.iter().chain(DIVIDED).copied().collect();
    check_all(&rows(&database, "GPU-h100").await, &geforce, &divided);
    // What the blocking call says of an instance is known from the second sample on.
    for stats in rows(&database, "MIG-1").await.iter().skip(1) {
        let mut values = values(stats);
        for (column, value) in [
            ("gpu_name", "\"NVIDIA H100 80GB HBM3 MIG 1g.10gb\""),
            ("memory_used", "15"),
            ("memory_total", "9728"),
            ("inference_fps", "NOT_REPORTED"),
        ] {
            assert_eq!(values.remove(column).as_deref(), Some(value), "{column}");
        }
        assert!(values.values().all(|value| value == "MIG"), "{values:?}");
        assert_eq!(values.len(), 25);
    }
}

/// Checks every sample: as of this desktop card but for what differs.
#[track_caller]
fn check_all(all: &[pb::GpuStats], geforce: &Values, different: &Expected) {
    assert!(all.len() >= 4);
    for (at, stats) in all.iter().enumerate() {
        let mut expected = geforce.clone();
        for (column, value) in different {
            expected.insert(column, (*value).into());
        }
        let mut values = values(stats);
        assert_eq!(values.len(), 29);
        for rate in RATES {
            let (value, expected) = (values.remove(rate).unwrap(), expected.remove(rate).unwrap());
            // The library counts 300 and 700 MB a second.
            let measured = value.parse().is_ok_and(|rate| (100_000..2_000_000).contains(&rate));
            match expected.as_str() {
                "NOT_SUPPORTED" if at == 0 => {
                    assert!(["NOT_SAMPLED", &expected].contains(&&*value));
                }
                "NOT_SUPPORTED" => assert_eq!(value, expected),
                _ if at == 0 => assert_eq!(value, "NOT_SAMPLED"),
                _ => assert!(measured, "sample {at}, {rate} = {value}: {all:#?}"),
            }
        }
        assert_eq!(values, expected, "sample {at}");
        assert!(stats.counter_epoch.is_some());
    }
}

/// What is stored of a GPU, oldest first.
pub(super) async fn rows(database: &TestDatabase, uuid: &str) -> Vec<pb::GpuStats> {
    let db = database.connect().await;
    let rows = gpu_stats::Entity::find()
        .filter(gpu_stats::COLUMN.gpu_uuid.eq(uuid))
        .order_by_asc(gpu_stats::Column::Id)
        .all(&db)
        .await
        .unwrap();
    db.close().await.unwrap();
    rows.into_iter().map(Into::into).collect()
}

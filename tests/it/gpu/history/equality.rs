//! Answers are what a naive sum gives, from samples, from roll-ups, and from both.

use super::*;
use crate::support::seed;

/// Numbers that look random, the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: i64) -> i64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        i64::try_from(self.0 >> 33).unwrap() % end
    }
}

/// Samples about once a second, with all that may happen to them.
#[allow(clippy::cast_precision_loss)]
fn eventful(start: i64, minutes: i64, dice: &mut Dice) -> Vec<Row> {
    let mut rows = Vec::new();
    let (mut at, mut epoch, mut energy, mut throttle) = (start + 217, 1, 5_000_000, Some(1));
    while at < start + minutes * MINUTE {
        match dice.below(50) {
            // A gap, sometimes over whole minutes.
            0 => at += 1_500 + dice.below(150_000),
            // A reset: the counter starts over, or goes on from anywhere.
            1 => (epoch, energy) = (epoch + 1, dice.below(10_000_000)),
            2 => {
                let masks = [
                    None,
                    Some(0),
                    Some(4),
                    Some(0x24),
                    Some(0x201),
                    // The highest bit is the sign.
                    Some(i64::MIN),
                    Some(i64::MIN | 1 << 41 | 4),
                ];
                throttle = masks[usize::try_from(dice.below(7)).unwrap()];
            }
            _ => {}
        }
        energy += dice.below(400_000);
        let maybe = |keep: bool| keep.then_some(());
        let row = Row {
            at,
            temperature: Some(40.0 + dice.below(30) as f64),
            power_usage: maybe(dice.below(9) > 0).map(|()| dice.below(350_000) as f64 / 1_000.0),
            memory_used: maybe(dice.below(3) > 0).map(|()| 1_000 + dice.below(3)),
            throttle,
            energy: maybe(dice.below(4) > 0).map(|()| (epoch, energy)),
        };
        rows.push(row);
        at += 990 + dice.below(21);
    }
    rows
}

#[on_both]
async fn samples_and_roll_ups_give_what_a_naive_sum_gives(backend: Backend) {
    let start = midnight(3) + 7 * HOUR;
    let mut dice = Dice(seed(7));
    let (one, two) = (eventful(start, 20, &mut dice), eventful(start, 20, &mut dice));
    let database = TestDatabase::migrated(backend).await;
    let db = database.connect().await;
    insert(&db, "GPU-1", &one).await;
    insert(&db, "GPU-2", &two).await;
    let server = TestServer::start_with(database, |_| {}).await;
    let ranges = [
        (start, start + 20 * MINUTE),
        (start + 5 * MINUTE, start + 15 * MINUTE),
        (start - 3 * MINUTE, start + 25 * MINUTE),
        (start + 5 * MINUTE + 30_417, start + 11 * MINUTE + 12_000),
        (start + 8 * MINUTE + 100, start + 8 * MINUTE + 59_900),
    ];
    let widths = [MINUTE, 3 * MINUTE, HOUR, 1_000, 7_500, 90_000];
    let check = async |whole_minutes: bool| {
        for (from, until) in ranges {
            for width in widths {
                let whole = from % MINUTE == 0 && until % MINUTE == 0 && width % MINUTE == 0;
                if whole_minutes && !whole {
                    continue;
                }
                let told = aggregate(&server, request(from, until, width)).await;
                assert_eq!(told.len(), 2);
                for (told, rows) in told.iter().zip([&one, &two]) {
                    let expected = naive::aggregate(rows, from, until, width);
                    let context = format!("{} from {from} until {until} by {width}", told.gpu_uuid);
                    naive::same(told, &expected, &context);
                }
            }
        }
    };
    check(false).await;
    rolled_up(&db).await;
    check(false).await;
    // Half of the minutes are to be rolled up again.
    db.execute_unprepared("UPDATE gpu_stats SET fan_speed = 30 WHERE id % 7 = 0").await.unwrap();
    check(false).await;
    rolled_up(&db).await;
    without_samples(&db).await;
    check(true).await;
    server.stop().await;
}

#[on_both]
async fn a_late_sample_counts_as_soon_as_it_is_there(backend: Backend) {
    let start = midnight(2);
    let server = TestServer::start(backend).await;
    let db = server.database.connect().await;
    insert(&db, "GPU-1", &[Row::warm(start + 1_000, 50.0), Row::warm(start + 9_000, 60.0)]).await;
    rolled_up(&db).await;
    let ask = || request(start, start + MINUTE, MINUTE);
    let temperature = async || aggregate(&server, ask()).await[0].series[1].buckets[0];
    assert_eq!(temperature().await.avg, Some(55.0));
    insert(&db, "GPU-1", &[Row::warm(start + 5_000, 10.0)]).await;
    assert_eq!((temperature().await.avg, temperature().await.last), (Some(40.0), Some(60.0)));
    rolled_up(&db).await;
    without_samples(&db).await;
    let rolled = temperature().await;
    assert_eq!((rolled.samples, rolled.avg, rolled.min), (3, Some(40.0), Some(10.0)));
    server.stop().await;
}

#[on_both]
async fn what_other_programs_write_and_change_is_rolled_up(backend: Backend) {
    let start = midnight(2);
    let server = TestServer::start(backend).await;
    let db = server.database.connect().await;
    let time = time::from_millis(start + 30_000).unwrap().to_rfc3339();
    let insert = format!(
        "INSERT INTO gpu_stats (recorded_at, gpu_uuid, temperature) VALUES \
             ('{time}', 'GPU-1', 70), ('{time}', NULL, 99), ('{time}', 'GPU-2', NULL)"
    );
    db.execute_unprepared(&insert).await.unwrap();
    rolled_up(&db).await;
    let told = aggregate(&server, request(start, start + MINUTE, MINUTE)).await;
    let uuids: Vec<_> = told.iter().map(|gpu| gpu.gpu_uuid.as_str()).collect();
    assert_eq!(uuids, ["GPU-1", "GPU-2"]);
    assert_eq!(told[0].host, None);
    assert_eq!(told[0].series[1].buckets[0].max, Some(70.0));
    // A sample that tells nothing is none.
    assert_eq!(told[1].buckets[0].samples, 0);
    let move_it = format!(
        "UPDATE gpu_stats SET temperature = 71, recorded_at = '{}' WHERE gpu_uuid = 'GPU-1'",
        time::from_millis(start + MINUTE).unwrap().to_rfc3339(),
    );
    db.execute_unprepared(&move_it).await.unwrap();
    rolled_up(&db).await;
    let told = aggregate(&server, request(start, start + 2 * MINUTE, MINUTE)).await;
    assert_eq!(told[0].series[1].buckets[0], pb::GpuMetricBucket::default());
    assert_eq!(told[0].series[1].buckets[1].max, Some(71.0));
    server.stop().await;
}

#[on_both]
async fn gpus_are_chosen_by_name_and_host_and_told_without_samples(backend: Backend) {
    let start = midnight(2);
    let server = TestServer::start(backend).await;
    let db = server.database.connect().await;
    for (uuid, host, index) in [("GPU-a", "two", 0), ("GPU-b", "one", 1), ("GPU-c", "one", 0)] {
        let gpu = gpus::ActiveModel {
            uuid: Set(uuid.into()),
            host: Set(host.into()),
            gpu_index: Set(Some(index)),
            ..Default::default()
        };
        gpus::Entity::insert(gpu).exec(&db).await.unwrap();
    }
    insert(&db, "GPU-x", &[Row::warm(start, 1.0)]).await;
    let ask = async |uuids: &[&str], host: &str| {
        let request = pb::AggregateGpuStatsRequest {
            gpu_uuids: uuids.iter().map(ToString::to_string).collect(),
            host: host.into(),
            ..request(start, start + 3 * MINUTE, MINUTE)
        };
        let gpus = aggregate(&server, request).await;
        gpus.into_iter().map(|gpu| gpu.gpu_uuid).collect::<Vec<_>>()
    };
    assert_eq!(ask(&[], "").await, ["GPU-c", "GPU-b", "GPU-a", "GPU-x"]);
    assert_eq!(ask(&[], "one").await, ["GPU-c", "GPU-b"]);
    assert_eq!(ask(&["GPU-x", "GPU-b", "GPU-none"], "").await, ["GPU-b", "GPU-x"]);
    assert_eq!(ask(&["GPU-x"], "one").await, Vec::<String>::new());
    let told = aggregate(&server, request(start, start + 3 * MINUTE, MINUTE)).await;
    let empty = pb::GpuAggregate {
        gpu_uuid: "GPU-c".into(),
        host: Some("one".into()),
        gpu_index: Some(0),
        ..naive::aggregate(&[], start, start + 3 * MINUTE, MINUTE)
    };
    assert_eq!(told[0], empty);
    assert_eq!(told[0].buckets[1].gap, Some(time::duration_from_millis(MINUTE)));
    // From one sample nobody knows how often there should be some.
    assert_eq!((told[3].sample_interval, told[3].buckets[0].gap), (None, None));
    server.stop().await;
}

#[on_both]
async fn the_future_is_no_gap(backend: Backend) {
    let server = TestServer::start(backend).await;
    let db = server.database.connect().await;
    let now = chrono::Utc::now().timestamp_millis();
    let rows: Vec<_> = (1..=30).map(|at| Row::warm(now - at * 1_000, 50.0)).collect();
    insert(&db, "GPU-1", &rows).await;
    let told = aggregate(&server, request(now - 30_000, now + 20 * MINUTE, HOUR)).await;
    let gaps = told[0].buckets.iter().map(|bucket| bucket.gap.unwrap().seconds);
    // However slow this machine is.
    assert!(gaps.sum::<i64>() < 60, "{:?}", told[0].buckets);
    assert_eq!(told[0].sample_interval, Some(time::duration_from_millis(1_000)));
    server.stop().await;
}

/// Transactions that write one minute are open while it is rolled up, by two servers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_that_commit_late_are_not_missed() {
    let start = midnight(2);
    let database = TestDatabase::migrated(Backend::Postgres).await;
    let other = crate::support::start(database.url(), |_| {}).await;
    let server = TestServer::start_with(database, |_| {}).await;
    let db = server.database.connect().await;
    let writers = (0..3).map(|writer| {
        let db = db.clone();
        tokio::spawn(async move {
            for round in 0..12 {
                let tx = sea_orm::TransactionTrait::begin(&db).await.unwrap();
                for minute in 0..4 {
                    let at = start + minute * MINUTE + (round * 3 + writer) * 1_000;
                    let row = gpu_stats::ActiveModel {
                        recorded_at: Set(time::from_millis(at).unwrap()),
                        gpu_uuid: Set(Some("GPU-1".into())),
                        temperature: Set(Some(50.0)),
                        ..Default::default()
                    };
                    gpu_stats::Entity::insert(row).exec(&tx).await.unwrap();
                }
                tokio::time::sleep(Duration::from_millis(150 + 130 * (writer.unsigned_abs()))).await;
                tx.commit().await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    rolled_up(&db).await;
    without_samples(&db).await;
    let told = aggregate(&server, request(start, start + 4 * MINUTE, MINUTE)).await;
    let samples: Vec<_> = told[0].buckets.iter().map(|bucket| bucket.samples).collect();
    assert_eq!(samples, [36; 4]);
    assert!(other.stop().await);
    server.stop().await;
}

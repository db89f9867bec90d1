//! Cards that take the place of others while they are sampled.

use std::time::Instant;

use super::{
    values::{check, without_values},
    *,
};

/// Longer than it may take to find a card, for slow machines.
const FOUND_WITHIN: Duration = Duration::from_secs(20);

/// Waits until this GPU is sampled.
async fn sampled(rig: &Rig, uuid: &str) -> Arc<Reading> {
    let there = |all: &BTreeMap<String, Arc<Reading>>| {
        let reading = all.get(uuid);
        reading.is_some_and(|reading| reading.stats.temperature.is_some())
    };
    rig.readings(there).await[uuid].clone()
}

/// Waits until nothing more is told of this GPU, and checks that it was told to be lost.
async fn left(rig: &Rig, uuid: &str, other: &str) {
    let number = |uuid: &str| rig.live.reading(uuid).unwrap().number;
    let ending = async {
        loop {
            let before = (number(uuid), number(other));
            rig.readings(|all| all[other].number >= before.1 + 20).await;
            if number(uuid) == before.0 {
                return;
            }
        }
    };
    timeout(PATIENCE, ending).await.expect("an end of samples");
    let last = rig.live.reading(uuid).unwrap();
    assert_eq!(last.stats.temperature, None);
    let reason = i32::from(AbsentReason::GpuLost);
    assert_eq!(last.stats.absent_reasons["temperature"], reason);
    let condition = rig.live.condition(uuid).unwrap();
    assert_eq!(condition.state, pb::GpuState::Lost);
}

#[tokio::test]
async fn a_card_that_takes_the_place_of_another_is_sampled() {
    let other = || Card::h200("GPU-b");
    let fake = FakeNvml::new(&[Card::geforce("GPU-a"), other()]);
    let rig = Rig::start(&fake).await;
    check(&rig.next("GPU-a").await, &[]);
    sampled(&rig, "GPU-b").await;

    let swapped = Instant::now();
    fake.set(&[Card::geforce("GPU-c").with("temperature", "44"), other()]);
    let new = sampled(&rig, "GPU-c").await;
    let took = swapped.elapsed();
    assert!(took < FOUND_WITHIN, "{took:?}");
    assert_eq!(new.stats.gpu_index, Some(0));
    assert_eq!(new.stats.temperature, Some(44.0));
    left(&rig, "GPU-a", "GPU-c").await;
    check(&rig.live.reading("GPU-a").unwrap().stats, &without_values("GPU_LOST"));
    assert!(rig.next("GPU-b").await.temperature.is_some());

    // The indexes of those that stay change with it.
    fake.set(&[other(), Card::geforce("GPU-d")]);
    assert_eq!(sampled(&rig, "GPU-d").await.stats.gpu_index, Some(1));
    left(&rig, "GPU-c", "GPU-d").await;
    assert!(rig.next("GPU-b").await.temperature.is_some());

    // One that returns is sampled again, and one that is only gone is still looked for.
    fake.set(&[other(), Card::geforce("GPU-a")]);
    sampled(&rig, "GPU-a").await;
    left(&rig, "GPU-d", "GPU-a").await;
    fake.set(&[other()]);
    check(&rig.next("GPU-a").await, &without_values("GPU_LOST"));
    let looks = fake.calls("GPU-b", "handle");
    rig.readings(|_| fake.calls("GPU-b", "handle") >= looks + 2).await;
    check(&rig.next("GPU-a").await, &without_values("GPU_LOST"));
    rig.stop().await;
}

#[tokio::test]
async fn the_only_card_of_a_host_may_be_swapped() {
    let fake = FakeNvml::new(&[Card::geforce("GPU-a")]);
    let mut rig = Rig::start(&fake).await;
    sampled(&rig, "GPU-a").await;
    // Nobody has NVML open then.
    fake.set(&[Card::geforce("GPU-b")]);
    sampled(&rig, "GPU-b").await;
    left(&rig, "GPU-a", "GPU-b").await;
    rig.healthy(true).await;
    rig.stop().await;
}

#[tokio::test]
async fn errors_while_looking_end_no_sampler() {
    let strange = || Card::geforce("GPU-a").with("handle", "!999");
    let fake = FakeNvml::new(&[Card::geforce("GPU-a"), Card::h200("GPU-b")]);
    let rig = Rig::start(&fake).await;
    sampled(&rig, "GPU-a").await;
    sampled(&rig, "GPU-b").await;
    // First it cannot be asked at its place, then it seems to have none.
    for cards in [[strange(), Card::h200("GPU-b")], [Card::h200("GPU-b"), strange()]] {
        fake.set(&cards);
        let before = ["GPU-a", "GPU-b"].map(|uuid| (uuid, fake.calls(uuid, "handle")));
        rig.readings(|_| {
            let looked = |(uuid, before): &(&str, usize)| fake.calls(uuid, "handle") >= before + 2;
            before.iter().all(looked)
        })
        .await;
        for (uuid, _) in before {
            assert!(rig.next(uuid).await.temperature.is_some(), "{uuid}");
            let condition = rig.live.condition(uuid).unwrap();
            assert_eq!(condition.state, pb::GpuState::Ok);
        }
    }
    rig.stop().await;
}

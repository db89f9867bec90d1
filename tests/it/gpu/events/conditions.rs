//! How a GPU is, and what is told of its changes.

use std::time::Instant;

use chrono::TimeDelta;
use sea_orm::{EntityTrait, Set};
use watchpost::entity::gpu as gpus;

use super::*;

/// A GPU whose memory is so full, in percent.
fn filled(percent: u64) -> Card {
    let total: u64 = 16_000 << 20;
    card("GPU-1").with("memory", &format!("{} 0 {total}", total / 100 * percent))
}

#[on_both]
async fn a_gpu_that_does_not_answer_is_told_soon_and_so_is_that_it_does_again(backend: Backend) {
    let cards = |answer| [card("GPU-1"), card("GPU-2").with("temperature", answer), card("GPU-3")];
    let fake = FakeNvml::new(&cards("50"));
    let server = serve(TestDatabase::migrated(backend).await, &fake).await;
    let mut watch = server.watch(topics(&[pb::Topic::GpuEvents])).await;
    for uuid in ["GPU-1", "GPU-2", "GPU-3"] {
        becomes(&server, uuid, GpuState::Ok).await;
    }
    let started = Instant::now();
    fake.set(&cards("hang"));
    let event = next_of(&mut watch, "GPU-2", GpuEventKind::Unresponsive).await;
    let took = started.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert_eq!(event.source(), Source::Watchdog);
    // The others are sampled meanwhile.
    let calls = ["GPU-1", "GPU-3"].map(|uuid| (uuid, fake.calls(uuid, "temperature")));
    eventually("there are more samples", async || {
        calls.iter().all(|(uuid, before)| fake.calls(uuid, "temperature") >= before + 3)
    })
    .await;
    assert_eq!(state(&server, "GPU-2").await, (GpuState::Unresponsive, None));
    assert_eq!(state(&server, "GPU-1").await.0, GpuState::Ok);
    fake.set(&cards("49"));
    let event = next_of(&mut watch, "GPU-2", GpuEventKind::Responsive).await;
    assert_eq!(event.source(), Source::Watchdog);
    assert_eq!(state(&server, "GPU-2").await, (GpuState::Ok, Some(MemoryPressure::Normal)));
    server.stop().await;
}

#[on_both]
async fn a_gpu_that_never_answered_is_told_by_its_index(backend: Backend) {
    let cards = |answer| [card("GPU-1"), card("GPU-2").with("name", answer)];
    let fake = FakeNvml::new(&cards("hang"));
    let server = serve(TestDatabase::migrated(backend).await, &fake).await;
    let all = pb::WatchRequest { start: pb::WatchStart::Earliest.into(), ..topics(&[pb::Topic::GpuEvents]) };
    let mut watch = server.watch(all).await;
    let event = next(&mut watch).await;
    assert_eq!((event.kind(), event.source()), (GpuEventKind::Unresponsive, Source::Watchdog));
    assert_eq!((event.gpu_uuid, event.gpu_index), (None, Some(1)));
    fake.set(&cards("NVIDIA H200"));
    let event = next(&mut watch).await;
    assert_eq!((event.kind(), event.gpu_index), (GpuEventKind::Responsive, Some(1)));
    becomes(&server, "GPU-2", GpuState::Ok).await;
    server.stop().await;
}

#[on_both]
async fn a_gpu_that_is_lost_is_told_and_so_is_its_return(backend: Backend) {
    let cards = |answer: Option<&str>| {
        let second = card("GPU-2");
        [card("GPU-1"), answer.map_or(second.clone(), |answer| second.with("all", answer))]
    };
    let fake = FakeNvml::new(&cards(None));
    let server = serve(TestDatabase::migrated(backend).await, &fake).await;
    let mut watch = server.watch(topics(&[pb::Topic::GpuEvents])).await;
    becomes(&server, "GPU-2", GpuState::Ok).await;
    listened(&fake, "GPU-2").await;
    fake.set(&cards(Some("!15")));
    let event = next_of(&mut watch, "GPU-2", GpuEventKind::Lost).await;
    assert_eq!((event.source(), event.code), (Source::Handle, None));
    assert!(event.detail.unwrap().contains("fell off the bus"));
    assert_eq!(state(&server, "GPU-2").await, (GpuState::Lost, None));

    // Whoever starts anew goes on from there.
    let database = server.stop().await;
    let server = serve(database, &fake).await;
    let again = pb::WatchRequest { cursor: watch.cursor, ..topics(&[pb::Topic::GpuEvents]) };
    let mut watch = server.watch(again).await;
    becomes(&server, "GPU-1", GpuState::Ok).await;
    assert_eq!(state(&server, "GPU-2").await.0, GpuState::Lost);
    fake.set(&cards(None));
    next_of(&mut watch, "GPU-2", GpuEventKind::Back).await;
    becomes(&server, "GPU-2", GpuState::Ok).await;

    fake.set(&cards(Some("!16")));
    next_of(&mut watch, "GPU-2", GpuEventKind::ResetRequired).await;
    assert_eq!(state(&server, "GPU-2").await.0, GpuState::Lost);
    // It is not found by its UUID any more.
    fake.set(&[card("GPU-1")]);
    next_of(&mut watch, "GPU-2", GpuEventKind::Lost).await;
    // Counted while nobody can listen: that may begin before its return is told.
    let before = fake.calls("GPU-2", "register");
    fake.set(&cards(None));
    next_of(&mut watch, "GPU-2", GpuEventKind::Back).await;
    // It is listened to again.
    eventually("NVML is listened to again", async || fake.calls("GPU-2", "register") > before).await;
    fake.happens("GPU-2", XID, 13);
    assert_eq!(next_of(&mut watch, "GPU-2", GpuEventKind::Xid).await.code, Some(13));
    server.stop().await;
}

#[on_both]
async fn another_driver_is_told_with_both_versions(backend: Backend) {
    let cards = [card("GPU-1")];
    let fake = FakeNvml::new(&cards);
    let server = serve(TestDatabase::migrated(backend).await, &fake).await;
    let mut watch = server.watch(topics(&[pb::Topic::GpuEvents])).await;
    becomes(&server, "GPU-1", GpuState::Ok).await;
    listened(&fake, "GPU-1").await;
    // The library and the driver do not fit each other any more.
    fake.set(&[card("GPU-1").with("all", "!18")]);
    let gone = next_of(&mut watch, "GPU-1", GpuEventKind::DriverChanged).await;
    assert!(gone.detail.unwrap().contains("the NVIDIA driver was upgraded"));
    fake.set_with("driver = 581.10", &cards);
    let other = next_of(&mut watch, "GPU-1", GpuEventKind::DriverChanged).await;
    assert_eq!(other.detail.as_deref(), Some("580.95.05 -> 581.10"));
    next_of(&mut watch, "GPU-1", GpuEventKind::Back).await;
    assert_eq!(state(&server, "GPU-1").await.0, GpuState::Ok);
    // What it tells is heard in the new session.
    eventually("NVML is listened to again", async || fake.calls("GPU-1", "register") > 1).await;
    fake.happens("GPU-1", XID, 45);
    assert_eq!(next_of(&mut watch, "GPU-1", GpuEventKind::Xid).await.code, Some(45));
    let stored = async || {
        let gpus = server.gpu_stats().list_gpus(pb::ListGpusRequest {}).await.unwrap();
        gpus.into_inner().gpus[0].driver_version.as_deref() == Some("581.10")
    };
    eventually("the new version is stored", stored).await;

    // While nobody watched, too.
    let database = server.stop().await;
    fake.set_with("driver = 582.00", &cards);
    let server = serve(database, &fake).await;
    let again = pb::WatchRequest { cursor: watch.cursor, ..topics(&[pb::Topic::GpuEvents]) };
    let mut watch = server.watch(again).await;
    let other = next_of(&mut watch, "GPU-1", GpuEventKind::DriverChanged).await;
    assert_eq!(other.detail.as_deref(), Some("581.10 -> 582.00"));
    server.stop().await;
}

#[on_both]
async fn memory_that_fills_up_is_told_at_each_level_once(backend: Backend) {
    let fake = FakeNvml::new(&[filled(50)]);
    let server = serve(TestDatabase::migrated(backend).await, &fake).await;
    let mut watch = server.watch(topics(&[pb::Topic::GpuEvents])).await;
    eventually("the GPU is sampled", async || {
        state(&server, "GPU-1").await == (GpuState::Ok, Some(MemoryPressure::Normal))
    })
    .await;
    let sampled = async || {
        let before = fake.calls("GPU-1", "memory");
        eventually("there are more samples", async || fake.calls("GPU-1", "memory") > before + 2).await;
    };
    // In between it stays what it was: there is neither an event nor one that was left out.
    for (percents, change, pressure) in [
        (&[84, 85][..], "normal -> warning: 13600", MemoryPressure::Warning),
        (&[81, 94, 96], "warning -> critical: 15360", MemoryPressure::Critical),
        (&[91, 89], "critical -> warning: 14240", MemoryPressure::Warning),
    ] {
        for percent in percents {
            fake.set(&[filled(*percent)]);
            sampled().await;
        }
        let kind = GpuEventKind::MemoryPressureChanged;
        let event = next_of(&mut watch, "GPU-1", kind).await;
        assert_eq!(event.detail, Some(format!("{change} of 16000 MiB")));
        assert_eq!((event.source(), event.code), (Source::Sampler, None));
        assert_eq!(state(&server, "GPU-1").await, (GpuState::Ok, Some(pressure)));
    }
    // After a restart it goes on from there.
    let database = server.stop().await;
    let server = serve(database, &fake).await;
    let again = pb::WatchRequest { cursor: watch.cursor, ..topics(&[pb::Topic::GpuEvents]) };
    let mut watch = server.watch(again).await;
    eventually("the GPU is sampled", async || {
        state(&server, "GPU-1").await == (GpuState::Ok, Some(MemoryPressure::Warning))
    })
    .await;
    sampled().await;
    fake.set(&[filled(10)]);
    let event = next(&mut watch).await;
    assert_eq!(event.detail.as_deref(), Some("warning -> normal: 1600 of 16000 MiB"));
    assert_eq!(listed(&server, pb::GpuEventFilter::default()).await.len(), 4);
    // Memory that is not known is under no pressure that is known.
    fake.set(&[card("GPU-1").with("memory", "!999")]);
    eventually("no pressure is known", async || state(&server, "GPU-1").await == (GpuState::Ok, None)).await;
    server.stop().await;
}

#[on_both]
async fn mig_instances_have_memory_of_their_own_and_are_told_when_they_change(backend: Backend) {
    let whole = || Card::h100_divided("GPU-1").with("events", ALL);
    let part = |uuid: &str| Card::instance(uuid, "GPU-1");
    let fake = FakeNvml::new(&[whole(), part("MIG-1")]);
    let server = serve(TestDatabase::migrated(backend).await, &fake).await;
    let mut watch = server.watch(topics(&[pb::Topic::GpuEvents])).await;
    becomes(&server, "MIG-1", GpuState::Ok).await;
    listened(&fake, "GPU-1").await;
    let full = part("MIG-1").with("memory", "990 0 1000");
    let full = full.with("memory", &format!("{} 0 {}", 990_u64 << 20, 1000_u64 << 20));
    fake.set(&[whole(), full, part("MIG-2")]);
    fake.happens("GPU-1", MIG, 0);
    let (mut divided, mut pressed) = (None, None);
    for _ in 0..2 {
        let event = next(&mut watch).await;
        match event.kind() {
            GpuEventKind::MigChanged => divided = Some(event),
            _ => pressed = Some(event),
        }
    }
    let divided = divided.unwrap();
    assert_eq!(divided.gpu_uuid.as_deref(), Some("GPU-1"));
    assert_eq!(divided.detail.as_deref(), Some("+MIG-2"));
    let pressed = pressed.unwrap();
    assert_eq!(pressed.kind(), GpuEventKind::MemoryPressureChanged);
    assert_eq!(pressed.gpu_uuid.as_deref(), Some("MIG-1"));
    assert_eq!(pressed.mig_parent_uuid.as_deref(), Some("GPU-1"));
    let critical = (GpuState::Ok, Some(MemoryPressure::Critical));
    assert_eq!(state(&server, "MIG-1").await, critical);
    let others = async || {
        let normal = (GpuState::Ok, Some(MemoryPressure::Normal));
        state(&server, "MIG-2").await == normal && state(&server, "GPU-1").await == normal
    };
    eventually("the others are under no pressure", others).await;
    fake.set(&[whole(), part("MIG-2")]);
    fake.happens("GPU-1", MIG, 0);
    let divided = next_of(&mut watch, "GPU-1", GpuEventKind::MigChanged).await;
    assert_eq!(divided.detail.as_deref(), Some("-MIG-1"));
    server.stop().await;
}

#[on_both]
async fn gpus_of_hosts_that_are_silent_are_unknown(backend: Backend) {
    let database = TestDatabase::migrated(backend).await;
    let db = database.connect().await;
    let now = watchpost::entity::now();
    for (uuid, state, reported_at) in [
        ("GPU-1", Some(gpus::GpuState::Lost), Some(now)),
        ("GPU-2", Some(gpus::GpuState::Ok), Some(now - TimeDelta::minutes(4))),
        ("GPU-3", None, None),
    ] {
        let gpu = gpus::ActiveModel {
            uuid: Set(uuid.into()),
            host: Set("far".into()),
            state: Set(state),
            memory_pressure: Set(state.map(|_| gpus::MemoryPressure::Warning)),
            reported_at: Set(reported_at),
            ..Default::default()
        };
        gpus::Entity::insert(gpu).exec_without_returning(&db).await.unwrap();
    }
    db.close().await.unwrap();
    let server = TestServer::start_with(database, |_| {}).await;
    let warning = Some(MemoryPressure::Warning);
    assert_eq!(state(&server, "GPU-1").await, (GpuState::Lost, warning));
    assert_eq!(state(&server, "GPU-2").await, (GpuState::Unknown, None));
    assert_eq!(state(&server, "GPU-3").await, (GpuState::Unknown, None));
    server.stop().await;
}

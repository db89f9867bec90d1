//! What NVML and the kernel log tell by themselves.

use std::{fs::File, io::Write};

use chrono::{TimeDelta, Utc};
use tempfile::TempDir;

use super::*;
use crate::support::calls::execute;

/// Types of events as NVML numbers them.
const ECC_SINGLE_BIT: u64 = 1;
const ECC_DOUBLE_BIT: u64 = 2;
const PSTATE: u64 = 4;
const POWER_SOURCE: u64 = 128;

/// A file that stands for the kernel log.
pub(super) struct KernelLog(TempDir);

impl KernelLog {
    pub(super) fn new() -> Self {
        let log = Self(TempDir::with_prefix("watchpost-kmsg-").unwrap());
        File::create(log.path()).unwrap();
        log
    }

    pub(super) fn path(&self) -> PathBuf {
        self.0.path().join("kmsg")
    }

    pub(super) fn write(&self, message: &str) {
        let mut log = File::options().append(true).open(self.path()).unwrap();
        log.write_all(format!("4,1,2,-;{message}\n").as_bytes()).unwrap();
    }
}

#[on_both]
async fn xids_are_told_listed_and_kept(backend: Backend) {
    let fake = FakeNvml::new(&[card("GPU-1"), card("GPU-2")]);
    let server = serve(TestDatabase::migrated(backend).await, &fake).await;
    let mut watch = server.watch(topics(&[pb::Topic::GpuEvents])).await;
    let start = watch.cursor.clone();
    let gpu_stats_filter = Some(pb::GpuStatsWatchFilter { gpu_uuids: vec!["GPU-1".into()] });
    let one = pb::WatchRequest { gpu_stats_filter, ..topics(&[pb::Topic::GpuEvents]) };
    let mut one = server.watch(one).await;
    listened(&fake, "GPU-1").await;
    listened(&fake, "GPU-2").await;

    let before = Utc::now() - TimeDelta::seconds(1);
    fake.happens("GPU-2", XID, 79);
    let event = next_of(&mut watch, "GPU-2", GpuEventKind::Xid).await;
    assert_eq!(event.code, Some(79));
    assert_eq!(event.source(), Source::NvmlEvent);
    assert_eq!((event.host.as_str(), event.gpu_index), ("camera-box", Some(1)));
    assert_eq!(event.gpu_name.as_deref(), Some("NVIDIA GeForce RTX 4080 SUPER"));
    assert_eq!(event.pci_bus_id.as_deref(), Some("00000000:02:00.0"));
    assert_eq!((event.mig_parent_uuid.clone(), event.detail.clone()), (None, None));
    assert_eq!(event.occurrences, 1);
    let at = event.occurred_at.unwrap().seconds;
    assert!((before.timestamp()..=Utc::now().timestamp()).contains(&at), "{event:?}");

    // What is everyday is not asked for, an XID without a number is none.
    fake.happens("GPU-2", PSTATE, 8);
    fake.happens("GPU-1", XID, 999);
    let unknown = next_of(&mut watch, "GPU-1", GpuEventKind::Xid).await;
    assert_eq!(unknown.code, None);
    assert_eq!(next(&mut one).await, unknown);
    let mut all = vec![unknown, event];
    for (kind, told) in [
        (ECC_SINGLE_BIT, GpuEventKind::EccSingleBit),
        (ECC_DOUBLE_BIT, GpuEventKind::EccDoubleBit),
        (POWER_SOURCE, GpuEventKind::PowerSourceChanged),
    ] {
        fake.happens("GPU-1", kind, 0);
        let event = next_of(&mut watch, "GPU-1", told).await;
        assert_eq!((event.code, event.source()), (None, Source::NvmlEvent));
        all.insert(0, event);
    }
    assert_eq!(listed(&server, pb::GpuEventFilter::default()).await, all);

    let database = server.stop().await;
    let server = serve(database, &fake).await;
    becomes(&server, "GPU-1", GpuState::Ok).await;
    // That the server has stopped and started is nothing that happened to a GPU.
    assert_eq!(listed(&server, pb::GpuEventFilter::default()).await, all);
    let again = pb::WatchRequest { cursor: start, ..topics(&[pb::Topic::GpuEvents]) };
    let mut watch = server.watch(again).await;
    for event in all.iter().rev() {
        assert_eq!(&next(&mut watch).await, event);
    }
    server.stop().await;
}

#[on_both]
async fn a_storm_of_xids_is_bounded_and_none_is_lost(backend: Backend) {
    let fake = FakeNvml::new(&[card("GPU-1"), card("GPU-2")]);
    let server = serve(TestDatabase::migrated(backend).await, &fake).await;
    let mut watch = server.watch(topics(&[pb::Topic::GpuEvents])).await;
    listened(&fake, "GPU-1").await;
    listened(&fake, "GPU-2").await;
    for _ in 0..500 {
        fake.happens("GPU-1", XID, 31);
    }
    for _ in 0..5 {
        fake.happens("GPU-2", XID, 31);
    }
    let (mut first, mut second) = (Vec::new(), 0);
    while first.iter().sum::<i64>() < 500 || second < 5 {
        let event = next(&mut watch).await;
        assert_eq!((event.kind(), event.code), (GpuEventKind::Xid, Some(31)));
        if event.gpu_uuid.as_deref() == Some("GPU-1") {
            first.push(event.occurrences);
        } else {
            second += event.occurrences;
        }
        if event.occurrences > 1 {
            let detail = event.detail.unwrap();
            let expected = format!("{} events since 20", event.occurrences);
            assert!(detail.starts_with(&expected), "{detail}");
        }
    }
    assert_eq!((first.iter().sum::<i64>(), second), (500, 5));
    assert_eq!(first[..20], [1; 20]);
    assert!(first.len() < 30, "{first:?}");
    server.stop().await;
}

#[on_both]
async fn xids_of_the_kernel_log_are_told_once(backend: Backend) {
    let log = KernelLog::new();
    log.write("NVRM: Xid (PCI:0000:01:00): 48, before the start");
    let fake = FakeNvml::new(&[card("GPU-1"), card("GPU-2")]);
    let database = TestDatabase::migrated(backend).await;
    let server = serve_with(database, &fake, log.path()).await;
    let mut watch = server.watch(topics(&[pb::Topic::GpuEvents])).await;
    becomes(&server, "GPU-1", GpuState::Ok).await;
    listened(&fake, "GPU-2").await;

    log.write("usb 1-1: new high-speed USB device");
    log.write("NVRM: Xid (PCI:0000:01:00): 79, pid=1234, GPU has fallen off the bus.");
    let event = next_of(&mut watch, "GPU-1", GpuEventKind::Xid).await;
    assert_eq!((event.code, event.source()), (Some(79), Source::KernelLog));
    assert_eq!(event.detail.as_deref(), Some("pid=1234, GPU has fallen off the bus."));
    assert_eq!(event.pci_bus_id.as_deref(), Some("00000000:01:00.0"));

    log.write("NVRM: Xid (PCI:0000:0a:00): 119, pid=1");
    let event = next(&mut watch).await;
    assert_eq!((event.gpu_uuid, event.code), (None, Some(119)));
    assert_eq!(event.pci_bus_id.as_deref(), Some("0000:0a:00"));
    assert_eq!(event.host, "camera-box");

    // Both tell of it, and it is one event; of another GPU it is another one.
    fake.happens("GPU-2", XID, 31);
    log.write("NVRM: Xid (PCI:0000:02:00): 31, pid=2");
    assert_eq!(next_of(&mut watch, "GPU-2", GpuEventKind::Xid).await.code, Some(31));
    log.write("NVRM: Xid (PCI:0000:01:00): 31, pid=3");
    assert_eq!(next_of(&mut watch, "GPU-1", GpuEventKind::Xid).await.code, Some(31));
    assert_eq!(listed(&server, pb::GpuEventFilter::default()).await.len(), 4);
    server.stop().await;
}

#[on_both]
async fn events_wait_while_they_cannot_be_stored(backend: Backend) {
    let fake = FakeNvml::new(&[card("GPU-1")]);
    let server = serve(TestDatabase::migrated(backend).await, &fake).await;
    let mut watch = server.watch(topics(&[pb::Topic::GpuEvents])).await;
    becomes(&server, "GPU-1", GpuState::Ok).await;
    listened(&fake, "GPU-1").await;
    execute(&server, "ALTER TABLE gpu_events RENAME TO gpu_events_away").await;
    fake.happens("GPU-1", XID, 8);
    fake.set(&[card("GPU-1").with("all", "!15")]);
    becomes(&server, "GPU-1", GpuState::Lost).await;
    execute(&server, "ALTER TABLE gpu_events_away RENAME TO gpu_events").await;
    // They are told of by different threads.
    let mut kinds = [next(&mut watch).await.kind(), next(&mut watch).await.kind()];
    kinds.sort_unstable();
    assert_eq!(kinds, [GpuEventKind::Xid, GpuEventKind::Lost]);
    server.stop().await;
}

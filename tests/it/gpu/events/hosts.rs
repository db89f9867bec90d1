//! What happens to the GPUs of other hosts, as agents report it.

use super::{reports::KernelLog, *};
use crate::{
    gpu::agent::{agent, stop},
    support::eventually,
};

/// A server that listens there, and has no GPUs of its own.
async fn listen(database: TestDatabase, address: &str) -> TestServer {
    TestServer::start_with(database, |settings| settings.listen = address.into()).await
}

#[on_both]
async fn what_happens_to_gpus_of_other_hosts_is_told_too(backend: Backend) {
    let (fake, log) = (FakeNvml::new(&[card("GPU-1")]), KernelLog::new());
    let server = listen(TestDatabase::migrated(backend).await, "127.0.0.1:0").await;
    let mut watch = server.watch(topics(&[pb::Topic::GpuEvents])).await;
    let address = server.address().to_string();
    let log_path = log.path();
    let more = ["--kernel-log", log_path.to_str().unwrap()];
    let mut agent = agent(&fake, &format!("http://{address}"), &more);
    listened(&fake, "GPU-1").await;
    becomes(&server, "GPU-1", GpuState::Ok).await;
    assert_eq!(state(&server, "GPU-1").await.1, Some(MemoryPressure::Normal));

    fake.happens("GPU-1", XID, 31);
    let event = next_of(&mut watch, "GPU-1", GpuEventKind::Xid).await;
    assert_eq!((event.host.as_str(), event.code), ("shed", Some(31)));
    assert_eq!((event.source(), event.gpu_index), (Source::NvmlEvent, Some(0)));
    assert_eq!((event.id > 0, event.occurrences), (true, 1));
    assert_eq!(listed(&server, pb::GpuEventFilter::default()).await, [event]);
    log.write("NVRM: Xid (PCI:0000:0a:00): 119, pid=1");
    let event = next(&mut watch).await;
    assert_eq!((event.gpu_uuid.as_deref(), event.detail.as_deref()), (None, Some("pid=1")));
    assert_eq!((event.host.as_str(), event.source()), ("shed", Source::KernelLog));

    fake.set(&[card("GPU-1").with("all", "!15")]);
    next_of(&mut watch, "GPU-1", GpuEventKind::Lost).await;
    assert_eq!(state(&server, "GPU-1").await, (GpuState::Lost, None));

    // While the server is away everything waits, and is told once it is back.
    let cursor = watch.cursor.clone();
    let database = server.stop().await;
    agent.says("the server does not accept GPU samples").await;
    fake.set(&[card("GPU-1").with("memory", "16000000000 463470592 17171480576")]);
    log.write("NVRM: Xid (PCI:0000:01:00): 62, pid=2");
    let before = fake.calls("GPU-1", "memory");
    eventually("samples without a server", async || fake.calls("GPU-1", "memory") >= before + 20).await;
    let server = listen(database, &address).await;
    let after = pb::WatchRequest { cursor, ..topics(&[pb::Topic::GpuEvents]) };
    let mut watch = server.watch(after).await;
    let mut told = Vec::new();
    while told.len() < 3 {
        let event = next(&mut watch).await;
        assert_eq!((event.host.as_str(), event.gpu_uuid()), ("shed", "GPU-1"));
        told.push((event.kind(), event.code));
    }
    told.sort_unstable();
    assert_eq!(
        told,
        [(GpuEventKind::Xid, Some(62)), (GpuEventKind::Back, None), (GpuEventKind::MemoryPressureChanged, None),]
    );
    becomes(&server, "GPU-1", GpuState::Ok).await;
    assert_eq!(state(&server, "GPU-1").await.1, Some(MemoryPressure::Warning));
    stop(agent).await;
    assert_eq!(listed(&server, pb::GpuEventFilter::default()).await.len(), 6);
    server.stop().await;
}

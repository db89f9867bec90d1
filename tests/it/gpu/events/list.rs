//! Lists of events.

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{EntityTrait, Set};
use watchpost::entity::gpu_event::{self, GpuEventKind as Kind, GpuEventSource};

use super::*;
use crate::support::calls::{refused, walk};

#[on_both]
async fn events_are_listed_by_filter_and_page(backend: Backend) {
    let database = TestDatabase::migrated(backend).await;
    let now = watchpost::entity::now();
    let row = |at: i64| {
        let which = usize::try_from(at).unwrap();
        gpu_event::ActiveModel {
            // Several at the same time.
            occurred_at: Set(now - TimeDelta::seconds(at / 4)),
            host: Set(["a", "b"][which % 2].into()),
            gpu_uuid: Set([Some("GPU-1"), Some("GPU-2"), None][which % 3].map(Into::into)),
            kind: Set([Kind::Xid, Kind::Xid, Kind::Lost, Kind::Back][which % 4]),
            code: Set([Some(79), Some(31), None, None][which % 4]),
            source: Set(GpuEventSource::KernelLog),
            ..Default::default()
        }
    };
    let db = database.connect().await;
    for at in 0..12 {
        gpu_event::Entity::insert(row(at)).exec_without_returning(&db).await.unwrap();
    }
    db.close().await.unwrap();
    let server = TestServer::start_with(database, |_| {}).await;
    let list = async |page_size, page_token: String, filter: pb::GpuEventFilter| {
        let request = pb::ListGpuEventsRequest { page_size, page_token, filter: Some(filter) };
        server.gpu_stats().list_gpu_events(request).await
    };
    let second = pb::TimeRange { start: Some(proto(now - TimeDelta::seconds(1))), end: Some(proto(now)) };
    let xids = vec![GpuEventKind::Xid.into()];
    for (total, filter) in [
        (12, of(&[])),
        (4, of(&["GPU-1"])),
        (8, of(&["GPU-1", "GPU-2"])),
        (6, pb::GpuEventFilter { host: "b".into(), ..of(&[]) }),
        (6, pb::GpuEventFilter { kinds: xids.clone(), ..of(&[]) }),
        (3, pb::GpuEventFilter { codes: vec![79, 1], ..of(&[]) }),
        (6, pb::GpuEventFilter { codes: vec![79, 31], ..of(&[]) }),
        (4, pb::GpuEventFilter { occurred_at: Some(second), ..of(&[]) }),
        (2, pb::GpuEventFilter { kinds: xids, ..of(&["GPU-1"]) }),
    ] {
        walk(total, async |size, token| {
            let page = list(size, token, filter.clone()).await.unwrap().into_inner();
            (page.gpu_events, page.next_page_token)
        })
        .await;
    }
    let newest = listed(&server, of(&[])).await;
    let keys = newest.iter().map(|event| (event.occurred_at.unwrap().seconds, event.id));
    assert!(keys.clone().zip(keys.skip(1)).all(|(newer, older)| newer > older));

    let page = list(2, String::new(), of(&[])).await.unwrap().into_inner();
    let other = pb::GpuEventFilter { host: "a".into(), ..of(&[]) };
    refused(list(2, page.next_page_token, other).await, "page_token");
    refused(list(-1, String::new(), of(&[])).await, "page_size");
    for (path, filter) in [
        ("filter.gpu_uuids[1]", of(&["a", ""])),
        ("filter.gpu_uuids[0]", of(&[&"x".repeat(97)])),
        ("filter.gpu_uuids", of(&["x"; 1001])),
        ("filter.host", pb::GpuEventFilter { host: "\0".into(), ..of(&[]) }),
        ("filter.kinds[0]", pb::GpuEventFilter { kinds: vec![0], ..of(&[]) }),
        ("filter.kinds[1]", pb::GpuEventFilter { kinds: vec![1, 99], ..of(&[]) }),
        ("filter.codes[0]", pb::GpuEventFilter { codes: vec![-1], ..of(&[]) }),
        ("filter.codes", pb::GpuEventFilter { codes: vec![1; 1001], ..of(&[]) }),
        (
            "filter.occurred_at.end",
            pb::GpuEventFilter { occurred_at: Some(pb::TimeRange { start: second.end, end: second.start }), ..of(&[]) },
        ),
    ] {
        refused(list(0, String::new(), filter).await, path);
    }
    server.stop().await;
}

/// Events of these GPUs.
fn of(gpu_uuids: &[&str]) -> pb::GpuEventFilter {
    pb::GpuEventFilter { gpu_uuids: gpu_uuids.iter().map(ToString::to_string).collect(), ..Default::default() }
}

fn proto(time: DateTime<Utc>) -> prost_types::Timestamp {
    watchpost::rpc::time::to_proto(time)
}

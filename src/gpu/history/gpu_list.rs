//! List of the GPUs with samples or roll-ups.

use std::collections::BTreeMap;

use sea_orm::{ConnectionTrait, EntityTrait, FromQueryResult};

use super::{queries::query_all, request::GpuFilter};
use crate::{entity::gpu, error::Result};

/// Every UUID of both tables, with one index lookup per UUID.
const UUIDS: &str = "\
    WITH RECURSIVE sampled (uuid) AS (\
        SELECT min(gpu_uuid) FROM gpu_stats UNION ALL \
        SELECT (SELECT min(gpu_uuid) FROM gpu_stats WHERE gpu_uuid > uuid) \
        FROM sampled WHERE uuid IS NOT NULL), \
    rolled (uuid) AS (\
        SELECT min(gpu_uuid) FROM gpu_stats_minutes UNION ALL \
        SELECT (SELECT min(gpu_uuid) FROM gpu_stats_minutes WHERE gpu_uuid > uuid) \
        FROM rolled WHERE uuid IS NOT NULL) \
    SELECT uuid FROM sampled WHERE uuid IS NOT NULL UNION \
    SELECT uuid FROM rolled WHERE uuid IS NOT NULL";

/// GPU of the answer.
#[derive(Debug)]
pub(super) struct ListedGpu {
    pub uuid: String,
    pub host: Option<String>,
    pub gpu_index: Option<i32>,
}

#[derive(FromQueryResult)]
struct Uuid {
    uuid: String,
}

/// GPUs that match the filter and were ever sampled, ordered by host and index.
pub(super) async fn list_gpus(db: &impl ConnectionTrait, filter: &GpuFilter) -> Result<Vec<ListedGpu>> {
    let mut gpus = BTreeMap::new();
    for Uuid { uuid } in query_all(db, UUIDS, []).await? {
        gpus.insert(uuid, None);
    }
    for gpu in gpu::Entity::find().all(db).await? {
        gpus.insert(gpu.uuid.clone(), Some(gpu));
    }
    let matches = |uuid: &String, gpu: &Option<gpu::Model>| {
        let host = gpu.as_ref().map_or("", |gpu| &gpu.host);
        (filter.uuids.is_empty() || filter.uuids.contains(uuid)) && (filter.host.is_empty() || filter.host == host)
    };
    gpus.retain(|uuid, gpu| matches(uuid, gpu));
    let mut gpus: Vec<_> = gpus.into_iter().collect();
    gpus.sort_by_cached_key(|(uuid, gpu)| {
        let sort_key = gpu.as_ref().map(|gpu| (gpu.host.clone(), gpu.gpu_index, gpu.mig_parent_uuid.is_some()));
        (sort_key.is_none(), sort_key, uuid.clone())
    });
    let listed = gpus.into_iter().map(|(uuid, gpu)| {
        let (host, gpu_index) = gpu.map(|gpu| (gpu.host, gpu.gpu_index)).unzip();
        ListedGpu { uuid, host, gpu_index: gpu_index.flatten() }
    });
    Ok(listed.collect())
}

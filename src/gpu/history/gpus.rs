//! Which GPUs there are samples of.

use std::collections::BTreeMap;

use sea_orm::{ConnectionTrait, EntityTrait, FromQueryResult};

use super::{all, request::Chosen};
use crate::{entity::gpu, error::Result};

/// Every UUID of a table, one index lookup each.
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

/// A GPU of the answer.
#[derive(Debug)]
pub(super) struct Known {
    pub uuid: String,
    pub host: Option<String>,
    pub gpu_index: Option<i32>,
}

#[derive(FromQueryResult)]
struct Uuid {
    uuid: String,
}

/// The GPUs that are chosen and were ever sampled, by host and index.
pub(super) async fn known(db: &impl ConnectionTrait, chosen: &Chosen) -> Result<Vec<Known>> {
    let mut gpus = BTreeMap::new();
    for Uuid { uuid } in all(db, UUIDS, []).await? {
        gpus.insert(uuid, None);
    }
    for gpu in gpu::Entity::find().all(db).await? {
        gpus.insert(gpu.uuid.clone(), Some(gpu));
    }
    let is_chosen = |uuid: &String, gpu: &Option<gpu::Model>| {
        let host = gpu.as_ref().map_or("", |gpu| &gpu.host);
        (chosen.uuids.is_empty() || chosen.uuids.contains(uuid))
            && (chosen.host.is_empty() || chosen.host == host)
    };
    gpus.retain(|uuid, gpu| is_chosen(uuid, gpu));
    let mut gpus: Vec<_> = gpus.into_iter().collect();
    gpus.sort_by_cached_key(|(uuid, gpu)| {
        let place = gpu.as_ref().map(|gpu| {
            (
                gpu.host.clone(),
                gpu.gpu_index,
                gpu.mig_parent_uuid.is_some(),
            )
        });
        (place.is_none(), place, uuid.clone())
    });
    let known = gpus.into_iter().map(|(uuid, gpu)| {
        let (host, gpu_index) = gpu.map(|gpu| (gpu.host, gpu.gpu_index)).unzip();
        Known {
            uuid,
            host,
            gpu_index: gpu_index.flatten(),
        }
    });
    Ok(known.collect())
}

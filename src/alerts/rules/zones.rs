//! Validation of the camera zones of a rule.

use std::collections::{BTreeSet, HashSet};

use sea_orm::{ColumnTrait, ConnectionTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};

use crate::{
    entity::camera_zone,
    error::{Error, Result},
};

/// Largest number of zones per query.
const MAX_ZONES_PER_QUERY: usize = 1_000;

/// Fails with `BROKEN_REFERENCE` at the first zone that does not exist and that the rule did not
/// name `before`. Within a transaction, existing zones are locked against deletion.
pub(crate) async fn refuse_unknown_zones(
    db: &impl ConnectionTrait,
    zone_ids: &[String],
    before: &[String],
) -> Result<()> {
    let old_ids: HashSet<_> = before.iter().collect();
    let new_ids: BTreeSet<_> = zone_ids.iter().filter(|id| !old_ids.contains(id)).collect();
    let existing = lock_existing_zones(db, &new_ids).await?;
    let is_unknown = |id: &String| new_ids.contains(id) && !existing.contains(id);
    match zone_ids.iter().position(is_unknown) {
        Some(index) => Err(unknown_zone("alert_rule", index)),
        None => Ok(()),
    }
}

/// Returns the ids that exist, and locks the zones against deletion until the transaction ends.
pub(crate) async fn lock_existing_zones(db: &impl ConnectionTrait, ids: &BTreeSet<&String>) -> Result<HashSet<String>> {
    use camera_zone::Column::Id;
    let ids: Vec<_> = ids.iter().copied().collect();
    let mut existing = HashSet::with_capacity(ids.len());
    for ids in ids.chunks(MAX_ZONES_PER_QUERY) {
        let zones: Vec<String> = camera_zone::Entity::find()
            .select_only()
            .column(Id)
            .filter(Id.is_in(ids.iter().copied()))
            // A fixed order avoids deadlocks.
            .order_by_asc(Id)
            .lock_shared()
            .into_tuple()
            .all(db)
            .await?;
        existing.extend(zones);
    }
    Ok(existing)
}

/// Error for a zone of a rule that does not exist.
pub(crate) fn unknown_zone(rule: &str, index: usize) -> Error {
    Error::BrokenReference {
        field: format!("{rule}.zone_ids[{index}]"),
        problem: "names a camera zone that does not exist".into(),
    }
}

//! Large payloads of jobs during a claim.

use std::collections::{HashMap, VecDeque};

use sea_orm::{ColumnTrait, DatabaseTransaction, EntityTrait, QueryFilter, QuerySelect};
use serde_json::Value as Json;
use uuid::Uuid;

use crate::{
    entity::job::{Column, Entity},
    error::Result,
};

/// Maximum number of payloads read by one query.
const MAX_PAYLOADS_PER_QUERY: usize = 16;

/// Large payloads of locked jobs, read a few at a time in the order of the jobs.
pub(crate) struct Payloads {
    ids: VecDeque<Uuid>,
    read: HashMap<Uuid, Json>,
}

impl Payloads {
    /// Prepares the payloads of jobs, given in the order of the later calls of [`get`](Self::get).
    pub(crate) fn of(ids: impl Iterator<Item = Uuid>) -> Self {
        Self { ids: ids.collect(), read: HashMap::new() }
    }

    /// Payload of a job. Payloads of jobs before this job are no longer available.
    pub(crate) async fn get(&mut self, tx: &DatabaseTransaction, id: Uuid) -> Result<Option<Json>> {
        if let Some(payload) = self.read.remove(&id) {
            return Ok(Some(payload));
        }
        let before = self.ids.iter().position(|waiting| *waiting == id);
        self.ids.drain(..before.unwrap_or_default());
        let ids = self.ids.drain(..MAX_PAYLOADS_PER_QUERY.min(self.ids.len()));
        let rows: Vec<(Uuid, Option<Json>)> = Entity::find()
            .select_only()
            .columns([Column::Id, Column::Payload])
            .filter(Column::Id.is_in(ids))
            .into_tuple()
            .all(tx)
            .await?;
        let payloads = rows.into_iter();
        self.read = payloads.filter_map(|(id, payload)| Some((id, payload?))).collect();
        Ok(self.read.remove(&id))
    }
}

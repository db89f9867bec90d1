//! Large payloads of jobs that are being claimed.

use std::collections::{HashMap, VecDeque};

use sea_orm::{ColumnTrait, DatabaseTransaction, EntityTrait, QueryFilter, QuerySelect};
use serde_json::Value as Json;
use uuid::Uuid;

use crate::{
    entity::job::{Column, Entity},
    error::Result,
};

/// How many are read together.
const READ: usize = 16;

/// Large payloads of jobs that are locked, read a few at a time and in the order of the jobs.
pub(crate) struct Payloads {
    ids: VecDeque<Uuid>,
    read: HashMap<Uuid, Json>,
}

impl Payloads {
    /// Those of these jobs.
    pub(crate) fn of(ids: impl Iterator<Item = Uuid>) -> Self {
        Self {
            ids: ids.collect(),
            read: HashMap::new(),
        }
    }

    /// The payload of a job. Those before it cannot be asked for any more.
    pub(crate) async fn get(&mut self, tx: &DatabaseTransaction, id: Uuid) -> Result<Option<Json>> {
        if let Some(payload) = self.read.remove(&id) {
            return Ok(Some(payload));
        }
        let before = self.ids.iter().position(|left| *left == id);
        self.ids.drain(..before.unwrap_or_default());
        let ids = self.ids.drain(..READ.min(self.ids.len()));
        let rows: Vec<(Uuid, Option<Json>)> = Entity::find()
            .select_only()
            .columns([Column::Id, Column::Payload])
            .filter(Column::Id.is_in(ids))
            .into_tuple()
            .all(tx)
            .await?;
        let payloads = rows.into_iter();
        self.read = payloads
            .filter_map(|(id, payload)| Some((id, payload?)))
            .collect();
        Ok(self.read.remove(&id))
    }
}

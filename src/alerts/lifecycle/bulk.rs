//! `AcknowledgeAlerts` and `DismissAlerts`: transitions of many alerts, in several transactions.

use std::collections::{BTreeMap, HashSet};

use futures_util::TryStreamExt;
use sea_orm::{ColumnTrait, Condition, EntityTrait, QueryFilter, QueryOrder, QuerySelect, Select};
use uuid::Uuid;

use super::{
    change::{lock, lock_exclusive, move_to},
    transition::Cause,
};
use crate::{
    db::Db,
    entity::alert::{AlertStatus, Column, Entity},
    error::{Error, Result},
    pb,
};

/// Largest number of alerts that one transaction moves.
const MAX_ALERTS_PER_TRANSACTION: usize = 200;

/// Number of attempts for a transaction that loses a write conflict.
const MAX_ATTEMPTS: usize = 5;

/// Request to move all alerts of a filter to another status.
#[derive(Debug)]
pub(crate) struct BulkTransition {
    filter: Condition,
    next: AlertStatus,
    cause: Cause,
}

/// Numbers of moved and unmoved alerts.
#[derive(Debug, Default)]
struct Tally {
    moved: i64,
    /// Unmoved alerts by the number of the protobuf status.
    not_moved: BTreeMap<i32, i64>,
}

impl BulkTransition {
    /// Validates the parameters of a request.
    pub(crate) fn parse(
        filter: Option<pb::AlertFilter>,
        all: bool,
        next: AlertStatus,
        cause: Cause,
        db: &Db,
    ) -> Result<Self> {
        let filter = filter.unwrap_or_default().condition(db.backend())?;
        if filter.is_empty() && !all {
            return Err(Error::invalid("filter", "must not be empty unless `all` is set"));
        }
        if all && !filter.is_empty() {
            return Err(Error::invalid("all", "must not be set together with a filter"));
        }
        Ok(Self { filter, next, cause })
    }

    /// Moves the matching alerts, oldest first. A dry run only counts the alerts.
    pub(crate) async fn run(&self, db: &Db, dry_run: bool) -> Result<pb::MoveAlertsResponse> {
        if dry_run {
            return self.count(db).await;
        }
        let mut tally = Tally::default();
        for ids in self.matching_ids(db).await?.chunks(MAX_ALERTS_PER_TRANSACTION) {
            let mut attempts = 1;
            loop {
                match self.move_chunk(db, ids).await {
                    Ok(chunk_tally) => break tally.extend(chunk_tally),
                    Err(Error::Contended) if attempts < MAX_ATTEMPTS => attempts += 1,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(tally.into())
    }

    async fn count(&self, db: &Db) -> Result<pb::MoveAlertsResponse> {
        let scan = db.scan().await?;
        let statuses: Vec<(AlertStatus, i64)> = Entity::find()
            .filter(self.filter.clone())
            .select_only()
            .column(Column::Status)
            .column_as(Column::Id.count(), "alerts")
            .group_by(Column::Status)
            .into_tuple()
            .all(scan.reader())
            .await?;
        let mut tally = Tally::default();
        for (status, alerts) in statuses {
            tally.add(status, status.may_become(self.next), alerts);
        }
        Ok(tally.into())
    }

    /// Returns the ids of matching alerts from one snapshot. Streams the rows, because many alerts
    /// may match.
    async fn matching_ids(&self, db: &Db) -> Result<Vec<Uuid>> {
        let scan = db.scan().await?;
        let ids = self
            .select()
            .order_by_asc(Column::CreatedAt)
            .order_by_asc(Column::Id)
            .into_tuple::<Uuid>()
            .stream(scan.reader())
            .await?;
        Ok(ids.try_collect().await?)
    }

    fn select(&self) -> Select<Entity> {
        Entity::find().filter(self.filter.clone()).select_only().column(Column::Id)
    }

    async fn move_chunk(&self, db: &Db, ids: &[Uuid]) -> Result<Tally> {
        db.write(async |tx| {
            lock_exclusive(tx).await?;
            let alerts = lock(tx, ids).await?;
            // Alerts may have changed since the ids were read.
            let matching_ids: Vec<Uuid> =
                self.select().filter(Column::Id.is_in(ids.iter().copied())).into_tuple().all(tx).await?;
            let matching: HashSet<_> = matching_ids.into_iter().collect();
            let mut tally = Tally::default();
            let mut movable = Vec::new();
            for alert in alerts {
                let is_moved = alert.status.may_become(self.next) && matching.contains(&alert.id);
                tally.add(alert.status, is_moved, 1);
                if is_moved {
                    movable.push(alert);
                }
            }
            move_to(tx, movable, self.next, &self.cause).await?;
            Ok(tally)
        })
        .await
    }
}

impl Tally {
    fn add(&mut self, status: AlertStatus, moved: bool, alerts: i64) {
        if moved {
            self.moved += alerts;
        } else {
            let status = pb::AlertStatus::from(status).into();
            *self.not_moved.entry(status).or_default() += alerts;
        }
    }

    fn extend(&mut self, other: Self) {
        self.moved += other.moved;
        for (status, alerts) in other.not_moved {
            *self.not_moved.entry(status).or_default() += alerts;
        }
    }
}

impl From<Tally> for pb::MoveAlertsResponse {
    fn from(tally: Tally) -> Self {
        let not_moved: i64 = tally.not_moved.values().sum();
        Self {
            matched: tally.moved + not_moved,
            moved: tally.moved,
            not_moved: tally
                .not_moved
                .into_iter()
                .map(|(status, alerts)| pb::AlertStatusCount { status, alerts })
                .collect(),
        }
    }
}

//! Acknowledging and dismissing many alerts, in chunks.

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

/// How many alerts one transaction moves.
const CHUNK: usize = 200;

/// How often a chunk is tried that was chosen to give way to others.
const TRIES: usize = 5;

/// Which alerts are to be moved where, and for whom.
#[derive(Debug)]
pub(crate) struct Bulk {
    filter: Condition,
    next: AlertStatus,
    cause: Cause,
}

/// What became of alerts.
#[derive(Debug, Default)]
struct Tally {
    moved: i64,
    /// How many were not, by the number of their status on the wire.
    not_moved: BTreeMap<i32, i64>,
}

impl Bulk {
    /// Checks what a request says.
    pub(crate) fn parse(
        filter: Option<pb::AlertFilter>,
        all: bool,
        next: AlertStatus,
        cause: Cause,
        db: &Db,
    ) -> Result<Self> {
        let filter = filter.unwrap_or_default().condition(db.backend())?;
        if filter.is_empty() && !all {
            return Err(Error::invalid(
                "filter",
                "must not be empty unless `all` is set",
            ));
        }
        if all && !filter.is_empty() {
            return Err(Error::invalid(
                "all",
                "must not be set together with a filter",
            ));
        }
        Ok(Self {
            filter,
            next,
            cause,
        })
    }

    /// Moves the alerts that there are now, oldest first; or tells how many would be moved.
    pub(crate) async fn run(&self, db: &Db, dry: bool) -> Result<pb::MoveAlertsResponse> {
        if dry {
            return self.count(db).await;
        }
        let mut tally = Tally::default();
        for ids in self.matching(db).await?.chunks(CHUNK) {
            let mut tries = 1;
            loop {
                match self.chunk(db, ids).await {
                    Ok(done) => break tally.extend(done),
                    Err(Error::Contended) if tries < TRIES => tries += 1,
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

    /// The ids of those that match, all of one moment. One by one: there may be many.
    async fn matching(&self, db: &Db) -> Result<Vec<Uuid>> {
        let scan = db.scan().await?;
        let ids = self
            .select()
            .order_by_asc(Column::CreatedAt)
            .order_by_asc(Column::Id)
            .into_tuple::<Uuid>()
            .stream(scan.reader())
            .await?;
        let ids = ids.try_collect().await?;
        Ok(ids)
    }

    fn select(&self) -> Select<Entity> {
        Entity::find()
            .filter(self.filter.clone())
            .select_only()
            .column(Column::Id)
    }

    async fn chunk(&self, db: &Db, ids: &[Uuid]) -> Result<Tally> {
        db.write(async |tx| {
            lock_exclusive(tx).await?;
            let alerts = lock(tx, ids).await?;
            // Others may have changed them since they matched.
            let matching = self.select().filter(Column::Id.is_in(ids.iter().copied()));
            let matching: Vec<Uuid> = matching.into_tuple().all(tx).await?;
            let matching: HashSet<_> = matching.into_iter().collect();
            let mut tally = Tally::default();
            let mut may = Vec::new();
            for alert in alerts {
                let moves = alert.status.may_become(self.next) && matching.contains(&alert.id);
                tally.add(alert.status, moves, 1);
                if moves {
                    may.push(alert);
                }
            }
            move_to(tx, may, self.next, &self.cause).await?;
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

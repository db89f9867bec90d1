//! The change feed: changes recorded in the transaction that makes them, and read in commit-safe
//! order.
//!
//! The feed depends on no family: a change has a topic, a key and the bytes of a message.

use chrono::{DateTime, Utc};
use sea_orm::{ActiveValue::Set, ConnectionTrait, DatabaseTransaction, DbBackend, Statement};

pub mod bounds;
pub mod cursor;
pub mod follow;
pub mod history;
pub mod holders;
pub mod incarnations;
pub mod position;
pub mod read;
pub mod reader;
pub mod retention;
pub mod tail;

mod ring;

pub use cursor::Cursors;
pub use follow::{Follower, News};
pub use position::{Position, Seen, Start};
pub use read::Change;
pub use reader::Feed;
pub use ring::{Entry, Readable};

use crate::{
    db::{Db, bulk::insert_all},
    entity::{self, change},
    error::{Error, Result},
};

/// Kind of the changed object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    Alerts,
    Events,
    Cameras,
    CameraZones,
    NotificationChannels,
    AlertRules,
    GpuEvents,
    Silences,
    Jobs,
    JobLogs,
    JobQueues,
    JobTypes,
    JobSchedules,
}

impl Topic {
    /// Name of the topic in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Alerts => "alerts",
            Self::Events => "events",
            Self::Cameras => "cameras",
            Self::CameraZones => "camera_zones",
            Self::NotificationChannels => "notification_channels",
            Self::AlertRules => "alert_rules",
            Self::GpuEvents => "gpu_events",
            Self::Silences => "silences",
            Self::Jobs => "jobs",
            Self::JobLogs => "job_logs",
            Self::JobQueues => "job_queues",
            Self::JobTypes => "job_types",
            Self::JobSchedules => "job_schedules",
        }
    }
}

/// Change to be recorded.
#[derive(Debug)]
pub struct Record {
    /// Kind of the changed object.
    pub topic: Topic,
    /// Id of the changed object.
    pub key: String,
    /// Encoded message for subscribers.
    pub message: Vec<u8>,
}

/// Records changes in the transaction that makes the changes, so that both commit or neither.
pub async fn record(
    tx: &DatabaseTransaction,
    changes: impl IntoIterator<Item = Record>,
) -> Result<()> {
    let rows = rows(tx, changes).await?;
    insert_all(tx, rows).await
}

/// Returns the rows of changes in this order, to be inserted in the transaction that makes the
/// changes.
pub async fn rows(
    tx: &DatabaseTransaction,
    changes: impl IntoIterator<Item = Record>,
) -> Result<Vec<change::ActiveModel>> {
    let mut rows = rows_on_postgres(changes);
    if tx.get_database_backend() == DbBackend::Sqlite && !rows.is_empty() {
        let number = commit_seq(tx).await?;
        for row in &mut rows {
            row.commit_seq = Set(Some(number));
        }
    }
    Ok(rows)
}

/// Variant of [`rows`] for PostgreSQL, where the database numbers transactions itself.
pub fn rows_on_postgres(changes: impl IntoIterator<Item = Record>) -> Vec<change::ActiveModel> {
    let created_at = entity::now();
    let row = |change: Record| change::ActiveModel {
        topic: Set(change.topic.as_str().to_string()),
        key: Set(change.key),
        message: Set(change.message),
        created_at: Set(created_at),
        ..Default::default()
    };
    changes.into_iter().map(row).collect()
}

/// Returns the time of the newest change; none if the feed is empty.
pub async fn newest(db: &Db) -> Result<Option<DateTime<Utc>>> {
    let sql = if db.backend() == DbBackend::Postgres {
        "SELECT created_at FROM changes ORDER BY xid DESC, seq DESC LIMIT 1"
    } else {
        "SELECT created_at FROM changes ORDER BY seq DESC LIMIT 1"
    };
    let statement = Statement::from_string(db.backend(), sql);
    let newest = db.reader().query_one_raw(statement).await?;
    Ok(newest
        .map(|row| row.try_get("", "created_at"))
        .transpose()?)
}

/// Returns the number of this transaction on SQLite: the sequence number of its first change.
async fn commit_seq(tx: &DatabaseTransaction) -> Result<i64> {
    if let Some(number) = Db::commit_seq() {
        return Ok(number);
    }
    let sql =
        "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'changes'), 0) + 1 AS first";
    let row = tx
        .query_one_raw(Statement::from_string(DbBackend::Sqlite, sql))
        .await?
        .ok_or_else(|| Error::internal("a query without a row"))?;
    let number = row.try_get("", "first")?;
    Db::set_commit_seq(number);
    Ok(number)
}

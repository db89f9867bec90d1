//! Reads pages of the feed, in an order in which nothing can later appear before a returned change.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbBackend, DbErr, RuntimeErr, Statement, sqlx};
use uuid::Uuid;

use super::{Cursors, Position};
use crate::{
    db::Db,
    error::{Error, Result},
};

/// PostgreSQL assigns `seq` before the commit, so a reader by `seq` alone skips changes that commit
/// late. Below the oldest running transaction nothing can still arrive, and `(xid, seq)` orders the
/// changes. One statement also returns the pruned position, the incarnation, and the presence of
/// committed changes that are not settled yet.
const AFTER_POSTGRES: &str = "\
    SELECT s.pruned_xid, s.pruned_seq, coalesce((SELECT xid FROM changes ORDER BY xid DESC, seq DESC LIMIT 1)::text::bigint \
    >= (SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint) + s.xid_offset, FALSE), \
    s.incarnation_id, s.tableoid::bigint, (SELECT oid::bigint FROM pg_database WHERE datname = current_database()), \
    pg_postmaster_start_time(), (SELECT created_at FROM changes WHERE xid = $1::text::xid8 AND seq = $2), \
    c.xid::text::bigint, c.seq, c.topic, c.key, c.message, c.created_at \
    FROM feed_state AS s LEFT JOIN LATERAL (SELECT xid, seq, topic, key, message, created_at FROM changes \
    WHERE (xid, seq) > ($1::text::xid8, $2) AND xid < ((SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint) \
    + s.xid_offset)::text::xid8 ORDER BY xid, seq LIMIT $3) AS c ON TRUE WHERE s.id = 1 ORDER BY c.xid, c.seq";

/// SQLite has a single writer, so `seq` is the commit order. The single row of `feed_state` is
/// joined to every change, or returned alone.
const AFTER_SQLITE: &str = "\
    SELECT s.pruned_seq, s.incarnation_id, (SELECT created_at FROM changes WHERE seq = $1) AS recorded_at, \
    c.seq, c.topic, c.key, c.message, c.created_at, coalesce(c.commit_seq, c.seq) AS commit_seq \
    FROM feed_state AS s LEFT JOIN changes AS c ON c.seq > $1 WHERE s.id = 1 ORDER BY c.seq LIMIT $2";

/// Change that was recorded in the feed.
#[derive(Debug, Clone)]
pub struct Change {
    /// Position of the change in the feed.
    pub position: Position,
    /// Transaction of the change.
    pub commit: i64,
    /// True for the last change of a transaction.
    pub ends_commit: bool,
    /// Kind of the changed object, see [`super::Record::topic`].
    pub topic: String,
    /// Id of the changed object.
    pub key: String,
    /// Encoded message for subscribers.
    pub message: Bytes,
    /// Time at which the change was recorded.
    pub created_at: DateTime<Utc>,
}

/// Changes after a position, with the state of the feed at the same moment.
#[derive(Debug)]
pub struct Page {
    /// Settled changes, in order.
    pub changes: Vec<Change>,
    /// Position up to which changes were deleted. A page for an earlier position has lost changes.
    pub pruned: Position,
    /// True if committed changes wait for a transaction that is still running.
    pub waiting: bool,
    /// Id of the current incarnation of the history.
    pub incarnation: Option<Uuid>,
    /// Location of the database.
    pub instance: Instance,
    /// Time at which the change at the requested position was recorded; absent if the change is not
    /// stored.
    pub recorded_at: Option<DateTime<Utc>>,
}

/// Location of the database, which changes after a move to another table, database or server. A
/// restart of PostgreSQL changes the value as well. On SQLite the value is constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Instance {
    table: i64,
    database: i64,
    server_started_at: DateTime<Utc>,
}

impl Page {
    /// Returns an error if changes after the requested position were pruned.
    pub fn check_kept(&self, cursors: &Cursors, position: Position) -> Result<()> {
        check_kept(self.pruned, cursors, position)
    }
}

/// Planning of a PostgreSQL statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryPlan {
    /// The statement is planned for every query, which takes a millisecond. A plan cached while the
    /// table was small would scan the whole table later.
    Fresh,
    /// The statement is planned once per connection. Only safe on connections of [`Db::by_key`],
    /// whose planner is restricted to indexes.
    Cached,
}

/// Returns at most `limit` changes after `position`.
pub async fn after(db: &Db, plan: QueryPlan, position: Position, limit: i64) -> Result<Page> {
    // One extra change shows if the last requested change ends its transaction.
    let mut page = if db.backend() == DbBackend::Postgres {
        after_on_postgres(db, plan, position, limit + 1).await?
    } else {
        after_on_sqlite(db, position, limit + 1).await?
    };
    // Transactions are settled as a whole, so the last change of the page ends its transaction.
    let mut next = None;
    for change in page.changes.iter_mut().rev() {
        change.ends_commit = next != Some(change.commit);
        next = Some(change.commit);
    }
    let limit = usize::try_from(limit).unwrap_or_default();
    page.changes.truncate(limit);
    Ok(page)
}

async fn after_on_postgres(db: &Db, plan: QueryPlan, position: Position, limit: i64) -> Result<Page> {
    // The columns of the change are NULL in the single row of an empty page.
    type Row = (
        i64,
        i64,
        bool,
        Option<Uuid>,
        i64,
        i64,
        DateTime<Utc>,
        Option<DateTime<Utc>>,
        Option<i64>,
        Option<i64>,
        Option<String>,
        Option<String>,
        Option<Vec<u8>>,
        Option<DateTime<Utc>>,
    );
    let query = sqlx::query_as::<_, Row>(AFTER_POSTGRES)
        .persistent(plan == QueryPlan::Cached)
        .bind(position.xid.to_string())
        .bind(position.seq)
        .bind(limit);
    let rows = query
        .fetch_all(db.reader().get_postgres_connection_pool())
        .await
        .map_err(|error| DbErr::Query(RuntimeErr::SqlxError(error.into())))?;
    let &(pruned_xid, pruned_seq, waiting, incarnation, table, database, server_started_at, recorded_at, ..) =
        rows.first().ok_or_else(no_state)?;
    let change = |(_, _, _, _, _, _, _, _, xid, seq, topic, key, message, created_at): Row| {
        let (xid, seq) = (xid?, seq?);
        Some(Change {
            position: Position { xid, seq, ..position },
            commit: xid,
            ends_commit: false,
            topic: topic?,
            key: key?,
            message: message?.into(),
            created_at: created_at?,
        })
    };
    Ok(Page {
        changes: rows.into_iter().filter_map(change).collect(),
        pruned: Position { xid: pruned_xid, seq: pruned_seq, ..position },
        waiting,
        incarnation,
        instance: Instance { table, database, server_started_at },
        recorded_at,
    })
}

async fn after_on_sqlite(db: &Db, position: Position, limit: i64) -> Result<Page> {
    let values = [position.seq.into(), limit.into()];
    let statement = Statement::from_sql_and_values(DbBackend::Sqlite, AFTER_SQLITE, values);
    let rows = db.reader().query_all_raw(statement).await?;
    let first = rows.first().ok_or_else(no_state)?;
    let pruned = Position { seq: first.try_get("", "pruned_seq")?, ..position };
    let incarnation = first.try_get("", "incarnation_id")?;
    let recorded_at = first.try_get("", "recorded_at")?;
    let mut changes = Vec::with_capacity(rows.len());
    for row in &rows {
        // The column is NULL in the single row of an empty page.
        if let Some(seq) = row.try_get("", "seq")? {
            changes.push(Change {
                position: Position { seq, ..position },
                commit: row.try_get("", "commit_seq")?,
                ends_commit: false,
                topic: row.try_get("", "topic")?,
                key: row.try_get("", "key")?,
                message: Bytes::from(row.try_get::<Vec<u8>>("", "message")?),
                created_at: row.try_get("", "created_at")?,
            });
        }
    }
    Ok(Page { changes, pruned, waiting: false, incarnation, instance: Instance::default(), recorded_at })
}

/// Returns an error if changes after the position were pruned.
pub(super) fn check_kept(pruned: Position, cursors: &Cursors, position: Position) -> Result<()> {
    if position >= pruned {
        return Ok(());
    }
    // Unused sequence numbers are included, so the number is an upper bound.
    let lost_changes = pruned.seq.saturating_sub(position.seq).max(1);
    Err(Error::CursorExpired { earliest_cursor: cursors.encode(pruned), lost_changes })
}

pub(super) fn no_state() -> Error {
    Error::internal("table feed_state is empty")
}

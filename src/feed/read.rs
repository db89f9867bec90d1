//! Reading the feed, in an order in which nothing can later appear before what was returned.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbBackend, DbErr, RuntimeErr, Statement, sqlx};
use uuid::Uuid;

use super::{Cursors, Position};
use crate::{
    db::Db,
    error::{Error, Result},
};

/// PostgreSQL hands out `seq` before the commit, so a reader of plain `seq`
/// skips what commits late. Below the oldest running transaction nothing can
/// still arrive, and `(xid, seq)` orders what is there. All that a page tells is of one moment: what
/// was pruned, which history it is of, what is left after the place, and whether changes are committed that cannot be read
/// yet, because an older transaction is still running.
const AFTER_POSTGRES: &str = "\
    SELECT s.pruned_xid, s.pruned_seq, coalesce((SELECT xid FROM changes ORDER BY xid DESC, seq DESC LIMIT 1)::text::bigint \
    >= (SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint) + s.xid_offset, FALSE), \
    s.incarnation_id, s.tableoid::bigint, (SELECT oid::bigint FROM pg_database WHERE datname = current_database()), \
    pg_postmaster_start_time(), (SELECT created_at FROM changes WHERE xid = $1::text::xid8 AND seq = $2), \
    c.xid::text::bigint, c.seq, c.topic, c.key, c.message, c.created_at \
    FROM feed_state AS s LEFT JOIN LATERAL (SELECT xid, seq, topic, key, message, created_at FROM changes \
    WHERE (xid, seq) > ($1::text::xid8, $2) AND xid < ((SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint) \
    + s.xid_offset)::text::xid8 ORDER BY xid, seq LIMIT $3) AS c ON TRUE WHERE s.id = 1 ORDER BY c.xid, c.seq";

/// SQLite has one writer, so `seq` is the order of the commits. The single row of `feed_state` comes with every change, or
/// alone.
const AFTER_SQLITE: &str = "\
    SELECT s.pruned_seq, s.incarnation_id, (SELECT created_at FROM changes WHERE seq = $1) AS place_at, \
    c.seq, c.topic, c.key, c.message, c.created_at, coalesce(c.commit_seq, c.seq) AS commit_seq \
    FROM feed_state AS s LEFT JOIN changes AS c ON c.seq > $1 WHERE s.id = 1 ORDER BY c.seq LIMIT $2";

/// A change that was recorded.
#[derive(Debug, Clone)]
pub struct Change {
    /// Its place in the feed.
    pub position: Position,
    /// The transaction that made it.
    pub commit: i64,
    /// Whether it is the last change of its transaction.
    pub ends_commit: bool,
    /// What kind of thing changed, see [`super::Topic::as_str`].
    pub topic: String,
    /// Which one.
    pub key: String,
    /// What subscribers are sent of it.
    pub message: Bytes,
    /// When it was recorded.
    pub created_at: DateTime<Utc>,
}

/// What the feed has after a place, at one moment.
#[derive(Debug)]
pub struct Page {
    /// Settled changes, in order.
    pub changes: Vec<Change>,
    /// The place up to which changes were deleted. If the page is of one before it, some are lost.
    pub pruned: Position,
    /// Whether committed changes wait behind a transaction that is still running.
    pub waiting: bool,
    /// The current incarnation of the history.
    pub incarnation: Option<Uuid>,
    /// Where the database runs.
    pub instance: Instance,
    /// When the change at the place was recorded; none if it is not there.
    pub place_at: Option<DateTime<Utc>>,
}

/// What differs when a database has moved to another table, database or server. It may differ without that, as after a
/// restart of PostgreSQL. On SQLite it is always the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Instance {
    table: i64,
    database: i64,
    server_started_at: DateTime<Utc>,
}

impl Page {
    /// Refuses the place that this is of, if changes after it are lost.
    pub fn check_kept(&self, cursors: &Cursors, position: Position) -> Result<()> {
        check_kept(self.pruned, cursors, position)
    }
}

/// Whether a statement of PostgreSQL is planned for each look at the feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planned {
    /// It is, which takes a millisecond: a plan that was made while the table was small would read all of
    /// it when it is large.
    Anew,
    /// It is planned once for a connection. For those of [`Db::by_key`], on which that cannot happen.
    Once,
}

/// What the feed has after `position`, at most `limit` changes.
pub async fn after(db: &Db, planned: Planned, position: Position, limit: i64) -> Result<Page> {
    // One more than asked for, to see whether it belongs to the same transaction as the last one.
    let mut page = if db.backend() == DbBackend::Postgres {
        after_on_postgres(db, planned, position, limit + 1).await?
    } else {
        after_on_sqlite(db, position, limit + 1).await?
    };
    // A transaction is settled as a whole, so that nothing follows where nothing is seen.
    let mut next = None;
    for change in page.changes.iter_mut().rev() {
        change.ends_commit = next != Some(change.commit);
        next = Some(change.commit);
    }
    let limit = usize::try_from(limit).unwrap_or_default();
    page.changes.truncate(limit);
    Ok(page)
}

async fn after_on_postgres(
    db: &Db,
    planned: Planned,
    position: Position,
    limit: i64,
) -> Result<Page> {
    // What is of a change is NULL in the single row of a page without one.
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
    let query = sqlx::query_as::<_, Row>(AFTER_POSTGRES).persistent(planned == Planned::Once);
    let query = query
        .bind(position.xid.to_string())
        .bind(position.seq)
        .bind(limit);
    let rows = query
        .fetch_all(db.reader().get_postgres_connection_pool())
        .await;
    let rows = rows.map_err(|error| DbErr::Query(RuntimeErr::SqlxError(error.into())))?;
    let &(
        pruned_xid,
        pruned_seq,
        waiting,
        incarnation,
        table,
        database,
        server_started_at,
        place_at,
        ..,
    ) = rows.first().ok_or_else(no_state)?;
    let change = |(_, _, _, _, _, _, _, _, xid, seq, topic, key, message, created_at): Row| {
        let (xid, seq) = (xid?, seq?);
        Some(Change {
            position: Position {
                xid,
                seq,
                ..position
            },
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
        pruned: Position {
            xid: pruned_xid,
            seq: pruned_seq,
            ..position
        },
        waiting,
        incarnation,
        instance: Instance {
            table,
            database,
            server_started_at,
        },
        place_at,
    })
}

async fn after_on_sqlite(db: &Db, position: Position, limit: i64) -> Result<Page> {
    let values = [position.seq.into(), limit.into()];
    let statement = Statement::from_sql_and_values(DbBackend::Sqlite, AFTER_SQLITE, values);
    let rows = db.reader().query_all_raw(statement).await?;
    let first = rows.first().ok_or_else(no_state)?;
    let pruned = Position {
        seq: first.try_get("", "pruned_seq")?,
        ..position
    };
    let incarnation = first.try_get("", "incarnation_id")?;
    let place_at = first.try_get("", "place_at")?;
    let mut changes = Vec::with_capacity(rows.len());
    for row in &rows {
        // NULL in the single row of a page without a change.
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
    Ok(Page {
        changes,
        pruned,
        waiting: false,
        incarnation,
        instance: Instance::default(),
        place_at,
    })
}

/// Refuses a place from which the feed can no longer be read without loss.
pub(super) fn check_kept(pruned: Position, cursors: &Cursors, position: Position) -> Result<()> {
    if position >= pruned {
        return Ok(());
    }
    // Numbers that were given and not used count, so that it is at most this.
    let lost_changes = pruned.seq.saturating_sub(position.seq).max(1);
    Err(Error::CursorExpired {
        earliest_cursor: cursors.encode(pruned),
        lost_changes,
    })
}

pub(super) fn no_state() -> Error {
    Error::internal("table feed_state is empty")
}

//! Reading the feed, in an order in which nothing can later appear before what was returned.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbBackend, DbErr, EntityTrait, RuntimeErr, Statement, sqlx};

use super::{Cursors, Position, Seen, Start};
use crate::{
    db::Db,
    entity::feed_state,
    error::{Error, Result},
};

/// PostgreSQL hands out `seq` before the commit, so a reader of plain `seq`
/// skips what commits late. Below the oldest running transaction nothing can
/// still arrive, and `(xid, seq)` orders what is there. All that a page tells is of one moment: what
/// was pruned, what is left after the place, and whether changes are committed that cannot be read
/// yet, because an older transaction is still running.
const AFTER_POSTGRES: &str = "\
    SELECT s.pruned_xid, s.pruned_seq, coalesce((SELECT xid FROM changes ORDER BY xid DESC, seq DESC LIMIT 1) \
    >= pg_snapshot_xmin(pg_current_snapshot()), FALSE), \
    c.xid::text::bigint, c.seq, c.topic, c.key, c.message, c.created_at \
    FROM feed_state AS s LEFT JOIN LATERAL (SELECT xid, seq, topic, key, message, created_at FROM changes \
    WHERE (xid, seq) > ($1::text::xid8, $2) AND xid < pg_snapshot_xmin(pg_current_snapshot()) \
    ORDER BY xid, seq LIMIT $3) AS c ON TRUE WHERE s.id = 1 ORDER BY c.xid, c.seq";

/// SQLite has one writer, so `seq` is the order of the commits.
const AFTER_SQLITE: &str = "\
    SELECT s.pruned_seq, c.seq, c.topic, c.key, c.message, c.created_at, c.commit_seq FROM feed_state AS s \
    LEFT JOIN (SELECT seq, topic, key, message, created_at, coalesce(commit_seq, seq) AS commit_seq \
    FROM changes WHERE seq > ? ORDER BY seq LIMIT ?) AS c ON TRUE WHERE s.id = 1 ORDER BY c.seq";

/// What one statement sees: the last place that is settled, and which transactions have ended
/// (see [`Seen`]).
const BOUNDS_POSTGRES: &str = "\
    SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint - 1 AS settled_xid, \
    coalesce(pg_sequence_last_value(pg_get_serial_sequence('changes', 'seq')::regclass), 0) AS settled_seq, \
    pg_current_snapshot()::text AS snapshot";
const BOUNDS_SQLITE: &str = "\
    SELECT 0 AS settled_xid, coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'changes'), 0) AS settled_seq, \
    '0:0:' AS snapshot";

/// How much is left after a place; counting stops at a million.
const BEHIND_POSTGRES: &str = "\
    SELECT count(*) AS changes, min(created_at) AS oldest FROM (SELECT created_at FROM changes \
    WHERE (xid, seq) > ($1::text::xid8, $2) LIMIT 1000000) AS behind";
const BEHIND_SQLITE: &str = "\
    SELECT count(*) AS changes, min(created_at) AS oldest FROM (SELECT created_at FROM changes \
    WHERE CAST($1 AS INTEGER) = 0 AND seq > $2 LIMIT 1000000)";

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

/// Picks the statement for the database and binds `values`.
fn statement<const N: usize>(
    db: &Db,
    postgres: &str,
    sqlite: &str,
    values: [sea_orm::Value; N],
) -> Statement {
    let sql = if db.backend() == DbBackend::Postgres {
        postgres
    } else {
        sqlite
    };
    Statement::from_sql_and_values(db.backend(), sql, values)
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
}

impl Page {
    /// Refuses the place that this is of, if changes after it are lost.
    pub fn check_kept(&self, cursors: Cursors, position: Position) -> Result<()> {
        kept(self.pruned, cursors, position)
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
    let &(xid, seq, waiting, ..) = rows.first().ok_or_else(no_state)?;
    let pruned = Position { xid, seq };
    let change = |(_, _, _, xid, seq, topic, key, message, created_at): Row| {
        let (xid, seq) = (xid?, seq?);
        Some(Change {
            position: Position { xid, seq },
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
        pruned,
        waiting,
    })
}

async fn after_on_sqlite(db: &Db, position: Position, limit: i64) -> Result<Page> {
    let values = [position.seq.into(), limit.into()];
    let statement = Statement::from_sql_and_values(DbBackend::Sqlite, AFTER_SQLITE, values);
    let rows = db.reader().query_all_raw(statement).await?;
    let first = rows.first().ok_or_else(no_state)?;
    let pruned = Position {
        xid: 0,
        seq: first.try_get("", "pruned_seq")?,
    };
    let mut changes = Vec::with_capacity(rows.len());
    for row in &rows {
        // NULL in the single row of a page without a change.
        if let Some(seq) = row.try_get("", "seq")? {
            changes.push(Change {
                position: Position {
                    xid: position.xid,
                    seq,
                },
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
    })
}

fn no_state() -> Error {
    Error::internal("table feed_state is empty")
}

/// The place that this moment is in the feed: after everything that is settled, and the
/// transactions behind it that are committed already and will be settled later.
pub async fn now(db: &Db) -> Result<Start> {
    now_in(db.reader(), db.backend()).await
}

/// As [`now`], of the moment that a transaction sees.
pub async fn now_in(db: &impl ConnectionTrait, backend: DbBackend) -> Result<Start> {
    let sql = if backend == DbBackend::Postgres {
        BOUNDS_POSTGRES
    } else {
        BOUNDS_SQLITE
    };
    let row = db
        .query_one_raw(Statement::from_string(backend, sql))
        .await?
        .ok_or_else(|| Error::internal("the feed has no bounds"))?;
    let position = Position {
        xid: row.try_get("", "settled_xid")?,
        seq: row.try_get("", "settled_seq")?,
    };
    let seen = snapshot(&row.try_get::<String>("", "snapshot")?)
        .ok_or_else(|| Error::internal("a snapshot cannot be read"))?;
    Ok(Start { position, seen })
}

/// Reads `xmin:xmax:running,running,…`.
fn snapshot(text: &str) -> Option<Seen> {
    let mut parts = text.splitn(3, ':').skip(1);
    let end = parts.next()?.parse().ok()?;
    let running = parts.next()?.split(',').filter(|xid| !xid.is_empty());
    let running = running.map(|xid| xid.parse().ok()).collect::<Option<_>>()?;
    Some(Seen { end, running })
}

/// The place after everything that is settled.
pub async fn settled(db: &Db) -> Result<Position> {
    Ok(now(db).await?.position)
}

/// How many changes there are after `position`, and when the oldest of them was recorded.
pub async fn behind(db: &Db, position: Position) -> Result<(i64, Option<DateTime<Utc>>)> {
    let values = [position.xid.to_string().into(), position.seq.into()];
    let row = db
        .reader()
        .query_one_raw(statement(db, BEHIND_POSTGRES, BEHIND_SQLITE, values))
        .await?;
    let row = row.ok_or_else(|| Error::internal("a count without a row"))?;
    Ok((row.try_get("", "changes")?, row.try_get("", "oldest")?))
}

/// Which database this is, and what is gone of its feed.
pub async fn state(db: &Db) -> Result<feed_state::Model> {
    let state = feed_state::Entity::find_by_id(1).one(db.reader()).await?;
    state.ok_or_else(no_state)
}

/// Refuses a place from which the feed can no longer be read without loss.
pub async fn check_kept(db: &Db, cursors: Cursors, position: Position) -> Result<()> {
    let state = state(db).await?;
    let pruned = Position {
        xid: state.pruned_xid,
        seq: state.pruned_seq,
    };
    kept(pruned, cursors, position)
}

fn kept(pruned: Position, cursors: Cursors, position: Position) -> Result<()> {
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

/// Refuses a start that this feed has not come to yet.
pub async fn check_reached(db: &Db, start: &Start) -> Result<()> {
    let now = now(db).await?;
    let ahead = if db.backend() == DbBackend::Postgres {
        start.position.xid >= now.seen.end || start.seen.end > now.seen.end
    } else {
        start.position > now.position || start.seen.end > 0
    };
    if ahead {
        return Err(Error::CursorAhead);
    }
    Ok(())
}

/// What the feed holds.
#[derive(Debug)]
pub struct Status {
    /// The place before the oldest change.
    pub earliest: Position,
    /// How many changes there are.
    pub changes: i64,
    /// When the oldest of them was recorded.
    pub oldest: Option<DateTime<Utc>>,
    /// When the newest of them was recorded.
    pub newest: Option<DateTime<Utc>>,
    /// How many were deleted.
    pub deleted: i64,
}

const STATUS: &str = "\
    SELECT pruned_xid, pruned_seq, pruned_count, (SELECT count(*) FROM changes) AS changes, \
    (SELECT min(created_at) FROM changes) AS oldest, \
    (SELECT max(created_at) FROM changes) AS newest FROM feed_state WHERE id = 1";

/// What the feed holds, all of it at one moment.
pub async fn status(db: &Db) -> Result<Status> {
    let row = db
        .reader()
        .query_one_raw(Statement::from_string(db.backend(), STATUS))
        .await?
        .ok_or_else(no_state)?;
    Ok(Status {
        earliest: Position {
            xid: row.try_get("", "pruned_xid")?,
            seq: row.try_get("", "pruned_seq")?,
        },
        changes: row.try_get("", "changes")?,
        oldest: row.try_get("", "oldest")?,
        newest: row.try_get("", "newest")?,
        deleted: row.try_get("", "pruned_count")?,
    })
}

//! Bounds of the feed: earliest and latest position, and the number of changes between positions.

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbBackend, EntityTrait, Statement};
use uuid::Uuid;

use super::{Position, Seen, Start, history::StoredState, read::no_state};
use crate::{
    db::{Db, dialect::Sql},
    entity::feed_state,
    error::{Error, Result},
};

/// Last settled change and snapshot of the ended transactions (see [`Seen`]), read by one
/// statement.
const NOW: Sql = Sql {
    postgres: "\
        SELECT s.incarnation_id, s.pruned_xid, s.pruned_seq, c.xid::text::bigint AS last_xid, c.seq AS last_seq, \
        s.xid_offset, pg_current_snapshot()::text AS snapshot FROM feed_state AS s \
        LEFT JOIN LATERAL (SELECT xid, seq FROM changes \
        WHERE xid < ((SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint) + s.xid_offset)::text::xid8 \
        ORDER BY xid DESC, seq DESC LIMIT 1) AS c ON TRUE WHERE s.id = 1",
    sqlite: "\
        SELECT s.incarnation_id, s.pruned_xid, s.pruned_seq, 0 AS last_xid, \
        coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'changes'), 0) AS last_seq, \
        s.xid_offset, '0:0:' AS snapshot FROM feed_state AS s WHERE s.id = 1",
};

/// Stored bounds and existence of the change at a position, read by one statement.
const STORED_STATE: Sql = Sql {
    postgres: "\
        SELECT s.incarnation_id, s.pruned_xid, s.pruned_seq, \
        EXISTS (SELECT FROM changes WHERE xid = $1::text::xid8 AND seq = $2) AS is_kept, \
        pg_snapshot_xmax(pg_current_snapshot())::text::bigint - 1 + s.xid_offset AS end_xid, \
        coalesce(pg_sequence_last_value(pg_get_serial_sequence('changes', 'seq')::regclass), 0) AS end_seq \
        FROM feed_state AS s WHERE s.id = 1",
    sqlite: "\
        SELECT s.incarnation_id, s.pruned_xid, s.pruned_seq, \
        EXISTS (SELECT 1 FROM changes WHERE CAST($1 AS INTEGER) = 0 AND seq = $2) AS is_kept, 0 AS end_xid, \
        coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'changes'), 0) AS end_seq \
        FROM feed_state AS s WHERE s.id = 1",
};

/// Number and oldest time of the changes after a position; counting stops at a million.
const CHANGES_AFTER: Sql = Sql {
    postgres: "\
        SELECT count(*) AS changes, min(created_at) AS oldest FROM (SELECT created_at FROM changes \
        WHERE (xid, seq) > ($1::text::xid8, $2) LIMIT 1000000) AS behind",
    sqlite: "\
        SELECT count(*) AS changes, min(created_at) AS oldest FROM (SELECT created_at FROM changes \
        WHERE CAST($1 AS INTEGER) = 0 AND seq > $2 LIMIT 1000000)",
};

/// Time of the newest change.
const NEWEST: Sql = Sql {
    postgres: "SELECT created_at FROM changes ORDER BY xid DESC, seq DESC LIMIT 1",
    sqlite: "SELECT created_at FROM changes ORDER BY seq DESC LIMIT 1",
};

/// Binds the position to the statement.
fn at(position: Position, sql: Sql<'_>, backend: DbBackend) -> Statement {
    sql.statement(backend, [position.xid.to_string().into(), position.seq.into()])
}

/// Returns the present start position and the id of the current incarnation.
///
/// The position lies after the last settled change. The snapshot names later transactions that are
/// already committed and are settled afterwards. `seen.incarnation` is not set yet.
pub async fn now_in(db: &impl ConnectionTrait, backend: DbBackend, generation: u64) -> Result<(Start, Option<Uuid>)> {
    let row = db.query_one_raw(NOW.statement(backend, [])).await?.ok_or_else(no_state)?;
    let position_of = |xid: i64, seq: i64| Position { generation, xid, seq };
    let pruned = position_of(row.try_get("", "pruned_xid")?, row.try_get("", "pruned_seq")?);
    let last: (Option<i64>, Option<i64>) = (row.try_get("", "last_xid")?, row.try_get("", "last_seq")?);
    let position = match last {
        (Some(xid), Some(seq)) => pruned.max(position_of(xid, seq)),
        _ => pruned,
    };
    let offset: i64 = row.try_get("", "xid_offset")?;
    let seen = snapshot(&row.try_get::<String>("", "snapshot")?, offset)
        .ok_or_else(|| Error::internal("the transaction snapshot of PostgreSQL cannot be parsed"))?;
    Ok((Start { position, seen }, row.try_get("", "incarnation_id")?))
}

/// Parses `xmin:xmax:running,running,…`. Without running transactions every change is settled, and
/// the result is empty.
fn snapshot(text: &str, offset: i64) -> Option<Seen> {
    let mut parts = text.splitn(3, ':');
    let (oldest, end): (i64, i64) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let running: Vec<_> = parts
        .next()?
        .split(',')
        .filter(|xid| !xid.is_empty())
        .map(|xid| xid.parse::<i64>().ok().map(|xid| xid + offset))
        .collect::<Option<_>>()?;
    if oldest == end {
        return Some(Seen::default());
    }
    Some(Seen { end: end + offset, running, incarnation: 0 })
}

/// Returns the stored state at a position and the id of the current incarnation.
pub async fn stored_state(db: &Db, position: Position) -> Result<(StoredState, Option<Uuid>)> {
    let statement = at(position, STORED_STATE, db.backend());
    let row = db.reader().query_one_raw(statement).await?.ok_or_else(no_state)?;
    let position_of = |xid: &str, seq: &str| {
        Ok::<_, Error>(Position { xid: row.try_get("", xid)?, seq: row.try_get("", seq)?, ..position })
    };
    let stored = StoredState {
        is_kept: row.try_get("", "is_kept")?,
        pruned: position_of("pruned_xid", "pruned_seq")?,
        end: position_of("end_xid", "end_seq")?,
    };
    Ok((stored, row.try_get("", "incarnation_id")?))
}

/// Returns the number of changes after `position` and the time at which the oldest was recorded.
pub async fn count_after(db: &Db, position: Position) -> Result<(i64, Option<DateTime<Utc>>)> {
    let statement = at(position, CHANGES_AFTER, db.backend());
    let row = db.reader().query_one_raw(statement).await?.ok_or_else(|| Error::internal("a count returned no row"))?;
    Ok((row.try_get("", "changes")?, row.try_get("", "oldest")?))
}

/// Returns the database id and the pruned position.
pub async fn state(db: &Db) -> Result<feed_state::Model> {
    let state = feed_state::Entity::find_by_id(1).one(db.reader()).await?;
    state.ok_or_else(no_state)
}

/// Returns the time of the newest change; none if the feed is empty.
pub async fn newest_recorded_at(db: &Db) -> Result<Option<DateTime<Utc>>> {
    let newest = db.reader().query_one_raw(NEWEST.statement(db.backend(), [])).await?;
    Ok(newest.map(|row| row.try_get("", "created_at")).transpose()?)
}

/// Content of the feed.
#[derive(Debug)]
pub struct Status {
    /// Position before the oldest change.
    pub earliest: Position,
    /// Number of stored changes.
    pub changes: i64,
    /// Time at which the oldest stored change was recorded; absent if the feed is empty.
    pub oldest: Option<DateTime<Utc>>,
    /// Time at which the newest stored change was recorded; absent if the feed is empty.
    pub newest: Option<DateTime<Utc>>,
    /// Number of changes deleted since the database was created.
    pub deleted: i64,
}

const STATUS: &str = "\
    SELECT pruned_xid, pruned_seq, pruned_count, (SELECT count(*) FROM changes) AS changes, \
    (SELECT min(created_at) FROM changes) AS oldest, \
    (SELECT max(created_at) FROM changes) AS newest FROM feed_state WHERE id = 1";

/// Returns the content of the feed, read by one statement.
pub async fn status(db: &Db, generation: u64) -> Result<Status> {
    let row = db.reader().query_one_raw(Statement::from_string(db.backend(), STATUS)).await?.ok_or_else(no_state)?;
    Ok(Status {
        earliest: Position { generation, xid: row.try_get("", "pruned_xid")?, seq: row.try_get("", "pruned_seq")? },
        changes: row.try_get("", "changes")?,
        oldest: row.try_get("", "oldest")?,
        newest: row.try_get("", "newest")?,
        deleted: row.try_get("", "pruned_count")?,
    })
}

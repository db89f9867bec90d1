//! The bounds of the feed: where it begins and ends, and what lies between.

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbBackend, EntityTrait, Statement};
use uuid::Uuid;

use super::{Position, Seen, Start, history::Evidence, read::no_state};
use crate::{
    db::Db,
    entity::feed_state,
    error::{Error, Result},
};

/// What one statement sees: the last change that is settled, and which transactions have ended (see [`Seen`]).
const NOW_POSTGRES: &str = "\
    SELECT s.incarnation_id, s.pruned_xid, s.pruned_seq, c.xid::text::bigint AS last_xid, c.seq AS last_seq, \
    s.xid_offset, pg_current_snapshot()::text AS snapshot FROM feed_state AS s \
    LEFT JOIN LATERAL (SELECT xid, seq FROM changes \
    WHERE xid < ((SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint) + s.xid_offset)::text::xid8 \
    ORDER BY xid DESC, seq DESC LIMIT 1) AS c ON TRUE WHERE s.id = 1";
const NOW_SQLITE: &str = "\
    SELECT s.incarnation_id, s.pruned_xid, s.pruned_seq, 0 AS last_xid, \
    coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'changes'), 0) AS last_seq, \
    s.xid_offset, '0:0:' AS snapshot FROM feed_state AS s WHERE s.id = 1";

/// What is known of a place, all of one moment.
const EVIDENCE_POSTGRES: &str = "\
    SELECT s.incarnation_id, s.pruned_xid, s.pruned_seq, \
    EXISTS (SELECT FROM changes WHERE xid = $1::text::xid8 AND seq = $2) AS is_kept, \
    pg_snapshot_xmax(pg_current_snapshot())::text::bigint - 1 + s.xid_offset AS end_xid, \
    coalesce(pg_sequence_last_value(pg_get_serial_sequence('changes', 'seq')::regclass), 0) AS end_seq \
    FROM feed_state AS s WHERE s.id = 1";
const EVIDENCE_SQLITE: &str = "\
    SELECT s.incarnation_id, s.pruned_xid, s.pruned_seq, \
    EXISTS (SELECT 1 FROM changes WHERE CAST($1 AS INTEGER) = 0 AND seq = $2) AS is_kept, 0 AS end_xid, \
    coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'changes'), 0) AS end_seq \
    FROM feed_state AS s WHERE s.id = 1";

/// How much is left after a place; counting stops at a million.
const BEHIND_POSTGRES: &str = "\
    SELECT count(*) AS changes, min(created_at) AS oldest FROM (SELECT created_at FROM changes \
    WHERE (xid, seq) > ($1::text::xid8, $2) LIMIT 1000000) AS behind";
const BEHIND_SQLITE: &str = "\
    SELECT count(*) AS changes, min(created_at) AS oldest FROM (SELECT created_at FROM changes \
    WHERE CAST($1 AS INTEGER) = 0 AND seq > $2 LIMIT 1000000)";

/// Picks the statement for the database and binds a place.
fn statement(backend: DbBackend, postgres: &str, sqlite: &str, position: Position) -> Statement {
    let sql = if backend == DbBackend::Postgres {
        postgres
    } else {
        sqlite
    };
    let values = [position.xid.to_string().into(), position.seq.into()];
    Statement::from_sql_and_values(backend, sql, values)
}

/// The place that this moment is in the feed: after the last change that is settled, and the
/// transactions behind it that are committed already and will be settled later. With it the current incarnation, of
/// which `seen` has no token yet.
pub async fn now_in(
    db: &impl ConnectionTrait,
    backend: DbBackend,
    generation: u64,
) -> Result<(Start, Option<Uuid>)> {
    let sql = if backend == DbBackend::Postgres {
        NOW_POSTGRES
    } else {
        NOW_SQLITE
    };
    let row = db
        .query_one_raw(Statement::from_string(backend, sql))
        .await?
        .ok_or_else(no_state)?;
    let place = |xid: i64, seq: i64| Position {
        generation,
        xid,
        seq,
    };
    let pruned = place(
        row.try_get("", "pruned_xid")?,
        row.try_get("", "pruned_seq")?,
    );
    let last: (Option<i64>, Option<i64>) =
        (row.try_get("", "last_xid")?, row.try_get("", "last_seq")?);
    let position = match last {
        (Some(xid), Some(seq)) => pruned.max(place(xid, seq)),
        _ => pruned,
    };
    let offset: i64 = row.try_get("", "xid_offset")?;
    let seen = snapshot(&row.try_get::<String>("", "snapshot")?, offset)
        .ok_or_else(|| Error::internal("a snapshot cannot be read"))?;
    Ok((Start { position, seen }, row.try_get("", "incarnation_id")?))
}

/// Reads `xmin:xmax:running,running,…`. If nothing runs, everything is settled, and nothing counts as seen beside it.
fn snapshot(text: &str, offset: i64) -> Option<Seen> {
    let mut parts = text.splitn(3, ':');
    let (oldest, end): (i64, i64) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let running = parts.next()?.split(',').filter(|xid| !xid.is_empty());
    let running = running.map(|xid| xid.parse::<i64>().ok().map(|xid| xid + offset));
    let running: Vec<_> = running.collect::<Option<_>>()?;
    if oldest == end {
        return Some(Seen::default());
    }
    Some(Seen {
        end: end + offset,
        running,
        incarnation: 0,
    })
}

/// What the database has at a position, and the current incarnation.
pub async fn evidence(db: &Db, position: Position) -> Result<(Evidence, Option<Uuid>)> {
    let statement = statement(db.backend(), EVIDENCE_POSTGRES, EVIDENCE_SQLITE, position);
    let row = db.reader().query_one_raw(statement).await?;
    let row = row.ok_or_else(no_state)?;
    let place = |xid: &str, seq: &str| {
        Ok::<_, Error>(Position {
            xid: row.try_get("", xid)?,
            seq: row.try_get("", seq)?,
            ..position
        })
    };
    let evidence = Evidence {
        is_kept: row.try_get("", "is_kept")?,
        pruned: place("pruned_xid", "pruned_seq")?,
        end: place("end_xid", "end_seq")?,
    };
    Ok((evidence, row.try_get("", "incarnation_id")?))
}

/// How many changes there are after `position`, and when the oldest of them was recorded.
pub async fn behind(db: &Db, position: Position) -> Result<(i64, Option<DateTime<Utc>>)> {
    let statement = statement(db.backend(), BEHIND_POSTGRES, BEHIND_SQLITE, position);
    let row = db.reader().query_one_raw(statement).await?;
    let row = row.ok_or_else(|| Error::internal("a count without a row"))?;
    Ok((row.try_get("", "changes")?, row.try_get("", "oldest")?))
}

/// Which database this is, and what is gone of its feed.
pub async fn state(db: &Db) -> Result<feed_state::Model> {
    let state = feed_state::Entity::find_by_id(1).one(db.reader()).await?;
    state.ok_or_else(no_state)
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
pub async fn status(db: &Db, generation: u64) -> Result<Status> {
    let row = db
        .reader()
        .query_one_raw(Statement::from_string(db.backend(), STATUS))
        .await?
        .ok_or_else(no_state)?;
    Ok(Status {
        earliest: Position {
            generation,
            xid: row.try_get("", "pruned_xid")?,
            seq: row.try_get("", "pruned_seq")?,
        },
        changes: row.try_get("", "changes")?,
        oldest: row.try_get("", "oldest")?,
        newest: row.try_get("", "newest")?,
        deleted: row.try_get("", "pruned_count")?,
    })
}

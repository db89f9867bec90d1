//! The table `feed_incarnations`: loads the history, and records process starts and replacements.

use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, ConnectionTrait, DatabaseTransaction, DbBackend, EntityTrait,
    QueryFilter, QueryOrder, Statement, sea_query::Expr,
};
use uuid::Uuid;

use super::{
    Position,
    history::{History, Incarnation},
};
use crate::{
    db::{Db, dialect::Sql},
    entity::{
        feed_incarnation::{ActiveModel, Column, Entity, Model},
        feed_state, now,
    },
    error::{Error, Result},
};

const INITIAL: &str = "initial";
const START: &str = "start";
const BREAK: &str = "break";

/// Maximum number of stored incarnations. Every process start adds one.
const MAX_INCARNATIONS: i64 = 10_000;

/// Prevents two processes on one PostgreSQL database from recording at the same time. The number
/// must be unique among the advisory locks of the database.
const LOCK_INCARNATIONS: &str = "SELECT pg_advisory_xact_lock(2087354105708545)";

/// Prevents writes to `changes` while the position offset is updated.
const LOCK_CHANGES: &str = "LOCK TABLE changes IN ACCESS EXCLUSIVE MODE";

/// Identity of the database, and the numbers from which positions are made. The timeline is read
/// from the name of the write-ahead log segment. The control file shows a new timeline only after
/// the first checkpoint of a promotion.
const DATABASE_STATE: Sql = Sql {
    postgres: "\
        SELECT concat_ws('/', (SELECT system_identifier FROM pg_control_system()), \
        (SELECT oid FROM pg_database WHERE datname = current_database()), s.tableoid, \
        substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)) AS identity, \
        s.xid_offset, pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS oldest_xid, \
        pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next_xid, \
        greatest(s.pruned_xid, (SELECT xid FROM changes ORDER BY xid DESC, seq DESC LIMIT 1)::text::bigint) AS last_xid, \
        coalesce(pg_sequence_last_value(pg_get_serial_sequence('changes', 'seq')::regclass), 0) AS last_seq \
        FROM feed_state AS s WHERE s.id = 1",
    sqlite: "\
        SELECT NULL AS identity, s.xid_offset, 0 AS oldest_xid, 0 AS next_xid, 0 AS last_xid, \
        coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'changes'), 0) AS last_seq \
        FROM feed_state AS s WHERE s.id = 1",
};

/// Reason for a check of the history.
#[derive(Debug, Clone, Copy)]
pub enum CheckReason<'a> {
    /// A process starts, which always begins an incarnation.
    Start,
    /// A running process has read something that contradicts its history.
    Mismatch {
        /// History as known to the process.
        known: &'a History,
        /// True if a change that the process has read no longer exists.
        is_lost: bool,
    },
}

/// State of the database within one transaction.
#[derive(Debug)]
struct DatabaseState {
    /// Identity of the cluster and database; absent on SQLite.
    identity: Option<String>,
    xid_offset: i64,
    /// Id of the oldest transaction that has not ended.
    oldest_xid: i64,
    /// First transaction id that has not been assigned.
    next_xid: i64,
    /// Transaction of the last change or of the pruned position, whichever is later.
    last_xid: i64,
    /// Last sequence number assigned to a change.
    last_seq: i64,
}

/// Records a new incarnation if the reason requires one.
pub async fn record(db: &Db, reason: CheckReason<'_>) -> Result<()> {
    db.write_unannounced(async |tx| record_in(tx, reason).await).await
}

async fn record_in(tx: &DatabaseTransaction, reason: CheckReason<'_>) -> Result<()> {
    let is_postgres = tx.get_database_backend() == DbBackend::Postgres;
    if is_postgres {
        tx.execute_unprepared(LOCK_INCARNATIONS).await?;
    }
    let newest = Entity::find()
        .order_by_desc(Column::Number)
        .one(tx)
        .await?
        .ok_or_else(|| Error::internal("table feed_incarnations is empty"))?;
    let mut state = DatabaseState::read(tx).await?;
    let is_ahead = state.is_ahead();
    let is_broken = is_ahead
        || newest.identity.is_some() && newest.identity != state.identity
        || is_lost(tx, reason, &newest).await?;
    if is_broken {
        if is_postgres && (is_ahead || state.xid_offset > 0) {
            tx.execute_unprepared(LOCK_CHANGES).await?;
            state = DatabaseState::read(tx).await?;
            set_offset(tx, &mut state).await?;
        }
        let begin_xid = if is_postgres { state.last_xid.max(state.oldest_xid + state.xid_offset - 1) } else { 0 };
        return insert_incarnation(tx, BREAK, begin_xid, state).await;
    }
    if matches!(reason, CheckReason::Start) {
        let begin_xid = own_xid(tx).await? + state.xid_offset;
        return insert_incarnation(tx, START, begin_xid, state).await;
    }
    Ok(())
}

/// Returns the id of this transaction. A reader that sees a change of a later transaction also sees
/// the rows of this transaction.
async fn own_xid(tx: &DatabaseTransaction) -> Result<i64> {
    if tx.get_database_backend() == DbBackend::Sqlite {
        return Ok(0);
    }
    let sql = "SELECT pg_current_xact_id()::text::bigint AS xid";
    let row = tx
        .query_one_raw(Statement::from_string(DbBackend::Postgres, sql))
        .await?
        .ok_or_else(|| Error::internal("a query returned no row"))?;
    Ok(row.try_get("", "xid")?)
}

/// Returns true if the process knows a lost history, and no process has recorded the loss yet.
async fn is_lost(tx: &DatabaseTransaction, reason: CheckReason<'_>, newest: &Model) -> Result<bool> {
    let CheckReason::Mismatch { known, is_lost } = reason else {
        return Ok(false);
    };
    let is_recorded = newest.kind == BREAK && !known.contains(newest.id);
    if is_recorded {
        return Ok(false);
    }
    let current = Entity::find().filter(Column::Id.eq(known.current()));
    Ok(is_lost || current.one(tx).await?.is_none())
}

/// Sets the offset that places every later change behind all stored changes.
async fn set_offset(tx: &DatabaseTransaction, state: &mut DatabaseState) -> Result<()> {
    // A transaction that is already running may still write its first change after this statement.
    let offset = (state.last_xid + 1 - state.oldest_xid).max(0);
    let default = if offset == 0 {
        "pg_current_xact_id()".to_string()
    } else {
        format!("(pg_current_xact_id()::text::bigint + {offset})::text::xid8")
    };
    tx.execute_unprepared(&format!("ALTER TABLE changes ALTER COLUMN xid SET DEFAULT {default}")).await?;
    state.xid_offset = offset;
    Ok(())
}

async fn insert_incarnation(
    tx: &DatabaseTransaction,
    kind: &'static str,
    begin_xid: i64,
    state: DatabaseState,
) -> Result<()> {
    let id = Uuid::now_v7();
    let incarnation = ActiveModel {
        id: Set(id),
        kind: Set(kind.to_string()),
        begin_xid: Set(begin_xid),
        begin_seq: Set(state.last_seq),
        identity: Set(state.identity),
        created_at: Set(now()),
        ..<ActiveModel as ActiveModelTrait>::default()
    };
    let row = incarnation.insert(tx).await?;
    feed_state::Entity::update_many()
        .col_expr(feed_state::Column::IncarnationId, Expr::value(id))
        .col_expr(feed_state::Column::XidOffset, Expr::value(state.xid_offset))
        .filter(feed_state::Column::Id.eq(1))
        .exec(tx)
        .await?;
    Entity::delete_many().filter(Column::Number.lte(row.number - MAX_INCARNATIONS)).exec(tx).await?;
    if kind == BREAK {
        tracing::warn!(
            feed.history_id = %id,
            "the database was restored from a copy, promoted or moved; earlier cursors are refused"
        );
    }
    Ok(())
}

impl DatabaseState {
    async fn read(tx: &DatabaseTransaction) -> Result<Self> {
        let statement = DATABASE_STATE.statement(tx.get_database_backend(), []);
        let row = tx.query_one_raw(statement).await?.ok_or_else(super::read::no_state)?;
        Ok(Self {
            identity: row.try_get("", "identity")?,
            xid_offset: row.try_get("", "xid_offset")?,
            oldest_xid: row.try_get("", "oldest_xid")?,
            next_xid: row.try_get("", "next_xid")?,
            last_xid: row.try_get("", "last_xid")?,
            last_seq: row.try_get("", "last_seq")?,
        })
    }

    /// Returns true if changes have positions that transactions have not reached yet: another
    /// server wrote the changes.
    fn is_ahead(&self) -> bool {
        self.last_xid > 0 && self.last_xid >= self.next_xid + self.xid_offset
    }
}

/// Loads the history of the database under the given generation.
pub async fn load(db: &impl ConnectionTrait, generation: u64) -> Result<History> {
    let state = feed_state::Entity::find_by_id(1).one(db).await?.ok_or_else(super::read::no_state)?;
    let mut rows = Entity::find().order_by_asc(Column::Number).all(db).await?;
    if let Some(replaced) = rows.iter().rposition(|row| row.kind == BREAK) {
        rows.drain(..replaced);
    }
    let is_initial = rows.first().is_some_and(|row| row.kind == INITIAL);
    let incarnation =
        |row: Model| Incarnation { id: row.id, begin: Position { generation, xid: row.begin_xid, seq: row.begin_seq } };
    let incarnations: Vec<_> = rows.into_iter().map(incarnation).collect();
    if incarnations.is_empty() {
        return Err(Error::internal("table feed_incarnations is empty"));
    }
    Ok(History { generation, database: state.database_id, incarnations, is_initial })
}

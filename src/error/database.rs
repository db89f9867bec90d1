//! Classification of database errors by their meaning for the caller.

use sea_orm::{DbErr, RuntimeErr, SqlErr, sqlx};

use super::{storage_fault::StorageFault, variants::Error};

/// Error text for a reachable database without a free connection.
const BUSY: &str = "all connections to the database are in use";

/// Creates the error for a reachable database without a free connection.
pub fn busy() -> DbErr {
    DbErr::Conn(RuntimeErr::Internal(BUSY.into()))
}

impl From<DbErr> for Error {
    fn from(error: DbErr) -> Self {
        if let Some(fault) = storage_fault(&error) {
            tracing::debug!(%error, "the storage of the database fails");
            return Self::Storage(fault);
        }
        // Serialisation failures and deadlocks.
        if code(&error).is_some_and(|code| code.len() == 5 && code.starts_with("40")) {
            return Self::Contended;
        }
        if matches!(&error, DbErr::Conn(RuntimeErr::Internal(text)) if text == BUSY) {
            return Self::DatabaseBusy;
        }
        // A cancelled statement on PostgreSQL, or an interrupted statement on SQLite.
        if code(&error).is_some_and(|code| matches!(code.as_str(), "57014" | "9")) {
            return Self::DeadlineExceeded;
        }
        if is_away(&error) {
            tracing::debug!(%error, "the database is unreachable");
            return Self::DatabaseAway;
        }
        if let Some(SqlErr::UniqueConstraintViolation(message)) = error.sql_err() {
            let field = constraint(&error).unwrap_or(message);
            return Self::AlreadyExists { field, problem: "the value must be unique".into() };
        }
        if let Some(SqlErr::ForeignKeyConstraintViolation(_)) = error.sql_err() {
            let field = constraint(&error).unwrap_or_default();
            return Self::BrokenReference { field, problem: "refers to a row that does not exist".into() };
        }
        if let Some(code) = code(&error)
            && matches!(code.as_str(), "23514" | "275" | "22P02" | "22001" | "22003" | "22008" | "22021" | "54000")
        {
            return Self::CheckViolated(constraint(&error).unwrap_or(code));
        }
        Self::internal(error)
    }
}

/// Returns true if the database was unreachable, disconnected or too busy: a retry may succeed.
pub fn is_away(error: &DbErr) -> bool {
    if matches!(error, DbErr::Conn(_) | DbErr::ConnectionAcquire(_)) {
        return true;
    }
    match sqlx_error(error) {
        Some(
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed,
        ) => true,
        Some(sqlx::Error::Database(database)) => database.code().is_some_and(|code| {
            // PostgreSQL: connection exceptions, operator intervention, insufficient resources.
            // SQLite: busy, locked.
            ["08", "57", "53"].iter().any(|class| code.len() == 5 && code.starts_with(class))
                || matches!(code.as_ref(), "5" | "6" | "261" | "517")
        }),
        _ => false,
    }
}

/// Returns the storage fault behind an error, if storage is the cause.
fn storage_fault(error: &DbErr) -> Option<StorageFault> {
    let error = sqlx_error(error)?;
    // An impossible connection state is the consequence of a failed commit.
    if matches!(error, sqlx::Error::BeginFailed | sqlx::Error::InvalidSavePointStatement) {
        return Some(StorageFault::Failing);
    }
    let sqlx::Error::Database(database) = error else {
        return None;
    };
    let code = database.code()?;
    if code.len() == 5 {
        // Five characters: a SQLSTATE of PostgreSQL.
        return match code.as_ref() {
            "53100" => Some(StorageFault::Full),
            "25006" => Some(StorageFault::ReadOnly),
            "XX001" | "XX002" => Some(StorageFault::Corrupt),
            code if code.starts_with("58") => Some(StorageFault::Failing),
            _ => None,
        };
    }
    // SQLite: the low byte of an extended result code is the result code.
    match code.parse::<u32>().ok()? & 0xFF {
        13 => Some(StorageFault::Full),
        3 | 8 => Some(StorageFault::ReadOnly),
        // Out of memory, I/O error, cannot open, locking protocol.
        7 | 10 | 14 | 15 => Some(StorageFault::Failing),
        11 | 26 => Some(StorageFault::Corrupt),
        1 if database.message().contains("no transaction is active") => Some(StorageFault::Failing),
        _ => None,
    }
}

fn sqlx_error(error: &DbErr) -> Option<&sqlx::Error> {
    if let DbErr::Conn(RuntimeErr::SqlxError(error))
    | DbErr::Exec(RuntimeErr::SqlxError(error))
    | DbErr::Query(RuntimeErr::SqlxError(error)) = error
    {
        return Some(error.as_ref());
    }
    None
}

/// Returns the database's code of the error: a SQLSTATE on PostgreSQL, a number on SQLite.
pub fn code(error: &DbErr) -> Option<String> {
    let sqlx::Error::Database(database) = sqlx_error(error)? else {
        return None;
    };
    database.code().map(std::borrow::Cow::into_owned)
}

/// Returns the violated constraint on PostgreSQL, `table.column` on SQLite.
fn constraint(error: &DbErr) -> Option<String> {
    let sqlx::Error::Database(database) = sqlx_error(error)? else {
        return None;
    };
    match database.constraint() {
        Some(name) => Some(name.to_string()),
        None => Some(database.message().rsplit(": ").next()?.to_string()),
    }
}

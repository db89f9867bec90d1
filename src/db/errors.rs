//! Connection errors of the database.

use std::sync::Arc;

use sea_orm::{DbErr, RuntimeErr, sqlx};

use crate::error;

/// Returns true if a connection error at the start may pass without intervention: the server is not
/// ready, or has no free connection.
pub fn is_transient(error: &DbErr) -> bool {
    // Codes of class 28 mean a wrong password or user name, which a retry does not repair.
    error::is_away(error) && error::code(error).is_none_or(|code| !code.starts_with("28"))
}

/// Wraps an error of sqlx as a connection error.
pub(super) fn to_db_err(error: sqlx::Error) -> DbErr {
    DbErr::Conn(RuntimeErr::SqlxError(Arc::new(error)))
}

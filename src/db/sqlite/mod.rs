//! Files of a SQLite database: their identity, the lock of the process that has them open, and their permissions.

pub(super) mod files;
pub(super) mod lock;
pub(super) mod permissions;

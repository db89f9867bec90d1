//! Settings of a database.

/// Address and connection settings of a database.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Address: `sqlite://…` or `postgres://…`.
    pub url: String,
    /// Maximum number of open connections to PostgreSQL.
    pub connections: u32,
    /// Durability of a commit on SQLite.
    pub sqlite_synchronous: Synchronous,
}

/// Time at which a commit on SQLite is synced to disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Synchronous {
    /// The commit is synced before the answer.
    Full,
    /// The commit is synced shortly after the answer. A power cut may lose the last commits; a crash of the process
    /// loses none.
    Normal,
}

//! The database: settings, connections, reads (`db/reader.rs`, `db/scans.rs`) and writes
//! (`db/write.rs`).

mod connect;
mod errors;
mod handle;
mod migrate;
pub mod reader;
mod renewal;
pub mod scans;
mod settings;
pub mod signals;
mod sql;
mod sqlite;
pub mod storage;
mod timeouts;
mod write;

pub use self::{
    connect::BY_KEY,
    errors::is_transient,
    handle::Db,
    settings::{Settings, Synchronous},
    sql::{bulk, dialect, row},
};

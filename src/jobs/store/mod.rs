//! Writes to the job tables: creation, moves, deletion, retention, and the group commits batching the writes.

pub(super) mod apply;
pub(super) mod bulk;
pub(super) mod create;
pub(super) mod delete;
pub mod retention;
pub(super) mod rows;
pub(super) mod writer;

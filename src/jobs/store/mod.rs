//! Writes to the tables of jobs: creating, applying changes, deleting, retention, and the group commit that batches
//! them.

pub(super) mod apply;
pub(super) mod bulk;
pub(super) mod create;
pub(super) mod delete;
pub mod retention;
pub(super) mod rows;
pub(super) mod writer;

//! Alert rules as a JSON document for version control and manual editing.

mod export;
mod format;
mod import;
mod read;
mod write;

pub(super) use self::{export::export, import::import};

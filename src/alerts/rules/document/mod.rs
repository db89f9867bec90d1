//! Rules as a JSON document, to be kept in a version control system and edited by people.

mod export;
mod import;
mod read;
mod write;

pub(super) use self::{export::export, import::import};

/// What `format` says in a document.
const FORMAT: &str = "watchpost.alert_rules";

/// What `version` says.
const VERSION: u32 = 1;

/// How many rules a document has at most.
const RULES: usize = 10_000;

/// How large a document is at most, in bytes.
const LARGEST: usize = 16 * 1024 * 1024;

//! The migrated schema: what the documents say, on both databases, and what the entities think it is.

pub mod catalogue;
mod checks;
mod entities;
pub mod expected;
mod keys;
mod migrations;
mod rows;
mod search;
mod tables;

//! SQL that all families share: statements of two dialects, expressions on rows, and statements for many rows.

pub mod bulk;
pub mod dialect;
pub mod row;

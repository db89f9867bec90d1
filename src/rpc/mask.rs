//! Update masks: the fields of a resource changed by an Update call.

use prost_types::FieldMask;

use crate::error::{Error, Result};

/// Fields changed by an Update call.
#[derive(Debug)]
pub enum UpdateMask {
    /// No mask was sent: all populated fields are changed.
    Populated,
    /// The mask is `*`: all updatable fields are changed.
    All,
    /// The listed paths are changed.
    Named(Vec<String>),
}

impl UpdateMask {
    /// Parses a mask. Paths outside of `updatable` are refused by name.
    pub fn parse(mask: Option<FieldMask>, updatable: &[&str]) -> Result<Self> {
        let paths = mask.map(|mask| mask.paths).unwrap_or_default();
        if paths.is_empty() {
            return Ok(Self::Populated);
        }
        if paths == ["*"] {
            return Ok(Self::All);
        }
        match paths.iter().find(|path| !updatable.contains(&path.as_str())) {
            Some(path) => Err(Error::invalid("update_mask", format!("`{path}` is not a field that can be changed"))),
            None => Ok(Self::Named(paths)),
        }
    }

    /// Returns true if the field `path` is changed; `is_set` is true if the client sent a value.
    pub fn covers(&self, path: &str, is_set: bool) -> bool {
        match self {
            Self::Populated => is_set,
            Self::All => true,
            Self::Named(paths) => paths.iter().any(|named| named == path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(paths: &[&str]) -> Result<UpdateMask> {
        let paths = paths.iter().map(ToString::to_string).collect();
        UpdateMask::parse(Some(FieldMask { paths }), &["name", "enabled"])
    }

    #[test]
    fn a_mask_covers_what_it_names() {
        let named = parse(&["name"]).unwrap();
        assert!(named.covers("name", false) && !named.covers("enabled", true));
        let all = parse(&["*"]).unwrap();
        assert!(all.covers("name", false) && all.covers("enabled", false));
        let none = UpdateMask::parse(None, &["name"]).unwrap();
        assert!(none.covers("name", true) && !none.covers("name", false));
    }

    #[test]
    fn unknown_and_read_only_paths_are_refused_by_name() {
        for paths in [&["id"][..], &["name", "nope"], &["name", "*"], &[""]] {
            assert!(parse(paths).is_err(), "{paths:?}");
        }
    }
}

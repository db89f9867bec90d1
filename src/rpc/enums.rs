//! Enums: the column's on one side, the wire's on the other.

/// Joins the enum of a column and the enum of the wire, variant by variant.
///
/// Both matches are exhaustive, so a variant added on one side only does not
/// compile. Gives the column's type `from_proto`, which reads the number that a
/// client sent: `None` for `UNSPECIFIED`, an error that names the field for a
/// number that is not known.
macro_rules! proto_enum {
    ($column:ty, $proto:ty { $($variant:ident),+ $(,)? }) => {
        impl From<$column> for $proto {
            fn from(value: $column) -> Self {
                match value { $(<$column>::$variant => Self::$variant,)+ }
            }
        }

        impl $crate::rpc::enums::FromProto for $column {
            fn from_proto(field: &str, value: i32) -> $crate::error::Result<Option<Self>> {
                match <$proto>::try_from(value) {
                    Ok(<$proto>::Unspecified) => Ok(None),
                    $(Ok(<$proto>::$variant) => Ok(Some(Self::$variant)),)+
                    Err(_) => Err($crate::error::Error::invalid(field, "is not a value that this server knows")),
                }
            }
        }
    };
}
pub(crate) use proto_enum;

use std::collections::BTreeSet;

use crate::error::{Error, Result};

/// An enum that a client can send.
pub trait FromProto: Sized {
    /// Reads the enum that a client sent in `field`. `None` for `UNSPECIFIED`.
    fn from_proto(field: &str, value: i32) -> Result<Option<Self>>;

    /// Reads a list, in which `UNSPECIFIED` has no meaning. Each value is given once, however often it was sent.
    fn all_from_proto(field: &str, values: &[i32]) -> Result<Vec<Self>> {
        let mut seen = BTreeSet::new();
        let mut read = Vec::new();
        for (at, value) in values.iter().enumerate() {
            if seen.insert(value) {
                let field = format!("{field}[{at}]");
                let value = Self::from_proto(&field, *value)?;
                read.push(value.ok_or_else(|| Error::invalid(field, "must not be unspecified"))?);
            }
        }
        Ok(read)
    }
}

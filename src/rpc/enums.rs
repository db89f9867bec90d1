//! Conversion between enums of database columns and enums of the API.

/// Connects a column enum and a protobuf enum, variant by variant.
///
/// Both matches are exhaustive, so a variant added on one side only does not compile. The macro
/// implements `from_proto` for the column type: `None` for `UNSPECIFIED`, and an error that names
/// the field for an unknown number.
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

/// Enum that a client can send.
pub trait FromProto: Sized {
    /// Converts the number sent in `field`. `None` for `UNSPECIFIED`.
    fn from_proto(field: &str, value: i32) -> Result<Option<Self>>;

    /// Converts a list, in which `UNSPECIFIED` is refused. Repeated values are returned once.
    fn all_from_proto(field: &str, values: &[i32]) -> Result<Vec<Self>> {
        let mut seen = BTreeSet::new();
        let mut converted = Vec::new();
        for (index, number) in values.iter().enumerate() {
            if seen.insert(number) {
                let field = format!("{field}[{index}]");
                let value = Self::from_proto(&field, *number)?;
                converted.push(value.ok_or_else(|| Error::invalid(field, "must not be unspecified"))?);
            }
        }
        Ok(converted)
    }
}

//! Parts of the API shared by all families, independent of tables.

pub mod calls;
pub mod check;
pub mod codec;
mod early_end;
pub mod enums;
pub mod json;
pub mod layer;
pub mod limits;
pub mod mask;
pub mod page;
pub mod time;
pub mod work;

/// Result of a handler.
pub type Reply<T> = std::result::Result<tonic::Response<T>, tonic::Status>;

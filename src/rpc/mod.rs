//! Ideas of the API that every family shares, with no table names inside.

pub mod calls;
pub mod check;
pub mod codec;
mod ending;
pub mod enums;
pub mod json;
pub mod layer;
pub mod limits;
pub mod mask;
pub mod page;
pub mod time;
pub mod work;

/// What a handler returns.
pub type Reply<T> = std::result::Result<tonic::Response<T>, tonic::Status>;

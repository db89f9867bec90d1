//! Ideas of the API that every family shares, with no table names inside.

pub mod admission;
pub mod call_limit;
pub mod calls;
pub mod check;
pub mod codec;
mod ending;
pub mod enums;
mod framing;
pub mod group;
pub mod insert;
pub mod json;
pub mod layer;
pub mod live;
pub mod loader;
pub mod mask;
pub mod page;
pub mod row;
pub mod shape;
pub mod snapshots;
pub mod time;
pub mod unfinished;
pub mod work;

/// What a handler returns.
pub type Reply<T> = std::result::Result<tonic::Response<T>, tonic::Status>;

//! Errors of the service, and their conversion to gRPC statuses.

mod chain;
mod database;
mod details;
mod status;
mod storage_fault;
mod variants;

pub use self::{
    chain::Chain,
    database::{busy, code, is_away},
    details::DOMAIN,
    storage_fault::StorageFault,
    variants::{Error, Result},
};

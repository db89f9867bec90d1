//! Events of GPUs: facts that are sent to subscribers and kept for good.
//!
//! Events come from NVML (`event_listener`), from the kernel log (`kernel_log`) and from changes of
//! conditions (`tracker`). They wait in a bounded queue until `store::events` stores and announces them
//! in one transaction.

mod counts;
pub(super) mod list;
mod pairing;
mod pending;
mod queue;

pub use self::counts::EventCounts;
pub(super) use self::{
    pending::{PendingEvent, to_record},
    queue::EventQueue,
};

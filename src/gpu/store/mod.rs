//! Storage of samples and events: the queue in memory, the writer, the rows, and the claims of
//! hosts on GPUs.

pub(super) mod claims;
pub(super) mod events;
pub(super) mod queue;
pub(super) mod rows;
pub(super) mod writer;

//! Dependencies of the streams of the job service.

use tokio_util::sync::CancellationToken;

use super::snapshots::Snapshots;
use crate::{
    db::Db,
    monitor::{Feed, WatchSlots},
};

/// Dependencies of watches and log tails. Clones share the state.
#[derive(Clone)]
pub(crate) struct WatchSource {
    pub db: Db,
    pub feed: Feed,
    /// Slots of open streams, shared with the watches of other services.
    pub places: WatchSlots,
    pub snapshots: Snapshots,
    pub shutdown: CancellationToken,
}

//! Dependencies of the streams of the job service.

use tokio_util::sync::CancellationToken;

use super::snapshots::Snapshots;
use crate::{
    db::Db,
    monitor::{Feed, Places},
};

/// Dependencies of watches and log tails. Clones share the state.
#[derive(Clone)]
pub(crate) struct WatchSource {
    pub db: Db,
    pub feed: Feed,
    /// Places of open streams, shared with the watches of other services.
    pub places: Places,
    pub snapshots: Snapshots,
    pub shutdown: CancellationToken,
}

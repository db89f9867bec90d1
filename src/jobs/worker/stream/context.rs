//! Dependencies of the sessions of workers.

use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use crate::{jobs::Queue, pb, rpc::layer};

/// Dependencies of a session.
#[derive(Debug, Clone)]
pub(crate) struct SessionContext {
    pub queue: Queue,
    /// Maximum size of a received message, in bytes.
    pub max_message_size: usize,
    pub shutdown: CancellationToken,
}

impl SessionContext {
    /// Next message of a worker. An invalid message gives a status with details, a broken connection one without.
    pub(super) async fn next_request(
        &self,
        incoming: &mut Streaming<pb::WorkJobsRequest>,
    ) -> Result<Option<pb::WorkJobsRequest>, Status> {
        layer::next_message(incoming, self.max_message_size).await
    }
}

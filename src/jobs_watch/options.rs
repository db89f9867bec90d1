//! Options of `watchpost jobs watch`.

use uuid::Uuid;

/// Server, job and output to watch.
#[derive(Debug, Clone)]
pub struct Options {
    /// URL of the server.
    pub server: String,
    /// Id of the job.
    pub id: Uuid,
    /// True to print the log of the job, from the first line on.
    pub logs: bool,
}

//! Job queue: jobs with their attempts, transitions and logs, and the workers running the jobs.

mod api;
mod check;
mod convert;
mod dispatch;
mod feed_records;
mod partition;
mod query;
mod queue;
mod schedules;
mod state;
pub mod store;
mod types;
mod wakeups;
mod watch;
mod worker;

pub use self::api::job_service::Jobs;
pub use self::api::queue_service::JobQueues;
pub use self::api::type_service::JobTypes;
pub use self::worker::service::JobWorkers;
pub use queue::Queue;
pub use schedules::JobSchedules;

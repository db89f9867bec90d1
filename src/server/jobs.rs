//! Job services: jobs, workers, queues, types and schedules.

use tonic::{codec::CompressionEncoding::Gzip, service::Routes};

use super::Components;
use crate::{
    jobs::{JobQueues, JobSchedules, JobTypes, JobWorkers, Jobs},
    monitor::WatchSlots,
    pb::{
        job_queue_service_server::JobQueueServiceServer, job_schedule_service_server::JobScheduleServiceServer,
        job_service_server::JobServiceServer, job_type_service_server::JobTypeServiceServer,
        job_worker_service_server::JobWorkerServiceServer,
    },
    rpc::limits::snapshots::SnapshotMemory,
};

/// Builds the services. Requests may have up to `limit` bytes.
pub(super) fn routes(components: &Components, places: &WatchSlots, memory: &SnapshotMemory, limit: usize) -> Routes {
    let (queue, shutdown) = (&components.queue, &components.shutdown);
    let jobs = Jobs::new(queue, components.feed.clone(), places.clone(), memory.clone(), shutdown.clone());
    let workers = JobWorkers::new(queue.clone(), places.clone(), limit, shutdown.clone());
    macro_rules! with_limits {
        ($service:expr) => {
            $service.max_decoding_message_size(limit).accept_compressed(Gzip)
        };
    }
    Routes::new(with_limits!(JobServiceServer::new(jobs)))
        .add_service(with_limits!(JobWorkerServiceServer::new(workers)))
        .add_service(with_limits!(JobQueueServiceServer::new(JobQueues::new(queue))))
        .add_service(with_limits!(JobTypeServiceServer::new(JobTypes::new(queue))))
        .add_service(with_limits!(JobScheduleServiceServer::new(JobSchedules::new(queue))))
}

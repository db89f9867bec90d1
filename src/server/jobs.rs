//! The services of jobs, of their workers, of the settings of their queues and types, and of their schedules.

use tonic::{codec::CompressionEncoding::Gzip, service::Routes};

use super::Parts;
use crate::{
    jobs::{JobQueues, JobSchedules, JobTypes, JobWorkers, Jobs},
    monitor::WatchSlots,
    pb::{
        job_queue_service_server::JobQueueServiceServer,
        job_schedule_service_server::JobScheduleServiceServer,
        job_service_server::JobServiceServer, job_type_service_server::JobTypeServiceServer,
        job_worker_service_server::JobWorkerServiceServer,
    },
    rpc::limits::snapshots::SnapshotMemory,
};

/// The services, which take requests of up to `limit` bytes.
pub(super) fn routes(
    parts: &Parts,
    places: &WatchSlots,
    memory: &SnapshotMemory,
    limit: usize,
) -> Routes {
    let (queue, shutdown) = (&parts.queue, &parts.shutdown);
    let jobs = Jobs::new(
        queue,
        parts.feed.clone(),
        places.clone(),
        memory.clone(),
        shutdown.clone(),
    );
    let workers = JobWorkers::new(queue.clone(), places.clone(), limit, shutdown.clone());
    macro_rules! accepting {
        ($service:expr) => {
            $service
                .max_decoding_message_size(limit)
                .accept_compressed(Gzip)
        };
    }
    Routes::new(accepting!(JobServiceServer::new(jobs)))
        .add_service(accepting!(JobWorkerServiceServer::new(workers)))
        .add_service(accepting!(JobQueueServiceServer::new(JobQueues::new(
            queue
        ))))
        .add_service(accepting!(JobTypeServiceServer::new(JobTypes::new(queue))))
        .add_service(accepting!(JobScheduleServiceServer::new(
            JobSchedules::new(queue)
        )))
}

//! Start of a worker stream: the worker introduces itself and resumes its leases.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use futures_util::stream::FuturesUnordered;
use tokio::{sync::mpsc, time::timeout};
use tonic::Streaming;
use uuid::Uuid;

use super::{
    context::SessionContext,
    messages::{Request, Response, ResponseSender, send_failure},
    session::{HeldJob, SessionEnd, WorkerSession},
};
use crate::{
    entity,
    error::{Error, Result},
    jobs::{
        check as jobs_check,
        state::{Move, Report},
        worker::{
            assignments::AssignmentUpdate,
            lease_state::{lease_state, lost_lease_state},
        },
    },
    pb,
    rpc::{check, time},
};

/// Lease duration if the worker names none.
const DEFAULT_LEASE: Duration = Duration::from_secs(3);

/// Time limit for the first message of a worker.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum number of leases resumed from an earlier stream.
const MAX_RESUMED_LEASES: usize = 1_000;

/// Serves a stream from the first message to the end.
pub(super) async fn serve(
    context: SessionContext,
    mut incoming: Streaming<pb::WorkJobsRequest>,
    responses: ResponseSender,
) -> Result<()> {
    let first = match timeout(HELLO_TIMEOUT, context.next_request(&mut incoming)).await {
        Ok(Err(status)) if !status.details().is_empty() => {
            send_failure(&responses, status).await;
            return Ok(());
        }
        first => first.ok().and_then(Result::ok).flatten(),
    };
    let Some(pb::WorkJobsRequest { message: Some(Request::Hello(hello)), .. }) = first else {
        return Err(Error::invalid("hello", "must be the first message"));
    };
    let worker_id = check::name("hello.worker_id", &hello.worker_id, 1..=100)?;
    let filter = jobs_check::worker_filter(&hello.queue_names, &hello.job_types)?;
    let capacity = jobs_check::capacity("hello.capacity", hello.capacity)?;
    let lease = jobs_check::lease(hello.lease_duration, DEFAULT_LEASE)?;
    check::within("hello.held", hello.held.len(), 0..=MAX_RESUMED_LEASES)?;
    let lease_ids = hello.held.iter().enumerate().map(|(index, held)| {
        let prefix = format!("hello.held[{index}].");
        jobs_check::lease_ids(&prefix, &held.job_id, &held.lease_id)
    });
    let lease_ids = lease_ids.collect::<Result<Vec<_>>>()?;
    let (update_sender, mut updates) = mpsc::unbounded_channel();
    let (states, held) = resume_leases(&context, lease_ids, &update_sender).await?;
    let welcome = pb::WorkerWelcome {
        heartbeat_interval: Some(time::duration_to_proto(lease / 3)),
        lease_duration: Some(time::duration_to_proto(lease)),
        held: states,
        server_time: Some(time::to_proto(entity::now())),
    };
    let free_capacity = capacity.saturating_sub(held.len());
    let dispatcher = &context.queue.dispatcher;
    let inbox = dispatcher.register(worker_id, filter, lease, free_capacity);
    let excess = held.len().saturating_sub(capacity);
    inbox.adjust_capacity(-isize::try_from(excess).unwrap_or_default());
    let mut session = WorkerSession {
        context,
        responses,
        inbox,
        lease,
        capacity,
        held,
        updates: update_sender,
        pending_results: FuturesUnordered::new(),
        last_extension: Instant::now(),
    };
    let end = if session.send(Response::Welcome(welcome)).await {
        session.run(&mut incoming, &mut updates).await
    } else {
        SessionEnd::Broken
    };
    session.close(&end, hello.release_on_disconnect).await;
    match end {
        SessionEnd::Closed | SessionEnd::Broken => Ok(()),
        SessionEnd::Shutdown => Err(Error::ShuttingDown),
    }
}

/// Takes over the resumed leases still held by the worker.
async fn resume_leases(
    context: &SessionContext,
    lease_ids: Vec<(Uuid, Uuid)>,
    updates: &mpsc::UnboundedSender<AssignmentUpdate>,
) -> Result<(Vec<pb::JobLeaseState>, HashMap<Uuid, HeldJob>)> {
    let mut states = Vec::with_capacity(lease_ids.len());
    let mut held = HashMap::new();
    for (id, lease_id) in lease_ids {
        context.queue.assignments.add(id, updates);
        let heartbeat = Move::Report(lease_id, Report::Heartbeat);
        match context.queue.writer.apply_move(id, heartbeat).await {
            Ok(job) => {
                let resumed = HeldJob { lease_id, cancelled: job.cancel_requested_at.is_some(), ending: false };
                held.insert(id, resumed);
                states.push(lease_state(&[job])?);
            }
            Err(Error::LeaseLost { .. }) => {
                context.queue.assignments.remove(id, updates);
                states.push(lost_lease_state(id));
            }
            Err(error) => return Err(error),
        }
    }
    Ok((states, held))
}

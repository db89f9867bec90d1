//! How a stream begins: the worker says who it is, and which jobs it has.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use futures_util::stream::FuturesUnordered;
use tokio::{sync::mpsc, time::timeout};
use tonic::Streaming;
use uuid::Uuid;

use super::{End, Held, Out, Request, Response, Worker, messages::broken};
use crate::{
    entity,
    error::{Error, Result},
    jobs::{
        check as jobs_check,
        state::{Move, Report},
        worker::{
            assignments::Told,
            service::{JobWorkers, lease_state, lost},
        },
    },
    pb,
    rpc::{check, time},
};

/// How long leases are unless the worker says otherwise.
const LEASE: Duration = Duration::from_secs(3);

/// How long a worker may take to say hello.
const HELLO: Duration = Duration::from_secs(10);

/// How many leases a worker may bring from an earlier stream.
const HELD: usize = 1_000;

/// Works a stream from its first message to its end.
pub(super) async fn begin(
    workers: JobWorkers,
    mut incoming: Streaming<pb::WorkJobsRequest>,
    out: Out,
) -> Result<()> {
    let first = match timeout(HELLO, workers.next(&mut incoming)).await {
        Ok(Err(status)) if !status.details().is_empty() => {
            broken(&out, status).await;
            return Ok(());
        }
        first => first.ok().and_then(Result::ok).flatten(),
    };
    let Some(pb::WorkJobsRequest {
        message: Some(Request::Hello(hello)),
        ..
    }) = first
    else {
        return Err(Error::invalid("hello", "must be the first message"));
    };
    let worker_id = check::name("hello.worker_id", &hello.worker_id, 1..=100)?;
    let accepts = jobs_check::accepts(&hello.queue_names, &hello.job_types)?;
    let capacity = jobs_check::capacity("hello.capacity", hello.capacity)?;
    let lease = jobs_check::lease(hello.lease_duration, LEASE)?;
    check::within("hello.held", hello.held.len(), 0..=HELD)?;
    let named = hello.held.iter().enumerate().map(|(at, held)| {
        jobs_check::held(&format!("hello.held[{at}]."), &held.job_id, &held.lease_id)
    });
    let named = named.collect::<Result<Vec<_>>>()?;
    let (told, mut hears) = mpsc::unbounded_channel();
    let (states, held) = resume(&workers, named, &told).await?;
    let welcome = pb::WorkerWelcome {
        heartbeat_interval: Some(time::duration_to_proto(lease / 3)),
        lease_duration: Some(time::duration_to_proto(lease)),
        held: states,
        server_time: Some(time::to_proto(entity::now())),
    };
    let want = capacity.saturating_sub(held.len());
    let dispatcher = &workers.queue.dispatcher;
    let inbox = dispatcher.enter(worker_id, accepts, lease, want);
    let over = held.len().saturating_sub(capacity);
    inbox.want(-isize::try_from(over).unwrap_or_default());
    let mut worker = Worker {
        workers,
        out,
        inbox,
        lease,
        capacity,
        held,
        told,
        answers: FuturesUnordered::new(),
        extended: Instant::now(),
    };
    let end = if worker.say(Response::Welcome(welcome)).await {
        worker.work(&mut incoming, &mut hears).await
    } else {
        End::Broken
    };
    let release = hello.release_on_disconnect;
    worker.leave(&end, release).await;
    match end {
        End::Closed | End::Broken => Ok(()),
        End::Shutdown => Err(Error::ShuttingDown),
    }
}

/// Takes over the leases that are current.
async fn resume(
    workers: &JobWorkers,
    named: Vec<(Uuid, Uuid)>,
    told: &mpsc::UnboundedSender<Told>,
) -> Result<(Vec<pb::JobLeaseState>, HashMap<Uuid, Held>)> {
    let (mut states, mut held) = (Vec::with_capacity(named.len()), HashMap::new());
    for (id, lease_id) in named {
        workers.queue.flights.add(id, told);
        let what = Move::Report(lease_id, Report::Heartbeat);
        match workers.queue.desk.carry_out(id, what).await {
            Ok(job) => {
                let cancelled = job.cancel_requested_at.is_some();
                let taken = Held {
                    lease_id,
                    cancelled,
                    ending: false,
                };
                held.insert(id, taken);
                states.push(lease_state(&[job])?);
            }
            Err(Error::LeaseLost { .. }) => {
                workers.queue.flights.remove(id, told);
                states.push(lost(id));
            }
            Err(error) => return Err(error),
        }
    }
    Ok((states, held))
}

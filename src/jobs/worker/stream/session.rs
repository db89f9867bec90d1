//! Session of a worker on a `WorkJobs` stream.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use prost::Message;
use tokio::{sync::mpsc, time::sleep_until};
use tonic::Streaming;
use uuid::Uuid;

use super::{
    context::SessionContext,
    messages::{Request, Response, ResponseSender, cancellation, lease_lost, refusal, send_failure},
};
use crate::{
    entity::{self, job::Model},
    error::{Error, Result},
    jobs::{
        check as jobs_check,
        dispatch::{Inbox, claim::ClaimedJob},
        state::{Move, Report},
        worker::assignments::AssignmentUpdate,
    },
    pb,
    rpc::{time, work},
};

/// Grace period for reports after the shutdown signal.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

/// Maximum number of unanswered reports of a worker. Beyond the limit, no further request is read.
const MAX_PENDING_REPORTS: usize = 4_096;

/// Maximum number of report results in one response.
const MAX_RESULTS_PER_RESPONSE: usize = 512;

/// End of a session.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum SessionEnd {
    /// The worker closed its side of the stream.
    Closed,
    /// The connection broke.
    Broken,
    /// The server shuts down.
    Shutdown,
}

/// Job held by the worker.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeldJob {
    pub lease_id: Uuid,
    /// True if the worker has been notified of the cancellation.
    pub cancelled: bool,
    /// True if the worker has reported the end of the attempt.
    pub ending: bool,
}

/// Result of a report.
pub(super) struct ReportResult {
    /// Number given by the worker. `None` for a lease check of the server.
    number: Option<i64>,
    id: Uuid,
    lease_id: Uuid,
    ends_attempt: bool,
    result: Result<Vec<Model>>,
}

/// Session between the first message of a worker and the end of its stream.
pub(super) struct WorkerSession {
    pub context: SessionContext,
    pub responses: ResponseSender,
    pub inbox: Inbox,
    /// Lease duration of the jobs of the worker.
    pub lease: Duration,
    /// Maximum number of jobs held at once.
    pub capacity: usize,
    pub held: HashMap<Uuid, HeldJob>,
    /// Sender registered for the assigned jobs.
    pub updates: mpsc::UnboundedSender<AssignmentUpdate>,
    /// Reports not yet answered.
    pub pending_results: FuturesUnordered<BoxFuture<'static, ReportResult>>,
    /// Time of the last extension of all leases.
    pub last_extension: Instant,
}

impl WorkerSession {
    /// Runs the session until its end. `updates` receives changes of the assigned jobs.
    pub(super) async fn run(
        &mut self,
        incoming: &mut Streaming<pb::WorkJobsRequest>,
        updates: &mut mpsc::UnboundedReceiver<AssignmentUpdate>,
    ) -> SessionEnd {
        let context = self.context.clone();
        let shutdown = context.shutdown.clone();
        let (mut is_open, mut drain_deadline) = (true, None);
        loop {
            if !is_open && self.pending_results.is_empty() {
                return SessionEnd::Closed;
            }
            let is_connected = tokio::select! {
                biased;
                () = self.responses.closed() => return SessionEnd::Broken,
                () = shutdown.cancelled(), if drain_deadline.is_none() => {
                    drain_deadline = Some(Instant::now() + SHUTDOWN_GRACE);
                    self.inbox.close();
                    let draining = pb::ServerDraining {
                        grace: Some(time::duration_to_proto(SHUTDOWN_GRACE)),
                    };
                    self.send(Response::Draining(draining)).await
                }
                () = wait_until(drain_deadline), if drain_deadline.is_some() => {
                    return SessionEnd::Shutdown;
                }
                Some(result) = self.pending_results.next(), if !self.pending_results.is_empty() => {
                    self.send_results(result).await
                }
                Some(update) = updates.recv() => self.handle_update(update).await,
                request = context.next_request(incoming),
                    if is_open && self.pending_results.len() < MAX_PENDING_REPORTS =>
                {
                    match request {
                        Ok(Some(request)) => self.handle_request(request).await,
                        Ok(None) => {
                            is_open = false;
                            self.inbox.close();
                            true
                        }
                        Err(status) => {
                            send_failure(&self.responses, status).await;
                            return SessionEnd::Broken;
                        }
                    }
                }
                Some(claimed) = self.inbox.next() => self.send_jobs(claimed).await,
            };
            if !is_connected {
                return SessionEnd::Broken;
            }
        }
    }

    /// Sends claimed jobs to the worker. Returns false if the stream is closed.
    async fn send_jobs(&mut self, claimed: Vec<ClaimedJob>) -> bool {
        let mut lost = Vec::new();
        for claimed in &claimed {
            let (id, held) = (claimed.job.id, HeldJob { lease_id: claimed.lease_id, cancelled: false, ending: false });
            self.context.queue.assignments.add(id, &self.updates);
            // The worker lost the job and claims the job again before a notice of the loss.
            if let Some(previous) = self.held.insert(id, held) {
                self.inbox.adjust_capacity(1);
                if !previous.ending {
                    lost.push(lease_lost(id, previous.lease_id));
                }
            }
        }
        let jobs = claimed.into_iter().map(|claimed| Response::Job(claimed.into()));
        for response in lost.into_iter().chain(jobs) {
            if !self.send(response).await {
                return false;
            }
        }
        true
    }

    /// Handles a request of the worker. Returns false if the stream is closed.
    async fn handle_request(&mut self, request: pb::WorkJobsRequest) -> bool {
        if self.last_extension.elapsed() > self.lease / 6 {
            self.last_extension = Instant::now();
            let held: Vec<_> = self.held.iter().map(|(id, held)| (*id, *held)).collect();
            for (id, held) in held {
                if !held.ending {
                    self.check_lease(id, held.lease_id).await;
                }
            }
        }
        let number = request.number;
        let Some(message) = request.message else {
            return true;
        };
        let (job_id, reported) = match message {
            Request::Hello(_) => {
                let error = Error::invalid("hello", "must only be the first message");
                return self.send_refusal(number, String::new(), error).await;
            }
            Request::Capacity(capacity) => {
                match jobs_check::capacity("capacity.capacity", capacity.capacity) {
                    Ok(capacity) => self.set_capacity(capacity),
                    Err(error) => return self.send_refusal(number, String::new(), error).await,
                }
                return true;
            }
            Request::Heartbeat(pb::WorkerHeartbeat {}) => {
                let now = time::to_proto(entity::now());
                return self.send(Response::ServerTime(now)).await;
            }
            Request::Progress(progress) => {
                let throttle = &self.context.queue.throttle;
                let reported = jobs_check::progress(&progress).map(|(id, lease_id, progress)| {
                    let is_published = throttle.try_publish(id);
                    (id, lease_id, Report::Progress(progress, is_published))
                });
                (progress.job_id, reported)
            }
            Request::Logs(logs) => {
                let id = logs.job_id.clone();
                let report = work::run_by_size(logs.encoded_len(), || jobs_check::logs(logs));
                (id, report.await)
            }
            Request::Complete(completion) => {
                let id = completion.job_id.clone();
                let report = work::run_by_size(completion.encoded_len(), || jobs_check::completion("", completion));
                (id, report.await)
            }
            Request::Fail(failure) => {
                let reported = jobs_check::failure(&failure);
                (failure.job_id, reported)
            }
            Request::Release(release) => {
                let reported = jobs_check::release(&release);
                (release.job_id, reported)
            }
            Request::AcknowledgeCancellation(acknowledgement) => {
                let reported = jobs_check::acknowledgement(&acknowledgement);
                (acknowledgement.job_id, reported)
            }
        };
        match reported {
            Ok((id, lease_id, report)) => {
                self.submit_report(Some(number), id, lease_id, report).await;
                true
            }
            Err(error) => self.send_refusal(number, job_id, error).await,
        }
    }

    /// Checks a lease, and extends the lease if still held.
    async fn check_lease(&mut self, id: Uuid, lease_id: Uuid) {
        self.submit_report(None, id, lease_id, Report::Heartbeat).await;
    }

    async fn submit_report(&mut self, number: Option<i64>, id: Uuid, lease_id: Uuid, report: Report) {
        let ends_attempt = match report {
            Report::Complete(_) | Report::Fail(_) | Report::Release { .. } | Report::AcknowledgeCancellation => true,
            Report::Progress(..) | Report::Logs { .. } | Report::Heartbeat => false,
        };
        if ends_attempt
            && let Some(held) = self.held.get_mut(&id)
            && held.lease_id == lease_id
        {
            held.ending = true;
        }
        let writer = &self.context.queue.writer;
        let submitted = writer.report(id, lease_id, report).await;
        self.pending_results.push(Box::pin(async move {
            let result = match submitted {
                Ok(result) => result.await.unwrap_or(Err(Error::ShuttingDown)),
                Err(error) => Err(error),
            };
            ReportResult { number, id, lease_id, ends_attempt, result }
        }));
    }

    /// Sends the available report results to the worker. Returns false if the stream is closed.
    async fn send_results(&mut self, first: ReportResult) -> bool {
        let (mut accepted, mut next, mut freed) = (Vec::new(), Some(first), 0);
        let mut notices = Vec::new();
        while let Some(report) = next {
            let held = self.held.get_mut(&report.id).filter(|held| held.lease_id == report.lease_id);
            match report.result {
                Ok(jobs) => {
                    accepted.extend(report.number);
                    if report.ends_attempt && held.is_some() {
                        self.drop_job(report.id);
                        freed += 1;
                    } else if let (Some(held), Some(job)) = (held, jobs.first())
                        && job.cancel_requested_at.is_some()
                        && !std::mem::replace(&mut held.cancelled, true)
                    {
                        notices.push(cancellation(
                            report.id,
                            held.lease_id,
                            job.cancel_reason.clone(),
                            job.cancel_requested_by.clone(),
                        ));
                    }
                }
                Err(error) => {
                    if let Some(held) = held {
                        if matches!(error, Error::LeaseLost { .. }) {
                            let ends_by_other_report = held.ending && !report.ends_attempt;
                            if !ends_by_other_report {
                                self.drop_job(report.id);
                                freed += 1;
                                notices.push(lease_lost(report.id, report.lease_id));
                            }
                        } else if report.ends_attempt {
                            held.ending = false;
                        }
                    }
                    if let Some(number) = report.number {
                        notices.push(refusal(number, report.id.to_string(), &error));
                    }
                }
            }
            next = if accepted.len() < MAX_RESULTS_PER_RESPONSE && notices.len() < MAX_RESULTS_PER_RESPONSE {
                self.pending_results.next().now_or_never().flatten()
            } else {
                None
            };
        }
        if freed > 0 {
            self.inbox.adjust_capacity(freed);
        }
        for notice in notices {
            if !self.send(notice).await {
                return false;
            }
        }
        accepted.is_empty() || self.send(Response::Accepted(pb::ReportAccepted { numbers: accepted })).await
    }

    /// Handles a change of a job made by others. Returns false if the stream is closed.
    async fn handle_update(&mut self, update: AssignmentUpdate) -> bool {
        match update {
            AssignmentUpdate::Cancel { id, reason, actor } => {
                let Some(held) = self.held.get_mut(&id) else {
                    return true;
                };
                if std::mem::replace(&mut held.cancelled, true) {
                    return true;
                }
                let non_empty = |text: String| Some(text).filter(|text| !text.is_empty());
                let cancel = cancellation(id, held.lease_id, non_empty(reason), non_empty(actor));
                return self.send(cancel).await;
            }
            AssignmentUpdate::LeaseEnded(id) => {
                if let Some(held) = self.held.get(&id).copied().filter(|held| !held.ending) {
                    self.check_lease(id, held.lease_id).await;
                }
            }
            AssignmentUpdate::ChangesMissed => {
                let held: Vec<_> = self.held.iter().map(|(id, held)| (*id, *held)).collect();
                for (id, held) in held {
                    if !held.ending {
                        self.check_lease(id, held.lease_id).await;
                    }
                }
            }
        }
        true
    }

    fn set_capacity(&mut self, capacity: usize) {
        let signed = |number: usize| isize::try_from(number).unwrap_or(isize::MAX);
        self.inbox.adjust_capacity(signed(capacity) - signed(self.capacity));
        self.capacity = capacity;
    }

    fn drop_job(&mut self, id: Uuid) {
        self.held.remove(&id);
        self.context.queue.assignments.remove(id, &self.updates);
    }

    async fn send_refusal(&mut self, number: i64, job_id: String, error: Error) -> bool {
        self.send(refusal(number, job_id, &error)).await
    }

    /// Sends a response. Returns false if the stream is closed.
    pub(super) async fn send(&mut self, message: Response) -> bool {
        let response = pb::WorkJobsResponse { message: Some(message) };
        self.responses.send(Ok(response)).await.is_ok()
    }

    /// Ends the session. After a closed stream, held jobs are released. After a broken connection, held jobs are
    /// rescued if the worker asked for that.
    pub(super) async fn close(mut self, end: &SessionEnd, release_on_disconnect: bool) {
        self.inbox.close();
        let held: Vec<_> = self.held.iter().map(|(id, held)| (*id, *held)).collect();
        for (id, _) in &held {
            self.drop_job(*id);
        }
        let last_move = |lease_id: Uuid| match end {
            SessionEnd::Closed => Some(Move::Report(
                lease_id,
                Report::Release { reason: Some("the worker closed its stream".into()), snooze: None },
            )),
            SessionEnd::Broken if release_on_disconnect => Some(Move::Rescue { disconnected_lease: Some(lease_id) }),
            SessionEnd::Broken | SessionEnd::Shutdown => None,
        };
        for (id, held) in held {
            if let Some(job_move) = last_move(held.lease_id)
                && let Err(error) = self.context.queue.writer.apply_move(id, job_move).await
            {
                tracing::debug!(%error, job.id = %id, "failed to release a job of a worker; its lease will expire");
            }
        }
    }
}

/// Waits until a deadline, if given. Without a deadline, returns at once.
async fn wait_until(deadline: Option<Instant>) {
    if let Some(deadline) = deadline {
        sleep_until(deadline.into()).await;
    }
}

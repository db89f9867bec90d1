//! `WorkJobs`: one worker's stream.

mod hello;
mod messages;

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use futures_util::{FutureExt, Stream, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use prost::Message;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::sleep_until,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use uuid::Uuid;

use self::messages::{broken, cancellation, lease_lost, refusal};
use super::{assignments::Told, service::JobWorkers};
use crate::{
    entity::{self, job::Model},
    error::{Error, Result},
    jobs::{
        check as jobs_check,
        dispatch::{Inbox, claim::Claimed},
        state::{Move, Report},
    },
    pb::{self, work_jobs_request::Message as Request, work_jobs_response::Message as Response},
    rpc::{time, work},
};

/// How long reports are taken after the server was told to shut down.
const GRACE: Duration = Duration::from_secs(2);

/// How many responses wait to be sent at most.
const OUT: usize = 256;

/// How many reports of a worker are under way at most: beyond that it is not read.
const UNDER_WAY: usize = 4_096;

/// How many answers one response has at most.
const ANSWERS: usize = 512;

type Out = mpsc::Sender<Result<pb::WorkJobsResponse, Status>>;

/// Works one stream, which keeps its place until it ends.
pub(crate) fn work(
    workers: JobWorkers,
    place: OwnedSemaphorePermit,
    incoming: Streaming<pb::WorkJobsRequest>,
) -> impl Stream<Item = Result<pb::WorkJobsResponse, Status>> + Send {
    let (out, responses) = mpsc::channel(OUT);
    tokio::spawn(async move {
        let _place = place;
        let told = out.clone();
        if let Err(error) = hello::begin(workers, incoming, out).await {
            let _ = told.send(Err(error.into())).await;
        }
    });
    ReceiverStream::new(responses)
}

/// How a stream ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The worker has closed its side.
    Closed,
    /// The worker is gone.
    Broken,
    /// The server shuts down.
    Shutdown,
}

/// A job that the worker has.
#[derive(Debug, Clone, Copy)]
struct Held {
    lease_id: Uuid,
    /// Whether the worker knows that it is to be cancelled.
    cancelled: bool,
    /// Whether the worker has reported the end of its attempt.
    ending: bool,
}

/// What came of a report.
struct Answer {
    /// `None`: the server asked by itself.
    number: Option<i64>,
    id: Uuid,
    lease_id: Uuid,
    ends: bool,
    result: Result<Vec<Model>>,
}

struct Worker {
    workers: JobWorkers,
    out: Out,
    inbox: Inbox,
    lease: Duration,
    capacity: usize,
    held: HashMap<Uuid, Held>,
    told: mpsc::UnboundedSender<Told>,
    answers: FuturesUnordered<BoxFuture<'static, Answer>>,
    extended: Instant,
}

impl Worker {
    async fn work(
        &mut self,
        incoming: &mut Streaming<pb::WorkJobsRequest>,
        hears: &mut mpsc::UnboundedReceiver<Told>,
    ) -> End {
        let workers = self.workers.clone();
        let shutdown = workers.shutdown.clone();
        let (mut open, mut until) = (true, None);
        loop {
            if !open && self.answers.is_empty() {
                return End::Closed;
            }
            let going_on = tokio::select! {
                biased;
                () = self.out.closed() => return End::Broken,
                () = shutdown.cancelled(), if until.is_none() => {
                    until = Some(Instant::now() + GRACE);
                    self.inbox.close();
                    let draining = pb::ServerDraining {
                        grace: Some(time::duration_to_proto(GRACE)),
                    };
                    self.say(Response::Draining(draining)).await
                }
                () = at(until), if until.is_some() => return End::Shutdown,
                Some(answer) = self.answers.next(), if !self.answers.is_empty() => {
                    self.answered(answer).await
                }
                Some(told) = hears.recv() => self.hear(told).await,
                message = workers.next(incoming), if open && self.answers.len() < UNDER_WAY => {
                    match message {
                        Ok(Some(message)) => self.heard(message).await,
                        Ok(None) => {
                            open = false;
                            self.inbox.close();
                            true
                        }
                        Err(status) => return broken(&self.out, status).await,
                    }
                }
                Some(claimed) = self.inbox.next() => self.push(claimed).await,
            };
            if !going_on {
                return End::Broken;
            }
        }
    }

    /// Gives the worker jobs. Returns whether it is there.
    async fn push(&mut self, claimed: Vec<Claimed>) -> bool {
        let mut lost = Vec::new();
        for claimed in &claimed {
            let (id, held) = (
                claimed.job.id,
                Held {
                    lease_id: claimed.lease_id,
                    cancelled: false,
                    ending: false,
                },
            );
            self.workers.queue.flights.add(id, &self.told);
            // It lost the job, and gets it again before anybody told it so.
            if let Some(before) = self.held.insert(id, held) {
                self.inbox.want(1);
                if !before.ending {
                    lost.push(lease_lost(id, before.lease_id));
                }
            }
        }
        let jobs = claimed
            .into_iter()
            .map(|claimed| Response::Job(claimed.into()));
        for response in lost.into_iter().chain(jobs) {
            if !self.say(response).await {
                return false;
            }
        }
        true
    }

    /// The worker says something. Returns whether it is there.
    async fn heard(&mut self, request: pb::WorkJobsRequest) -> bool {
        if self.extended.elapsed() > self.lease / 6 {
            self.extended = Instant::now();
            let held: Vec<_> = self.held.iter().map(|(id, held)| (*id, *held)).collect();
            for (id, held) in held {
                if !held.ending {
                    self.ask(id, held.lease_id).await;
                }
            }
        }
        let number = request.number;
        let Some(message) = request.message else {
            return true;
        };
        let (about, reported) = match message {
            Request::Hello(_) => {
                let error = Error::invalid("hello", "must only be the first message");
                return self.refuse(number, String::new(), error).await;
            }
            Request::Capacity(capacity) => {
                match jobs_check::capacity("capacity.capacity", capacity.capacity) {
                    Ok(capacity) => self.resize(capacity),
                    Err(error) => return self.refuse(number, String::new(), error).await,
                }
                return true;
            }
            Request::Heartbeat(pb::WorkerHeartbeat {}) => {
                let now = time::to_proto(entity::now());
                return self.say(Response::ServerTime(now)).await;
            }
            Request::Progress(progress) => {
                let throttle = &self.workers.queue.throttle;
                let reported = jobs_check::progress(&progress).map(|(id, lease_id, progress)| {
                    let tell = throttle.may_tell(id);
                    (id, lease_id, Report::Progress(progress, tell))
                });
                (progress.job_id, reported)
            }
            Request::Logs(logs) => {
                let id = logs.job_id.clone();
                let logs = work::run_by_size(logs.encoded_len(), || jobs_check::logs(logs));
                (id, logs.await)
            }
            Request::Complete(done) => {
                let id = done.job_id.clone();
                let done =
                    work::run_by_size(done.encoded_len(), || jobs_check::completion("", done));
                (id, done.await)
            }
            Request::Fail(failure) => {
                let reported = jobs_check::failure(&failure);
                (failure.job_id, reported)
            }
            Request::Release(release) => {
                let reported = jobs_check::release(&release);
                (release.job_id, reported)
            }
            Request::AcknowledgeCancellation(acknowledged) => {
                let reported = jobs_check::acknowledgement(&acknowledged);
                (acknowledged.job_id, reported)
            }
        };
        match reported {
            Ok((id, lease_id, report)) => {
                self.report(Some(number), id, lease_id, report).await;
                true
            }
            Err(error) => self.refuse(number, about, error).await,
        }
    }

    /// Looks whether the worker still has a job, and extends its lease.
    async fn ask(&mut self, id: Uuid, lease_id: Uuid) {
        self.report(None, id, lease_id, Report::Heartbeat).await;
    }

    async fn report(&mut self, number: Option<i64>, id: Uuid, lease_id: Uuid, report: Report) {
        let ends = match report {
            Report::Complete(_)
            | Report::Fail(_)
            | Report::Release { .. }
            | Report::AcknowledgeCancellation => true,
            Report::Progress(..) | Report::Logs { .. } | Report::Heartbeat => false,
        };
        if ends
            && let Some(held) = self.held.get_mut(&id)
            && held.lease_id == lease_id
        {
            held.ending = true;
        }
        let answer = self.workers.queue.desk.report(id, lease_id, report).await;
        self.answers.push(Box::pin(async move {
            let result = match answer {
                Ok(answer) => answer.await.unwrap_or(Err(Error::ShuttingDown)),
                Err(error) => Err(error),
            };
            Answer {
                number,
                id,
                lease_id,
                ends,
                result,
            }
        }));
    }

    /// Passes on what came of reports. Returns whether the worker is there.
    async fn answered(&mut self, first: Answer) -> bool {
        let (mut numbers, mut next, mut freed) = (Vec::new(), Some(first), 0);
        let mut others = Vec::new();
        while let Some(answer) = next {
            let held = self.held.get_mut(&answer.id);
            let held = held.filter(|held| held.lease_id == answer.lease_id);
            match answer.result {
                Ok(jobs) => {
                    numbers.extend(answer.number);
                    if answer.ends && held.is_some() {
                        self.let_go(answer.id);
                        freed += 1;
                    } else if let (Some(held), Some(job)) = (held, jobs.first())
                        && job.cancel_requested_at.is_some()
                        && !std::mem::replace(&mut held.cancelled, true)
                    {
                        others.push(cancellation(
                            answer.id,
                            held.lease_id,
                            job.cancel_reason.clone(),
                            job.cancel_requested_by.clone(),
                        ));
                    }
                }
                Err(error) => {
                    if let Some(held) = held {
                        if matches!(error, Error::LeaseLost { .. }) {
                            let told = held.ending && !answer.ends;
                            if !told {
                                self.let_go(answer.id);
                                freed += 1;
                                others.push(lease_lost(answer.id, answer.lease_id));
                            }
                        } else if answer.ends {
                            held.ending = false;
                        }
                    }
                    if let Some(number) = answer.number {
                        others.push(refusal(number, answer.id.to_string(), &error));
                    }
                }
            }
            next = if numbers.len() < ANSWERS && others.len() < ANSWERS {
                self.answers.next().now_or_never().flatten()
            } else {
                None
            };
        }
        if freed > 0 {
            self.inbox.want(freed);
        }
        for other in others {
            if !self.say(other).await {
                return false;
            }
        }
        numbers.is_empty()
            || self
                .say(Response::Accepted(pb::ReportAccepted { numbers }))
                .await
    }

    /// Others have done something to the worker's jobs. Returns whether it is there.
    async fn hear(&mut self, told: Told) -> bool {
        match told {
            Told::Cancel { id, reason, actor } => {
                let Some(held) = self.held.get_mut(&id) else {
                    return true;
                };
                if std::mem::replace(&mut held.cancelled, true) {
                    return true;
                }
                let some = |text: String| Some(text).filter(|text| !text.is_empty());
                let cancel = cancellation(id, held.lease_id, some(reason), some(actor));
                return self.say(cancel).await;
            }
            Told::Moved(id) => {
                if let Some(held) = self.held.get(&id).copied().filter(|held| !held.ending) {
                    self.ask(id, held.lease_id).await;
                }
            }
            Told::Missed => {
                let held: Vec<_> = self.held.iter().map(|(id, held)| (*id, *held)).collect();
                for (id, held) in held {
                    if !held.ending {
                        self.ask(id, held.lease_id).await;
                    }
                }
            }
        }
        true
    }

    fn resize(&mut self, capacity: usize) {
        let signed = |number: usize| isize::try_from(number).unwrap_or(isize::MAX);
        self.inbox.want(signed(capacity) - signed(self.capacity));
        self.capacity = capacity;
    }

    fn let_go(&mut self, id: Uuid) {
        self.held.remove(&id);
        self.workers.queue.flights.remove(id, &self.told);
    }

    async fn refuse(&mut self, number: i64, job_id: String, error: Error) -> bool {
        self.say(refusal(number, job_id, &error)).await
    }

    /// Returns whether the worker is there.
    async fn say(&mut self, message: Response) -> bool {
        let response = pb::WorkJobsResponse {
            message: Some(message),
        };
        self.out.send(Ok(response)).await.is_ok()
    }

    /// The worker is gone, or is going.
    async fn leave(mut self, end: &End, release_on_disconnect: bool) {
        self.inbox.close();
        let held: Vec<_> = self.held.iter().map(|(id, held)| (*id, *held)).collect();
        for (id, _) in &held {
            self.let_go(*id);
        }
        let what = |lease_id: Uuid| match end {
            End::Closed => Some(Move::Report(
                lease_id,
                Report::Release {
                    reason: Some("the worker has closed its stream".into()),
                    snooze: None,
                },
            )),
            End::Broken if release_on_disconnect => Some(Move::Rescue {
                gone: Some(lease_id),
            }),
            End::Broken | End::Shutdown => None,
        };
        for (id, held) in held {
            if let Some(what) = what(held.lease_id)
                && let Err(error) = self.workers.queue.desk.carry_out(id, what).await
            {
                tracing::debug!(%error, job.id = %id, "a worker's job could not be given back");
            }
        }
    }
}

async fn at(until: Option<Instant>) {
    if let Some(until) = until {
        sleep_until(until.into()).await;
    }
}

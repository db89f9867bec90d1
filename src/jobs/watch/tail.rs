//! `TailJobLogs`: what is logged for a job, from its rows and then from the feed.

use async_stream::try_stream;
use futures_util::Stream;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use tokio::sync::OwnedSemaphorePermit;
use tonic::Status;
use uuid::Uuid;

use super::filter::ends;
use crate::{
    db::row,
    entity::{
        job::{self, JobStatus},
        job_log::{Column, JobLogLevel},
    },
    error::{Error, Result},
    feed::{Start, Topic},
    jobs::{
        api::job_service::Jobs,
        query::get::{at_least, levels_from, lines},
    },
    pb::{self, watch_response::Update},
    rpc::{check, enums::FromProto},
};

/// How many lines are read at a time.
const PAGE: u64 = 100;

/// Who follows a job's log.
pub(crate) struct Tail {
    jobs: Jobs,
    job_id: Uuid,
    /// The number of the last line that was sent or left out.
    last: i64,
    min_level: JobLogLevel,
    /// The job when it began, or began anew.
    moment: Moment,
    _place: OwnedSemaphorePermit,
}

/// A job at one moment.
struct Moment {
    /// Where the feed goes on after it.
    start: Start,
    is_finished: bool,
    /// How many lines its log had.
    lines: i64,
}

impl Tail {
    /// Begins to follow a job's log.
    pub(crate) async fn new(jobs: &Jobs, request: pb::TailJobLogsRequest) -> Result<Self> {
        let place = jobs.places.acquire()?;
        let job_id = check::uuid("job_id", &request.job_id)?;
        if request.after_line < 0 {
            return Err(Error::invalid("after_line", "must not be negative"));
        }
        let min_level = JobLogLevel::from_proto("min_level", request.min_level)?;
        let moment = Moment::now(jobs, job_id).await?;
        Ok(Self {
            jobs: jobs.clone(),
            job_id,
            last: request.after_line,
            min_level: min_level.unwrap_or(JobLogLevel::Debug),
            moment: row::found(moment, "job", job_id)?,
            _place: place,
        })
    }

    /// Nothing is read ahead for the client: while it does not read, this is not polled, and it costs its place.
    pub(crate) fn stream(mut self) -> impl Stream<Item = Result<pb::JobLog, Status>> + Send {
        try_stream! {
            let (shutdown, feed) = (self.jobs.shutdown.clone(), self.jobs.feed.clone());
            loop {
                // What there was.
                while let Some(page) = Box::pin(self.next_page()).await? {
                    for log in page {
                        if shutdown.is_cancelled() {
                            Err(Error::ShuttingDown)?;
                        }
                        self.last = log.line.unwrap_or(self.last);
                        yield log;
                    }
                }
                if self.moment.is_finished {
                    return;
                }
                // What has come since.
                let mut has_ended = false;
                'changes: loop {
                    let entries = tokio::select! {
                        biased;
                        () = shutdown.cancelled() => Err(Error::ShuttingDown),
                        entries = feed.after(self.moment.start.position) => entries,
                    };
                    if let Err(Error::CursorExpired { .. }) = entries {
                        // The client is so slow that the feed has forgotten, but the lines are there.
                        break;
                    }
                    for entry in entries? {
                        self.moment.start.position = entry.position;
                        if self.moment.start.seen.contains(entry.position.xid) {
                            continue;
                        }
                        if entry.item.is_unreadable(Topic::JobLogs)
                            || entry.item.is_unreadable(Topic::Jobs)
                        {
                            // The rows have the lines, and the end of the job.
                            break 'changes;
                        }
                        let update = entry.item.update.as_ref();
                        for log in self.new_lines(update) {
                            yield log;
                        }
                        has_ended |= self.is_end(update);
                        // A line may be logged in the transaction that finishes the job.
                        if has_ended && entry.ends_commit {
                            return;
                        }
                    }
                }
                match Box::pin(Moment::now(&self.jobs, self.job_id)).await? {
                    Some(moment) => self.moment = moment,
                    None => return,
                }
            }
        }
    }

    /// Some of the lines that there were. Lines stay as they are, so that each page can be read on its own.
    async fn next_page(&self) -> Result<Option<Vec<pb::JobLog>>> {
        let page = lines(self.job_id)
            .filter(Column::Line.gt(self.last))
            .filter(Column::Line.lte(self.moment.lines))
            .filter(at_least(self.min_level))
            .order_by_asc(Column::Line)
            .limit(PAGE)
            .all(self.jobs.db.reader())
            .await?;
        if page.is_empty() {
            return Ok(None);
        }
        Ok(Some(page.into_iter().map(pb::JobLog::from).collect()))
    }

    /// The lines of a record of the feed that are to be sent.
    fn new_lines(&mut self, update: Option<&Update>) -> Vec<pb::JobLog> {
        let Some(Update::JobLogs(pb::JobLogs { logs })) = update else {
            return Vec::new();
        };
        let (id, levels) = (self.job_id.to_string(), levels_from(self.min_level));
        let is_serious = |log: &pb::JobLog| {
            let level = log.level();
            levels
                .iter()
                .any(|wanted| pb::JobLogLevel::from(*wanted) == level)
        };
        let last = self.last;
        let number = |log: &pb::JobLog| log.line.unwrap_or_default();
        let new = logs
            .iter()
            .filter(|log| log.job_id == id && number(log) > last);
        self.last = new.clone().map(number).max().unwrap_or(last);
        new.filter(|log| is_serious(log)).cloned().collect()
    }

    /// Whether a record of the feed says that nothing more will be logged.
    fn is_end(&self, update: Option<&Update>) -> bool {
        let Some(Update::JobChanges(pb::JobChanges { changes })) = update else {
            return false;
        };
        let id = self.job_id.to_string();
        let is_of = |change: &pb::JobChange| change.job.as_ref().is_some_and(|job| job.id == id);
        changes.iter().any(|change| is_of(change) && ends(change))
    }
}

impl Moment {
    /// The job as it is, if there is one.
    async fn now(jobs: &Jobs, id: Uuid) -> Result<Option<Self>> {
        let tx = jobs.db.snapshot().await?;
        let start = jobs.feed.now_in(&tx).await?;
        let job: Option<(JobStatus, i64)> = job::Entity::find_by_id(id)
            .select_only()
            .column(job::Column::Status)
            .column(job::Column::LogLines)
            .into_tuple()
            .one(&tx)
            .await?;
        tx.commit().await?;
        Ok(job.map(|(status, lines)| Self {
            start,
            is_finished: status.is_finished(),
            lines,
        }))
    }
}

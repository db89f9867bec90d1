//! `TailJobLogs`: follows the log of a job, first from its rows, then from the feed.

use async_stream::try_stream;
use futures_util::Stream;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use tokio::sync::OwnedSemaphorePermit;
use tonic::Status;
use uuid::Uuid;

use super::{filter::is_final, source::WatchSource};
use crate::{
    db::row,
    entity::{
        job::{self, JobStatus},
        job_log::{Column, JobLogLevel},
    },
    error::{Error, Result},
    feed::Start,
    jobs::query::get::{at_least_level, levels_from, select_lines},
    pb::{self, watch_response::Update},
    rpc::{check, enums::FromProto},
};

/// Number of log lines per query.
const LINES_PER_PAGE: u64 = 100;

/// Follower of the log of a job.
pub(crate) struct LogTail {
    source: WatchSource,
    job_id: Uuid,
    /// Number of the last line sent or filtered out.
    last: i64,
    min_level: JobLogLevel,
    /// Job at the start, or at the last restart.
    moment: JobMoment,
    _place: OwnedSemaphorePermit,
}

/// Job at one moment.
struct JobMoment {
    /// Feed position of the moment.
    start: Start,
    is_finished: bool,
    /// Number of log lines at the moment.
    lines: i64,
}

impl LogTail {
    /// Starts to follow the log of a job.
    pub(crate) async fn new(source: &WatchSource, request: pb::TailJobLogsRequest) -> Result<Self> {
        let place = source.places.acquire()?;
        let job_id = check::uuid("job_id", &request.job_id)?;
        if request.after_line < 0 {
            return Err(Error::invalid("after_line", "must not be negative"));
        }
        let min_level = JobLogLevel::from_proto("min_level", request.min_level)?;
        let moment = JobMoment::read(source, job_id).await?;
        Ok(Self {
            source: source.clone(),
            job_id,
            last: request.after_line,
            min_level: min_level.unwrap_or(JobLogLevel::Debug),
            moment: row::require(moment, "job", job_id)?,
            _place: place,
        })
    }

    /// Log lines. Nothing is read ahead: while the client does not read, the stream is not polled and costs only its
    /// place.
    pub(crate) fn stream(mut self) -> impl Stream<Item = Result<pb::JobLog, Status>> + Send {
        try_stream! {
            let (shutdown, feed) = (self.source.shutdown.clone(), self.source.feed.clone());
            loop {
                // Lines stored before the moment.
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
                // Lines logged since the moment.
                let mut has_ended = false;
                'changes: loop {
                    let entries = tokio::select! {
                        biased;
                        () = shutdown.cancelled() => Err(Error::ShuttingDown),
                        entries = feed.after(self.moment.start.position) => entries,
                    };
                    if let Err(Error::CursorExpired { .. }) = entries {
                        // The slow client has lost its feed position. The rows still have every line.
                        break;
                    }
                    for entry in entries? {
                        self.moment.start.position = entry.position;
                        if self.moment.start.seen.contains(entry.position.xid) {
                            continue;
                        }
                        if entry.item.is_unreadable(pb::Topic::JobLogs)
                            || entry.item.is_unreadable(pb::Topic::Jobs)
                        {
                            // The rows have the lines and the end of the job.
                            break 'changes;
                        }
                        let update = entry.item.update.as_ref();
                        for log in self.new_lines(update) {
                            yield log;
                        }
                        has_ended |= self.is_end(update);
                        // The transaction finishing the job may also log lines.
                        if has_ended && entry.ends_commit {
                            return;
                        }
                    }
                }
                match Box::pin(JobMoment::read(&self.source, self.job_id)).await? {
                    Some(moment) => self.moment = moment,
                    None => return,
                }
            }
        }
    }

    /// Next page of stored lines. Lines never change, so each page is a query of its own.
    async fn next_page(&self) -> Result<Option<Vec<pb::JobLog>>> {
        let page = select_lines(self.job_id)
            .filter(Column::Line.gt(self.last))
            .filter(Column::Line.lte(self.moment.lines))
            .filter(at_least_level(self.min_level))
            .order_by_asc(Column::Line)
            .limit(LINES_PER_PAGE)
            .all(self.source.db.reader())
            .await?;
        if page.is_empty() {
            return Ok(None);
        }
        Ok(Some(page.into_iter().map(pb::JobLog::from).collect()))
    }

    /// Lines of a feed record to send.
    fn new_lines(&mut self, update: Option<&Update>) -> Vec<pb::JobLog> {
        let Some(Update::JobLogs(pb::JobLogs { logs })) = update else {
            return Vec::new();
        };
        let (id, levels) = (self.job_id.to_string(), levels_from(self.min_level));
        let is_included = |log: &pb::JobLog| {
            let level = log.level();
            levels.iter().any(|included| pb::JobLogLevel::from(*included) == level)
        };
        let last = self.last;
        let number = |log: &pb::JobLog| log.line.unwrap_or_default();
        let unseen = logs.iter().filter(|log| log.job_id == id && number(log) > last);
        self.last = unseen.clone().map(number).max().unwrap_or(last);
        unseen.filter(|log| is_included(log)).cloned().collect()
    }

    /// Returns true if a feed record ends the job.
    fn is_end(&self, update: Option<&Update>) -> bool {
        let Some(Update::JobChanges(pb::JobChanges { changes })) = update else {
            return false;
        };
        let id = self.job_id.to_string();
        let is_for_job = |change: &pb::JobChange| change.job.as_ref().is_some_and(|job| job.id == id);
        changes.iter().any(|change| is_for_job(change) && is_final(change))
    }
}

impl JobMoment {
    /// Reads the job. `None` if the job does not exist.
    async fn read(source: &WatchSource, id: Uuid) -> Result<Option<Self>> {
        let tx = source.db.snapshot().await?;
        let start = source.feed.now_in(&tx).await?;
        let job: Option<(JobStatus, i64)> = job::Entity::find_by_id(id)
            .select_only()
            .column(job::Column::Status)
            .column(job::Column::LogLines)
            .into_tuple()
            .one(&tx)
            .await?;
        tx.commit().await?;
        Ok(job.map(|(status, lines)| Self { start, is_finished: status.is_finished(), lines }))
    }
}

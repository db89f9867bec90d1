//! Connection to the server: a watch of the job that resumes after failures at its cursor, without
//! a time limit.

use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tonic::{Code, transport::Channel};

use super::options::Options;
use crate::{
    client::{ConnectionError, HEARTBEAT_INTERVAL, RECEIVE_TIMEOUT, RETRY_PAUSES, connect},
    pb::{self, JobChangeKind, job_service_client::JobServiceClient, watch_jobs_response::Update},
};

/// Number of log lines per request.
const LINES_PER_PAGE: i32 = 1_000;

/// Event of the connection.
#[derive(Debug)]
pub(super) enum WatchEvent {
    /// Current time of the server.
    Time(prost_types::Timestamp),
    /// Changed job, or the job at the start of the watch.
    Change(Box<pb::JobChange>),
    /// Log line of the job.
    Line(pb::JobLog),
    /// The job has ended, and all events were sent.
    Ended,
    /// The connection broke or could not be made, with the cause. Another attempt follows.
    Broken(String),
    /// The server refuses the watch for good, with the cause.
    Refused(String),
}

/// Watches the job until its end, or until the receiver is closed.
pub(super) async fn watch(options: Options, events: mpsc::Sender<WatchEvent>) {
    let mut watcher = Watcher { options, events, cursor: String::new(), last_line: 0, pause: RETRY_PAUSES.0 };
    loop {
        let sent = match watcher.follow().await {
            Ok(()) => return watcher.send_last(WatchEvent::Ended).await,
            Err(broken) if broken.refuses_cursor() && !watcher.cursor.is_empty() => {
                watcher.cursor.clear();
                continue;
            }
            Err(broken) if is_final(&broken) => {
                return watcher.send_last(WatchEvent::Refused(broken.reason())).await;
            }
            Err(broken) => watcher.send(WatchEvent::Broken(broken.reason())).await,
        };
        if sent.is_err() {
            return;
        }
        sleep(watcher.pause).await;
        watcher.pause = (watcher.pause * 2).min(RETRY_PAUSES.1);
    }
}

struct Watcher {
    options: Options,
    events: mpsc::Sender<WatchEvent>,
    /// Cursor to resume from. Empty before the first change.
    cursor: String,
    /// Number of the last sent log line.
    last_line: i64,
    pause: std::time::Duration,
}

impl Watcher {
    /// Follows one connection until the job ends.
    async fn follow(&mut self) -> Result<(), ConnectionError> {
        let mut jobs = JobServiceClient::new(connect(&self.options.server).await?);
        let request = pb::WatchJobRequest {
            id: self.options.id.to_string(),
            cursor: self.cursor.clone(),
            logs: self.options.logs,
            heartbeat_interval: Some(HEARTBEAT_INTERVAL),
        };
        let watch = timeout(RECEIVE_TIMEOUT, jobs.watch_job(request)).await;
        let mut responses = watch??.into_inner();
        while let Some(response) = timeout(RECEIVE_TIMEOUT, responses.message()).await?? {
            self.pause = RETRY_PAUSES.0;
            match response.update {
                Some(Update::Heartbeat(time)) => self.send(WatchEvent::Time(time)).await?,
                Some(Update::Job(change)) => {
                    if change.kind() == JobChangeKind::Existing && self.options.logs {
                        let lines = change.job.as_ref().map_or(0, |job| job.log_lines);
                        self.send_lines(&mut jobs, lines).await?;
                    }
                    self.send(WatchEvent::Change(change.into())).await?;
                }
                Some(Update::Log(log)) => self.send_line(log).await?,
                Some(Update::Unreadable(_)) => {
                    // The unreadable change may be the end of the job. A watch without a cursor
                    // starts with the current job.
                    self.cursor.clear();
                    return Ok(());
                }
                Some(Update::SnapshotEnd(_)) | None => {}
            }
            if !response.cursor.is_empty() {
                self.cursor = response.cursor;
            }
        }
        Ok(())
    }

    /// Sends the log lines from before the start of the watch.
    async fn send_lines(&mut self, jobs: &mut JobServiceClient<Channel>, lines: i64) -> Result<(), ConnectionError> {
        let mut request = pb::ListJobLogsRequest {
            job_id: self.options.id.to_string(),
            page_size: LINES_PER_PAGE,
            ..Default::default()
        };
        while self.last_line < lines {
            let page = timeout(RECEIVE_TIMEOUT, jobs.list_job_logs(request.clone())).await;
            let page = page??.into_inner();
            for log in page.logs {
                // Lines logged since the start also come with the watch; `send_line` skips repeated
                // lines.
                self.send_line(log).await?;
            }
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        Ok(())
    }

    /// Sends a log line, unless the line was sent on an earlier connection.
    async fn send_line(&mut self, log: pb::JobLog) -> Result<(), ConnectionError> {
        let line = log.line.unwrap_or_default();
        if line > self.last_line {
            self.last_line = line;
            self.send(WatchEvent::Line(log)).await?;
        }
        Ok(())
    }

    async fn send(&self, event: WatchEvent) -> Result<(), ConnectionError> {
        self.events.send(event).await.map_err(|_| ConnectionError::Ended)
    }

    async fn send_last(&self, event: WatchEvent) {
        // The receiver may be closed.
        let _ = self.events.send(event).await;
    }
}

/// Returns true if another attempt cannot succeed.
fn is_final(broken: &ConnectionError) -> bool {
    let codes = [Code::NotFound, Code::InvalidArgument, Code::Unimplemented];
    matches!(broken, ConnectionError::Status(status) if codes.contains(&status.code()))
}

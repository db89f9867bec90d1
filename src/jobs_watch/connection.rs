//! The watch of the job: it goes on after its cursor when it breaks, as long as it takes.

use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tonic::{Code, transport::Channel};

use super::Options;
use crate::{
    client::{ConnectionError, HEARTBEAT_INTERVAL, RECEIVE_TIMEOUT, RETRY_PAUSES, connect},
    pb::{self, JobChangeKind, job_service_client::JobServiceClient, watch_jobs_response::Update},
};

/// How many lines are asked for at a time.
const PAGE: i32 = 1_000;

/// What the connection tells.
#[derive(Debug)]
pub(super) enum Heard {
    /// The server says what time it is.
    Time(prost_types::Timestamp),
    /// The job has changed, or is as it was when this began.
    Change(Box<pb::JobChange>),
    /// A line was logged.
    Line(pb::JobLog),
    /// The job has come to its end, and all was told.
    Ended,
    /// The connection broke, or could not be made. It is tried again.
    Broken(String),
    /// The server will not tell of the job.
    Refused(String),
}

/// Watches the job until it has come to its end, or nobody hears any more.
pub(super) async fn watch(options: Options, heard: mpsc::Sender<Heard>) {
    let mut watch = Watch {
        options,
        heard,
        cursor: String::new(),
        last_line: 0,
        pause: RETRY_PAUSES.0,
    };
    loop {
        let told = match watch.follow().await {
            Ok(()) => return watch.tell_last(Heard::Ended).await,
            Err(broken) if broken.refuses_cursor() && !watch.cursor.is_empty() => {
                watch.cursor.clear();
                continue;
            }
            Err(broken) if is_final(&broken) => {
                return watch.tell_last(Heard::Refused(broken.reason())).await;
            }
            Err(broken) => watch.tell(Heard::Broken(broken.reason())).await,
        };
        if told.is_err() {
            return;
        }
        sleep(watch.pause).await;
        watch.pause = (watch.pause * 2).min(RETRY_PAUSES.1);
    }
}

struct Watch {
    options: Options,
    heard: mpsc::Sender<Heard>,
    /// Where to go on; empty at the beginning.
    cursor: String,
    /// The last line of the log that was told.
    last_line: i64,
    pause: std::time::Duration,
}

impl Watch {
    /// Follows one connection until the job has come to its end.
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
                Some(Update::Heartbeat(time)) => self.tell(Heard::Time(time)).await?,
                Some(Update::Job(change)) => {
                    if change.kind() == JobChangeKind::Existing && self.options.logs {
                        let lines = change.job.as_ref().map_or(0, |job| job.log_lines);
                        self.tell_lines(&mut jobs, lines).await?;
                    }
                    self.tell(Heard::Change(change.into())).await?;
                }
                Some(Update::Log(log)) => self.tell_line(log).await?,
                Some(Update::Unreadable(_)) => {
                    // It may have been the end of the job. A watch without a cursor begins with the job itself.
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

    /// Tells of the lines that were logged before the watch began.
    async fn tell_lines(
        &mut self,
        jobs: &mut JobServiceClient<Channel>,
        lines: i64,
    ) -> Result<(), ConnectionError> {
        let mut request = pb::ListJobLogsRequest {
            job_id: self.options.id.to_string(),
            page_size: PAGE,
            ..Default::default()
        };
        while self.last_line < lines {
            let page = timeout(RECEIVE_TIMEOUT, jobs.list_job_logs(request.clone())).await;
            let page = page??.into_inner();
            for log in page.logs {
                // Those that have come since are in the watch, too.
                self.tell_line(log).await?;
            }
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        Ok(())
    }

    /// Tells of a line, unless it was told before another connection broke.
    async fn tell_line(&mut self, log: pb::JobLog) -> Result<(), ConnectionError> {
        let line = log.line.unwrap_or_default();
        if line > self.last_line {
            self.last_line = line;
            self.tell(Heard::Line(log)).await?;
        }
        Ok(())
    }

    async fn tell(&self, heard: Heard) -> Result<(), ConnectionError> {
        self.heard
            .send(heard)
            .await
            .map_err(|_| ConnectionError::Ended)
    }

    async fn tell_last(&self, heard: Heard) {
        // Whoever hears it may have gone.
        let _ = self.heard.send(heard).await;
    }
}

/// Whether trying again will not help.
fn is_final(broken: &ConnectionError) -> bool {
    let codes = [Code::NotFound, Code::InvalidArgument, Code::Unimplemented];
    matches!(broken, ConnectionError::Status(status) if codes.contains(&status.code()))
}

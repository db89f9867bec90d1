//! `watchpost jobs watch`: follows a job in a terminal or a file, and exits with its result.
//!
//! A plain client of the public API, without access to the state of this process.

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use ratatui::crossterm::terminal;
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

use self::connection::WatchEvent;
use crate::{
    client::Signals,
    escape::escape,
    pb::{self, JobChangeKind, JobStatus},
};

mod connection;
mod options;
mod view;

pub use self::options::Options;

/// Upper bound of events that are processed before the line is drawn.
const MAX_EVENTS_PER_FRAME: usize = 256;

/// Assumed width of a terminal of unknown size.
const DEFAULT_WIDTH: usize = 80;

/// Final result of the watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The job completed.
    Completed,
    /// The job failed after its last attempt.
    Failed,
    /// The job was cancelled.
    Cancelled,
    /// The job was deleted before its end.
    Deleted,
    /// A signal ended the watch before the end of the job.
    Stopped,
}

/// Error that prevents a result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server refuses the watch.
    #[error("{0}")]
    Refused(String),
    /// Standard output cannot be written.
    #[error("standard output: {0}")]
    Output(#[from] io::Error),
    /// Internal error: the watch task ended.
    #[error("the watch ended by itself")]
    WatchEnded,
}

/// State of the watched job.
#[derive(Debug)]
struct State {
    job: Option<pb::Job>,
    /// Kind of the last change.
    kind: JobChangeKind,
    /// Server clock minus local clock.
    ahead: TimeDelta,
    /// Cause of the broken connection. `None` while connected.
    broken: Option<String>,
}

/// Follows a job until its end or a signal.
pub async fn run(options: Options) -> Result<Outcome, Error> {
    let mut signals = Signals::listen()?;
    let (sender, mut events) = mpsc::channel(MAX_EVENTS_PER_FRAME);
    let watch = tokio::spawn(connection::watch(options, sender));
    let outcome = print_events(&mut events, &mut signals).await;
    watch.abort();
    outcome
}

async fn print_events(events: &mut mpsc::Receiver<WatchEvent>, signals: &mut Signals) -> Result<Outcome, Error> {
    let mut output = Output::new();
    let mut state = State { job: None, kind: JobChangeKind::Existing, ahead: TimeDelta::zero(), broken: None };
    // Displayed durations grow even without events.
    let mut seconds = interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut batch = Vec::with_capacity(MAX_EVENTS_PER_FRAME);
    loop {
        tokio::select! {
            count = events.recv_many(&mut batch, MAX_EVENTS_PER_FRAME) => {
                if count == 0 {
                    return Err(Error::WatchEnded);
                }
                for event in batch.drain(..) {
                    if let Some(outcome) = state.apply(event, &mut output)? {
                        output.finish(&state)?;
                        return outcome;
                    }
                }
            }
            () = signals.wait() => {
                output.finish(&state)?;
                return Ok(Outcome::Stopped);
            }
            _ = seconds.tick() => {}
        }
        output.draw(&state)?;
    }
}

impl State {
    /// Applies an event. Returns the result at the end of the job.
    fn apply(&mut self, event: WatchEvent, output: &mut Output) -> io::Result<Option<Result<Outcome, Error>>> {
        self.broken = None;
        match event {
            WatchEvent::Time(time) => {
                let now: Option<DateTime<Utc>> = view::time(time);
                self.ahead = now.map_or(self.ahead, |now| now - Utc::now());
            }
            WatchEvent::Change(change) => {
                self.kind = change.kind();
                // The message of a deleted job contains hardly any fields.
                if self.kind != JobChangeKind::Deleted || self.job.is_none() {
                    self.job = change.job;
                }
                output.write_change(self)?;
            }
            WatchEvent::Line(log) => output.write_log(&log)?,
            WatchEvent::Broken(reason) => {
                output.report_broken(&reason)?;
                self.broken = Some(reason);
            }
            WatchEvent::Ended => return Ok(Some(self.outcome())),
            WatchEvent::Refused(reason) => return Ok(Some(Err(Error::Refused(reason)))),
        }
        Ok(None)
    }

    /// Result of a job whose events were all received.
    fn outcome(&self) -> Result<Outcome, Error> {
        if self.kind == JobChangeKind::Deleted {
            return Ok(Outcome::Deleted);
        }
        match self.job.as_ref().map(pb::Job::status) {
            Some(JobStatus::Completed) => Ok(Outcome::Completed),
            Some(JobStatus::Failed) => Ok(Outcome::Failed),
            Some(JobStatus::Cancelled) => Ok(Outcome::Cancelled),
            Some(JobStatus::Queued | JobStatus::Running | JobStatus::Unspecified) | None => Err(Error::WatchEnded),
        }
    }
}

/// Standard output. In a terminal, one line is redrawn below the log. In a file, each change is a
/// line.
struct Output {
    stdout: io::Stdout,
    is_terminal: bool,
    /// Last drawn or written line.
    last: String,
    /// True if the broken connection was reported.
    is_broken: bool,
}

impl Output {
    fn new() -> Self {
        let stdout = io::stdout();
        Self { is_terminal: stdout.is_terminal(), stdout, last: String::new(), is_broken: false }
    }

    /// Redraws the line if it changed. Terminals only.
    fn draw(&mut self, state: &State) -> io::Result<()> {
        if !self.is_terminal {
            return Ok(());
        }
        let width = terminal::size().map_or(DEFAULT_WIDTH, |(columns, _)| columns.into());
        // The last column stays free, because some terminals would wrap.
        let line = view::terminal_line(state, Utc::now(), width.saturating_sub(1));
        if line != self.last {
            write!(self.stdout, "\r{line}\x1b[K")?;
            self.stdout.flush()?;
            self.last = line;
        }
        Ok(())
    }

    /// Writes the job if it changed. Files only.
    fn write_change(&mut self, state: &State) -> io::Result<()> {
        if self.is_terminal {
            return Ok(());
        }
        self.is_broken = false;
        let (time, line) = view::plain_text(state, Utc::now());
        if line != self.last {
            writeln!(self.stdout, "{time} {line}")?;
            self.last = line;
        }
        Ok(())
    }

    /// Writes a log line.
    fn write_log(&mut self, log: &pb::JobLog) -> io::Result<()> {
        let line = view::log_line(log);
        if self.is_terminal {
            self.last.clear();
            write!(self.stdout, "\r\x1b[K")?;
        }
        writeln!(self.stdout, "{line}")
    }

    /// Reports a broken connection, once per disconnection. Files only.
    #[expect(clippy::print_stderr, reason = "clients of the command line have no log")]
    fn report_broken(&mut self, reason: &str) -> io::Result<()> {
        if !self.is_terminal && !std::mem::replace(&mut self.is_broken, true) {
            self.stdout.flush()?;
            eprintln!("watchpost: no connection: {}; it is tried again", escape(reason));
        }
        Ok(())
    }

    /// Draws the final line and ends it.
    fn finish(&mut self, state: &State) -> io::Result<()> {
        self.draw(state)?;
        if self.is_terminal {
            writeln!(self.stdout)?;
        }
        self.stdout.flush()
    }
}

//! `watchpost jobs watch`: a job as it goes, in a terminal or in a file.
//!
//! It is a client as any other: of this process it knows nothing but the API.

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
use uuid::Uuid;

use self::connection::Heard;
use crate::{
    client::Signals,
    escape::escape,
    pb::{self, JobChangeKind, JobStatus},
};

mod connection;
mod view;

/// How many things that were heard are told together.
const TOGETHER: usize = 256;

/// How wide a terminal is that does not say so.
const WIDTH: usize = 80;

/// What to watch.
#[derive(Debug, Clone)]
pub struct Options {
    /// The server, as a URL.
    pub server: String,
    /// The job.
    pub id: Uuid,
    /// Whether to tell what is logged, from the first line on.
    pub logs: bool,
}

/// What became of the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It completed.
    Completed,
    /// It has failed for good.
    Failed,
    /// It was cancelled.
    Cancelled,
    /// It was deleted before it came to its end.
    Deleted,
    /// A signal ended the watch before the job came to its end.
    Stopped,
}

/// Why it is not known what became of the job.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server will not tell of it.
    #[error("{0}")]
    Refused(String),
    /// Nothing can be told.
    #[error("standard output: {0}")]
    Output(#[from] io::Error),
    /// A fault of ours.
    #[error("the watch ended by itself")]
    WatchEnded,
}

/// What was heard of the job.
#[derive(Debug)]
struct State {
    job: Option<pb::Job>,
    /// What happened last.
    kind: JobChangeKind,
    /// How far the server's clock is ahead.
    ahead: TimeDelta,
    /// Why there is no connection, if there was one or not.
    broken: Option<String>,
}

/// Tells how a job goes until it has come to its end, or a signal comes.
pub async fn run(options: Options) -> Result<Outcome, Error> {
    let mut signals = Signals::listen()?;
    let (tell, mut heard) = mpsc::channel(TOGETHER);
    let watch = tokio::spawn(connection::watch(options, tell));
    let told = tell_all(&mut heard, &mut signals).await;
    watch.abort();
    told
}

async fn tell_all(
    heard: &mut mpsc::Receiver<Heard>,
    signals: &mut Signals,
) -> Result<Outcome, Error> {
    let mut output = Output::new();
    let mut state = State {
        job: None,
        kind: JobChangeKind::Existing,
        ahead: TimeDelta::zero(),
        broken: None,
    };
    // Times go on even if nothing is heard.
    let mut seconds = interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut news = Vec::with_capacity(TOGETHER);
    loop {
        tokio::select! {
            count = heard.recv_many(&mut news, TOGETHER) => {
                if count == 0 {
                    return Err(Error::WatchEnded);
                }
                for heard in news.drain(..) {
                    if let Some(ended) = state.hear(heard, &mut output)? {
                        output.finish(&state)?;
                        return ended;
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
    /// Takes in what was heard. Returns how it has ended, if it has.
    fn hear(
        &mut self,
        heard: Heard,
        output: &mut Output,
    ) -> io::Result<Option<Result<Outcome, Error>>> {
        self.broken = None;
        match heard {
            Heard::Time(time) => {
                let now: Option<DateTime<Utc>> = view::time(time);
                self.ahead = now.map_or(self.ahead, |now| now - Utc::now());
            }
            Heard::Change(change) => {
                self.kind = change.kind();
                // Of a deleted job hardly anything is told.
                if self.kind != JobChangeKind::Deleted || self.job.is_none() {
                    self.job = change.job;
                }
                output.changed(self)?;
            }
            Heard::Line(log) => output.log(&log)?,
            Heard::Broken(reason) => {
                output.broken(&reason)?;
                self.broken = Some(reason);
            }
            Heard::Ended => return Ok(Some(self.outcome())),
            Heard::Refused(reason) => return Ok(Some(Err(Error::Refused(reason)))),
        }
        Ok(None)
    }

    /// What became of a job of which all was told.
    fn outcome(&self) -> Result<Outcome, Error> {
        if self.kind == JobChangeKind::Deleted {
            return Ok(Outcome::Deleted);
        }
        match self.job.as_ref().map(pb::Job::status) {
            Some(JobStatus::Completed) => Ok(Outcome::Completed),
            Some(JobStatus::Failed) => Ok(Outcome::Failed),
            Some(JobStatus::Cancelled) => Ok(Outcome::Cancelled),
            Some(JobStatus::Queued | JobStatus::Running | JobStatus::Unspecified) | None => {
                Err(Error::WatchEnded)
            }
        }
    }
}

/// Standard output: in a terminal one line that is drawn over and over, below what is logged; else a line
/// for each thing that happens.
struct Output {
    stdout: io::Stdout,
    is_terminal: bool,
    /// What was drawn or written last.
    last: String,
    /// Whether it was told that there is no connection.
    is_broken: bool,
}

impl Output {
    fn new() -> Self {
        let stdout = io::stdout();
        Self {
            is_terminal: stdout.is_terminal(),
            stdout,
            last: String::new(),
            is_broken: false,
        }
    }

    /// Draws the line, if it is another one.
    fn draw(&mut self, state: &State) -> io::Result<()> {
        if !self.is_terminal {
            return Ok(());
        }
        let width = terminal::size().map_or(WIDTH, |(columns, _)| columns.into());
        // The last column is left free: some terminals begin a new line there.
        let line = view::line(state, Utc::now(), width.saturating_sub(1));
        if line != self.last {
            write!(self.stdout, "\r{line}\x1b[K")?;
            self.stdout.flush()?;
            self.last = line;
        }
        Ok(())
    }

    /// Writes what the job is now, if that is something else.
    fn changed(&mut self, state: &State) -> io::Result<()> {
        if self.is_terminal {
            return Ok(());
        }
        self.is_broken = false;
        let (time, line) = view::plain(state, Utc::now());
        if line != self.last {
            writeln!(self.stdout, "{time} {line}")?;
            self.last = line;
        }
        Ok(())
    }

    /// Writes a line of the log.
    fn log(&mut self, log: &pb::JobLog) -> io::Result<()> {
        let line = view::log(log);
        if self.is_terminal {
            self.last.clear();
            write!(self.stdout, "\r\x1b[K")?;
        }
        writeln!(self.stdout, "{line}")
    }

    /// Says once that there is no connection.
    #[expect(clippy::print_stderr, reason = "there is no log")]
    fn broken(&mut self, reason: &str) -> io::Result<()> {
        if !self.is_terminal && !std::mem::replace(&mut self.is_broken, true) {
            self.stdout.flush()?;
            eprintln!(
                "watchpost: no connection: {}; it is tried again",
                escape(reason)
            );
        }
        Ok(())
    }

    /// Leaves the line as it is at last.
    fn finish(&mut self, state: &State) -> io::Result<()> {
        self.draw(state)?;
        if self.is_terminal {
            writeln!(self.stdout)?;
        }
        self.stdout.flush()
    }
}

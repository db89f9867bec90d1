//! How the job looks: as a line that is drawn over and over, or as lines for a file.

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use prost_types::Timestamp;
use ratatui::text::Span;

use super::State;
use crate::{
    escape::escape,
    pb::{self, JobChangeKind, JobLogLevel, JobStatus},
};

/// How many characters the bar has.
const BAR: usize = 20;

/// The job in one line of at most this width.
pub(super) fn line(state: &State, now: DateTime<Utc>, width: usize) -> String {
    let mut parts = Vec::new();
    match &state.job {
        Some(job) => {
            parts.push(shown(&job.job_type));
            parts.extend(told(state, job, now + state.ahead));
        }
        None => parts.push("waiting for the server".into()),
    }
    if let Some(reason) = &state.broken {
        parts.push(format!("no connection: {}", shown(reason)));
    }
    cut(&parts.join("  "), width)
}

/// The time and the job for a file.
pub(super) fn plain(state: &State, now: DateTime<Utc>) -> (String, String) {
    let now = now + state.ahead;
    let job = state.job.as_ref();
    let told = job.map(|job| told(state, job, now).join("  "));
    (clock(now), told.unwrap_or_default())
}

/// A line of its log.
pub(super) fn log(log: &pb::JobLog) -> String {
    let level = match log.level() {
        JobLogLevel::Debug => "debug",
        JobLogLevel::Info => "info",
        JobLogLevel::Warning => "warning",
        JobLogLevel::Error => "error",
        JobLogLevel::Unspecified => "-",
    };
    let time = log.timestamp.and_then(time).map(clock);
    format!(
        "{} {level} {}",
        time.unwrap_or_default(),
        shown(&log.message)
    )
}

/// What there is to tell of a job, by the server's clock.
fn told(state: &State, job: &pb::Job, now: DateTime<Utc>) -> Vec<String> {
    let mut parts = Vec::new();
    if state.kind == JobChangeKind::Deleted {
        return vec!["deleted".into()];
    }
    match job.status() {
        JobStatus::Running => {
            parts.push(bar(job.progress_percent));
            if job.cancel_requested_at.is_some() {
                parts.push("to be cancelled".into());
            }
            parts.extend(job.current_step.as_deref().map(shown));
            parts.extend(items(job));
            parts.push(format!("attempt {}", job.attempt_number));
            parts.push(times(job, now));
        }
        JobStatus::Queued => {
            parts.push(status(job).into());
            parts.push(format!("attempt {}", job.attempt_number));
            let may_run = job.scheduled_at.and_then(time);
            parts.extend(may_run.map(|may_run| {
                if may_run > now {
                    format!("in {}", span(may_run - now))
                } else {
                    format!("for {}", span(now - may_run))
                }
            }));
            parts.extend(error(job));
        }
        JobStatus::Completed | JobStatus::Failed | JobStatus::Cancelled => {
            parts.push(status(job).into());
            parts.extend(took(job).map(|took| format!("after {}", span(took))));
            let failed = job.status() == JobStatus::Failed;
            parts.extend(error(job).filter(|_| failed));
            parts.extend(job.cancel_reason.as_deref().map(shown).filter(|_| !failed));
        }
        JobStatus::Unspecified => parts.push(status(job).into()),
    }
    parts.retain(|part| !part.is_empty());
    parts
}

fn status(job: &pb::Job) -> &'static str {
    match job.status() {
        JobStatus::Queued => "queued",
        JobStatus::Running => "running",
        JobStatus::Completed => "completed",
        JobStatus::Failed => "failed",
        JobStatus::Cancelled => "cancelled",
        JobStatus::Unspecified => "in a status that this program does not know",
    }
}

fn bar(percent: i32) -> String {
    let percent = usize::try_from(percent.clamp(0, 100)).unwrap_or_default();
    let full = percent * BAR / 100;
    format!(
        "[{}{}] {percent:>3}%",
        "|".repeat(full),
        " ".repeat(BAR - full)
    )
}

fn items(job: &pb::Job) -> Option<String> {
    let processed = job.items_processed?;
    Some(match job.items_total {
        Some(total) => format!("{processed}/{total}"),
        None => processed.to_string(),
    })
}

/// How long it has run, and how long it is likely to go on at the rate of its progress so far.
fn times(job: &pb::Job, now: DateTime<Utc>) -> String {
    let Some(started_at) = job.started_at.and_then(time) else {
        return String::new();
    };
    let ran = span(now - started_at);
    match remaining(job, started_at, now) {
        Some(remaining) => format!("{ran}, {} left", span(remaining)),
        None => ran,
    }
}

fn remaining(job: &pb::Job, started_at: DateTime<Utc>, now: DateTime<Utc>) -> Option<TimeDelta> {
    let told_at = job.progress_at.and_then(time)?;
    if job.progress_percent <= 0 || told_at <= started_at {
        return None;
    }
    let so_far = (told_at - started_at).num_milliseconds();
    let whole = so_far.checked_mul(100)? / i64::from(job.progress_percent);
    let whole = TimeDelta::try_milliseconds(whole)?;
    Some((whole - (now - started_at)).max(TimeDelta::zero()))
}

/// How long the last attempt took of a job that has come to its end with it.
fn took(job: &pb::Job) -> Option<TimeDelta> {
    let started_at = job.started_at.and_then(time)?;
    let completed_at = job.completed_at.and_then(time)?;
    // Who came to its end while it waited for another attempt was scheduled for that later.
    let scheduled_at = job.scheduled_at.and_then(time);
    let waited = scheduled_at.is_some_and(|scheduled_at| scheduled_at > started_at);
    (!waited).then(|| completed_at - started_at)
}

fn error(job: &pb::Job) -> Option<String> {
    let message = shown(job.error_message.as_deref()?);
    Some(match job.error_code.as_deref() {
        Some(code) => format!("{message} ({})", shown(code)),
        None => message,
    })
}

/// `0:07`, `12:07` or `3:12:07`.
fn span(length: TimeDelta) -> String {
    let seconds = length.num_seconds().max(0);
    let (hours, minutes, seconds) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}")
    } else {
        format!("{minutes}:{seconds:02}")
    }
}

fn clock(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

pub(super) fn time(time: Timestamp) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(time.seconds, time.nanos.try_into().ok()?)
}

/// A text of somebody else, which may hold what a terminal would obey.
fn shown(text: &str) -> String {
    escape(text).into_owned()
}

/// As much of a line as this width has room for.
fn cut(line: &str, width: usize) -> String {
    let mut left = width;
    let fits = |c: &char| {
        let wide = Span::raw(c.to_string()).width();
        let fits = wide <= left;
        left = left.saturating_sub(wide);
        fits
    };
    line.chars().take_while(fits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(job: pb::Job) -> State {
        State {
            job: Some(job),
            kind: JobChangeKind::Existing,
            ahead: TimeDelta::zero(),
            broken: None,
        }
    }

    #[expect(
        clippy::unnecessary_wraps,
        reason = "the fields of messages are options"
    )]
    fn at(seconds: i64) -> Option<Timestamp> {
        Some(Timestamp { seconds, nanos: 0 })
    }

    fn now(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    /// Half done after 50 s.
    fn running() -> pb::Job {
        pb::Job {
            job_type: "export".into(),
            status: JobStatus::Running.into(),
            attempt_number: 1,
            scheduled_at: at(1_000),
            started_at: at(1_000),
            progress_percent: 50,
            progress_at: at(1_050),
            ..Default::default()
        }
    }

    #[test]
    fn what_is_left_is_worked_out_by_the_clock_of_the_server() {
        let mut state = state(running());
        state.ahead = TimeDelta::seconds(-3_600);
        let told = line(&state, now(4_660), 200);
        let bar = "export  [||||||||||          ]  50%  attempt 1";
        assert_eq!(told, format!("{bar}  1:00, 0:40 left"));
        // It is late.
        let told = line(&state, now(4_800), 200);
        assert_eq!(told, format!("{bar}  3:20, 0:00 left"));
        // Nothing was told since this attempt began.
        state.job.as_mut().unwrap().progress_at = at(999);
        let told = line(&state, now(4_660), 200);
        assert_eq!(told, format!("{bar}  1:00"));
    }

    #[test]
    fn a_line_is_as_wide_as_there_is_room_for() {
        let mut state = state(pb::Job {
            current_step: Some("\u{6620}\u{50cf}".repeat(50)),
            ..running()
        });
        state.broken = Some("it is silent".into());
        let whole = line(&state, now(1_050), 1_000);
        assert!(whole.ends_with("no connection: it is silent"), "{whole}");
        for width in 0..200 {
            let told = line(&state, now(1_050), width);
            let found = Span::raw(told).width();
            assert!(
                (width.saturating_sub(1)..=width).contains(&found),
                "{width}"
            );
        }
    }

    #[test]
    fn what_a_terminal_would_obey_is_shown_instead() {
        let job = pb::Job {
            status: JobStatus::Failed.into(),
            error_message: Some("a\x1b[2J\nb\x7fä".into()),
            ..running()
        };
        let told = line(&state(job), now(1_100), 200);
        assert_eq!(told, r"export  failed  a\u{1b}[2J\nb\u{7f}ä");
    }

    #[test]
    fn a_job_that_waits_says_how_long() {
        let waiting = |scheduled_at| {
            state(pb::Job {
                status: JobStatus::Queued.into(),
                scheduled_at: at(scheduled_at),
                error_message: Some("no space".into()),
                error_code: Some("ENOSPC".into()),
                ..running()
            })
        };
        let told = line(&waiting(12_000), now(1_000), 200);
        assert_eq!(
            told,
            "export  queued  attempt 1  in 3:03:20  no space (ENOSPC)"
        );
        let told = line(&waiting(993), now(1_000), 200);
        assert_eq!(
            told,
            "export  queued  attempt 1  for 0:07  no space (ENOSPC)"
        );
    }

    #[test]
    fn how_long_a_job_took_is_told_of_its_last_attempt_only() {
        let ended = |scheduled_at| {
            state(pb::Job {
                status: JobStatus::Cancelled.into(),
                scheduled_at: at(scheduled_at),
                completed_at: at(1_100),
                ..running()
            })
        };
        assert_eq!(
            line(&ended(999), now(0), 200),
            "export  cancelled  after 1:40"
        );
        // It waited for another one when it was cancelled.
        assert_eq!(line(&ended(1_090), now(0), 200), "export  cancelled");
        let deleted = State {
            kind: JobChangeKind::Deleted,
            ..ended(1_090)
        };
        assert_eq!(line(&deleted, now(0), 200), "export  deleted");
    }
}

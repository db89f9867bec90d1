//! Text of a job: one line for a terminal, or lines for a file.

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use prost_types::Timestamp;
use ratatui::text::Span;

use super::State;
use crate::{
    escape::escape,
    pb::{self, JobChangeKind, JobLogLevel, JobStatus},
};

/// Width of the progress bar in characters.
const BAR_WIDTH: usize = 20;

/// The job as one line, cut off at `width`.
pub(super) fn terminal_line(state: &State, now: DateTime<Utc>, width: usize) -> String {
    let mut parts = Vec::new();
    match &state.job {
        Some(job) => {
            parts.push(escaped(&job.job_type));
            parts.extend(job_parts(state, job, now + state.ahead));
        }
        None => parts.push("waiting for the server".into()),
    }
    if let Some(reason) = &state.broken {
        parts.push(format!("no connection: {}", escaped(reason)));
    }
    truncate(&parts.join("  "), width)
}

/// Time and job, as two parts of a line for a file.
pub(super) fn plain_text(state: &State, now: DateTime<Utc>) -> (String, String) {
    let now = now + state.ahead;
    let job = state.job.as_ref();
    let text = job.map(|job| job_parts(state, job, now).join("  "));
    (format_time(now), text.unwrap_or_default())
}

/// Log line of the job.
pub(super) fn log_line(log: &pb::JobLog) -> String {
    let level = match log.level() {
        JobLogLevel::Debug => "debug",
        JobLogLevel::Info => "info",
        JobLogLevel::Warning => "warning",
        JobLogLevel::Error => "error",
        JobLogLevel::Unspecified => "-",
    };
    let time = log.timestamp.and_then(time).map(format_time);
    format!("{} {level} {}", time.unwrap_or_default(), escaped(&log.message))
}

/// Parts of the text of a job at `now`, by the server's clock.
fn job_parts(state: &State, job: &pb::Job, now: DateTime<Utc>) -> Vec<String> {
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
            parts.extend(job.current_step.as_deref().map(escaped));
            parts.extend(items(job));
            parts.push(format!("attempt {}", job.attempt_number));
            parts.push(elapsed_and_remaining(job, now));
        }
        JobStatus::Queued => {
            parts.push(status(job).into());
            parts.push(format!("attempt {}", job.attempt_number));
            let may_run = job.scheduled_at.and_then(time);
            parts.extend(may_run.map(|may_run| {
                if may_run > now {
                    format!("in {}", format_duration(may_run - now))
                } else {
                    format!("for {}", format_duration(now - may_run))
                }
            }));
            parts.extend(error(job));
        }
        JobStatus::Completed | JobStatus::Failed | JobStatus::Cancelled => {
            parts.push(status(job).into());
            parts.extend(attempt_duration(job).map(|duration| format!("after {}", format_duration(duration))));
            let failed = job.status() == JobStatus::Failed;
            parts.extend(error(job).filter(|_| failed));
            parts.extend(job.cancel_reason.as_deref().map(escaped).filter(|_| !failed));
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
    let full = percent * BAR_WIDTH / 100;
    format!("[{}{}] {percent:>3}%", "|".repeat(full), " ".repeat(BAR_WIDTH - full))
}

fn items(job: &pb::Job) -> Option<String> {
    let processed = job.items_processed?;
    Some(match job.items_total {
        Some(total) => format!("{processed}/{total}"),
        None => processed.to_string(),
    })
}

/// Run time of the attempt, and the remaining time at the average rate of progress so far.
fn elapsed_and_remaining(job: &pb::Job, now: DateTime<Utc>) -> String {
    let Some(started_at) = job.started_at.and_then(time) else {
        return String::new();
    };
    let ran = format_duration(now - started_at);
    match remaining(job, started_at, now) {
        Some(remaining) => format!("{ran}, {} left", format_duration(remaining)),
        None => ran,
    }
}

fn remaining(job: &pb::Job, started_at: DateTime<Utc>, now: DateTime<Utc>) -> Option<TimeDelta> {
    let reported_at = job.progress_at.and_then(time)?;
    if job.progress_percent <= 0 || reported_at <= started_at {
        return None;
    }
    let elapsed_ms = (reported_at - started_at).num_milliseconds();
    let total_ms = elapsed_ms.checked_mul(100)? / i64::from(job.progress_percent);
    let total = TimeDelta::try_milliseconds(total_ms)?;
    Some((total - (now - started_at)).max(TimeDelta::zero()))
}

/// Duration of the last attempt of a job that ended with this attempt.
fn attempt_duration(job: &pb::Job) -> Option<TimeDelta> {
    let started_at = job.started_at.and_then(time)?;
    let completed_at = job.completed_at.and_then(time)?;
    // A job that ended while waiting for another attempt was scheduled after its last start.
    let scheduled_at = job.scheduled_at.and_then(time);
    let was_waiting = scheduled_at.is_some_and(|scheduled_at| scheduled_at > started_at);
    (!was_waiting).then(|| completed_at - started_at)
}

fn error(job: &pb::Job) -> Option<String> {
    let message = escaped(job.error_message.as_deref()?);
    Some(match job.error_code.as_deref() {
        Some(code) => format!("{message} ({})", escaped(code)),
        None => message,
    })
}

/// Duration as `0:07`, `12:07` or `3:12:07`.
fn format_duration(length: TimeDelta) -> String {
    let seconds = length.num_seconds().max(0);
    let (hours, minutes, seconds) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

fn format_time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

pub(super) fn time(time: Timestamp) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(time.seconds, time.nanos.try_into().ok()?)
}

/// Escapes a text from the server for the terminal.
fn escaped(text: &str) -> String {
    escape(text).into_owned()
}

/// Start of a line that fits the width.
fn truncate(line: &str, width: usize) -> String {
    let mut remaining = width;
    let fits = |c: &char| {
        let wide = Span::raw(c.to_string()).width();
        let fits = wide <= remaining;
        remaining = remaining.saturating_sub(wide);
        fits
    };
    line.chars().take_while(fits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(job: pb::Job) -> State {
        State { job: Some(job), kind: JobChangeKind::Existing, ahead: TimeDelta::zero(), broken: None }
    }

    #[expect(clippy::unnecessary_wraps, reason = "the fields of messages are options")]
    fn at(seconds: i64) -> Option<Timestamp> {
        Some(Timestamp { seconds, nanos: 0 })
    }

    fn now(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    /// Job with half of its progress after 50 s.
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
        let text = terminal_line(&state, now(4_660), 200);
        let bar = "export  [||||||||||          ]  50%  attempt 1";
        assert_eq!(text, format!("{bar}  1:00, 0:40 left"));
        // The job takes longer than estimated.
        let text = terminal_line(&state, now(4_800), 200);
        assert_eq!(text, format!("{bar}  3:20, 0:00 left"));
        // No progress was reported since the start of this attempt.
        state.job.as_mut().unwrap().progress_at = at(999);
        let text = terminal_line(&state, now(4_660), 200);
        assert_eq!(text, format!("{bar}  1:00"));
    }

    #[test]
    fn a_line_is_as_wide_as_there_is_room_for() {
        let mut state = state(pb::Job { current_step: Some("\u{6620}\u{50cf}".repeat(50)), ..running() });
        state.broken = Some("it is silent".into());
        let whole = terminal_line(&state, now(1_050), 1_000);
        assert!(whole.ends_with("no connection: it is silent"), "{whole}");
        for width in 0..200 {
            let text = terminal_line(&state, now(1_050), width);
            let text_width = Span::raw(text).width();
            assert!((width.saturating_sub(1)..=width).contains(&text_width), "{width}");
        }
    }

    #[test]
    fn what_a_terminal_would_obey_is_shown_instead() {
        let job =
            pb::Job { status: JobStatus::Failed.into(), error_message: Some("a\x1b[2J\nb\x7fä".into()), ..running() };
        let text = terminal_line(&state(job), now(1_100), 200);
        assert_eq!(text, r"export  failed  a\u{1b}[2J\nb\u{7f}ä");
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
        let text = terminal_line(&waiting(12_000), now(1_000), 200);
        assert_eq!(text, "export  queued  attempt 1  in 3:03:20  no space (ENOSPC)");
        let text = terminal_line(&waiting(993), now(1_000), 200);
        assert_eq!(text, "export  queued  attempt 1  for 0:07  no space (ENOSPC)");
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
        assert_eq!(terminal_line(&ended(999), now(0), 200), "export  cancelled  after 1:40");
        // The job waited for another attempt at its cancellation.
        assert_eq!(terminal_line(&ended(1_090), now(0), 200), "export  cancelled");
        let deleted = State { kind: JobChangeKind::Deleted, ..ended(1_090) };
        assert_eq!(terminal_line(&deleted, now(0), 200), "export  deleted");
    }
}

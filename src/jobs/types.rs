//! Defaults of job types: settings of a type over built-in values.

use std::{collections::HashMap, sync::Arc, time::Duration};

use sea_orm::EntityTrait;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    batch::live::Live,
    db::Db,
    entity::{job::RetryPolicy, job_type},
    error::{Error, Result},
    feed::{self, FeedUpdate, Position},
    log::retry,
    monitor::{Announcement, Feed},
    pb::{Topic, watch_response::Update},
};

/// Job types known without settings, with their attempt timeouts.
pub(super) const BUILT_IN: [(&str, Duration); 5] = [
    ("ai_analysis", Duration::from_mins(5)),
    ("backup", Duration::from_hours(2)),
    ("cleanup", Duration::from_mins(10)),
    ("export", Duration::from_mins(30)),
    ("retention", Duration::from_hours(1)),
];

/// Attempt timeout of any other type.
const DEFAULT_TIMEOUT: Duration = Duration::from_mins(10);

/// Delay before the settings are read again after a failure.
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// Defaults of a job type, applied to jobs that do not override them.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Defaults {
    /// Priority in [0, 4]; 0 is most urgent.
    pub priority: i32,
    /// Number of failures after which a job has failed for good.
    pub max_attempts: i32,
    /// Number of rescues tolerated before a job has failed for good.
    pub max_rescues: i32,
    /// Attempt timeout. `None` for no limit.
    pub timeout: Option<Duration>,
    /// Deadline of a job, counted from `scheduled_at`. `None` for no limit.
    pub deadline: Option<Duration>,
    /// Delays between attempts.
    pub retry: RetryPolicy,
    /// True if a job that failed for good becomes a dead letter.
    pub dead_letter: bool,
}

impl Defaults {
    /// Defaults of a type without settings.
    pub(super) fn built_in(job_type: &str) -> Self {
        let known = BUILT_IN.iter().find(|(name, _)| *name == job_type);
        Self {
            priority: 2,
            max_attempts: 3,
            max_rescues: 3,
            timeout: Some(known.map_or(DEFAULT_TIMEOUT, |(_, timeout)| *timeout)),
            deadline: None,
            retry: RetryPolicy { initial_ms: 1_000, max_ms: 30_000, multiplier: 2.0, jitter: 0.25 },
            dead_letter: true,
        }
    }

    /// Defaults of a type with settings.
    pub(super) fn from_settings(row: &job_type::Model) -> Self {
        let built_in = Self::built_in(&row.name);
        Self {
            priority: row.priority.unwrap_or(built_in.priority),
            max_attempts: row.max_attempts.unwrap_or(built_in.max_attempts),
            max_rescues: row.max_rescues.unwrap_or(built_in.max_rescues),
            timeout: row.timeout_ms.map_or(built_in.timeout, non_zero_millis),
            deadline: row.deadline_ms.map_or(built_in.deadline, non_zero_millis),
            retry: RetryPolicy {
                initial_ms: row.retry_initial_ms.unwrap_or(built_in.retry.initial_ms),
                max_ms: row.retry_max_ms.unwrap_or(built_in.retry.max_ms),
                multiplier: row.retry_multiplier.unwrap_or(built_in.retry.multiplier),
                jitter: row.retry_jitter.unwrap_or(built_in.retry.jitter),
            },
            dead_letter: row.dead_letter,
        }
    }
}

/// Duration in milliseconds. A setting of 0 means no limit.
fn non_zero_millis(millis: i64) -> Option<Duration> {
    let millis = u64::try_from(millis).ok().filter(|millis| *millis > 0);
    millis.map(Duration::from_millis)
}

/// Defaults of the types with settings, at one moment.
#[derive(Debug, Default)]
pub(super) struct Types(HashMap<String, Defaults>);

impl Types {
    /// Defaults of a job type.
    pub(super) fn defaults_of(&self, job_type: &str) -> Defaults {
        let settings = self.0.get(job_type).cloned();
        settings.unwrap_or_else(|| Defaults::built_in(job_type))
    }
}

/// Current defaults of job types. Clones share the state.
#[derive(Debug, Clone)]
pub(super) struct LiveTypes {
    db: Db,
    live: Arc<Live<Types>>,
}

impl LiveTypes {
    /// Creates the types of a database, without settings until [`reload`](Self::reload).
    pub(super) fn new(db: Db) -> Self {
        let live = Arc::default();
        Self { db, live }
    }

    /// Current defaults.
    pub(super) fn current(&self) -> Arc<Types> {
        self.live.current()
    }

    /// Reads the settings again. Settings committed before the call are in force afterwards.
    pub(super) async fn reload(&self) -> Result<()> {
        let reading = async {
            let rows = job_type::Entity::find().all(self.db.reader()).await?;
            let settings = |row: job_type::Model| (row.name.clone(), Defaults::from_settings(&row));
            Ok::<_, Error>(Types(rows.into_iter().map(settings).collect()))
        };
        self.live.reload(reading).await
    }

    /// Reads the settings again after every change in the feed, until shutdown.
    pub(super) async fn follow(self, feed: Feed, from: Position, shutdown: CancellationToken) {
        let is_type = |change: &Announcement| {
            matches!(change.update, Some(Update::JobType(_))) || change.is_unreadable(Topic::JobTypes)
        };
        let handle = |update| {
            let has_changed = match update {
                FeedUpdate::Changes(entries) => entries.iter().any(|entry| is_type(&entry.item)),
                FeedUpdate::Gap => true,
            };
            let types = has_changed.then(|| self.clone());
            async move {
                if let Some(types) = types {
                    types.reload_until_success().await;
                }
            }
        };
        feed::follow(feed, from, shutdown, handle).await;
    }

    async fn reload_until_success(&self) {
        while let Err(error) = self.reload().await {
            retry::retrying(&error, "failed to read the settings of job types; retrying");
            sleep(RETRY_DELAY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entity;

    fn row(name: &str) -> job_type::Model {
        job_type::Model {
            name: name.into(),
            description: None,
            priority: None,
            max_attempts: None,
            max_rescues: None,
            timeout_ms: None,
            deadline_ms: None,
            retry_initial_ms: None,
            retry_max_ms: None,
            retry_multiplier: None,
            retry_jitter: None,
            dead_letter: true,
            created_at: entity::now(),
            updated_at: entity::now(),
            version_id: 1,
        }
    }

    #[test]
    fn every_type_has_a_timeout_without_settings() {
        let types = Types::default();
        for (name, seconds) in [
            ("ai_analysis", 300),
            ("export", 1_800),
            ("cleanup", 600),
            ("retention", 3_600),
            ("backup", 7_200),
            ("import", 600),
            ("", 600),
        ] {
            let defaults = types.defaults_of(name);
            assert_eq!(defaults.timeout, Some(Duration::from_secs(seconds)), "{name}");
            let same = Defaults { timeout: None, ..Defaults::built_in("x") };
            let timeout = None;
            assert_eq!(Defaults { timeout, ..defaults }, same, "{name}");
        }
    }

    #[test]
    fn what_settings_leave_out_is_built_in() {
        assert_eq!(Defaults::from_settings(&row("export")), Defaults::built_in("export"));
        let settings = job_type::Model {
            priority: Some(0),
            timeout_ms: Some(1_500),
            deadline_ms: Some(60_000),
            retry_jitter: Some(0.0),
            dead_letter: false,
            ..row("export")
        };
        let built_in = Defaults::built_in("export");
        let expected = Defaults {
            priority: 0,
            timeout: Some(Duration::from_millis(1_500)),
            deadline: Some(Duration::from_mins(1)),
            retry: RetryPolicy { jitter: 0.0, ..built_in.retry },
            dead_letter: false,
            ..built_in
        };
        assert_eq!(Defaults::from_settings(&settings), expected);
    }

    #[test]
    fn zero_sets_no_timeout() {
        let settings = job_type::Model { timeout_ms: Some(0), ..row("export") };
        assert_eq!(Defaults::from_settings(&settings).timeout, None);
    }
}

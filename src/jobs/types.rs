//! What jobs of a type are given that do not say otherwise: settings over what is built in.

use std::{collections::HashMap, sync::Arc, time::Duration};

use sea_orm::EntityTrait;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    batch::live::Live,
    db::Db,
    entity::{job::RetryPolicy, job_type},
    error::{Error, Result},
    feed::{FeedUpdate, Follower, Position, Topic},
    monitor::{Announcement, Feed},
    pb::watch_response::Update,
};

/// The types that are known without settings, and how long an attempt of theirs may take.
pub(super) const BUILT_IN: [(&str, Duration); 5] = [
    ("ai_analysis", Duration::from_mins(5)),
    ("backup", Duration::from_hours(2)),
    ("cleanup", Duration::from_mins(10)),
    ("export", Duration::from_mins(30)),
    ("retention", Duration::from_hours(1)),
];

/// How long an attempt of any other type may take.
const TIMEOUT: Duration = Duration::from_mins(10);

/// How long to wait before the settings are read again after a failure.
const RETRY: Duration = Duration::from_millis(500);

/// What jobs of a type are given that do not say otherwise.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Defaults {
    /// 0 to 4.
    pub priority: i32,
    /// After how many failures a job has failed for good.
    pub max_attempts: i32,
    /// After how many rescues it has.
    pub max_rescues: i32,
    /// How long an attempt may take. `None`: as long as it wants.
    pub timeout: Option<Duration>,
    /// How long a job may take from `scheduled_at` on. `None`: any length.
    pub deadline: Option<Duration>,
    /// After how long it is tried again.
    pub retry: RetryPolicy,
    /// Whether it becomes a dead letter when it has failed for good.
    pub dead_letter: bool,
}

impl Defaults {
    /// What a type has without settings.
    pub(super) fn built_in(job_type: &str) -> Self {
        let known = BUILT_IN.iter().find(|(name, _)| *name == job_type);
        Self {
            priority: 2,
            max_attempts: 3,
            max_rescues: 3,
            timeout: Some(known.map_or(TIMEOUT, |(_, timeout)| *timeout)),
            deadline: None,
            retry: RetryPolicy {
                initial_ms: 1_000,
                max_ms: 30_000,
                multiplier: 2.0,
                jitter: 0.25,
            },
            dead_letter: true,
        }
    }

    /// What a type has with these settings.
    pub(super) fn with(row: &job_type::Model) -> Self {
        let built_in = Self::built_in(&row.name);
        Self {
            priority: row.priority.unwrap_or(built_in.priority),
            max_attempts: row.max_attempts.unwrap_or(built_in.max_attempts),
            max_rescues: row.max_rescues.unwrap_or(built_in.max_rescues),
            timeout: row.timeout_ms.map_or(built_in.timeout, some_millis),
            deadline: row.deadline_ms.map_or(built_in.deadline, some_millis),
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

/// A length of time in milliseconds. 0, with which a setting says so, is none.
fn some_millis(millis: i64) -> Option<Duration> {
    let millis = u64::try_from(millis).ok().filter(|millis| *millis > 0);
    millis.map(Duration::from_millis)
}

/// The types of one moment.
#[derive(Debug, Default)]
pub(super) struct Types(HashMap<String, Defaults>);

impl Types {
    /// What jobs of this type are given that do not say otherwise.
    pub(super) fn of(&self, job_type: &str) -> Defaults {
        let settings = self.0.get(job_type).cloned();
        settings.unwrap_or_else(|| Defaults::built_in(job_type))
    }
}

/// The types of this process. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct LiveTypes {
    db: Db,
    live: Arc<Live<Types>>,
}

impl LiveTypes {
    /// The types of this database, without settings until they are read.
    pub(super) fn new(db: Db) -> Self {
        let live = Arc::default();
        Self { db, live }
    }

    /// The types of now.
    pub(super) fn current(&self) -> Arc<Types> {
        self.live.current()
    }

    /// Reads the settings again. What was committed before the call is in force after it.
    pub(super) async fn reload(&self) -> Result<()> {
        let reading = async {
            let rows = job_type::Entity::find().all(self.db.reader()).await?;
            let settings = |row: job_type::Model| (row.name.clone(), Defaults::with(&row));
            Ok::<_, Error>(Types(rows.into_iter().map(settings).collect()))
        };
        self.live.reload(reading).await
    }

    /// Reads the settings again whenever the feed says that some have changed, on whatever process.
    pub(super) async fn follow(self, feed: Feed, from: Position, shutdown: CancellationToken) {
        let mut follower = Follower::new(feed, from);
        let following = async {
            loop {
                let FeedUpdate::Changes(entries) = follower.next().await else {
                    self.reload_at_last().await;
                    continue;
                };
                let is_type = |change: &Announcement| {
                    matches!(change.update, Some(Update::JobType(_)))
                        || change.is_unreadable(Topic::JobTypes)
                };
                if entries.iter().any(|entry| is_type(&entry.item)) {
                    self.reload_at_last().await;
                }
            }
        };
        shutdown.run_until_cancelled(following).await;
    }

    async fn reload_at_last(&self) {
        while let Err(error) = self.reload().await {
            tracing::debug!(%error, "the settings of job types cannot be read; it is tried again");
            sleep(RETRY).await;
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
            let defaults = types.of(name);
            assert_eq!(
                defaults.timeout,
                Some(Duration::from_secs(seconds)),
                "{name}"
            );
            let same = Defaults {
                timeout: None,
                ..Defaults::built_in("x")
            };
            let timeout = None;
            assert_eq!(
                Defaults {
                    timeout,
                    ..defaults
                },
                same,
                "{name}"
            );
        }
    }

    #[test]
    fn what_settings_leave_out_is_built_in() {
        assert_eq!(Defaults::with(&row("export")), Defaults::built_in("export"));
        let set = job_type::Model {
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
            retry: RetryPolicy {
                jitter: 0.0,
                ..built_in.retry
            },
            dead_letter: false,
            ..built_in
        };
        assert_eq!(Defaults::with(&set), expected);
    }

    #[test]
    fn zero_sets_no_timeout() {
        let set = job_type::Model {
            timeout_ms: Some(0),
            ..row("export")
        };
        assert_eq!(Defaults::with(&set).timeout, None);
    }
}

//! Metrics of the change feed and its watches.

use prometheus::proto::MetricType;
use tokio::time::timeout;

use super::{
    DATABASE_TIMEOUT,
    family::{Families, count},
};
use crate::{
    feed::blockers::Blocker,
    monitor::{Feed, Monitor},
};

/// Adds the metrics of the feed. Values from the database are left out while the database is away.
pub(super) async fn collect(families: &mut Families, feed: &Feed, database: bool) {
    families.add_value(
        "watchpost_feed_changes_read_total",
        "Changes that this process has read from the feed.",
        MetricType::COUNTER,
        count(feed.read_count()),
    );
    families.add_value(
        "watchpost_feed_unreadable_changes_total",
        "Changes of the feed that this process could not decode.",
        MetricType::COUNTER,
        count(feed.unreadable_count()),
    );
    if !database {
        return;
    }
    let queries = async { tokio::try_join!(feed.retained_count(), feed.lag()) };
    let Ok(Ok((kept, (changes, age)))) = timeout(DATABASE_TIMEOUT, queries).await else {
        return;
    };
    let whole = |number: i64| count(u64::try_from(number).unwrap_or(0));
    families.add_value(
        "watchpost_feed_changes",
        "Changes that the feed keeps for watches to resume from, at limit.",
        MetricType::GAUGE,
        whole(kept),
    );
    families.add_value(
        "watchpost_feed_lag_changes",
        "Committed changes that this process has not read yet; counting stops at a million.",
        MetricType::GAUGE,
        whole(changes),
    );
    families.add_value(
        "watchpost_feed_lag_seconds",
        "Age of the oldest committed change that this process has not read yet, in seconds.",
        MetricType::GAUGE,
        age.as_secs_f64(),
    );
}

/// Adds the age of the transaction that holds back the feed. Left out without such a transaction.
pub(super) fn collect_blocker(families: &mut Families, blocker: Option<&Blocker>) {
    if let Some(blocker) = blocker {
        families.add_value(
            "watchpost_feed_holder_age_seconds",
            "Age of the oldest open transaction of the PostgreSQL cluster that holds the feed back, from 10 s on.",
            MetricType::GAUGE,
            blocker.age.as_secs_f64(),
        );
    }
}

pub(super) fn collect_watches(families: &mut Families, monitor: &Monitor) {
    families.add_value(
        "watchpost_watches",
        "Watches and streams of workers that are open.",
        MetricType::GAUGE,
        count(monitor.watches() as u64),
    );
    families.add_value(
        "watchpost_watches_max",
        "Watches and streams of workers that may be open; further ones are refused with TOO_MANY_WATCHES.",
        MetricType::GAUGE,
        count(monitor.max_watches() as u64),
    );
    families.add_value(
        "watchpost_watch_messages_sent_total",
        "Responses that were sent, over all watches, heartbeats included.",
        MetricType::COUNTER,
        count(monitor.sent().get()),
    );
}

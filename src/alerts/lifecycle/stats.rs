//! `GetAlertStats`: counts of alerts, all from one database snapshot.

use std::ops::RangeInclusive;

use chrono::{DateTime, Utc};
use prost_types::Duration;
use sea_orm::{
    ColumnTrait, Condition, DatabaseTransaction, DbBackend, EntityTrait, Order, QueryFilter, QueryOrder, QuerySelect,
    Select, TryGetable,
    sea_query::{Expr, SimpleExpr},
};
use uuid::Uuid;

use crate::{
    db::{Db, row},
    entity::alert::{AlertSeverity, AlertStatus, Column, Entity},
    error::{Error, Result},
    pb,
    rpc::{page::collate_bytewise, time},
};

/// Largest number of rules and of cameras in a response. Larger groups come first.
const MAX_GROUPS: u64 = 1_000;

/// Largest number of buckets in a response.
const MAX_BUCKETS: usize = 10_000;

/// Permitted bucket widths in seconds: one minute to 366 days.
const BUCKET_WIDTHS_SECONDS: RangeInclusive<i64> = 60..=31_622_400;

/// Computes the statistics of a request.
pub(crate) async fn stats(db: &Db, request: pb::GetAlertStatsRequest) -> Result<pb::AlertStats> {
    let backend = db.backend();
    let condition = request.filter.unwrap_or_default().condition(backend)?;
    let width = request.bucket_width.map(seconds).transpose()?;
    let scan = db.scan().await?;
    let tx = scan.snapshot().await?;
    let counter = AlertCounter { tx: &tx, backend, condition };
    let mut stats = counter.totals().await?;
    counter.add_means(&mut stats).await?;
    stats.by_rule = counter.by_rule().await?;
    stats.by_camera = counter.by_camera().await?;
    if let Some(width) = width {
        stats.buckets = counter.buckets(width).await?;
    }
    tx.commit().await?;
    Ok(stats)
}

struct AlertCounter<'a> {
    tx: &'a DatabaseTransaction,
    backend: DbBackend,
    condition: Condition,
}

impl AlertCounter<'_> {
    fn select(&self) -> Select<Entity> {
        Entity::find().filter(self.condition.clone()).select_only()
    }

    /// Computes all totals from one query, grouped by status and severity.
    async fn totals(&self) -> Result<pb::AlertStats> {
        type Group = (AlertStatus, AlertSeverity, i64, i64, DateTime<Utc>);
        let groups: Vec<Group> = self
            .select()
            .column(Column::Status)
            .column(Column::Severity)
            .column_as(Column::Id.count(), "alerts")
            .expr_as(suppressed_sum(), "suppressed")
            .column_as(Column::CreatedAt.min(), "oldest")
            .group_by(Column::Status)
            .group_by(Column::Severity)
            .into_tuple()
            .all(self.tx)
            .await?;
        let mut stats = pb::AlertStats::default();
        let (mut statuses, mut severities) = ([0; 5], [0; 5]);
        let mut oldest_open = None;
        for (status, severity, alerts, suppressed, oldest) in groups {
            stats.total += alerts;
            stats.suppressed += suppressed;
            if matches!(status, AlertStatus::Pending | AlertStatus::Delivered) {
                stats.open += alerts;
                oldest_open = oldest_open.into_iter().chain([oldest]).min();
            }
            statuses[pb::AlertStatus::from(status) as usize] += alerts;
            severities[pb::Severity::from(severity) as usize] += alerts;
        }
        stats.oldest_open_at = oldest_open.map(time::to_proto);
        stats.by_status = nonzero(statuses).map(|(status, alerts)| pb::AlertStatusCount { status, alerts }).collect();
        stats.by_severity =
            nonzero(severities).map(|(severity, alerts)| pb::AlertSeverityCount { severity, alerts }).collect();
        #[expect(clippy::cast_precision_loss, reason = "a ratio has no more digits")]
        let ratio = |part: i64, all: i64| part as f64 / all as f64;
        let matches = stats.total + stats.suppressed;
        stats.dedup_ratio = (matches > 0).then(|| ratio(stats.suppressed, matches));
        Ok(stats)
    }

    /// Computes the mean times to acknowledgement and dismissal.
    async fn add_means(&self, stats: &mut pb::AlertStats) -> Result<()> {
        let means: Option<(Option<f64>, Option<f64>)> = self
            .select()
            .expr_as(self.mean_micros_until("acknowledged_at"), "acknowledged")
            .expr_as(self.mean_micros_until("dismissed_at"), "dismissed")
            .into_tuple()
            .one(self.tx)
            .await?;
        let (acknowledged, dismissed) = means.unwrap_or_default();
        stats.mean_time_to_acknowledge = acknowledged.map(duration);
        stats.mean_time_to_dismiss = dismissed.map(duration);
        Ok(())
    }

    /// Mean time from creation to `column`, in microseconds.
    fn mean_micros_until(&self, column: &str) -> SimpleExpr {
        let micros = |column| row::micros(&format!("alerts.{column}"), self.backend);
        let (until, from) = (micros(column), micros("created_at"));
        Expr::cust(format!("CAST(avg({until} - {from}) AS double precision)"))
    }

    async fn by_rule(&self) -> Result<Vec<pb::AlertRuleCount>> {
        let order = Expr::col(Column::RuleId);
        let groups: Vec<(Option<Uuid>, i64, i64)> = self.grouped_by(Column::RuleId, order).await?;
        let rule = |(rule_id, alerts, suppressed): (Option<Uuid>, _, _)| pb::AlertRuleCount {
            rule_id: rule_id.map(|id| id.to_string()),
            alerts,
            suppressed,
        };
        Ok(groups.into_iter().map(rule).collect())
    }

    async fn by_camera(&self) -> Result<Vec<pb::AlertCameraCount>> {
        let order = collate_bytewise(Expr::col(Column::CameraId), self.backend);
        let groups: Vec<(Option<String>, i64, i64)> = self.grouped_by(Column::CameraId, order).await?;
        let camera = |(camera_id, alerts, suppressed)| pb::AlertCameraCount { camera_id, alerts, suppressed };
        Ok(groups.into_iter().map(camera).collect())
    }

    /// Counts alerts by the values of a column, largest group first. `order` sorts groups of equal
    /// size.
    async fn grouped_by<T: TryGetable>(&self, column: Column, order: SimpleExpr) -> Result<Vec<(T, i64, i64)>> {
        Ok(self
            .select()
            .column(column)
            .column_as(Column::Id.count(), "alerts")
            .expr_as(suppressed_sum(), "suppressed")
            .group_by(column)
            .order_by(Column::Id.count(), Order::Desc)
            .order_by(order, Order::Asc)
            .limit(MAX_GROUPS)
            .into_tuple()
            .all(self.tx)
            .await?)
    }

    async fn buckets(&self, width: i64) -> Result<Vec<pb::AlertBucket>> {
        let number = if self.backend == DbBackend::Postgres {
            format!("CAST(floor(extract(epoch FROM alerts.created_at) / {width}) AS bigint)")
        } else {
            format!("unixepoch(substr(alerts.created_at, 1, 19)) / {width}")
        };
        let buckets: Vec<(i64, i64, i64)> = self
            .select()
            .expr_as(Expr::cust(number), "number")
            .column_as(Column::Id.count(), "alerts")
            .expr_as(suppressed_sum(), "suppressed")
            .group_by(Expr::col("number"))
            .order_by(Expr::col("number"), Order::Asc)
            .limit(MAX_BUCKETS as u64 + 1)
            .into_tuple()
            .all(self.tx)
            .await?;
        if buckets.len() > MAX_BUCKETS {
            let problem = format!("must be larger: there are more than {MAX_BUCKETS} buckets");
            return Err(Error::invalid("bucket_width", problem));
        }
        let bucket = |(number, alerts, suppressed)| pb::AlertBucket {
            start_time: DateTime::from_timestamp(number * width, 0).map(time::to_proto),
            alerts,
            suppressed,
        };
        Ok(buckets.into_iter().map(bucket).collect())
    }
}

/// Number of suppressed repeats. The cast is needed because a PostgreSQL sum is wider than the
/// summands.
fn suppressed_sum() -> SimpleExpr {
    Expr::cust("CAST(coalesce(sum(alerts.suppressed_count), 0) AS bigint)")
}

/// Returns the counts above zero with the enum number of each.
fn nonzero(counts: [i64; 5]) -> impl Iterator<Item = (i32, i64)> {
    (0..).zip(counts).filter(|(_, alerts)| *alerts > 0)
}

fn seconds(width: Duration) -> Result<i64> {
    if width.nanos != 0 || !BUCKET_WIDTHS_SECONDS.contains(&width.seconds) {
        let problem = "must be whole seconds from 60 s to 31622400 s";
        return Err(Error::invalid("bucket_width", problem));
    }
    Ok(width.seconds)
}

fn duration(micros: f64) -> Duration {
    #[expect(clippy::cast_possible_truncation, reason = "times end in the year 9999")]
    let micros = micros.round() as i64;
    let nanos = i32::try_from(micros % 1_000_000 * 1_000).unwrap_or_default();
    Duration { seconds: micros / 1_000_000, nanos }
}

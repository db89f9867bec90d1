//! `GetAlertRuleStats`: counts of stored alerts and suppressions by rule.

use std::collections::HashMap;

use sea_orm::{
    ColumnTrait, EntityTrait, QueryFilter, QuerySelect,
    prelude::DateTimeUtc,
    sea_query::{Expr, ExprTrait},
};
use uuid::Uuid;

use crate::{
    db::{Db, reader::Reader},
    entity::{
        alert,
        alert_rule::{self, Column, Entity},
        alert_suppression::{self, SuppressionReason},
    },
    error::{Error, Result},
    pb,
    rpc::{check, page::Page, time},
};

/// Statistics of the page by rule id.
type StatsByRule<'a> = HashMap<Uuid, &'a mut pb::AlertRuleStats>;

/// Returns a page of rules with statistics.
pub(crate) async fn stats(db: &Db, request: pb::GetAlertRuleStatsRequest) -> Result<pb::GetAlertRuleStatsResponse> {
    let page_scope = pb::GetAlertRuleStatsRequest { page_size: 0, page_token: String::new(), ..request.clone() };
    let (size, token) = (request.page_size, &request.page_token);
    let page = Page::parse(size, token, "alert_rule_stats", &page_scope)?;
    let ids = check::uuids("ids", &request.ids)?;
    let range = time::bounds("range", request.range)?;
    let select = match &request.filter {
        Some(_) if !ids.is_empty() => {
            return Err(Error::invalid("filter", "must not be set with ids"));
        }
        Some(filter) => filter.select(db.backend())?,
        None if ids.is_empty() => Entity::find(),
        None => Entity::find().filter(Column::Id.is_in(ids)),
    };
    let scan = db.scan().await?;
    let db = scan.reader();
    let key = |rule: &alert_rule::Model| (rule.created_at, rule.id);
    let columns = (Column::CreatedAt, Column::Id);
    let (mut stats, next_page_token): (Vec<pb::AlertRuleStats>, _) =
        page.newest_first(db, select, columns, key).await?;
    let mut by_id = stats
        .iter_mut()
        .map(|stats| {
            let id = Uuid::try_parse(&stats.rule_id).map_err(Error::internal)?;
            Ok((id, stats))
        })
        .collect::<Result<StatsByRule<'_>>>()?;
    count_alerts(db, &mut by_id, range).await?;
    count_suppressions(db, &mut by_id, range).await?;
    Ok(pb::GetAlertRuleStatsResponse { alert_rule_stats: stats, next_page_token })
}

async fn count_alerts(db: &Reader, stats: &mut StatsByRule<'_>, (start, end): time::Bounds) -> Result<()> {
    use alert::Column::{CreatedAt, Id, LastSuppressedAt, RuleId, SuppressedCount};
    let mut select = alert::Entity::find()
        .select_only()
        .column(RuleId)
        .column_as(Id.count(), "fired")
        .column_as(CreatedAt.max(), "last_fired_at")
        // PostgreSQL sums `integer` into a wider type.
        .column_as(Expr::col(SuppressedCount).sum().cast_as("bigint"), "suppressed")
        .column_as(LastSuppressedAt.max(), "last_suppressed_at")
        .filter(RuleId.is_in(stats.keys().copied()))
        .group_by(RuleId);
    if let Some(start) = start {
        select = select.filter(CreatedAt.gte(start));
    }
    if let Some(end) = end {
        select = select.filter(CreatedAt.lt(end));
    }
    let rows: Vec<(Uuid, i64, DateTimeUtc, i64, Option<DateTimeUtc>)> = select.into_tuple().all(db).await?;
    for (id, fired, last, suppressed, last_suppressed) in rows {
        let Some(stats) = stats.get_mut(&id) else {
            continue;
        };
        stats.fired = fired;
        stats.last_fired_at = Some(time::to_proto(last));
        stats.suppressed_by_cooldown = suppressed;
        if let Some(last) = last_suppressed {
            raise_last_suppressed(stats, last);
        }
    }
    Ok(())
}

async fn count_suppressions(db: &Reader, stats: &mut StatsByRule<'_>, (start, end): time::Bounds) -> Result<()> {
    use alert_suppression::Column::{CreatedAt, Id, Reason, RuleId};
    let mut select = alert_suppression::Entity::find()
        .select_only()
        .column(RuleId)
        .column(Reason)
        .column_as(Id.count(), "suppressed")
        .column_as(CreatedAt.max(), "last_suppressed_at")
        .filter(RuleId.is_in(stats.keys().copied()))
        .group_by(RuleId)
        .group_by(Reason);
    if let Some(start) = start {
        select = select.filter(CreatedAt.gte(start));
    }
    if let Some(end) = end {
        select = select.filter(CreatedAt.lt(end));
    }
    let rows: Vec<(Uuid, SuppressionReason, i64, DateTimeUtc)> = select.into_tuple().all(db).await?;
    for (id, reason, suppressed, last) in rows {
        let Some(stats) = stats.get_mut(&id) else {
            continue;
        };
        match reason {
            SuppressionReason::Silenced => stats.suppressed_by_silence = suppressed,
            SuppressionReason::Snoozed => stats.suppressed_by_snooze = suppressed,
            SuppressionReason::Flapping => stats.suppressed_by_flapping = suppressed,
            // Cooldown repeats are counted on the alerts, together with repeats of `CreateAlert`.
            SuppressionReason::Cooldown => continue,
        }
        raise_last_suppressed(stats, last);
    }
    Ok(())
}

/// Raises `last_suppressed_at` to the latest of all reasons.
fn raise_last_suppressed(stats: &mut pb::AlertRuleStats, last: DateTimeUtc) {
    let last = time::to_proto(last);
    let is_later =
        stats.last_suppressed_at.is_none_or(|known| (known.seconds, known.nanos) < (last.seconds, last.nanos));
    if is_later {
        stats.last_suppressed_at = Some(last);
    }
}

impl From<alert_rule::Model> for pb::AlertRuleStats {
    fn from(row: alert_rule::Model) -> Self {
        Self { rule_id: row.id.to_string(), rule_name: row.name, ..Default::default() }
    }
}

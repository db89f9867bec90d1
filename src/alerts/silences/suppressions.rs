//! `ListAlertSuppressions`.

use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, Select};

use crate::{
    db::Db,
    entity::alert_suppression::{self, Column, Entity, SuppressionReason},
    error::Result,
    pb,
    rpc::{
        check,
        enums::{FromProto, proto_enum},
        page::Page,
        time,
    },
};

/// Largest number of values in a list of the filter.
const MAX_LIST_VALUES: usize = 1_000;

/// Returns a page of suppressions.
pub(super) async fn list(
    db: &Db,
    request: pb::ListAlertSuppressionsRequest,
) -> Result<pb::ListAlertSuppressionsResponse> {
    let filter = request.filter.unwrap_or_default();
    let (size, token) = (request.page_size, &request.page_token);
    let page = Page::parse(size, token, "alert_suppressions", &filter)?;
    let columns = (Column::CreatedAt, Column::Id);
    let key = |row: &alert_suppression::Model| (row.created_at, row.id);
    let select = filter.select()?;
    let scan = db.scan_if(!filter.has_index()).await?;
    let (alert_suppressions, next_page_token) = page.newest_first(scan.reader(), select, columns, key).await?;
    Ok(pb::ListAlertSuppressionsResponse { alert_suppressions, next_page_token })
}

impl pb::AlertSuppressionFilter {
    /// Returns true if an index serves the filter: one event, or at most one of rule, camera and
    /// silence, optionally in a time range.
    fn has_index(&self) -> bool {
        if self.event_id.is_some() {
            return true;
        }
        let served = Self {
            rule_ids: self.rule_ids.clone(),
            camera_ids: self.camera_ids.clone(),
            silence_id: self.silence_id.clone(),
            created_at: self.created_at,
            ..Self::default()
        };
        let silences = usize::from(!self.silence_id.is_empty());
        let keys = self.rule_ids.len() + self.camera_ids.len() + silences;
        *self == served && keys <= 1
    }

    fn select(&self) -> Result<Select<Entity>> {
        let rule_ids = check::uuids("filter.rule_ids", &self.rule_ids)?;
        let camera_ids = check::texts("filter.camera_ids", &self.camera_ids, MAX_LIST_VALUES, &(1..=64))?;
        let reasons = SuppressionReason::all_from_proto("filter.reasons", &self.reasons)?;
        let (start, end) = time::bounds("filter.created_at", self.created_at)?;
        let mut select = Entity::find();
        if !rule_ids.is_empty() {
            select = select.filter(Column::RuleId.is_in(rule_ids));
        }
        if let Some(event_id) = self.event_id {
            select = select.filter(Column::EventId.eq(check::row_id("filter.event_id", event_id)?));
        }
        if !camera_ids.is_empty() {
            select = select.filter(Column::CameraId.is_in(camera_ids));
        }
        if !self.silence_id.is_empty() {
            let silence_id = check::uuid("filter.silence_id", &self.silence_id)?;
            select = select.filter(Column::SilenceId.eq(silence_id));
        }
        if !reasons.is_empty() {
            select = select.filter(Column::Reason.is_in(reasons));
        }
        if let Some(start) = start {
            select = select.filter(Column::CreatedAt.gte(start));
        }
        if let Some(end) = end {
            select = select.filter(Column::CreatedAt.lt(end));
        }
        Ok(select)
    }
}

impl From<alert_suppression::Model> for pb::AlertSuppression {
    fn from(row: alert_suppression::Model) -> Self {
        Self {
            id: row.id,
            event_id: row.event_id,
            rule_id: row.rule_id.map(|id| id.to_string()),
            camera_id: row.camera_id,
            dedup_key: row.dedup_key,
            reason: pb::SuppressionReason::from(row.reason).into(),
            silence_id: row.silence_id.map(|id| id.to_string()),
            alert_id: row.alert_id.map(|id| id.to_string()),
            created_at: Some(time::to_proto(row.created_at)),
        }
    }
}

proto_enum!(SuppressionReason, pb::SuppressionReason { Silenced, Snoozed, Flapping, Cooldown });

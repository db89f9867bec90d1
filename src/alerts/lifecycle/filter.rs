//! Translation of `AlertFilter` into a database condition.

use sea_orm::{
    ColumnTrait, Condition, DbBackend, Value,
    sea_query::{Expr, ExprTrait, SimpleExpr},
};

use crate::{
    db::{dialect::Sql, row},
    entity::alert::{AlertSeverity, AlertStatus, Column},
    error::Result,
    pb,
    rpc::{check, enums::FromProto, time},
};

/// Largest number of values in a list of the filter.
const MAX_LIST_VALUES: usize = 1_000;

/// True if a value of the JSON array `channels` is in the JSON array of the parameter.
const CHANNELS: Sql = Sql {
    postgres: "EXISTS (SELECT FROM json_array_elements_text( \
        CASE json_typeof(alerts.channels) WHEN 'array' THEN alerts.channels ELSE '[]' END) AS c (name) \
        WHERE c.name = ANY(ARRAY(SELECT json_array_elements_text($1::text::json))))",
    sqlite: "EXISTS (SELECT 1 FROM json_each(alerts.channels) AS c \
        WHERE c.value IN (SELECT value FROM json_each(?)))",
};

/// True if a text at any depth of the JSON metadata matches the `LIKE` pattern.
const METADATA: Sql = Sql {
    postgres: "EXISTS (SELECT FROM jsonb_path_query( \
        alerts.metadata::jsonb, 'strict $.**') AS m (value) WHERE jsonb_typeof(m.value) = 'string' \
        AND lower((m.value #>> '{}') COLLATE \"C\") LIKE $1 ESCAPE '\\')",
    sqlite: "EXISTS (SELECT 1 FROM json_tree(alerts.metadata) AS m \
        WHERE m.type = 'text' AND lower(m.value) LIKE ? ESCAPE '\\')",
};

impl pb::AlertFilter {
    /// Returns true if an index serves the filter: one event, or at most one of camera and dedup
    /// key, optionally in a time range.
    pub(crate) fn has_index(&self) -> bool {
        if self.event_id.is_some() {
            return true;
        }
        let served = Self {
            camera_ids: self.camera_ids.clone(),
            dedup_key: self.dedup_key.clone(),
            created_at: self.created_at,
            ..Self::default()
        };
        let keys = self.camera_ids.len() + usize::from(!self.dedup_key.is_empty());
        *self == served && keys <= 1
    }

    /// Validates the filter and builds the condition. An empty condition matches all alerts.
    pub(crate) fn condition(&self, backend: DbBackend) -> Result<Condition> {
        let statuses = AlertStatus::all_from_proto("filter.statuses", &self.statuses)?;
        let severities = AlertSeverity::all_from_proto("filter.severities", &self.severities)?;
        let rule_ids = check::uuids("filter.rule_ids", &self.rule_ids)?;
        let camera_ids = check::texts("filter.camera_ids", &self.camera_ids, MAX_LIST_VALUES, &(1..=64))?;
        let event_id = self.event_id.map(|id| check::row_id("filter.event_id", id)).transpose()?;
        let dedup_key = check::text("filter.dedup_key", &self.dedup_key, 0..=255)?;
        let text = check::text("filter.text", &self.text, 0..=255)?;
        let zone_ids = check::texts("filter.zone_ids", &self.zone_ids, MAX_LIST_VALUES, &(1..=64))?;
        let channels = check::texts("filter.channels", &self.channels, MAX_LIST_VALUES, &(1..=100))?;

        let mut condition = Condition::all()
            .add_option(one_of(Column::Status, statuses))
            .add_option(one_of(Column::Severity, severities))
            .add_option(one_of(Column::RuleId, rule_ids))
            .add_option(one_of(Column::CameraId, camera_ids))
            .add_option(event_id.map(|id| Column::EventId.eq(id)));
        if !dedup_key.is_empty() {
            condition = condition.add(Column::DedupKey.eq(dedup_key));
        }
        for (field, column, range) in [
            ("filter.created_at", Column::CreatedAt, self.created_at),
            ("filter.updated_at", Column::UpdatedAt, self.updated_at),
            ("filter.delivered_at", Column::DeliveredAt, self.delivered_at),
        ] {
            let (start, end) = time::bounds(field, range)?;
            condition =
                condition.add_option(start.map(|start| column.gte(start))).add_option(end.map(|end| column.lt(end)));
        }
        if !text.is_empty() {
            condition = condition.add(contains_text(&text, backend));
        }
        let open = [AlertStatus::Pending, AlertStatus::Delivered];
        Ok(condition
            .add_option(
                self.open.map(
                    |is_open| {
                        if is_open { Column::Status.is_in(open) } else { Column::Status.is_not_in(open) }
                    },
                ),
            )
            .add_option(self.suppressed.map(|is_suppressed| {
                if is_suppressed { Column::SuppressedCount.gt(0) } else { Column::SuppressedCount.eq(0) }
            }))
            .add_option((!zone_ids.is_empty()).then(|| {
                // Both databases support this operator.
                Expr::cust("alerts.metadata ->> 'zone_id'").is_in(zone_ids)
            }))
            .add_option((!channels.is_empty()).then(|| {
                let list = serde_json::json!(channels).to_string();
                CHANNELS.expression(backend, [Expr::val(list)])
            })))
    }
}

fn one_of<V: Into<Value>>(column: Column, values: Vec<V>) -> Option<SimpleExpr> {
    (!values.is_empty()).then(|| column.is_in(values))
}

/// True if the dedup key or a text of the metadata contains `text`.
fn contains_text(text: &str, backend: DbBackend) -> SimpleExpr {
    let pattern = format!("%{}%", row::escape_like(&text.to_ascii_lowercase()));
    let metadata = METADATA.expression(backend, [Expr::val(pattern)]);
    row::contains(Expr::col(Column::DedupKey), backend, text).or(metadata)
}

//! Translation of `SilenceFilter` into a query.

use chrono::{DateTime, Utc};
use sea_orm::{ActiveEnum, ColumnTrait, Condition, DbBackend, EntityTrait, QueryFilter, Select, sea_query::Expr};

use crate::{
    db::{dialect::Sql, row},
    entity::{
        alert::AlertSeverity,
        silence::{Column, Entity},
    },
    error::{Error, Result},
    pb::{self, SilenceStatus},
    rpc::{check, enums::FromProto, time},
};

impl pb::SilenceFilter {
    pub(super) fn select(&self, backend: DbBackend, now: DateTime<Utc>) -> Result<Select<Entity>> {
        let at = self.at.map(|at| time::from_proto("filter.at", at)).transpose()?.unwrap_or(now);
        let camera_id = check::text("filter.camera_id", &self.camera_id, 0..=64)?;
        let rule_id = match self.rule_id.as_str() {
            "" => None,
            id => Some(check::uuid("filter.rule_id", id)?.to_string()),
        };
        let severity = AlertSeverity::from_proto("filter.severity", self.severity)?;
        let reason = check::text("filter.reason", &self.reason, 0..=1_000)?;
        let mut select = Entity::find();
        if !self.statuses.is_empty() {
            let mut any_status = Condition::any();
            for (index, number) in self.statuses.iter().enumerate() {
                any_status = any_status.add(in_status(index, *number, at)?);
            }
            select = select.filter(any_status);
        }
        if !camera_id.is_empty() {
            select = select.filter(lists_or_null(Column::CameraIds, backend, &camera_id));
        }
        if let Some(rule_id) = rule_id {
            select = select.filter(lists_or_null(Column::RuleIds, backend, &rule_id));
        }
        if let Some(severity) = severity {
            select = select.filter(lists_or_null(Column::Severities, backend, &severity.to_value()));
        }
        if !reason.is_empty() {
            select = select.filter(row::contains(Expr::col(Column::Reason), backend, &reason));
        }
        Ok(select)
    }
}

fn in_status(index: usize, number: i32, at: DateTime<Utc>) -> Result<Condition> {
    let field = || format!("filter.statuses[{index}]");
    match SilenceStatus::try_from(number) {
        Ok(SilenceStatus::Unspecified) => Err(Error::invalid(field(), "must not be unspecified")),
        Ok(SilenceStatus::Pending) => Ok(Condition::all().add(Column::StartsAt.gt(at)).add(Column::EndsAt.gt(at))),
        Ok(SilenceStatus::Active) => Ok(Condition::all().add(Column::StartsAt.lte(at)).add(Column::EndsAt.gt(at))),
        Ok(SilenceStatus::Expired) => Ok(Condition::all().add(Column::EndsAt.lte(at))),
        Err(_) => Err(Error::invalid(field(), "is not a value that this server knows")),
    }
}

/// True if the JSON array in `column` contains `text`, or the column is null. A null list matches
/// any value.
fn lists_or_null(column: Column, backend: DbBackend, text: &str) -> Condition {
    let contains = Sql { postgres: "strpos($1::text, $2) > 0", sqlite: "instr(?, ?) > 0" };
    // The quotes prevent a match of a part of another text.
    let quoted = serde_json::Value::from(text).to_string();
    let listed = contains.expression(backend, [Expr::col(column), Expr::val(quoted)]);
    Condition::any().add(column.is_null()).add(listed)
}

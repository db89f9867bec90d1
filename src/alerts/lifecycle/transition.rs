//! Rows of `alert_transitions`: the audit trail of status changes.

use std::net::SocketAddr;

use sea_orm::{
    ActiveValue::{NotSet, Set},
    ColumnTrait, EntityTrait, QueryFilter, QueryTrait, Select,
};
use uuid::Uuid;

use crate::{
    entity::{
        alert::{self, AlertStatus},
        alert_transition::{ActiveModel, Column, Entity, Model},
    },
    error::Result,
    pb,
    rpc::{check, enums::FromProto, time},
};

/// Actor and reason of a status change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// Actor, at most 100 characters.
    pub actor: String,
    pub reason: Option<String>,
}

impl Cause {
    /// Creates a cause without a reason.
    pub fn new(actor: impl Into<String>) -> Self {
        Self { actor: actor.into(), reason: None }
    }

    /// Creates the cause of an alert that a rule raised.
    pub fn rule(id: Uuid) -> Self {
        Self::new(format!("rule:{id}"))
    }

    /// Validates the actor and reason of a request from `peer`. Without an actor, the address of
    /// the peer is the actor.
    pub(crate) fn parse(peer: Option<SocketAddr>, actor: &str, reason: &str) -> Result<Self> {
        let actor = check::actor("actor", actor, peer)?;
        let reason = check::text("reason", reason, 0..=1_000)?;
        Ok(Self { actor, reason: Some(reason).filter(|reason| !reason.is_empty()) })
    }
}

/// Builds the transition row of a new alert.
pub fn raised(alert: &alert::Model, cause: Cause) -> ActiveModel {
    status_change(alert, None, cause)
}

/// Builds the transition row of an alert that moved from `from` to its present status. `None` for a
/// new alert.
pub(crate) fn status_change(alert: &alert::Model, from: Option<AlertStatus>, cause: Cause) -> ActiveModel {
    ActiveModel {
        id: NotSet,
        alert_id: Set(alert.id),
        from_status: Set(from),
        to_status: Set(alert.status),
        version_id: Set(alert.version_id),
        actor: Set(cause.actor),
        reason: Set(cause.reason),
        created_at: Set(alert.updated_at),
    }
}

impl pb::AlertTransitionFilter {
    /// Returns true if an index serves the filter: one alert, or any actor without a restriction of
    /// statuses.
    pub(crate) fn has_index(&self) -> bool {
        !self.alert_id.is_empty() || self.to_statuses.is_empty()
    }

    pub(crate) fn select(&self) -> Result<Select<Entity>> {
        let alert_id = Some(&self.alert_id)
            .filter(|id| !id.is_empty())
            .map(|id| check::uuid("filter.alert_id", id))
            .transpose()?;
        let actor = check::text("filter.actor", &self.actor, 0..=100)?;
        let statuses = AlertStatus::all_from_proto("filter.to_statuses", &self.to_statuses)?;
        let (start, end) = time::bounds("filter.created_at", self.created_at)?;
        let mut select = Entity::find()
            .apply_if(alert_id, |select, id| select.filter(Column::AlertId.eq(id)))
            .apply_if(start, |select, start| select.filter(Column::CreatedAt.gte(start)))
            .apply_if(end, |select, end| select.filter(Column::CreatedAt.lt(end)));
        if !actor.is_empty() {
            select = select.filter(Column::Actor.eq(actor));
        }
        if !statuses.is_empty() {
            select = select.filter(Column::ToStatus.is_in(statuses));
        }
        Ok(select)
    }
}

impl From<Model> for pb::AlertTransition {
    fn from(row: Model) -> Self {
        let from_status = row.from_status.map(pb::AlertStatus::from);
        Self {
            id: row.id,
            alert_id: row.alert_id.to_string(),
            from_status: from_status.map(Into::into),
            to_status: pb::AlertStatus::from(row.to_status).into(),
            version_id: row.version_id,
            actor: row.actor,
            reason: row.reason,
            created_at: Some(time::to_proto(row.created_at)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_an_actor_it_is_the_address_of_the_peer() {
        let peer = |address: &str| Some(address.parse().unwrap());
        for (from, actor, expected) in [
            (peer("10.0.0.7:4711"), "ann", "ann"),
            (peer("10.0.0.7:4711"), "", "ip:10.0.0.7"),
            (peer("[::ffff:10.0.0.7]:4711"), "", "ip:10.0.0.7"),
            (peer("[2001:db8::1]:4711"), "", "ip:2001:db8::1"),
            (None, "", "unknown"),
            (None, "ann", "ann"),
        ] {
            let cause = Cause::parse(from, actor, "").unwrap();
            assert_eq!(cause, Cause::new(expected), "{from:?} {actor}");
        }
        let cause = Cause::parse(None, "ann", "a fox").unwrap();
        assert_eq!(cause.reason.as_deref(), Some("a fox"));
    }

    #[test]
    fn actors_and_reasons_have_bounds() {
        for (actor, reason, field) in [
            (&*"ä".repeat(101), "", "actor"),
            (" ", "", "actor"),
            ("a\0", "", "actor"),
            ("", &*"ä".repeat(1_001), "reason"),
            ("", "\0", "reason"),
        ] {
            let error = Cause::parse(None, actor, reason).unwrap_err().to_string();
            assert!(error.starts_with(&format!("`{field}` ")), "{error}");
        }
        assert!(Cause::parse(None, &"ä".repeat(100), &"ä".repeat(1_000)).is_ok());
        assert!(Cause::rule(Uuid::max()).actor.len() <= 100);
    }
}

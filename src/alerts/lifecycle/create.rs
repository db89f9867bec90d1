//! `CreateAlert`: alerts that clients raise directly.

use std::{collections::BTreeMap, net::SocketAddr};

use chrono::{DateTime, Utc};
use prost::Message;
use sea_orm::{ConnectionTrait, DatabaseTransaction, EntityTrait};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{
    change::announcement,
    deliveries,
    transition::{self, Cause},
};
use crate::{
    alerts::{
        rules::channels,
        suppression::cooldown::{self, Claim},
    },
    db::bulk::Inserts,
    entity::{
        self, Strings,
        alert::{self, AlertSeverity, AlertStatus},
        alert_request, alert_rule, event,
    },
    error::{Error, Result},
    feed,
    pb::{self, AlertChangeKind},
    rpc::{check, enums::FromProto, json, time},
};

/// Largest size of the metadata as JSON, in bytes.
const MAX_METADATA_BYTES: usize = 65_536;

/// Largest cooldown, as for rules. The default applies to alerts without a rule.
const MAX_COOLDOWN_SECONDS: i32 = 31_536_000; // a year
const DEFAULT_COOLDOWN_SECONDS: i32 = 300;

/// Validated request to raise an alert.
#[derive(Debug)]
pub(crate) struct NewAlert {
    event_id: i64,
    rule_id: Option<Uuid>,
    severity: Option<AlertSeverity>,
    dedup_key: String,
    cooldown_seconds: Option<i32>,
    channels: Option<Strings>,
    metadata: Option<serde_json::Value>,
    cause: Cause,
    /// Idempotency key of the request. Empty if the request has none.
    request_id: String,
    fingerprint: Vec<u8>,
}

impl pb::Alert {
    /// Alert with the fields that a request may set. Output-only fields have their default values.
    fn only_settable(self) -> Self {
        Self {
            event_id: self.event_id,
            rule_id: self.rule_id,
            severity: self.severity,
            channels: self.channels,
            dedup_key: self.dedup_key,
            metadata: self.metadata,
            ..Self::default()
        }
    }
}

impl NewAlert {
    /// Validates a request from `peer`.
    pub(crate) fn parse(mut request: pb::CreateAlertRequest, peer: Option<SocketAddr>) -> Result<Self> {
        let request_id = check::text("request_id", &request.request_id, 0..=128)?;
        request.request_id.clear();
        request.alert = request.alert.map(pb::Alert::only_settable);
        let fingerprint = Sha256::digest(request.encode_to_vec()).to_vec();
        let alert = request.alert.ok_or_else(|| Error::invalid("alert", "is required"))?;
        let rule_id = alert.rule_id.as_deref().map(|id| check::uuid("alert.rule_id", id)).transpose()?;
        let cooldown =
            request.cooldown.map(|cooldown| time::whole_seconds("cooldown", cooldown, &(0..=MAX_COOLDOWN_SECONDS)));
        let channels = check::texts("alert.channels", &alert.channels, 100, &(1..=100))?;
        let metadata =
            alert.metadata.map(|object| json::from_proto("alert.metadata", object, MAX_METADATA_BYTES)).transpose()?;
        Ok(Self {
            event_id: check::row_id("alert.event_id", alert.event_id)?,
            rule_id,
            severity: AlertSeverity::from_proto("alert.severity", alert.severity)?,
            dedup_key: dedup_key(&alert.dedup_key)?,
            cooldown_seconds: cooldown.transpose()?,
            channels: (!channels.is_empty()).then_some(Strings(channels)),
            metadata,
            cause: Cause::parse(peer, &request.actor, &request.reason)?,
            request_id,
            fingerprint,
        })
    }

    /// Raises the alert, or counts a repeat on the alert whose cooldown is running.
    pub(crate) async fn create(&self, tx: &DatabaseTransaction) -> Result<pb::CreateAlertResponse> {
        if let Some(response) = self.previous_response(tx).await? {
            return Ok(response);
        }
        let event = event::Entity::find_by_id(self.event_id)
            .one(tx)
            .await?
            .filter(|event| event.deleted_at.is_none())
            .ok_or_else(|| missing_reference("alert.event_id", "an event", " or is deleted"))?;
        let rule = match self.rule_id {
            Some(id) => {
                let rule = alert_rule::Entity::find_by_id(id).one(tx).await?;
                Some(rule.ok_or_else(|| missing_reference("alert.rule_id", "an alert rule", ""))?)
            }
            None => None,
        };
        let now = entity::now();
        let alert = self.row(event.camera_id, rule.as_ref(), now);
        let channel_names = self
            .channels
            .iter()
            .flat_map(|names| &names.0)
            .enumerate()
            .map(|(position, name)| (format!("alert.channels[{position}]"), name.clone()));
        channels::refuse_unknown_names(tx, channel_names.collect()).await?;
        let escalation = rule.as_ref().and_then(|rule| rule.escalation.clone()).unwrap_or_default().0;
        let default_cooldown = rule.map_or(DEFAULT_COOLDOWN_SECONDS, |rule| rule.cooldown_seconds);
        let cooldown = self.cooldown_seconds.unwrap_or(default_cooldown);
        let claim = Claim {
            rule_id: self.rule_id,
            dedup_key: self.dedup_key.clone(),
            alert_id: alert.id,
            raised_at_us: now.timestamp_micros(),
            cooldown_us: i64::from(cooldown) * 1_000_000,
        };
        let owner = claim_cooldown(tx, &claim, now).await?;
        let created = owner.is_none();
        let mut inserts = Inserts::new(tx.get_database_backend());
        if created {
            inserts.add(vec![alert.clone()])?;
            inserts.add(vec![transition::raised(&alert, self.cause.clone())])?;
            inserts.add(deliveries::for_new_alerts(tx, &[(&alert, &escalation)]).await?)?;
            let record = announcement(AlertChangeKind::Created, alert.clone().into());
            inserts.add(feed::rows(tx, [record]).await?)?;
        }
        let alert = owner.unwrap_or(alert);
        if !self.request_id.is_empty() {
            inserts.add(vec![alert_request::Model {
                request_id: self.request_id.clone(),
                fingerprint: self.fingerprint.clone(),
                alert_id: alert.id,
                created,
                created_at: now,
            }])?;
        }
        inserts.run(tx).await?;
        Ok(pb::CreateAlertResponse { alert: Some(alert.into()), created })
    }

    /// Returns the response to the same request, if the request was processed before.
    async fn previous_response(&self, tx: &DatabaseTransaction) -> Result<Option<pb::CreateAlertResponse>> {
        if self.request_id.is_empty() {
            return Ok(None);
        }
        let stored =
            alert_request::Entity::find_by_id(&self.request_id).find_also_related(alert::Entity).one(tx).await?;
        let Some((request, alert)) = stored else {
            return Ok(None);
        };
        if request.fingerprint != self.fingerprint {
            let field = "request_id";
            return Err(Error::KeyReused { field });
        }
        Ok(Some(pb::CreateAlertResponse { alert: alert.map(Into::into), created: request.created }))
    }

    fn row(&self, camera_id: String, rule: Option<&alert_rule::Model>, now: DateTime<Utc>) -> alert::Model {
        let severity = rule.map_or(AlertSeverity::Medium, |rule| rule.severity);
        let channels = self.channels.clone();
        alert::Model {
            id: Uuid::now_v7(),
            event_id: self.event_id,
            rule_id: self.rule_id,
            severity: self.severity.unwrap_or(severity),
            status: AlertStatus::Pending,
            created_at: now,
            updated_at: now,
            delivered_at: None,
            channels: channels.or_else(|| rule.and_then(|rule| rule.channels.clone())),
            dedup_key: self.dedup_key.clone(),
            metadata: self.metadata.clone(),
            version_id: 1,
            camera_id: Some(camera_id),
            suppressed_count: 0,
            last_suppressed_at: None,
            acknowledged_at: None,
            acknowledged_by: None,
            dismissed_at: None,
            dismissed_by: None,
        }
    }
}

/// Claims the cooldown of the dedup key. Returns the alert that owns a running cooldown, with the
/// repeat counted. `None` means that a new alert may be raised.
async fn claim_cooldown(tx: &DatabaseTransaction, claim: &Claim, now: DateTime<Utc>) -> Result<Option<alert::Model>> {
    if claim.cooldown_us == 0 {
        return Ok(None);
    }
    let claims = std::slice::from_ref(claim);
    let owner_id = cooldown::claim(tx, claims).await?.into_iter().next();
    let Some(other_id) = owner_id.filter(|owner_id| *owner_id != claim.alert_id) else {
        return Ok(None);
    };
    cooldown::count(tx, &BTreeMap::from([(other_id, 1)]), now).await?;
    let alert = alert::Entity::find_by_id(other_id).one(tx).await?;
    if alert.is_none() {
        // The owner was deleted with its event and cannot count repeats, so that a new cooldown
        // begins.
        cooldown::end(tx, claim).await?;
        cooldown::claim(tx, claims).await?;
    }
    Ok(alert)
}

fn dedup_key(key: &str) -> Result<String> {
    let field = "alert.dedup_key";
    let key = check::text(field, key, 1..=255)?;
    let is_permitted = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '-');
    if !key.chars().all(is_permitted) {
        let problem = "must be of the characters A-Z, a-z, 0-9, _, : and -";
        return Err(Error::invalid(field, problem));
    }
    Ok(key)
}

fn missing_reference(field: &str, resource: &str, alternative: &str) -> Error {
    Error::BrokenReference {
        field: field.into(),
        problem: format!("names {resource} that does not exist{alternative}"),
    }
}

//! Queue of deliveries. Raising an alert queues its deliveries, and acknowledging or dismissing an
//! alert cancels queued deliveries, each in the same transaction.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{
    ActiveValue::Set, ColumnTrait, DatabaseTransaction, EntityTrait, QueryFilter, QuerySelect, sea_query::SimpleExpr,
};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::{
    entity::{
        alert,
        alert_rule::EscalationStep,
        delivery::{self, DeliveryStatus},
        notification_channel::{self, ChannelKind},
    },
    error::Result,
};

/// Wakes the delivery loop when a delivery may be due. Clones share one wakeup.
#[derive(Debug, Clone, Default)]
pub struct DeliveryWakeup(Arc<Notify>);

impl DeliveryWakeup {
    /// Wakes the delivery loop. Call after the commit that queued deliveries.
    pub fn notify(&self) {
        self.0.notify_one();
    }

    /// Waits until [`DeliveryWakeup::notify`] is called, for the delivery loop.
    pub async fn notified(&self) {
        self.0.notified().await;
    }
}

/// Builds the deliveries of new alerts, given with the escalation of the rule. Insert the rows
/// after the alerts, in the same transaction.
///
/// Skips deleted channels, channels of kind `stream`, and duplicate channels within an escalation
/// step.
pub async fn for_new_alerts(
    tx: &DatabaseTransaction,
    alerts: &[(&alert::Model, &[EscalationStep])],
) -> Result<Vec<delivery::Model>> {
    use notification_channel::Column::{Id, Kind, Name};

    let mut names = BTreeSet::new();
    for (alert, escalation) in alerts {
        let escalation_channels = escalation.iter().flat_map(|step| &step.channels);
        names.extend(immediate_channels(alert).iter().chain(escalation_channels));
    }
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let rows: Vec<(Uuid, String, ChannelKind)> = notification_channel::Entity::find()
        .select_only()
        .columns([Id, Name, Kind])
        .filter(Name.is_in(names.iter().copied()))
        .into_tuple()
        .all(tx)
        .await?;
    let channels: HashMap<_, _> = rows
        .iter()
        .filter(|(_, _, kind)| *kind != ChannelKind::Stream)
        .map(|(id, name, _)| (name.as_str(), *id))
        .collect();

    let mut deliveries = Vec::new();
    for (alert, escalation) in alerts {
        let mut queue = |step: i32, after: i32, names: &[String]| {
            let due_at = alert.created_at + TimeDelta::seconds(after.into());
            let distinct_names: BTreeSet<_> = names.iter().map(String::as_str).collect();
            let present = distinct_names.into_iter().filter_map(|name| Some((name, *channels.get(name)?)));
            deliveries.extend(present.map(|(name, id)| queued_delivery(alert, id, name, step, due_at)));
        };
        queue(0, 0, immediate_channels(alert));
        for (step, EscalationStep { after_seconds, channels }) in (1..).zip(escalation.iter()) {
            queue(step, *after_seconds, channels);
        }
    }
    Ok(deliveries)
}

fn immediate_channels(alert: &alert::Model) -> &[String] {
    alert.channels.as_ref().map(|names| &names.0[..]).unwrap_or_default()
}

fn queued_delivery(
    alert: &alert::Model,
    channel_id: Uuid,
    channel_name: &str,
    escalation_step: i32,
    due_at: DateTime<Utc>,
) -> delivery::Model {
    delivery::Model {
        id: Uuid::now_v7(),
        alert_id: alert.id,
        channel_id: Some(channel_id),
        channel_name: channel_name.to_string(),
        escalation_step,
        severity: alert.severity.into(),
        status: DeliveryStatus::Queued,
        attempts: 0,
        failures: 0,
        next_attempt_at: Some(due_at),
        last_attempt_at: None,
        lease_id: None,
        last_error: None,
        last_status_code: None,
        created_at: alert.created_at,
        updated_at: alert.created_at,
        delivered_at: None,
    }
}

/// Cancels the queued deliveries of alerts. The caller has locked the alerts.
pub async fn cancel(tx: &DatabaseTransaction, alert_ids: &[Uuid], now: DateTime<Utc>) -> Result<()> {
    let of_alerts = delivery::Column::AlertId.is_in(alert_ids.iter().copied());
    cancel_queued(tx, of_alerts, now).await
}

/// Cancels the queued deliveries that match a condition.
pub async fn cancel_queued(tx: &DatabaseTransaction, deliveries: SimpleExpr, now: DateTime<Utc>) -> Result<()> {
    delivery::Entity::update_many()
        .set(delivery::ActiveModel {
            status: Set(DeliveryStatus::Cancelled),
            next_attempt_at: Set(None),
            lease_id: Set(None),
            updated_at: Set(now),
            ..Default::default()
        })
        .filter(deliveries)
        .filter(delivery::Column::Status.eq(DeliveryStatus::Queued))
        .exec(tx)
        .await?;
    Ok(())
}

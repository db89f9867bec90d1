//! Feed records of channel changes.

use sea_orm::DatabaseTransaction;

use crate::{
    entity::notification_channel,
    error::Result,
    feed,
    pb::{self, ChangeKind, watch_response::Update},
    topics,
};

/// Records a change of a channel in the feed. Returns the channel for the response.
pub(crate) async fn record_change(
    tx: &DatabaseTransaction,
    kind: ChangeKind,
    channel: notification_channel::Model,
) -> Result<pb::NotificationChannel> {
    let channel = pb::NotificationChannel::from(channel);
    let change = pb::NotificationChannelChange { kind: kind.into(), notification_channel: Some(channel.clone()) };
    let record = topics::record(&channel.id, Update::NotificationChannel(change));
    feed::record(tx, [record]).await?;
    Ok(channel)
}

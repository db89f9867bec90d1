//! Feed records of channel changes.

use prost::Message as _;
use sea_orm::DatabaseTransaction;

use crate::{
    entity::notification_channel,
    error::Result,
    feed::{self, Record, Topic},
    pb::{self, ChangeKind, watch_response::Update},
};

/// Records a change of a channel in the feed. Returns the channel for the response.
pub(crate) async fn record_change(
    tx: &DatabaseTransaction,
    kind: ChangeKind,
    channel: notification_channel::Model,
) -> Result<pb::NotificationChannel> {
    let channel = pb::NotificationChannel::from(channel);
    let change = pb::NotificationChannelChange {
        kind: kind.into(),
        notification_channel: Some(channel.clone()),
    };
    let message = pb::WatchResponse {
        update: Some(Update::NotificationChannel(change)),
        ..Default::default()
    };
    let record = Record {
        topic: Topic::NotificationChannels,
        key: channel.id.clone(),
        message: message.encode_to_vec(),
    };
    feed::record(tx, [record]).await?;
    Ok(channel)
}

//! Encrypts again what an older server has stored of channels in another form.

use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, EntityTrait, QueryFilter, QuerySelect,
};
use uuid::Uuid;

use super::{Keyring, webhook};
use crate::{
    db::Db,
    entity::notification_channel::{ActiveModel, ChannelKind, Column, Config, Entity, Model},
    error::{Error, Result},
};

/// Encrypts again whatever is not in the newest form. A channel whose secrets cannot be decrypted stays as it is.
pub(crate) async fn run(db: &Db, keyring: &Keyring) {
    if let Err(error) = all(db, keyring).await {
        tracing::warn!(%error, "secrets of channels are still in an older form; the next start tries again");
    }
}

async fn all(db: &Db, keyring: &Keyring) -> Result<()> {
    let channels = Entity::find()
        .filter(Column::Kind.eq(ChannelKind::Webhook))
        .all(db.reader())
        .await?;
    for channel in channels.iter().filter(|channel| is_old(channel)) {
        if let Err(problem) = keyring.open_channel(channel) {
            tracing::warn!(channel = %channel.name, problem, "a channel keeps its secrets in an older form");
            continue;
        }
        db.write_quietly(async |tx| one(tx, keyring, channel.id).await)
            .await?;
    }
    Ok(())
}

/// Whether a channel tells what is encrypted today.
fn is_old(channel: &Model) -> bool {
    matches!(&channel.config, Config::Webhook { url, .. } if webhook::shortened(url) != *url)
}

async fn one(tx: &sea_orm::DatabaseTransaction, keyring: &Keyring, id: Uuid) -> Result<()> {
    let channel = Entity::find_by_id(id).lock_exclusive().one(tx).await?;
    let Some(channel) = channel.filter(is_old) else {
        return Ok(());
    };
    let secrets = keyring.open_channel(&channel).map_err(Error::internal)?;
    let mut config = channel.config;
    if let Config::Webhook { url, .. } = &mut config {
        *url = webhook::shortened(url);
    }
    // Nothing of it changes for clients: no version is raised, and nothing is announced.
    let sealed = ActiveModel {
        id: Set(id),
        config: Set(config),
        secrets: Set(Some(keyring.seal(id, &secrets)?)),
        ..<ActiveModel as ActiveModelTrait>::default()
    };
    sealed.update(tx).await?;
    Ok(())
}

//! Keeps stored secrets readable: encrypts older formats again, and reports undecryptable secrets.

use std::time::Duration;

use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, DatabaseTransaction, EntityTrait, QueryFilter, QuerySelect,
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{secrets_version, with_next_version};
use crate::{
    db::Db,
    entity::notification_channel::{ActiveModel, ChannelKind, Column, Config, Entity, Model},
    error::{Error, Result},
    health::Health,
    log::retry,
    notifications::{Counts, Keyring, senders::url::shorten},
};

/// Interval between two checks of the key file.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Number of checks between two checks of every channel, while no problem is known.
const CHECKS_PER_FULL_CHECK: u32 = 12;

/// Encrypts secrets again that are not in the current format and key. Undecryptable secrets stay unchanged.
pub(crate) async fn run(db: &Db, keyring: &Keyring) {
    if let Err(error) = reseal_all(db, keyring).await {
        tracing::warn!(%error, "failed to encrypt outdated secrets of channels again; the next start retries");
    }
}

/// Encrypts outdated secrets of all channels again. Returns the number of undecryptable channels.
pub(crate) async fn reseal_all(db: &Db, keyring: &Keyring) -> Result<usize> {
    let mut unreadable = 0;
    for channel in channels_with_secrets(db).await? {
        if keyring.is_current(&channel) {
            continue;
        }
        if let Err(problem) = keyring.open(&channel) {
            tracing::warn!(channel = %channel.name, problem, "failed to decrypt the secrets of a channel; they stay in the outdated form");
            unreadable += 1;
            continue;
        }
        let id = channel.id;
        db.write_unannounced(async |tx| reseal_channel(tx, keyring, id).await).await?;
    }
    Ok(unreadable)
}

/// Reads the channels with secrets.
pub(crate) async fn channels_with_secrets(db: &Db) -> Result<Vec<Model>> {
    let channels = Entity::find().filter(Column::Kind.ne(ChannelKind::Stream)).filter(Column::Secrets.is_not_null());
    Ok(channels.all(db.reader()).await?)
}

async fn reseal_channel(tx: &DatabaseTransaction, keyring: &Keyring, id: Uuid) -> Result<()> {
    let channel = Entity::find_by_id(id).lock_exclusive().one(tx).await?;
    let Some(channel) = channel.filter(|channel| !keyring.is_current(channel)) else {
        return Ok(());
    };
    let secrets = keyring.open(&channel).map_err(Error::internal)?;
    let mut config = channel.config;
    if let Config::Webhook { url, .. } = &mut config {
        *url = shorten(url);
    }
    let previous_version = secrets_version(&config);
    let config = with_next_version(config, previous_version);
    let sealed = keyring.seal(id, &config, &secrets)?;
    // Clients see no change, so the version and the feed stay unchanged.
    let row = ActiveModel {
        id: Set(id),
        config: Set(config),
        secrets: Set(Some(sealed)),
        ..<ActiveModel as ActiveModelTrait>::default()
    };
    row.update(tx).await?;
    Ok(())
}

/// Reports to health, metrics and the log if all secrets can be decrypted, until shutdown.
pub(crate) async fn watch(db: Db, keyring: Keyring, counts: Counts, health: Health, shutdown: CancellationToken) {
    let watching = async {
        let mut known = SecretsState::default();
        for check in 0_u32.. {
            let is_full_check = check % CHECKS_PER_FULL_CHECK == 0 || known != SecretsState::default();
            let has_keys = keyring.keys().is_ok();
            if is_full_check || !has_keys {
                match SecretsState::read(&db, &keyring).await {
                    Ok(state) if state != known => {
                        state.report(&counts, &health);
                        known = state;
                    }
                    Ok(_) => {}
                    Err(error) => {
                        retry::retrying(&error, "failed to read channels; retrying");
                    }
                }
            }
            sleep(CHECK_INTERVAL).await;
        }
    };
    shutdown.run_until_cancelled(watching).await;
}

/// State of the key file and of the secrets.
#[derive(Debug, Default, PartialEq)]
struct SecretsState {
    /// Problem of the key file, if needed by a channel.
    key: Option<String>,
    /// Number of channels with undecryptable secrets.
    unreadable: usize,
    problem: Option<String>,
}

impl SecretsState {
    async fn read(db: &Db, keyring: &Keyring) -> Result<Self> {
        let channels = channels_with_secrets(db).await?;
        let mut problems = channels.iter().filter_map(|channel| keyring.open(channel).err());
        let problem = problems.next();
        let key = keyring.keys().err().filter(|_| !channels.is_empty());
        Ok(Self {
            key: key.map(|problem| problem.to_string()),
            unreadable: usize::from(problem.is_some()) + problems.count(),
            problem,
        })
    }

    fn report(&self, counts: &Counts, health: &Health) {
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        counts.unreadable_channels.set(count(self.unreadable));
        counts.key_readable.set(i64::from(self.key.is_none()));
        let detail = match (&self.problem, &self.key) {
            (Some(problem), _) => Some(format!("secrets: {} channels cannot deliver: {problem}", self.unreadable)),
            (None, Some(problem)) => Some(format!(
                "secrets: {problem}; channels deliver until this process ends, because it still has the key in memory"
            )),
            (None, None) => None,
        };
        if let Some(detail) = &detail {
            tracing::error!("{detail}");
        } else {
            tracing::info!("secrets: the secrets of all channels can be decrypted");
        }
        health.set_secrets(self.unreadable == 0, detail);
    }
}

//! Keeps stored secrets readable: encrypts older forms again, and tells when secrets cannot be decrypted.

use std::time::Duration;

use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, DatabaseTransaction, EntityTrait, QueryFilter,
    QuerySelect,
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{sealed_for, version};
use crate::{
    db::Db,
    entity::notification_channel::{ActiveModel, ChannelKind, Column, Config, Entity, Model},
    error::{Error, Result},
    health::Health,
    notifications::{Counts, Keyring, senders::webhook},
};

/// How often the key file is looked at.
const LOOK: Duration = Duration::from_secs(5);

/// How many looks pass between those at every channel, if nothing says that something is wrong.
const EVERY_CHANNEL: u32 = 12;

/// Encrypts again whatever is not in the newest form, by the current key. A channel whose secrets cannot be decrypted
/// stays as it is.
pub(crate) async fn run(db: &Db, keyring: &Keyring) {
    if let Err(error) = all(db, keyring).await {
        tracing::warn!(%error, "secrets of channels are still in an older form; the next start tries again");
    }
}

/// Encrypts again all that is not current. Returns how many channels could not be decrypted.
pub(crate) async fn all(db: &Db, keyring: &Keyring) -> Result<usize> {
    let mut unreadable = 0;
    for channel in channels(db).await? {
        if keyring.is_current(&channel) {
            continue;
        }
        if let Err(problem) = keyring.open(&channel) {
            tracing::warn!(channel = %channel.name, problem, "the secrets of a channel cannot be encrypted again");
            unreadable += 1;
            continue;
        }
        let id = channel.id;
        db.write_unannounced(async |tx| one(tx, keyring, id).await)
            .await?;
    }
    Ok(unreadable)
}

/// The channels that have secrets.
pub(crate) async fn channels(db: &Db) -> Result<Vec<Model>> {
    let channels = Entity::find()
        .filter(Column::Kind.ne(ChannelKind::Stream))
        .filter(Column::Secrets.is_not_null());
    Ok(channels.all(db.reader()).await?)
}

async fn one(tx: &DatabaseTransaction, keyring: &Keyring, id: Uuid) -> Result<()> {
    let channel = Entity::find_by_id(id).lock_exclusive().one(tx).await?;
    let Some(channel) = channel.filter(|channel| !keyring.is_current(channel)) else {
        return Ok(());
    };
    let secrets = keyring.open(&channel).map_err(Error::internal)?;
    let mut config = channel.config;
    if let Config::Webhook { url, .. } = &mut config {
        *url = webhook::shortened(url);
    }
    let before = version(&config);
    let config = sealed_for(config, before);
    let sealed = keyring.seal(id, &config, &secrets)?;
    // Nothing changes for clients: no version is raised, and nothing is announced.
    let row = ActiveModel {
        id: Set(id),
        config: Set(config),
        secrets: Set(Some(sealed)),
        ..<ActiveModel as ActiveModelTrait>::default()
    };
    row.update(tx).await?;
    Ok(())
}

/// Tells health, metrics and the log whether the secrets of all channels can be decrypted, until shutdown.
pub(crate) async fn watch(
    db: Db,
    keyring: Keyring,
    counts: Counts,
    health: Health,
    shutdown: CancellationToken,
) {
    let watching = async {
        let mut known = State::default();
        for look in 0_u32.. {
            let whole = look % EVERY_CHANNEL == 0 || known != State::default();
            let is_there = keyring.keys().is_ok();
            if whole || !is_there {
                match State::of(&db, &keyring).await {
                    Ok(state) if state != known => {
                        state.tell(&counts, &health);
                        known = state;
                    }
                    Ok(_) => {}
                    Err(error) => {
                        tracing::debug!(%error, "channels cannot be read; it is tried again");
                    }
                }
            }
            sleep(LOOK).await;
        }
    };
    shutdown.run_until_cancelled(watching).await;
}

/// The state of the key and of the channels.
#[derive(Debug, Default, PartialEq)]
struct State {
    /// Why the key file cannot be used, if it is needed and cannot.
    key: Option<String>,
    /// The number of channels whose secrets cannot be decrypted, and why the first one cannot.
    unreadable: usize,
    problem: Option<String>,
}

impl State {
    async fn of(db: &Db, keyring: &Keyring) -> Result<Self> {
        let channels = channels(db).await?;
        let mut problems = channels
            .iter()
            .filter_map(|channel| keyring.open(channel).err());
        let problem = problems.next();
        let key = keyring.keys().err().filter(|_| !channels.is_empty());
        Ok(Self {
            key: key.map(|problem| problem.to_string()),
            unreadable: usize::from(problem.is_some()) + problems.count(),
            problem,
        })
    }

    fn tell(&self, counts: &Counts, health: &Health) {
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        counts.unreadable_channels.set(count(self.unreadable));
        counts.key_readable.set(i64::from(self.key.is_none()));
        let detail = match (&self.problem, &self.key) {
            (Some(problem), _) => Some(format!(
                "secrets: {} channels cannot deliver: {problem}",
                self.unreadable
            )),
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

//! The secrets of channels: encrypted with a key of this installation before they are stored, so that
//! a copy of the database gives none away.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use ring::{
    aead::{Aad, NONCE_LEN, Nonce},
    rand::{SecureRandom, SystemRandom},
};
use sea_orm::{ColumnTrait, EntityTrait, PaginatorTrait, QueryFilter};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use self::key_file::{ID_LENGTH, KeyError, Keys, Stamp};
use super::senders::webhook::is_shortened;
use crate::{
    db::Db,
    entity::notification_channel::{self, ChannelKind, Column, Config, Entity},
    error::{Error, Result},
};

/// The first byte of a ciphertext: its form. Form 1 names no key, and is bound to the id of its channel only.
const OLD_FORM: u8 = 1;
const FORM: u8 = 2;

/// The secrets of a channel.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Secrets {
    /// The keys that webhooks are signed with, the newest first.
    #[serde(default)]
    pub signing: Vec<SigningSecret>,
    /// Further headers of webhooks, by their names in lower case.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// The password of the mail server.
    #[serde(default)]
    pub password: Option<String>,
    /// The whole URL of a webhook: its path and query often hold a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// A key that webhooks are signed with.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct SigningSecret {
    /// `whsec_` and base64.
    pub secret: String,
    /// The time from which on the secret is not used, in seconds since 1970.
    pub expires_at: Option<i64>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets").finish_non_exhaustive()
    }
}

impl fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningSecret").finish_non_exhaustive()
    }
}

/// Encrypts and decrypts with the keys of a file outside of the database. Clones share them.
#[derive(Clone)]
pub struct Keyring(Arc<Inner>);

struct Inner {
    path: PathBuf,
    /// The keys as they were last read.
    keys: Mutex<Option<(Stamp, Keys)>>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Keyring").field(&self.0.path).finish()
    }
}

impl Keyring {
    /// The keys in this file.
    pub fn new(path: PathBuf) -> Self {
        let keys = Mutex::default();
        Self(Arc::new(Inner { path, keys }))
    }

    /// The file with the keys.
    pub(super) fn path(&self) -> &Path {
        &self.0.path
    }

    /// Makes the key that is about to be used, if there is none and nothing is encrypted with one that is lost.
    pub(super) async fn prepare(&self, db: &Db) -> Result<()> {
        match self.keys() {
            Ok(_) => return Ok(()),
            Err(KeyError::Missing(_)) if !any_sealed(db).await? => {}
            Err(problem) => return Err(unreadable(&problem)),
        }
        let made = key_file::make(self.path());
        made.map_err(|error| unreadable(&format!("{}: {error}", self.path().display())))
    }

    /// Encrypts the secrets of a channel. They can be decrypted for the same channel, version and destination only.
    pub(super) fn seal(&self, id: Uuid, config: &Config, secrets: &Secrets) -> Result<Vec<u8>> {
        // By a key that is in the file now: one that is not would be lost with the process.
        let keys = self.keys().map_err(|problem| unreadable(&problem))?;
        let key = keys.current();
        let mut text = serde_json::to_vec(secrets).map_err(Error::internal)?;
        let mut nonce = [0; NONCE_LEN];
        let failed = |_| Error::internal("the secrets of a channel cannot be encrypted");
        SystemRandom::new().fill(&mut nonce).map_err(failed)?;
        let aad = Aad::from(context(id, config));
        key.cipher
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut text)
            .map_err(failed)?;
        Ok([&[FORM][..], &key.id, &nonce, &text].concat())
    }

    /// Decrypts the secrets of a channel; if that cannot be done, says why.
    pub(super) fn open(&self, channel: &notification_channel::Model) -> Result<Secrets, String> {
        let mut secrets = match channel.secrets.as_deref() {
            Some(sealed) => self.decrypted(channel, sealed)?,
            None => Secrets::default(),
        };
        // Older servers have stored the URL in the clear.
        if let Config::Webhook { url, .. } = &channel.config
            && !is_shortened(url)
        {
            secrets.url.get_or_insert_with(|| url.clone());
        }
        Ok(secrets)
    }

    fn decrypted(
        &self,
        channel: &notification_channel::Model,
        sealed: &[u8],
    ) -> Result<Secrets, String> {
        let keys = self.known_keys().map_err(|problem| problem.to_string())?;
        let path = self.path().display();
        let foreign = || format!("the channel's secrets were not encrypted with a key in {path}");
        let (form, rest) = sealed.split_first().ok_or_else(foreign)?;
        let (candidates, context, rest): (Vec<_>, _, _) = match *form {
            OLD_FORM => (
                keys.iter().collect(),
                channel.id.into_bytes().to_vec(),
                rest,
            ),
            FORM => {
                let (id, rest) = rest.split_at_checked(ID_LENGTH).ok_or_else(foreign)?;
                let key = keys.find(id).ok_or_else(foreign)?;
                (vec![key], context(channel.id, &channel.config), rest)
            }
            _ => return Err("the channel's secrets are of a newer form".to_string()),
        };
        let (nonce, text) = rest.split_at_checked(NONCE_LEN).ok_or_else(foreign)?;
        let decrypted = candidates.into_iter().find_map(|key| {
            let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
            let mut text = text.to_vec();
            let text = key
                .cipher
                .open_in_place(nonce, Aad::from(&context), &mut text);
            text.ok().map(|text| text.to_vec())
        });
        let changed = || match *form {
            FORM => {
                "the channel's secrets belong to another channel, version or destination".into()
            }
            _ => foreign(),
        };
        // The error would repeat what could not be read.
        serde_json::from_slice(&decrypted.ok_or_else(changed)?)
            .map_err(|_| "the channel's secrets are unreadable".to_string())
    }

    /// Whether a channel's secrets are stored as they would be today: in the newest form, by the current key.
    pub(super) fn is_current(&self, channel: &notification_channel::Model) -> bool {
        let Ok(keys) = self.keys() else {
            return true;
        };
        let shown = !matches!(&channel.config, Config::Webhook { url, .. } if super::senders::webhook::shortened(url) != *url);
        let prefix = [&[FORM][..], &keys.current().id].concat();
        shown
            && channel
                .secrets
                .as_ref()
                .is_none_or(|sealed| sealed.starts_with(&prefix))
    }

    /// The keys that are in the file now.
    pub(super) fn keys(&self) -> Result<Keys, KeyError> {
        let stamp = key_file::stamp(self.path())?;
        let mut cached = self.0.keys.lock();
        if let Some((read_at, keys)) = &*cached
            && *read_at == stamp
        {
            return Ok(keys.clone());
        }
        let keys = key_file::read(self.path())?;
        *cached = Some((stamp, keys.clone()));
        Ok(keys)
    }

    /// The keys in the file, or those that it held last if it cannot be read.
    fn known_keys(&self) -> Result<Keys, KeyError> {
        self.keys().or_else(|problem| {
            let cached = self.0.keys.lock();
            cached.as_ref().map(|(_, keys)| keys.clone()).ok_or(problem)
        })
    }
}

/// The data that a ciphertext is bound to: its column, its row, its version, and where the secrets are sent to. Whoever
/// can write the database cannot move secrets to another channel, bring old ones back, or have them sent elsewhere.
fn context(id: Uuid, config: &Config) -> Vec<u8> {
    let destination = match config {
        Config::Email {
            host,
            port,
            security,
            ..
        } => format!("{security:?} {port} {host}"),
        // The URL is among the secrets.
        Config::Webhook { .. } | Config::Stream {} => String::new(),
    };
    let version = version(config);
    let column = b"notification_channels.secrets";
    [
        column,
        &id.into_bytes()[..],
        &version.to_be_bytes(),
        destination.as_bytes(),
    ]
    .concat()
}

/// The configuration of a channel whose secrets are about to be encrypted, with the version after this one.
pub(super) fn sealed_for(mut config: Config, before: u32) -> Config {
    if let Config::Webhook {
        secrets_version, ..
    }
    | Config::Email {
        secrets_version, ..
    } = &mut config
    {
        *secrets_version = before.wrapping_add(1);
    }
    config
}

/// The version of a channel's secrets.
pub(super) fn version(config: &Config) -> u32 {
    match config {
        Config::Webhook {
            secrets_version, ..
        }
        | Config::Email {
            secrets_version, ..
        } => *secrets_version,
        Config::Stream {} => 0,
    }
}

/// Whether the secrets of any channel are encrypted.
async fn any_sealed(db: &Db) -> Result<bool> {
    let sealed = Entity::find()
        .filter(Column::Secrets.is_not_null())
        .filter(Column::Kind.ne(ChannelKind::Stream));
    Ok(sealed.count(db.reader()).await? > 0)
}

fn unreadable(problem: &impl fmt::Display) -> Error {
    Error::SecretsUnreadable {
        problem: problem.to_string(),
    }
}

pub(super) mod key_file;
pub(super) mod keys;
pub(crate) mod reseal;
pub(super) mod scrub;
#[cfg(test)]
mod tests;

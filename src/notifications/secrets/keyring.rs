//! Keyring: encrypts and decrypts the secrets of channels.

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

use super::key_file::{self, ID_LENGTH, KeyError, Keys, Stamp};
use crate::{
    db::Db,
    entity::notification_channel::{self, ChannelKind, Column, Config, Entity},
    error::{Error, Result},
    notifications::senders::url::{is_shortened, shorten},
};

/// Format of a ciphertext, stored as its first byte. Format 1 names no key, and is bound to the id of its channel
/// only.
const FORMAT_1: u8 = 1;
const FORMAT_2: u8 = 2;

/// Secrets of a channel.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
pub(in crate::notifications) struct Secrets {
    /// Signing secrets of a webhook, newest first.
    #[serde(default)]
    pub signing: Vec<SigningSecret>,
    /// Additional headers of a webhook, by lower-case name.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Password of the mail server.
    #[serde(default)]
    pub password: Option<String>,
    /// Full URL of a webhook. Path and query often contain a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// Signing secret of a webhook.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::notifications) struct SigningSecret {
    /// Prefix `whsec_`, then the key in base64.
    pub secret: String,
    /// Expiry in seconds since 1970. `None` for no expiry.
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

/// Encrypts and decrypts with the keys of a file outside of the database. Clones share the keys.
#[derive(Clone)]
pub struct Keyring(Arc<Inner>);

struct Inner {
    path: PathBuf,
    /// Keys of the last successful read, with the stamp of the file.
    keys: Mutex<Option<(Stamp, Keys)>>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Keyring").field(&self.0.path).finish()
    }
}

impl Keyring {
    /// Creates the keyring of a key file, without reading the file.
    pub fn new(path: PathBuf) -> Self {
        let keys = Mutex::default();
        Self(Arc::new(Inner { path, keys }))
    }

    /// Path of the key file.
    pub(in crate::notifications) fn path(&self) -> &Path {
        &self.0.path
    }

    /// Creates the key file if missing, unless stored secrets need a lost key.
    pub(in crate::notifications) async fn prepare(&self, db: &Db) -> Result<()> {
        match self.keys() {
            Ok(_) => return Ok(()),
            Err(KeyError::Missing(_)) if !any_sealed(db).await? => {}
            Err(problem) => return Err(unreadable_error(&problem)),
        }
        let created = key_file::create(self.path());
        created.map_err(|error| unreadable_error(&format!("{}: {error}", self.path().display())))
    }

    /// Encrypts the secrets of a channel. Decryption requires the same channel, version and destination.
    pub(in crate::notifications) fn seal(&self, id: Uuid, config: &Config, secrets: &Secrets) -> Result<Vec<u8>> {
        // Only a key in the file now may encrypt. A key missing from the file would be lost with the process.
        let keys = self.keys().map_err(|problem| unreadable_error(&problem))?;
        let key = keys.current();
        let mut text = serde_json::to_vec(secrets).map_err(Error::internal)?;
        let mut nonce = [0; NONCE_LEN];
        let failed = |_| Error::internal("the secrets of a channel cannot be encrypted");
        SystemRandom::new().fill(&mut nonce).map_err(failed)?;
        let aad = Aad::from(associated_data(id, config));
        key.cipher.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut text).map_err(failed)?;
        Ok([&[FORMAT_2][..], &key.id, &nonce, &text].concat())
    }

    /// Decrypts the secrets of a channel. The error says why the secrets are unreadable.
    pub(in crate::notifications) fn open(&self, channel: &notification_channel::Model) -> Result<Secrets, String> {
        let mut secrets = match channel.secrets.as_deref() {
            Some(sealed) => self.decrypt(channel, sealed)?,
            None => Secrets::default(),
        };
        // Older servers stored the URL in plain text.
        if let Config::Webhook { url, .. } = &channel.config
            && !is_shortened(url)
        {
            secrets.url.get_or_insert_with(|| url.clone());
        }
        Ok(secrets)
    }

    fn decrypt(&self, channel: &notification_channel::Model, sealed: &[u8]) -> Result<Secrets, String> {
        let keys = self.known_keys().map_err(|problem| problem.to_string())?;
        let path = self.path().display();
        let foreign_key = || format!("the channel's secrets were not encrypted with a key in {path}");
        let (format, rest) = sealed.split_first().ok_or_else(foreign_key)?;
        let (candidates, associated_data, rest): (Vec<_>, _, _) = match *format {
            FORMAT_1 => (keys.iter().collect(), channel.id.into_bytes().to_vec(), rest),
            FORMAT_2 => {
                let (id, rest) = rest.split_at_checked(ID_LENGTH).ok_or_else(foreign_key)?;
                let key = keys.find(id).ok_or_else(foreign_key)?;
                (vec![key], associated_data(channel.id, &channel.config), rest)
            }
            _ => return Err("the channel's secrets have a newer format".to_string()),
        };
        let (nonce, text) = rest.split_at_checked(NONCE_LEN).ok_or_else(foreign_key)?;
        let decrypted = candidates.into_iter().find_map(|key| {
            let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
            let mut text = text.to_vec();
            let text = key.cipher.open_in_place(nonce, Aad::from(&associated_data), &mut text);
            text.ok().map(|text| text.to_vec())
        });
        let mismatch = || match *format {
            FORMAT_2 => "the channel's secrets belong to another channel, version or destination".into(),
            _ => foreign_key(),
        };
        // The error of the parser would repeat secret text.
        serde_json::from_slice(&decrypted.ok_or_else(mismatch)?)
            .map_err(|_| "the channel's secrets are unreadable".to_string())
    }

    /// Returns true if the secrets have the current format and key.
    pub(in crate::notifications) fn is_current(&self, channel: &notification_channel::Model) -> bool {
        let Ok(keys) = self.keys() else {
            return true;
        };
        let is_url_hidden = !matches!(&channel.config, Config::Webhook { url, .. } if shorten(url) != *url);
        let prefix = [&[FORMAT_2][..], &keys.current().id].concat();
        is_url_hidden && channel.secrets.as_ref().is_none_or(|sealed| sealed.starts_with(&prefix))
    }

    /// Keys in the file now.
    pub(in crate::notifications) fn keys(&self) -> Result<Keys, KeyError> {
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

    /// Keys in the file, or the last known keys if the file is unreadable.
    fn known_keys(&self) -> Result<Keys, KeyError> {
        self.keys().or_else(|problem| {
            let cached = self.0.keys.lock();
            cached.as_ref().map(|(_, keys)| keys.clone()).ok_or(problem)
        })
    }
}

/// Associated data binding a ciphertext to its column, row, version and destination. A writer of the database thus
/// cannot move secrets to another channel, restore old secrets, or redirect secrets.
fn associated_data(id: Uuid, config: &Config) -> Vec<u8> {
    let destination = match config {
        Config::Email { host, port, security, .. } => format!("{security:?} {port} {host}"),
        // The URL itself is a secret.
        Config::Webhook { .. } | Config::Stream {} => String::new(),
    };
    let version = secrets_version(config);
    let column = b"notification_channels.secrets";
    [column, &id.into_bytes()[..], &version.to_be_bytes(), destination.as_bytes()].concat()
}

/// Configuration with the secrets version following `previous_version`, for secrets about to be encrypted.
pub(in crate::notifications) fn with_next_version(mut config: Config, previous_version: u32) -> Config {
    if let Config::Webhook { secrets_version, .. } | Config::Email { secrets_version, .. } = &mut config {
        *secrets_version = previous_version.wrapping_add(1);
    }
    config
}

/// Version of the secrets of a channel.
pub(in crate::notifications) fn secrets_version(config: &Config) -> u32 {
    match config {
        Config::Webhook { secrets_version, .. } | Config::Email { secrets_version, .. } => *secrets_version,
        Config::Stream {} => 0,
    }
}

/// Returns true if any channel has encrypted secrets.
async fn any_sealed(db: &Db) -> Result<bool> {
    let sealed = Entity::find().filter(Column::Secrets.is_not_null()).filter(Column::Kind.ne(ChannelKind::Stream));
    Ok(sealed.count(db.reader()).await? > 0)
}

fn unreadable_error(problem: &impl fmt::Display) -> Error {
    Error::SecretsUnreadable { problem: problem.to_string() }
}

#[cfg(test)]
mod tests;

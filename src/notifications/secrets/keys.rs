//! `watchpost keys`: shows and replaces the keys for the secrets of channels.
//!
//! A rotation adds the new key to the file, encrypts every channel again, and then drops keys that nothing needs. Whoever
//! is killed in between leaves a file with which everything can be decrypted, and the next rotation goes on from there.

use std::{collections::BTreeMap, fmt};

use super::{key_file, reseal};
use crate::{
    db::Db,
    error::{Chain, Result},
    notifications::Keyring,
};

/// Keys of a file, and the number of channels using each.
#[derive(Debug, PartialEq, Eq)]
pub struct KeyUse {
    /// Path of the file, or the reason why the file is unreadable.
    file: Result<String, String>,
    /// Id of every key in hexadecimal, current key first; true for a staged key; and the number of channels.
    keys: Vec<(String, bool, usize)>,
    /// Reason by name, for channels not decryptable by any key.
    unreadable: BTreeMap<String, String>,
}

impl Keyring {
    /// Counts the uses of each key.
    pub async fn usage(&self, db: &Db) -> Result<KeyUse> {
        let keys = self.keys();
        let file = match &keys {
            Ok(_) => Ok(self.path().display().to_string()),
            Err(problem) => Err(problem.to_string()),
        };
        let mut counts = Vec::new();
        if let Ok(keys) = &keys {
            counts.extend(keys.iter().map(|key| (key.id, key.is_staged, 0)));
        }
        let mut unreadable = BTreeMap::new();
        for channel in reseal::channels_with_secrets(db).await? {
            if let Err(problem) = self.open(&channel) {
                unreadable.insert(channel.name, problem);
                continue;
            }
            // A ciphertext of format 1 names no key, and is not counted.
            let sealed = channel.secrets.unwrap_or_default();
            let id = sealed.get(1..=key_file::ID_LENGTH).unwrap_or_default();
            if let Some((.., count)) = counts.iter_mut().find(|(key, ..)| key == id) {
                *count += 1;
            }
        }
        let hex = |id: [u8; key_file::ID_LENGTH]| format!("{:08x}", u32::from_be_bytes(id));
        Ok(KeyUse {
            file,
            keys: counts.into_iter().map(|(id, is_staged, count)| (hex(id), is_staged, count)).collect(),
            unreadable,
        })
    }

    /// Adds a staged key to the file. A staged key encrypts nothing before the next rotation, so the file can be
    /// copied to other hosts first.
    pub fn stage(&self) -> Result<(), String> {
        let keys = self.keys().map_err(|problem| problem.to_string())?;
        self.describe_error(key_file::stage(self.path(), &keys))
    }

    /// Encrypts the secrets of all channels with a new key: the staged key, the key of an interrupted rotation, or a
    /// random key. Keys without a use are dropped, except the previous key, because a running server may still use
    /// the previous key.
    pub async fn rotate(&self, db: &Db) -> Result<(), String> {
        let failed = |error| Chain(&error).to_string();
        let channels = reseal::channels_with_secrets(db).await.map_err(failed)?;
        if channels.iter().all(|channel| self.is_current(channel)) {
            let keys = self.keys().map_err(|problem| problem.to_string())?;
            self.describe_error(key_file::advance(self.path(), &keys))?;
        }
        reseal::reseal_all(db, self).await.map_err(failed)?;
        let channels = reseal::channels_with_secrets(db).await.map_err(failed)?;
        let sealed = channels.iter().filter_map(|channel| channel.secrets.as_deref());
        let used: Vec<_> = sealed.filter_map(|sealed| sealed.get(1..=key_file::ID_LENGTH)).collect();
        let keys = self.keys().map_err(|problem| problem.to_string())?;
        let previous = keys.iter().nth(1).filter(|key| !key.is_staged);
        let previous_id = previous.map(|key| key.id);
        let is_needed = |id: &[u8; key_file::ID_LENGTH]| previous_id == Some(*id) || used.contains(&&id[..]);
        self.describe_error(key_file::retain(self.path(), &keys, is_needed))
    }

    /// Replaces a lost key by a new key. Secrets under the lost key stay unreadable until set again.
    pub fn replace(&self) -> Result<(), String> {
        self.describe_error(key_file::replace_all(self.path()))
    }

    fn describe_error(&self, result: std::io::Result<()>) -> Result<(), String> {
        result.map_err(|error| format!("the key file {}: {error}", self.path().display()))
    }
}

impl fmt::Display for KeyUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Ok(path) => writeln!(f, "file {path}")?,
            Err(problem) => writeln!(f, "{problem}")?,
        }
        for (index, (id, is_staged, channels)) in self.keys.iter().enumerate() {
            let role = match (index, is_staged) {
                (0, _) => "current",
                (_, true) => "staged",
                (_, false) => "older",
            };
            writeln!(f, "{role} {id} channels {channels}")?;
        }
        writeln!(f, "unreadable {}", self.unreadable.len())?;
        for (name, problem) in &self.unreadable {
            writeln!(f, "  {}: {problem}", crate::escape::escape(name))?;
        }
        Ok(())
    }
}

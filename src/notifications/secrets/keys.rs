//! `watchpost keys`: looks at the keys that encrypt the secrets of channels, and replaces them.
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

/// The keys of a file, and the channels whose secrets they encrypt.
#[derive(Debug, PartialEq, Eq)]
pub struct KeyUse {
    /// The path of the file, or why it cannot be read.
    file: Result<String, String>,
    /// The id of every key in hexadecimal, the current one first, whether it is staged, and the number of channels.
    keys: Vec<(String, bool, usize)>,
    /// The channels that no key decrypts, by their names, and why.
    unreadable: BTreeMap<String, String>,
}

impl Keyring {
    /// Says which key is used for what.
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
        for channel in reseal::channels(db).await? {
            if let Err(problem) = self.open(&channel) {
                unreadable.insert(channel.name, problem);
                continue;
            }
            // A ciphertext of the old form names no key, and is counted for none.
            let sealed = channel.secrets.unwrap_or_default();
            let id = sealed.get(1..=key_file::ID_LENGTH).unwrap_or_default();
            if let Some((.., count)) = counts.iter_mut().find(|(key, ..)| key == id) {
                *count += 1;
            }
        }
        let hex = |id: [u8; key_file::ID_LENGTH]| format!("{:08x}", u32::from_be_bytes(id));
        Ok(KeyUse {
            file,
            keys: counts
                .into_iter()
                .map(|(id, is_staged, count)| (hex(id), is_staged, count))
                .collect(),
            unreadable,
        })
    }

    /// Adds a new key to the file that encrypts nothing before the next rotation, so that the file can be copied to the
    /// other hosts of a database first.
    pub fn stage(&self) -> Result<(), String> {
        let keys = self.keys().map_err(|problem| problem.to_string())?;
        self.written(key_file::stage(self.path(), &keys))
    }

    /// Encrypts the secrets of all channels by a new key, or by the one that was staged or that a rotation was killed at.
    /// Keys that no channel needs are dropped, but for the last one: a server may be using it at this moment.
    pub async fn rotate(&self, db: &Db) -> Result<(), String> {
        let failed = |error| Chain(&error).to_string();
        let channels = reseal::channels(db).await.map_err(failed)?;
        if channels.iter().all(|channel| self.is_current(channel)) {
            let keys = self.keys().map_err(|problem| problem.to_string())?;
            self.written(key_file::advance(self.path(), &keys))?;
        }
        reseal::all(db, self).await.map_err(failed)?;
        let channels = reseal::channels(db).await.map_err(failed)?;
        let sealed = channels
            .iter()
            .filter_map(|channel| channel.secrets.as_deref());
        let used: Vec<_> = sealed
            .filter_map(|sealed| sealed.get(1..=key_file::ID_LENGTH))
            .collect();
        let keys = self.keys().map_err(|problem| problem.to_string())?;
        let last = keys.iter().nth(1).filter(|key| !key.is_staged);
        let last = last.map(|key| key.id);
        let needed = |id: &[u8; key_file::ID_LENGTH]| last == Some(*id) || used.contains(&&id[..]);
        self.written(key_file::keep(self.path(), &keys, needed))
    }

    /// Makes a new key in the place of one that is lost. What is encrypted stays unreadable until it is set again.
    pub fn replace(&self) -> Result<(), String> {
        self.written(key_file::start_anew(self.path()))
    }

    fn written(&self, result: std::io::Result<()>) -> Result<(), String> {
        result.map_err(|error| format!("the key file {}: {error}", self.path().display()))
    }
}

impl fmt::Display for KeyUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Ok(path) => writeln!(f, "file {path}")?,
            Err(problem) => writeln!(f, "{problem}")?,
        }
        for (at, (id, is_staged, channels)) in self.keys.iter().enumerate() {
            let role = match (at, is_staged) {
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

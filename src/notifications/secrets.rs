//! The secrets of channels: encrypted with a key of this installation before they are stored, so that
//! a copy of the database gives none away.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom, SystemRandom},
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::webhook::is_shortened;
use crate::{
    entity::notification_channel::{self, Config},
    error::{Error, Result},
};

/// How long a key is, in bytes.
const KEY_LENGTH: usize = 32;

/// What an encrypted secret begins with, so that another form can be told from it.
const FORM: u8 = 1;

/// What a channel must not tell.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Secrets {
    /// What webhooks are signed with, the newest first.
    #[serde(default)]
    pub signing: Vec<SigningSecret>,
    /// Further headers of webhooks, by their names in lower case.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Of the mail server.
    #[serde(default)]
    pub password: Option<String>,
    /// The whole URL of a webhook: its path and query often hold a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// What a webhook is signed with.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct SigningSecret {
    /// `whsec_` and base64.
    pub secret: String,
    /// From when on it is not used, in seconds since 1970.
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

/// Encrypts and decrypts with a key that is kept in a file, outside of the database. Clones share it.
#[derive(Clone)]
pub struct Keyring(Arc<Inner>);

struct Inner {
    path: PathBuf,
    /// Read, or made, when it is first needed.
    key: Mutex<Option<Arc<LessSafeKey>>>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Keyring").field(&self.0.path).finish()
    }
}

impl Keyring {
    /// The key in this file, which is made when something is to be encrypted and it is not there.
    pub fn new(path: PathBuf) -> Self {
        let key = Mutex::default();
        Self(Arc::new(Inner { path, key }))
    }

    /// Encrypts the secrets of a channel. They cannot be decrypted as those of another one.
    pub(super) fn seal(&self, channel_id: Uuid, secrets: &Secrets) -> Result<Vec<u8>> {
        let key = self.key(true).map_err(Error::internal)?;
        let mut text = serde_json::to_vec(secrets).map_err(Error::internal)?;
        let mut nonce = [0; NONCE_LEN];
        let failed = |_| Error::internal("the secrets of a channel cannot be encrypted");
        SystemRandom::new().fill(&mut nonce).map_err(failed)?;
        let aad = Aad::from(channel_id.into_bytes());
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut text)
            .map_err(failed)?;
        let mut sealed = vec![FORM];
        sealed.extend(nonce);
        sealed.extend(text);
        Ok(sealed)
    }

    /// Decrypts the secrets of a channel; if that cannot be done, says why.
    pub(super) fn open(&self, channel_id: Uuid, sealed: Option<&[u8]>) -> Result<Secrets, String> {
        let Some(sealed) = sealed else {
            return Ok(Secrets::default());
        };
        let key = self.key(false).map_err(|error| error.to_string())?;
        let foreign = || {
            let path = self.0.path.display();
            format!("the channel's secrets were not encrypted with the key in {path}")
        };
        let (form, rest) = sealed.split_first().ok_or_else(foreign)?;
        let (nonce, text) = rest.split_at_checked(NONCE_LEN).ok_or_else(foreign)?;
        if *form != FORM {
            return Err("the channel's secrets are of a newer form".to_string());
        }
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| foreign())?;
        let mut text = text.to_vec();
        let text = key
            .open_in_place(nonce, Aad::from(channel_id.into_bytes()), &mut text)
            .map_err(|_| foreign())?;
        // The error would repeat what could not be read.
        serde_json::from_slice(text).map_err(|_| "the channel's secrets are unreadable".to_string())
    }

    /// Decrypts the secrets of a channel, with the URL of one that was stored before URLs were encrypted.
    pub(super) fn open_channel(
        &self,
        channel: &notification_channel::Model,
    ) -> Result<Secrets, String> {
        let mut secrets = self.open(channel.id, channel.secrets.as_deref())?;
        if let Config::Webhook { url, .. } = &channel.config
            && !is_shortened(url)
        {
            secrets.url.get_or_insert_with(|| url.clone());
        }
        Ok(secrets)
    }

    fn key(&self, may_make: bool) -> io::Result<Arc<LessSafeKey>> {
        let mut key = self.0.key.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = &*key {
            return Ok(key.clone());
        }
        let path = &self.0.path;
        let named = |error: io::Error| {
            let message = format!("the key of secrets, {}: {error}", path.display());
            io::Error::new(error.kind(), message)
        };
        if may_make && !path.exists() {
            make(path).map_err(named)?;
        }
        let read = Arc::new(read(path).map_err(named)?);
        *key = Some(read.clone());
        Ok(read)
    }
}

fn read(path: &Path) -> io::Result<LessSafeKey> {
    let wrong = || {
        let problem = format!("it must hold {KEY_LENGTH} bytes in base64");
        io::Error::new(io::ErrorKind::InvalidData, problem)
    };
    let text = fs::read_to_string(path)?;
    let bytes = BASE64_STANDARD.decode(text.trim()).map_err(|_| wrong())?;
    let key = UnboundKey::new(&CHACHA20_POLY1305, &bytes).map_err(|_| wrong())?;
    Ok(LessSafeKey::new(key))
}

/// Makes a key. Of several processes that do so at once, one makes it for all.
fn make(path: &Path) -> io::Result<()> {
    let mut bytes = [0; KEY_LENGTH];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| io::Error::other("the system has no random numbers"))?;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    // Whole or not at all, under its name.
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", Uuid::now_v7()));
    let mut file = fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    writeln!(file, "{}", BASE64_STANDARD.encode(bytes))?;
    file.sync_all()?;
    let linked = fs::hard_link(&temporary, path);
    fs::remove_file(&temporary)?;
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => {
            tracing::info!("made the key of secrets, {}", path.display());
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn secrets() -> Secrets {
        Secrets {
            password: Some("hunter2".into()),
            ..Default::default()
        }
    }

    #[test]
    fn secrets_are_read_with_the_key_and_the_channel_they_were_written_with() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sub/secret.key");
        let (id, keyring) = (Uuid::now_v7(), Keyring::new(path.clone()));
        let sealed = keyring.seal(id, &secrets()).unwrap();
        let holds = |text: &[u8]| sealed.windows(text.len()).any(|part| part == text);
        assert!(!holds(b"hunter2"));
        assert_ne!(
            keyring.seal(id, &secrets()).unwrap(),
            sealed,
            "a nonce each"
        );
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);

        let again = Keyring::new(path);
        assert_eq!(again.open(id, Some(&sealed)).unwrap(), secrets());
        assert_eq!(again.open(id, None).unwrap(), Secrets::default());
        assert!(again.open(Uuid::now_v7(), Some(&sealed)).is_err());
        let mut broken = sealed.clone();
        *broken.last_mut().unwrap() ^= 1;
        for broken in [&broken[..], &sealed[..5], &[]] {
            assert!(again.open(id, Some(broken)).is_err());
        }

        let other = Keyring::new(folder.path().join("other.key"));
        assert!(
            other.open(id, Some(&sealed)).is_err(),
            "no key is made to read"
        );
        assert!(!folder.path().join("other.key").exists());
        other.seal(id, &secrets()).unwrap();
        let error = other.open(id, Some(&sealed)).unwrap_err();
        assert!(
            error.contains("other.key") && !error.contains("hunter2"),
            "{error}"
        );
    }

    #[test]
    fn nothing_secret_is_told_by_accident() {
        let all = Secrets {
            signing: vec![SigningSecret {
                secret: "whsec_hunter2".into(),
                expires_at: None,
            }],
            headers: [("authorization".into(), "hunter2".into())].into(),
            ..secrets()
        };
        assert!(!format!("{all:?} {:?}", all.signing).contains("hunter2"));
    }
}

use super::*;
use crate::entity::{self, notification_channel::Security};

fn secrets() -> Secrets {
    Secrets { password: Some("hunter2".into()), ..Default::default() }
}

fn email(host: &str, secrets_version: u32) -> Config {
    Config::Email {
        host: host.into(),
        port: 587,
        security: Security::Starttls,
        username: Some("u".into()),
        has_password: true,
        from: "a@example.com".into(),
        to: vec![],
        timeout_ms: 1,
        secrets_version,
    }
}

fn channel(config: Config, sealed: Option<Vec<u8>>) -> notification_channel::Model {
    let now = entity::now();
    notification_channel::Model {
        id: Uuid::from_u128(7),
        name: "ops".into(),
        description: None,
        enabled: true,
        kind: ChannelKind::Email,
        config,
        secrets: sealed,
        quiet_times: None,
        quiet_except: None,
        disabled_reason: None,
        throttled_until: None,
        created_at: now,
        updated_at: now,
        version_id: 1,
    }
}

/// Keyring with a key, and the folder of its file.
fn keyring() -> (tempfile::TempDir, Keyring) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret.key");
    key_file::create(&path).unwrap();
    (folder, Keyring::new(path))
}

#[test]
fn secrets_are_read_for_the_channel_version_and_destination_they_were_written_for() {
    let (_folder, keyring) = keyring();
    let config = email("mail.example.com", 3);
    let row = channel(config.clone(), None);
    let sealed = keyring.seal(row.id, &config, &secrets()).unwrap();
    assert!(!sealed.windows(7).any(|part| part == b"hunter2"));
    let again = keyring.seal(row.id, &config, &secrets()).unwrap();
    assert_ne!(again, sealed, "a nonce each");

    let open = |config: Config, sealed: &[u8]| {
        let keyring = Keyring::new(keyring.path().to_path_buf());
        keyring.open(&channel(config, Some(sealed.to_vec())))
    };
    assert_eq!(open(config.clone(), &sealed).unwrap(), secrets());
    assert_eq!(keyring.open(&row).unwrap(), Secrets::default());
    for other in [email("mail.example.org", 3), email("mail.example.com", 4)] {
        assert!(open(other, &sealed).unwrap_err().contains("destination"));
    }
    let mut moved = channel(config.clone(), Some(sealed.clone()));
    moved.id = Uuid::from_u128(8);
    assert!(keyring.open(&moved).is_err());
    let mut broken = sealed.clone();
    *broken.last_mut().unwrap() ^= 1;
    for broken in [&broken[..], &sealed[..9], &sealed[..3], &[9], &[]] {
        assert!(open(config.clone(), broken).is_err());
    }
}

#[test]
fn a_new_key_encrypts_and_older_ones_decrypt() {
    let (_folder, keyring) = keyring();
    let config = email("h", 1);
    let old = channel(config.clone(), Some(keyring.seal(Uuid::from_u128(7), &config, &secrets()).unwrap()));
    assert!(keyring.is_current(&old));
    key_file::advance(keyring.path(), &keyring.keys().unwrap()).unwrap();
    // A running process notices the new key.
    assert!(!keyring.is_current(&old));
    assert_eq!(keyring.open(&old).unwrap(), secrets());
    let new = channel(config.clone(), Some(keyring.seal(old.id, &config, &secrets()).unwrap()));
    assert!(keyring.is_current(&new));
    key_file::retain(keyring.path(), &keyring.keys().unwrap(), |_| false).unwrap();
    assert_eq!(keyring.open(&new).unwrap(), secrets());
    let error = keyring.open(&old).unwrap_err();
    assert!(error.contains("secret.key") && !error.contains("hunter2"), "{error}");
    // While the file is missing, known keys decrypt, and nothing is encrypted.
    std::fs::remove_file(keyring.path()).unwrap();
    assert_eq!(keyring.open(&new).unwrap(), secrets());
    let error = keyring.seal(old.id, &config, &secrets()).unwrap_err();
    assert!(error.to_string().contains("is missing"), "{error}");
    assert!(!keyring.path().exists(), "no key is made");
}

#[test]
fn secrets_of_the_old_form_are_read() {
    let (_folder, keyring) = keyring();
    let row = channel(email("h", 0), None);
    let mut text = serde_json::to_vec(&secrets()).unwrap();
    let nonce = [5; NONCE_LEN];
    let keys = keyring.keys().unwrap();
    let aad = Aad::from(row.id.into_bytes());
    let key = &keys.current().cipher;
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut text).unwrap();
    let sealed = [&[FORMAT_1][..], &nonce, &text].concat();
    let row = channel(row.config, Some(sealed));
    assert_eq!(keyring.open(&row).unwrap(), secrets());
    assert!(!keyring.is_current(&row));
}

#[test]
fn nothing_secret_is_told_by_accident() {
    let all = Secrets {
        signing: vec![SigningSecret { secret: "whsec_hunter2".into(), expires_at: None }],
        headers: [("authorization".into(), "hunter2".into())].into(),
        ..secrets()
    };
    assert!(!format!("{all:?} {:?}", all.signing).contains("hunter2"));
}

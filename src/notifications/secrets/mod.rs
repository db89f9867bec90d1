//! Secrets of channels: encrypted with a key of this installation before storage, so a copy of the database reveals
//! none.

pub(super) mod key_file;
mod keyring;
pub(super) mod keys;
pub(crate) mod reseal;
pub(super) mod scrub;
pub(super) mod signing_key;

pub use keyring::Keyring;
pub(super) use keyring::{Secrets, SigningSecret, secrets_version, with_next_version};

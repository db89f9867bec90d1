//! Signing secrets of webhooks in the text form of Standard Webhooks.

use base64::{Engine, prelude::BASE64_STANDARD};

/// Prefix of a signing secret.
pub(crate) const PREFIX: &str = "whsec_";

/// Decodes a signing secret: the prefix, then 24 to 64 bytes in base64. `None` for any other text.
pub(crate) fn decode(secret: &str) -> Option<Vec<u8>> {
    let bytes = BASE64_STANDARD.decode(secret.strip_prefix(PREFIX)?).ok()?;
    (24..=64).contains(&bytes.len()).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_has_a_prefix_and_24_to_64_bytes() {
        let secret = |length| format!("{PREFIX}{}", BASE64_STANDARD.encode(vec![7; length]));
        for good in [secret(24), secret(64)] {
            assert!(decode(&good).is_some(), "{good}");
        }
        let bare = BASE64_STANDARD.encode([7; 24]);
        for bad in [secret(23), secret(65), bare, "whsec_".into(), "whsec_ü".into()] {
            assert!(decode(&bad).is_none(), "{bad}");
        }
    }
}

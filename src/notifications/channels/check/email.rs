//! Validation of mail channels.

use super::{DESTINATION_CHANGED, NewSecrets, millis};
use crate::{
    entity::notification_channel::{Config, Security},
    error::{Error, Result},
    notifications::{
        Targets,
        secrets::Secrets,
        senders::{email::mailbox, targets::refusal_reason},
    },
    pb,
    rpc::{check, enums::FromProto, mask::UpdateMask},
};

/// Maximum number of recipients of a channel.
const MAX_RECIPIENTS: usize = 50;

const DEFAULT_TIMEOUT_MS: u32 = 30_000;

impl pb::EmailChannel {
    pub(super) fn apply_changes(&mut self, changes: Self, mask: &UpdateMask) {
        if mask.covers("email.host", !changes.host.is_empty()) {
            self.host = changes.host;
        }
        if mask.covers("email.port", changes.port != 0) {
            self.port = changes.port;
        }
        if mask.covers("email.security", changes.security != 0) {
            self.security = changes.security;
        }
        if mask.covers("email.username", changes.username.is_some()) {
            self.username = changes.username;
        }
        if mask.covers("email.from_address", !changes.from_address.is_empty()) {
            self.from_address = changes.from_address;
        }
        if mask.covers("email.to_addresses", !changes.to_addresses.is_empty()) {
            self.to_addresses = changes.to_addresses;
        }
        if mask.covers("email.timeout", changes.timeout.is_some()) {
            self.timeout = changes.timeout;
        }
    }

    pub(super) fn to_config(
        &self,
        new: &NewSecrets,
        mut secrets: Secrets,
        before: Option<&Config>,
        targets: &Targets,
    ) -> Result<(Config, Secrets)> {
        let field = |name: &str| format!("notification_channel.email.{name}");
        let host = checked_host(&field("host"), &self.host, targets)?;
        let security = Security::from_proto(&field("security"), self.security)?;
        let security = security.unwrap_or(Security::Starttls);
        let port = match check::within(&field("port"), self.port, 0..=65_535)? {
            0 => match security {
                Security::Starttls => 587,
                Security::Tls => 465,
                Security::None => 25,
            },
            port => u16::try_from(port).unwrap_or(u16::MAX),
        };
        let username = check::optional_text(&field("username"), self.username.as_deref(), 0..=255)?
            .filter(|name| !name.is_empty());
        if !new.password.is_empty() {
            secrets.password = Some(check::text(&field("password"), &new.password, 1..=1_024)?);
        }
        let has_moved = before.is_some_and(|before| changes_destination(before, &host, port, security));
        match (&username, &secrets.password) {
            (Some(_), Some(_)) if has_moved && new.password.is_empty() => {
                return Err(Error::invalid(field("password"), DESTINATION_CHANGED));
            }
            (Some(_), None) => {
                let problem = "is required with a username";
                return Err(Error::invalid(field("password"), problem));
            }
            (None, Some(_)) if !new.password.is_empty() => {
                let problem = "is required with a password";
                return Err(Error::invalid(field("username"), problem));
            }
            (None, Some(_)) => secrets.password = None,
            (Some(_), Some(_)) | (None, None) => {}
        }
        let address = |field: &str, text: &str| {
            let text = check::name(field, text, 1..=320)?;
            mailbox(&text).map_err(|problem| Error::invalid(field, problem))?;
            Ok::<_, Error>(text)
        };
        let from = address(&field("from_address"), &self.from_address)?;
        if self.to_addresses.is_empty() {
            return Err(Error::invalid(field("to_addresses"), "is required"));
        }
        if self.to_addresses.len() > MAX_RECIPIENTS {
            let problem = format!("must have at most {MAX_RECIPIENTS} entries");
            return Err(Error::invalid(field("to_addresses"), problem));
        }
        let recipient = |(index, text): (usize, &String)| address(&field(&format!("to_addresses[{index}]")), text);
        let to = self.to_addresses.iter().enumerate().map(recipient);
        let config = Config::Email {
            host,
            port,
            security,
            username,
            has_password: secrets.password.is_some(),
            from,
            to: to.collect::<Result<_>>()?,
            timeout_ms: millis(&field("timeout"), self.timeout, DEFAULT_TIMEOUT_MS, 1_000..=60_000)?,
            secrets_version: 0,
        };
        Ok((config, secrets))
    }
}

/// Returns true if mail goes to another server or port than before, or is transported less securely.
fn changes_destination(before: &Config, host: &str, port: u16, security: Security) -> bool {
    let strength = |security: Security| match security {
        Security::None => 0,
        Security::Starttls => 1,
        Security::Tls => 2,
    };
    match before {
        Config::Email { host: old_host, port: old_port, security: old_security, .. } => {
            !old_host.eq_ignore_ascii_case(host) || *old_port != port || strength(security) < strength(*old_security)
        }
        Config::Webhook { .. } | Config::Stream {} => false,
    }
}

fn checked_host(field: &str, text: &str, targets: &Targets) -> Result<String> {
    let text = check::name(field, text, 1..=253)?;
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':');
    if !text.chars().all(is_allowed) {
        return Err(Error::invalid(field, "must be a name or an address, without a port"));
    }
    match text.parse() {
        Ok(address) if !targets.allow(address) => {
            Err(Error::invalid(field, format!("is refused: {}", refusal_reason(address))))
        }
        Err(_) if text.contains(':') => Err(Error::invalid(field, "must be a name or an address, without a port")),
        _ => Ok(text),
    }
}

//! What clients say of mail, checked.

use super::{ELSEWHERE, New, millis};
use crate::{
    entity::notification_channel::{Config, Security},
    error::{Error, Result},
    notifications::{
        Targets,
        secrets::Secrets,
        senders::{email::mailbox, targets::refusal},
    },
    pb,
    rpc::{check, enums::FromProto, mask::UpdateMask},
};

/// How many people one channel may tell.
const RECIPIENTS: usize = 50;

const TIMEOUT_MS: u32 = 30_000;

impl pb::EmailChannel {
    pub(super) fn change(&mut self, changes: Self, mask: &UpdateMask) {
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

    pub(super) fn checked(
        &self,
        new: &New,
        mut secrets: Secrets,
        before: Option<&Config>,
        targets: &Targets,
    ) -> Result<(Config, Secrets)> {
        let field = |name: &str| format!("notification_channel.email.{name}");
        let host = host(&field("host"), &self.host, targets)?;
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
        let username = check::optional_text(&field("username"), self.username.as_deref(), 0..=255)?;
        let username = username.filter(|name| !name.is_empty());
        if !new.password.is_empty() {
            secrets.password = Some(check::text(&field("password"), &new.password, 1..=1_024)?);
        }
        let moves = before.is_some_and(|before| leads_elsewhere(before, &host, port, security));
        match (&username, &secrets.password) {
            (Some(_), Some(_)) if moves && new.password.is_empty() => {
                return Err(Error::invalid(field("password"), ELSEWHERE));
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
        if self.to_addresses.len() > RECIPIENTS {
            let problem = format!("must have at most {RECIPIENTS} entries");
            return Err(Error::invalid(field("to_addresses"), problem));
        }
        let recipient =
            |(at, text): (usize, &String)| address(&field(&format!("to_addresses[{at}]")), text);
        let to = self.to_addresses.iter().enumerate().map(recipient);
        let config = Config::Email {
            host,
            port,
            security,
            username,
            has_password: secrets.password.is_some(),
            from,
            to: to.collect::<Result<_>>()?,
            timeout_ms: millis(&field("timeout"), self.timeout, TIMEOUT_MS, 1_000..=60_000)?,
            secrets_version: 0,
        };
        Ok((config, secrets))
    }
}

/// Whether mail goes to another server or port than before, or is less secure on its way.
fn leads_elsewhere(before: &Config, host: &str, port: u16, security: Security) -> bool {
    let strength = |security: Security| match security {
        Security::None => 0,
        Security::Starttls => 1,
        Security::Tls => 2,
    };
    match before {
        Config::Email {
            host: old_host,
            port: old_port,
            security: old_security,
            ..
        } => {
            !old_host.eq_ignore_ascii_case(host)
                || *old_port != port
                || strength(security) < strength(*old_security)
        }
        Config::Webhook { .. } | Config::Stream {} => false,
    }
}

fn host(field: &str, text: &str, targets: &Targets) -> Result<String> {
    let text = check::name(field, text, 1..=253)?;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':');
    if !text.chars().all(fits) {
        return Err(Error::invalid(
            field,
            "must be a name or an address, without a port",
        ));
    }
    match text.parse() {
        Ok(address) if !targets.allow(address) => Err(Error::invalid(
            field,
            format!("is refused: {}", refusal(address)),
        )),
        Err(_) if text.contains(':') => Err(Error::invalid(
            field,
            "must be a name or an address, without a port",
        )),
        _ => Ok(text),
    }
}

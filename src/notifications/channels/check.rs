//! Validation of channels, and conversion to rows.

mod email;

use std::{collections::BTreeMap, ops::RangeInclusive};

use prost_types::Duration;
use reqwest::Url;
use sea_orm::ActiveValue::Set;

use crate::{
    alerts::engine::schedule,
    entity::{
        Severity,
        notification_channel::{ActiveModel, ChannelKind, Config, Schedules, Security},
    },
    error::{Error, Result},
    notifications::{
        Targets,
        secrets::{Secrets, SigningSecret, signing_key},
        senders::{
            targets::refusal_reason,
            url::{ip_address, is_shortened, shorten},
            webhook::RESERVED_HEADERS,
        },
    },
    pb::{self, notification_channel::Kind},
    rpc::{
        check,
        enums::{FromProto, proto_enum},
        mask::UpdateMask,
    },
};

/// Fields that an update may change.
pub(crate) const UPDATABLE: [&str; 16] = [
    "description",
    "enabled",
    "quiet_times",
    "quiet_except",
    "webhook.url",
    "webhook.signing_secrets",
    "webhook.headers",
    "webhook.timeout",
    "email.host",
    "email.port",
    "email.security",
    "email.username",
    "email.password",
    "email.from_address",
    "email.to_addresses",
    "email.timeout",
];

/// Maximum number of signing secrets of a webhook.
pub(crate) const MAX_SIGNING_SECRETS: usize = 5;

const MAX_QUIET_TIMES: usize = 20;
const MAX_HEADERS: usize = 20;

/// Error for stored secrets after a change of the destination.
const DESTINATION_CHANGED: &str =
    "must be set again, because the destination changes: stored secrets are not sent to another one";

const DEFAULT_WEBHOOK_TIMEOUT_MS: u32 = 15_000;

/// Secrets in a request. Responses never contain secrets.
#[derive(Debug, Default)]
pub(crate) struct NewSecrets {
    signing_secrets: Vec<String>,
    headers: Option<BTreeMap<String, String>>,
    password: String,
}

impl pb::NotificationChannel {
    /// Takes the secrets covered by the mask out of the request.
    pub(crate) fn take_secrets(&mut self, mask: &UpdateMask) -> NewSecrets {
        match &mut self.kind {
            Some(Kind::Webhook(webhook)) => {
                let headers = std::mem::take(&mut webhook.headers);
                let replace = mask.covers("webhook.headers", !headers.is_empty());
                let signs = mask.covers("webhook.signing_secrets", true);
                let signing_secrets = std::mem::take(&mut webhook.signing_secrets);
                NewSecrets {
                    signing_secrets: if signs { signing_secrets } else { Vec::new() },
                    headers: replace.then(|| headers.into_iter().collect()),
                    ..Default::default()
                }
            }
            Some(Kind::Email(email)) => {
                let password = std::mem::take(&mut email.password);
                let changes = mask.covers("email.password", true);
                NewSecrets { password: if changes { password } else { String::new() }, ..Default::default() }
            }
            None if matches!(mask, UpdateMask::Named(_)) => {
                NewSecrets { headers: mask.covers("webhook.headers", false).then(BTreeMap::new), ..Default::default() }
            }
            Some(Kind::Stream(_)) | None => NewSecrets::default(),
        }
    }

    /// Applies the fields of `changes` covered by the mask.
    pub(crate) fn with_changes(mut self, changes: Self, mask: &UpdateMask) -> Result<Self> {
        if mask.covers("description", changes.description.is_some()) {
            self.description = changes.description;
        }
        if mask.covers("enabled", changes.enabled.is_some()) {
            self.enabled = changes.enabled;
        }
        if mask.covers("quiet_times", !changes.quiet_times.is_empty()) {
            self.quiet_times = changes.quiet_times;
        }
        if mask.covers("quiet_except", changes.quiet_except != 0) {
            self.quiet_except = changes.quiet_except;
        }
        if !changes.name.is_empty() && changes.name != self.name {
            let field = "notification_channel.name";
            return Err(Error::invalid(field, "cannot be changed"));
        }
        let wrong_kind = |kind: &str| {
            let field = format!("notification_channel.{kind}");
            Error::invalid(field, "is not the kind of this channel, which cannot be changed")
        };
        let is_named = |kind: &str| {
            UPDATABLE.iter().any(|path| path.starts_with(kind) && mask.covers(path, false))
                && !matches!(mask, UpdateMask::All)
        };
        let (names_webhook, names_email) = (is_named("webhook."), is_named("email."));
        match (&mut self.kind, changes.kind) {
            (Some(Kind::Webhook(webhook)), Some(Kind::Webhook(changes))) => {
                webhook.apply_changes(changes, mask);
            }
            (Some(Kind::Email(email)), Some(Kind::Email(changes))) => email.apply_changes(changes, mask),
            (Some(Kind::Webhook(webhook)), None) if names_webhook => {
                webhook.apply_changes(pb::WebhookChannel::default(), mask);
            }
            (Some(Kind::Email(email)), None) if names_email => {
                email.apply_changes(pb::EmailChannel::default(), mask);
            }
            (Some(Kind::Stream(_)), Some(Kind::Stream(_))) | (_, None) => {}
            (_, Some(Kind::Webhook(_))) => return Err(wrong_kind("webhook")),
            (_, Some(Kind::Email(_))) => return Err(wrong_kind("email")),
            (_, Some(Kind::Stream(_))) => return Err(wrong_kind("stream")),
        }
        if names_webhook && !matches!(self.kind, Some(Kind::Webhook(_))) {
            return Err(wrong_kind("webhook"));
        }
        if names_email && !matches!(self.kind, Some(Kind::Email(_))) {
            return Err(wrong_kind("email"));
        }
        Ok(self)
    }

    /// Validates the channel into a row and its secrets. Stored `secrets` not replaced by `new` are retained, except
    /// after a change of the destination given by `before`: secrets never follow to another destination.
    pub(in crate::notifications) fn to_row(
        &self,
        new: NewSecrets,
        secrets: Secrets,
        before: Option<&Config>,
        targets: &Targets,
    ) -> Result<(ActiveModel, Secrets)> {
        let quiet_times = self.quiet_time_schedules()?;
        let quiet_except = Severity::from_proto("notification_channel.quiet_except", self.quiet_except)?;
        let (kind, config, secrets) = match &self.kind {
            Some(Kind::Webhook(webhook)) => {
                let (config, secrets) = webhook.to_config(new, secrets, targets)?;
                (ChannelKind::Webhook, config, secrets)
            }
            Some(Kind::Email(email)) => {
                let (config, secrets) = email.to_config(&new, secrets, before, targets)?;
                (ChannelKind::Email, config, secrets)
            }
            Some(Kind::Stream(_)) => (ChannelKind::Stream, Config::Stream {}, secrets),
            None => {
                let field = "notification_channel.webhook";
                return Err(Error::invalid(field, "or email or stream is required"));
            }
        };
        let row = ActiveModel {
            description: Set(check::optional_text(
                "notification_channel.description",
                self.description.as_deref(),
                0..=65_536,
            )?),
            enabled: Set(self.enabled.unwrap_or(true)),
            kind: Set(kind),
            config: Set(config),
            quiet_times: Set(quiet_times),
            quiet_except: Set(quiet_except),
            ..<ActiveModel as sea_orm::ActiveModelTrait>::default()
        };
        Ok((row, secrets))
    }

    fn quiet_time_schedules(&self) -> Result<Option<Schedules>> {
        let field = "notification_channel.quiet_times";
        if self.quiet_times.len() > MAX_QUIET_TIMES {
            let problem = format!("must have at most {MAX_QUIET_TIMES} entries");
            return Err(Error::invalid(field, problem));
        }
        let parse = |(index, schedule)| schedule::from_proto(&format!("{field}[{index}]"), schedule);
        let parsed = self.quiet_times.iter().enumerate().map(parse);
        let schedules: Vec<_> = parsed.collect::<Result<_>>()?;
        Ok(Some(Schedules(schedules)).filter(|schedules| !schedules.0.is_empty()))
    }
}

impl pb::WebhookChannel {
    fn apply_changes(&mut self, changes: Self, mask: &UpdateMask) {
        if mask.covers("webhook.url", !changes.url.is_empty()) {
            self.url = changes.url;
        }
        if mask.covers("webhook.timeout", changes.timeout.is_some()) {
            self.timeout = changes.timeout;
        }
    }

    fn to_config(&self, new: NewSecrets, mut secrets: Secrets, targets: &Targets) -> Result<(Config, Secrets)> {
        let field = |name: &str| format!("notification_channel.webhook.{name}");
        let stored = secrets.url.as_deref();
        let is_unchanged = |stored: &&str| self.url == *stored || self.url == shorten(stored);
        let full_url = stored.filter(is_unchanged).unwrap_or(&self.url);
        let url = checked_url(&field("url"), full_url, targets)?;
        if stored.is_some_and(|stored| Url::parse(stored) != Url::parse(&url)) {
            if new.signing_secrets.is_empty() {
                return Err(Error::invalid(field("signing_secrets"), DESTINATION_CHANGED));
            }
            if new.headers.is_none() && !secrets.headers.is_empty() {
                return Err(Error::invalid(field("headers"), DESTINATION_CHANGED));
            }
        }
        if !new.signing_secrets.is_empty() {
            if new.signing_secrets.len() > MAX_SIGNING_SECRETS {
                let problem = format!("must have at most {MAX_SIGNING_SECRETS} entries");
                return Err(Error::invalid(field("signing_secrets"), problem));
            }
            let check = |(index, secret): (usize, String)| {
                signing_secret(&field(&format!("signing_secrets[{index}]")), &secret)
            };
            let signing = new.signing_secrets.into_iter().enumerate().map(check);
            secrets.signing = signing.collect::<Result<_>>()?;
        }
        if secrets.signing.is_empty() {
            return Err(Error::invalid(field("signing_secrets"), "is required"));
        }
        if let Some(headers) = new.headers {
            secrets.headers = checked_headers(&field("headers"), headers)?;
        }
        let timeout_ms = millis(&field("timeout"), self.timeout, DEFAULT_WEBHOOK_TIMEOUT_MS, 1_000..=30_000)?;
        let config = Config::Webhook {
            url: shorten(&url),
            timeout_ms,
            signing_secrets: expiries(&secrets),
            header_names: secrets.headers.keys().cloned().collect(),
            secrets_version: 0,
        };
        secrets.url = Some(url);
        Ok((config, secrets))
    }
}

/// Expiry times of the signing secrets.
pub(crate) fn expiries(secrets: &Secrets) -> Vec<Option<i64>> {
    secrets.signing.iter().map(|secret| secret.expires_at).collect()
}

/// Validates a signing secret. Errors never contain the secret.
pub(crate) fn signing_secret(field: &str, secret: &str) -> Result<SigningSecret> {
    if secret.is_empty() {
        return Err(Error::invalid(field, "is required"));
    }
    if signing_key::decode(secret).is_none() {
        let problem = "must be `whsec_` and then 24 to 64 bytes in base64";
        return Err(Error::invalid(field, problem));
    }
    Ok(SigningSecret { secret: secret.to_string(), expires_at: None })
}

fn checked_url(field: &str, text: &str, targets: &Targets) -> Result<String> {
    let text = check::name(field, text, 1..=2_048)?;
    let url = Url::parse(&text).map_err(|error| Error::invalid(field, format!("must be a URL: {error}")))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(Error::invalid(field, "must be a URL of http or https"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        let problem = "must hold no user and no password; a header can";
        return Err(Error::invalid(field, problem));
    }
    if is_shortened(&text) {
        let problem = "must be the whole URL: `***` stands for a path and query that are not shown";
        return Err(Error::invalid(field, problem));
    }
    if let Some(address) = ip_address(&url)
        && !targets.allow(address)
    {
        return Err(Error::invalid(field, format!("is refused: {}", refusal_reason(address))));
    }
    Ok(text)
}

fn checked_headers(field: &str, headers: BTreeMap<String, String>) -> Result<BTreeMap<String, String>> {
    if headers.len() > MAX_HEADERS {
        let problem = format!("must have at most {MAX_HEADERS} entries");
        return Err(Error::invalid(field, problem));
    }
    let mut checked = BTreeMap::new();
    for (name, value) in headers {
        let field = format!("{field}[{name}]");
        let lower = name.to_ascii_lowercase();
        if lower.len() > 100 || http::HeaderName::from_bytes(lower.as_bytes()).is_err() {
            return Err(Error::invalid(field, "is no name of a header"));
        }
        if RESERVED_HEADERS.contains(&lower.as_str()) {
            return Err(Error::invalid(field, "is set by the server"));
        }
        if value.len() > 4_096 || http::HeaderValue::from_str(&value).is_err() {
            return Err(Error::invalid(field, "is no value of a header"));
        }
        if checked.insert(lower, value).is_some() {
            return Err(Error::invalid(field, "is named twice"));
        }
    }
    Ok(checked)
}

/// Validates a duration, in milliseconds.
fn millis(field: &str, time: Option<Duration>, default: u32, range: RangeInclusive<u32>) -> Result<u32> {
    let Some(time) = time else {
        return Ok(default);
    };
    let millis = std::time::Duration::try_from(time)
        .ok()
        .and_then(|time| u32::try_from(time.as_millis()).ok())
        .filter(|millis| range.contains(millis));
    let (min, max) = (range.start() / 1_000, range.end() / 1_000);
    millis.ok_or_else(|| Error::invalid(field, format!("must be in [{min} s, {max} s]")))
}

proto_enum!(Security, pb::SmtpSecurity { Starttls, Tls, None });

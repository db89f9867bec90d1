//! What clients say of channels, checked, and the rows that it becomes.

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
        secrets::{Secrets, SigningSecret},
        senders::{targets::refusal, webhook},
    },
    pb::{self, notification_channel::Kind},
    rpc::{
        check,
        enums::{FromProto, proto_enum},
        mask::UpdateMask,
    },
};

/// The fields that an Update may change.
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

/// How many secrets a webhook may have.
pub(crate) const SIGNING_SECRETS: usize = 5;

const QUIET_TIMES: usize = 20;
const HEADERS: usize = 20;

/// Why secrets that are stored are not enough.
const ELSEWHERE: &str = "must be set again, because the destination changes: stored secrets are not sent to another one";

const WEBHOOK_TIMEOUT_MS: u32 = 15_000;

/// What a client may say, and is never told.
#[derive(Debug, Default)]
pub(crate) struct New {
    signing_secrets: Vec<String>,
    headers: Option<BTreeMap<String, String>>,
    password: String,
}

impl pb::NotificationChannel {
    /// Takes out what the client is never told. `mask` says whether headers replace others.
    pub(crate) fn take_secrets(&mut self, mask: &UpdateMask) -> New {
        match &mut self.kind {
            Some(Kind::Webhook(webhook)) => {
                let headers = std::mem::take(&mut webhook.headers);
                let replace = mask.covers("webhook.headers", !headers.is_empty());
                let signs = mask.covers("webhook.signing_secrets", true);
                let signing_secrets = std::mem::take(&mut webhook.signing_secrets);
                New {
                    signing_secrets: if signs { signing_secrets } else { Vec::new() },
                    headers: replace.then(|| headers.into_iter().collect()),
                    ..Default::default()
                }
            }
            Some(Kind::Email(email)) => {
                let password = std::mem::take(&mut email.password);
                let changes = mask.covers("email.password", true);
                New {
                    password: if changes { password } else { String::new() },
                    ..Default::default()
                }
            }
            None if matches!(mask, UpdateMask::Named(_)) => New {
                headers: mask.covers("webhook.headers", false).then(BTreeMap::new),
                ..Default::default()
            },
            Some(Kind::Stream(_)) | None => New::default(),
        }
    }

    /// This channel with the fields of `changes` that `mask` covers.
    pub(crate) fn with(mut self, changes: Self, mask: &UpdateMask) -> Result<Self> {
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
        let wrong = |kind: &str| {
            let field = format!("notification_channel.{kind}");
            Error::invalid(
                field,
                "is not the kind of this channel, which cannot be changed",
            )
        };
        let named = |kind: &str| {
            UPDATABLE
                .iter()
                .any(|path| path.starts_with(kind) && mask.covers(path, false))
                && !matches!(mask, UpdateMask::All)
        };
        let (webhooks, mails) = (named("webhook."), named("email."));
        match (&mut self.kind, changes.kind) {
            (Some(Kind::Webhook(webhook)), Some(Kind::Webhook(changes))) => {
                webhook.change(changes, mask);
            }
            (Some(Kind::Email(email)), Some(Kind::Email(changes))) => email.change(changes, mask),
            (Some(Kind::Webhook(webhook)), None) if webhooks => {
                webhook.change(pb::WebhookChannel::default(), mask);
            }
            (Some(Kind::Email(email)), None) if mails => {
                email.change(pb::EmailChannel::default(), mask);
            }
            (Some(Kind::Stream(_)), Some(Kind::Stream(_))) | (_, None) => {}
            (_, Some(Kind::Webhook(_))) => return Err(wrong("webhook")),
            (_, Some(Kind::Email(_))) => return Err(wrong("email")),
            (_, Some(Kind::Stream(_))) => return Err(wrong("stream")),
        }
        if webhooks && !matches!(self.kind, Some(Kind::Webhook(_))) {
            return Err(wrong("webhook"));
        }
        if mails && !matches!(self.kind, Some(Kind::Email(_))) {
            return Err(wrong("email"));
        }
        Ok(self)
    }

    /// Every column that a client decides, checked, and what is secret of it: what `new` does not replace stays as it is
    /// in `secrets`, unless the channel leads elsewhere than `before`. Secrets never follow to another destination.
    pub(in crate::notifications) fn checked(
        &self,
        new: New,
        secrets: Secrets,
        before: Option<&Config>,
        targets: &Targets,
    ) -> Result<(ActiveModel, Secrets)> {
        let quiet_times = self.quiet_times()?;
        let quiet_except =
            Severity::from_proto("notification_channel.quiet_except", self.quiet_except)?;
        let (kind, config, secrets) = match &self.kind {
            Some(Kind::Webhook(webhook)) => {
                let (config, secrets) = webhook.checked(new, secrets, targets)?;
                (ChannelKind::Webhook, config, secrets)
            }
            Some(Kind::Email(email)) => {
                let (config, secrets) = email.checked(&new, secrets, before, targets)?;
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

    fn quiet_times(&self) -> Result<Option<Schedules>> {
        let field = "notification_channel.quiet_times";
        if self.quiet_times.len() > QUIET_TIMES {
            let problem = format!("must have at most {QUIET_TIMES} entries");
            return Err(Error::invalid(field, problem));
        }
        let read = |(at, one)| schedule::from_proto(&format!("{field}[{at}]"), one);
        let times = self.quiet_times.iter().enumerate().map(read);
        let times: Vec<_> = times.collect::<Result<_>>()?;
        Ok(Some(Schedules(times)).filter(|times| !times.0.is_empty()))
    }
}

impl pb::WebhookChannel {
    fn change(&mut self, changes: Self, mask: &UpdateMask) {
        if mask.covers("webhook.url", !changes.url.is_empty()) {
            self.url = changes.url;
        }
        if mask.covers("webhook.timeout", changes.timeout.is_some()) {
            self.timeout = changes.timeout;
        }
    }

    fn checked(
        &self,
        new: New,
        mut secrets: Secrets,
        targets: &Targets,
    ) -> Result<(Config, Secrets)> {
        let field = |name: &str| format!("notification_channel.webhook.{name}");
        let stored = secrets.url.as_deref();
        let is_kept = |stored: &&str| self.url == *stored || self.url == webhook::shortened(stored);
        let whole = stored.filter(is_kept).unwrap_or(&self.url);
        let url = url(&field("url"), whole, targets)?;
        if stored.is_some_and(|stored| Url::parse(stored) != Url::parse(&url)) {
            if new.signing_secrets.is_empty() {
                return Err(Error::invalid(field("signing_secrets"), ELSEWHERE));
            }
            if new.headers.is_none() && !secrets.headers.is_empty() {
                return Err(Error::invalid(field("headers"), ELSEWHERE));
            }
        }
        if !new.signing_secrets.is_empty() {
            if new.signing_secrets.len() > SIGNING_SECRETS {
                let problem = format!("must have at most {SIGNING_SECRETS} entries");
                return Err(Error::invalid(field("signing_secrets"), problem));
            }
            let read = |(at, secret): (usize, String)| {
                signing_secret(&field(&format!("signing_secrets[{at}]")), &secret)
            };
            let signing = new.signing_secrets.into_iter().enumerate().map(read);
            secrets.signing = signing.collect::<Result<_>>()?;
        }
        if secrets.signing.is_empty() {
            return Err(Error::invalid(field("signing_secrets"), "is required"));
        }
        if let Some(headers) = new.headers {
            secrets.headers = checked_headers(&field("headers"), headers)?;
        }
        let timeout_ms = millis(
            &field("timeout"),
            self.timeout,
            WEBHOOK_TIMEOUT_MS,
            1_000..=30_000,
        )?;
        let config = Config::Webhook {
            url: webhook::shortened(&url),
            timeout_ms,
            signing_secrets: expiries(&secrets),
            header_names: secrets.headers.keys().cloned().collect(),
            secrets_version: 0,
        };
        secrets.url = Some(url);
        Ok((config, secrets))
    }
}

/// Until when each of the secrets is used.
pub(crate) fn expiries(secrets: &Secrets) -> Vec<Option<i64>> {
    secrets
        .signing
        .iter()
        .map(|secret| secret.expires_at)
        .collect()
}

/// A secret that webhooks are signed with. What it is stands in no error.
pub(crate) fn signing_secret(field: &str, secret: &str) -> Result<SigningSecret> {
    if secret.is_empty() {
        return Err(Error::invalid(field, "is required"));
    }
    if webhook::key(secret).is_none() {
        let problem = "must be `whsec_` and then 24 to 64 bytes in base64";
        return Err(Error::invalid(field, problem));
    }
    Ok(SigningSecret {
        secret: secret.to_string(),
        expires_at: None,
    })
}

fn url(field: &str, text: &str, targets: &Targets) -> Result<String> {
    let text = check::name(field, text, 1..=2_048)?;
    let url = Url::parse(&text)
        .map_err(|error| Error::invalid(field, format!("must be a URL: {error}")))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(Error::invalid(field, "must be a URL of http or https"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        let problem = "must hold no user and no password; a header can";
        return Err(Error::invalid(field, problem));
    }
    if webhook::is_shortened(&text) {
        let problem = "must be the whole URL: `***` stands for a path and query that are not shown";
        return Err(Error::invalid(field, problem));
    }
    if let Some(address) = webhook::address(&url)
        && !targets.allow(address)
    {
        return Err(Error::invalid(
            field,
            format!("is refused: {}", refusal(address)),
        ));
    }
    Ok(text)
}

fn checked_headers(
    field: &str,
    headers: BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>> {
    if headers.len() > HEADERS {
        let problem = format!("must have at most {HEADERS} entries");
        return Err(Error::invalid(field, problem));
    }
    let mut checked = BTreeMap::new();
    for (name, value) in headers {
        let field = format!("{field}[{name}]");
        let lower = name.to_ascii_lowercase();
        if lower.len() > 100 || http::HeaderName::from_bytes(lower.as_bytes()).is_err() {
            return Err(Error::invalid(field, "is no name of a header"));
        }
        if webhook::OWN_HEADERS.contains(&lower.as_str()) {
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

/// A length of time that a client sent in `field`, in milliseconds.
fn millis(
    field: &str,
    time: Option<Duration>,
    default: u32,
    range: RangeInclusive<u32>,
) -> Result<u32> {
    let Some(time) = time else {
        return Ok(default);
    };
    let read = std::time::Duration::try_from(time)
        .ok()
        .and_then(|time| u32::try_from(time.as_millis()).ok())
        .filter(|millis| range.contains(millis));
    let (least, most) = (range.start() / 1_000, range.end() / 1_000);
    read.ok_or_else(|| Error::invalid(field, format!("must be in [{least} s, {most} s]")))
}

proto_enum!(
    Security,
    pb::SmtpSecurity {
        Starttls,
        Tls,
        None
    }
);

//! Attempts to deliver a message by a channel of any kind.

use std::time::Duration;

use super::{
    message::Message,
    outcome::{AttemptResult, Outcome},
};
use crate::{
    entity::notification_channel::{self, Config},
    notifications::{
        Keyring, Targets,
        secrets::{Secrets, scrub::Scrubber},
        senders::{
            email::{self, Mail},
            webhook::{Webhook, WebhookSender},
        },
    },
};

/// Maximum length of a stored error, in characters.
const MAX_ERROR_CHARS: usize = 500;

/// Shortens an error and removes control characters, which the receiver may have written.
fn storable_error(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(MAX_ERROR_CHARS).map(clean).collect()
}

/// Senders for all kinds of channels. Clones share the connections.
#[derive(Debug, Clone)]
pub struct Senders {
    webhooks: WebhookSender,
    targets: Targets,
    keyring: Keyring,
}

impl Senders {
    /// Creates senders. Messages name `source` as their origin and reach only allowed targets.
    pub fn new(source: String, targets: Targets, keyring: Keyring) -> Self {
        Self { webhooks: WebhookSender::new(source, targets.clone()), targets, keyring }
    }

    /// Keyring for the secrets of channels.
    pub fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    /// Allowed targets of messages.
    pub fn targets(&self) -> &Targets {
        &self.targets
    }

    /// Prepares a channel for attempts: decrypts the secrets and checks the configuration. The error says why the
    /// channel cannot send.
    pub(crate) fn prepare_channel(&self, channel: &notification_channel::Model) -> Result<PreparedChannel, String> {
        let secrets = self.keyring.open(channel)?;
        let timeout = |ms: &u32| Duration::from_millis((*ms).into());
        let route = match &channel.config {
            Config::Webhook { timeout_ms, .. } => {
                let url = secrets.url.as_deref().unwrap_or_default();
                Route::Webhook(Webhook::new(url, timeout(timeout_ms), &secrets)?)
            }
            Config::Email { host, port, security, username, from, to, timeout_ms, .. } => Route::Email(Mail {
                host: host.clone(),
                port: *port,
                security: *security,
                login: username.clone().zip(secrets.password.clone()),
                from: from.clone(),
                to: to.clone(),
                timeout: timeout(timeout_ms),
            }),
            Config::Stream {} => Route::Stream,
        };
        Ok(PreparedChannel { route, secrets })
    }

    /// Makes one attempt. The error of the outcome contains no secret of the channel.
    pub(crate) async fn send(&self, channel: &PreparedChannel, message: &Message) -> Outcome {
        let outcome = match &channel.route {
            Route::Webhook(webhook) => self.webhooks.post(webhook, message).await,
            Route::Email(mail) => email::send_mail(mail, message, &self.targets).await,
            Route::Stream => {
                let problem = "the channel only streams".to_string();
                Outcome::new(AttemptResult::Refused(problem), None)
            }
        };
        let scrubber = Scrubber::new(&channel.secrets);
        outcome.map_error(|error| storable_error(&scrubber.scrub(error)))
    }
}

/// Channel prepared for attempts.
#[derive(Debug)]
pub(crate) struct PreparedChannel {
    route: Route,
    secrets: Secrets,
}

/// Kind of delivery with its configuration.
#[derive(Debug)]
enum Route {
    Webhook(Webhook),
    Email(Mail),
    Stream,
}

impl PreparedChannel {
    /// Time limit of an attempt.
    pub(crate) fn timeout(&self) -> Duration {
        match &self.route {
            Route::Webhook(webhook) => webhook.timeout,
            Route::Email(mail) => mail.timeout,
            Route::Stream => Duration::ZERO,
        }
    }
}

//! One attempt to deliver a message, by whatever kind of channel.

use std::{fmt, time::Duration};

use super::message::Message;
use crate::{
    entity::notification_channel::{self, Config},
    notifications::{
        Keyring, Targets,
        secrets::{Secrets, scrub::Scrubber},
        senders::{
            email::{self, Mail},
            webhook::{self, Webhook},
        },
    },
};

/// How much of an error is kept, in characters.
const LONGEST_ERROR: usize = 500;

/// What came of an attempt.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) result: Attempted,
    /// What the receiver has answered: the status of HTTP, or the code of SMTP.
    pub(crate) status_code: Option<i32>,
}

/// Whether the receiver has the message.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Attempted {
    /// It has.
    Delivered,
    /// It has not, and may have it later.
    Failed(String),
    /// It has not, and wants less of everything; after how long, if it has said so.
    Throttled(String, Option<Duration>),
    /// It never will.
    Refused(String),
    /// It wants nothing any more.
    Gone(String),
}

impl Outcome {
    pub(crate) fn new(result: Attempted, status_code: Option<i32>) -> Self {
        Self {
            result,
            status_code,
        }
    }

    /// The attempt has failed before there was an answer.
    pub(crate) fn failed(problem: impl fmt::Display) -> Self {
        Self::new(Attempted::Failed(problem.to_string()), None)
    }

    /// The same, with an error that is fit to be stored: it repeats no secret of the channel, and is short.
    fn without(mut self, secrets: &Secrets) -> Self {
        match &mut self.result {
            Attempted::Delivered => {}
            Attempted::Failed(error)
            | Attempted::Throttled(error, _)
            | Attempted::Refused(error)
            | Attempted::Gone(error) => *error = short(&Scrubber::new(secrets).scrub(error)),
        }
        self
    }

    /// Why the receiver does not have the message.
    pub(crate) fn error(&self) -> Option<&str> {
        match &self.result {
            Attempted::Delivered => None,
            Attempted::Failed(error)
            | Attempted::Throttled(error, _)
            | Attempted::Refused(error)
            | Attempted::Gone(error) => Some(error),
        }
    }
}

/// Cuts what others have written.
fn short(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(LONGEST_ERROR).map(clean).collect()
}

/// Everything that is needed to send. Clones share it.
#[derive(Debug, Clone)]
pub struct Senders {
    webhooks: webhook::Sender,
    targets: Targets,
    keyring: Keyring,
}

impl Senders {
    /// Sends in the name of `source`, to these targets only.
    pub fn new(source: String, targets: Targets, keyring: Keyring) -> Self {
        Self {
            webhooks: webhook::Sender::new(source, targets.clone()),
            targets,
            keyring,
        }
    }

    /// What encrypts the secrets of channels.
    pub fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    /// Where messages may be sent.
    pub fn targets(&self) -> &Targets {
        &self.targets
    }

    /// Makes a channel ready to send by; if that cannot be done, says why.
    pub(crate) fn ready(&self, channel: &notification_channel::Model) -> Result<Ready, String> {
        let secrets = self.keyring.open(channel)?;
        let timeout = |ms: &u32| Duration::from_millis((*ms).into());
        let route = match &channel.config {
            Config::Webhook { timeout_ms, .. } => {
                let url = secrets.url.as_deref().unwrap_or_default();
                Route::Webhook(Webhook::new(url, timeout(timeout_ms), &secrets)?)
            }
            Config::Email {
                host,
                port,
                security,
                username,
                from,
                to,
                timeout_ms,
                ..
            } => Route::Email(Mail {
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
        Ok(Ready { route, secrets })
    }

    /// Sends a message.
    pub(crate) async fn send(&self, channel: &Ready, message: &Message) -> Outcome {
        let outcome = match &channel.route {
            Route::Webhook(webhook) => self.webhooks.send(webhook, message).await,
            Route::Email(mail) => email::send(mail, message, &self.targets).await,
            Route::Stream => {
                let problem = "the channel only streams".to_string();
                Outcome::new(Attempted::Refused(problem), None)
            }
        };
        outcome.without(&channel.secrets)
    }
}

/// A channel to send by.
#[derive(Debug)]
pub(crate) struct Ready {
    route: Route,
    secrets: Secrets,
}

/// How a channel sends.
#[derive(Debug)]
enum Route {
    Webhook(Webhook),
    Email(Mail),
    Stream,
}

impl Ready {
    /// How long an attempt takes at most.
    pub(crate) fn timeout(&self) -> Duration {
        match &self.route {
            Route::Webhook(webhook) => webhook.timeout,
            Route::Email(mail) => mail.timeout,
            Route::Stream => Duration::ZERO,
        }
    }
}

//! Delivery of messages by webhook: a POST signed as specified by Standard Webhooks.

use std::{fmt, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use chrono::{DateTime, Utc};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use reqwest::{Client, Response, Url, redirect::Policy};
use ring::hmac;
use tokio::time::timeout;

use super::{targets::refusal_reason, url::ip_address};
use crate::{
    error::Chain,
    notifications::{
        Targets,
        delivery::{
            backoff::MAX_DELAY,
            message::Message,
            outcome::{AttemptResult, Outcome},
        },
        secrets::{Secrets, signing_key},
    },
};

/// Bounds of the answer body read after the status, in bytes and time. A connection with an unread body cannot be
/// reused.
const MAX_DRAINED_BYTES: usize = 16 * 1024;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Idle time before a connection is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Header names set by the server, or reserved for the transport.
pub(crate) const RESERVED_HEADERS: [&str; 14] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "webhook-id",
    "webhook-signature",
    "webhook-timestamp",
];

/// Webhook of a channel, prepared for attempts.
pub(crate) struct Webhook {
    url: Url,
    /// Time limit of an attempt.
    pub timeout: Duration,
    headers: HeaderMap,
    keys: Vec<(hmac::Key, Option<i64>)>,
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook").finish_non_exhaustive()
    }
}

impl Webhook {
    /// Validates the URL, headers and signing secrets. The error names the invalid part.
    pub(crate) fn new(url: &str, timeout: Duration, secrets: &Secrets) -> Result<Self, String> {
        let url = Url::parse(url).map_err(|error| format!("the URL is invalid: {error}"))?;
        let mut headers = HeaderMap::new();
        for (name, value) in &secrets.headers {
            let name = HeaderName::from_bytes(name.as_bytes());
            let value = HeaderValue::from_str(value);
            let (Ok(name), Ok(mut value)) = (name, value) else {
                return Err("a header is invalid".to_string());
            };
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        let mut keys = Vec::with_capacity(secrets.signing.len());
        for secret in &secrets.signing {
            let key = signing_key::decode(&secret.secret).ok_or("a signing secret is invalid")?;
            keys.push((hmac::Key::new(hmac::HMAC_SHA256, &key), secret.expires_at));
        }
        Ok(Self { url, timeout, headers, keys })
    }

    /// Signatures with all unexpired secrets.
    fn signatures(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let signed = [format!("{id}.{timestamp}.").as_bytes(), body].concat();
        let current = self.keys.iter().filter(|(_, expires_at)| expires_at.is_none_or(|at| at > timestamp));
        let signatures: Vec<_> =
            current.map(|(key, _)| format!("v1,{}", BASE64_STANDARD.encode(hmac::sign(key, &signed)))).collect();
        signatures.join(" ")
    }
}

/// Posts messages. Clones share the connections.
#[derive(Debug, Clone)]
pub(crate) struct WebhookSender {
    source: String,
    targets: Targets,
    client: Result<Client, String>,
}

impl WebhookSender {
    /// Creates a sender. Messages name `source` as their origin and reach only allowed targets.
    pub(crate) fn new(source: String, targets: Targets) -> Self {
        // Fails if a provider is installed already, with the same effect.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .user_agent(concat!("Watchpost/", env!("CARGO_PKG_VERSION")))
            .dns_resolver(targets.clone())
            .redirect(Policy::none())
            .referer(false)
            .no_proxy()
            .pool_idle_timeout(IDLE_TIMEOUT)
            .tcp_nodelay(true)
            .build()
            .map_err(|error| Chain(&error).to_string());
        Self { source, targets, client }
    }

    /// Posts a message within the time limit.
    pub(crate) async fn post(&self, webhook: &Webhook, message: &Message) -> Outcome {
        let client = match &self.client {
            Ok(client) => client,
            Err(problem) => return Outcome::failed(problem),
        };
        // An IP address in the URL is not resolved, so the resolver cannot check the address.
        if let Some(address) = ip_address(&webhook.url)
            && !self.targets.allow(address)
        {
            return Outcome::failed(refusal_reason(address));
        }
        let (id, now) = (message.id.to_string(), crate::clock::now());
        let body = message.cloud_event(&self.source);
        let signatures = webhook.signatures(&id, now.timestamp(), &body);
        let answer = client
            .post(webhook.url.clone())
            .headers(webhook.headers.clone())
            .header("content-type", "application/cloudevents+json; charset=utf-8")
            .header("webhook-id", id)
            .header("webhook-timestamp", now.timestamp())
            .header("webhook-signature", signatures)
            .body(body)
            .send();
        match timeout(webhook.timeout, answer).await {
            Err(_) => Outcome::failed(format!("no answer within {:?}", webhook.timeout)),
            // The URL may contain a token.
            Ok(Err(error)) => Outcome::failed(Chain(&error.without_url())),
            Ok(Ok(response)) => {
                let outcome = outcome_of(response.status(), response.headers(), now);
                tokio::spawn(drain_body(response));
                outcome
            }
        }
    }
}

/// Reads a small rest of the answer, so the connection can be reused.
async fn drain_body(mut response: Response) {
    let mut bytes = 0;
    let draining = async {
        while let Ok(Some(chunk)) = response.chunk().await {
            bytes += chunk.len();
            if bytes > MAX_DRAINED_BYTES {
                return;
            }
        }
    };
    let _ = timeout(DRAIN_TIMEOUT, draining).await;
}

/// Outcome of the answer of the receiver.
fn outcome_of(status: StatusCode, headers: &HeaderMap, now: DateTime<Utc>) -> Outcome {
    let error = format!("the receiver has answered {status}");
    let result = match status.as_u16() {
        200..=299 => AttemptResult::Delivered,
        410 => AttemptResult::Gone(error),
        429 | 502..=504 => AttemptResult::Throttled(error, retry_after(headers, now)),
        _ => AttemptResult::Failed(error),
    };
    Outcome::new(result, Some(status.as_u16().into()))
}

/// Delay asked for by the receiver, at most a day.
fn retry_after(headers: &HeaderMap, now: DateTime<Utc>) -> Option<Duration> {
    let text = headers.get("retry-after")?.to_str().ok()?.trim();
    let delay = if let Ok(seconds) = text.parse() {
        Duration::from_secs(seconds)
    } else {
        let date = DateTime::parse_from_rfc2822(text).ok()?;
        let delay = date.with_timezone(&Utc) - now;
        // A date in the past means no delay.
        delay.to_std().unwrap_or_default()
    };
    Some(delay.min(MAX_DELAY))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notifications::secrets::{SigningSecret, signing_key::PREFIX};

    fn secret(byte: u8, expires_at: Option<i64>) -> SigningSecret {
        SigningSecret { secret: format!("{PREFIX}{}", BASE64_STANDARD.encode([byte; 24])), expires_at }
    }

    #[test]
    fn a_signature_is_that_of_the_published_example() {
        // From the specification of Standard Webhooks.
        let secrets = Secrets {
            signing: vec![SigningSecret { secret: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".into(), expires_at: None }],
            ..Default::default()
        };
        let webhook = Webhook::new("https://a.example", Duration::ZERO, &secrets).unwrap();
        let signature = webhook.signatures("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn every_secret_that_has_not_expired_signs() {
        let secrets =
            Secrets { signing: vec![secret(1, None), secret(2, Some(100)), secret(3, Some(50))], ..Default::default() };
        let webhook = Webhook::new("https://a.example", Duration::ZERO, &secrets).unwrap();
        let signatures = |at| webhook.signatures("id", at, b"x").split(' ').count();
        assert_eq!((signatures(0), signatures(50), signatures(100)), (3, 2, 1));
    }

    #[test]
    fn statuses_mean_what_the_specification_says() {
        let result_of = |status: u16, retry_after: &str| {
            let mut headers = HeaderMap::new();
            if !retry_after.is_empty() {
                headers.insert("retry-after", retry_after.parse().unwrap());
            }
            let now = "2026-11-24T12:00:00Z".parse().unwrap();
            outcome_of(StatusCode::from_u16(status).unwrap(), &headers, now).result
        };
        assert_eq!(result_of(200, ""), AttemptResult::Delivered);
        assert_eq!(result_of(204, ""), AttemptResult::Delivered);
        for status in [301, 302, 307, 400, 401, 404, 500, 505] {
            assert!(matches!(result_of(status, "7"), AttemptResult::Failed(_)), "{status}");
        }
        assert!(matches!(result_of(410, ""), AttemptResult::Gone(_)));
        for (status, text, seconds) in [
            (429, "", None),
            (429, "7", Some(7)),
            (503, "0", Some(0)),
            (502, "-1", None),
            (504, "soon", None),
            (429, "99999999999", Some(86_400)),
            (503, "Tue, 24 Nov 2026 12:01:00 GMT", Some(60)),
            (503, "Tue, 24 Nov 2026 11:00:00 GMT", Some(0)),
        ] {
            let AttemptResult::Throttled(_, after) = result_of(status, text) else {
                panic!("{status}");
            };
            assert_eq!(after.map(|after| after.as_secs()), seconds, "{text}");
        }
    }
}

//! Webhooks: one POST, signed by the rules of Standard Webhooks.

use std::{fmt, net::IpAddr, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use chrono::{DateTime, Utc};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use reqwest::{Client, Response, Url, redirect::Policy};
use ring::hmac;
use tokio::time::timeout;

use super::targets::refusal;
use crate::{
    error::Chain,
    notifications::{
        Targets,
        delivery::{
            attempt::{Attempted, Outcome},
            backoff::LONGEST,
            message::Message,
        },
        secrets::Secrets,
    },
};

/// What a secret begins with.
pub(crate) const PREFIX: &str = "whsec_";

/// How much of an answer is read, so that its connection can be used again, and for how long.
const READ: usize = 16 * 1024;
const READ_WITHIN: Duration = Duration::from_secs(1);

/// How long a connection that nobody uses is kept.
const IDLE: Duration = Duration::from_secs(30);

/// The headers that we set ourselves, or that say how a message is sent.
pub(crate) const OWN_HEADERS: [&str; 14] = [
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

/// A webhook to post to.
pub(crate) struct Webhook {
    url: Url,
    /// How long an attempt may take.
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
    /// Makes it ready; if that cannot be done, says why.
    pub(crate) fn new(url: &str, timeout: Duration, secrets: &Secrets) -> Result<Self, String> {
        let url = Url::parse(url).map_err(|error| format!("the URL is wrong: {error}"))?;
        let mut headers = HeaderMap::new();
        for (name, value) in &secrets.headers {
            let name = HeaderName::from_bytes(name.as_bytes());
            let value = HeaderValue::from_str(value);
            let (Ok(name), Ok(mut value)) = (name, value) else {
                return Err("a header is wrong".to_string());
            };
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        let mut keys = Vec::with_capacity(secrets.signing.len());
        for secret in &secrets.signing {
            let key = key(&secret.secret).ok_or("a signing secret is wrong")?;
            keys.push((hmac::Key::new(hmac::HMAC_SHA256, &key), secret.expires_at));
        }
        Ok(Self {
            url,
            timeout,
            headers,
            keys,
        })
    }

    /// One signature for every secret that has not expired.
    fn signatures(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let signed = [format!("{id}.{timestamp}.").as_bytes(), body].concat();
        let current = self
            .keys
            .iter()
            .filter(|(_, expires_at)| expires_at.is_none_or(|at| at > timestamp));
        let signatures: Vec<_> = current
            .map(|(key, _)| format!("v1,{}", BASE64_STANDARD.encode(hmac::sign(key, &signed))))
            .collect();
        signatures.join(" ")
    }
}

/// The bytes of a secret, 24 to 64 of them.
pub(crate) fn key(secret: &str) -> Option<Vec<u8>> {
    let bytes = BASE64_STANDARD.decode(secret.strip_prefix(PREFIX)?).ok()?;
    (24..=64).contains(&bytes.len()).then_some(bytes)
}

/// Posts. Clones share the connections.
#[derive(Debug, Clone)]
pub(crate) struct Sender {
    source: String,
    targets: Targets,
    client: Result<Client, String>,
}

impl Sender {
    /// Posts in the name of `source`, to these targets only.
    pub(crate) fn new(source: String, targets: Targets) -> Self {
        // Fails if there is one already, which does as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .user_agent(concat!("Watchpost/", env!("CARGO_PKG_VERSION")))
            .dns_resolver(targets.clone())
            .redirect(Policy::none())
            .referer(false)
            .no_proxy()
            .pool_idle_timeout(IDLE)
            .tcp_nodelay(true)
            .build()
            .map_err(|error| Chain(&error).to_string());
        Self {
            source,
            targets,
            client,
        }
    }

    /// Posts a message.
    pub(crate) async fn send(&self, webhook: &Webhook, message: &Message) -> Outcome {
        let client = match &self.client {
            Ok(client) => client,
            Err(problem) => return Outcome::failed(problem),
        };
        // An address is not resolved, so that nobody else looks at it.
        if let Some(address) = address(&webhook.url)
            && !self.targets.allow(address)
        {
            return Outcome::failed(refusal(address));
        }
        let (id, now) = (message.id.to_string(), crate::clock::now());
        let body = message.cloud_event(&self.source);
        let signatures = webhook.signatures(&id, now.timestamp(), &body);
        let answer = client
            .post(webhook.url.clone())
            .headers(webhook.headers.clone())
            .header(
                "content-type",
                "application/cloudevents+json; charset=utf-8",
            )
            .header("webhook-id", id)
            .header("webhook-timestamp", now.timestamp())
            .header("webhook-signature", signatures)
            .body(body)
            .send();
        match timeout(webhook.timeout, answer).await {
            Err(_) => Outcome::failed(format!("no answer within {:?}", webhook.timeout)),
            // The URL may hold what others must not know.
            Ok(Err(error)) => Outcome::failed(Chain(&error.without_url())),
            Ok(Ok(response)) => {
                let outcome = judge(response.status(), response.headers(), now);
                tokio::spawn(finish(response));
                outcome
            }
        }
    }
}

/// What stands for the path and query of a URL where it is shown.
const REST: &str = "/***";

/// A URL as it is shown: without its path and query, which often hold a token.
pub(crate) fn shortened(text: &str) -> String {
    match Url::parse(text) {
        Ok(url) if url.path() == "/" && url.query().is_none() && url.fragment().is_none() => {
            text.to_string()
        }
        Ok(url) => url.origin().ascii_serialization() + REST,
        Err(_) => REST.to_string(),
    }
}

/// Whether a URL is one that [`shortened`] gives in place of a longer one.
pub(crate) fn is_shortened(text: &str) -> bool {
    text.ends_with(REST) && shortened(text) == text
}

/// The address in a URL that has no name.
pub(crate) fn address(url: &Url) -> Option<IpAddr> {
    let host = url.host_str()?;
    host.trim_start_matches('[')
        .trim_end_matches(']')
        .parse()
        .ok()
}

/// Reads what is left of an answer, if it is little: a connection can only be used again after that.
async fn finish(mut response: Response) {
    let mut read = 0;
    let reading = async {
        while let Ok(Some(chunk)) = response.chunk().await {
            read += chunk.len();
            if read > READ {
                return;
            }
        }
    };
    let _ = timeout(READ_WITHIN, reading).await;
}

/// What an answer means.
fn judge(status: StatusCode, headers: &HeaderMap, now: DateTime<Utc>) -> Outcome {
    let error = format!("the receiver has answered {status}");
    let result = match status.as_u16() {
        200..=299 => Attempted::Delivered,
        410 => Attempted::Gone(error),
        429 | 502..=504 => Attempted::Throttled(error, retry_after(headers, now)),
        _ => Attempted::Failed(error),
    };
    Outcome::new(result, Some(status.as_u16().into()))
}

/// How long the receiver asks to wait, a day at most.
fn retry_after(headers: &HeaderMap, now: DateTime<Utc>) -> Option<Duration> {
    let text = headers.get("retry-after")?.to_str().ok()?.trim();
    let delay = if let Ok(seconds) = text.parse() {
        Duration::from_secs(seconds)
    } else {
        let date = DateTime::parse_from_rfc2822(text).ok()?;
        let delay = date.with_timezone(&Utc) - now;
        // What is over is no time to wait.
        delay.to_std().unwrap_or_default()
    };
    Some(delay.min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notifications::secrets::SigningSecret;

    fn secret(byte: u8, expires_at: Option<i64>) -> SigningSecret {
        SigningSecret {
            secret: format!("{PREFIX}{}", BASE64_STANDARD.encode([byte; 24])),
            expires_at,
        }
    }

    #[test]
    fn a_signature_is_that_of_the_published_example() {
        // From the specification of Standard Webhooks.
        let secrets = Secrets {
            signing: vec![SigningSecret {
                secret: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".into(),
                expires_at: None,
            }],
            ..Default::default()
        };
        let webhook = Webhook::new("https://a.example", Duration::ZERO, &secrets).unwrap();
        let signature = webhook.signatures(
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            br#"{"test": 2432232314}"#,
        );
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn every_secret_that_has_not_expired_signs() {
        let secrets = Secrets {
            signing: vec![secret(1, None), secret(2, Some(100)), secret(3, Some(50))],
            ..Default::default()
        };
        let webhook = Webhook::new("https://a.example", Duration::ZERO, &secrets).unwrap();
        let signatures = |at| webhook.signatures("id", at, b"x").split(' ').count();
        assert_eq!((signatures(0), signatures(50), signatures(100)), (3, 2, 1));
    }

    #[test]
    fn a_secret_has_a_prefix_and_24_to_64_bytes() {
        let of = |length| format!("{PREFIX}{}", BASE64_STANDARD.encode(vec![7; length]));
        for good in [of(24), of(64)] {
            assert!(key(&good).is_some(), "{good}");
        }
        let bare = BASE64_STANDARD.encode([7; 24]);
        for bad in [of(23), of(65), bare, "whsec_".into(), "whsec_ü".into()] {
            assert!(key(&bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn statuses_mean_what_the_specification_says() {
        let judged = |status: u16, retry_after: &str| {
            let mut headers = HeaderMap::new();
            if !retry_after.is_empty() {
                headers.insert("retry-after", retry_after.parse().unwrap());
            }
            let now = "2026-11-24T12:00:00Z".parse().unwrap();
            judge(StatusCode::from_u16(status).unwrap(), &headers, now).result
        };
        assert_eq!(judged(200, ""), Attempted::Delivered);
        assert_eq!(judged(204, ""), Attempted::Delivered);
        for status in [301, 302, 307, 400, 401, 404, 500, 505] {
            assert!(
                matches!(judged(status, "7"), Attempted::Failed(_)),
                "{status}"
            );
        }
        assert!(matches!(judged(410, ""), Attempted::Gone(_)));
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
            let Attempted::Throttled(_, after) = judged(status, text) else {
                panic!("{status}");
            };
            assert_eq!(after.map(|after| after.as_secs()), seconds, "{text}");
        }
    }

    #[test]
    fn a_url_is_shown_without_what_may_be_a_token() {
        for (url, expected) in [
            ("https://a.example", "https://a.example"),
            ("https://a.example:8443/", "https://a.example:8443/"),
            ("https://a.example/hook", "https://a.example/***"),
            ("https://A.example:443/?token=1", "https://a.example/***"),
            ("http://[::1]:80/x#y", "http://[::1]/***"),
            ("https://a.example/***", "https://a.example/***"),
        ] {
            assert_eq!(shortened(url), expected);
            assert_eq!(is_shortened(url), url.ends_with("***"), "{url}");
        }
    }

    #[test]
    fn an_address_is_found_however_it_is_written() {
        for (url, expected) in [
            ("http://127.0.0.1/", Some("127.0.0.1")),
            ("http://2130706433/", Some("127.0.0.1")),
            ("http://0x7f.1/", Some("127.0.0.1")),
            ("http://0177.0.0.1/", Some("127.0.0.1")),
            ("http://[::1]:80/", Some("::1")),
            ("http://[::ffff:7f00:1]/", Some("::ffff:127.0.0.1")),
            ("http://localhost/", None),
        ] {
            let found = address(&Url::parse(url).unwrap());
            assert_eq!(found, expected.map(|text| text.parse().unwrap()), "{url}");
        }
    }
}

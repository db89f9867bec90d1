//! Scrubber: hides the secrets of a channel in answers of its receiver, in any common encoding.

use std::collections::{BTreeSet, HashSet};

use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use reqwest::Url;

use super::Secrets;
use super::signing_key::{self, PREFIX};

/// Replacement of a secret.
const REPLACEMENT: &str = "***";

/// Length of the shortest hidden part of a secret, in bytes.
const WINDOW_BYTES: usize = 8;

/// Minimum length of a hidden encoding or component of a secret, in bytes.
const MIN_PART_BYTES: usize = 4;

/// Hides the secrets of a channel in every form of repetition. Case does not matter.
pub(crate) struct Scrubber {
    /// Forms shorter than a window, hidden as a whole.
    short: BTreeSet<Vec<u8>>,
    /// Windows of all longer forms.
    windows: HashSet<[u8; WINDOW_BYTES]>,
}

impl Scrubber {
    /// Creates a scrubber for secrets.
    pub(crate) fn new(secrets: &Secrets) -> Self {
        let mut scrubber = Self { short: BTreeSet::new(), windows: HashSet::new() };
        if let Some(password) = &secrets.password {
            scrubber.add_secret(password);
        }
        for secret in &secrets.signing {
            let secret = &secret.secret;
            scrubber.add_secret(secret.strip_prefix(PREFIX).unwrap_or(secret));
            if let Some(key) = signing_key::decode(secret) {
                scrubber.add(&hex(&key));
            }
        }
        for value in secrets.headers.values() {
            scrubber.add_header(value);
        }
        if let Some(url) = secrets.url.as_deref().and_then(|url| Url::parse(url).ok()) {
            scrubber.add_url(&url);
        }
        scrubber
    }

    /// Adds a secret and its encodings.
    fn add_secret(&mut self, secret: &str) {
        self.add(secret);
        for form in encodings(secret) {
            self.add_part(&form);
        }
    }

    /// Adds the value of a header: the whole value, the words after the scheme, and the credentials of Basic
    /// authentication.
    fn add_header(&mut self, value: &str) {
        self.add_secret(value);
        let is_delimiter = |c: char| c.is_whitespace() || matches!(c, ',' | ';' | '=' | '"');
        let words = value.split(is_delimiter).filter(|word| !word.is_empty());
        let scheme = usize::from(value.contains(char::is_whitespace));
        for word in words.skip(scheme).filter(|word| word.len() >= MIN_PART_BYTES) {
            self.add_secret(word);
        }
        let encoded = value.rsplit(' ').next().unwrap_or_default();
        let decoded = BASE64_STANDARD.decode(encoded).ok();
        if let Some(login) = decoded.and_then(|bytes| String::from_utf8(bytes).ok())
            && let Some((_, password)) = login.split_once(':')
        {
            self.add_secret(&login);
            self.add_secret(password);
        }
    }

    /// Adds the part of a URL after the host.
    fn add_url(&mut self, url: &Url) {
        let target = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_string(),
        };
        for form in [target.as_str(), target.trim_matches('/')] {
            self.add_part(form);
            for form in encodings(form) {
                self.add_part(&form);
            }
        }
        // Short segments such as `api` and `v1` are no secrets.
        let segments = url.path_segments().into_iter().flatten();
        for segment in segments.filter(|segment| segment.len() >= WINDOW_BYTES) {
            self.add_secret(segment);
        }
        for (_, value) in url.query_pairs().filter(|(_, value)| value.len() >= MIN_PART_BYTES) {
            self.add_secret(&value);
        }
    }

    fn add_part(&mut self, form: &str) {
        if form.len() >= MIN_PART_BYTES {
            self.add(form);
        }
    }

    fn add(&mut self, form: &str) {
        let form = form.to_ascii_lowercase().into_bytes();
        if form.is_empty() {
            return;
        }
        if form.len() < WINDOW_BYTES {
            self.short.insert(form);
        } else {
            self.windows.extend(form.array_windows::<WINDOW_BYTES>());
        }
    }

    /// Text with every secret replaced.
    pub(crate) fn scrub(&self, text: &str) -> String {
        let lower = text.to_ascii_lowercase().into_bytes();
        let mut hidden = vec![false; lower.len()];
        for (start, window) in lower.array_windows::<WINDOW_BYTES>().enumerate() {
            if self.windows.contains(window) {
                hidden[start..start + WINDOW_BYTES].fill(true);
            }
        }
        for form in &self.short {
            for (start, window) in lower.windows(form.len()).enumerate() {
                if window == form {
                    hidden[start..start + form.len()].fill(true);
                }
            }
        }
        let mut scrubbed = String::with_capacity(text.len());
        let mut was_hidden = false;
        for (start, c) in text.char_indices() {
            let is_hidden = hidden[start..start + c.len_utf8()].contains(&true);
            if !is_hidden {
                scrubbed.push(c);
            } else if !was_hidden {
                scrubbed.push_str(REPLACEMENT);
            }
            was_hidden = is_hidden;
        }
        scrubbed
    }
}

/// Common encodings of a text: base64, also inside of a longer text, hexadecimal, percent, JSON and HTML.
fn encodings(text: &str) -> Vec<String> {
    let mut forms = vec![hex(text.as_bytes())];
    for before in 0..3 {
        let bytes = [&[0; 3][..before], text.as_bytes()].concat();
        let standard = BASE64_STANDARD.encode(&bytes);
        let url_safe = BASE64_URL_SAFE_NO_PAD.encode(&bytes);
        // The first and last characters depend on the neighbours of the text.
        let first = [0, 2, 3][before];
        let last = bytes.len() * 8 / 6;
        for form in [standard, url_safe] {
            forms.push(form.get(first..last).unwrap_or_default().to_string());
        }
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let percent = |space: &str| -> String {
        let byte = |byte: u8| match byte {
            b' ' => space.to_string(),
            byte if plain(byte) => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        };
        text.bytes().map(byte).collect()
    };
    forms.extend([percent("%20"), percent("+")]);
    forms.extend(serde_json::to_string(text).map(|json| json.trim_matches('"').to_string()));
    let html = text.replace('&', "&amp;").replace('<', "&lt;");
    let html = html.replace('>', "&gt;").replace('"', "&quot;");
    forms.extend([html.replace('\'', "&#39;"), html.replace('\'', "&#x27;")]);
    forms
}

fn hex(bytes: &[u8]) -> String {
    let digits = |byte: &u8| [byte >> 4, byte & 0xF].map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)]));
    bytes.iter().flat_map(digits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notifications::secrets::SigningSecret;

    fn scrubber() -> Scrubber {
        Scrubber::new(&Secrets {
            password: Some("pä ss<w&rd'1".into()),
            headers: [
                ("authorization".into(), "Bearer tok-EN/12+34=56".into()),
                ("x-basic".into(), "Basic dXNlcjpodW50ZXIyIQ==".into()),
                ("x-pin".into(), "937".into()),
            ]
            .into(),
            signing: vec![SigningSecret { secret: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".into(), expires_at: None }],
            url: Some("https://hooks.example/services/T024BE/B9/XbX2yYz7q?key=s3cr3t".into()),
        })
    }

    #[test]
    fn every_form_of_a_secret_is_hidden() {
        let scrubber = scrubber();
        let plain = BASE64_STANDARD.encode("\0user\0pä ss<w&rd'1");
        for text in [
            "pä ss<w&rd'1",
            "PÄ ss<w&rd'1".trim_start_matches('P'),
            &plain,
            &hex("pä ss<w&rd'1".as_bytes()),
            "p%C3%A4%20ss%3Cw%26rd%271",
            "p%C3%A4+ss%3Cw%26rd%271",
            "pä ss&lt;w&amp;rd&#39;1",
            "tok-EN/12+34=56",
            "TOK-en/12+34",
            "hunter2!",
            "dXNlcjpodW50ZXIyIQ",
            "937",
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "/services/T024BE/B9/XbX2yYz7q",
            "XbX2yYz7q",
            "s3cr3t",
            "czNjcjN0",
        ] {
            let scrubbed = scrubber.scrub(&format!("no {text} here"));
            assert!(!scrubbed.contains(text) && scrubbed.contains("***"), "{text}: {scrubbed}");
            assert!(scrubbed.starts_with("no") && scrubbed.ends_with(" here"), "{scrubbed}");
        }
    }

    #[test]
    fn half_of_a_secret_is_hidden_and_other_text_is_not() {
        let scrubber = scrubber();
        assert_eq!(scrubber.scrub("got GKYqrTwjUP?"), "got ***?");
        for text in ["535 5.7.8 Error: authentication failed: for hooks.example", "Ünïcode 日本 \u{1f6aa}", ""] {
            assert_eq!(scrubber.scrub(text), text);
        }
        assert_eq!(Scrubber::new(&Secrets::default()).scrub("anything"), "anything");
    }
}

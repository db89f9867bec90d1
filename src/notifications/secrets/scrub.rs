//! Hides the secrets of a channel in what its receiver has answered, which may repeat them in any encoding.

use std::collections::{BTreeSet, HashSet};

use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use reqwest::Url;

use super::Secrets;
use crate::notifications::senders::webhook::PREFIX;

/// What stands for a secret.
const HIDDEN: &str = "***";

/// A part of a secret of this length, in bytes, is hidden as well.
const WINDOW: usize = 8;

/// The least length of what is not a secret itself but only a part of one, or an encoding of it.
const LEAST_PART: usize = 4;

/// Knows the secrets of a channel, and every form in which a receiver may repeat them. Case does not matter.
pub(crate) struct Scrubber {
    /// Forms that are shorter than a window.
    short: BTreeSet<Vec<u8>>,
    /// All windows of the others.
    windows: HashSet<[u8; WINDOW]>,
}

impl Scrubber {
    /// Knows these secrets.
    pub(crate) fn new(secrets: &Secrets) -> Self {
        let mut scrubber = Self {
            short: BTreeSet::new(),
            windows: HashSet::new(),
        };
        if let Some(password) = &secrets.password {
            scrubber.add_secret(password);
        }
        for secret in &secrets.signing {
            let secret = &secret.secret;
            scrubber.add_secret(secret.strip_prefix(PREFIX).unwrap_or(secret));
            if let Some(key) = crate::notifications::senders::webhook::key(secret) {
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

    /// A secret and its encodings.
    fn add_secret(&mut self, secret: &str) {
        self.add(secret);
        for form in encodings(secret) {
            self.add_part(&form);
        }
    }

    /// The value of a header: as a whole, the words after its scheme, and what Basic authentication encodes.
    fn add_header(&mut self, value: &str) {
        self.add_secret(value);
        let is_delimiter = |c: char| c.is_whitespace() || matches!(c, ',' | ';' | '=' | '"');
        let words = value.split(is_delimiter).filter(|word| !word.is_empty());
        let scheme = usize::from(value.contains(char::is_whitespace));
        for word in words.skip(scheme).filter(|word| word.len() >= LEAST_PART) {
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

    /// All of a URL behind its host.
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
        // Words such as `api` and `v1` are no secrets.
        let segments = url.path_segments().into_iter().flatten();
        for segment in segments.filter(|segment| segment.len() >= WINDOW) {
            self.add_secret(segment);
        }
        for (_, value) in url
            .query_pairs()
            .filter(|(_, value)| value.len() >= LEAST_PART)
        {
            self.add_secret(&value);
        }
    }

    fn add_part(&mut self, form: &str) {
        if form.len() >= LEAST_PART {
            self.add(form);
        }
    }

    fn add(&mut self, form: &str) {
        let form = form.to_ascii_lowercase().into_bytes();
        if form.is_empty() {
            return;
        }
        if form.len() < WINDOW {
            self.short.insert(form);
        } else {
            self.windows.extend(form.array_windows::<WINDOW>());
        }
    }

    /// The text without any secret.
    pub(crate) fn scrub(&self, text: &str) -> String {
        let lower = text.to_ascii_lowercase().into_bytes();
        let mut hidden = vec![false; lower.len()];
        for (at, window) in lower.array_windows::<WINDOW>().enumerate() {
            if self.windows.contains(window) {
                hidden[at..at + WINDOW].fill(true);
            }
        }
        for form in &self.short {
            for (at, window) in lower.windows(form.len()).enumerate() {
                if window == form {
                    hidden[at..at + form.len()].fill(true);
                }
            }
        }
        let mut scrubbed = String::with_capacity(text.len());
        let mut was_hidden = false;
        for (at, c) in text.char_indices() {
            let is_hidden = hidden[at..at + c.len_utf8()].contains(&true);
            if !is_hidden {
                scrubbed.push(c);
            } else if !was_hidden {
                scrubbed.push_str(HIDDEN);
            }
            was_hidden = is_hidden;
        }
        scrubbed
    }
}

/// The encodings in which a text is often repeated: base64, also within a longer text, hexadecimal, percent, JSON and HTML.
fn encodings(text: &str) -> Vec<String> {
    let mut forms = vec![hex(text.as_bytes())];
    for before in 0..3 {
        let bytes = [&[0; 3][..before], text.as_bytes()].concat();
        let standard = BASE64_STANDARD.encode(&bytes);
        let url_safe = BASE64_URL_SAFE_NO_PAD.encode(&bytes);
        // The characters at both ends depend on what is beside the text.
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
    let digits = |byte: &u8| {
        [byte >> 4, byte & 0xF].map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)]))
    };
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
            signing: vec![SigningSecret {
                secret: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".into(),
                expires_at: None,
            }],
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
            let said = scrubber.scrub(&format!("no {text} here"));
            assert!(
                !said.contains(text) && said.contains("***"),
                "{text}: {said}"
            );
            assert!(said.starts_with("no") && said.ends_with(" here"), "{said}");
        }
    }

    #[test]
    fn half_of_a_secret_is_hidden_and_other_text_is_not() {
        let scrubber = scrubber();
        assert_eq!(scrubber.scrub("got GKYqrTwjUP?"), "got ***?");
        for text in [
            "535 5.7.8 Error: authentication failed: for hooks.example",
            "Ünïcode 日本 \u{1f6aa}",
            "",
        ] {
            assert_eq!(scrubber.scrub(text), text);
        }
        assert_eq!(
            Scrubber::new(&Secrets::default()).scrub("anything"),
            "anything"
        );
    }
}

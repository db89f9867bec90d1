//! URLs of webhooks, as shown to clients and as checked against the allowed targets.

use std::net::IpAddr;

use reqwest::Url;

/// Placeholder for the path and query of a shown URL.
const HIDDEN_PATH: &str = "/***";

/// Shortens a URL for display: without path and query, as both often contain a token.
pub(crate) fn shorten(text: &str) -> String {
    match Url::parse(text) {
        Ok(url) if url.path() == "/" && url.query().is_none() && url.fragment().is_none() => text.to_string(),
        Ok(url) => url.origin().ascii_serialization() + HIDDEN_PATH,
        Err(_) => HIDDEN_PATH.to_string(),
    }
}

/// Returns true if a URL is the result of [`shorten`] for a longer URL.
pub(crate) fn is_shortened(text: &str) -> bool {
    text.ends_with(HIDDEN_PATH) && shorten(text) == text
}

/// IP address in a URL. `None` for a URL with a host name.
pub(crate) fn ip_address(url: &Url) -> Option<IpAddr> {
    let host = url.host_str()?;
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert_eq!(shorten(url), expected);
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
            let address = ip_address(&Url::parse(url).unwrap());
            assert_eq!(address, expected.map(|text| text.parse().unwrap()), "{url}");
        }
    }
}

//! Parsers of settings, with errors that describe a valid value.

use std::{str::FromStr, time::Duration};

use http::Uri;
use ipnet::IpNet;

pub(super) fn listen(text: &str) -> Result<String, String> {
    let problem = || "it must be HOST:PORT, such as 127.0.0.1:50051".to_string();
    let (host, port) = text.rsplit_once(':').ok_or_else(problem)?;
    if host.is_empty() || port.parse::<u16>().is_err() {
        return Err(problem());
    }
    Ok(text.to_string())
}

/// Parses the address of a server to a URL.
pub(super) fn server(text: &str) -> Result<String, String> {
    let problem = || "it must be HOST:PORT or http://HOST:PORT".to_string();
    let without_scheme = text.strip_prefix("http://").unwrap_or(text);
    let address = without_scheme.strip_suffix('/').unwrap_or(without_scheme);
    let authority: http::uri::Authority = address.parse().map_err(|_| problem())?;
    let plain = !authority.host().is_empty() && !address.contains('@');
    if !plain || authority.port_u16().is_none() {
        return Err(problem());
    }
    Ok(format!("http://{authority}"))
}

/// Parses the address of a server to a `Uri`.
pub(super) fn server_uri(text: &str) -> Result<Uri, String> {
    let problem = |_| "it must be HOST:PORT or http://HOST:PORT".to_string();
    server(text)?.parse().map_err(problem)
}

/// Checks a database URL. Not used as a clap parser, because clap errors repeat the value, which
/// may contain a password.
pub(super) fn database_url(text: &str) -> Result<(), String> {
    let problem = "it must be sqlite://PATH or postgres://USER:PASSWORD@HOST/NAME".to_string();
    let (scheme, rest) = text.split_once("://").ok_or_else(|| problem.clone())?;
    match scheme {
        "sqlite" if rest.starts_with(":memory:") => Err("a database in memory would not outlive the process".into()),
        "sqlite" | "postgres" | "postgresql" if !rest.is_empty() => Ok(()),
        _ => Err(problem),
    }
}

/// Checks a level or directives. A bare word other than a level is refused, because the filter
/// would treat the word as a target.
pub(super) fn log_filter(text: &str) -> Result<String, String> {
    let problem = "it must be a level (off, error, warn, info, debug, trace) or directives such as \
                   info,watchpost::feed=debug";
    let directives = text.split(',').map(str::trim);
    let is_level = |text: &str| text.parse::<tracing_subscriber::filter::LevelFilter>().is_ok();
    for directive in directives {
        // Fields of a span filter may contain commas.
        let has_level = directive.contains(['=', '[', '{', '}']);
        if directive.is_empty() || !has_level && !is_level(directive) {
            return Err(format!("{problem}; `{directive}` is neither"));
        }
    }
    match tracing_subscriber::EnvFilter::from_str(text) {
        Ok(_) => Ok(text.to_string()),
        Err(error) => Err(format!("{problem}: {error}")),
    }
}

pub(super) fn network(text: &str) -> Result<IpNet, String> {
    let problem = |_| "it must be a network such as 10.0.0.0/8 or ::1/128".to_string();
    text.trim().parse().map_err(problem)
}

pub(super) fn source(text: &str) -> Result<String, String> {
    match text.parse::<Uri>() {
        Ok(_) if text.len() <= 255 => Ok(text.to_string()),
        _ => Err("it must be a URI, or a part of one, of at most 255 characters".to_string()),
    }
}

pub(super) fn host(text: &str) -> Result<String, String> {
    if text.is_empty() || text.chars().count() > 255 {
        return Err("it must have 1 to 255 characters".to_string());
    }
    Ok(text.to_string())
}

/// Parses a duration between `MIN` and `MAX` milliseconds.
pub(super) fn between<const MIN: u64, const MAX: u64>(text: &str) -> Result<Duration, String> {
    let (min, max) = (Duration::from_millis(MIN), Duration::from_millis(MAX));
    match humantime::parse_duration(text) {
        Ok(time) if (min..=max).contains(&time) => Ok(time),
        _ => Err(format!(
            "it must be a time such as 500ms, 10s, 5m or 7d, from {} to {}",
            humantime::format_duration(min),
            humantime::format_duration(max)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_an_address_with_or_without_its_scheme() {
        for text in ["box:50051", "http://box:50051", "http://box:50051/"] {
            assert_eq!(server(text).unwrap(), "http://box:50051");
        }
        assert_eq!(server("[::1]:1").unwrap(), "http://[::1]:1");
        let wrong = [
            "",
            "box",
            ":1",
            "box:0x1",
            "box:99999",
            "http://box",
            "https://box:1",
            "box:1/path",
            "user@box:1",
            "http://",
        ];
        for text in wrong {
            assert!(server(text).is_err(), "{text}");
        }
    }
}

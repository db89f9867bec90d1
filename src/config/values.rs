//! The values of settings: what is right, in the words of whoever got it wrong.

use std::{str::FromStr, time::Duration};

use http::Uri;

pub(super) fn listen(text: &str) -> Result<String, String> {
    let problem = || "it must be HOST:PORT, such as 127.0.0.1:50051".to_string();
    let (host, port) = text.rsplit_once(':').ok_or_else(problem)?;
    if host.is_empty() || port.parse::<u16>().is_err() {
        return Err(problem());
    }
    Ok(text.to_string())
}

pub(super) fn server(text: &str) -> Result<Uri, String> {
    let problem = || "it must be http://HOST:PORT, such as http://10.0.0.5:50051".to_string();
    let uri = Uri::from_str(text).map_err(|_| problem())?;
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let good = uri.scheme_str() == Some("http")
        && uri.port_u16().is_some()
        && !authority.contains('@')
        && matches!(
            uri.path_and_query().map(http::uri::PathAndQuery::as_str),
            None | Some("/")
        );
    if good { Ok(uri) } else { Err(problem()) }
}

/// Not a parser of the argument: its error would repeat what was given, and that may hold a password.
pub(super) fn database_url(text: &str) -> Result<(), String> {
    let problem = "it must be sqlite://PATH or postgres://USER:PASSWORD@HOST/NAME".to_string();
    let (scheme, rest) = text.split_once("://").ok_or_else(|| problem.clone())?;
    match scheme {
        "sqlite" if rest.starts_with(":memory:") => {
            Err("a database in memory would not outlive the process".into())
        }
        "sqlite" | "postgres" | "postgresql" if !rest.is_empty() => Ok(()),
        _ => Err(problem),
    }
}

pub(super) fn log_filter(text: &str) -> Result<String, String> {
    match tracing_subscriber::EnvFilter::from_str(text) {
        Ok(_) => Ok(text.to_string()),
        Err(error) => Err(format!(
            "it must be a level or directives such as info,watchpost=debug: {error}"
        )),
    }
}

pub(super) fn host(text: &str) -> Result<String, String> {
    if text.is_empty() || text.chars().count() > 255 {
        return Err("it must have 1 to 255 characters".to_string());
    }
    Ok(text.to_string())
}

/// A length of time in milliseconds between `LEAST` and `MOST`.
pub(super) fn between<const LEAST: u64, const MOST: u64>(text: &str) -> Result<Duration, String> {
    let (least, most) = (Duration::from_millis(LEAST), Duration::from_millis(MOST));
    match humantime::parse_duration(text) {
        Ok(time) if (least..=most).contains(&time) => Ok(time),
        _ => Err(format!(
            "it must be a time such as 500ms, 10s, 5m or 7d, from {} to {}",
            humantime::format_duration(least),
            humantime::format_duration(most)
        )),
    }
}

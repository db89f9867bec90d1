//! Allowed targets of messages. A server inside a network must not be used to call internal hosts.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, LazyLock},
};

use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::net::lookup_host;

/// Special-purpose networks outside of the public internet (RFC 6890). Of IPv6, only `2000::/3` is public.
const SPECIAL_PURPOSE: [&str; 18] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/3",
    "2001::/23",
    "2001:db8::/32",
    "2002::/16",
    "3fff::/20",
];

static DENIED_NETWORKS: LazyLock<Vec<IpNet>> =
    LazyLock::new(|| SPECIAL_PURPOSE.iter().filter_map(|net| net.parse().ok()).collect());

/// Addresses allowed as targets. Clones share the list.
#[derive(Debug, Clone, Default)]
pub struct Targets {
    allowed: Arc<[IpNet]>,
}

impl Targets {
    /// Allows the public internet and the given networks.
    pub fn new(allowed: &[IpNet]) -> Self {
        Self { allowed: allowed.into() }
    }

    /// Returns true if messages may be sent to an address.
    pub fn allow(&self, address: IpAddr) -> bool {
        // An IPv4 address mapped to IPv6 reaches the same host.
        let address = address.to_canonical();
        if self.allowed.iter().any(|net| net.contains(&address)) {
            return true;
        }
        let is_global = match address {
            IpAddr::V4(_) => true,
            IpAddr::V6(address) => address.segments()[0] & 0xe000 == 0x2000,
        };
        is_global && !DENIED_NETWORKS.iter().any(|net| net.contains(&address))
    }

    /// Resolves a host to its allowed addresses, at least one. The error says why none is usable.
    pub async fn resolve(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let addresses: Vec<_> = lookup_host((host, port))
            .await
            .map_err(|error| format!("the name {host} cannot be resolved: {error}"))?
            .collect();
        let allowed: Vec<_> = addresses.iter().copied().filter(|address| self.allow(address.ip())).collect();
        match addresses.first() {
            None => Err(format!("the name {host} has no address")),
            Some(first) if allowed.is_empty() => Err(refusal_reason(first.ip())),
            Some(_) => Ok(allowed),
        }
    }
}

/// Error message for a refused address.
pub(crate) fn refusal_reason(address: IpAddr) -> String {
    format!("the address {address} is not of the public internet, and the settings do not allow it")
}

impl Resolve for Targets {
    fn resolve(&self, name: Name) -> Resolving {
        let targets = self.clone();
        Box::pin(async move {
            // The client replaces the port by the port of the URL.
            let addresses = Self::resolve(&targets, name.as_str(), 0).await?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_public_internet_is_allowed() {
        let targets = Targets::default();
        for address in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "fe80::1",
            "fc00::1",
            "fd12:3456::1",
            "ff02::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
        ] {
            assert!(!targets.allow(address.parse().unwrap()), "{address}");
        }
        for address in ["1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111"] {
            assert!(targets.allow(address.parse().unwrap()), "{address}");
        }
        assert_eq!(DENIED_NETWORKS.len(), SPECIAL_PURPOSE.len());
    }

    #[test]
    fn what_the_settings_allow_is_allowed() {
        let targets = Targets::new(&["127.0.0.0/8".parse().unwrap()]);
        for address in ["127.0.0.1", "::ffff:127.0.0.1"] {
            assert!(targets.allow(address.parse().unwrap()));
        }
        assert!(!targets.allow("10.0.0.1".parse().unwrap()));
    }
}

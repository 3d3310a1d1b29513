//! The guard against requests to the inside: which addresses a host name may resolve to.
//!
//! A listed public name that resolves to a loopback, link-local, private or otherwise special address is refused, now
//! and on every later connection (DNS rebinding). An address that `media.allow` names literally never comes here,
//! because nothing has to be resolved; `localhost`, when listed, may be this machine. It does not know URLs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::allow::AllowList;

/// A name resolved to special addresses only.
#[derive(Debug, thiserror::Error)]
#[error("{host} resolves to {address}, which is no public address; list the address itself if that is meant")]
pub struct AddressRefused {
    pub host: String,
    pub address: IpAddr,
}

/// Resolves names with the system's resolver and drops addresses that are not public.
#[derive(Debug)]
pub struct GuardedResolver {
    localhost_listed: bool,
}

impl GuardedResolver {
    pub fn new(allow: &AllowList) -> Self {
        Self { localhost_listed: allow.names_host("localhost") }
    }

    /// Keeps what may be connected to; an error when addresses were found but none may be used.
    fn permitted(&self, host: &str, found: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, AddressRefused> {
        let is_this_machine = self.localhost_listed && host == "localhost";
        let refused = found.first().map(SocketAddr::ip);
        let permitted: Vec<_> = found
            .into_iter()
            .filter(|address| is_public(address.ip()) || (is_this_machine && address.ip().is_loopback()))
            .collect();
        match refused {
            Some(address) if permitted.is_empty() => Err(AddressRefused { host: host.to_owned(), address }),
            _ => Ok(permitted),
        }
    }
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = Self { localhost_listed: self.localhost_listed };
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let permitted: Addrs = Box::new(guard.permitted(name.as_str(), found)?.into_iter());
            Ok(permitted)
        })
    }
}

/// Whether an address belongs to the public Internet, by IANA's registries of special-purpose addresses.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [first, second, third, _] = address.octets();
    let shared = first == 100 && (64..128).contains(&second);
    let protocol_assignments = first == 192 && second == 0 && third == 0;
    let benchmarking = first == 198 && (second == 18 || second == 19);
    let relay = first == 192 && second == 88 && third == 99;
    !(first == 0
        || first >= 240
        || shared
        || protocol_assignments
        || benchmarking
        || relay
        || address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_documentation())
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let parts = address.segments();
    let embedded = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match parts {
        // IPv4-mapped addresses, and NAT64's well-known prefix: what counts is the address inside.
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        // 6to4 carries an IPv4 address in its second and third part.
        [0x2002, high, low, ..] => embedded(high, low),
        // Teredo, benchmarking and the other protocol assignments of 2001::/23; documentation.
        [0x2001, second, ..] if second < 0x200 || second == 0xdb8 => false,
        [0x3fff, second, ..] if second < 0x1000 => false,
        // Only 2000::/3 is handed out as global unicast; the rest is loopback, local, multicast or reserved.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sockets(addresses: &[&str]) -> Vec<SocketAddr> {
        addresses.iter().map(|address| SocketAddr::new(address.parse().unwrap(), 0)).collect()
    }

    #[test]
    fn special_addresses_are_not_public() {
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.5",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::1",
            "2002:a00:1::",
            "3fff::1",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn ordinary_addresses_are_public() {
        for address in [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.0.1",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.1.0.1",
            "198.20.0.1",
            "2606:4700::1111",
            "2001:4860:4860::8888",
            "2a00:1450::1",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
            "2002:808:808::1",
        ] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn a_listed_name_that_resolves_inwards_is_refused() {
        let guard = GuardedResolver { localhost_listed: true };
        let refused = guard.permitted("cdn.example.com", sockets(&["169.254.169.254"])).unwrap_err();
        assert!(refused.to_string().contains("cdn.example.com resolves to 169.254.169.254"));
        assert!(guard.permitted("cdn.example.com", sockets(&["127.0.0.1", "::1"])).is_err());
        assert!(guard.permitted("a.localhost", sockets(&["127.0.0.1"])).is_err());
    }

    #[test]
    fn public_addresses_beside_special_ones_are_used_alone() {
        let guard = GuardedResolver { localhost_listed: false };
        let permitted = guard.permitted("cdn.example.com", sockets(&["10.0.0.1", "8.8.8.8", "fd00::1"])).unwrap();
        assert_eq!(permitted, sockets(&["8.8.8.8"]));
    }

    #[test]
    fn localhost_is_this_machine_only_when_listed() {
        let listed = GuardedResolver { localhost_listed: true };
        assert_eq!(
            listed.permitted("localhost", sockets(&["127.0.0.1", "10.0.0.1"])).unwrap(),
            sockets(&["127.0.0.1"])
        );
        let unlisted = GuardedResolver { localhost_listed: false };
        assert!(unlisted.permitted("localhost", sockets(&["127.0.0.1"])).is_err());
    }

    #[test]
    fn a_name_without_addresses_is_no_refusal() {
        let guard = GuardedResolver { localhost_listed: false };
        assert!(guard.permitted("cdn.example.com", Vec::new()).unwrap().is_empty());
    }
}

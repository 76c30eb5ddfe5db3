//! Host networks written by hand, for tests.

use std::net::IpAddr;

use super::host::{Address, HostNetwork, Link, LinkFlags, NextHop, Route, RouteKind, Scope};
use crate::addr::Mac;

/// lo as 1, then these from 2, all up.
pub(crate) fn host(names: &[&str]) -> HostNetwork {
    let link = |(index, name): (u32, &&str)| Link {
        index,
        name: (*name).to_owned(),
        mac: Some(Mac::OURS),
        mtu: 1500,
        flags: LinkFlags(LinkFlags::UP | if index == 1 { LinkFlags::LOOPBACK } else { 0 }),
    };
    HostNetwork {
        links: (1..)
            .zip([&"lo"].into_iter().chain(names))
            .map(link)
            .collect(),
        ..HostNetwork::default()
    }
}

pub(crate) fn address(link: u32, local: &str, prefix_len: u8) -> Address {
    Address {
        link,
        local: local.parse().unwrap(),
        prefix_len,
        peer: None,
        broadcast: None,
        scope: Scope::Universe,
        flags: 0,
        metric: None,
    }
}

pub(crate) fn onlink(destination: &str, prefix_len: u8, link: u32) -> Route {
    Route {
        destination: destination.parse().unwrap(),
        prefix_len,
        source: None,
        tos: 0,
        kind: RouteKind::Unicast,
        scope: Scope::Link,
        protocol: 2,
        metric: None,
        prefsrc: None,
        metrics: Vec::new(),
        preference: None,
        hops: vec![NextHop {
            link,
            gateway: None,
            weight: 1,
            onlink: false,
        }],
    }
}

pub(crate) fn default_via(gateway: &str, link: u32, metric: u32) -> Route {
    let mut route = multipath(&[(gateway, link, 1)]);
    route.metric = Some(metric);
    route
}

pub(crate) fn multipath(hops: &[(&str, u32, u16)]) -> Route {
    let gateway: IpAddr = hops[0].0.parse().unwrap();
    let any = if gateway.is_ipv4() { "0.0.0.0" } else { "::" };
    Route {
        scope: Scope::Universe,
        hops: hops
            .iter()
            .map(|&(gateway, link, weight)| NextHop {
                link,
                gateway: Some(gateway.parse().unwrap()),
                weight,
                onlink: false,
            })
            .collect(),
        ..onlink(any, 0, 0)
    }
}

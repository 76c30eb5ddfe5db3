//! wire
pub mod dhcp;
pub mod dhcpv6;

//! What became of datagrams that were sent: the socket's error queue, as ICMP errors for the guest.

use super::Engine;
use super::flow::{Carrier, Name};
use super::io::{Datagram, Io};
use crate::addr::Endpoint;
use crate::flow::id::{FlowId, Key};
use crate::flow::translate;
use crate::icmp::quote::{self, Quote};
use crate::icmp::report::{Kind, Report};
use crate::stats::Drop;
use crate::sys::errqueue::{Origin, Record};

/// Entries read at a time. Left-over ones raise the event again.
const MAX_RECORDS: usize = 64;

impl<S> Engine<S> {
    /// Report a failure that we noticed ourselves, like a router would.
    pub(super) fn report_own<I: Io<Socket = S>>(
        &self,
        io: &mut I,
        datagram: &Datagram<'_>,
        kind: Kind,
    ) {
        let group = self
            .state
            .find(&Key::new(datagram.src, datagram.dst))
            .and_then(|id| self.state.flows.get(id))
            .is_some_and(|flow| flow.group);
        if group || datagram.dst.ip.is_multicast() {
            return;
        }
        let from = translate::router(&self.cfg, datagram.src.is_ipv6()).unwrap_or(datagram.dst.ip);
        io.report(&Report {
            from,
            to: datagram.src.ip,
            kind,
            quote: datagram.l3,
        });
    }

    /// As [`Self::read_errors`], for the carrier of a flow.
    pub(super) fn read_errors_of_flow<I: Io<Socket = S>>(
        &mut self,
        io: &mut I,
        id: FlowId,
    ) -> Option<u32> {
        let carrier = self.state.flows.get(id)?.carrier();
        self.read_errors(io, carrier)
    }

    /// Empty the error queue of a socket or listener, telling the guest what there is to tell. Returns the MTU if a
    /// datagram was found too large when it was sent; whoever sent it tells the guest.
    pub(super) fn read_errors<I: Io<Socket = S>>(
        &mut self,
        io: &mut I,
        carrier: Carrier,
    ) -> Option<u32> {
        let mut mtu = None;
        let mut quote = Quote::new();
        for count in 0..MAX_RECORDS {
            let inner = self.state.inner(carrier)?;
            // Of either family: a listener may have both.
            let Some(record) = io.next_error(inner, quote.payload(true)) else {
                if count == 0 {
                    // An error without an entry (the queue was full, an interface went down) would
                    // otherwise be signalled for ever.
                    io.clear_error(inner);
                }
                break;
            };
            if record.origin == Origin::Local {
                if record.errno == libc::EMSGSIZE {
                    mtu = Some(record.info);
                }
                continue;
            }
            if let Some(id) = self.blamed(io, carrier, &record) {
                if self.is_splice(id) {
                    // Nobody there (any more): whoever sends next starts afresh.
                    io.drop(Drop::SocketError);
                    self.state.remove_flow(io, id);
                } else {
                    self.report_record(io, id, &record, &mut quote);
                }
            }
        }
        mtu
    }

    fn is_splice(&self, id: FlowId) -> bool {
        self.state.flows.key(id).is_some_and(Name::is_splice)
    }

    /// The flow whose datagram a complaint is about.
    fn blamed<I: Io<Socket = S>>(
        &self,
        io: &I,
        carrier: Carrier,
        record: &Record,
    ) -> Option<FlowId> {
        match carrier {
            Carrier::Socket(id) => {
                let connected = self.state.sockets.get(id)?.connected;
                connected.or_else(|| {
                    let guest = self.state.sockets.key(id)?.key.guest;
                    let to = Endpoint::from(record.destination?);
                    self.state.flow_to(&self.cfg, id, guest, to)
                })
            }
            Carrier::Listener(id) => {
                let to = Endpoint::from(record.destination?);
                self.flow_with(&io.seen(), id, to)
            }
        }
    }

    /// Pass a router's complaint on.
    fn report_record<I: Io<Socket = S>>(
        &self,
        io: &mut I,
        id: FlowId,
        record: &Record,
        quote: &mut Quote,
    ) {
        let (Some(kind), Some(flow), Some(name)) = (
            Kind::from_record(record),
            self.state.flows.get(id),
            self.state.flows.key(id),
        ) else {
            return;
        };
        if flow.group {
            return;
        }
        let key = name.key;
        let from =
            translate::complainer(&self.cfg, record.offender, flow.peer.end.ip, key.remote.ip);
        let quote = quote.finish_udp(
            &quote::Header {
                src: key.guest,
                dst: key.remote,
            },
            record.len,
        );
        io.report(&Report {
            from,
            to: key.guest.ip,
            kind,
            quote,
        });
    }
}

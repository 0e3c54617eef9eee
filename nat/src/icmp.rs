//! ICMP and ICMPv6 errors: translated together with the packet that they quote.
//!
//! An error travels against the packet that caused it. That packet was seen by the sender of the error *after* its
//! translation; so what is quoted, turned round, looks like a packet of the error's own direction as it arrives, and the
//! connection is found by it. Turned back into what its sender had sent:
//!
//! ```text
//! 10.0.0.1:40000 > 198.51.100.7:53        a question, as the container sent it (original tuple)
//! 192.0.2.1:61000 > 198.51.100.7:53       as it left
//! 198.51.100.7:53 > 192.0.2.1:61000       as an answer arrives (reply tuple)
//!
//! router > 192.0.2.1 [192.0.2.1:61000 > 198.51.100.7:53]       the error as it arrives
//! router > 10.0.0.1 [10.0.0.1:40000 > 198.51.100.7:53]         as the container gets it
//! ```
//!
//! The outer destination is the quoted source (RFC 5508 REQ-4, REQ-5, REQ-7). The outer source stays in an error from
//! outside; in one from inside it becomes the address that the inside sender is known by, so that no inside address
//! gets out. Type, code and everything else stay.

use crate::conntrack::Connection;
use crate::packet::Packet;
use crate::tuple::{Direction, NetworkId, Tuple};
use crate::verdict::DropReason;

/// The tuple by which the connection of an ICMP error is found.
pub(crate) fn related_tuple(packet: &mut Packet<'_>, network: NetworkId) -> Result<Tuple, DropReason> {
    if packet.fragment().is_some() {
        // Its checksum cannot be verified nor summed anew.
        return Err(DropReason::Unsupported);
    }
    if !packet.icmp_checksum_holds() {
        return Err(DropReason::IcmpChecksum);
    }
    let destination = packet.destination();
    let quote = packet.quote().ok_or(DropReason::IcmpQuote)?;
    let quoted = quote.tuple(network).ok_or(DropReason::IcmpQuote)?;
    // An error goes to the sender of what it quotes.
    if quoted.source.address != destination {
        return Err(DropReason::IcmpQuote);
    }
    Ok(quoted.reversed(network))
}

/// Translates an error that travels in `direction` of `connection`.
pub(crate) fn translate(packet: &mut Packet<'_>, connection: &Connection, direction: Direction) {
    let arriving = connection.tuple(direction);
    let sent = connection.tuple(direction.reverse());
    if let Some(mut quote) = packet.quote() {
        quote.translate(sent.source, sent.destination);
    }
    let from_outside = arriving.network == NetworkId::OUTSIDE;
    // Of the one that the quoted packet was sent to, the receiver knows only the address that it was sent to.
    let source = if from_outside && packet.source() != arriving.source.address {
        packet.source()
    } else {
        sent.destination.address
    };
    packet.translate_error(source, sent.source.address);
    packet.renew_icmp_checksum();
}

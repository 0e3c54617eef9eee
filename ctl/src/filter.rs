//! Filter expressions of `swctl capture`: the usual primitives of pcap-filter(7), with its precedence.
//!
//! ```text
//! [src|dst] host ADDRESS      [src|dst] net CIDR      [tcp|udp] [src|dst] port N      ... portrange N-N
//! ether [src|dst] host MAC    vlan [N]    broadcast    multicast    less N    greater N
//! tcp  udp  icmp  icmp6  arp  ip  ip6     and or not && || ! ( )
//! ```
//! `and` and `or` bind alike, from left to right; `not` binds closest. Address and port belong to the innermost headers
//! that are looked at: below VLAN tags, above no tunnel.

use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use thiserror::Error;

/// Longest expression in bytes: bounds the depth that it is evaluated to.
pub const MAX_LEN: usize = 1024;

/// Which end of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Side {
    /// Either.
    #[default]
    Any,
    /// The sender.
    Source,
    /// The receiver.
    Destination,
}

/// An expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// ARP.
    Arp,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// An IP protocol, by its number.
    Protocol(u8),
    /// An address in IP or ARP.
    Host(Side, IpNet),
    /// A TCP, UDP or SCTP port between these.
    Port(Side, u16, u16),
    /// A MAC address.
    Ether(Side, [u8; 6]),
    /// A VLAN tag, with this number where given.
    Vlan(Option<u16>),
    /// To the broadcast address.
    Broadcast,
    /// To a group, broadcast included.
    Multicast,
    /// At least this long.
    Greater(u32),
    /// At most this long.
    Less(u32),
    /// The opposite.
    Not(Box<Self>),
    /// Both.
    And(Box<Self>, Box<Self>),
    /// One of them.
    Or(Box<Self>, Box<Self>),
}

/// What is wrong with an expression.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum FilterError {
    /// Too long.
    #[error("the filter is longer than {MAX_LEN} bytes")]
    Long,
    /// Ends too soon.
    #[error("the filter ends where {0} is missing")]
    End(&'static str),
    /// A word that means nothing there.
    #[error(
        "'{0}' means nothing here; a filter is made of host, net, port, portrange (with src or dst before), ether host, tcp, udp, icmp, icmp6, arp, ip, ip6, vlan, broadcast, multicast, less, greater, and, or, not and parentheses"
    )]
    Word(String),
    /// Not a value.
    #[error("'{0}' is not {1}")]
    Value(String, &'static str),
    /// An open parenthesis.
    #[error("a parenthesis is not closed")]
    Open,
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        if text.len() > MAX_LEN {
            return Err(FilterError::Long);
        }
        let words = words(text);
        let mut parser = Parser { words: &words, at: 0 };
        let filter = parser.expression()?;
        match parser.next() {
            None => Ok(filter),
            Some(word) => Err(FilterError::Word(word.to_owned())),
        }
    }
}

/// Blanks separate words, parentheses and `!` are words by themselves.
fn words(text: &str) -> Vec<String> {
    let mut spaced = String::new();
    for c in text.chars() {
        match c {
            '(' | ')' | '!' => spaced.extend([' ', c, ' ']),
            c => spaced.push(c),
        }
    }
    spaced.replace("&&", " and ").replace("||", " or ").split_whitespace().map(str::to_owned).collect()
}

struct Parser<'a> {
    words: &'a [String],
    at: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.words.get(self.at).map(String::as_str)
    }

    fn next(&mut self) -> Option<&'a str> {
        let word = self.peek()?;
        self.at += 1;
        Some(word)
    }

    fn takes(&mut self, word: &str) -> bool {
        let is = self.peek() == Some(word);
        self.at += usize::from(is);
        is
    }

    fn expression(&mut self) -> Result<Filter, FilterError> {
        let mut left = self.term()?;
        loop {
            if self.takes("and") {
                left = Filter::And(Box::new(left), Box::new(self.term()?));
            } else if self.takes("or") {
                left = Filter::Or(Box::new(left), Box::new(self.term()?));
            } else {
                return Ok(left);
            }
        }
    }

    fn term(&mut self) -> Result<Filter, FilterError> {
        if self.takes("not") || self.takes("!") {
            return Ok(Filter::Not(Box::new(self.term()?)));
        }
        if self.takes("(") {
            let inner = self.expression()?;
            return if self.takes(")") { Ok(inner) } else { Err(FilterError::Open) };
        }
        self.primitive()
    }

    fn primitive(&mut self) -> Result<Filter, FilterError> {
        let word = self.next().ok_or(FilterError::End("a primitive"))?;
        let protocol = match word {
            "arp" => Some(Filter::Arp),
            "ip" => Some(Filter::Ip),
            "ip6" => Some(Filter::Ip6),
            "icmp" => Some(Filter::Protocol(1)),
            "tcp" => Some(Filter::Protocol(6)),
            "udp" => Some(Filter::Protocol(17)),
            "icmp6" => Some(Filter::Protocol(58)),
            "sctp" => Some(Filter::Protocol(132)),
            _ => None,
        };
        if let Some(protocol) = protocol {
            // 'tcp dst port 80' and 'arp host 10.0.0.1' are both things at once.
            return match self.peek() {
                Some("src" | "dst" | "host" | "net" | "port" | "portrange") => {
                    let what = self.qualified()?;
                    Ok(Filter::And(Box::new(protocol), Box::new(what)))
                }
                _ => Ok(protocol),
            };
        }
        match word {
            "src" | "dst" | "host" | "net" | "port" | "portrange" => {
                self.at -= 1;
                self.qualified()
            }
            "ether" => {
                let side = self.side();
                self.takes("host");
                let text = self.value("a MAC address")?;
                mac(text).map(|mac| Filter::Ether(side, mac))
            }
            "vlan" => {
                let number = self.peek().and_then(|w| w.parse().ok());
                self.at += usize::from(number.is_some());
                Ok(Filter::Vlan(number))
            }
            "broadcast" => Ok(Filter::Broadcast),
            "multicast" => Ok(Filter::Multicast),
            "less" => self.number().map(Filter::Less),
            "greater" => self.number().map(Filter::Greater),
            word => Err(FilterError::Word(word.to_owned())),
        }
    }

    fn side(&mut self) -> Side {
        if self.takes("src") {
            Side::Source
        } else if self.takes("dst") {
            Side::Destination
        } else {
            Side::Any
        }
    }

    fn qualified(&mut self) -> Result<Filter, FilterError> {
        let side = self.side();
        match self.next().ok_or(FilterError::End("host, net or port"))? {
            "host" => {
                let text = self.value("an address")?;
                let address: IpAddr =
                    text.parse().map_err(|_| FilterError::Value(text.to_owned(), "an address"))?;
                Ok(Filter::Host(side, address.into()))
            }
            "net" => {
                let text = self.value("a subnet")?;
                let net = text.parse().map_err(|_| {
                    FilterError::Value(text.to_owned(), "a subnet; write one like 172.18.0.0/16")
                })?;
                Ok(Filter::Host(side, net))
            }
            "port" => {
                let text = self.value("a port")?;
                let port = port(text)?;
                Ok(Filter::Port(side, port, port))
            }
            "portrange" => {
                let text = self.value("a range of ports")?;
                let wrong = || FilterError::Value(text.to_owned(), "a range of ports; write one like 80-90");
                let (first, last) = text.split_once('-').ok_or_else(wrong)?;
                let (first, last) = (port(first)?, port(last)?);
                if first > last { Err(wrong()) } else { Ok(Filter::Port(side, first, last)) }
            }
            word => Err(FilterError::Word(word.to_owned())),
        }
    }

    fn value(&mut self, what: &'static str) -> Result<&'a str, FilterError> {
        self.next().ok_or(FilterError::End(what))
    }

    fn number(&mut self) -> Result<u32, FilterError> {
        let text = self.value("a number")?;
        text.parse().map_err(|_| FilterError::Value(text.to_owned(), "a number of bytes"))
    }
}

fn port(text: &str) -> Result<u16, FilterError> {
    text.parse().map_err(|_| FilterError::Value(text.to_owned(), "a port; ports are numbers up to 65535"))
}

fn mac(text: &str) -> Result<[u8; 6], FilterError> {
    let wrong = || FilterError::Value(text.to_owned(), "a MAC address; write one like 02:00:00:00:00:01");
    let mut parts = text.split(':').map(|part| match part.len() {
        2 => u8::from_str_radix(part, 16).ok(),
        _ => None,
    });
    let mut mac = [0; 6];
    for byte in &mut mac {
        *byte = parts.next().flatten().ok_or_else(wrong)?;
    }
    if parts.next().is_some() { Err(wrong()) } else { Ok(mac) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Filter {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn primitives() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        assert_eq!(parse("host 10.0.0.1"), Filter::Host(Side::Any, net("10.0.0.1/32")));
        assert_eq!(parse("src net fd00::/64"), Filter::Host(Side::Source, net("fd00::/64")));
        assert_eq!(parse("dst port 53"), Filter::Port(Side::Destination, 53, 53));
        assert_eq!(parse("portrange 80-90"), Filter::Port(Side::Any, 80, 90));
        assert_eq!(
            parse("ether dst 02:00:00:00:00:0a"),
            Filter::Ether(Side::Destination, [2, 0, 0, 0, 0, 10])
        );
        assert_eq!(parse("vlan"), Filter::Vlan(None));
        assert_eq!(parse("tcp port 80"), parse("tcp and port 80"));
        assert_eq!(parse("arp host 10.0.0.1"), parse("arp and host 10.0.0.1"));
    }

    #[test]
    fn and_and_or_bind_alike_and_not_binds_closest() {
        assert_eq!(parse("arp or ip and tcp"), parse("(arp or ip) and tcp"));
        assert_eq!(parse("not arp and ip"), parse("(not arp) and ip"));
        assert_eq!(parse("!(arp||ip)&&tcp"), parse("not (arp or ip) and tcp"));
        assert_eq!(parse("vlan 7 and tcp"), parse("(vlan 7) and (tcp)"));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("", "ends where a primitive"),
            ("host", "ends where an address"),
            ("host example.org", "'example.org' is not an address"),
            ("tcp 80", "'80' means nothing here"),
            ("port http", "ports are numbers"),
            ("portrange 9-1", "like 80-90"),
            ("(tcp", "not closed"),
            ("tcp)", "')' means nothing"),
            ("ether host 02:00", "MAC address"),
            ("less x", "'x' is not a number"),
            ("net 10.0.0.0", "'10.0.0.0' is not a subnet"),
        ] {
            let said = text.parse::<Filter>().expect_err(text).to_string();
            assert!(said.contains(part), "{text}: {said}");
        }
        assert_eq!("( ".repeat(600).parse::<Filter>(), Err(FilterError::Long));
        assert_eq!("(".repeat(1000).parse::<Filter>(), Err(FilterError::End("a primitive")));
    }
}

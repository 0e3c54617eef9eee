//! Names by TCP (RFC 7766): the connections of containers to their gateways, port 53. Pure but for the time that it is told.
//!
//! A connection is a [`Stack`] of its own, found by the port and both ends of what comes in. A client's SYN makes it, if there is room;
//! what belongs to none gets a reset. Questions are taken as they come, several at a time, and answered as answers come: the client tells
//! them apart by their ids. While a client has too many under way, or does not take its answers, nothing more is read, and its window
//! closes. The connection ends when the client has ended it and got its answers, when nothing happens on it for a while, and when it
//! makes no sense or takes too much.
//!
//! Bounds: [`PER_PORT`] connections of a port, [`IN_ALL`] altogether. At the latter whoever has most gives one up for one who has
//! fewer, so nobody can keep the others out. Each holds some 20 KiB, and [`UNSENT`] of answers at most.

mod stack;

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nat::Time;

use self::stack::Stack;
use super::ends::Ends;
use crate::frame::ETHERNET_HEADER;
use crate::names::stream::{Questions, framed};
use crate::services::{Answer, Asked, Asker, Tcp};
use crate::snapshot::{NetworkId, PortId};

/// Connections of a port.
pub(super) const PER_PORT: usize = 16;
/// Connections altogether.
pub(super) const IN_ALL: usize = 256;
/// How long a connection is kept on which nothing happens: RFC 7766 section 6.2.3 has it in the order of seconds.
pub(super) const IDLE: Duration = Duration::from_secs(10);
/// Questions of a connection that may be under way.
pub(super) const PIPELINE: usize = 16;
/// Bytes of answers that a client may leave untaken before it is cut off: two of the longest there are.
pub(super) const UNSENT: usize = 2 * (65_535 + 2);
/// Bytes of answers left untaken beyond which nothing more is read.
const ENOUGH: usize = 16 << 10;

/// What tells a connection from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    port: PortId,
    gateway: SocketAddr,
    client: SocketAddr,
}

/// The way back of an answer: to this connection, and not to a later one with the same ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    key: Key,
    serial: u64,
}

/// A question, who asks, and the way back.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) network: NetworkId,
    pub(super) port: PortId,
    pub(super) bytes: Vec<u8>,
    pub(super) way: Way,
}

#[derive(Debug)]
struct Connection {
    serial: u64,
    network: NetworkId,
    asker: Asker,
    ends: Ends,
    stack: Stack,
    questions: Questions,
    /// Answers for which the stack has no room yet.
    outward: Vec<u8>,
    /// Questions that are under way.
    asking: usize,
    /// When something happened last: a question came, or part of an answer was taken.
    since: Time,
    closing: bool,
    /// When it is to be looked at again; none: when something comes.
    due: Option<Time>,
}

/// All connections.
#[derive(Debug, Default)]
pub(super) struct Connections {
    table: HashMap<Key, Connection, foldhash::fast::RandomState>,
    /// Those with something to do.
    stirred: Vec<Key>,
    said: Vec<Answer>,
    serial: u64,
    opened: u64,
    refused: u64,
}

impl Connections {
    /// How many there are, have been, and had no room.
    pub(super) fn numbers(&self) -> Tcp {
        Tcp { open: self.table.len() as u64, opened: self.opened, refused: self.refused }
    }

    /// A segment for a gateway. `mtu` is the network's, `opens` as [`Carried::Segment`](super::ends::Carried::Segment) has it.
    pub(super) fn receive(&mut self, asked: &Asked, ends: Ends, opens: bool, mtu: u32, now: Time) {
        let Some(packet) = asked.bytes.get(ETHERNET_HEADER..) else { return };
        let key = Key { port: asked.from.port, gateway: ends.gateway(), client: ends.client() };
        // A port's number may be another's by now.
        let same = |known: &Connection| Arc::ptr_eq(&known.asker.counters, &asked.from.counters);
        if self.table.get(&key).is_some_and(|known| !same(known)) {
            self.table.remove(&key);
        }
        if let Some(known) = self.table.get_mut(&key) {
            known.stack.receive(packet);
        } else if opens && self.make_room(key.port, now) {
            self.opened += 1;
            self.serial += 1;
            let seed = std::hash::RandomState::new().hash_one(self.serial);
            let mut stack = Stack::new(key.gateway, mtu, seed, now);
            stack.receive(packet);
            let new = Connection {
                serial: self.serial,
                network: asked.network,
                asker: asked.from.clone(),
                ends,
                stack,
                questions: Questions::default(),
                outward: Vec::new(),
                asking: 0,
                since: now,
                closing: false,
                due: None,
            };
            self.table.insert(key, new);
        } else {
            self.refused += u64::from(opens);
            if let Some(reset) = stack::refuse(key.gateway.ip(), packet, now) {
                self.said.push(Answer { to: asked.from.clone(), bytes: ends.frame(&reset) });
            }
            return;
        }
        self.stirred.push(key);
    }

    /// Whether a port may have one more; if need be, another gives one up.
    fn make_room(&mut self, port: PortId, now: Time) -> bool {
        let mut counts = HashMap::<PortId, usize>::new();
        for key in self.table.keys() {
            *counts.entry(key.port).or_default() += 1;
        }
        let own = counts.get(&port).copied().unwrap_or_default();
        if own >= PER_PORT {
            return false;
        }
        if self.table.len() < IN_ALL {
            return true;
        }
        let Some((greedy, most)) = counts.into_iter().max_by_key(|(_, count)| *count) else { return false };
        if most <= own + 1 {
            return false;
        }
        let theirs = self.table.iter().filter(|(key, _)| key.port == greedy);
        let Some(oldest) = theirs.min_by_key(|(_, c)| c.since).map(|(key, _)| *key) else { return false };
        if let Some(mut connection) = self.table.remove(&oldest) {
            connection.stack.abort();
            connection.stack.poll(now);
            self.said.extend(connection.said());
        }
        true
    }

    /// A question is answered; none, if it is one without an answer. Nothing happens if the connection has ended meanwhile; it ends if the
    /// answer (`Some(None)`) cannot be written, or the client takes too few.
    pub(super) fn answer(&mut self, way: Way, message: Option<Option<Vec<u8>>>) {
        let Some(connection) = self.table.get_mut(&way.key).filter(|c| c.serial == way.serial) else {
            return;
        };
        connection.asking = connection.asking.saturating_sub(1);
        match message.map(|bytes| framed(&bytes?)) {
            None => {}
            Some(Some(bytes)) if connection.outward.len() + bytes.len() <= UNSENT => {
                connection.outward.extend(bytes);
            }
            Some(_) => connection.stack.abort(),
        }
        self.stirred.push(way.key);
    }

    /// Does what is to be done: gives the questions that have come. Again, until there are none.
    pub(super) fn work(&mut self, now: Time) -> Vec<Question> {
        let due = self.table.iter().filter(|(_, c)| c.due.is_some_and(|due| due <= now)).map(|(key, _)| *key);
        self.stirred.extend(due);
        self.stirred.sort_unstable_by_key(|key| (key.port, key.client, key.gateway));
        self.stirred.dedup();
        let mut questions = Vec::new();
        for key in self.stirred.drain(..) {
            let Some(connection) = self.table.get_mut(&key) else { continue };
            let (network, serial) = (connection.network, connection.serial);
            let come = connection.work(now).into_iter();
            let way = Way { key, serial };
            questions.extend(come.map(|bytes| Question { network, port: key.port, bytes, way }));
            self.said.extend(connection.said());
            if connection.stack.is_over() {
                self.table.remove(&key);
            }
        }
        questions
    }

    /// Frames for clients.
    pub(super) fn said(&mut self) -> impl Iterator<Item = Answer> + '_ {
        self.said.drain(..)
    }

    /// When there is something to do by itself.
    pub(super) fn due(&self) -> Option<Time> {
        self.table.values().filter_map(|connection| connection.due).min()
    }
}

impl Connection {
    /// Takes what has come, sends what there is to send, ends what is to end. Gives the questions.
    fn work(&mut self, now: Time) -> Vec<Vec<u8>> {
        let waited_for = self.stack.unsent();
        self.stack.poll(now);
        let mut moved = self.stack.unsent() < waited_for;
        let questions = self.read();
        self.asking += questions.len();
        let written = self.stack.write(&self.outward);
        self.outward.drain(..written);
        moved |= written > 0 || !questions.is_empty();
        if moved {
            self.since = now;
        }
        let left = self.outward.len() + self.stack.unsent();
        if self.asking == 0 {
            if now.since(self.since) >= IDLE {
                if self.closing || left > 0 || self.stack.is_half_open() {
                    self.stack.abort();
                } else {
                    self.close(now);
                }
            } else if self.outward.is_empty() && self.stack.is_heard_out() {
                self.close(now);
            }
        }
        self.stack.poll(now);
        // Resolvers answer in time, or somebody else in their name: then it goes on.
        let idle = (self.asking == 0).then(|| self.since + IDLE);
        self.due = [self.stack.due(now), idle].into_iter().flatten().min();
        questions
    }

    fn close(&mut self, now: Time) {
        self.closing = true;
        self.since = now;
        self.stack.close();
    }

    /// As many questions as may be under way, of what has come.
    fn read(&mut self) -> Vec<Vec<u8>> {
        let mut come = Vec::new();
        while !self.closing && self.asking + come.len() < PIPELINE && self.outward.len() < ENOUGH {
            match self.questions.take() {
                Ok(Some(question)) => come.push(question),
                Ok(None) => {
                    let questions = &mut self.questions;
                    if self.stack.read(|bytes| questions.push(bytes)) == 0 {
                        break;
                    }
                }
                Err(_) => {
                    self.stack.abort();
                    break;
                }
            }
        }
        come
    }

    fn said(&mut self) -> Vec<Answer> {
        let (asker, ends) = (&self.asker, &self.ends);
        self.stack.sent().map(|packet| Answer { to: asker.clone(), bytes: ends.frame(&packet) }).collect()
    }
}

#[cfg(test)]
mod tests;

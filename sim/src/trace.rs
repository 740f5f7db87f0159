//! The story of one call, request or worker, told when a seed is run a second time.

use std::collections::VecDeque;

use bytes::Bytes;
use zex_core::Time;
use zex_spec::{Address, Body, Key, Message, Packet, PeerId, Steer};

use crate::ledger::Subject;
use crate::net::{Ez, Letter};
use crate::scenario::START;

/// Lines about the subject that are kept: the last ones tell what led to the violation.
const LINES: usize = 40;
/// Lines about faults that are kept.
const FAULTS: usize = 30;

/// The story so far.
#[derive(Debug)]
pub(crate) struct Trace {
    subject: Subject,
    until: Time,
    told: u64,
    lines: VecDeque<(u64, String)>,
    faults: VecDeque<(u64, String)>,
}

impl Trace {
    /// A story that ends at this time.
    pub(crate) fn new(subject: Subject, until: Time) -> Self {
        Self { subject, until, told: 0, lines: VecDeque::new(), faults: VecDeque::new() }
    }

    pub(crate) fn lines(self) -> Vec<String> {
        let mut all: Vec<_> = self.lines.into_iter().chain(self.faults).collect();
        all.sort();
        all.into_iter().map(|(_, line)| line).collect()
    }

    pub(crate) fn say(&mut self, now: Time, text: &str, fault: bool) {
        if now > self.until {
            return;
        }
        let us = now.since(START).as_micros();
        let line = format!("{:>6}.{:03} ms  {text}", us / 1_000, us % 1_000);
        self.told += 1;
        let (lines, most) =
            if fault { (&mut self.faults, FAULTS) } else { (&mut self.lines, LINES) };
        lines.push_back((self.told, line));
        if lines.len() > most {
            lines.pop_front();
        }
    }

    /// Whether a letter has to do with the subject. `peer`: the worker at the letter's edge.
    pub(crate) fn concerns(&self, letter: &Letter, peer: Option<PeerId>) -> bool {
        match (&self.subject, letter) {
            (Subject::Call(key), Letter::Native(packet)) => key_of(&packet.message) == Some(*key),
            (Subject::Request(id), letter) => ez_id_of(letter).is_some_and(|of| *of == *id),
            (Subject::Assignment(owner, number), letter) => address_of(letter)
                .and_then(|address| Address::decode(address).ok())
                .is_some_and(|address| address.owner == *owner && address.number == *number),
            (Subject::Worker(worker), Letter::Native(packet)) => match &packet.message {
                Message::Share(share) => share.counts.iter().any(|(id, _)| id == worker),
                Message::Heartbeat(beat) => {
                    let holds = beat.held.iter().any(|held| !held.numbers.is_empty());
                    peer == Some(*worker) && holds
                }
                Message::Chunk(_) | Message::Credit(_) => false,
                _ => packet.peer == *worker || peer == Some(*worker),
            },
            (Subject::Worker(worker), Letter::Ez(_)) => peer == Some(*worker),
            (Subject::Call(_) | Subject::Mesh, _) => false,
        }
    }
}

/// The key that a message is about.
pub(crate) fn key_of(message: &Message) -> Option<Key> {
    Some(match message {
        Message::Call(call) => call.key,
        Message::Cancel(cancel) => cancel.key,
        Message::Credit(credit) => credit.key,
        Message::Accepted(accepted) => accepted.key,
        Message::Reply(reply) => reply.key,
        Message::Chunk(chunk) => chunk.key,
        Message::Work(work) => work.key,
        Message::Busy(busy) => busy.key,
        Message::Ask(ask) => ask.key,
        Message::Answer(answer) => answer.key,
        _ => return None,
    })
}

fn ez_id_of(letter: &Letter) -> Option<&Bytes> {
    match letter {
        Letter::Native(packet) => match &packet.message {
            Message::EzCall(call) => Some(&call.id),
            Message::EzAnswer(answer) => Some(&answer.id),
            Message::EzWork(work) => Some(&work.id),
            Message::EzReply(reply) => Some(&reply.id),
            _ => None,
        },
        Letter::Ez(Ez::Request { id, .. } | Ez::Answer { id, .. } | Ez::Work { id, .. }) => {
            Some(id)
        }
        Letter::Ez(Ez::Reply { id, .. }) => Some(id),
        Letter::Ez(Ez::Beat { .. }) => None,
    }
}

/// The address of the work that a message is about.
pub(crate) fn address_of(letter: &Letter) -> Option<&Bytes> {
    Some(match letter {
        Letter::Native(packet) => match &packet.message {
            Message::Work(work) => &work.address,
            Message::Busy(busy) => &busy.address,
            Message::Reply(reply) => &reply.address,
            Message::EzWork(work) => &work.address,
            Message::EzReply(reply) => &reply.address,
            _ => return None,
        },
        Letter::Ez(Ez::Work { address, .. } | Ez::Reply { address, .. }) => address,
        Letter::Ez(_) => return None,
    })
}

/// A letter in a few words.
pub(crate) fn describe(letter: &Letter) -> String {
    match letter {
        Letter::Native(packet) => describe_packet(packet),
        Letter::Ez(Ez::Request { service, body, .. }) => {
            format!("ez request {} {body:?}", String::from_utf8_lossy(service))
        }
        Letter::Ez(Ez::Answer { body, .. }) => format!("ez answer {body:?}"),
        Letter::Ez(Ez::Beat { service }) => {
            format!("ez beat {}", String::from_utf8_lossy(service))
        }
        Letter::Ez(Ez::Work { address, .. }) => format!("ez work {}", describe_address(address)),
        Letter::Ez(Ez::Reply { address, .. }) => format!("ez reply {}", describe_address(address)),
    }
}

fn describe_packet(packet: &Packet) -> String {
    let bounced = if packet.bounced { "bounced " } else { "" };
    let bytes = match &packet.body {
        Body::Bytes(bytes) if bytes.is_empty() => String::new(),
        body => format!(" +{} B", body.len()),
    };
    let detail = match &packet.message {
        Message::Call(call) => format!(
            "{} attempt {} age {} ms left {} ms options {}",
            call.service, call.attempt, call.age_ms, call.deadline_ms, call.options.0
        ),
        Message::Work(work) => {
            format!("{} attempt {}", describe_address(&work.address), work.attempt)
        }
        Message::Reply(reply) => {
            format!("{} code {} {}", describe_address(&reply.address), reply.code, reply.message)
        }
        Message::Chunk(chunk) => format!("number {}", chunk.number),
        Message::Busy(busy) => describe_address(&busy.address),
        Message::Ask(ask) => format!("attempt {}, up to number {}", ask.attempt, ask.number),
        Message::Answer(answer) => format!("knowledge {}", answer.knowledge.0),
        Message::Register(register) => {
            format!("version {} {:?}", register.version, register.services)
        }
        Message::Heartbeat(beat) => format!("version {} held {:?}", beat.version, beat.held),
        Message::Share(share) => {
            let kind = if share.snapshot { "snapshot" } else { "share" };
            format!("{} {kind} {} {:?}", steer(packet), share.sequence, share.counts)
        }
        Message::EzWork(work) => describe_address(&work.address),
        Message::EzReply(reply) => describe_address(&reply.address),
        _ => String::new(),
    };
    format!("{bounced}{} {detail}{bytes}", packet.message.name())
}

fn describe_address(address: &Bytes) -> String {
    match Address::decode(address) {
        Ok(address) => format!("[{} no {}]", address.owner, address.number),
        Err(_) => "[]".to_owned(),
    }
}

fn steer(packet: &Packet) -> String {
    match packet.steer {
        Steer::Owner(owner) => format!("of {owner}"),
        steer => format!("{steer:?}"),
    }
}

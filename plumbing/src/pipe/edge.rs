//! The in pipe and the worker pipe: peers of both dialects on one side, brokers on the other.
//!
//! ```text
//!  peers.recv ─┬─ native: read prefix, stamp in place ─┬─ core decides ─ brokers.send
//!              └─ EZ: wrap ────────────────────────────┘       └─ bounce ─ peers.send
//!  brokers.recv ─┬─ beat ─ core, PipeBeat
//!                ├─ native: read prefix ─ peers.send, as it is
//!                └─ Ez…: unwrap ───────── peers.send
//! ```
//!
//! Native messages are passed on as the frames that libzmq received, without a copy.
//! `ends` sees when a peer's or a broker's connection ends; `connections` knows whose it was.
//! `ez` is the port for old peers beside keys. `local` serves a broker in the pipe's own thread.

mod connections;
mod ends;
mod ez;
mod guard;
mod local;
mod rates;

use std::time::{Duration, Instant};

use bytes::Bytes;
use zex_core::Time;
use zex_core::pipe::{Pipe, Route, Side};
use zex_spec::{
    Address, Body, BrokerDown, BrokerId, Dialect, EzBeat, EzCall, EzReply, Flags, Incarnation,
    Malformed, Message, PREFIX_BYTES, Packet, PeerId, PipeBeat, PipeId, Prefix, ServiceHash, Steer,
    ez as dialect, mark_bounced, stamp,
};

use self::connections::Connections;
use self::ez::EzPort;
use self::guard::Guard;
use self::local::Local;
use self::rates::Rates;
use super::{IDLE_MS, Limits, PipeSettings, Report, Taken, Wrong, broker_of, burst};
use crate::context::Towards;
use crate::monitor::descriptor_of;
use crate::socket::into_bytes;
use crate::{Clock, Context, Error, Mailbox, Sent, Socket, wait};

/// Clients told of a dead broker in one turn; in between the pipe goes on working.
const TELLINGS_A_TURN: usize = 128;
/// How often one message is steered anew because the broker it was steered to is found dead.
const MAX_STEERINGS: usize = 8;

/// A pipe that drains ends when nothing has passed for so long, ms: by then a client that waits has
/// sent its call again by another pipe (that takes 1.125 s), or knows that a broker has it.
const QUIET_MS: u64 = 1_200;
/// It ends then at the latest, ms: a call that is given back by every pipe for 5 s fails, and the
/// pipe may be the only one and needs time to start again.
const DRAIN_MAX_MS: u64 = 3_000;

/// The bound sockets of an in pipe or a worker pipe.
pub(super) struct Ports {
    pub(super) peers: Socket,
    pub(super) brokers: Socket,
    pub(super) ez: Option<Socket>,
}

impl Ports {
    pub(super) fn bind(
        context: &Context,
        settings: &PipeSettings,
        side: Side,
    ) -> Result<Self, Error> {
        let towards = Towards::peers_of(side);
        let ez = settings.ez_endpoint.as_deref();
        Ok(Self {
            peers: context.watched_router(&settings.peers_endpoint, towards)?,
            brokers: context.watched_router(&settings.brokers_endpoint, Towards::Brokers)?,
            ez: ez.map(|endpoint| context.plain_router(endpoint, towards)).transpose()?,
        })
    }
}

/// The thread of an in pipe or a worker pipe.
pub(super) struct Edge {
    id: PipeId,
    pipe: Pipe,
    peers: Socket,
    brokers: Socket,
    /// A port for old peers alone.
    ez: Option<EzPort>,
    /// Where peers need a key.
    guard: Option<Guard>,
    /// How much each peer has sent.
    rates: Rates,
    peer_ends: Connections,
    broker_ends: Connections,
    /// When ends were last looked for.
    looked: Time,
    /// When something last passed that is no beat.
    passed: Time,
    /// When it began to drain.
    draining: Option<Time>,
    report: Report,
    clock: Clock,
    now: Time,
    local: Option<Local>,
}

/// A message's frames, without routing id.
type Frames = Vec<zmq::Message>;

/// What became of a message for the brokers.
enum Steered {
    Taken,
    /// Nobody can take it now; the frames are still there.
    Refused,
    OutOfPlace,
}

impl Edge {
    pub(super) fn new(
        side: Side,
        id: PipeId,
        Ports { peers, brokers, ez }: Ports,
        limits: Limits,
        report: Report,
    ) -> Self {
        let clock = Clock::new();
        let now = clock.now();
        let pipe = Pipe::new(side, now);
        let guard = peers.gate().cloned().map(Guard::new);
        Self {
            id,
            pipe,
            peers,
            brokers,
            ez: ez.map(|socket| EzPort::new(socket, limits.connections)),
            guard,
            rates: Rates::new(limits.peer_rate),
            peer_ends: Connections::new(limits.connections),
            broker_ends: Connections::new(limits.connections),
            looked: now,
            passed: now,
            draining: None,
            report,
            clock,
            now,
            local: None,
        }
    }

    pub(super) fn run(mut self, stop: &Mailbox<()>) -> Result<(), Error> {
        while !stop.is_closed() && self.drained_at().is_none_or(|at| self.now < at) {
            if stop.try_recv().is_some() && self.draining.is_none() {
                self.draining = Some(self.clock.now());
                self.pipe.drain();
            }
            if !self.turn() {
                let sockets: Vec<&Socket> = self.sockets().collect();
                wait(&sockets, stop, self.deadline())?;
            }
        }
        Ok(())
    }

    /// When it will have drained: nothing has passed for a while, or it is time.
    fn drained_at(&self) -> Option<Time> {
        let since = self.draining?;
        let quiet = self.passed.max(since).plus_ms(QUIET_MS);
        Some(quiet.min(since.plus_ms(DRAIN_MAX_MS)))
    }

    /// Takes in a burst from each side. Whether there was anything.
    pub(super) fn turn(&mut self) -> bool {
        self.now = self.clock.now();
        // Brokers first: beats before what is steered by them.
        let mut busy = burst(self, |edge| &edge.brokers, Self::take_from_broker);
        busy |= burst(self, |edge| &edge.peers, Self::take_from_peer);
        if self.ez.is_some() {
            busy |= burst(self, Self::ez_socket, Self::take_from_ez);
        }
        busy |= self.watch();
        self.pipe.tick(self.now);
        busy |= self.tell_clients();
        self.report.stats.brokers = self.pipe.brokers().count() as u64;
        self.report.publish();
        busy
    }

    /// What to wait for between two turns.
    pub(super) fn sockets(&self) -> impl Iterator<Item = &Socket> {
        let ez = self.ez.as_ref().map(|port| &port.socket);
        [&self.peers, &self.brokers].into_iter().chain(ez)
    }

    /// When the next turn is due at the latest.
    pub(super) fn deadline(&self) -> Instant {
        let idle = Instant::now() + Duration::from_millis(IDLE_MS);
        let due = [self.pipe.poll_timeout(), self.watch_timeout(), self.drained_at()];
        let due = due.into_iter().flatten().min().map(|time| self.clock.instant(time));
        due.map_or(idle, |due| due.min(idle))
    }

    fn take_from_peer(&mut self, taken: Taken<'_>) {
        self.report.stats.from_peers += 1;
        let frames = match taken {
            Ok(frames) => frames,
            Err(malformed) => return self.report.malformed(&[], &malformed),
        };
        // A ROUTER puts the routing id in front of every message.
        let who = frames.remove(0);
        let outcome = match (frames.first(), self.pipe.side()) {
            // Old peers have no keys: what looks like one is not let in by what it says.
            (Some(first), _) if first.is_empty() && self.guard.is_some() => {
                Err(Wrong::EzBehindGate)
            }
            (Some(first), _) if first.is_empty() && self.ez.is_some() => Err(Wrong::EzElsewhere),
            (Some(first), Side::In) if first.is_empty() => self.ez_request(&who, frames),
            (Some(first), Side::Worker) if first.is_empty() => self.ez_from_worker(&who, frames),
            _ => self.native_from_peer(&who, frames),
        };
        self.tell_wrong(&who, outcome);
    }

    /// Counts what a peer had better not have said.
    fn tell_wrong(&mut self, who: &[u8], outcome: Result<(), Wrong>) {
        match outcome {
            Ok(()) => {}
            Err(wrong) if wrong.is_refusal() => self.report.refused(who, &wrong),
            Err(wrong) => self.report.malformed(who, &wrong),
        }
    }

    fn native_from_peer(&mut self, who: &[u8], frames: &mut Frames) -> Result<(), Wrong> {
        let Some(first) = frames.first_mut() else {
            return Err(Malformed::FrameCount(0).into());
        };
        let prefix = Prefix::decode(first)?;
        let need = 16;
        let peer = who.try_into().map(PeerId);
        let peer = peer.map_err(|_| Wrong::RoutingId { who: "peer", need, len: who.len() })?;
        if let Some(guard) = &mut self.guard
            && let Err(refused) = guard.admit(peer, prefix.kind, frames)
        {
            return Err(Wrong::Refused(refused.to_string()));
        }
        if !self.rates.admit(self.now, peer) {
            self.report.too_much(who);
            if prefix.steer == Steer::All {
                // A beat says nothing that the next does not say.
                return Ok(());
            }
            self.report.stats.bounced += 1;
            bounce(&self.peers, who, frames, false, &mut self.report);
            return Ok(());
        }
        let Some(first) = frames.first_mut() else { return Ok(()) };
        stamp(first, self.id, peer);
        // Only pipes bounce; a peer that sends again what it got back means it as new.
        first[5] &= !(Flags::BOUNCED.0 as u8);
        // A worker beats, a client is new.
        if self.pipe.is_introduced(peer, prefix.steer) {
            self.peer_is_on(who, Dialect::Native, descriptor_of(first));
        }
        match self.steer(frames, |pipe| pipe.from_peer(peer, prefix.kind, prefix.steer)) {
            Steered::Taken => Ok(()),
            Steered::OutOfPlace => Err(Wrong::OutOfPlace(prefix.kind)),
            Steered::Refused => {
                self.report.stats.bounced += 1;
                bounce(&self.peers, who, frames, false, &mut self.report);
                Ok(())
            }
        }
    }

    fn ez_request(&mut self, who: &[u8], frames: &mut Frames) -> Result<(), Wrong> {
        let frames: Vec<_> = frames.drain(..).map(into_bytes).collect();
        let request = dialect::decode_request(&frames)?;
        let id = request.id.clone();
        if !self.rates.admit(self.now, PeerId::of_ez(self.id, who)) {
            self.report.too_much(who);
            self.report.stats.bounced += 1;
            self.ez_error(who, id, "this client sends more than one may, try again");
            return Ok(());
        }
        let steer = Steer::Home(ServiceHash::of_ez(&request.service));
        let peer = Bytes::copy_from_slice(who);
        let call = EzCall { peer, id: request.id, service: request.service };
        let mut frames = self.wrap(steer, call.into(), request.body);
        if !matches!(self.steer(&mut frames, |pipe| pipe.from_ez(steer)), Steered::Taken) {
            self.report.stats.bounced += 1;
            let why = if self.draining.is_some() {
                "this pipe is stopping, try again"
            } else {
                "no broker can take the request now, try again"
            };
            self.ez_error(who, id, why);
        }
        Ok(())
    }

    fn ez_from_worker(&mut self, who: &[u8], frames: &mut Frames) -> Result<(), Wrong> {
        let descriptor = frames.first_mut().and_then(descriptor_of);
        let frames: Vec<_> = frames.drain(..).map(into_bytes).collect();
        let peer = Bytes::copy_from_slice(who);
        let (steer, message, body) = match dialect::decode_from_worker(&frames)? {
            dialect::FromWorker::Beat(service) => {
                self.ez_is_on(who, descriptor);
                let held = self.pipe.ez_held(self.now, who);
                (Steer::All, EzBeat { peer, service, held }.into(), Vec::new())
            }
            dialect::FromWorker::Reply { address, id, body } => {
                let owner = Address::owner_of(&address);
                let owner = owner.ok_or(Malformed::Address("too short"))?;
                self.pipe.ez_answered(who, &address);
                (Steer::Owner(owner), EzReply { peer, address, id }.into(), body)
            }
        };
        let mut frames = self.wrap(steer, message, body);
        if !matches!(self.steer(&mut frames, |pipe| pipe.from_ez(steer)), Steered::Taken) {
            // An old worker has no use for what comes back.
            self.report.stats.dropped_full += 1;
        }
        Ok(())
    }

    /// Sends a message where `route` says, and elsewhere if that broker turns out to be dead.
    fn steer(&mut self, frames: &mut Frames, route: impl Fn(&mut Pipe) -> Route) -> Steered {
        for _ in 0..MAX_STEERINGS {
            let broker = match route(&mut self.pipe) {
                Route::Broker(broker) => broker,
                Route::AllBrokers => {
                    self.send_to_all(frames);
                    return Steered::Taken;
                }
                Route::Bounce => return Steered::Refused,
                _ => return Steered::OutOfPlace,
            };
            if self.is_local(broker) {
                self.frames_to_local(frames);
                return Steered::Taken;
            }
            match self.brokers.address(&broker.0.to_be_bytes()) {
                Sent::Sent => {
                    match self.brokers.forward(frames.drain(..)) {
                        Sent::Sent => {
                            self.report.stats.to_brokers += 1;
                            self.passed = self.now;
                        }
                        // Its connection ended between the address and the last frame.
                        Sent::WouldBlock | Sent::NoRoute => self.report.stats.dropped_gone += 1,
                    }
                    return Steered::Taken;
                }
                Sent::WouldBlock => return Steered::Refused,
                Sent::NoRoute => self.lost(broker),
            }
        }
        Steered::Refused
    }

    /// Copies a message to every living broker. Beats and registrations only, hence small.
    fn send_to_all(&mut self, frames: &Frames) {
        let brokers: Vec<_> = self.pipe.brokers().collect();
        let mut taken = false;
        for broker in brokers {
            if self.is_local(broker) {
                let mut copies =
                    frames.iter().map(|frame| zmq::Message::from(&frame[..])).collect();
                self.frames_to_local(&mut copies);
                taken = true;
                continue;
            }
            match self.brokers.address(&broker.0.to_be_bytes()) {
                Sent::Sent => {
                    let copies = frames.iter().map(|frame| zmq::Message::from(&frame[..]));
                    taken |= self.brokers.forward(copies) == Sent::Sent;
                }
                Sent::WouldBlock => self.report.stats.dropped_full += 1,
                Sent::NoRoute => self.lost(broker),
            }
        }
        if taken {
            self.report.stats.to_brokers += 1;
        } else {
            self.report.stats.dropped_gone += 1;
        }
    }

    fn take_from_broker(&mut self, taken: Taken<'_>) {
        self.report.stats.from_brokers += 1;
        let frames = match taken {
            Ok(frames) => frames,
            Err(malformed) => return self.report.malformed(&[], &malformed),
        };
        let who = frames.remove(0);
        if let Err(wrong) = self.pass_from_broker(&who, frames) {
            self.report.malformed(&who, &wrong);
        }
    }

    fn pass_from_broker(&mut self, who: &[u8], frames: &mut Frames) -> Result<(), Wrong> {
        let broker = broker_of(who)?;
        let Some(first) = frames.first() else {
            return Err(Malformed::FrameCount(0).into());
        };
        let prefix = Prefix::decode(first)?;
        match self.pipe.from_broker(prefix.kind) {
            Route::Peer => {
                let sent = self.peers.address(&prefix.peer.0);
                if sent == Sent::Sent {
                    self.finish_to_peer(frames);
                } else if self.pipe.side() == Side::Worker {
                    self.report.stats.bounced += 1;
                    let full = sent == Sent::WouldBlock;
                    bounce(&self.brokers, who, frames, full, &mut self.report);
                } else {
                    self.count_lost(sent);
                }
                Ok(())
            }
            Route::EzPeer => {
                let packet = Packet::decode(frames.drain(..).map(into_bytes).collect())?;
                if let Some(packet) = self.ez_to_peer(packet)? {
                    self.report.stats.bounced += 1;
                    let (first, rest) = packet.encode();
                    if self.brokers.send_to(who, first, rest) != Sent::Sent {
                        self.report.stats.dropped_gone += 1;
                    }
                }
                Ok(())
            }
            route @ (Route::Bounce | Route::Full) => {
                self.report.stats.bounced += 1;
                let full = route == Route::Full;
                bounce(&self.brokers, who, frames, full, &mut self.report);
                Ok(())
            }
            Route::Beat => {
                let descriptor = frames.first_mut().and_then(descriptor_of);
                let packet = Packet::decode(frames.drain(..).map(into_bytes).collect())?;
                self.beat(broker, packet)?;
                self.broker_is_on(who, descriptor);
                Ok(())
            }
            _ => Err(Wrong::OutOfPlace(prefix.kind)),
        }
    }

    /// Sends the EZ message in a packet to its peer; bounces it if a worker cannot take it.
    fn ez_to_peer(&mut self, packet: Packet) -> Result<Option<Packet>, Wrong> {
        let Body::Frames(body) = packet.body.clone() else {
            return Err(Wrong::OutOfPlace(packet.message.kind()));
        };
        let (peer, out) = match packet.message.clone() {
            Message::EzAnswer(answer) => (answer.peer, dialect::encode_answer(answer.id, body)),
            Message::EzWork(work) => (work.peer, dialect::encode_work(work.address, work.id, body)),
            other => return Err(Wrong::OutOfPlace(other.kind())),
        };
        // Routing ids that an earlier life of this pipe made up may be somebody else's now.
        let stale = packet.pipe != Incarnation::NONE && packet.pipe != self.id;
        let sent = if stale { Sent::NoRoute } else { self.ez_socket().address(&peer) };
        if sent == Sent::Sent {
            let sent = self.ez_socket().send_all(out);
            self.count_sent(sent);
            if let Message::EzWork(work) = &packet.message {
                self.pipe.ez_handed(self.now, &work.peer, &work.address);
            }
        } else if self.pipe.side() == Side::Worker {
            let full = sent == Sent::WouldBlock;
            return Ok(Some(Packet { bounced: true, full, ..packet }));
        } else {
            self.count_lost(sent);
        }
        Ok(None)
    }

    fn beat(&mut self, broker: BrokerId, packet: Packet) -> Result<(), Wrong> {
        let (steer, kind) = (packet.steer, packet.message.kind());
        match packet.message {
            // Nobody beats for somebody else.
            Message::BrokerBeat(beat) if steer == Steer::Owner(broker) => {
                self.pipe.beat(self.now, broker, &beat);
            }
            _ => return Err(Wrong::OutOfPlace(kind)),
        }
        let answer = self.packet(steer, PipeBeat { pipe: self.id }.into(), Vec::new());
        if self.is_local(broker) {
            let body = Body::EMPTY;
            self.give_local(Packet { body, ..answer });
            return Ok(());
        }
        let (first, rest) = answer.encode();
        // If it does not arrive the broker has other worries; it asks again with its next beat.
        let _ = self.brokers.send_to(&broker.0.to_be_bytes(), first, rest);
        Ok(())
    }

    /// Tells clients of dead brokers, a bounded number. Whether there is more to tell.
    fn tell_clients(&mut self) -> bool {
        for _ in 0..TELLINGS_A_TURN {
            let Some((client, dead)) = self.pipe.poll_telling() else {
                return false;
            };
            let mut packet = self.packet(Steer::Owner(dead), BrokerDown {}.into(), Vec::new());
            packet.peer = client;
            let (first, rest) = packet.encode();
            match self.peers.send_to(&client.0, first, rest) {
                Sent::Sent => self.report.stats.told += 1,
                Sent::WouldBlock => self.report.stats.dropped_full += 1,
                // It was heard in the last minute and has left since: nothing is lost.
                Sent::NoRoute => {}
            }
        }
        true
    }

    /// The frames of a message that this pipe makes.
    fn wrap(&self, steer: Steer, message: Message, body: Vec<Bytes>) -> Frames {
        let (first, rest) = self.packet(steer, message, body).encode();
        let rest = rest.iter().map(|frame| zmq::Message::from(&frame[..]));
        [zmq::Message::from(first)].into_iter().chain(rest).collect()
    }

    fn packet(&self, steer: Steer, message: Message, body: Vec<Bytes>) -> Packet {
        let (pipe, peer, body) = (self.id, PeerId::default(), Body::Frames(body));
        Packet { steer, pipe, peer, bounced: false, full: false, message, body }
    }

    fn ez_error(&mut self, who: &[u8], id: Bytes, text: &'static str) {
        let body = vec![Bytes::from_static(dialect::ERR), Bytes::from_static(text.as_bytes())];
        let frames = dialect::encode_answer(id, body);
        let sent = match self.ez_socket().address(who) {
            Sent::Sent => self.ez_socket().send_all(frames),
            lost => lost,
        };
        self.count_sent(sent);
    }

    /// Sends the frames behind a routing id that was accepted.
    fn finish_to_peer(&mut self, frames: &mut Frames) {
        self.count_to_peer(|peers| peers.forward(frames.drain(..)));
    }

    fn count_to_peer(&mut self, send: impl FnOnce(&Socket) -> Sent) {
        let sent = send(&self.peers);
        self.count_sent(sent);
    }

    fn count_sent(&mut self, sent: Sent) {
        match sent {
            Sent::Sent => {
                self.report.stats.to_peers += 1;
                self.passed = self.now;
            }
            lost => self.count_lost(lost),
        }
    }

    fn count_lost(&mut self, why: Sent) {
        match why {
            Sent::WouldBlock => self.report.stats.dropped_full += 1,
            Sent::Sent | Sent::NoRoute => self.report.stats.dropped_gone += 1,
        }
    }
}

/// Gives a native message back to who sent it; `full`: whom it was for is there, and has no room.
fn bounce(to: &Socket, who: &[u8], frames: &mut Frames, full: bool, report: &mut Report) {
    if let Some(first) = frames.first_mut().filter(|first| first.len() >= PREFIX_BYTES) {
        mark_bounced(first, full);
    }
    let sent = match to.address(who) {
        Sent::Sent => to.forward(frames.drain(..)),
        failed => failed,
    };
    match sent {
        Sent::Sent => {}
        Sent::WouldBlock => report.stats.dropped_full += 1,
        Sent::NoRoute => report.stats.dropped_gone += 1,
    }
}

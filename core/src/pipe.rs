//! A pipe's decisions, for the in pipe and the worker pipe: which brokers live, who is home, and
//! what is done with each message.
//!
//! ```text
//!  peer ───▶ from_peer ───▶ Route ◀─── from_broker ◀─── broker
//!                 ╲           ▲            ╱
//!                  ╲  brokers │ homes     ╱ beat, failed, tick
//!                   ╲─────────┴──────────╱
//!                             └─▶ poll_telling: BrokerDown for the clients
//! ```
//!
//! [`Pipe`] is driven by the loops of `zex-plumbing` with real sockets and by the simulator. It
//! holds no work and sees no header; what the state pipe does needs no decision but for
//! [`STATE_KINDS`].

mod handed;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

use bytes::Bytes;
use zex_spec::{
    Address, BEAT_INTERVAL_MS, BEATS_MISSED, BrokerBeat, BrokerId, Held, PeerId, ServiceHash, Steer,
};

use self::handed::Handed;
use crate::Time;

/// What brokers say to each other, and all that a state pipe passes: Ask, Hello, Share, WantSnapshot.
pub const STATE_KINDS: [u8; 4] = [0x13, 0x31, 0x32, 0x33];

/// Clients that are remembered so that they can be told of a dead broker. One beyond it is told
/// nothing and sends again a second later, of its own accord.
const MAX_CLIENTS: usize = 65_536;
/// A client that was silent for so long, milliseconds, is not waiting for anything that it would
/// not ask about again: it is told nothing.
const CLIENT_MEMORY_MS: u64 = 60_000;
/// Brokers that a pipe knows at once. A mesh has a handful; the bound is against who makes them up.
const MAX_BROKERS: usize = 1_024;
/// Dead brokers that clients are yet to be told of. They come one by one; a flood of them is
/// garbage, and clients that are not told send again a second later.
const MAX_TELLINGS: usize = 64;
/// Services whose home is remembered. Two that fall into one place take turns.
const HOME_PLACES: usize = 1_024;
/// Milliseconds without a beat after which a broker is dead.
const BROKER_SILENCE_MS: u64 = BEAT_INTERVAL_MS * BEATS_MISSED;
/// Milliseconds between two ticks after which it is the pipe that was away, not the brokers.
const AWAY_MS: u64 = 2 * BEAT_INTERVAL_MS;

/// Which of the two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// Its peers are clients.
    In,
    /// Its peers are workers.
    Worker,
}

/// What to do with a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// Send it to this broker. If that fails for good, say so with [`Pipe::failed`] and ask again;
    /// if it would block, bounce.
    Broker(BrokerId),
    /// Send it to each of [`Pipe::brokers`], as far as possible.
    AllBrokers,
    /// Send it to the peer that it names. If that fails: an in pipe drops and counts it, a worker
    /// pipe bounces it.
    Peer,
    /// Take the EZ message out of it and send that to the peer that its header names; failures as
    /// with [`Route::Peer`].
    EzPeer,
    /// A broker's beat: decode it, give it to [`Pipe::beat`], answer with a `PipeBeat`.
    Beat,
    /// Mark it and give it back to who sent it; an EZ client is answered `ERR`.
    Bounce,
    /// Give it back to the broker that sent it, as if its peer had no room.
    Full,
    /// Drop it and count it: it has no business here.
    Drop,
}

struct Broker {
    beat: Time,
    ready: bool,
}

/// A dead broker, and how far the clients are told.
struct Telling {
    broker: BrokerId,
    told: Option<PeerId>,
}

/// What one in pipe or worker pipe knows.
pub struct Pipe {
    side: Side,
    brokers: BTreeMap<BrokerId, Broker>,
    /// The answers of `zex_spec::home` by the service's hash, until a broker comes, goes or changes.
    homes: Vec<Option<(ServiceHash, BrokerId)>>,
    /// Native clients heard in this minute, and in the one before it.
    clients: BTreeSet<PeerId>,
    clients_before: BTreeSet<PeerId>,
    /// It is about to stop: what would begin is given back, what has begun goes on.
    draining: bool,
    /// The one heard last, who is among those of this minute.
    heard_last: Option<PeerId>,
    minute_began: Time,
    tellings: VecDeque<Telling>,
    /// What EZ workers have and have not answered.
    handed: Handed,
    ticked: Time,
}

mod kind {
    //! Which kinds of message each side may send through a pipe: the table of protocol.md §5. What
    //! is not in it stops here, so that no client speaks as a worker, a pipe or a broker.

    pub(super) const CALL: u8 = 0x01;
    pub(super) const WORK: u8 = 0x11;
    pub(super) const FROM_CLIENT: [u8; 4] = [0x01, 0x02, 0x03, 0x06];
    pub(super) const TO_CLIENT: [u8; 4] = [0x03, 0x04, 0x05, 0x06];
    pub(super) const TO_EZ_CLIENT: u8 = 0x42;
    pub(super) const FROM_WORKER_TO_OWNER: [u8; 5] = [0x03, 0x05, 0x06, 0x12, 0x14];
    pub(super) const FROM_WORKER_TO_ALL: [u8; 3] = [0x15, 0x16, 0x17];
    pub(super) const TO_WORKER: [u8; 6] = [0x02, 0x03, 0x06, 0x11, 0x13, 0x18];
    pub(super) const TO_EZ_WORKER: u8 = 0x44;
    pub(super) const BROKER_BEAT: u8 = 0x21;
}

impl Pipe {
    /// A pipe that knows no broker yet.
    pub fn new(side: Side, now: Time) -> Self {
        Self {
            side,
            brokers: BTreeMap::new(),
            homes: vec![None; HOME_PLACES],
            clients: BTreeSet::new(),
            clients_before: BTreeSet::new(),
            draining: false,
            heard_last: None,
            minute_began: now,
            tellings: VecDeque::new(),
            handed: Handed::default(),
            ticked: now,
        }
    }

    /// Which side it serves.
    pub fn side(&self) -> Side {
        self.side
    }

    /// From now on nothing begins by this pipe: requests and work are given back, so that their
    /// senders take another. Answers pass, and what else belongs to what has begun.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Where a native message of a peer goes, by its prefix.
    pub fn from_peer(&mut self, peer: PeerId, kind: u8, steer: Steer) -> Route {
        if self.side == Side::In {
            self.heard(peer);
        }
        match (self.side, steer) {
            (Side::In, Steer::Home(_) | Steer::Owner(_)) if self.draining && kind == kind::CALL => {
                Route::Bounce
            }
            (Side::In, Steer::Home(service)) if kind::FROM_CLIENT.contains(&kind) => {
                or_bounce(self.home(service))
            }
            (Side::In, Steer::Owner(owner)) if kind::FROM_CLIENT.contains(&kind) => {
                or_bounce(self.owner(owner))
            }
            (Side::Worker, Steer::Owner(owner)) if kind::FROM_WORKER_TO_OWNER.contains(&kind) => {
                or_bounce(self.owner(owner))
            }
            (Side::Worker, Steer::All) if kind::FROM_WORKER_TO_ALL.contains(&kind) => {
                Route::AllBrokers
            }
            _ => Route::Drop,
        }
    }

    /// Whether a native message makes its sender known: to be asked before [`Pipe::from_peer`] by
    /// who wants to know on which connection a peer is, to say so when that ends.
    pub fn is_introduced(&mut self, peer: PeerId, steer: Steer) -> bool {
        match self.side {
            Side::In => self.heard(peer),
            Side::Worker => steer == Steer::All,
        }
    }

    /// A client's connection has ended. It is told nothing more until it is heard again.
    pub fn client_gone(&mut self, client: PeerId) {
        self.heard_last = None;
        self.clients.remove(&client);
        self.clients_before.remove(&client);
    }

    /// An EZ worker has got the work of this address.
    pub fn ez_handed(&mut self, now: Time, worker: &Bytes, address: &[u8]) {
        if let Some((owner, _)) = Address::assignment_of(address) {
            self.gave_work(now, owner);
        }
        self.handed.handed(now, worker, address);
    }

    /// A broker that was frozen may give work out before it beats again. The answer is to find its
    /// way back: whoever stood in for it would answer the client, and the owner, who never hears of
    /// that, would call it lost and answer it once more.
    fn gave_work(&mut self, now: Time, broker: BrokerId) {
        let known = |id: &BrokerId| id.id() == broker.id();
        if !self.brokers.keys().any(known) && self.brokers.len() < MAX_BROKERS {
            // Nobody's home until it says that it is ready.
            self.brokers.insert(broker, Broker { beat: now, ready: false });
        }
    }

    /// It has answered it.
    pub fn ez_answered(&mut self, worker: &[u8], address: &[u8]) {
        self.handed.answered(worker, address);
    }

    /// It beats: what it holds goes with the beat, since it cannot say so itself.
    pub fn ez_held(&mut self, now: Time, worker: &[u8]) -> Vec<Held> {
        self.handed.held(now, worker)
    }

    /// Its connection has ended.
    pub fn ez_gone(&mut self, worker: &[u8]) {
        self.handed.gone(worker);
    }

    /// Where an EZ message of a peer goes: a request to its service's home, a reply to its owner,
    /// a beat to all.
    pub fn from_ez(&mut self, steer: Steer) -> Route {
        match (self.side, steer) {
            (Side::In, Steer::Home(_)) if self.draining => Route::Bounce,
            (Side::In, Steer::Home(service)) => or_bounce(self.home(service)),
            (Side::Worker, Steer::Owner(owner)) => or_bounce(self.owner(owner)),
            (Side::Worker, Steer::All) => Route::AllBrokers,
            _ => Route::Drop,
        }
    }

    /// What becomes of a broker's message, by its prefix.
    pub fn from_broker(&self, kind: u8) -> Route {
        match (self.side, kind) {
            (_, kind::BROKER_BEAT) => Route::Beat,
            (Side::Worker, kind::WORK) if self.draining => Route::Bounce,
            // An old worker has this one way: it is not to be taken for dead.
            (Side::Worker, kind::TO_EZ_WORKER) if self.draining => Route::Full,
            (Side::In, kind::TO_EZ_CLIENT) | (Side::Worker, kind::TO_EZ_WORKER) => Route::EzPeer,
            (Side::In, kind) if kind::TO_CLIENT.contains(&kind) => Route::Peer,
            (Side::Worker, kind) if kind::TO_WORKER.contains(&kind) => Route::Peer,
            _ => Route::Drop,
        }
    }

    /// A broker beats.
    pub fn beat(&mut self, now: Time, broker: BrokerId, beat: &BrokerBeat) {
        if beat.goodbye {
            self.forget(broker);
            return;
        }
        if let Some(known) = self.brokers.get_mut(&broker) {
            known.beat = now;
            if known.ready != beat.ready {
                known.ready = beat.ready;
                self.homes.fill(None);
            }
            return;
        }
        // Another life of it: the later one stays. What an earlier one still had underway is stale.
        if let Some(other) = self.brokers.keys().copied().find(|other| other.id() == broker.id()) {
            if !broker.succeeds(other) {
                return;
            }
            self.forget(other);
        }
        if self.brokers.len() < MAX_BROKERS {
            self.brokers.insert(broker, Broker { beat: now, ready: beat.ready });
            self.homes.fill(None);
        }
    }

    /// This broker's connection has ended: it was seen, or a send to it failed for good.
    pub fn failed(&mut self, broker: BrokerId) {
        self.forget(broker);
    }

    /// Forgets the brokers that fell silent. To be called whenever messages were taken in, and at
    /// [`Pipe::poll_timeout`]; the beats that wait in a queue come first.
    pub fn tick(&mut self, now: Time) {
        let away = now.since(self.ticked);
        self.ticked = now;
        if away.as_millis() > u128::from(AWAY_MS) {
            // The pipe was stopped or starved: the beats of that time may still wait to be read.
            self.brokers.values_mut().for_each(|broker| broker.beat = broker.beat + away);
        }
        let silent = |broker: &Broker| now > broker.beat.plus_ms(BROKER_SILENCE_MS);
        while let Some((dead, _)) = self.brokers.iter().find(|(_, broker)| silent(broker)) {
            let dead = *dead;
            self.forget(dead);
        }
        if now >= self.minute_began.plus_ms(CLIENT_MEMORY_MS) {
            self.minute_began = now;
            self.heard_last = None;
            self.clients_before = std::mem::take(&mut self.clients);
        }
    }

    /// When to call [`Pipe::tick`] at the latest.
    pub fn poll_timeout(&self) -> Option<Time> {
        // Often enough that a pause means that the pipe itself was away.
        (!self.brokers.is_empty()).then(|| self.ticked.plus_ms(BEAT_INTERVAL_MS / 2))
    }

    /// The next client to be told of a dead broker. Call until `None`, a bounded number a turn.
    pub fn poll_telling(&mut self) -> Option<(PeerId, BrokerId)> {
        loop {
            let telling = self.tellings.front_mut()?;
            let from = telling.told.map_or(Bound::Unbounded, Bound::Excluded);
            let next = |clients: &BTreeSet<PeerId>| {
                clients.range((from, Bound::Unbounded)).next().copied()
            };
            // Both minutes in one order, so that a client of both is told once.
            let clients = [next(&self.clients), next(&self.clients_before)];
            match clients.into_iter().flatten().min() {
                Some(client) => {
                    telling.told = Some(client);
                    return Some((client, telling.broker));
                }
                None => self.tellings.pop_front(),
            };
        }
    }

    /// The brokers that live.
    pub fn brokers(&self) -> impl Iterator<Item = BrokerId> + '_ {
        self.brokers.keys().copied()
    }

    /// The home of a service: `None` if no broker is ready.
    fn home(&mut self, service: ServiceHash) -> Option<BrokerId> {
        let place = service.0 as usize % HOME_PLACES;
        if let Some((known, home)) = self.homes[place]
            && known == service
        {
            return Some(home);
        }
        let ready = self.brokers.iter().filter(|(_, broker)| broker.ready).map(|(id, _)| *id);
        let home = zex_spec::home(service, ready)?;
        self.homes[place] = Some((service, home));
        Some(home)
    }

    /// An owner if it lives, else the one that stands in for it, the same at every pipe.
    fn owner(&mut self, owner: BrokerId) -> Option<BrokerId> {
        if self.brokers.contains_key(&owner) {
            return Some(owner);
        }
        self.home(ServiceHash(owner.0))
    }

    /// Remembers a client for a minute or two. Whether it was not among those of this minute.
    fn heard(&mut self, client: PeerId) -> bool {
        if self.heard_last == Some(client) || self.clients.len() >= MAX_CLIENTS {
            return false;
        }
        self.heard_last = Some(client);
        self.clients.insert(client)
    }

    fn forget(&mut self, broker: BrokerId) {
        if self.brokers.remove(&broker).is_none() {
            return;
        }
        self.homes.fill(None);
        if self.side == Side::In && self.tellings.len() < MAX_TELLINGS {
            self.tellings.push_back(Telling { broker, told: None });
        }
    }
}

fn or_bounce(broker: Option<BrokerId>) -> Route {
    broker.map_or(Route::Bounce, Route::Broker)
}

#[cfg(test)]
mod tests {
    use super::*;
    use zex_spec::{Dialect, Incarnation, ReturnPath};

    const READY: BrokerBeat = BrokerBeat { ready: true, goodbye: false };
    const DRAINING: BrokerBeat = BrokerBeat { ready: false, goodbye: false };
    const GOODBYE: BrokerBeat = BrokerBeat { ready: false, goodbye: true };
    const CALL: u8 = 0x01;
    const CANCEL: u8 = 0x02;
    const REPLY: u8 = 0x05;
    const HEARTBEAT: u8 = 0x16;

    fn at_ms(ms: u64) -> Time {
        Time::default().plus_ms(1_000_000 + ms)
    }

    fn broker(name: &str, epoch: u32) -> BrokerId {
        Incarnation::new(name, epoch)
    }

    fn client(number: u8) -> PeerId {
        PeerId([number; 16])
    }

    fn steer(service: &str) -> Steer {
        Steer::Home(ServiceHash::of(service.as_bytes()))
    }

    fn with_brokers(side: Side, brokers: &[BrokerId]) -> Pipe {
        let mut pipe = Pipe::new(side, at_ms(0));
        brokers.iter().for_each(|broker| pipe.beat(at_ms(0), *broker, &READY));
        pipe
    }

    fn tellings(pipe: &mut Pipe) -> Vec<(PeerId, BrokerId)> {
        std::iter::from_fn(|| pipe.poll_telling()).collect()
    }

    #[test]
    fn requests_go_home_and_elsewhere_when_home_is_gone() {
        let all = [broker("a", 1), broker("b", 1), broker("c", 1)];
        let mut pipe = with_brokers(Side::In, &all);
        for number in 0..200 {
            let name = format!("pkg.Service{number}");
            let home = zex_spec::home(ServiceHash::of(name.as_bytes()), all).unwrap();
            // Twice: by computing and from the memory of homes.
            assert_eq!(pipe.from_peer(client(1), CALL, steer(&name)), Route::Broker(home));
            assert_eq!(pipe.from_peer(client(1), CALL, steer(&name)), Route::Broker(home));
            assert_eq!(pipe.from_ez(steer(&name)), Route::Broker(home));
        }
        pipe.failed(all[0]);
        pipe.beat(at_ms(1), all[1], &DRAINING);
        assert_eq!(pipe.from_peer(client(1), CALL, steer("x")), Route::Broker(all[2]));
        // Who drains takes nothing new but still owns what it has.
        let owned = Steer::Owner(all[1]);
        assert_eq!(pipe.from_peer(client(1), CANCEL, owned), Route::Broker(all[1]));
        pipe.beat(at_ms(1), all[2], &GOODBYE);
        assert_eq!(pipe.from_peer(client(1), CALL, steer("x")), Route::Bounce);
        assert_eq!(pipe.from_ez(steer("x")), Route::Bounce);
    }

    #[test]
    fn a_pipe_that_drains_begins_nothing_and_finishes_what_has_begun() {
        let a = broker("a", 1);
        let mut pipe = with_brokers(Side::In, &[a]);
        pipe.drain();
        for to in [steer("x"), Steer::Owner(a)] {
            assert_eq!(pipe.from_peer(client(1), CALL, to), Route::Bounce);
            assert_eq!(pipe.from_peer(client(1), CANCEL, to), Route::Broker(a));
        }
        assert_eq!(pipe.from_ez(steer("x")), Route::Bounce);
        assert_eq!(pipe.from_broker(REPLY), Route::Peer);
        assert_eq!(pipe.from_broker(kind::TO_EZ_CLIENT), Route::EzPeer);
        let mut pipe = with_brokers(Side::Worker, &[a]);
        pipe.drain();
        assert_eq!(pipe.from_broker(kind::WORK), Route::Bounce);
        assert_eq!(pipe.from_broker(kind::TO_EZ_WORKER), Route::Full);
        assert_eq!(pipe.from_broker(CANCEL), Route::Peer);
        assert_eq!(pipe.from_peer(client(1), REPLY, Steer::Owner(a)), Route::Broker(a));
        assert_eq!(pipe.from_peer(client(1), HEARTBEAT, Steer::All), Route::AllBrokers);
    }

    #[test]
    fn a_dead_owner_has_the_same_substitute_everywhere() {
        let all = [broker("a", 1), broker("b", 1), broker("c", 1)];
        let dead = broker("d", 7);
        let expected = zex_spec::home(ServiceHash(dead.0), all).map(Route::Broker).unwrap();
        for side in [Side::In, Side::Worker] {
            let kind = if side == Side::In { CANCEL } else { REPLY };
            let mut pipe = with_brokers(side, &all);
            assert_eq!(pipe.from_peer(client(1), kind, Steer::Owner(dead)), expected);
            let alive = Steer::Owner(all[2]);
            assert_eq!(pipe.from_peer(client(1), kind, alive), Route::Broker(all[2]));
        }
    }

    #[test]
    fn three_missed_beats_are_a_death() {
        let (a, b) = (broker("a", 1), broker("b", 1));
        let mut pipe = with_brokers(Side::In, &[a, b]);
        assert_eq!(pipe.from_peer(client(1), CALL, steer("x")), pipe.from_ez(steer("x")));
        for beat in 1..=3 {
            pipe.tick(at_ms(beat * 500));
            pipe.beat(at_ms(beat * 500), b, &READY);
        }
        assert_eq!(pipe.brokers().collect::<BTreeSet<_>>(), BTreeSet::from([a, b]));
        assert!(pipe.poll_timeout().unwrap() <= at_ms(1_750));
        pipe.tick(at_ms(1_501));
        assert_eq!(pipe.brokers().collect::<Vec<_>>(), [b]);
        assert_eq!(tellings(&mut pipe), [(client(1), a)]);
    }

    #[test]
    fn who_gives_work_out_lives_and_has_the_answer() {
        let (a, b) = (broker("a", 1), broker("b", 1));
        let mut pipe = with_brokers(Side::Worker, &[a, b]);
        pipe.failed(a);
        let worker = Bytes::from_static(b"w");
        assert_eq!(pipe.from_ez(Steer::Owner(a)), Route::Broker(b), "it stands in");
        let address = |owner| {
            let path =
                ReturnPath { pipe: Incarnation(7), dialect: Dialect::Ez, peer: worker.clone() };
            Address { owner, number: 1, path }.encode()
        };
        pipe.ez_handed(at_ms(1), &worker, &address(a));
        assert_eq!(pipe.from_ez(Steer::Owner(a)), Route::Broker(a));
        // What an earlier life gave out is not the later one's.
        pipe.ez_handed(at_ms(1), &worker, &address(broker("b", 0)));
        assert_eq!(pipe.brokers().collect::<BTreeSet<_>>(), BTreeSet::from([a, b]));
        // It is to beat, as others are, and has no services until it does.
        pipe.failed(b);
        assert_eq!(pipe.from_ez(Steer::Owner(b)), Route::Bounce);
        pipe.tick(at_ms(400));
        pipe.tick(at_ms(800));
        pipe.tick(at_ms(1_200));
        pipe.tick(at_ms(1_600));
        assert_eq!(pipe.brokers().count(), 0);
    }

    #[test]
    fn a_pipe_that_was_away_buries_nobody() {
        let a = broker("a", 1);
        let mut pipe = with_brokers(Side::In, &[a]);
        pipe.tick(at_ms(500));
        pipe.tick(at_ms(20_000));
        assert_eq!(pipe.brokers().count(), 1);
        for tick in 1..=4 {
            pipe.tick(at_ms(20_000 + tick * 500));
        }
        assert_eq!(pipe.brokers().count(), 0);
    }

    #[test]
    fn a_later_life_replaces_an_earlier_one_and_never_the_other_way() {
        let (old, new) = (broker("a", 1), broker("a", 2));
        let mut pipe = with_brokers(Side::In, &[old]);
        pipe.from_peer(client(1), CALL, steer("x"));
        pipe.beat(at_ms(10), new, &READY);
        assert_eq!(pipe.brokers().collect::<Vec<_>>(), [new]);
        assert_eq!(tellings(&mut pipe), [(client(1), old)]);
        pipe.beat(at_ms(20), old, &READY);
        assert_eq!(pipe.brokers().collect::<Vec<_>>(), [new]);
        assert_eq!(tellings(&mut pipe), []);
        // What was for the old life goes to a stand-in, which here is the new one.
        let route = pipe.from_peer(client(1), CANCEL, Steer::Owner(old));
        assert_eq!(route, Route::Broker(new));
    }

    #[test]
    fn each_client_of_the_last_minute_is_told_once() {
        let (a, b) = (broker("a", 1), broker("b", 1));
        let mut pipe = with_brokers(Side::In, &[a, b]);
        let speak = |pipe: &mut Pipe, number| pipe.from_peer(client(number), CALL, steer("x"));
        for number in [1, 2] {
            speak(&mut pipe, number);
        }
        pipe.tick(at_ms(60_000));
        for number in [2, 3] {
            speak(&mut pipe, number);
        }
        pipe.failed(a);
        pipe.failed(a);
        let first: Vec<_> = (1..=3).map(|number| (client(number), a)).collect();
        assert_eq!(tellings(&mut pipe), first);
        pipe.tick(at_ms(120_000));
        pipe.beat(at_ms(120_000), b, &GOODBYE);
        assert_eq!(tellings(&mut pipe), [(client(2), b), (client(3), b)]);
    }

    #[test]
    fn clients_beyond_the_bound_are_served_but_not_remembered() {
        let a = broker("a", 1);
        let mut pipe = with_brokers(Side::In, &[a]);
        for number in 0..MAX_CLIENTS + 10 {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&(number as u64).to_be_bytes());
            assert_eq!(pipe.from_peer(PeerId(id), CALL, steer("x")), Route::Broker(a));
        }
        pipe.failed(a);
        assert_eq!(tellings(&mut pipe).len(), MAX_CLIENTS);
    }

    #[test]
    fn nobody_speaks_out_of_turn() {
        let a = broker("a", 1);
        let everything = || {
            let steers = [steer("x"), Steer::Owner(a), Steer::All];
            (0..=255_u8).flat_map(move |kind| steers.map(|steer| (kind, steer)))
        };
        let mut pipe = with_brokers(Side::In, &[a]);
        let taken: BTreeSet<_> = everything()
            .filter(|(kind, steer)| pipe.from_peer(client(1), *kind, *steer) != Route::Drop)
            .map(|(kind, _)| kind)
            .collect();
        assert_eq!(taken, BTreeSet::from([1, 2, 3, 6]));
        let mut pipe = with_brokers(Side::Worker, &[a]);
        let taken: Vec<_> = everything()
            .filter(|(kind, steer)| pipe.from_peer(client(1), *kind, *steer) != Route::Drop)
            .collect();
        let owner = [3, 5, 6, 0x12, 0x14].map(|kind| (kind, Steer::Owner(a)));
        let all = [0x15, 0x16, 0x17].map(|kind| (kind, Steer::All));
        assert_eq!(taken, owner.into_iter().chain(all).collect::<Vec<_>>());
        assert_eq!(pipe.from_peer(client(1), HEARTBEAT, Steer::All), Route::AllBrokers);
        assert_eq!(tellings(&mut pipe), []);
    }

    #[test]
    fn made_up_brokers_are_bounded() {
        let mut pipe = Pipe::new(Side::In, at_ms(0));
        for number in 0..2 * MAX_BROKERS {
            pipe.beat(at_ms(0), broker(&format!("b{number}"), 1), &READY);
        }
        assert_eq!(pipe.brokers().count(), MAX_BROKERS);
        pipe.tick(at_ms(600));
        pipe.tick(at_ms(1_200));
        pipe.tick(at_ms(1_800));
        assert_eq!((pipe.brokers().count(), pipe.tellings.len()), (0, MAX_TELLINGS));
    }
}

//! A small mesh over loopback: three pipes, two brokers, and clients and workers of both dialects
//! that are bare DEALERs.
#![allow(clippy::unwrap_used, clippy::expect_used)] // Also outside of #[test]: it is all tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message as _;
use zex_broker::{Broker, BrokerSettings};
use zex_plumbing::{Context, Pipe, PipeSettings, Sent, Socket, StatePipeSettings, new_peer_id};
use zex_spec::{
    Body, BrokerId, Call, Code, DEFAULT_PRIORITY, Heartbeat, Held, Key, Message, Options,
    PREFIX_BYTES, Packet, PeerId, Register, Reply, ServiceHash, Steer,
};

const ANY_PORT: &str = "tcp://127.0.0.1:0";
const SERVICE: &str = "test.Echo";
/// The service that takes its time, and how long, milliseconds.
const SLOW_SERVICE: &str = "test.Slow";
const SLOW_MS: u64 = 400;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn until(what: &str, mut state: impl FnMut() -> bool) {
    let deadline = soon();
    while !state() {
        assert!(Instant::now() < deadline, "{what}: it does not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}

struct Mesh {
    context: Context,
    front: Pipe,
    workers: Pipe,
    state: Pipe,
    brokers: Vec<Broker>,
}

impl Mesh {
    /// Pipes, and brokers that are ready.
    fn start(brokers: usize) -> Self {
        let context = Context::new();
        let edge = |name: &str| PipeSettings {
            name: name.to_owned(),
            peers_endpoint: ANY_PORT.to_owned(),
            brokers_endpoint: ANY_PORT.to_owned(),
            ..PipeSettings::default()
        };
        let front = Pipe::start_in(&context, &edge("in-1")).unwrap();
        let workers = Pipe::start_worker(&context, &edge("worker-1")).unwrap();
        let state = StatePipeSettings {
            name: "state-1".to_owned(),
            brokers_endpoint: ANY_PORT.to_owned(),
            publish_endpoint: ANY_PORT.to_owned(),
        };
        let state = Pipe::start_state(&context, &state).unwrap();
        let mut mesh = Self { context, front, workers, state, brokers: Vec::new() };
        for number in 0..brokers {
            let broker = mesh.broker(&format!("broker-{number}"));
            mesh.brokers.push(broker);
        }
        until("every broker is ready", || mesh.brokers.iter().all(Broker::is_ready));
        until("the pipe knows them", || mesh.front.stats().brokers == brokers as u64);
        mesh
    }

    fn broker(&self, name: &str) -> Broker {
        let settings = BrokerSettings {
            name: name.to_owned(),
            in_pipes: vec![self.front.back_endpoint().to_owned()],
            worker_pipes: vec![self.workers.back_endpoint().to_owned()],
            state_pipes: vec![(
                self.state.front_endpoint().to_owned(),
                self.state.back_endpoint().to_owned(),
            )],
            bounds: zex_core::mesh::Settings::default(),
        };
        Broker::start(&self.context, settings).unwrap()
    }

    fn home(&self, service: &str) -> BrokerId {
        let hash = ServiceHash::of(service.as_bytes());
        zex_spec::home(hash, self.brokers.iter().map(Broker::id)).unwrap()
    }

    fn client(&self) -> Client {
        let endpoint = self.front.front_endpoint();
        let socket = self.context.dealer_for_client(new_peer_id(), endpoint).unwrap();
        Client { socket }
    }

    fn worker(&self) -> Worker {
        self.worker_of(vec![SERVICE.to_owned(), SLOW_SERVICE.to_owned()])
    }

    fn worker_of(&self, services: Vec<String>) -> Worker {
        let id = new_peer_id();
        let endpoint = self.workers.front_endpoint();
        let socket = self.context.dealer_for_worker(id, endpoint).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let served = Arc::new(AtomicU32::new(0));
        let (stops, serves) = (Arc::clone(&stop), Arc::clone(&served));
        let thread = std::thread::spawn(move || serve(id, &socket, services, &stops, &serves));
        Worker { stop, served, thread: Some(thread) }
    }
}

/// A client that says exactly what it is told.
struct Client {
    socket: Socket,
}

impl Client {
    fn send(&self, packet: &Packet) {
        until("the pipe takes a message", || {
            let (first, rest) = packet.encode();
            self.socket.send(first, rest) == Sent::Sent
        });
    }

    fn hear(&self) -> Packet {
        Packet::decode(self.socket.recv_by(soon()).unwrap().expect("an answer")).unwrap()
    }

    /// Calls, and sends again with the same key every second and after every bounce, until the
    /// final answer.
    fn call(&self, service: &str, body: &Bytes) -> (Reply, Bytes) {
        let mut packet = call(service, body.clone());
        let deadline = soon();
        loop {
            self.send(&packet);
            let again = Instant::now() + Duration::from_secs(1);
            while let Some(frames) = self.socket.recv_by(again).unwrap() {
                let answer = Packet::decode(frames).unwrap();
                let Message::Call(header) = &packet.message else { unreachable!() };
                match (answer.message, answer.body) {
                    (Message::Reply(reply), Body::Bytes(body)) if reply.key == header.key => {
                        return (reply, body);
                    }
                    _ if answer.bounced => break,
                    _ => {}
                }
            }
            assert!(Instant::now() < deadline, "no answer");
            let Message::Call(header) = &mut packet.message else { unreachable!() };
            header.attempt += 1;
            header.age_ms += 1_000;
        }
    }
}

fn call(service: &str, body: Bytes) -> Packet {
    let call = Call {
        key: Key(new_peer_id().0),
        service: service.to_owned(),
        method: "Say".to_owned(),
        deadline_ms: 10_000,
        attempt: 0,
        age_ms: 0,
        options: Options::IDEMPOTENT.with(Options::WAIT),
        priority: DEFAULT_PRIORITY,
        metadata: Default::default(),
    };
    Packet::from_peer(Steer::Home(ServiceHash::of(service.as_bytes())), call, body)
}

/// Calls over which the age of the view is taken: a second or more of them.
const CALLS: usize = 1_000;
/// On a machine that is busy with other things a try may say more of those.
const TRIES: usize = 3;

/// A worker that echoes.
struct Worker {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU32>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn serve(
    id: PeerId,
    socket: &Socket,
    services: Vec<String>,
    stop: &AtomicBool,
    served: &AtomicU32,
) {
    let say = |steer, message: Message, body| {
        let (first, rest) = Packet::from_peer(steer, message, body).encode();
        socket.send(first, rest) == Sent::Sent
    };
    let register = Register { name: format!("echo-{id}"), version: 1, capacity: 64, services };
    let mut held: Vec<Held> = Vec::new();
    let mut beat_at = Instant::now();
    // What is slow: when it is due, and what is answered then.
    let mut slow: Vec<(Instant, BrokerId, Reply, Bytes)> = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        if Instant::now() >= beat_at {
            beat_at = Instant::now() + Duration::from_millis(200);
            let _ =
                say(Steer::All, Heartbeat { version: 1, held: held.clone() }.into(), Bytes::new());
        }
        while let Some(at) = slow.iter().position(|(due, ..)| *due <= Instant::now()) {
            let (_, owner, reply, body) = slow.remove(at);
            let number = zex_spec::Address::decode(&reply.address).unwrap().number;
            held.iter_mut().for_each(|held| held.numbers.retain(|other| *other != number));
            until("a reply leaves", || {
                say(Steer::Owner(owner), reply.clone().into(), body.clone())
            });
        }
        let Some(frames) = socket.recv_by(Instant::now() + Duration::from_millis(10)).unwrap()
        else {
            continue;
        };
        let packet = Packet::decode(frames).unwrap();
        let Steer::Owner(owner) = packet.steer else { panic!("{packet:?} names no broker") };
        match (packet.message, packet.body) {
            (Message::Enquire(_), _) => {
                let _ = say(Steer::All, register.clone().into(), Bytes::new());
            }
            (Message::Work(work), Body::Bytes(body)) => {
                served.fetch_add(1, Ordering::SeqCst);
                let address = zex_spec::Address::decode(&work.address).unwrap();
                let (key, code, chunks) = (work.key, Code::Ok as u8, 0);
                let reply = Reply {
                    address: work.address,
                    key,
                    code,
                    message: String::new(),
                    chunks,
                    ..Reply::default()
                };
                let wait_ms = if work.service == SLOW_SERVICE { SLOW_MS } else { 0 };
                slow.push((Instant::now() + Duration::from_millis(wait_ms), owner, reply, body));
                if !held.iter().any(|held| held.owner == owner) {
                    held.push(Held { owner, seen: 0, numbers: Vec::new() });
                }
                for held in held.iter_mut().filter(|held| held.owner == owner) {
                    held.seen = held.seen.max(address.number);
                    held.numbers.push(address.number);
                }
            }
            (message, _) => assert!(matches!(message, Message::Cancel(_)), "{message:?}"),
        }
    }
}

#[test]
fn a_worker_registers_a_client_calls_and_the_answer_comes_back() {
    let mesh = Mesh::start(2);
    let (worker, client) = (mesh.worker(), mesh.client());
    for body in [Bytes::new(), Bytes::from_static(b"hello"), Bytes::from(vec![9; 200_000])] {
        let (reply, answer) = client.call(SERVICE, &body);
        assert_eq!((reply.code, answer), (Code::Ok as u8, body));
    }
    assert_eq!(worker.served.load(Ordering::SeqCst), 3);
    // A service that nobody has: said at once, for whom does not wait.
    let mut packet = call("test.Nobody", Bytes::new());
    let Message::Call(header) = &mut packet.message else { unreachable!() };
    header.options = Options::default();
    client.send(&packet);
    let answer = client.hear();
    let Message::Reply(reply) = answer.message else { panic!("{answer:?}") };
    assert_eq!(reply.code, Code::Unavailable as u8, "{}", reply.message);
    until("nothing is held any more", || {
        mesh.brokers.iter().all(|broker| broker.stats().calls == 0)
    });
}

#[test]
fn old_clients_and_workers_talk_while_native_ones_do() {
    let mesh = Mesh::start(2);
    let (_worker, client) = (mesh.worker(), mesh.client());
    let connect = |name: &str, pipe: &Pipe| {
        mesh.context.dealer_for_ez(Some(name.as_bytes()), pipe.front_endpoint()).unwrap()
    };
    let old_worker = connect("old worker", &mesh.workers);
    let old_client = connect("old client", &mesh.front);
    let frames = |frames: &[&'static [u8]]| -> Vec<Bytes> {
        frames.iter().map(|frame| Bytes::from_static(frame)).collect()
    };
    let send = |socket: &Socket, frames: &Vec<Bytes>| {
        until("a frame leaves", || socket.send_all(frames.clone()) == Sent::Sent);
    };
    // Brokers take requests before they know every worker; an old client tries again.
    let request = frames(&[b"", b"\x02", b"id-1", b"Old", b"body", b""]);
    let deadline = soon();
    let work = loop {
        send(&old_worker, &frames(&[b"", b"\x01", b"\x01", b"Old"]));
        send(&old_client, &request);
        if let Some(work) = old_worker.recv_by(Instant::now() + Duration::from_millis(300)).unwrap()
        {
            break work;
        }
        let answer = old_client.recv_by(Instant::now()).unwrap();
        assert!(answer.is_none_or(|frames| frames[2] == "ERR") && Instant::now() < deadline);
    };
    assert_eq!(work.len(), 5, "{work:?}");
    assert_eq!((&work[0][..], &work[2..]), (&b""[..], &frames(&[b"id-1", b"body", b""])[..]));
    // Native ones are not disturbed.
    let body = Bytes::from_static(b"native");
    assert_eq!(client.call(SERVICE, &body).1, body);
    let mut reply = frames(&[b"", b"\x01", b"\x02", b"", b"", b"id-1", b"OK", b"answer"]);
    reply[3] = work[1].clone();
    send(&old_worker, &reply);
    let expected = frames(&[b"", b"id-1", b"OK", b"answer"]);
    let deadline = soon();
    loop {
        let answer = old_client.recv_by(deadline).unwrap().expect("an answer");
        if answer == expected {
            break;
        }
        // Of the attempts before there was a worker.
        assert_eq!(answer[2], "ERR");
    }
}

#[test]
fn a_killed_broker_is_survived() {
    let mut mesh = Mesh::start(2);
    let (worker, client) = (mesh.worker(), mesh.client());
    let body = Bytes::from_static(b"hello");
    assert_eq!(client.call(SERVICE, &body).1, body);
    let home = mesh.home(SERVICE);
    let at = mesh.brokers.iter().position(|broker| broker.id() == home).unwrap();
    mesh.brokers.remove(at).stop();
    for _ in 0..20 {
        let (reply, answer) = client.call(SERVICE, &body);
        assert_eq!((reply.code, answer), (Code::Ok as u8, body.clone()));
    }
    until("the pipe knows one broker", || mesh.front.stats().brokers == 1);
    // It comes back under its name and is home again.
    let name = if at == 0 { "broker-0" } else { "broker-1" };
    let again = mesh.broker(name);
    assert!(again.id().succeeds(home));
    until("it is ready", || again.is_ready());
    mesh.brokers.push(again);
    assert_eq!(client.call(SERVICE, &body).1, body);
    assert!(worker.served.load(Ordering::SeqCst) >= 22);
}

#[test]
fn a_draining_broker_answers_what_it_holds_and_leaves() {
    let mut mesh = Mesh::start(2);
    let (worker, client) = (mesh.worker(), mesh.client());
    assert_eq!(client.call(SERVICE, &Bytes::new()).0.code, Code::Ok as u8);
    let home = mesh.home(SLOW_SERVICE);
    let at = mesh.brokers.iter().position(|broker| broker.id() == home).unwrap();
    let leaving = mesh.brokers.remove(at);
    let before = worker.served.load(Ordering::SeqCst);
    client.send(&call(SLOW_SERVICE, Bytes::from_static(b"held")));
    until("the worker has it", || worker.served.load(Ordering::SeqCst) > before);
    assert!(leaving.drain(Duration::from_secs(10)), "it did not finish");
    let answers: Vec<_> = (0..2).map(|_| client.hear()).collect();
    assert!(matches!(&answers[0].message, Message::Reply(reply) if reply.code == 0), "{answers:?}");
    assert!(matches!(&answers[1].message, Message::BrokerDown(_)), "{answers:?}");
    assert_eq!(answers[1].steer, Steer::Owner(home));
    let body = Bytes::from_static(b"the other one");
    assert_eq!(client.call(SERVICE, &body).1, body);
}

#[test]
fn headers_that_no_pipe_reads_harm_nobody() {
    let mesh = Mesh::start(1);
    let (_worker, client, rude) = (mesh.worker(), mesh.client(), mesh.client());
    let (good, _) = call(SERVICE, Bytes::new()).encode();
    for at in PREFIX_BYTES..good.len() {
        let mut bad = good.clone();
        // 0xc1 is the byte that MessagePack never uses.
        bad[at] = 0xc1;
        until("it leaves", || rude.socket.send(bad.clone(), Vec::new()) == Sent::Sent);
    }
    let mut cut = good.clone();
    cut[11] -= 1;
    until("it leaves", || rude.socket.send(cut.clone(), Vec::new()) == Sent::Sent);
    until("the broker has seen through it", || mesh.brokers[0].stats().malformed >= 1);
    let body = Bytes::from_static(b"still here");
    assert_eq!(client.call(SERVICE, &body).1, body);
}

#[test]
fn a_pick_uses_a_view_of_the_others_that_is_under_ten_milliseconds_old() {
    // Two services with a home each, and workers that serve both: each broker picks with what it
    // has heard of the other's assignments.
    let ages = (0..TRIES).map(|_| {
        let mesh = Mesh::start(2);
        let service_at = |broker: &Broker| {
            let mut names = (0..).map(|number| format!("test.Service{number}"));
            names.find(|name| mesh.home(name) == broker.id()).unwrap()
        };
        let services: Vec<String> = mesh.brokers.iter().map(service_at).collect();
        let _workers = [mesh.worker_of(services.clone()), mesh.worker_of(services.clone())];
        let client = mesh.client();
        for number in 0..CALLS {
            let (reply, _) = client.call(&services[number % 2], &Bytes::new());
            assert_eq!(reply.code, Code::Ok as u8, "{}", reply.message);
        }
        let mut ask = call(zex_spec::MESH_SERVICE, Bytes::new());
        let Message::Call(header) = &mut ask.message else { unreachable!() };
        header.method = "Brokers".to_owned();
        client.send(&ask);
        let answer = client.hear();
        let Body::Bytes(body) = answer.body else { panic!("{answer:?}") };
        let list = zex_spec::proto::BrokerList::decode(body).unwrap();
        let own = list.brokers.into_iter().find(|broker| broker.answering).unwrap();
        assert!(own.view_picks >= CALLS as u64 / 2, "{own:?}");
        println!(
            "view age: p50 {} ms, p99 {} ms, max {} ms",
            own.view_p50_ms, own.view_p99_ms, own.view_max_ms
        );
        own.view_p99_ms
    });
    let mut ages = ages;
    assert!(ages.any(|p99_ms| p99_ms <= 10), "in {TRIES} tries");
}

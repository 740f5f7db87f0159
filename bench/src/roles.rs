//! The hops of the mesh without any logic: what libzmq alone can do over the same sockets.
//!
//! ```text
//!  client DEALER ─▶ ROUTER pipe ROUTER ◀─ DEALER broker DEALER ─▶ ROUTER pipe ROUTER ◀─ DEALER worker
//!  client DEALER ─▶ ROUTER ────────────── fused broker ────────────────── ROUTER ◀───── DEALER worker
//! ```
//!
//! With *EZ frames* a message is as many frames as the protocol of 2020 has. With *one frame* it is
//!
//! ```text
//!   0        16       32      48
//!   ├─ peer ─┼ client ┼─ id ──┼─ body ─┤      peer: whom the next ROUTER shall send it to
//! ```
//!
//! Frames are moved, never copied; bursts are drained from one side and then from the other, and
//! nobody sleeps while there is something to do, so this is the fastest that these hops can be.

use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use serde_json::json;
use zmq::{Context, Message, Socket, SocketType};

use crate::sockets::{ID_BYTES, bound, dealer, give, take, wait};

/// Messages taken from one side before the other has its turn, as in the mesh.
const BURST: usize = 128;
/// Where the client's name stands in a message of one frame.
const CLIENT_AT: usize = ID_BYTES;
/// The bytes in front of the body of a message of one frame.
pub(crate) const ONE_FRAME_BYTES: usize = 3 * ID_BYTES;
/// What the one worker is called.
pub(crate) const WORKER: [u8; ID_BYTES] = *b"the one worker..";
/// What brokers are called towards pipes.
const BROKER: [u8; ID_BYTES] = *b"the one broker..";
/// How long a role lives if nobody ends it, seconds: longer than any run, and nothing is left over.
const LIFETIME_S: u64 = 900;

/// How messages are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Frames {
    /// As the protocol of 2020 has them.
    Ez,
    /// Everything in one.
    One,
}

/// Which hops a process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// An in pipe or a worker pipe.
    Pipe,
    /// A broker between two pipes, which `--front` and `--back` name.
    Broker,
    /// Two pipes and a broker, over inproc.
    Trio,
    /// One thread with a ROUTER for clients and one for workers.
    Fused,
}

/// A hop, as a process of its own.
#[derive(Args, Debug)]
pub(crate) struct RoleArgs {
    #[arg(value_enum)]
    kind: Kind,
    #[arg(long, value_enum)]
    frames: Frames,
    /// In pipe that a broker connects to
    #[arg(long, default_value = "")]
    front: String,
    /// Worker pipe that a broker connects to
    #[arg(long, default_value = "")]
    back: String,
}

/// Where a role listens, as its ready line says it.
fn say_ready(front: &str, back: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", json!({"front": front, "back": back}))?;
    Ok(out.flush()?)
}

/// Runs a role until it is killed or its lifetime is over.
pub(crate) fn run(args: &RoleArgs) -> anyhow::Result<()> {
    let context = Context::new();
    let until = Instant::now() + Duration::from_secs(LIFETIME_S);
    let any = "tcp://127.0.0.1:*";
    match args.kind {
        Kind::Pipe => {
            let (front, front_at) = bound(&context, SocketType::ROUTER, any)?;
            let (back, back_at) = bound(&context, SocketType::ROUTER, any)?;
            say_ready(&front_at, &back_at)?;
            pipe(&front, &back, args.frames, until)
        }
        Kind::Broker => {
            let front = dealer(&context, BROKER, &args.front)?;
            let back = dealer(&context, BROKER, &args.back)?;
            say_ready("", "")?;
            broker(&front, &back, args.frames, until)
        }
        Kind::Trio => trio(&context, args.frames, until),
        Kind::Fused => {
            let (front, front_at) = bound(&context, SocketType::ROUTER, any)?;
            let (back, back_at) = bound(&context, SocketType::ROUTER, any)?;
            say_ready(&front_at, &back_at)?;
            fused(&front, &back, args.frames, until)
        }
    }
}

fn trio(context: &Context, frames: Frames, until: Instant) -> anyhow::Result<()> {
    let (in_back, worker_back) = ("inproc://in", "inproc://worker");
    let pair = |name: &str| -> anyhow::Result<_> {
        let (front, at) = bound(context, SocketType::ROUTER, "tcp://127.0.0.1:*")?;
        Ok((front, at, bound(context, SocketType::ROUTER, name)?.0))
    };
    let (clients, clients_at, to_broker) = pair(in_back)?;
    let (workers, workers_at, from_broker) = pair(worker_back)?;
    let front = dealer(context, BROKER, in_back)?;
    let back = dealer(context, BROKER, worker_back)?;
    let threads = [
        std::thread::spawn(move || pipe(&clients, &to_broker, frames, until)),
        std::thread::spawn(move || pipe(&workers, &from_broker, frames, until)),
        std::thread::spawn(move || broker(&front, &back, frames, until)),
    ];
    say_ready(&clients_at, &workers_at)?;
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a hop has panicked"))??;
    }
    Ok(())
}

/// Passes messages on in both directions.
fn forward(
    sides: [&Socket; 2],
    until: Instant,
    mut turn: impl FnMut(usize, &mut Vec<Message>) -> Option<()>,
) -> anyhow::Result<()> {
    let mut frames = Vec::new();
    while Instant::now() < until {
        let mut busy = false;
        for (from, to) in [(0, 1), (1, 0)] {
            for _ in 0..BURST {
                if !take(sides[from], &mut frames) {
                    break;
                }
                busy = true;
                turn(from, &mut frames).context("a message that is none of this chain")?;
                // Who is gone has nothing to receive; the client that waits for it says so.
                let _ = give(sides[to], frames.drain(..));
            }
        }
        if !busy {
            wait(&sides, until)?;
        }
    }
    bail!("nobody has ended this role within {LIFETIME_S} s")
}

/// A pipe: in front its peers, behind it the broker.
fn pipe(front: &Socket, back: &Socket, cut: Frames, until: Instant) -> anyhow::Result<()> {
    forward([front, back], until, |from, frames| match (cut, from) {
        // To the broker: its name goes in front, the peer's stays.
        (Frames::Ez, 0) => {
            frames.insert(0, Message::from(&BROKER[..]));
            Some(())
        }
        // From it: the peer's name is what stands behind the broker's.
        (Frames::Ez, _) => {
            frames.remove(0);
            (frames.len() > 1).then_some(())
        }
        (Frames::One, 0) => {
            let [who, frame] = &mut frames[..] else { return None };
            stamp(frame, 0, who)?;
            frames[0] = Message::from(&BROKER[..]);
            Some(())
        }
        (Frames::One, _) => {
            let [broker, frame] = &mut frames[..] else { return None };
            *broker = Message::from(frame.get(..ID_BYTES)?);
            Some(())
        }
    })
}

/// A broker between two pipes.
fn broker(front: &Socket, back: &Socket, cut: Frames, until: Instant) -> anyhow::Result<()> {
    forward([front, back], until, |from, frames| match cut {
        Frames::Ez => ez_turn(from, frames),
        Frames::One => {
            let [frame] = &mut frames[..] else { return None };
            if from == 0 {
                frame.get(ONE_FRAME_BYTES - 1)?;
                frame.copy_within(..ID_BYTES, CLIENT_AT);
                stamp(frame, 0, &WORKER)
            } else {
                frame.get(ONE_FRAME_BYTES - 1)?;
                frame.copy_within(CLIENT_AT..CLIENT_AT + ID_BYTES, 0);
                Some(())
            }
        }
    })
}

/// A broker that clients and workers connect to.
fn fused(front: &Socket, back: &Socket, cut: Frames, until: Instant) -> anyhow::Result<()> {
    forward([front, back], until, |from, frames| match cut {
        // It sees what a broker between ROUTERs sees.
        Frames::Ez => ez_turn(from, frames),
        Frames::One => {
            let [who, frame] = &mut frames[..] else { return None };
            if from == 0 {
                stamp(frame, CLIENT_AT, who)?;
                *who = Message::from(&WORKER[..]);
            } else {
                *who = Message::from(frame.get(CLIENT_AT..CLIENT_AT + ID_BYTES)?);
            }
            Some(())
        }
    })
}

/// `client "" 02 id service body…` becomes `worker "" client id body…`;
/// `worker "" 01 02 client "" id body…` becomes `client "" id body…`.
fn ez_turn(from: usize, frames: &mut Vec<Message>) -> Option<()> {
    if from == 0 {
        frames.get(5)?;
        frames.remove(4);
        frames.remove(2);
        frames.swap(0, 1);
        frames.insert(0, Message::from(&WORKER[..]));
    } else {
        frames.get(6)?;
        frames.drain(..4);
    }
    Some(())
}

fn stamp(frame: &mut Message, at: usize, name: &[u8]) -> Option<()> {
    frame.get_mut(at..at + ID_BYTES)?.copy_from_slice(name.get(..ID_BYTES)?);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::{Dialect, Echo, Requests, answer};

    /// Through a fused broker over real sockets, or two pipes and a broker: what goes round comes
    /// back to who has sent it.
    fn goes_round(kind: Kind, frames: Frames, dialect: Dialect) {
        let context = Context::new();
        let any = || bound(&context, SocketType::ROUTER, "tcp://127.0.0.1:*").unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        let ((clients, clients_at), (workers, workers_at)) = (any(), any());
        let mut hops = Vec::new();
        if kind == Kind::Fused {
            hops.push(std::thread::spawn(move || fused(&clients, &workers, frames, until)));
        } else {
            let ((to, to_at), (from, from_at)) = (any(), any());
            let front = dealer(&context, BROKER, &to_at).unwrap();
            let back = dealer(&context, BROKER, &from_at).unwrap();
            hops.push(std::thread::spawn(move || pipe(&clients, &to, frames, until)));
            hops.push(std::thread::spawn(move || pipe(&workers, &from, frames, until)));
            hops.push(std::thread::spawn(move || broker(&front, &back, frames, until)));
        }
        let client = dealer(&context, [9; ID_BYTES], &clients_at).unwrap();
        let worker = dealer(&context, WORKER, &workers_at).unwrap();
        let (mut requests, mut echo) = (Requests::new(dialect, 10).unwrap(), Echo::new(dialect));
        let (id, mut frames, mut answered) = ([7; ID_BYTES], Vec::new(), false);
        while !answered {
            assert!(Instant::now() < until, "{kind:?}: no answer");
            // The first may come before the worker has connected.
            assert!(give(&client, requests.frames(&id)));
            wait(&[&client, &worker], Instant::now() + Duration::from_millis(20)).unwrap();
            while take(&worker, &mut frames) {
                assert!(give(&worker, echo.answer(&mut frames).unwrap()));
            }
            while take(&client, &mut frames) {
                assert_eq!(answer(dialect, &frames), Some((id, Ok(()))));
                answered = true;
            }
        }
        // No message was one that a hop does not know: that would have ended it.
        assert!(hops.iter().all(|hop| !hop.is_finished()));
    }

    #[test]
    fn every_chain_brings_an_answer_back() {
        for kind in [Kind::Fused, Kind::Trio] {
            goes_round(kind, Frames::Ez, Dialect::Ez);
            goes_round(kind, Frames::One, Dialect::One);
        }
    }
}

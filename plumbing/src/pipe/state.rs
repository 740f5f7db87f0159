//! The state pipe: what a broker says, every broker hears, the speaker too.
//!
//! It looks at a message only so far that garbage stops here, and words in another broker's name.

use std::time::{Duration, Instant};

use zex_core::pipe::STATE_KINDS;
use zex_spec::{Malformed, Prefix, Steer};

use super::{IDLE_MS, Report, Taken, Wrong, broker_of, burst};
use crate::{Error, Mailbox, Sent, Socket, wait};

/// The thread of a state pipe.
pub(super) struct State {
    brokers: Socket,
    publisher: Socket,
    report: Report,
}

impl State {
    pub(super) fn new(brokers: Socket, publisher: Socket, report: Report) -> Self {
        Self { brokers, publisher, report }
    }

    pub(super) fn run(mut self, stop: &Mailbox<()>) -> Result<(), Error> {
        while !stop.is_closed() && stop.try_recv().is_none() {
            let busy = burst(&mut self, |state| &state.brokers, Self::take);
            self.report.publish();
            if !busy {
                let deadline = Instant::now() + Duration::from_millis(IDLE_MS);
                wait(&[&self.brokers], stop, deadline)?;
            }
        }
        Ok(())
    }

    fn take(&mut self, taken: Taken<'_>) {
        self.report.stats.from_brokers += 1;
        let frames = match taken {
            Ok(frames) => frames,
            Err(malformed) => return self.report.malformed(&[], &malformed),
        };
        if let Err(wrong) = check(frames) {
            return self.report.malformed(&frames[0], &wrong);
        }
        match self.publisher.forward(frames.drain(1..)) {
            Sent::Sent => self.report.stats.to_brokers += 1,
            // A PUB says Sent and drops for who is slow: that broker finds the gap in the sequence
            // and asks for a snapshot. This is for what libzmq may do some day.
            Sent::WouldBlock | Sent::NoRoute => self.report.stats.dropped_full += 1,
        }
    }
}

/// Whether brokers may hear this.
fn check(frames: &[zmq::Message]) -> Result<(), Wrong> {
    let [who, first, ..] = frames else {
        return Err(Malformed::FrameCount(0).into());
    };
    let broker = broker_of(who)?;
    let Prefix { kind, steer, .. } = Prefix::decode(first)?;
    // A broker speaks of itself only: its goodbye in the mouth of another would end it everywhere.
    let own = steer == Steer::Owner(broker);
    if own && STATE_KINDS.contains(&kind) { Ok(()) } else { Err(Wrong::OutOfPlace(kind)) }
}

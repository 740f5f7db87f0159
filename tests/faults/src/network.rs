//! Brokers in network namespaces of their own, each with a wire that can be cut, one-way as well.
//!
//! ```text
//!   here: pipes at 10.213.x.1 ─┬─ veth ─ 10.213.x.2   broker-1
//!                              ├─ veth ─ 10.213.x.6   broker-2
//!                              └─ veth ─ 10.213.x.10  broker-3
//! ```
//!
//! A direction is cut by a wrong hardware address for who is at its other end: what is sent goes
//! nowhere, and nobody is told, as with a cable. It needs no packet filter in the kernel.

use std::process::Command;

use crate::stage::Place;

/// What a cut wire still passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Nothing.
    Both,
    /// Pipes to broker: it hears and is not heard.
    Mute,
    /// Broker to pipes: it is heard and does not hear.
    Deaf,
}

/// Network namespaces. They go with this.
#[derive(Debug)]
pub struct Islands {
    names: Vec<String>,
    network: u32,
}

/// An address that no interface has.
const NOBODY: &str = "02:00:00:00:00:fe";

impl Islands {
    /// Makes so many.
    ///
    /// # Errors
    /// What `ip` says where that is not permitted or not installed.
    pub fn make(count: usize) -> Result<Self, String> {
        let process = std::process::id();
        let mut islands = Self { names: Vec::new(), network: process & 255 };
        for number in 0..count {
            let name = format!("zf{process}-{number}");
            ip(&format!("netns add {name}"))?;
            islands.names.push(name.clone());
            let (here, there) = (islands.here(number), islands.there(number));
            let (mac, their_mac) = (mac(number, 1), mac(number, 2));
            for command in [
                format!(
                    "link add {name} address {mac} type veth \
                     peer name eth0 address {their_mac} netns {name}"
                ),
                format!("addr add {here}/30 dev {name}"),
                format!("link set {name} up"),
                format!("-n {name} addr add {there}/30 dev eth0"),
                format!("-n {name} link set lo up"),
                format!("-n {name} link set eth0 up"),
                format!("-n {name} route add default via {here}"),
            ] {
                ip(&command)?;
            }
            islands.heal(number)?;
        }
        Ok(islands)
    }

    /// The address where the pipes listen: every island reaches it by its own wire.
    pub fn host(&self) -> String {
        self.here(0)
    }

    /// Where the brokers are started.
    pub fn places(&self) -> Vec<Place> {
        let place = |name: &String| {
            let command = ["ip", "netns", "exec", name].map(str::to_owned).to_vec();
            Place { command, host: self.host() }
        };
        self.names.iter().map(place).collect()
    }

    /// Cuts the wire of an island.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn cut(&self, number: usize, cut: Cut) -> Result<(), String> {
        let (theirs, ours) = (mac(number, 2), mac(number, 1));
        match cut {
            Cut::Both => self.set(number, NOBODY, NOBODY),
            Cut::Mute => self.set(number, &theirs, NOBODY),
            Cut::Deaf => self.set(number, NOBODY, &ours),
        }
    }

    /// Mends it.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn heal(&self, number: usize) -> Result<(), String> {
        self.set(number, &mac(number, 2), &mac(number, 1))
    }

    /// Whom both ends take for each other.
    fn set(&self, number: usize, theirs: &str, ours: &str) -> Result<(), String> {
        let (name, here, there) = (&self.names[number], self.here(number), self.there(number));
        ip(&format!("neigh replace {there} lladdr {theirs} nud permanent dev {name}"))?;
        ip(&format!("-n {name} neigh replace {here} lladdr {ours} nud permanent dev eth0"))
    }

    fn here(&self, number: usize) -> String {
        format!("10.213.{}.{}", self.network, 4 * number + 1)
    }

    fn there(&self, number: usize) -> String {
        format!("10.213.{}.{}", self.network, 4 * number + 2)
    }
}

impl Drop for Islands {
    fn drop(&mut self) {
        for name in &self.names {
            // The wire goes with its island. What is left is said by the next who takes the name.
            let _ = ip(&format!("netns del {name}"));
        }
    }
}

fn mac(number: usize, end: usize) -> String {
    format!("02:00:00:00:{number:02x}:{end:02x}")
}

fn ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip").args(arguments.split_whitespace()).output();
    let output = output.map_err(|error| format!("ip: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("ip {arguments}: {}", said.trim())) }
}

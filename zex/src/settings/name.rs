//! What a role is called, in logs and in `zex brokers` and `zex workers`.

use clap::Args;
use zex_spec::MAX_NAME_BYTES;

/// The name of a pipe, a broker or a worker.
#[derive(Args, Clone, Debug)]
pub(crate) struct Name {
    /// Name of this pipe, broker or worker, unlike every other's of its kind; made from the host's
    /// name and the process's id if not given. A broker that keeps its name over a restart stays
    /// home to the same services
    #[arg(long, env = "ZEX_NAME", value_name = "NAME", help_heading = "General")]
    #[arg(value_parser = parse)]
    name: Option<String>,
}

impl Name {
    /// The name given, or `role-host-pid`.
    ///
    /// In a container the process's id is the same after every restart, so a broker there keeps
    /// its name, and with it the services that it is home to.
    pub(crate) fn or_own(&self, role: &str) -> String {
        let own = || format!("{role}-{}-{}", host(), std::process::id());
        self.name.clone().unwrap_or_else(own)
    }
}

/// A name as it can travel and be read in a log.
fn parse(name: &str) -> Result<String, String> {
    if !(1..=MAX_NAME_BYTES).contains(&name.len()) {
        return Err(format!("a name has 1 to {MAX_NAME_BYTES} bytes, not {}", name.len()));
    }
    if name.contains(char::is_control) {
        return Err("a name has no control characters".to_owned());
    }
    Ok(name.to_owned())
}

/// The machine's name, which in a container is the container's.
fn host() -> String {
    let said = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let said = said.or_else(|| std::env::var("HOSTNAME").ok());
    let host = said.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
    // 64 is what Linux allows; a longer one of another system would make the name too long.
    host.map_or_else(|| "host".to_owned(), |name| name.chars().take(64).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_can_travel_and_be_read() {
        assert_eq!(parse("broker-ß 1").as_deref(), Ok("broker-ß 1"));
        for bad in ["", "a\0b", "two\nlines", &"x".repeat(256)] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}

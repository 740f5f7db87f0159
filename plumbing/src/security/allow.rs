//! The allow-list: one line for each key, saying what it may be.
//!
//! ```text
//! # roles                                   key
//! broker                                    Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID   # broker-1
//! client                                    …
//! worker example.v1.Users,example.v1.Groups …
//! client worker zex.*                       …
//! ```
//!
//! The key may stand in front of its roles as well. No key begins with `#`, so that always begins a
//! comment.

use std::collections::HashMap;

use super::keys::{KeyError, PublicKey};

/// Lines of a list: more than this is not a list that anybody keeps.
const MAX_LINES: usize = 100_000;

/// What a person can write.
const ROLES: &str = "client, worker (with its services, as a.B,c.* or * for all) or broker";

/// What somebody can be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Role {
    /// Makes calls.
    Client,
    /// Serves.
    Worker,
    /// Picks workers.
    Broker,
}

impl Role {
    /// Its name in the list.
    pub fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Worker => "worker",
            Self::Broker => "broker",
        }
    }

    /// The role of this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::Client, Self::Worker, Self::Broker].into_iter().find(|role| role.name() == name)
    }
}

/// A line that says nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct AllowError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub reason: String,
}

#[derive(Debug, Default, Clone)]
struct Rights {
    client: bool,
    broker: bool,
    /// Names of services; one that ends with `*` stands for all that begin so.
    serves: Vec<String>,
}

/// Which key may be what.
#[derive(Debug, Default)]
pub struct AllowList {
    keys: HashMap<PublicKey, Rights>,
}

impl AllowList {
    /// Reads a list. A key may have several lines. Empty lines are ignored, and what comes behind a
    /// `#` that begins a word.
    ///
    /// # Errors
    /// [`AllowError`] names the first line that is wrong.
    pub fn parse(text: &str) -> Result<Self, AllowError> {
        let mut list = Self::default();
        for (number, line) in (1..).zip(text.lines()) {
            let words: Vec<&str> =
                line.split_whitespace().take_while(|word| !word.starts_with('#')).collect();
            if words.is_empty() {
                continue;
            }
            let wrong = |reason: String| AllowError { line: number, reason };
            if number > MAX_LINES {
                return Err(wrong(format!("a list has at most {MAX_LINES} lines")));
            }
            list.add(&words).map_err(wrong)?;
        }
        Ok(list)
    }

    fn add(&mut self, words: &[&str]) -> Result<(), String> {
        let (key, words) = split(words)?;
        let mut words = words.into_iter();
        let mut rights = self.keys.get(&key).cloned().unwrap_or_default();
        let mut any = false;
        while let Some(word) = words.next() {
            any = true;
            match Role::named(word) {
                Some(Role::Client) => rights.client = true,
                Some(Role::Broker) => rights.broker = true,
                Some(Role::Worker) => {
                    let services = words.next().filter(|services| !services.is_empty());
                    let services = services
                        .ok_or("behind `worker` come its services, as a.B,c.* or * for all")?;
                    rights.serves.extend(services.split(',').map(str::to_owned));
                }
                None => return Err(format!("`{word}` is no role: {ROLES}")),
            }
        }
        if !any {
            return Err(format!("beside the key stands its role: {ROLES}"));
        }
        self.keys.insert(key, rights);
        Ok(())
    }

    /// How many keys it has.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether it lets nobody in.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether this key is listed at all.
    pub fn knows(&self, key: &PublicKey) -> bool {
        self.keys.contains_key(key)
    }

    /// Whether this key may be that.
    pub fn may_be(&self, key: &PublicKey, role: Role) -> bool {
        self.keys.get(key).is_some_and(|rights| match role {
            Role::Client => rights.client,
            Role::Broker => rights.broker,
            Role::Worker => !rights.serves.is_empty(),
        })
    }

    /// Whether a worker with this key may serve that.
    pub fn may_serve(&self, key: &PublicKey, service: &str) -> bool {
        let fits = |pattern: &String| match pattern.strip_suffix('*') {
            Some(start) => service.starts_with(start),
            None => service == pattern,
        };
        self.keys.get(key).is_some_and(|rights| rights.serves.iter().any(fits))
    }
}

/// A line's key, which is its last word or its first, and the words that say what it may be. Which
/// of the two it is the first word tells: a service's name can look like a key.
fn split<'a>(words: &[&'a str]) -> Result<(PublicKey, Vec<&'a str>), String> {
    let (key, roles) = match words {
        [first, roles @ ..] if Role::named(first).is_none() && is_key(first) => (*first, roles),
        // As a key file has it.
        ["public", key, roles @ ..] => (*key, roles),
        [roles @ .., key] => (*key, roles),
        [] => return Err("it is empty".to_owned()),
    };
    let key = key.parse().map_err(|error: KeyError| match roles.first() {
        Some(first) if Role::named(first).is_none() => format!("`{first}` is no role: {ROLES}"),
        _ => error.to_string(),
    })?;
    Ok((key, roles.iter().copied().filter(|word| *word != "public").collect()))
}

fn is_key(word: &str) -> bool {
    word.parse::<PublicKey>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Keys;

    fn key() -> PublicKey {
        Keys::generate().unwrap().public().clone()
    }

    #[test]
    fn each_key_may_be_what_its_lines_say() {
        let [a, b, c] = [(); 3].map(|()| key());
        let text =
            format!("# roles key\n\nclient {a}\n  broker   {b}\nworker x.Y,z.* {c}\nclient {c}\n");
        let list = AllowList::parse(&text).unwrap();
        assert_eq!(list.len(), 3);
        assert!(list.may_be(&a, Role::Client) && !list.may_be(&a, Role::Worker));
        assert!(list.may_be(&b, Role::Broker) && !list.may_be(&b, Role::Client));
        assert!(list.may_be(&c, Role::Client) && list.may_be(&c, Role::Worker));
        assert!(list.may_serve(&c, "x.Y") && list.may_serve(&c, "z.Any"));
        assert!(!list.may_serve(&c, "x.YZ") && !list.may_serve(&a, "x.Y"));
        assert!(!list.knows(&key()));
    }

    #[test]
    fn a_key_stands_behind_or_before_its_roles_and_comments_behind_all() {
        let [a, b, c] = [(); 3].map(|()| key());
        let text = format!(
            "client {a} # alice\n{b} worker x.Y client #bob\n  # client {c}\n#client {c}\n\
             public {c} broker\nclient public {c}\n"
        );
        let list = AllowList::parse(&text).unwrap();
        assert!(list.may_be(&a, Role::Client) && !list.may_be(&a, Role::Worker));
        assert!(list.may_serve(&b, "x.Y") && list.may_be(&b, Role::Client));
        assert!(list.may_be(&c, Role::Broker) && list.may_be(&c, Role::Client));
        // The name of a service that could be a key.
        let name = "example.v1.VeryLongServiceNameThatIsAKey";
        assert!(is_key(name), "the test has lost its point");
        assert!(AllowList::parse(&format!("worker {name} {a}")).unwrap().may_serve(&a, name));
    }

    #[test]
    fn a_line_that_says_nothing_is_named() {
        let key = key();
        for (bad, wanted) in [
            (format!("{key}"), "beside the key stands its role: client, worker (with"),
            (format!("worker {key}"), "behind `worker` come its services"),
            (format!("chief {key}"), "`chief` is no role: client, worker (with"),
            (format!("{key} chief # of all"), "`chief` is no role: client, worker (with"),
            (format!("chief {key} client"), "`chief` is no role: client, worker (with"),
            ("client nokey".to_owned(), "\"nokey\" is no key"),
            ("nokey".to_owned(), "\"nokey\" is no key"),
        ] {
            let error = AllowList::parse(&format!("client {key}\n{bad}")).unwrap_err();
            assert_eq!(error.line, 2, "{error}");
            assert!(error.reason.starts_with(wanted), "{bad}: {error}");
        }
    }
}

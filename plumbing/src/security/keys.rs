//! CURVE keys as text, and the file that holds a pair of them.

use std::fmt;
use std::str::FromStr;

/// Characters of a key in Z85, the text form of ZeroMQ.
const TEXT_CHARS: usize = 40;
/// Z85's characters that are no letters or digits.
const SIGNS: &[u8] = b".-:+=^!/*?&<>()[]{}@%$#";
/// Bytes of a key.
pub(crate) const KEY_BYTES: usize = 32;

/// What is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not 40 characters of Z85.
    #[error("{0:?} is no key: a key has 40 characters, as `zex keygen` writes it")]
    Text(String),
    /// A key file without one of its lines.
    #[error("a key file has a line `{0} KEY`, as `zex keygen` writes it; this one has none")]
    Missing(&'static str),
    /// The two halves do not belong together, or this libzmq cannot encrypt.
    #[error("this libzmq cannot make keys: it was built without CURVE")]
    NoCurve,
}

/// A public key: what others may know of somebody.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey(String);

impl PublicKey {
    /// From the 32 bytes that libzmq authenticated.
    pub(crate) fn of(bytes: &[u8]) -> Option<Self> {
        (bytes.len() == KEY_BYTES).then(|| zmq::z85_encode(bytes).ok().map(Self)).flatten()
    }

    /// Its 40 characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        bytes(&self.0)
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        checked(text).map(Self)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A pair of keys. Whoever has the secret half is who the public half names.
#[derive(Clone)]
pub struct Keys {
    public: PublicKey,
    secret: String,
}

impl Keys {
    /// A new pair.
    ///
    /// # Errors
    /// [`KeyError::NoCurve`].
    pub fn generate() -> Result<Self, KeyError> {
        let pair = zmq::CurveKeyPair::new().map_err(|_| KeyError::NoCurve)?;
        let public = PublicKey::of(&pair.public_key).ok_or(KeyError::NoCurve)?;
        let secret = zmq::z85_encode(&pair.secret_key).map_err(|_| KeyError::NoCurve)?;
        Ok(Self { public, secret })
    }

    /// From the text of a key file: lines `public KEY` and `secret KEY`. Other lines are ignored.
    ///
    /// # Errors
    /// [`KeyError::Missing`], [`KeyError::Text`].
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let secret = checked(line(text, "secret")?).map_err(|_| {
            // Not in the error: it may be a secret with a letter too many.
            KeyError::Text("the secret".to_owned())
        })?;
        Ok(Self { public: Self::public_of(text)?, secret })
    }

    /// The public key in a text: of a key file, whose secret may be absent, or all there is.
    ///
    /// # Errors
    /// As [`Keys::parse`].
    pub fn public_of(text: &str) -> Result<PublicKey, KeyError> {
        text.trim().parse().or_else(|_| line(text, "public")?.parse())
    }

    /// The text of its file.
    pub fn to_text(&self) -> String {
        format!(
            "# A key of a Zex mesh. Keep this file to yourself; others need the public line only.\n\
             public {}\nsecret {}\n",
            self.public, self.secret
        )
    }

    /// Its public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    pub(crate) fn secret_bytes(&self) -> Vec<u8> {
        bytes(&self.secret)
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({})", self.public)
    }
}

fn line<'a>(text: &'a str, name: &'static str) -> Result<&'a str, KeyError> {
    let rest = text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(' '));
    rest.map(str::trim).ok_or(KeyError::Missing(name))
}

fn checked(text: &str) -> Result<String, KeyError> {
    // The crate panics on a zero byte, and accepts other lengths and characters.
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || SIGNS.contains(&byte);
    let plain = text.len() == TEXT_CHARS && text.bytes().all(fits);
    let good = plain && zmq::z85_decode(text).is_ok_and(|bytes| bytes.len() == KEY_BYTES);
    if good { Ok(text.to_owned()) } else { Err(KeyError::Text(text.to_owned())) }
}

fn bytes(text: &str) -> Vec<u8> {
    // It was checked when it was made.
    zmq::z85_decode(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_comes_back_from_its_file_and_does_not_show_its_secret() {
        let keys = Keys::generate().unwrap();
        let back = Keys::parse(&keys.to_text()).unwrap();
        assert_eq!((back.public(), &back.secret), (keys.public(), &keys.secret));
        assert_eq!(keys.secret_bytes().len(), KEY_BYTES);
        assert!(!format!("{keys:?}").contains(&keys.secret));
        let public: String =
            keys.to_text().lines().filter(|line| !line.contains("secret")).collect();
        assert_eq!(Keys::parse(&public).err(), Some(KeyError::Missing("secret")));
        assert_eq!(Keys::public_of(&public.replace("only.", "only.\n")).unwrap(), *keys.public());
        for text in [format!("{}\n", keys.public()), format!("public {}", keys.public())] {
            assert_eq!(Keys::public_of(&text).unwrap(), *keys.public());
        }
    }

    #[test]
    fn what_is_no_key_is_said() {
        for bad in ["", "short", &"x".repeat(39), &"~".repeat(40), &"é".repeat(20), "\0"] {
            assert_eq!(bad.parse::<PublicKey>(), Err(KeyError::Text(bad.to_owned())));
        }
    }
}

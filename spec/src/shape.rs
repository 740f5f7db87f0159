//! Whether a header has the shape that its kind demands, looked at before serde reads it.
//!
//! rmp-serde is liberal: it takes a map for a struct, bytes for a string or for a list of numbers,
//! and ignores what stands behind. What one implementation takes, another comes to rely on; so
//! everything that `protocol.md` does not allow is refused here, by the place where it stands.
//!
//! Called by [`crate::Message`] alone. Integers may be longer than they need to be (some MessagePack
//! libraries cannot help it); serde checks that they fit.

/// What one value of a header has to be.
pub(crate) enum Shape {
    Bool,
    Uint,
    Str,
    Bin,
    /// Keys and instance ids.
    Bin16,
    List(&'static Shape),
    /// A struct: an array of exactly these.
    Fields(&'static [Shape]),
    /// The last fields of a struct only: may be missing, with all behind it.
    Maybe(&'static Shape),
}

impl Shape {
    /// Checks that `header` is one value of this shape and nothing more.
    pub(crate) fn check(&self, header: &[u8]) -> Result<(), String> {
        match self.skip(header)? {
            [] => Ok(()),
            rest => Err(format!("{} bytes too many", rest.len())),
        }
    }

    /// What stands behind the value; or what was expected in its place.
    fn skip<'a>(&self, from: &'a [u8]) -> Result<&'a [u8], String> {
        if let Self::Maybe(shape) = self {
            return shape.skip(from);
        }
        let (value, rest) = Value::read(from).ok_or("it ends too early")?;
        match (self, value) {
            (Self::Bool, Value::Bool) | (Self::Uint, Value::Int) => Ok(rest),
            (Self::Bin16, Value::Bin(16)) => after(rest, 16),
            (Self::Str, Value::Str(len)) | (Self::Bin, Value::Bin(len)) => after(rest, len),
            (Self::List(of), Value::Array(len)) => of.skip_all(rest, len),
            (Self::Fields(fields), Value::Array(len)) if suffice(fields, len) => {
                fields.iter().take(len).enumerate().try_fold(rest, |rest, (at, field)| {
                    field.skip(rest).map_err(|reason| format!("[{at}] {reason}"))
                })
            }
            (Self::Fields(fields), Value::Array(len)) => {
                Err(format!("{} fields were expected, not {len}", fields.len()))
            }
            (_, value) => Err(format!("{} was expected, not {value:?}", self.article())),
        }
    }

    fn skip_all<'a>(&self, from: &'a [u8], len: usize) -> Result<&'a [u8], String> {
        // An item has a byte at least, so a length that lies ends the loop early.
        (0..len)
            .try_fold(from, |rest, at| self.skip(rest).map_err(|reason| format!("[{at}] {reason}")))
    }

    fn article(&self) -> &'static str {
        match self {
            Self::Bool => "a bool",
            Self::Uint => "an integer",
            Self::Str => "a str",
            Self::Bin => "a bin",
            Self::Bin16 => "a bin of 16 bytes",
            Self::List(_) | Self::Fields(_) => "an array",
            Self::Maybe(shape) => shape.article(),
        }
    }
}

/// Whether a struct of these fields may have so many.
fn suffice(fields: &[Shape], len: usize) -> bool {
    let missing = fields.get(len..);
    missing.is_some_and(|missing| missing.iter().all(|field| matches!(field, Shape::Maybe(_))))
}

/// The first byte or bytes of a MessagePack value, with its length.
#[derive(Debug)]
enum Value {
    Bool,
    Int,
    Str(usize),
    Bin(usize),
    Array(usize),
    /// Nothing that a header has: nil, floats, maps, extensions.
    Other,
}

impl Value {
    /// The value's head, and what stands behind it (behind the whole of a number).
    fn read(from: &[u8]) -> Option<(Self, &[u8])> {
        let (marker, rest) = from.split_first()?;
        let low = |bits: u8| usize::from(marker & bits);
        // The big-endian length of so many bytes in front of what it measures.
        let length = |bytes: usize| -> Option<(usize, &[u8])> {
            let (length, rest) = rest.split_at_checked(bytes)?;
            Some((length.iter().fold(0, |sum, byte| (sum << 8) | usize::from(*byte)), rest))
        };
        let sized = |value: fn(usize) -> Self, bytes: usize| {
            length(bytes).map(|(length, rest)| (value(length), rest))
        };
        Some(match marker {
            0x00..=0x7f | 0xe0..=0xff => (Self::Int, rest),
            0x90..=0x9f => (Self::Array(low(0x0f)), rest),
            0xa0..=0xbf => (Self::Str(low(0x1f)), rest),
            0xc2 | 0xc3 => (Self::Bool, rest),
            0xc4..=0xc6 => return sized(Self::Bin, 1 << (marker - 0xc4)),
            0xcc..=0xcf => (Self::Int, rest.get(1 << (marker - 0xcc)..)?),
            0xd0..=0xd3 => (Self::Int, rest.get(1 << (marker - 0xd0)..)?),
            0xd9..=0xdb => return sized(Self::Str, 1 << (marker - 0xd9)),
            0xdc | 0xdd => return sized(Self::Array, 2 << (marker - 0xdc)),
            _ => (Self::Other, rest),
        })
    }
}

/// What stands behind `len` bytes.
fn after(from: &[u8], len: usize) -> Result<&[u8], String> {
    from.get(len..).ok_or_else(|| "it ends too early".into())
}

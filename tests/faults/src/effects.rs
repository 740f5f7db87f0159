//! What workers did, in files that they append to before they answer: one for each life of a
//! worker, a record of fixed length for each effect, a system call for each record, so that a
//! killed worker has written all it did.
//!
//! ```text
//!   key 16 │ attempt 1 │ flags 1 │ 0 … 6 │ µs since 1970 u64
//! ```

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Bytes of one record.
const RECORD_BYTES: usize = 32;
/// Flag: the broker has said that a worker which is gone may have begun this.
pub const AGAIN: u8 = 1;

/// Something that was done for a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effect {
    /// Which life of which worker did it: the name of its file.
    pub life: String,
    /// How often the caller had sent the call again.
    pub attempt: u8,
    /// [`AGAIN`] or nothing.
    pub flags: u8,
    /// When, in microseconds since 1970.
    pub at_us: u64,
}

/// A worker's own file of effects.
#[derive(Debug)]
pub struct Record {
    file: File,
}

impl Record {
    /// Opens it to append.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: OpenOptions::new().create(true).append(true).open(path)? })
    }

    /// Writes an effect down, before anything else is done.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&self, key: [u8; 16], attempt: u8, flags: u8) -> io::Result<()> {
        let mut record = [0; RECORD_BYTES];
        record[..16].copy_from_slice(&key);
        record[16] = attempt;
        record[17] = flags;
        record[24..].copy_from_slice(&now_us().to_be_bytes());
        // One system call for each: appended whole.
        (&self.file).write_all(&record)
    }
}

/// Microseconds since 1970: the one clock that all processes of a test share.
pub fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_micros() as u64
}

/// All effects in a directory, by key.
///
/// # Panics
/// If a file cannot be read.
pub fn read(directory: &Path) -> HashMap<[u8; 16], Vec<Effect>> {
    let mut effects: HashMap<_, Vec<_>> = HashMap::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let life = entry.file_name().to_string_lossy().into_owned();
        for record in std::fs::read(entry.path()).unwrap().chunks_exact(RECORD_BYTES) {
            let key: [u8; 16] = record[..16].try_into().unwrap();
            let at_us = u64::from_be_bytes(record[24..].try_into().unwrap());
            let (attempt, flags) = (record[16], record[17]);
            let effect = Effect { life: life.clone(), attempt, flags, at_us };
            effects.entry(key).or_default().push(effect);
        }
    }
    effects.values_mut().for_each(|of_key| of_key.sort_by_key(|effect| effect.at_us));
    effects
}

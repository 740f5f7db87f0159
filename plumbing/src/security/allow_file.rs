//! The allow-list in its file. A pipe looks at the file now and then, and takes what is new in it
//! without a restart; a list that is broken changes nothing.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::{AllowError, AllowList};

/// Why a file gives no list.
#[derive(Debug, thiserror::Error)]
pub enum AllowFileError {
    /// It cannot be read.
    #[error("cannot read {}: {reason}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        reason: std::io::Error,
    },
    /// A line of it says nothing.
    #[error("{} is no list of keys: {line}", path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// Which line, and what is wrong with it.
        line: AllowError,
    },
}

/// A list in a file. [`crate::Context::gate_by_file`] follows it.
#[derive(Debug)]
pub struct AllowFile {
    path: PathBuf,
    /// What the file was like when it was last read.
    seen: Option<Stamp>,
    /// What was in it at first.
    first: AllowList,
}

/// By this one sees that a file is not what it was: when it was written and changed, its length, and
/// which file it is.
type Stamp = [i64; 6];

impl AllowFile {
    /// Reads the list.
    ///
    /// # Errors
    /// [`AllowFileError`] if there is none.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, AllowFileError> {
        let path = path.into();
        // Before it is read: what is written meanwhile is seen the next time.
        let seen = stamp(&path);
        let first = read(&path)?;
        Ok(Self { path, seen, first })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The list as it was when it was opened; once.
    pub(crate) fn take(&mut self) -> AllowList {
        std::mem::take(&mut self.first)
    }

    /// What is in the file now, if it has changed since the last time.
    pub(crate) fn look(&mut self) -> Option<Result<AllowList, AllowFileError>> {
        let now = stamp(&self.path);
        if now == self.seen {
            return None;
        }
        self.seen = now;
        Some(read(&self.path))
    }
}

fn read(path: &Path) -> Result<AllowList, AllowFileError> {
    let text = std::fs::read_to_string(path)
        .map_err(|reason| AllowFileError::Read { path: path.to_owned(), reason })?;
    AllowList::parse(&text).map_err(|line| AllowFileError::Line { path: path.to_owned(), line })
}

/// None while there is no such file.
fn stamp(path: &Path) -> Option<Stamp> {
    let data = std::fs::metadata(path).ok()?;
    // Neither the length nor the number of a file comes near to what does not fit.
    let (length, number) = (data.len() as i64, data.ino() as i64);
    Some([data.mtime(), data.mtime_nsec(), data.ctime(), data.ctime_nsec(), length, number])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Keys, Role};

    #[test]
    fn what_is_new_in_the_file_is_seen_once_and_what_is_broken_is_named() {
        let [one, two] = [(); 2].map(|()| Keys::generate().unwrap().public().clone());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("allow");
        assert!(AllowFile::open(&path).unwrap_err().to_string().starts_with("cannot read /"));
        std::fs::write(&path, format!("client {one}\n")).unwrap();
        let mut file = AllowFile::open(&path).unwrap();
        assert!(file.take().may_be(&one, Role::Client));
        assert!(file.look().is_none());
        std::fs::write(&path, format!("client {one}\nchief {two}\n")).unwrap();
        let wrong = file.look().unwrap().unwrap_err().to_string();
        assert!(wrong.contains("line 2: ") && wrong.contains("allow is no list"), "{wrong}");
        assert!(file.look().is_none());
        // As editors do: another file takes the name.
        let other = dir.path().join("other");
        std::fs::write(&other, format!("client {two}\n")).unwrap();
        std::fs::rename(&other, &path).unwrap();
        let list = file.look().unwrap().unwrap();
        assert!(list.may_be(&two, Role::Client) && !list.knows(&one));
        std::fs::remove_file(&path).unwrap();
        assert!(file.look().unwrap().is_err());
        assert!(file.look().is_none());
    }
}

//! `zex call --record FILE`: the call that was made becomes a step behind the others in a pipeline's
//! file. The file may be somebody's own: his comments and his layout stay.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use prost_reflect::MethodDescriptor;
use zex_pipeline::recording::{self, Said};

/// A call that is to be kept.
pub(super) struct Keep<'a> {
    file: &'a Path,
    method: &'a MethodDescriptor,
    body: Bytes,
    idempotent: bool,
}

impl<'a> Keep<'a> {
    /// Checks that the call can be a step of that file, before it is made.
    pub(super) fn new(
        file: &'a Path,
        method: &'a MethodDescriptor,
        body: Bytes,
        idempotent: bool,
    ) -> anyhow::Result<Self> {
        let keep = Self { file, method, body, idempotent };
        keep.with_the_step()?;
        Ok(keep)
    }

    /// Puts it into the file; the id of its step.
    pub(super) fn write(self) -> anyhow::Result<String> {
        let (text, id) = self.with_the_step()?;
        // Whole or not at all, whatever happens meanwhile.
        let folder = match self.file.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            _ => PathBuf::from("."),
        };
        let cannot = || format!("cannot write {}", self.file.display());
        let mut fresh = tempfile::NamedTempFile::new_in(folder).with_context(cannot)?;
        std::io::Write::write_all(&mut fresh, text.as_bytes()).with_context(cannot)?;
        if let Ok(before) = std::fs::metadata(self.file) {
            std::fs::set_permissions(fresh.path(), before.permissions()).with_context(cannot)?;
        }
        fresh.persist(self.file).map_err(|error| error.error).with_context(cannot)?;
        Ok(id)
    }

    /// The file with the step in it, and the step's id.
    fn with_the_step(&self) -> anyhow::Result<(String, String)> {
        let text = match std::fs::read_to_string(self.file) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", self.file.display()));
            }
        };
        let name = self.file.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let mut id = String::new();
        let put = recording::append(&text, &name.unwrap_or_default(), |ids| {
            let mut said = Said::default();
            if let Some(last) = ids.last() {
                // Calls were made one after the other, and so they shall be again.
                said.fields.insert("after".to_owned(), (*last).into());
            }
            if self.idempotent {
                said.fields.insert("idempotent".to_owned(), true.into());
            }
            let step = recording::step(self.method, &self.body, &said, |id| ids.contains(&id))?;
            id = step.get("id").and_then(|id| id.as_str()).unwrap_or_default().to_owned();
            Ok(step)
        });
        let put = put.map_err(|why| {
            let file = self.file.display();
            let lines: Vec<_> = why.lines().map(|line| format!("{file}: {line}")).collect();
            anyhow!("--record: {}", lines.join("\n       "))
        })?;
        Ok((put, id))
    }
}

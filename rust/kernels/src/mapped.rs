//! A sealed file as a slice of bytes, read through the page cache.
//!
//! Contract: only sealed files are mapped, that is, files that were written and synced under another name, renamed into
//! place, and that nobody writes or shortens again. Deleting a mapped file is fine: its bytes stay until the last map
//! goes. Under that contract the slice never changes, so it may be shared between threads.
//!
//! Limits, which no code here can lift: if someone else shortens a mapped file, the next read past its new end kills the
//! process (SIGBUS), and so does an I/O error of the disk under a page that is not cached. If someone writes into it, bytes
//! change under a reader's feet, which Rust calls undefined.
//! A directory must belong to one engine, which the engine's lock file ensures among engines.
//!
//! Any thread may map, read and drop; the map holds no lock, and the `File` may be closed after [`MappedFile::map`].

use std::fmt;
use std::fs::File;
use std::io;

use memmap2::Mmap;

/// The bytes of a sealed file, for as long as this value lives.
pub struct MappedFile {
    /// `None` for an empty file: there is no map of length zero.
    map: Option<Mmap>,
}

impl MappedFile {
    /// Maps the whole file as it is now. The caller keeps the contract above: the file is sealed.
    ///
    /// # Errors
    /// What the system says about the file's length or the map, for instance no memory or not a regular file.
    pub fn map(file: &File) -> io::Result<Self> {
        if file.metadata()?.len() == 0 {
            return Ok(Self { map: None });
        }
        // SAFETY: the contract of this module: a mapped file is sealed, so that its bytes neither change nor go away.
        let map = unsafe { Mmap::map(file)? };
        Ok(Self { map: Some(map) })
    }

    /// All bytes of the file.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }
}

impl fmt::Debug for MappedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MappedFile").field("bytes", &self.as_bytes().len()).finish()
    }
}

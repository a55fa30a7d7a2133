//! Mapped files give back their bytes, and no kernel reads past the end of one.
#![allow(
    clippy::disallowed_methods,
    reason = "this crate lies below env::Files, so its tests make their files themselves"
)]

use std::fs::{self, File};
use std::path::PathBuf;

use engram_kernels::{MappedFile, available, dot_at, dot_rows_at, l2_squared_at, norm_squared_at, norms_squared_at};
use memmap2::MmapOptions;

/// A file in the system's folder for temporary files, gone at the end of the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, content: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("engram-{}-{name}", std::process::id()));
        fs::write(&path, content).unwrap();
        Self(path)
    }

    fn open(&self) -> File {
        File::open(&self.0).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn a_mapped_file_gives_its_bytes() {
    let content: Vec<u8> = (0..10_000_u32).flat_map(u32::to_le_bytes).collect();
    let scratch = Scratch::new("bytes", &content);
    let mapped = MappedFile::map(&scratch.open()).unwrap();
    assert_eq!(mapped.as_bytes(), content);
    assert_eq!(format!("{mapped:?}"), "MappedFile { bytes: 40000 }");
    let sum = std::thread::scope(|scope| {
        scope.spawn(|| mapped.as_bytes().iter().map(|&b| u64::from(b)).sum::<u64>()).join().unwrap()
    });
    assert_eq!(sum, content.iter().map(|&b| u64::from(b)).sum::<u64>());
}

#[test]
fn an_empty_file_is_an_empty_slice() {
    let scratch = Scratch::new("empty", &[]);
    assert!(MappedFile::map(&scratch.open()).unwrap().as_bytes().is_empty());
}

#[cfg(unix)]
#[test]
fn a_deleted_file_stays_readable() {
    let scratch = Scratch::new("deleted", b"still here");
    let mapped = MappedFile::map(&scratch.open()).unwrap();
    drop(scratch);
    assert_eq!(mapped.as_bytes(), b"still here");
}

#[test]
fn what_cannot_be_mapped_is_an_error() {
    #[cfg(unix)]
    assert!(MappedFile::map(&File::open(std::env::temp_dir()).unwrap()).is_err());
    let scratch = Scratch::new("write-only", b"secret");
    let write_only = fs::OpenOptions::new().write(true).open(&scratch.0).unwrap();
    assert!(MappedFile::map(&write_only).is_err());
}

/// Rows and queries that end with the last byte of a page, before a page whose first touch kills the process: a load
/// that reads past its operand does not survive this test.
#[cfg(unix)]
#[test]
fn no_kernel_reads_past_the_end() {
    const PAGES: usize = 65_536; // A whole number of pages, for every page size in use.
    let content: Vec<u8> = (0..PAGES / 4).flat_map(|i| ((i % 97) as f32 - 48.0).to_le_bytes()).collect();
    let scratch = Scratch::new("guard", &content);
    // SAFETY: nobody else writes the file; the slice below stops at its end, and what follows is there to trap.
    let map = unsafe { MmapOptions::new().len(2 * PAGES).map(&scratch.open()).unwrap() };
    let bytes = &map[..PAGES];
    // SAFETY: any four bytes are an f32.
    let (_, floats, _) = unsafe { bytes.align_to::<f32>() };
    for dim in 1..=130 {
        let row = &bytes[PAGES - 4 * dim..];
        let query = &floats[floats.len() - dim..];
        let expected: f32 = query.iter().map(|q| q * q).sum();
        for &level in available() {
            assert_eq!(dot_at(level, query, row), expected, "{level} {dim}");
            assert_eq!(norm_squared_at(level, row), expected, "{level} {dim}");
            assert_eq!(l2_squared_at(level, query, row), 0.0, "{level} {dim}");
            let two_rows = &bytes[PAGES - 8 * dim..];
            let mut out = [0.0; 2];
            dot_rows_at(level, query, two_rows, &mut out);
            assert_eq!(out[1], expected, "{level} {dim}");
            norms_squared_at(level, dim, two_rows, &mut out);
            assert_eq!(out[1], expected, "{level} {dim}");
        }
    }
}

//! The image of a space's index on the disk: when it is written, and how it is read (D5, D9).
//!
//! A file per space beside the partition's rows, written under a temporary name, synced, renamed. Whatever goes wrong with it costs time, never an answer.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::start::Filling;
use super::{Indexing, Tools};
use crate::env::{File, Site};
use crate::error::Error;
use crate::index::{BLOCK_HEAD, ImageReader, ImageWriter, Index, Owner};
use crate::store::Space;
use crate::types::{Generation, SpaceId};

/// It is synced after each so many bytes: a log's sync never waits for more than this behind it.
const SYNC_EVERY: u64 = 2 << 20;
/// What has come since the last image is worth a new one when it is one of so many rows.
const GROWN_SHARE: usize = 8;
/// Blocks are smaller than this.
const BLOCK_MAX: usize = 64 << 20;

/// The directory of a partition's images.
pub fn images_dir(partition: &str) -> String {
    format!("{partition}/index")
}

fn path(partition: &str, space: SpaceId) -> String {
    format!("{}/{:016x}.index", images_dir(partition), space.0)
}

/// The space in an image's name.
pub fn image_id(name: &str) -> Option<SpaceId> {
    let digits = name.strip_suffix(".index")?;
    (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok().map(SpaceId))?
}

/// When something last changed.
#[derive(Default)]
pub(super) struct Due {
    linked: usize,
    since: u64,
    /// Not before: writing failed.
    retry_at: u64,
}

pub(super) struct Reading {
    path: String,
    file: Arc<dyn File>,
    index: Arc<Index>,
    reader: ImageReader,
    at: u64,
}

pub(super) struct Writing {
    writer: ImageWriter,
    path: String,
    file: Option<Arc<dyn File>>,
    at: u64,
}

impl Space {
    fn owner(&self, tools: &Tools<'_>) -> Owner {
        let (space, partition) = (self.options.id, self.options.partition);
        Owner { seed: tools.seed, partition, space, incarnation: self.state.lock().incarnation }
    }

    /// A step of reading the image; at the end what is to be filled.
    pub(super) fn read_image(&self, reading: &mut Option<Box<Reading>>, tools: &Tools<'_>) -> Option<Filling> {
        if reading.is_none() {
            *reading = self.open_image(tools).ok().flatten().map(Box::new);
        }
        let whole = reading.as_mut().map(|reading| reading.step());
        let image = match (whole, reading) {
            (Some(Ok(false)), _) => return None,
            (Some(Ok(true)), Some(reading)) => Some(Arc::clone(&reading.index)),
            // It is not there, or not to be trusted.
            _ => None,
        };
        Some(self.begin_filling(image.unwrap_or_else(|| Indexing::empty(&self.options))))
    }

    fn open_image(&self, tools: &Tools<'_>) -> Result<Option<Reading>, Error> {
        let path = path(tools.dir, self.options.id);
        let file = match tools.files.open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(|e| Error::io(&path, &e))?,
        };
        let mut head = [0; ImageReader::HEAD];
        file.read_at(0, &mut head).map_err(|e| Error::io(&path, &e))?;
        let index = Indexing::empty(&self.options);
        let reader = ImageReader::new(Arc::clone(&index), self.owner(tools), &path, &head)?;
        Ok(Some(Reading { path, file, index, reader, at: ImageReader::HEAD as u64 }))
    }

    /// The image as it lies on the disk, whole; None if there is none.
    pub fn image(&self, tools: &Tools<'_>) -> Result<Option<Arc<Index>>, Error> {
        let Some(mut reading) = self.open_image(tools)? else { return Ok(None) };
        while !reading.step()? {}
        Ok(Some(reading.index))
    }

    /// What is wrong with the image on the disk, if there is one and something is: links, or codes that are not of the rows that live.
    pub fn verify_image(&self, tools: &Tools<'_>) -> Result<(), Error> {
        let Some(index) = self.image(tools)? else { return Ok(()) };
        let health = index.check()?;
        if health.reached < health.rows {
            let reason = format!("of {} rows of an index's image only {} can be reached", health.rows, health.reached);
            return Err(Error::corrupted(path(tools.dir, self.options.id), 0, reason));
        }
        let last = index.rows().checked_sub(1).map_or(Generation(0), |last| index.generation(last));
        let mut missing = None;
        self.view().each_vector(Generation(0), |generation, vector, inverse_norm| {
            if generation <= last && !vector.is_empty() && !index.has(generation, vector, inverse_norm) {
                missing = Some(generation);
            }
            generation < last && missing.is_none()
        })?;
        let wrong = |generation: Generation| {
            let path = path(tools.dir, self.options.id);
            Error::corrupted(path, 0, format!("an index's image does not have memory {generation} as it is"))
        };
        missing.map_or(Ok(()), |generation| Err(wrong(generation)))
    }

    /// An image is due when the graph has doubled, or has grown and stood still for a while.
    pub(super) fn image_due(&self, index: &Arc<Index>, due: &mut Due, tools: &Tools<'_>) -> Option<Writing> {
        let (linked, imaged) = (index.linked(), self.indexing.imaged.load(Ordering::Relaxed) as usize);
        if linked != due.linked {
            (due.linked, due.since) = (linked, tools.now);
        }
        let idle = tools.config.index_image_idle_ms.saturating_mul(1_000_000);
        let barred = idle == 0 || self.indexing.purging.load(Ordering::Acquire) > 0 || tools.now < due.retry_at;
        if barred || linked == 0 || linked < self.indexing.graph_rows_min || self.is_fenced() {
            return None;
        }
        let grown = linked.abs_diff(imaged);
        // Another thread's clock may have been read later.
        let rests = tools.now.saturating_sub(due.since) >= idle && linked == index.rows();
        if linked < 2 * imaged && !(rests && grown * GROWN_SHARE >= linked) {
            return None;
        }
        let writer = ImageWriter::new(Arc::clone(index), self.owner(tools));
        Some(Writing { writer, path: path(tools.dir, self.options.id), file: None, at: 0 })
    }

    /// A step of writing; when the image is written, or could not be, when the next may be due.
    pub(super) fn write_image(&self, writing: &mut Writing, tools: &Tools<'_>) -> Option<Due> {
        match writing.step(tools) {
            Ok(false) => None,
            Ok(true) => {
                // Relaxed: a statistic.
                self.indexing.imaged.store(writing.writer.rows() as u64, Ordering::Relaxed);
                Some(Due::default())
            }
            Err(_) => {
                writing.abandon(tools);
                let pause = tools.config.maintenance_retry_ms.saturating_mul(1_000_000);
                Some(Due { retry_at: tools.now.saturating_add(pause), ..Due::default() })
            }
        }
    }

    /// The space is no more: nor is its image, whole or half-written. If they cannot be removed, the next start does.
    pub fn drop_image(&self, tools: &Tools<'_>) {
        let path = path(tools.dir, self.options.id);
        let _ = tools.files.remove(&format!("{path}.tmp"));
        let _ = tools.files.remove(&path);
    }

    /// The image goes, and there is no other before all that died up to now has left the index (K3).
    pub fn purge_index(&self, tools: &Tools<'_>) -> Result<(), Error> {
        self.indexing.purging.fetch_max(self.watermark().0.max(1), Ordering::AcqRel);
        self.indexing.rests_until.store(0, Ordering::Relaxed);
        let mut work = self.indexing.work.lock();
        if let super::work::Work::Writing(writing) = &mut *work {
            writing.abandon(tools);
            *work = super::work::Work::Resting(super::work::Rest::default());
        }
        let path = path(tools.dir, self.options.id);
        match tools.files.remove(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            removed => removed.map_err(|e| Error::io(&path, &e))?,
        }
        // Relaxed: a statistic.
        self.indexing.imaged.store(0, Ordering::Relaxed);
        let dir = images_dir(tools.dir);
        tools.files.sync_dir(&dir, Site::Derived).map_err(|e| Error::io(&dir, &e))
    }
}

impl Reading {
    /// Takes the next block; true if it was the last.
    fn step(&mut self) -> Result<bool, Error> {
        if self.reader.is_whole() {
            return Ok(true);
        }
        let mut head = [0; BLOCK_HEAD];
        let read = self.read(&mut head)?;
        let len = ImageReader::block_len(head);
        if read < BLOCK_HEAD || len > BLOCK_MAX {
            return Err(Error::corrupted(&self.path, self.at, "an index's image ends too early"));
        }
        let mut block = vec![0; len];
        let read = self.read(&mut block)?;
        self.reader.take(head, &block[..read])?;
        Ok(self.reader.is_whole())
    }

    fn read(&mut self, into: &mut [u8]) -> Result<usize, Error> {
        let read = self.file.read_at(self.at, into).map_err(|e| Error::io(&self.path, &e))?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Writing {
    fn tmp(&self) -> String {
        format!("{}.tmp", self.path)
    }

    /// Writes the next piece; true if it was the last.
    fn step(&mut self, tools: &Tools<'_>) -> io::Result<bool> {
        let dir = images_dir(tools.dir);
        let file = match &self.file {
            Some(file) => Arc::clone(file),
            None => {
                tools.files.create_dir(&dir)?;
                let file = tools.files.create(&self.tmp())?;
                self.file = Some(Arc::clone(&file));
                file
            }
        };
        if let Some(bytes) = self.writer.piece() {
            file.write_patiently(self.at, &bytes)?;
            let before = self.at / SYNC_EVERY;
            self.at += bytes.len() as u64;
            if self.at / SYNC_EVERY > before {
                file.sync(Site::Derived)?;
            }
            return Ok(false);
        }
        file.sync(Site::Derived)?;
        tools.files.rename(&self.tmp(), &self.path, Site::Derived)?;
        tools.files.sync_dir(&dir, Site::Derived)?;
        Ok(true)
    }

    /// The half-written file goes.
    fn abandon(&self, tools: &Tools<'_>) {
        let _ = tools.files.remove(&self.tmp());
    }
}

//! Rows of one kind that are only ever added, read without locks while one writer adds.
//!
//! Rows lie in chunks that double in size and never move, so a slice handed out stays good for as long as the arena lives. A large
//! chunk is mapped, fresh from the system: what nobody has touched yet, nor made ready, costs addresses, not memory, and nobody waits for zeros
//! to be written. Where the system has huge pages it is asked for them: rows are met in no order, and each would cost the walk of a page
//! table as well. A row is written before the length that covers it is published (Release, Acquire), and never again, except through atomics inside it.
//!
//! Any thread may read; adding takes a mutex, so that there is one writer at a time whatever the caller does. Running out
//! of memory ends the process, as everywhere in Rust. At most 2³² − 32 rows.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64};

use memmap2::MmapMut;

use crate::sync::{AtomicUsize, Mutex, Ordering};

/// Rows of the first chunk; chunk c has `FIRST << c`.
const FIRST: usize = 32;
const CHUNKS: usize = 27;
/// Of a row so many cache lines are asked for; the CPU goes on by itself.
const LINES_FETCHED: usize = 4;
/// Chunks begin at a cache line.
const ALIGN: usize = 64;
/// Chunks of so many bytes are mapped, smaller ones lie in the heap.
const MAPPED_FROM: usize = 1 << 20;
/// Chunks of so many bytes begin at a huge page, and lie in as many as they fill. In smaller ones the first row would take too much.
const HUGE_FROM: usize = 2 * HUGE_PAGE;
const HUGE_PAGE: usize = 2 << 20;

/// What rows are made of.
///
/// # Safety
/// All bits zero is a value, and dropping does nothing.
pub unsafe trait Plain: Send + Sync + 'static {}

// SAFETY: integers and atomics of integers.
unsafe impl Plain for i8 {}
// SAFETY: as above.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: zero bits are 0.0.
unsafe impl Plain for f32 {}
// SAFETY: as for integers.
unsafe impl Plain for AtomicU32 {}
// SAFETY: as for integers.
unsafe impl Plain for AtomicU64 {}

struct Chunk<T> {
    start: NonNull<T>,
    memory: Memory,
}

enum Memory {
    Heap(Layout),
    /// Of which only the advice is used: rows are reached by `start`, so many bytes into it.
    #[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "there is no advice"))]
    Mapped(MmapMut, usize),
}

impl<T: Plain> Chunk<T> {
    fn new(elements: usize) -> Self {
        let layout = Layout::array::<T>(elements.max(1)).and_then(|l| l.align_to(ALIGN));
        #[expect(clippy::expect_used, reason = "no machine has the memory for it")]
        let layout = layout.expect("a chunk is smaller than the address space");
        if layout.size() >= MAPPED_FROM {
            let is_huge = cfg!(target_os = "linux") && layout.size() >= HUGE_FROM;
            let slack = if is_huge { HUGE_PAGE } else { 0 };
            let Ok(mut map) = MmapMut::map_anon(layout.size() + slack) else { handle_alloc_error(layout) };
            let skipped = if is_huge { map.as_ptr().align_offset(HUGE_PAGE) } else { 0 };
            let start = NonNull::from(&mut map[skipped..][..layout.size()]).cast::<T>();
            // Without them it is slower, no more.
            #[cfg(target_os = "linux")]
            if is_huge {
                let whole = layout.size() / HUGE_PAGE * HUGE_PAGE;
                let _ = map.advise_range(memmap2::Advice::HugePage, skipped, whole);
            }
            return Self { start, memory: Memory::Mapped(map, skipped) };
        }
        // SAFETY: the layout's size is not zero: at least one element, none of them of size zero (`Plain` is sealed by its list).
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start.cast::<T>()) else { handle_alloc_error(layout) };
        Self { start, memory: Memory::Heap(layout) }
    }
}

impl<T> Chunk<T> {
    /// Has the memory of these bytes there. It changes none of them, whoever writes there meanwhile.
    fn populate(&self, bytes: Range<usize>) -> std::io::Result<()> {
        match &self.memory {
            #[cfg(target_os = "linux")]
            Memory::Mapped(map, skipped) => {
                map.advise_range(memmap2::Advice::PopulateWrite, skipped + bytes.start, bytes.len())
            }
            _ => Err(std::io::ErrorKind::Unsupported.into()),
        }
    }
}

impl<T> Drop for Chunk<T> {
    fn drop(&mut self) {
        if let Memory::Heap(layout) = self.memory {
            // SAFETY: allocated in `new` with this layout; `Plain` elements need no drop.
            unsafe { dealloc(self.start.as_ptr().cast(), layout) }
        }
    }
}

// SAFETY: the chunk owns its memory, and `T` is Send + Sync; who may write is the arena's business.
unsafe impl<T: Plain> Send for Chunk<T> {}
// SAFETY: as above.
unsafe impl<T: Plain> Sync for Chunk<T> {}

/// Rows of `stride` elements.
pub struct Arena<T: Plain> {
    stride: usize,
    chunks: [OnceLock<Chunk<T>>; CHUNKS],
    len: AtomicUsize,
    adding: Mutex<()>,
    /// Rows below it were made ready. Relaxed: wrong, it costs a call, or a moment.
    ready: AtomicUsize,
}

/// Chunk and place in it.
#[inline]
fn place(row: usize) -> (usize, usize) {
    let shifted = row + FIRST;
    let chunk = (shifted / FIRST).ilog2() as usize;
    (chunk, shifted - (FIRST << chunk))
}

impl<T: Plain> Arena<T> {
    #[must_use]
    pub fn new(stride: usize) -> Self {
        let chunks = [const { OnceLock::new() }; CHUNKS];
        Self { stride, chunks, len: AtomicUsize::new(0), adding: Mutex::new(()), ready: AtomicUsize::new(0) }
    }

    /// Elements of a row.
    #[must_use]
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Rows that can be read.
    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds `rows` rows, which `write` fills one after the other (row among them, its elements, all zero before). They are
    /// published together, when the last is written; a panic inside publishes none.
    pub fn extend(&self, rows: usize, mut write: impl FnMut(usize, &mut [T])) {
        let adding = self.adding.lock();
        let begin = self.len.load(Ordering::Relaxed);
        for i in 0..rows {
            let (chunk, at) = place(begin + i);
            let chunk = self.chunks[chunk].get_or_init(|| Chunk::new((FIRST << chunk) * self.stride));
            // SAFETY: the place lies in the chunk, which has `FIRST << chunk` rows. Nobody reads it before the length is published,
            // and nobody else writes: `adding` is held.
            let row =
                unsafe { std::slice::from_raw_parts_mut(chunk.start.as_ptr().add(at * self.stride), self.stride) };
            write(i, row);
        }
        self.len.store(begin + rows, Ordering::Release);
        drop(adding);
    }

    /// Has the memory of the next rows ready, for whoever has time for it: where memory comes in huge pages, who adds a row would now and
    /// then wait until the system has found two MiB and cleared them. Any thread, beside whoever adds.
    pub fn ready_ahead(&self) {
        let row_bytes = self.stride * size_of::<T>();
        let ahead = HUGE_PAGE / row_bytes.max(1);
        let (len, ready) = (self.len(), self.ready.load(Ordering::Relaxed));
        if ready > len + ahead / 2 {
            return;
        }
        let (mut at, to) = (len.max(ready), len + ahead);
        while at < to {
            let (chunk, first) = place(at);
            let rows = (to - at).min((FIRST << chunk) - first);
            let Some(slot) = self.chunks.get(chunk) else { return };
            if (FIRST << chunk) * row_bytes >= HUGE_FROM {
                let chunk = slot.get_or_init(|| Chunk::new((FIRST << chunk) * self.stride));
                // A system that does not know how leaves it to whoever writes.
                let _ = chunk.populate(first * row_bytes..(first + rows) * row_bytes);
            }
            at += rows;
        }
        self.ready.store(to, Ordering::Relaxed);
    }

    /// The elements of a row.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    #[inline]
    pub fn row(&self, row: usize) -> &[T] {
        assert!(row < self.len(), "row {row} of {}", self.len());
        // SAFETY: it is published.
        unsafe { self.published(row) }
    }

    /// Where each of `picked` lies, of as many as there is room for.
    ///
    /// # Panics
    /// If a row is not there.
    #[inline]
    pub(crate) fn look_up<'a, 'b>(&'a self, picked: &[u32], room: &'b mut Room<'a, T>) -> &'b [&'a [T]] {
        let len = self.len();
        fill(
            room,
            picked.iter().map(|row| {
                assert!((*row as usize) < len, "row {row} of {len}");
                // SAFETY: it is published.
                unsafe { self.published(*row as usize) }
            }),
        )
    }

    /// # Safety
    /// The row lies below a length that was read.
    #[inline]
    unsafe fn published(&self, row: usize) -> &[T] {
        let (chunk, at) = place(row);
        // SAFETY: published rows have a chunk, lie in it, and are not written again, as `extend` begins at the length.
        unsafe {
            let chunk = self.chunks.get_unchecked(chunk).get().unwrap_unchecked();
            std::slice::from_raw_parts(chunk.start.as_ptr().add(at * self.stride), self.stride)
        }
    }

    /// Rows from `row` on that lie one after the other, at most up to `end`: their elements.
    ///
    /// # Panics
    /// If `end` is beyond the length.
    #[must_use]
    pub fn run(&self, row: usize, end: usize) -> &[T] {
        assert!(row <= end && end <= self.len(), "rows {row}..{end} of {}", self.len());
        let (chunk, at) = place(row);
        let rows = (end - row).min((FIRST << chunk) - at);
        let Some(chunk) = self.chunks[chunk].get() else { return &[] };
        // SAFETY: as in `row`; all of them are published, and lie in this chunk.
        unsafe { std::slice::from_raw_parts(chunk.start.as_ptr().add(at * self.stride), rows * self.stride) }
    }

    /// Asks the CPU to fetch a row, or its begin; it need not exist.
    #[inline]
    pub fn prefetch(&self, row: usize) {
        let (chunk, at) = place(row);
        if let Some(chunk) = self.chunks.get(chunk).and_then(OnceLock::get) {
            // SAFETY: the row lies in the chunk, written or not.
            unsafe { fetch(chunk.start.as_ptr().add(at * self.stride), self.stride) }
        }
    }
}

/// Rows looked up at once.
pub(crate) const STRIP: usize = 32;
pub(crate) type Room<'a, T> = [MaybeUninit<&'a [T]>; STRIP];

/// Fills the room with rows, as many as there are or fit.
#[inline]
pub(crate) fn fill<'a, 'b, T>(room: &'b mut Room<'a, T>, rows: impl Iterator<Item = &'a [T]>) -> &'b [&'a [T]] {
    let mut filled = 0;
    for (place, row) in room.iter_mut().zip(rows) {
        place.write(row);
        filled += 1;
    }
    // SAFETY: so many places were written, and one that was is the reference in it.
    unsafe { std::slice::from_raw_parts(room.as_ptr().cast(), filled) }
}

/// Asks the CPU to fetch a row, or its begin.
#[inline]
pub(crate) fn fetch_row<T>(row: &[T]) {
    // SAFETY: a slice is an allocation's, or empty.
    unsafe { fetch(row.as_ptr(), row.len()) }
}

/// # Safety
/// So many elements lie behind the pointer in one allocation.
#[inline]
unsafe fn fetch<T>(start: *const T, elements: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..(elements * size_of::<T>()).min(LINES_FETCHED * ALIGN)).step_by(ALIGN) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing and never faults; the address lies in the allocation.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(start.cast::<i8>().add(line)) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (start, elements);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn rows_stay_where_they_are() {
        let arena = Arena::<u32>::new(3);
        arena.extend(0, |_, _| unreachable!());
        for i in 0..5_000_u32 {
            arena.extend(1, |at, row| {
                assert_eq!((at, &*row), (0, &[0; 3][..]));
                row.copy_from_slice(&[i, i + 1, i + 2]);
            });
        }
        let first = arena.row(0).as_ptr();
        arena.extend(3_000, |at, row| row[0] = at as u32);
        assert_eq!((arena.len(), arena.row(0).as_ptr()), (8_000, first));
        assert!((0..5_000).all(|i| arena.row(i) == [i as u32, i as u32 + 1, i as u32 + 2]));
        let (mut at, mut runs) = (0, 0);
        while at < 8_000 {
            let run = arena.run(at, 8_000);
            assert_eq!(run[0], if at < 5_000 { at as u32 } else { at as u32 - 5_000 });
            (at, runs) = (at + run.len() / 3, runs + 1);
        }
        assert_eq!(runs, 8, "chunks of 32 to 4,096 rows");
        (0..9_000).for_each(|row| arena.prefetch(row));
    }

    #[test]
    fn a_mapped_chunk_is_as_one_of_the_heap() {
        let arena = Arena::<u64>::new(512);
        arena.extend(1_000, |at, row| {
            assert!(row.iter().all(|v| *v == 0), "row {at} is fresh");
            row.fill(at as u64);
        });
        assert!(matches!(arena.chunks[3].get().unwrap().memory, Memory::Mapped(..)));
        assert!((0..1_000).all(|row| arena.row(row).iter().all(|v| *v == row as u64)));
        assert_eq!(arena.row(999).as_ptr() as usize % ALIGN, 0);
    }

    /// A chunk of four MiB and more begins at a huge page, whatever a row takes.
    #[test]
    fn large_chunks_lie_in_huge_pages() {
        for stride in [64, 104] {
            let arena = Arena::<u64>::new(stride);
            arena.extend(16_400, |at, row| row.fill(at as u64));
            let large = |chunk: usize| (FIRST << chunk) * stride * 8 >= HUGE_FROM;
            let begins = |chunk: &Chunk<u64>| chunk.start.as_ptr() as usize % HUGE_PAGE;
            assert!(
                (0..9).any(large)
                    && (0..9)
                        .filter(|c| large(*c))
                        .all(|c| { begins(arena.chunks[c].get().unwrap()) == 0 || !cfg!(target_os = "linux") })
            );
            assert!((0..16_400).all(|row| arena.row(row).iter().all(|v| *v == row as u64)));
            assert_eq!(arena.row(16_399).len(), stride);
        }
    }

    #[test]
    #[should_panic(expected = "row 3 of 3")]
    fn what_is_looked_up_is_there() {
        let arena = Arena::<u64>::new(2);
        arena.extend(3, |at, row| row.fill(at as u64));
        let mut room = [MaybeUninit::uninit(); STRIP];
        assert_eq!(arena.look_up(&[2, 0], &mut room), [[2, 2], [0, 0]]);
        assert_eq!(arena.look_up(&[1; 40], &mut room), [[1, 1]; STRIP]);
        arena.look_up(&[0, 3], &mut room);
    }

    /// Chunks of four MiB and more are made ready before there is a row in them, or while there are some.
    #[test]
    fn memory_is_there_before_the_rows() {
        let arena = Arena::<u64>::new(64);
        let made = |arena: &Arena<u64>| arena.chunks.iter().filter(|chunk| chunk.get().is_some()).count();
        arena.extend(100, |at, row| row.fill(at as u64));
        arena.ready_ahead();
        assert_eq!(made(&arena), 3, "small chunks come with their rows");
        while arena.len() < 40_000 {
            let begin = arena.len() as u64;
            arena.ready_ahead();
            arena.extend(1_000, |at, row| {
                assert!(row.iter().all(|v| *v == 0));
                row.fill(begin + at as u64);
            });
        }
        arena.ready_ahead();
        let (next, at) = place(arena.len() + HUGE_PAGE / 512 - 1);
        let chunk = arena.chunks[next].get().unwrap();
        assert!(arena.ready.load(Ordering::Relaxed) > arena.len());
        let end = (at + 1) * 512;
        let known = chunk.populate(end - 1..end).is_ok() || cfg!(miri) || !cfg!(target_os = "linux");
        assert!(known, "Linux knows how from 5.14 on");
        assert!((0..100).all(|row| arena.row(row)[0] == row as u64));
        assert!((100..arena.len()).all(|row| arena.row(row).iter().all(|v| *v == row as u64)));
    }

    #[test]
    fn readers_see_whole_rows_while_one_adds() {
        let arena = Arena::<u64>::new(9);
        std::thread::scope(|scope| {
            scope.spawn(|| (0..20_000_u64).for_each(|i| arena.extend(1, |_, row| row.fill(i))));
            scope.spawn(|| (0..1_000).for_each(|_| arena.ready_ahead()));
            let mut seen = 0;
            while seen < 20_000 {
                seen = arena.len();
                if let Some(last) = seen.checked_sub(1) {
                    assert!(arena.row(last).iter().all(|v| *v == last as u64));
                }
            }
        });
    }

    #[test]
    #[should_panic(expected = "row 1 of 1")]
    fn a_row_that_is_not_there_is_a_bug() {
        let arena = Arena::<f32>::new(1);
        arena.extend(1, |_, _| {});
        let _ = arena.row(1);
    }
}

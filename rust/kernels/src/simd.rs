//! Which instructions may this process use?
//!
//! The CPU is asked at run time, so one binary runs everywhere. `ENGRAM_SIMD=scalar|avx2|avx512` chooses a level by hand,
//! to compare levels or to step around a broken one; it is read once, at the first use. An empty value counts as unset.
//!
//! Invariant: [`available`] is sound, that is, a level in it can be executed here. The `unsafe` calls in `distance` rest
//! on that. The levels are nested: a CPU with a higher one has all lower ones.
//!
//! Any thread may call these. The choice sits in a `OnceLock`, which orders its one write before every read.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::sync::OnceLock;

const VARIABLE: &str = "ENGRAM_SIMD";

/// A set of instructions to compute distances with, from the slowest to the fastest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Portable code, on every CPU. The oracle of the other levels.
    Scalar,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// x86-64 with AVX-512F, BW, VNNI and VPOPCNTDQ, next to AVX2 and FMA: Ice Lake, Zen 4 and later.
    Avx512,
}

impl Level {
    /// All levels, those that this CPU lacks included.
    pub const ALL: [Self; 3] = [Self::Scalar, Self::Avx2, Self::Avx512];

    /// The name that `ENGRAM_SIMD` takes.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// Can this CPU run the level? Cheap: the standard library keeps what it detected.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("popcnt")
            }
            // The compiler takes avx512f to imply avx2 and fma, so these are asked for too.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vnni")
                    && is_x86_feature_detected!("avx512vpopcntdq")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => false,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why `ENGRAM_SIMD` cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LevelError {
    /// The value names no level.
    Unknown { value: OsString },
    /// The value names a level that this CPU cannot run.
    Missing { wanted: Level, best: Level },
}

impl fmt::Display for LevelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { value } => write!(
                f,
                "{VARIABLE}={value:?} names no SIMD level: use scalar, avx2 or avx512, or unset it to take the best one"
            ),
            Self::Missing { wanted, best } => write!(
                f,
                "{VARIABLE}={wanted} asks for instructions that this CPU lacks: its best level is {best}; unset {VARIABLE} to take that"
            ),
        }
    }
}

impl std::error::Error for LevelError {}

/// The levels that this CPU can run, from the slowest to the fastest; [`Level::Scalar`] is always there.
#[must_use]
pub fn available() -> &'static [Level] {
    static COUNT: OnceLock<usize> = OnceLock::new();
    let count = *COUNT.get_or_init(|| Level::ALL.iter().filter(|l| l.is_available()).count());
    &Level::ALL.as_slice()[..count]
}

/// The level in use: the one that `ENGRAM_SIMD` chose, else the best available. Where the variable cannot be followed
/// it is the best available too; whoever opens an engine calls [`try_level`] first and reports the error.
#[must_use]
pub fn level() -> Level {
    static CHOSEN: OnceLock<Level> = OnceLock::new();
    *CHOSEN.get_or_init(|| try_level().unwrap_or_else(|_| best(available())))
}

/// The level in use, or why `ENGRAM_SIMD` cannot be followed. The variable is read once per process.
///
/// # Errors
/// [`LevelError`] for an unknown name or a level that this CPU lacks.
pub fn try_level() -> Result<Level, LevelError> {
    static READ: OnceLock<Result<Level, LevelError>> = OnceLock::new();
    READ.get_or_init(|| choose(std::env::var_os(VARIABLE).as_deref(), available())).clone()
}

fn choose(value: Option<&OsStr>, available: &[Level]) -> Result<Level, LevelError> {
    let best = best(available);
    let Some(value) = value.filter(|v| !v.is_empty()) else {
        return Ok(best);
    };
    let wanted = Level::ALL
        .into_iter()
        .find(|level| value == level.name())
        .ok_or_else(|| LevelError::Unknown { value: value.to_owned() })?;
    if available.contains(&wanted) { Ok(wanted) } else { Err(LevelError::Missing { wanted, best }) }
}

fn best(available: &[Level]) -> Level {
    available.last().copied().unwrap_or(Level::Scalar)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD_CPU: &[Level] = &[Level::Scalar, Level::Avx2];

    fn choose_str(value: &str) -> Result<Level, LevelError> {
        choose(Some(OsStr::new(value)), OLD_CPU)
    }

    #[test]
    fn unset_or_empty_takes_the_best() {
        assert_eq!(choose(None, OLD_CPU), Ok(Level::Avx2));
        assert_eq!(choose_str(""), Ok(Level::Avx2));
    }

    #[test]
    fn a_name_is_followed() {
        assert_eq!(choose_str("scalar"), Ok(Level::Scalar));
        assert_eq!(choose_str("avx2"), Ok(Level::Avx2));
    }

    #[test]
    fn errors_say_what_to_do() {
        let missing = choose_str("avx512").unwrap_err().to_string();
        assert!(missing.contains("lacks") && missing.contains("best level is avx2"), "{missing}");
        let unknown = choose_str("AVX2 ").unwrap_err().to_string();
        assert!(unknown.contains("\"AVX2 \"") && unknown.contains("unset"), "{unknown}");
    }

    #[test]
    fn levels_are_nested() {
        assert!(available().iter().all(|level| level.is_available()));
        assert_eq!(available()[0], Level::Scalar);
        assert!(available().is_sorted());
    }
}

//! `ENGRAM_SIMD` chooses the level of a process: each case runs this test binary again with the variable set.

use std::process::Command;

use engram_kernels::{Level, available, level, try_level};

/// What the child says about itself, under `ENGRAM_SIMD=value`.
fn child(value: &str) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "report", "--nocapture", "--include-ignored"])
        .env("ENGRAM_SIMD", value)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
#[ignore = "the child of the tests below"]
fn report() {
    println!();
    match try_level() {
        Ok(chosen) => println!("chosen={chosen} in-use={}", level()),
        Err(error) => println!("error={error} in-use={}", level()),
    }
}

#[test]
fn a_level_by_name_is_used() {
    for &level in available() {
        let said = child(level.name());
        assert!(said.contains(&format!("chosen={level} in-use={level}")), "{said}");
    }
}

#[test]
fn a_bad_value_is_reported_and_the_best_level_is_used() {
    let best = available().last().unwrap();
    let said = child("fast");
    assert!(said.contains("error=ENGRAM_SIMD=\"fast\" names no SIMD level"), "{said}");
    assert!(said.contains(&format!("in-use={best}")), "{said}");
    for level in Level::ALL.into_iter().filter(|level| !level.is_available()) {
        let said = child(level.name());
        assert!(said.contains("this CPU lacks") && said.contains(&format!("in-use={best}")), "{said}");
    }
}

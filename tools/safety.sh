#!/usr/bin/env bash
# safety.sh   what `make test` has no time or no compiler for; needs rustup, and installs what is missing of nightly Rust
set -euo pipefail
phase=tools/phase.sh
target=$(rustc -vV | sed -n 's/^host: //p')

rustup toolchain install nightly --profile minimal --component miri,rust-src >/dev/null

# Miri runs the instructions of a CPU that need not be here, and sees every read outside a slice.
RUSTFLAGS="-C target-feature=+avx2,+fma,+popcnt,+avx512f,+avx512bw,+avx512vnni,+avx512vpopcntdq" \
    MIRIFLAGS=-Zmiri-disable-isolation CARGO_TARGET_DIR=target/miri \
    $phase miri-avx512 cargo +nightly miri test --locked -p engram-kernels --test codes -- many_rows blocks_are levels_agree

RUSTFLAGS=-Zsanitizer=address CARGO_TARGET_DIR=target/asan \
    $phase asan cargo +nightly test --locked --profile ci --target "$target" -p engram-kernels -p engram-core \
    --features engram-core/chaos --test codes --test levels --test values --test mapped --test index

# A client in another language, from the same proto/.
$phase rust-example bash -c "
    set -e
    cd examples/rust
    export CARGO_TARGET_DIR=../../target/example
    cargo run --locked -q -p protos -- --check
    cargo fmt --all -- --check
    cargo clippy --locked -q --workspace --all-targets -- -D warnings
    cargo build --locked -q"
ENGRAM_RUST_EXAMPLE=$PWD/target/example/debug/engram-example \
    $phase rust-example-test .venv/bin/python -m pytest -q tests/integration/service/test_server.py -k examples

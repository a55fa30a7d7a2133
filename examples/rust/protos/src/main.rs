//! Generates `src/engram.v1.rs` of the example from `proto/`: `cargo run -p protos`. With `--check` says whether it would change; changes nothing.

use std::error::Error;
use std::path::Path;
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("no folder above")?;
    let (proto, made) = (example.join("../../proto"), example.join("src/engram.v1.rs"));
    let files = protox::compile([proto.join("engram/v1/service.proto")], [&proto])?;
    let scratch = env::temp_dir().join(format!("engram-protos-{}", std::process::id()));
    fs::create_dir_all(&scratch)?;
    tonic_prost_build::configure().build_server(false).out_dir(&scratch).compile_fds(files)?;
    let code = fs::read_to_string(scratch.join("engram.v1.rs"))?;
    fs::remove_dir_all(&scratch)?;
    if !env::args().any(|given| given == "--check") {
        fs::write(&made, code)?;
    } else if fs::read_to_string(&made)? != code {
        return Err("src/engram.v1.rs is not what proto/ says: run `cargo run -p protos`".into());
    }
    Ok(())
}

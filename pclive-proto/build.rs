//! Generates the Rust code of the `.proto` files without a `protoc` program.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["pclive/control/v1/control.proto", "pclive/peer/v1/peer.proto"];
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("pclive.descriptors"), prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure().bytes(".pclive.peer.v1").compile_fds(descriptors)?;
    Ok(())
}

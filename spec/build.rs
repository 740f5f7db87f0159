//! Compiles every `.proto` in `proto/zex` and below with protox, so that nobody has to install protoc.
//!
//! What the mesh itself answers and what the gateway does are two sets of descriptors: who asks a
//! service what it offers is told of that alone.

use std::path::PathBuf;

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let (mesh, gateway) = (files("proto/zex")?, files("proto/zex/v1")?);
    for (name, files) in [("descriptors.bin", &mesh), ("descriptors-v1.bin", &gateway)] {
        std::fs::write(out.join(name), protox::compile(files, ["proto"])?.encode_to_vec())?;
    }
    let all = protox::compile(mesh.iter().chain(&gateway), ["proto"])?;
    prost_build::Config::new().compile_fds(all)?;
    Ok(())
}

fn files(folder: &str) -> std::io::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path()));
    let mut files: Vec<PathBuf> = entries.collect::<std::io::Result<_>>()?;
    files.retain(|file| file.extension().is_some_and(|end| end == "proto"));
    files.sort();
    Ok(files)
}

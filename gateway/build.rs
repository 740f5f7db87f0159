//! The servers of the gateway's own services; their messages are `zex_spec`'s, from the same files.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=../spec/proto");
    let files = protox::compile(["zex/v1/pipelines.proto"], ["../spec/proto"])?;
    tonic_prost_build::configure()
        .build_client(false)
        .build_transport(false)
        .extern_path(".zex", "::zex_spec::proto")
        .compile_fds(files)?;
    Ok(())
}

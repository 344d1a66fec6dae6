//! Compiles the protos with protox, so that building needs nothing but Rust.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const FILES: [&str; 15] = [
    "muster/v1/access.proto",
    "muster/v1/actions.proto",
    "muster/v1/approvals.proto",
    "muster/v1/audit.proto",
    "muster/v1/authorities.proto",
    "muster/v1/enrollment.proto",
    "muster/v1/errors.proto",
    "muster/v1/files.proto",
    "muster/v1/hosts.proto",
    "muster/v1/jobs.proto",
    "muster/v1/modes.proto",
    "muster/v1/policy.proto",
    "muster/v1/principals.proto",
    "muster/v1/tokens.proto",
    "muster/agent/v1/agent.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let mut compiler = protox::Compiler::new(["."])?;
    compiler
        .include_imports(true)
        .include_source_info(true)
        .open_files(FILES)?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(
        out.join("muster.binpb"),
        compiler.encode_file_descriptor_set(),
    )?;
    let files = compiler.file_descriptor_set();
    let mut bare = files.clone();
    for file in &mut bare.file {
        file.source_code_info = None;
    }
    fs::write(out.join("muster.bare.binpb"), bare.encode_to_vec())?;
    let mut config = tonic_prost_build::Config::new();
    config.enable_type_names();
    tonic_prost_build::configure()
        .bytes(".")
        // In one order: what is serialized twice is the same twice, and offers are signed for.
        .btree_map("muster.v1.Command.env")
        .compile_fds_with_config(files, config)?;
    Ok(())
}

//! Generates the Rust code of the API from `proto/`, without protoc.

use std::{env, error::Error, fs, path::PathBuf};

const FILES: [&str; 15] = [
    "watchpost/v1/alerts.proto",
    "watchpost/v1/cameras.proto",
    "watchpost/v1/common.proto",
    "watchpost/v1/errors.proto",
    "watchpost/v1/events.proto",
    "watchpost/v1/gpu.proto",
    "watchpost/v1/job_queues.proto",
    "watchpost/v1/job_schedules.proto",
    "watchpost/v1/job_types.proto",
    "watchpost/v1/job_workers.proto",
    "watchpost/v1/jobs.proto",
    "watchpost/v1/monitor.proto",
    "watchpost/v1/notifications.proto",
    "watchpost/v1/silences.proto",
    "watchpost/v1/zones.proto",
];

#[expect(
    clippy::disallowed_methods,
    reason = "cargo tells build scripts by the environment"
)]
fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);

    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(FILES)?;
    let descriptors = compiler.file_descriptor_set();
    // Reflection serves the descriptors without comments.
    compiler.include_source_info(false);
    fs::write(
        out.join("watchpost_descriptor.bin"),
        compiler.encode_file_descriptor_set(),
    )?;

    tonic_prost_build::configure()
        .codec_path("crate::rpc::codec::BoundedCodec")
        .compile_fds(descriptors)?;
    Ok(())
}

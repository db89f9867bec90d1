//! Generates the Rust of the API from `proto/`, without protoc.

use std::{env, error::Error, fs, path::PathBuf};

use protox::prost::Message;

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
    let mut served = descriptors.clone();
    for file in &mut served.file {
        if let Some(source) = &mut file.source_code_info {
            // Reflection serves the comments. What has none is four fifths of the locations.
            source.location.retain(|location| {
                location.leading_comments.is_some() || location.trailing_comments.is_some()
            });
        }
    }
    fs::write(out.join("watchpost_descriptor.bin"), served.encode_to_vec())?;

    tonic_prost_build::configure()
        .codec_path("crate::rpc::codec::BoundedCodec")
        .compile_fds(descriptors)?;
    Ok(())
}

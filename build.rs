//! Generates the Rust code of the API from `proto/`, without protoc.

use std::{env, error::Error, fs, path::PathBuf};

use protox::prost::Message;

/// Folder of the protos, below `proto/`.
const PACKAGE: &str = "watchpost/v1";

#[expect(clippy::disallowed_methods, reason = "cargo tells build scripts by the environment")]
fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);

    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(files()?)?;
    let descriptors = compiler.file_descriptor_set();
    let mut served = descriptors.clone();
    for file in &mut served.file {
        if let Some(source) = &mut file.source_code_info {
            // Reflection serves the comments. Four fifths of the locations have none.
            source
                .location
                .retain(|location| location.leading_comments.is_some() || location.trailing_comments.is_some());
        }
    }
    fs::write(out.join("watchpost_descriptor.bin"), served.encode_to_vec())?;

    tonic_prost_build::configure().codec_path("crate::rpc::codec::BoundedCodec").compile_fds(descriptors)?;
    Ok(())
}

/// Names of all protos, as `import` has them.
fn files() -> Result<Vec<String>, Box<dyn Error>> {
    let entries = fs::read_dir(PathBuf::from("proto").join(PACKAGE))?;
    let names = entries.map(|entry| Ok(format!("{PACKAGE}/{}", entry?.file_name().display())));
    let mut names = names.collect::<Result<Vec<_>, Box<dyn Error>>>()?;
    // The order of the descriptors is that of the names on every machine.
    names.sort();
    Ok(names)
}

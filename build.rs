//! Compiles the admin API's proto with protox (no protoc needed) into Rust and into the descriptor set that server
//! reflection answers from.

use std::{env, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(["proto/pushgate/v1/gateway.proto"], ["proto"])?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    fs::write(out.join("gateway.binpb"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".pushgate.v1.Notification.binary")
        .bytes(".pushgate.v1.MessageReceived.binary")
        .extern_path(".google.rpc", "::tonic_types::pb")
        .codec_path("crate::api::codec::Codec")
        .compile_fds(descriptors)?;
    Ok(())
}

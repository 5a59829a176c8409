//! Compiles the Protobuf contract without an installed `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/millstream.proto");
    let descriptors = protox::compile(["proto/millstream.proto"], ["proto"])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("millstream.binpb"), prost::Message::encode_to_vec(&descriptors))?;
    prost_build::Config::new()
        .bytes([".millstream.v1.Envelope.body", ".millstream.v1.Envelope.context"])
        .boxed(".millstream.v1.Exchange.body.apply")
        .boxed(".millstream.v1.Exchange.body.absorb")
        .boxed(".millstream.v1.DeviceState.path")
        .compile_fds(descriptors)?;
    Ok(())
}

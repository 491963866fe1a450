//! Generates the messages of `proto/`, in Rust alone: no protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto/cri.proto");
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    ttrpc_codegen::Codegen::new().out_dir(&out).inputs(["proto/cri.proto"]).include("proto").rust_protobuf().run()?;
    // The generated file starts with inner attributes, which `include!` refuses: a module file of our own names it.
    std::fs::write(out.join("generated.rs"), "pub mod cri;\n")?;
    Ok(())
}

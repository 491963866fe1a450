//! Generates the ttrpc stubs, in Rust alone: no protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto/agent.proto");
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    ttrpc_codegen::Codegen::new()
        .out_dir(&out)
        .inputs(["proto/agent.proto"])
        .include("proto")
        .rust_protobuf()
        .customize(ttrpc_codegen::Customize { async_all: true, ..Default::default() })
        .run()?;
    // The generated files start with inner attributes, which `include!` refuses: a module file of our own
    // names them instead.
    std::fs::write(out.join("generated.rs"), "pub mod agent;\npub mod agent_ttrpc;\n")?;
    Ok(())
}

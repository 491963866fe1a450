//! Generates CRI's messages, in Rust alone: no protoc is needed.

use protobuf_codegen::{Codegen, Customize};

fn main() {
    println!("cargo::rerun-if-changed=proto/cri.proto");
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo names a directory"));
    Codegen::new()
        .pure()
        .out_dir(&out)
        .input("proto/cri.proto")
        .include("proto")
        // Without descriptors, which name every message: the shim is linked with those that it reads alone.
        .customize(Customize::default().lite_runtime(true))
        .run()
        .expect("the messages are well-formed");
    // The generated file starts with inner attributes, which `include!` refuses: a module file names it instead.
    std::fs::write(out.join("generated.rs"), "pub mod cri;\n").expect("the directory takes files");
}

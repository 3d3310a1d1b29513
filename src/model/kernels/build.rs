//! The build script: with the feature `cuda`, every `.cu` file beside this one becomes PTX that launch.rs carries.
//!
//! PTX of compute capability 8.0 runs on every later GPU: the driver compiles it when a kernel is first used.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let kernels = Path::new(file!()).parent().expect("this file lies in a folder");
    println!("cargo::rerun-if-changed={}", kernels.display());
    println!("cargo::rerun-if-env-changed=NVCC");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let nvcc = std::env::var_os("NVCC").map_or(PathBuf::from("nvcc"), PathBuf::from);
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for entry in kernels.read_dir().expect("the kernels' folder can be listed").flatten() {
        let source = entry.path();
        if source.extension().is_none_or(|extension| extension != "cu") {
            continue;
        }
        let target = out.join(source.with_extension("ptx").file_name().expect("a kernel has a name"));
        let options = ["-ptx", "-O3", "-std=c++17", "-arch=compute_80"];
        let status = Command::new(&nvcc).args(options).arg("-o").arg(&target).arg(&source).status();
        match status {
            Ok(status) if status.success() => {}
            Ok(status) => panic!("{} cannot be compiled: nvcc ended with {status}", source.display()),
            Err(error) => panic!("{} does not start: {error}; set NVCC, or put nvcc on the PATH", nvcc.display()),
        }
    }
}

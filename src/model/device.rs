//! Naming a device: "cpu" or "cuda:N".
//!
//! This is the one file of the room that asks whether the build has CUDA.

use candle_core::Device;

use super::api::ModelError;

/// Opens the device of that name. Fails with [`ModelError::Device`] when the name is unknown, the build has no CUDA, or
/// the driver refuses.
pub fn open_device(name: &str) -> Result<Device, ModelError> {
    if name == "cpu" {
        return Ok(Device::Cpu);
    }
    let ordinal = name.strip_prefix("cuda:").and_then(|number| number.parse().ok());
    match ordinal {
        Some(ordinal) => open_cuda(name, ordinal),
        None => Err(refused(name, "write \"cpu\" or \"cuda:N\", for example \"cuda:0\"")),
    }
}

#[cfg(feature = "cuda")]
fn open_cuda(name: &str, ordinal: usize) -> Result<Device, ModelError> {
    Device::new_cuda(ordinal).map_err(|error| refused(name, &error.to_string()))
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(name: &str, _ordinal: usize) -> Result<Device, ModelError> {
    Err(refused(name, "this build has no CUDA; build with `--features cuda` or write \"cpu\""))
}

fn refused(name: &str, detail: &str) -> ModelError {
    ModelError::Device { name: name.to_owned(), detail: detail.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_device_is_refused_by_name() {
        assert!(open_device("cpu").is_ok());
        let refusal = open_device("gpu").expect_err("no such device").to_string();
        assert!(refusal.contains("\"gpu\"") && refusal.contains("cuda:N"), "{refusal}");
    }
}

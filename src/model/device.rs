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

/// Bytes that are free on the device, for what lives beside the weights. On the CPU what the machine, or the container
/// if it has a limit, can still give; 0 when nobody knows.
pub fn free_memory(device: &Device) -> u64 {
    match device {
        Device::Cpu => host_memory(),
        device => device_memory(device),
    }
}

fn host_memory() -> u64 {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let number = |text: String| text.trim().parse::<u64>().ok();
    let machine = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:").map(str::to_owned))?;
        number(line.trim_end_matches("kB").to_owned()).map(|kibibytes| kibibytes * 1024)
    });
    let limit = read("/sys/fs/cgroup/memory.max").and_then(number);
    let used = read("/sys/fs/cgroup/memory.current").and_then(number).unwrap_or_default();
    // What the kernel keeps of files, such as the weights that were just read, it gives back when it must.
    let files = read("/sys/fs/cgroup/memory.stat").map_or(0, |text| file_pages(&text));
    let container = limit.map(|limit| limit.saturating_sub(used.saturating_sub(files)));
    machine.into_iter().chain(container).min().unwrap_or_default()
}

/// Bytes of files in a container's memory, by its memory.stat.
fn file_pages(statistics: &str) -> u64 {
    let values = statistics.lines().filter_map(|line| line.split_once(' '));
    let files = values.filter(|(name, _)| matches!(*name, "active_file" | "inactive_file"));
    files.filter_map(|(_, bytes)| bytes.trim().parse::<u64>().ok()).sum()
}

#[cfg(feature = "cuda")]
fn device_memory(device: &Device) -> u64 {
    let free = || -> candle_core::Result<u64> {
        use candle_core::cuda_backend::WrapErr;
        let stream = device.as_cuda_device()?.cuda_stream();
        stream.context().bind_to_thread().w()?;
        stream.synchronize().w()?;
        cuda::give_back(stream.context().ordinal()).w()?;
        candle_core::cuda_backend::cudarc::driver::result::mem_get_info().w().map(|(free, _)| free as u64)
    };
    free().unwrap_or_default()
}

#[cfg(not(feature = "cuda"))]
fn device_memory(_device: &Device) -> u64 {
    0
}

#[cfg(feature = "cuda")]
fn open_cuda(name: &str, ordinal: usize) -> Result<Device, ModelError> {
    cuda::open(ordinal).map_err(|error| refused(name, &error.to_string()))
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(name: &str, _ordinal: usize) -> Result<Device, ModelError> {
    Err(refused(name, "this build has no CUDA; build with `--features cuda` or write \"cpu\""))
}

#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
mod cuda {
    use candle_core::cuda_backend::WrapErr;
    use candle_core::cuda_backend::cudarc::driver::{DriverError, result, sys};
    use candle_core::{CudaDevice, Device, Result};

    /// Opens a device whose work is queued in one stream, whichever thread asks for it.
    pub fn open(ordinal: usize) -> Result<Device> {
        let device = CudaDevice::new_with_stream(ordinal)?;
        // SAFETY: events order the use of a tensor by several streams, and this device has one. They cost more than small
        // kernels do.
        unsafe { device.disable_event_tracking() };
        keep(ordinal).w()?;
        Ok(Device::Cuda(device))
    }

    /// Memory that tensors give up stays with the process for the next ones: else every wait for the device gives it back
    /// to the driver, and every step asks for it again.
    fn keep(ordinal: usize) -> std::result::Result<(), DriverError> {
        let mut threshold = u64::MAX;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        // SAFETY: the pool is the device's own, and the attribute is a 64-bit number.
        unsafe { result::mem_pool::set_attribute(pool(ordinal)?, attribute, (&raw mut threshold).cast()) }
    }

    /// Gives memory that no tensor uses back to the driver.
    pub fn give_back(ordinal: usize) -> std::result::Result<(), DriverError> {
        // SAFETY: the pool is the device's own, and loses nothing that is in use.
        unsafe { result::mem_pool::trim_to(pool(ordinal)?, 0) }
    }

    fn pool(ordinal: usize) -> std::result::Result<sys::CUmemoryPool, DriverError> {
        let device = result::device::get(ordinal as i32)?;
        // SAFETY: the device comes from the driver.
        unsafe { result::device::get_default_mem_pool(device) }
    }
}

fn refused(name: &str, detail: &str) -> ModelError {
    ModelError::Device { name: name.to_owned(), detail: detail.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_files_do_not_count_as_used() {
        let statistics = "anon 4096\nfile 900\ninactive_file 500\nactive_file 300\n";
        assert_eq!(file_pages(statistics), 800);
    }

    #[test]
    fn the_host_says_what_it_can_still_give() {
        assert!(free_memory(&Device::Cpu) > 1 << 20);
    }

    #[test]
    fn an_unknown_device_is_refused_by_name() {
        assert!(open_device("cpu").is_ok());
        let refusal = open_device("gpu").expect_err("no such device").to_string();
        assert!(refusal.contains("\"gpu\"") && refusal.contains("cuda:N"), "{refusal}");
    }
}

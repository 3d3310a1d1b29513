//! Launching a kernel: tensors and numbers in the order of its parameters.
//!
//! This is the one file that hands a device's addresses out. Invariant: tensors are contiguous, lie on the same device as
//! the launch, and live until it is queued; work on a device runs in the order in which it was queued.

use candle_core::{DType, Device, Result, Shape, Tensor};

/// The file that a kernel lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    Arrange,
    Attention,
    Choose,
    Experts,
    Gated,
    Norm,
}

/// A parameter of a kernel.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "nothing is launched without CUDA"))]
pub enum Argument<'a> {
    /// The address of its first number; kernels read some and write others.
    Tensor(&'a Tensor),
    /// No address.
    Nothing,
    Count(usize),
    Real(f32),
}

impl<'a> Argument<'a> {
    /// No address where there is no tensor.
    pub fn optional(tensor: Option<&'a Tensor>) -> Self {
        tensor.map_or(Self::Nothing, Self::Tensor)
    }
}

/// Blocks of threads, threads of each, and bytes of shared memory beside what the kernel itself declares.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "nothing is launched without CUDA"))]
pub struct Grid {
    pub blocks: (usize, usize),
    pub threads: usize,
    pub shared_bytes: usize,
}

impl Grid {
    pub fn new(blocks: (usize, usize), threads: usize) -> Self {
        Self { blocks, threads, shared_bytes: 0 }
    }
}

/// The ending of a kernel's name for tensors of that format.
pub fn suffix(dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::F32 => Ok("f32"),
        DType::F16 => Ok("f16"),
        DType::BF16 => Ok("bf16"),
        other => candle_core::bail!("no kernel takes numbers of format {other:?}"),
    }
}

/// Whether tensor cores multiply numbers of that format.
pub fn is_narrow(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16)
}

/// A tensor for a kernel to write, whole.
#[allow(unsafe_code)]
pub fn unwritten(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
    // SAFETY: any bits are numbers of these formats, and the kernel that it is made for writes every one.
    unsafe { Tensor::empty(shape, dtype, device) }
}

/// Queues the kernel of that name.
#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
pub fn launch(device: &Device, kernel: Kernel, name: &str, grid: Grid, arguments: &[Argument<'_>]) -> Result<()> {
    use candle_core::cuda_backend::WrapErr;
    use candle_core::cuda_backend::cudarc::driver::{LaunchConfig, PushKernelArg};

    let (module, ptx) = source(kernel);
    let function = device.as_cuda_device()?.get_or_load_custom_func(name, module, ptx)?;
    let values = arguments.iter().map(Value::of).collect::<Result<Vec<_>>>()?;
    let mut builder = function.builder();
    for value in &values {
        match value {
            Value::Address(address) => builder.arg(address),
            Value::Count(count) => builder.arg(count),
            Value::Real(real) => builder.arg(real),
        };
    }
    let config = LaunchConfig {
        grid_dim: (grid.blocks.0 as u32, grid.blocks.1 as u32, 1),
        block_dim: (grid.threads as u32, 1, 1),
        shared_mem_bytes: grid.shared_bytes as u32,
    };
    // SAFETY: the caller passes what the kernel declares; tensors are contiguous and live as long as `arguments`, and
    // memory that is freed afterwards is reused in the order of the same queue.
    unsafe { builder.launch(config) }.w()?;
    Ok(())
}

/// Queues the kernel of that name. This build has none.
#[cfg(not(feature = "cuda"))]
pub fn launch(_: &Device, kernel: Kernel, name: &str, _: Grid, _: &[Argument<'_>]) -> Result<()> {
    candle_core::bail!("kernel {name} of {kernel:?} cannot run: this build has no CUDA")
}

#[cfg(feature = "cuda")]
fn source(kernel: Kernel) -> (&'static str, &'static str) {
    macro_rules! ptx {
        ($name:literal) => {
            ($name, include_str!(concat!(env!("OUT_DIR"), "/", $name, ".ptx")))
        };
    }
    match kernel {
        Kernel::Arrange => ptx!("arrange"),
        Kernel::Attention => ptx!("attention"),
        Kernel::Choose => ptx!("choose"),
        Kernel::Experts => ptx!("experts"),
        Kernel::Gated => ptx!("gated"),
        Kernel::Norm => ptx!("norm"),
    }
}

/// An argument as the driver takes it.
#[cfg(feature = "cuda")]
enum Value {
    Address(u64),
    Count(u32),
    Real(f32),
}

#[cfg(feature = "cuda")]
impl Value {
    fn of(argument: &Argument<'_>) -> Result<Self> {
        Ok(match argument {
            Argument::Tensor(tensor) => Self::Address(address(tensor)?),
            Argument::Nothing => Self::Address(0),
            Argument::Count(count) => Self::Count(u32::try_from(*count).map_err(candle_core::Error::wrap)?),
            Argument::Real(real) => Self::Real(*real),
        })
    }
}

#[cfg(feature = "cuda")]
fn address(tensor: &Tensor) -> Result<u64> {
    use candle_core::cuda_backend::CudaDType;
    use candle_core::cuda_backend::cudarc::driver::DevicePtr;
    use candle_core::{CudaStorage, Storage};

    fn first<T: CudaDType>(storage: &CudaStorage) -> Result<u64> {
        let slice = storage.as_cuda_slice::<T>()?;
        let (address, _guard) = slice.device_ptr(slice.stream());
        Ok(address)
    }
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else { candle_core::bail!("a kernel's tensor lies on another device") };
    if !layout.is_contiguous() {
        candle_core::bail!("a kernel's tensor {:?} is not contiguous", tensor.shape());
    }
    let first = match tensor.dtype() {
        DType::F32 => first::<f32>(storage)?,
        DType::F16 => first::<half::f16>(storage)?,
        DType::BF16 => first::<half::bf16>(storage)?,
        DType::U32 => first::<u32>(storage)?,
        other => candle_core::bail!("no kernel takes numbers of format {other:?}"),
    };
    Ok(first + (layout.start_offset() * tensor.dtype().size_in_bytes()) as u64)
}

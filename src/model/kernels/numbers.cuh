// Numbers of 16 and 32 bits, sums over a warp, and the tensor cores' instructions (PTX ISA 8.0: ldmatrix, mma.m16n8k16,
// cp.async). All sums are in f32.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

typedef __nv_bfloat16 bf16;
typedef __half f16;
typedef float f32;

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ float widen(bf16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float widen(f16 value) { return __half2float(value); }

template <typename T> __device__ __forceinline__ T narrowed(float value);
template <> __device__ __forceinline__ float narrowed<float>(float value) { return value; }
template <> __device__ __forceinline__ bf16 narrowed<bf16>(float value) { return __float2bfloat16_rn(value); }
template <> __device__ __forceinline__ f16 narrowed<f16>(float value) { return __float2half_rn(value); }

__device__ __forceinline__ float warp_sum(float value) {
    for (int apart = 16; apart > 0; apart /= 2) value += __shfl_xor_sync(~0u, value, apart);
    return value;
}

// Two numbers side by side, the first in the lower half.
template <typename T> __device__ __forceinline__ unsigned pair(float low, float high);
template <> __device__ __forceinline__ unsigned pair<bf16>(float low, float high) {
    __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<unsigned*>(&both);
}
template <> __device__ __forceinline__ unsigned pair<f16>(float low, float high) {
    __half2 both = __floats2half2_rn(low, high);
    return *reinterpret_cast<unsigned*>(&both);
}

// sums[16 x 8] += a[16 x 16] * b[16 x 8], over a warp.
template <typename T>
__device__ __forceinline__ void multiply_tile(float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);
template <>
__device__ __forceinline__ void multiply_tile<bf16>(float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void multiply_tile<f16>(float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 x 8 tiles of 16-bit numbers from shared memory; each lane names one row of one tile.
__device__ __forceinline__ void load_tiles(unsigned (&tiles)[4], const void* row) {
    unsigned at = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3]) : "r"(at) : "memory");
}
// The same, each tile transposed.
__device__ __forceinline__ void load_tiles_turned(unsigned (&tiles)[4], const void* row) {
    unsigned at = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3]) : "r"(at) : "memory");
}

// 16 bytes to shared memory, or zeros where `is_there` is false; done when its group has been waited for.
__device__ __forceinline__ void copy_16(void* target, const void* source, bool is_there) {
    unsigned at = (unsigned)__cvta_generic_to_shared(target);
    int bytes = is_there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(at), "l"(source), "r"(bytes) : "memory");
}
__device__ __forceinline__ void close_group() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
template <int OPEN> __device__ __forceinline__ void wait_for_groups() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(OPEN) : "memory");
}

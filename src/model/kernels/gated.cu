// silu(gate) * up of rows that hold both side by side (Shazeer, 2020).
#include "numbers.cuh"

__device__ __forceinline__ float gate(float gate, float up) { return gate / (1 + __expf(-gate)) * up; }

// 16 bytes at a time; `width` is a multiple of what these hold, or the numbers go one by one.
template <typename T>
__device__ void gated(const T* both, T* out, size_t rows, size_t width) {
    constexpr int EACH = 16 / sizeof(T);
    const size_t step = (size_t)gridDim.x * blockDim.x;
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (width % EACH) {
        for (; i < rows * width; i += step) {
            const T* const at = both + i / width * 2 * width + i % width;
            out[i] = narrowed<T>(gate(widen(at[0]), widen(at[width])));
        }
        return;
    }
    struct __align__(16) Piece {
        T numbers[EACH];
    };
    for (; i < rows * width / EACH; i += step) {
        const size_t row = i * EACH / width, column = i * EACH % width;
        const T* const at = both + row * 2 * width + column;
        const Piece gates = *reinterpret_cast<const Piece*>(at), ups = *reinterpret_cast<const Piece*>(at + width);
        Piece result;
#pragma unroll
        for (int one = 0; one < EACH; one++)
            result.numbers[one] = narrowed<T>(gate(widen(gates.numbers[one]), widen(ups.numbers[one])));
        *reinterpret_cast<Piece*>(out + row * width + column) = result;
    }
}

#define GATED(T)                                                                                      \
    extern "C" __global__ void gated_##T(const T* both, T* out, unsigned rows, unsigned width) {      \
        gated<T>(both, out, rows, width);                                                             \
    }

GATED(f32)
GATED(f16)
GATED(bf16)

// The sum of two tensors and its normalisation by the root of the mean square (Zhang and Sennrich, 2019): one block of
// threads for each row.
#include "numbers.cuh"

template <typename T>
__device__ void add_and_normalise(const T* one, const T* other, const T* weight, T* sum, T* normed, unsigned width,
                                  float epsilon) {
    __shared__ float squares[32];
    const size_t first = (size_t)blockIdx.x * width;
    float own = 0;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        const T both = narrowed<T>(widen(one[first + i]) + widen(other[first + i]));
        sum[first + i] = both;
        own += widen(both) * widen(both);
    }
    own = warp_sum(own);
    if (threadIdx.x % 32 == 0) squares[threadIdx.x / 32] = own;
    __syncthreads();
    float total = 0;
    for (unsigned warp = 0; warp < blockDim.x / 32; warp++) total += squares[warp];
    const float factor = rsqrtf(total / width + epsilon);
    // Each thread reads what it has written itself.
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x)
        normed[first + i] = narrowed<T>(widen(sum[first + i]) * factor * widen(weight[i]));
}

#define ADD_AND_NORMALISE(T)                                                                                         \
    extern "C" __global__ void __launch_bounds__(512) add_and_normalise_##T(                                         \
        const T* one, const T* other, const T* weight, T* sum, T* normed, unsigned width, float epsilon) {           \
        add_and_normalise<T>(one, other, weight, sum, normed, width, epsilon);                                       \
    }

ADD_AND_NORMALISE(f32)
ADD_AND_NORMALISE(f16)
ADD_AND_NORMALISE(bf16)

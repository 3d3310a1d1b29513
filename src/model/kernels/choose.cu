// The likeliest allowed token of each row of logits. Of equal ones the first; a NaN wins over everything, so that it shows.
#include "numbers.cuh"

struct Best {
    float logit;
    unsigned token;
};

__device__ __forceinline__ bool is_better(Best a, Best b) {
    if (isnan(a.logit) != isnan(b.logit)) return isnan(a.logit);
    if (a.logit != b.logit && !isnan(a.logit)) return a.logit > b.logit;
    return a.token < b.token;
}

// `masks` has a bit for each token of each row, or is absent; a token is allowed where its bit is set. `chosen` is
// [rows, 2]: the token and the bits of its logit; minus infinity where none is allowed.
template <typename T>
__device__ void choose(const T* logits, const unsigned* masks, unsigned* chosen, unsigned tokens) {
    __shared__ Best bests[32];
    const size_t row = blockIdx.x;
    const unsigned words = (tokens + 31) / 32;
    Best best = {-INFINITY, ~0u};
    for (unsigned token = threadIdx.x; token < tokens; token += blockDim.x) {
        if (masks && !(masks[row * words + token / 32] >> token % 32 & 1)) continue;
        const Best one = {widen(logits[row * tokens + token]), token};
        if (is_better(one, best)) best = one;
    }
    auto warp_best = [&]() {
        for (int apart = 16; apart > 0; apart /= 2) {
            const Best other = {__shfl_xor_sync(~0u, best.logit, apart), __shfl_xor_sync(~0u, best.token, apart)};
            if (is_better(other, best)) best = other;
        }
    };
    warp_best();
    if (threadIdx.x % 32 == 0) bests[threadIdx.x / 32] = best;
    __syncthreads();
    if (threadIdx.x >= 32) return;
    best = threadIdx.x < blockDim.x / 32 ? bests[threadIdx.x] : Best{-INFINITY, ~0u};
    warp_best();
    if (threadIdx.x == 0) {
        chosen[row * 2] = best.token;
        chosen[row * 2 + 1] = __float_as_uint(best.logit);
    }
}

#define CHOOSE(T)                                                                                             \
    extern "C" __global__ void __launch_bounds__(1024)                                                        \
        choose_##T(const T* logits, const unsigned* masks, unsigned* chosen, unsigned tokens) {               \
        choose<T>(logits, masks, chosen, tokens);                                                             \
    }

CHOOSE(f32)
CHOOSE(f16)
CHOOSE(bf16)

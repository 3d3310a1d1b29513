// From the joined product of queries, keys and values to where attention wants them: norms, rotation and temperature on
// the way, keys and values into their slots of the cache. One warp for each head of each row.
#include "numbers.cuh"

constexpr int LARGEST_WIDTH = 256;
constexpr int PAIRS = LARGEST_WIDTH / 2 / 32;

struct Sizes {
    unsigned rows, heads, kv_heads, width;
};

// x / sqrt(mean(x^2) + epsilon) * weight, over a warp.
template <typename T>
__device__ __forceinline__ void normalise(float (&first)[PAIRS], float (&second)[PAIRS], const T* weight, float epsilon,
                                          int width, bool is_adjacent) {
    float squares = 0;
    for (int i = 0; i < PAIRS; i++) squares += first[i] * first[i] + second[i] * second[i];
    const float factor = rsqrtf(warp_sum(squares) / width + epsilon);
    for (int i = 0; i < PAIRS; i++) {
        const int pair = threadIdx.x % 32 + 32 * i, half = width / 2;
        if (pair >= half) continue;
        first[i] *= factor * widen(weight[is_adjacent ? 2 * pair : pair]);
        second[i] *= factor * widen(weight[is_adjacent ? 2 * pair + 1 : pair + half]);
    }
}

// `all` is [rows, heads + 2 kv_heads, width]. Without `cosines` nothing is rotated, without `temperatures` queries are
// left alone, without norms nothing is normalised; norms come before the rotation or after it.
template <typename T>
__device__ void arrange(const T* all, const T* cosines, const T* sines, const T* temperatures, const T* query_norm,
                        const T* key_norm, const unsigned* slots, T* queries, T* keys, T* values, Sizes sizes,
                        bool is_adjacent, bool norm_is_first, float epsilon) {
    const unsigned row = blockIdx.x, head = blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    const unsigned every = sizes.heads + 2 * sizes.kv_heads, width = sizes.width, half = width / 2;
    if (head >= every) return;
    const T* const source = all + ((size_t)row * every + head) * width;
    const bool is_query = head < sizes.heads, is_value = head >= sizes.heads + sizes.kv_heads;
    T* target = queries + ((size_t)row * sizes.heads + head) * width;
    if (!is_query) {
        const unsigned kv_head = (head - sizes.heads) % sizes.kv_heads;
        target = (is_value ? values : keys) + ((size_t)slots[row] * sizes.kv_heads + kv_head) * width;
    }
    if (is_value) {
        for (unsigned part = lane; part < width; part += 32) target[part] = source[part];
        return;
    }
    const T* const norm = is_query ? query_norm : key_norm;
    float first[PAIRS] = {}, second[PAIRS] = {};
    for (int i = 0; i < PAIRS; i++) {
        const unsigned pair = lane + 32 * i;
        if (pair >= half) continue;
        first[i] = widen(source[is_adjacent ? 2 * pair : pair]);
        second[i] = widen(source[is_adjacent ? 2 * pair + 1 : pair + half]);
    }
    if (norm && norm_is_first) normalise<T>(first, second, norm, epsilon, width, is_adjacent);
    const float temperature = is_query && temperatures ? widen(temperatures[row]) : 1;
    for (int i = 0; i < PAIRS; i++) {
        const unsigned pair = lane + 32 * i;
        if (pair >= half) continue;
        if (cosines) {
            const float cosine = widen(cosines[row * half + pair]), sine = widen(sines[row * half + pair]);
            const float turned = first[i] * cosine - second[i] * sine;
            second[i] = first[i] * sine + second[i] * cosine;
            first[i] = turned;
        }
        first[i] *= temperature;
        second[i] *= temperature;
    }
    if (norm && !norm_is_first) normalise<T>(first, second, norm, epsilon, width, is_adjacent);
    for (int i = 0; i < PAIRS; i++) {
        const unsigned pair = lane + 32 * i;
        if (pair >= half) continue;
        target[is_adjacent ? 2 * pair : pair] = narrowed<T>(first[i]);
        target[is_adjacent ? 2 * pair + 1 : pair + half] = narrowed<T>(second[i]);
    }
}

#define ARRANGE(T)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(128)                                                                  \
        arrange_##T(const T* all, const T* cosines, const T* sines, const T* temperatures, const T* query_norm,        \
                    const T* key_norm, const unsigned* slots, T* queries, T* keys, T* values, unsigned rows,           \
                    unsigned heads, unsigned kv_heads, unsigned width, unsigned is_adjacent, unsigned norm_is_first,   \
                    float epsilon) {                                                                                   \
        const Sizes sizes = {rows, heads, kv_heads, width};                                                            \
        arrange<T>(all, cosines, sines, temperatures, query_norm, key_norm, slots, queries, keys, values, sizes,       \
                   is_adjacent, norm_is_first, epsilon);                                                               \
    }

ARRANGE(f32)
ARRANGE(f16)
ARRANGE(bf16)

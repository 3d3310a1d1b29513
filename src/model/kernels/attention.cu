// Causal attention over the paged cache (Kwon et al., 2023), with the running softmax of FlashAttention-2 (Dao, 2023).
//
// Keys and values lie as [slots, kv_heads, width]; a slot is a block's number times 16 plus a place in it. Queries and
// results lie as [rows, heads, width]. A tile's rows are queries of one head of keys: `group` heads of a first row, then
// those of the next. Scores are in powers of two.
#include "numbers.cuh"

constexpr int BLOCK = 16;
constexpr int WARPS = 4;
constexpr int TILE_KEYS = 64;
// Queries of a narrow tile; its keys are shared out among the warps.
constexpr int NARROW_ROWS = 16;
constexpr int LARGEST_WIDTH = 256;

// Some rows of one sequence and the keys that are looked at for them; see attention/device.rs.
struct Item {
    unsigned first_row, rows, position, from, to, table;
    // How many items share these rows' keys.
    unsigned parts;
};

// Parts that belong together.
struct Merge {
    unsigned first_item, parts, first_row, rows;
};

__device__ __forceinline__ size_t slot_of(const unsigned* tables, unsigned table, unsigned key) {
    return (size_t)tables[table + key / BLOCK] * BLOCK + key % BLOCK;
}

// Any width up to 256, any number format: a block of threads for one query, a key at a time for each warp.
template <typename T>
__device__ void attend_any(const T* queries, const T* keys, const T* values, const unsigned* tables,
                           const unsigned* rows, T* out, int heads, int kv_heads, int width, float scale) {
    constexpr int EACH = LARGEST_WIDTH / 32;
    __shared__ float highs[WARPS], sums[WARPS], mixed[WARPS][LARGEST_WIDTH];
    const int row = blockIdx.x, head = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int kv_head = head / (heads / kv_heads);
    const unsigned position = rows[row * 3], first = rows[row * 3 + 1], table = rows[row * 3 + 2];
    const size_t at = ((size_t)row * heads + head) * width;
    float query[EACH], own[EACH], high = -INFINITY, sum = 0;
    for (int i = 0; i < EACH; i++) {
        const int part = lane + 32 * i;
        query[i] = part < width ? widen(queries[at + part]) * scale : 0;
        own[i] = 0;
    }
    for (unsigned key = first + warp; key <= position; key += WARPS) {
        const size_t from = (slot_of(tables, table, key) * kv_heads + kv_head) * width;
        float score = 0;
        for (int i = 0; i < EACH; i++) {
            const int part = lane + 32 * i;
            if (part < width) score += query[i] * widen(keys[from + part]);
        }
        score = warp_sum(score);
        const float higher = fmaxf(high, score), shrink = exp2f(high - higher), weight = exp2f(score - higher);
        high = higher;
        sum = sum * shrink + weight;
        for (int i = 0; i < EACH; i++) {
            const int part = lane + 32 * i;
            if (part < width) own[i] = own[i] * shrink + weight * widen(values[from + part]);
        }
    }
    if (lane == 0) {
        highs[warp] = high;
        sums[warp] = sum;
    }
    for (int i = 0; i < EACH; i++) mixed[warp][lane + 32 * i] = own[i];
    __syncthreads();
    float highest = highs[0];
    for (int one = 1; one < WARPS; one++) highest = fmaxf(highest, highs[one]);
    for (int part = threadIdx.x; part < width; part += blockDim.x) {
        float total = 0, value = 0;
        for (int one = 0; one < WARPS; one++) {
            const float shrink = exp2f(highs[one] - highest);
            total += sums[one] * shrink;
            value += mixed[one][part] * shrink;
        }
        out[at + part] = narrowed<T>(value / total);
    }
}

// 16-bit numbers on tensor cores. Wide: 64 queries, 16 a warp, that all see each tile of keys. Narrow: 16 queries, and
// each warp looks at its own quarter of the tile.
template <typename T, int WIDTH, bool NARROW>
__device__ void attend_tile(const T* queries, const T* keys, const T* values, const unsigned* tables, const Item* items,
                            T* out, float* parts, int heads, int kv_heads, float scale) {
    constexpr int STRIDE = WIDTH + 8;
    constexpr int OWN = NARROW ? TILE_KEYS / WARPS : TILE_KEYS;
    constexpr int SCORES = OWN / 8;
    __shared__ __align__(16) unsigned char memory[2 * TILE_KEYS * STRIDE * sizeof(T)];
    T* const near_keys = reinterpret_cast<T*>(memory);
    T* const near_values = near_keys + TILE_KEYS * STRIDE;
    const Item item = items[blockIdx.x];
    const int kv_head = blockIdx.y, group = heads / kv_heads, limit = item.rows * group;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, quad = lane % 4;

    auto fetch = [&](const T* source, T* target, unsigned first) {
        constexpr int PIECES = WIDTH / 8;
        for (int i = threadIdx.x; i < TILE_KEYS * PIECES; i += WARPS * 32) {
            const unsigned key = first + i / PIECES;
            const bool is_seen = key < item.to;
            const T* from = source;
            if (is_seen) from += (slot_of(tables, item.table, key) * kv_heads + kv_head) * WIDTH + i % PIECES * 8;
            copy_16(target + i / PIECES * STRIDE + i % PIECES * 8, from, is_seen);
        }
        close_group();
    };

    // A lane has parts of two queries, eight apart.
    const int base = NARROW ? 0 : warp * 16;
    const int places[2] = {base + lane / 4, base + lane / 4 + 8};
    size_t at[2];
    unsigned last[2];
    for (int one = 0; one < 2; one++) {
        const int row = places[one] / group, member = places[one] % group;
        at[one] = ((size_t)(item.first_row + row) * heads + kv_head * group + member) * WIDTH;
        last[one] = item.position + row;
    }
    unsigned query[WIDTH / 16][4];
#pragma unroll
    for (int step = 0; step < WIDTH / 16; step++)
#pragma unroll
        for (int part = 0; part < 4; part++) {
            const int one = part % 2, column = step * 16 + part / 2 * 8 + quad * 2;
            query[step][part] =
                places[one] < limit ? *reinterpret_cast<const unsigned*>(queries + at[one] + column) : 0u;
        }

    float mixed[WIDTH / 8][4] = {}, high[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
    const int own = NARROW ? warp * OWN : 0;
    fetch(keys, near_keys, item.from);
    for (unsigned first = item.from; first < item.to; first += TILE_KEYS) {
        fetch(values, near_values, first);
        wait_for_groups<1>();
        __syncthreads();
        float scores[SCORES][4] = {};
#pragma unroll
        for (int tile = 0; tile < SCORES; tile++)
#pragma unroll
            for (int step = 0; step < WIDTH / 32; step++) {
                unsigned part[4];
                load_tiles(part, near_keys + (own + tile * 8 + lane % 8) * STRIDE + step * 32 + lane / 8 * 8);
                multiply_tile<T>(scores[tile], query[step * 2], part[0], part[1]);
                multiply_tile<T>(scores[tile], query[step * 2 + 1], part[2], part[3]);
            }
        __syncthreads();
        if (first + TILE_KEYS < item.to) fetch(keys, near_keys, first + TILE_KEYS);
        else close_group();

        float higher[2] = {high[0], high[1]};
#pragma unroll
        for (int tile = 0; tile < SCORES; tile++)
#pragma unroll
            for (int part = 0; part < 4; part++) {
                const unsigned key = first + own + tile * 8 + quad * 2 + part % 2;
                const bool is_seen = key <= last[part / 2] && key < item.to;
                scores[tile][part] = is_seen ? scores[tile][part] * scale : -INFINITY;
                higher[part / 2] = fmaxf(higher[part / 2], scores[tile][part]);
            }
        float zero[2], shrink[2];
#pragma unroll
        for (int one = 0; one < 2; one++) {
            higher[one] = fmaxf(higher[one], __shfl_xor_sync(~0u, higher[one], 1));
            higher[one] = fmaxf(higher[one], __shfl_xor_sync(~0u, higher[one], 2));
            // A query that has seen no key yet must not make infinity less infinity.
            zero[one] = higher[one] == -INFINITY ? 0 : higher[one];
            shrink[one] = exp2f(high[one] - zero[one]);
            high[one] = higher[one];
            sum[one] *= shrink[one];
        }
        unsigned weights[SCORES][2];
#pragma unroll
        for (int tile = 0; tile < SCORES; tile++) {
#pragma unroll
            for (int part = 0; part < 4; part++) {
                scores[tile][part] = exp2f(scores[tile][part] - zero[part / 2]);
                sum[part / 2] += scores[tile][part];
            }
            weights[tile][0] = pair<T>(scores[tile][0], scores[tile][1]);
            weights[tile][1] = pair<T>(scores[tile][2], scores[tile][3]);
        }
#pragma unroll
        for (int tile = 0; tile < WIDTH / 8; tile++)
#pragma unroll
            for (int part = 0; part < 4; part++) mixed[tile][part] *= shrink[part / 2];
        wait_for_groups<1>();
        __syncthreads();
#pragma unroll
        for (int step = 0; step < OWN / 16; step++) {
            const unsigned left[4] = {weights[step * 2][0], weights[step * 2][1], weights[step * 2 + 1][0],
                                      weights[step * 2 + 1][1]};
#pragma unroll
            for (int tile = 0; tile < WIDTH / 16; tile++) {
                unsigned part[4];
                const int key = own + step * 16 + lane / 8 % 2 * 8 + lane % 8;
                load_tiles_turned(part, near_values + key * STRIDE + tile * 16 + lane / 16 * 8);
                multiply_tile<T>(mixed[tile * 2], left, part[0], part[1]);
                multiply_tile<T>(mixed[tile * 2 + 1], left, part[2], part[3]);
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int one = 0; one < 2; one++) {
        sum[one] += __shfl_xor_sync(~0u, sum[one], 1);
        sum[one] += __shfl_xor_sync(~0u, sum[one], 2);
    }

    if (!NARROW) {
#pragma unroll
        for (int tile = 0; tile < WIDTH / 8; tile++)
#pragma unroll
            for (int one = 0; one < 2; one++)
                if (places[one] < limit)
                    *reinterpret_cast<unsigned*>(out + at[one] + tile * 8 + quad * 2) =
                        pair<T>(mixed[tile][one * 2] / sum[one], mixed[tile][one * 2 + 1] / sum[one]);
        return;
    }
    // The keys' place is free now; what the warps have mixed goes there.
    __shared__ float highs[WARPS][NARROW_ROWS], sums[WARPS][NARROW_ROWS];
    float* const all = reinterpret_cast<float*>(memory);
    if (quad == 0)
        for (int one = 0; one < 2; one++) {
            highs[warp][places[one]] = high[one];
            sums[warp][places[one]] = sum[one];
        }
#pragma unroll
    for (int tile = 0; tile < WIDTH / 8; tile++)
#pragma unroll
        for (int part = 0; part < 4; part++)
            all[(warp * NARROW_ROWS + places[part / 2]) * WIDTH + tile * 8 + quad * 2 + part % 2] = mixed[tile][part];
    __syncthreads();
    for (int i = threadIdx.x; i < limit * WIDTH; i += WARPS * 32) {
        const int place = i / WIDTH, column = i % WIDTH;
        float highest = highs[0][place], total = 0, value = 0;
        for (int one = 1; one < WARPS; one++) highest = fmaxf(highest, highs[one][place]);
        const float level = highest == -INFINITY ? 0 : highest;
        for (int one = 0; one < WARPS; one++) {
            const float shrink = exp2f(highs[one][place] - level);
            total += sums[one][place] * shrink;
            value += all[(one * NARROW_ROWS + place) * WIDTH + column] * shrink;
        }
        if (item.parts == 1) {
            const size_t row = item.first_row + place / group, head = kv_head * group + place % group;
            out[(row * heads + head) * WIDTH + column] = narrowed<T>(value / total);
        } else {
            float* const part = parts + (((size_t)blockIdx.x * kv_heads + kv_head) * NARROW_ROWS + place) * (WIDTH + 2);
            part[column] = value;
            if (column == 0) {
                part[WIDTH] = highest;
                part[WIDTH + 1] = total;
            }
        }
    }
}

// Puts the parts of narrow tiles together.
template <typename T>
__device__ void merge_parts(const float* parts, const Merge* merges, T* out, int heads, int kv_heads, int width) {
    const Merge merge = merges[blockIdx.x];
    const int kv_head = blockIdx.y, group = heads / kv_heads;
    for (int i = threadIdx.x; i < merge.rows * group * width; i += blockDim.x) {
        const int place = i / width, column = i % width;
        auto part = [&](int one) {
            return parts + (((size_t)(merge.first_item + one) * kv_heads + kv_head) * NARROW_ROWS + place) * (width + 2);
        };
        float highest = -INFINITY, total = 0, value = 0;
        for (int one = 0; one < merge.parts; one++) highest = fmaxf(highest, part(one)[width]);
        for (int one = 0; one < merge.parts; one++) {
            const float shrink = exp2f(part(one)[width] - highest);
            total += part(one)[width + 1] * shrink;
            value += part(one)[column] * shrink;
        }
        const size_t row = merge.first_row + place / group, head = kv_head * group + place % group;
        out[(row * heads + head) * width + column] = narrowed<T>(value / total);
    }
}

#define ANY(T)                                                                                                         \
    extern "C" __global__ void __launch_bounds__(128)                                                                  \
        attend_any_##T(const T* queries, const T* keys, const T* values, const unsigned* tables, const unsigned* rows, \
                       T* out, unsigned heads, unsigned kv_heads, unsigned width, float scale) {                       \
        attend_any<T>(queries, keys, values, tables, rows, out, heads, kv_heads, width, scale);                        \
    }
#define TILE(T, WIDTH, NAME, NARROW)                                                                                   \
    extern "C" __global__ void __launch_bounds__(128) attend_##NAME##_##WIDTH##_##T(                                   \
        const T* queries, const T* keys, const T* values, const unsigned* tables, const Item* items, T* out,           \
        float* parts, unsigned heads, unsigned kv_heads, float scale) {                                                \
        attend_tile<T, WIDTH, NARROW>(queries, keys, values, tables, items, out, parts, heads, kv_heads, scale);       \
    }
#define MERGE(T)                                                                                                       \
    extern "C" __global__ void merge_parts_##T(const float* parts, const Merge* merges, T* out, unsigned heads,        \
                                               unsigned kv_heads, unsigned width) {                                    \
        merge_parts<T>(parts, merges, out, heads, kv_heads, width);                                                    \
    }
#define WIDTHS(T)            \
    TILE(T, 64, wide, false) \
    TILE(T, 64, narrow, true) \
    TILE(T, 128, wide, false) \
    TILE(T, 128, narrow, true) \
    MERGE(T)

ANY(f32)
ANY(f16)
ANY(bf16)
WIDTHS(f16)
WIDTHS(bf16)

// A mixture of experts without a look from the host: who goes where, and one product for all experts.
//
// An assignment is a row and one of its choices: row * active + choice. Assignments of one expert are cut into tiles of a
// few rows; a block of threads multiplies one tile with 64 of its expert's outputs on tensor cores.
#include "numbers.cuh"

constexpr int OUTPUTS = 64;
constexpr int DEPTH = 64;
constexpr int STRIDE = DEPTH + 8;

struct ExpertTile {
    unsigned expert, first, count;
};

// The `active` highest logits of each row, one warp a row: of equal ones the first, a NaN before all. Scores are
// sigmoids (Llama 4).
extern "C" __global__ void route_rows(const float* logits, unsigned* experts, float* scores, unsigned rows,
                                      unsigned count, unsigned active) {
    const unsigned row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    for (unsigned choice = 0; choice < active; choice++) {
        float best = 0;
        unsigned place = ~0u;
        auto take = [&](float logit, unsigned expert) {
            const bool is_higher = isnan(logit) ? !isnan(best) : !isnan(best) && logit > best;
            const bool is_equal = isnan(logit) ? isnan(best) : logit == best;
            if (expert != ~0u && (place == ~0u || is_higher || (is_equal && expert < place))) best = logit, place = expert;
        };
        for (unsigned expert = lane; expert < count; expert += 32) {
            bool is_taken = false;
            for (unsigned before = 0; before < choice; before++) is_taken |= experts[row * active + before] == expert;
            if (!is_taken) take(logits[row * count + expert], expert);
        }
        for (int apart = 16; apart > 0; apart /= 2) {
            const float other = __shfl_xor_sync(~0u, best, apart);
            take(other, __shfl_xor_sync(~0u, place, apart));
        }
        if (lane == 0) {
            experts[row * active + choice] = place;
            scores[row * active + choice] = 1 / (1 + expf(-best));
        }
        __syncwarp();
    }
}

// Lists assignments by expert, in order, and cuts them into tiles of up to `tile_rows`; tiles that are left over are
// empty. One block of threads, each of whose warps goes through all assignments for its experts.
extern "C" __global__ void sort_assignments(const unsigned* experts, unsigned* order, ExpertTile* tiles,
                                            unsigned assignments, unsigned count, unsigned tile_rows, unsigned tile_count) {
    extern __shared__ unsigned counts[];
    const unsigned warp = threadIdx.x / 32, warps = blockDim.x / 32, lane = threadIdx.x % 32;
    for (unsigned expert = warp; expert < count; expert += warps) {
        unsigned own = 0;
        for (unsigned i = lane; i < assignments; i += 32) own += experts[i] == expert;
        for (int apart = 16; apart > 0; apart /= 2) own += __shfl_xor_sync(~0u, own, apart);
        if (lane == 0) counts[expert] = own;
    }
    __syncthreads();
    for (unsigned expert = warp; expert < count; expert += warps) {
        unsigned first = 0, tile = 0;
        for (unsigned before = 0; before < expert; before++) {
            first += counts[before];
            tile += (counts[before] + tile_rows - 1) / tile_rows;
        }
        const unsigned own = counts[expert], own_tiles = (own + tile_rows - 1) / tile_rows;
        for (unsigned i = lane; i < own_tiles; i += 32)
            tiles[tile + i] = {expert, first + i * tile_rows, min(tile_rows, own - i * tile_rows)};
        if (expert + 1 == count)
            for (unsigned i = tile + own_tiles + lane; i < tile_count; i += 32) tiles[i] = {0, 0, 0};
        for (unsigned from = 0; from < assignments; from += 32) {
            const unsigned i = from + lane;
            const bool is_own = i < assignments && experts[i] == expert;
            const unsigned all = __ballot_sync(~0u, is_own);
            if (is_own) order[first + __popc(all & ((1u << lane) - 1))] = i;
            first += __popc(all);
        }
    }
}

// out[assignment] = scores[assignment] * weights[expert] * input[assignment / share]. `weights` is
// [experts, outputs, inputs]; `inputs` is a multiple of 8; without `scores` they are one.
template <typename T, int ROWS>
__device__ void multiply_experts(const T* input, const T* weights, const unsigned* order, const ExpertTile* tiles,
                                 const float* scores, T* out, unsigned share, unsigned outputs, unsigned inputs) {
    // Warps lie two by two over 64 rows, or side by side over 16.
    constexpr int WARP_ROWS = ROWS == 64 ? 32 : 16, WARP_OUTPUTS = ROWS == 64 ? 32 : 16;
    constexpr int UP = WARP_ROWS / 16, ACROSS = WARP_OUTPUTS / 8;
    __shared__ __align__(16) T near_input[2][ROWS * STRIDE], near_weights[2][OUTPUTS * STRIDE];
    __shared__ unsigned assignments[ROWS];
    const ExpertTile tile = tiles[blockIdx.y];
    if (tile.count == 0) return;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const unsigned first_output = blockIdx.x * OUTPUTS;
    for (int i = threadIdx.x; i < ROWS; i += blockDim.x)
        assignments[i] = i < tile.count ? order[tile.first + i] : ~0u;
    __syncthreads();
    const T* const own = weights + (size_t)tile.expert * outputs * inputs;

    auto fetch = [&](int stage, unsigned first) {
        constexpr int PIECES = DEPTH / 8;
        for (int i = threadIdx.x; i < ROWS * PIECES; i += blockDim.x) {
            const unsigned assignment = assignments[i / PIECES], at = first + i % PIECES * 8;
            const bool is_there = assignment != ~0u && at < inputs;
            const T* const from = is_there ? input + (size_t)(assignment / share) * inputs + at : input;
            copy_16(near_input[stage] + i / PIECES * STRIDE + i % PIECES * 8, from, is_there);
        }
        for (int i = threadIdx.x; i < OUTPUTS * PIECES; i += blockDim.x) {
            const unsigned output = first_output + i / PIECES, at = first + i % PIECES * 8;
            const bool is_there = output < outputs && at < inputs;
            const T* const from = is_there ? own + (size_t)output * inputs + at : own;
            copy_16(near_weights[stage] + i / PIECES * STRIDE + i % PIECES * 8, from, is_there);
        }
        close_group();
    };

    const int row = ROWS == 64 ? warp / 2 * WARP_ROWS : 0;
    const int output = ROWS == 64 ? warp % 2 * WARP_OUTPUTS : warp * WARP_OUTPUTS;
    float sums[UP][ACROSS][4] = {};
    fetch(0, 0);
    int stage = 0;
    for (unsigned first = 0; first < inputs; first += DEPTH, stage ^= 1) {
        if (first + DEPTH < inputs) fetch(stage ^ 1, first + DEPTH);
        else close_group();
        wait_for_groups<1>();
        __syncthreads();
#pragma unroll
        for (int step = 0; step < DEPTH; step += 32) {
            unsigned left[2][UP][4];
#pragma unroll
            for (int half = 0; half < 2; half++)
#pragma unroll
                for (int up = 0; up < UP; up++)
                    load_tiles(left[half][up], near_input[stage] + (row + up * 16 + lane % 8 + lane / 8 % 2 * 8) * STRIDE
                                                   + step + half * 16 + lane / 16 * 8);
#pragma unroll
            for (int across = 0; across < ACROSS; across++) {
                unsigned right[4];
                load_tiles(right,
                           near_weights[stage] + (output + across * 8 + lane % 8) * STRIDE + step + lane / 8 * 8);
#pragma unroll
                for (int up = 0; up < UP; up++) {
                    multiply_tile<T>(sums[up][across], left[0][up], right[0], right[1]);
                    multiply_tile<T>(sums[up][across], left[1][up], right[2], right[3]);
                }
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int up = 0; up < UP; up++)
#pragma unroll
        for (int across = 0; across < ACROSS; across++)
#pragma unroll
            for (int part = 0; part < 4; part++) {
                const unsigned assignment = assignments[row + up * 16 + lane / 4 + part / 2 * 8];
                const unsigned column = first_output + output + across * 8 + lane % 4 * 2 + part % 2;
                if (assignment == ~0u || column >= outputs) continue;
                const float score = scores ? scores[assignment] : 1;
                out[(size_t)assignment * outputs + column] = narrowed<T>(sums[up][across][part] * score);
            }
}

#define EXPERTS(T, ROWS)                                                                                              \
    extern "C" __global__ void __launch_bounds__(128) multiply_experts_##ROWS##_##T(                                  \
        const T* input, const T* weights, const unsigned* order, const ExpertTile* tiles, const float* scores, T* out, \
        unsigned share, unsigned outputs, unsigned inputs) {                                                          \
        multiply_experts<T, ROWS>(input, weights, order, tiles, scores, out, share, outputs, inputs);                 \
    }

EXPERTS(f16, 16)
EXPERTS(f16, 64)
EXPERTS(bf16, 16)
EXPERTS(bf16, 64)

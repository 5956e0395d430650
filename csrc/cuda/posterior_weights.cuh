// Weights that lie as tiles in shared memory and, what does not fit, in the workspace, from where they are streamed
// through L2: their order, the products with them, and the kernel that packs them.
#pragma once

#include <type_traits>

#include "posterior_fragments.cuh"

namespace vssn::posterior {

// The order of a block's weight tiles: those of the first product by hidden unit (the block's slice of the posterior's,
// then of the prior's), those of the second by group of latents.
template <class Pass>
struct TileOrder {
    int slice, latent_depth, slice_depth, nets, inward;

    VSSN_DEVICE explicit TileOrder(const typename Pass::Params& params)
        : slice(params.plan.slice),
          latent_depth(params.plan.latent_depth),
          slice_depth(params.plan.slice_depth),
          nets(params.call.prior_weight_z.data ? 2 : 1),
          inward(slice * (Pass::kParts + nets - 1) * latent_depth) {}

    // The first of latent_depth tiles for one part of a hidden tile of the slice (the prior's count on).
    VSSN_DEVICE int in(int tile, int part) const {
        return (tile < slice ? tile * Pass::kParts + part : slice * (Pass::kParts - 1) + tile) * latent_depth;
    }
    // The first of a group: for each k-step of the posterior kSums tiles, then one for each of the prior.
    VSSN_DEVICE int out(int group) const { return inward + group * (Pass::kSums + nets - 1) * slice_depth; }

    // One of the tiles of the block of this rank.
    VSSN_DEVICE typename Pass::P::A load(const typename Pass::Weights& weights, int rank, int index) const {
        const int first_tile = rank * slice;
        if (index < inward) {
            const int k = index % latent_depth, row = index / latent_depth, own = slice * Pass::kParts;
            return row < own ? weights.weight_in(0, first_tile + row / Pass::kParts, row % Pass::kParts, k)
                             : weights.weight_in(1, first_tile + row - own, 0, k);
        }
        const int of_group = (Pass::kSums + nets - 1) * slice_depth, own = Pass::kSums * slice_depth;
        const int group = (index - inward) / of_group, at = (index - inward) % of_group;
        const int k = at < own ? at / Pass::kSums : at - own;
        return weights.weight_out(at < own ? 0 : 1, group, at < own ? at % Pass::kSums : 0,
                                  first_tile * kUnits + k * Pass::P::kDepth);
    }
};

struct WeightTiles {
    const unsigned char *in_shared, *streamed;
    int kept;  // the tiles below are in shared memory
};

// Where in the workspace the tiles of a block of the cluster are.
template <class P, class Params>
VSSN_DEVICE unsigned char* streamed_tiles(const Params& params, int rank) {
    return static_cast<unsigned char*>(params.call.workspace) +
           static_cast<int64_t>(rank) * params.plan.tiles * P::kTileBytes;
}

// sums[i] += the tiles i, i + n, i + 2n, ... of n depth tiles, times depth k-steps of b.
template <class P, int n, bool streamed>
VSSN_DEVICE void multiply_run(Four* sums, const unsigned char* tiles, int depth, const typename P::Stored* b,
                              int stride) {
    // Even and odd k-steps on tensor cores, whose results come late: two chains are half as long.
    constexpr int kChains = P::kTensorCores ? 2 : 1;
    Four chains[kChains][n];
#pragma unroll
    for (int chain = 0; chain < kChains; ++chain)
#pragma unroll
        for (int i = 0; i < n; ++i) chains[chain][i] = zeros();
    const typename P::Stored* right = b;
    // All is loaded before the first product: memory is waited for once.
    const auto multiply_steps = [&](auto count) {
        constexpr int kSteps = decltype(count)::value;
        typename P::A left[kSteps][n];
        typename P::B operand[kSteps];
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            operand[step] = P::load_b(right + step * P::kDepth, stride);
#pragma unroll
            for (int i = 0; i < n; ++i) {
                const unsigned char* tile = tiles + (step * n + i) * P::kTileBytes;
                left[step][i] = streamed ? P::load_l2(tile) : P::load(tile);
            }
        }
#pragma unroll
        for (int step = 0; step < kSteps; ++step)
#pragma unroll
            for (int i = 0; i < n; ++i) P::multiply(chains[step % kChains][i], left[step][i], operand[step]);
        right += kSteps * P::kDepth;
        tiles += kSteps * n * P::kTileBytes;
    };
    constexpr int kAtOnce = !P::kTensorCores ? 1 : n <= 2 ? 4 : 2;
#pragma unroll 1
    for (; depth >= kAtOnce; depth -= kAtOnce) multiply_steps(std::integral_constant<int, kAtOnce>{});
    if constexpr (kAtOnce > 2)
        if (depth >= 2) {
            multiply_steps(std::integral_constant<int, 2>{});
            depth -= 2;
        }
    if constexpr (kAtOnce > 1)
        if (depth > 0) multiply_steps(std::integral_constant<int, 1>{});
#pragma unroll
    for (int chain = 0; chain < kChains; ++chain)
#pragma unroll
        for (int i = 0; i < n; ++i) add(sums[i], chains[chain][i]);
}

template <class P, int n>
VSSN_DEVICE void multiply_tiles(Four* sums, const WeightTiles& weights, int first, int depth,
                                const typename P::Stored* b, int stride) {
    int near = weights.kept > first ? (weights.kept - first) / n : 0;
    if (near > depth) near = depth;
    if (near > 0)
        multiply_run<P, n, false>(sums, weights.in_shared + static_cast<int64_t>(first) * P::kTileBytes, near, b,
                                  stride);
    if (near < depth)
        multiply_run<P, n, true>(sums, weights.streamed + static_cast<int64_t>(first + near * n) * P::kTileBytes,
                                 depth - near, b + near * P::kDepth, stride);
}

// Writes the weight tiles of every block of a cluster into the workspace: a warp each, grid_y() blocks of a cluster.
template <class Pass>
VSSN_DEVICE void pack_weights(const typename Pass::Params& params) {
    using P = typename Pass::P;
    const int index = block_x() * warps() + warp_id(), rank = block_y();
    if (index >= params.plan.tiles) return;
    P::store(TileOrder<Pass>(params).load(typename Pass::Weights(params.call), rank, index),
             streamed_tiles<P>(params, rank) + static_cast<int64_t>(index) * P::kTileBytes);
}

}  // namespace vssn::posterior

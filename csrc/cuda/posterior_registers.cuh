// The posterior's loop over steps in one block whose warps hold the weights in registers.
#pragma once

#include <type_traits>

#include "posterior_sequences.cuh"

namespace vssn::posterior {

// Compile-time sizes: M up to 16 kHiddenTiles kWarps, Z up to 16 kGroups. kSplits warps share a group's sums over M.
template <int hidden_tiles, int warps, int groups, int splits>
struct Shape {
    static constexpr int kHiddenTiles = hidden_tiles;  // of each network, of one warp
    static constexpr int kWarps = warps, kGroups = groups, kSplits = splits;
    static constexpr int kMaxM = kUnits * hidden_tiles * warps, kMaxZ = kUnits * groups;
};
using Narrow = Shape<1, 4, 1, 1>;  // M <= 64, Z <= 16
using Wide = Shape<2, 8, 4, 2>;    // M <= 256, Z <= 64

template <class Pass, class Shape, bool prior>
VSSN_DEVICE void run_in_registers(const typename Pass::Params& params) {
    using P = typename Pass::P;
    using Stored = typename P::Stored;
    constexpr int kSums = Pass::kSums, kTiles = Shape::kHiddenTiles, kNets = prior ? 2 : 1;
    constexpr int kLatentDepth = Shape::kMaxZ / P::kDepth, kShare = Shape::kMaxM / P::kDepth / Shape::kSplits;
    // Single elements of both networks, on their way in the wide shape, leave hardly a register, and before Hopper
    // backward takes as many for pairs. Backward, whose latents need five inputs, loads them when the registers of
    // those before are free.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
    constexpr bool kCrowded = Pass::kParts == 2;
#else
    constexpr bool kCrowded = false;
#endif
    constexpr bool kTight = prior && std::is_same_v<Shape, Wide> && (!Pass::Steps::kPaired || kCrowded);
    constexpr bool kLoadsLater = kTight && Pass::kParts == 2;
    const PosteriorPlan& plan = params.plan;
    const BatchTile batch(params.call, 1);
    const Pass pass(params, batch);
    auto* latent = reinterpret_cast<Stored*>(dynamic_shared() + plan.latent_at);
    auto* hidden = reinterpret_cast<Stored*>(dynamic_shared() + plan.hidden_at);
    auto* partial = reinterpret_cast<Quad*>(dynamic_shared() + plan.exchange_at) + lane_id();
    const int first = warp_id() * kTiles, group = warp_id() % Shape::kGroups, split = warp_id() / Shape::kGroups;
    const bool sums_up = split < Shape::kSplits, finishes = split == 0;
    pass.zero_padding(0, 1);  // first, so that nothing it needs stays in registers

    typename P::A weights_in[kTiles][Pass::kParts][kLatentDepth], prior_in[prior ? kTiles : 1][kLatentDepth];
    typename P::A weights_out[kShare][kSums], prior_out[prior ? kShare : 1];
    typename Pass::Loaded inputs[kNets * kTiles];
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
#pragma unroll
        for (int k = 0; k < kLatentDepth; ++k) {
#pragma unroll
            for (int part = 0; part < Pass::kParts; ++part)
                weights_in[i][part][k] = pass.weight_in(0, first + i, part, k);
            if constexpr (prior) prior_in[i][k] = pass.weight_in(1, first + i, 0, k);
        }
#pragma unroll
        for (int net = 0; net < kNets; ++net) inputs[net * kTiles + i] = pass.hidden_input(0, net, first + i);
    }
#pragma unroll
    for (int k = 0; k < kShare; ++k) {
        const int unit = (split * kShare + k) * P::kDepth;
#pragma unroll
        for (int sum = 0; sum < kSums; ++sum) weights_out[k][sum] = pass.weight_out(0, group, sum, unit);
        if constexpr (prior) prior_out[k] = pass.weight_out(1, group, 0, unit);
    }
    pass.prepare_block();
    const auto put_latent = [&](const typename Pass::Result& result) {
#pragma unroll
        for (int part = 0; part < Pass::kParts; ++part)
            put<P>(latent, plan.latent_stride, part * Shape::kMaxZ + group * kUnits, result.latent[part]);
    };
    typename Pass::Result result;
    if (finishes) {
        result = pass.first_latent(group);
        put_latent(result);
        pass.store_first(group, result);
    }
    typename Pass::LatentInputs input{};
    pass.latent_input(input, 0, group);
    sync_block();
    for (int step = 0; step < batch.steps; ++step) {
        Four products[kNets * kTiles];
        StoredFour<Stored> kept[kNets * kTiles];
#pragma unroll
        for (int i = 0; i < kNets * kTiles; ++i) products[i] = zeros();
#pragma unroll
        for (int part = 0; part < Pass::kParts; ++part)
#pragma unroll
            for (int k = 0; k < kLatentDepth; ++k) {
                const auto b = P::load_b(latent + part * Shape::kMaxZ + k * P::kDepth, plan.latent_stride);
#pragma unroll
                for (int i = 0; i < kTiles; ++i) {
                    P::multiply(products[i], weights_in[i][part][k], b);
                    if (prior && part == 0) P::multiply(products[(kNets - 1) * kTiles + i], prior_in[i][k], b);
                }
            }
        pass.template hidden_finish<kTiles>(products, inputs, kept, first);
#pragma unroll
        for (int net = 0; net < kNets; ++net)
#pragma unroll
            for (int i = 0; i < kTiles; ++i)
                put<P>(hidden, plan.hidden_stride, net * Shape::kMaxM + (first + i) * kUnits,
                       products[net * kTiles + i]);
        sync_block();

        Four sums[2][kSums];  // even and odd k: two chains are half as long
#pragma unroll
        for (int sum = 0; sum < kSums; ++sum) sums[0][sum] = sums[1][sum] = zeros();
        if (sums_up) {
            const Stored* share = hidden + split * kShare * P::kDepth;
#pragma unroll
            for (int k = 0; k < kShare; ++k) {
                const auto b = P::load_b(share + k * P::kDepth, plan.hidden_stride);
#pragma unroll
                for (int sum = 0; sum < kSums; ++sum) P::multiply(sums[k % 2][sum], weights_out[k][sum], b);
            }
            if constexpr (prior) {
#pragma unroll
                for (int k = 0; k < kShare; ++k)
                    P::multiply(sums[k % 2][0], prior_out[k],
                                P::load_b(share + Shape::kMaxM + k * P::kDepth, plan.hidden_stride));
            }
#pragma unroll
            for (int sum = 0; sum < kSums; ++sum) add(sums[0][sum], sums[1][sum]);
        }
#pragma unroll
        for (int net = 0; net < kNets; ++net)
#pragma unroll
            for (int i = 0; i < kTiles; ++i) {
                pass.store_hidden(step, net, first + i, kept[net * kTiles + i]);
                inputs[net * kTiles + i] = pass.hidden_input(step + 1, net, first + i);
            }
        if constexpr (Shape::kSplits > 1) {
            if (!finishes)
#pragma unroll
                for (int sum = 0; sum < kSums; ++sum)
                    partial[((split - 1) * Shape::kGroups + group) * kSums * kWarp + sum * kWarp] = quad(sums[0][sum]);
            sync_block();
        }
        if (finishes) {
            const auto prepared = pass.prepared(step, group, input);
            if (!kLoadsLater) pass.latent_input(input, step + 1, group);
#pragma unroll
            for (int other = 0; other + 1 < Shape::kSplits; ++other)
#pragma unroll
                for (int sum = 0; sum < kSums; ++sum)
                    add(sums[0][sum], partial[(other * Shape::kGroups + group) * kSums * kWarp + sum * kWarp]);
            result = pass.latent_finish(sums[0], prepared, group);
            put_latent(result);
            if constexpr (kLoadsLater) {
                sync_warp();  // holds the compiler back from loading earlier
                pass.latent_input(input, step + 1, group);
            }
        } else if (!kTight && split == 1) {  // a warp for each that finishes
            pass.prefetch(step + kPrefetched, group, Shape::kGroups);
        }
        sync_block();
        if (finishes) pass.store_latent(step, group, result);
    }
    if (finishes) pass.store_last(group, result);
}

}  // namespace vssn::posterior

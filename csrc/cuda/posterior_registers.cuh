// The posterior's loop over steps in one block whose warps hold the weights in registers.
#pragma once

#include <type_traits>

#include "posterior_sequences.cuh"

namespace vssn::posterior {

// Compile-time sizes: M up to 16 kHiddenTiles kWarps, Z up to 16 kGroups. kSplits warps share a group's sums over M,
// and finish one batch row each of a lane's two. Of one group every warp has all sums and finishes both rows for
// itself: the latents then stay within the warp, the hidden buffer is double, and a step has one barrier.
template <int hidden_tiles, int warps, int groups, int splits>
struct Shape {
    static constexpr int kHiddenTiles = hidden_tiles;  // of each network, of one warp
    static constexpr int kWarps = warps, kGroups = groups, kSplits = splits;
    static constexpr int kMaxM = kUnits * hidden_tiles * warps, kMaxZ = kUnits * groups;
    static constexpr bool kAll = groups == 1;
    static constexpr int kRowsOfWarp = splits == 1 ? 2 : 1;
    static constexpr int kLatentBuffers = kAll ? warps : 1, kHiddenBuffers = kAll ? 2 : 1;
    static_assert(kAll ? splits == 1 : splits == 2 && groups * splits == warps);

    // Elements of two bytes between rows: 16 modulo 128 bytes, so that load_b meets no bank conflict.
    static constexpr int stride(int columns) { return (columns + 63) / 64 * 64 + 8; }
    static constexpr int latent_stride(int parts) { return stride(parts * kMaxZ); }
    static constexpr int hidden_stride(int nets) { return stride(nets * kMaxM); }
};
using Narrow = Shape<1, 4, 1, 1>;  // M <= 64, Z <= 16
using Wide = Shape<2, 8, 4, 2>;    // M <= 256, Z <= 64

// What a warp asks into L2 of a later step, eight lanes each: its hidden units' inputs, and its latents' where it
// `asks` for those.
template <class Pass, class Shape, int nets, int slots>
VSSN_DEVICE void prefetches_of(const Pass& pass, int first, int group, bool asks,
                               Prefetch<typename Pass::T> (&result)[slots]) {
    constexpr int kTiles = Shape::kHiddenTiles;
#pragma unroll
    for (int slot = 0; slot < slots; ++slot) {
        const int job = slot * (kWarp / kRows) + lane_id() / kRows;
#pragma unroll
        for (int i = 0; i < nets * kTiles; ++i)
            result[slot].become(job == i, pass.prefetch_hidden(i / kTiles, first + i % kTiles));
#pragma unroll
        for (int i = 0; i < Pass::latent_sequences(); ++i)
            result[slot].become(asks && job == nets * kTiles + i, pass.prefetch_latent(i, group));
    }
}

// The right sides of `count` k-steps, two in one instruction where there are registers for two. use(k, b); flip: as in
// primitives.cuh.
template <class P, int count, bool in_pairs, class Use>
VSSN_DEVICE void each_b(const typename P::Stored* base, int stride, int flip, const Use& use) {
    constexpr int kInPairs = in_pairs ? count / 2 * 2 : 0;
#pragma unroll
    for (int k = 0; k < kInPairs; k += 2) {
        typename P::B b[2];
        P::load_b_pair(base + k * P::kDepth, stride, b[0], b[1], flip);
        use(k, b[0]);
        use(k + 1, b[1]);
    }
#pragma unroll
    for (int k = kInPairs; k < count; ++k) use(k, P::load_b(base + k * P::kDepth, stride, flip));
}

template <class Pass, class Shape, bool prior>
VSSN_DEVICE void run_in_registers(const typename Pass::Params& params) {
    using P = typename Pass::P;
    using Stored = typename P::Stored;
    constexpr int kSums = Pass::kSums, kTiles = Shape::kHiddenTiles, kNets = prior ? 2 : 1;
    constexpr int kLatentDepth = Shape::kMaxZ / P::kDepth, kShare = Shape::kMaxM / P::kDepth / Shape::kSplits;
    constexpr int kRowsOfWarp = Shape::kRowsOfWarp;
    constexpr int kLatentStride = Shape::latent_stride(Pass::kParts), kHiddenStride = Shape::hidden_stride(kNets);
    constexpr bool kPaired = Pass::Steps::kPaired;
    // Both networks in the wide shape, and single elements of them the more, leave hardly a register.
    constexpr bool kTight = prior && std::is_same_v<Shape, Wide>, kPrefetches = !kTight || kPaired;
    // Backward, whose latents need five inputs, then loads them when the registers of those before are free; before
    // Hopper pairs take as many.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
    constexpr bool kCrowded = true;
#else
    constexpr bool kCrowded = !kPaired;
#endif
    constexpr bool kLoadsLater = kTight && Pass::kParts == 2 && kCrowded;
    constexpr bool kOneByOne = kTight && !kPaired;  // one network's products behind the other's
    constexpr int kAsked = kNets * kTiles + (kTight ? 0 : Pass::latent_sequences());
    constexpr int kSlots = kPrefetches ? (kAsked + 3) / 4 : 0;
    using Part = Vector<float, 2 * kSums>;  // of a lane's sums, what the other warp of the group finishes
    const PosteriorPlan& plan = params.plan;
    const BatchTile batch(params.call, 1);
    const Pass pass(params, batch);
    auto* const latents = reinterpret_cast<Stored*>(dynamic_shared() + plan.latent_at);
    auto* const hiddens = reinterpret_cast<Stored*>(dynamic_shared() + plan.hidden_at);
    auto* const parts = reinterpret_cast<Part*>(dynamic_shared() + plan.exchange_at) + lane_id();
    const int first = warp_id() * kTiles, group = warp_id() % Shape::kGroups;
    const int split = Shape::kAll ? 0 : warp_id() / Shape::kGroups;
    const int first_row = kRowsOfWarp == 1 ? split : 0;
    const int only = Shape::kAll ? warp_id() : -1;  // of the latents' sequences, the one that this warp writes
    pass.zero_padding(0, 1);                        // first, so that nothing it needs stays in registers
    for (int i = thread_id(); i < Shape::kLatentBuffers * kRows * kLatentStride; i += block_threads())
        latents[i] = from_float<Stored>(0.0f);
    for (int i = thread_id(); i < Shape::kHiddenBuffers * kRows * kHiddenStride; i += block_threads())
        hiddens[i] = from_float<Stored>(0.0f);
    pass.prepare_block();
    sync_block();

    typename P::A weights_in[kTiles][Pass::kParts][kLatentDepth], prior_in[prior ? kTiles : 1][kLatentDepth];
    typename P::A weights_out[kShare][kSums], prior_out[prior ? kShare : 1];
#pragma unroll
    for (int i = 0; i < kTiles; ++i)
#pragma unroll
        for (int k = 0; k < kLatentDepth; ++k) {
#pragma unroll
            for (int part = 0; part < Pass::kParts; ++part)
                weights_in[i][part][k] = pass.weight_in(0, first + i, part, k);
            if constexpr (prior) prior_in[i][k] = pass.weight_in(1, first + i, 0, k);
        }
#pragma unroll
    for (int k = 0; k < kShare; ++k) {
        const int unit = (split * kShare + k) * P::kDepth;
#pragma unroll
        for (int sum = 0; sum < kSums; ++sum) weights_out[k][sum] = pass.weight_out(0, group, sum, unit);
        if constexpr (prior) prior_out[k] = pass.weight_out(1, group, 0, unit);
    }

    // Where this lane's values go, and how many units of a pair there are.
    Stored* const latent_buffer = latents + (Shape::kAll ? warp_id() * kRows * kLatentStride : 0);
    const int latent_unit = group * kUnits + accumulator_row(0), hidden_unit = first * kUnits + accumulator_row(0);
    Stored* const latent_place = latent_buffer + (accumulator_column(0) + first_row) * kLatentStride + latent_unit;
    Stored* hidden_place = hiddens + accumulator_column(0) * kHiddenStride + hidden_unit;
    const Stored* hidden_buffer = hiddens;
    const int latent_count = static_cast<int>(params.call.Z) - latent_unit;
    int hidden_counts[kTiles];
#pragma unroll
    for (int i = 0; i < kTiles; ++i) hidden_counts[i] = static_cast<int>(params.call.M) - hidden_unit - i * kUnits;
    const auto put_latent = [&](const auto& result) {
#pragma unroll
        for (int part = 0; part < Pass::kParts; ++part)
            put_at<P, kPaired, kLatentStride, kRowsOfWarp>(latent_place + part * Shape::kMaxZ, result.latent[part],
                                                           latent_count);
    };

    auto hidden = pass.template hidden_of<kNets, kTiles>(first);
    auto latent = pass.template latents_of<kRowsOfWarp>(group, first_row);
    auto input = pass.template latent_nothing<kRowsOfWarp>();
    typename Pass::Loaded inputs[kNets * kTiles];
#pragma unroll
    for (int i = 0; i < kNets * kTiles; ++i) inputs[i] = Pass::Loaded::zero();
    Prefetch<Stored> prefetches[kSlots > 0 ? kSlots : 1];
    if constexpr (kPrefetches)
        prefetches_of<Pass, Shape, kNets>(pass, first, group, Shape::kAll ? warp_id() == 0 : split == 0, prefetches);
    hidden.load(pass, 0, inputs);
    auto result = pass.first_latents(latent, input, group, first_row, only);
    put_latent(result);
    Four starts[kSums];
#pragma unroll
    for (int sum = 0; sum < kSums; ++sum) starts[sum] = split == 0 ? pass.latent_start(sum, group) : zeros();
    if (Shape::kAll)
        sync_warp();
    else
        sync_block();
    for (int step = 0; step < batch.steps; ++step) {
        Four products[kNets][kTiles];
        StoredFour<Stored> kept[kNets * kTiles];
        const auto multiply_nets = [&](bool own, bool others) {
#pragma unroll
            for (int part = 0; part < (own ? Pass::kParts : 1); ++part)
                each_b<P, kLatentDepth, !kOneByOne>(latent_buffer + part * Shape::kMaxZ, kLatentStride, 0,
                                                    [&](int k, const typename P::B& b) {
#pragma unroll
                                                        for (int i = 0; i < kTiles; ++i) {
                                                            if (own)
                                                                P::multiply(products[0][i], weights_in[i][part][k], b);
                                                            if (others && part == 0)
                                                                P::multiply(products[kNets - 1][i], prior_in[i][k], b);
                                                        }
                                                    });
        };
#pragma unroll
        for (int net = 0; net < kNets; ++net)
#pragma unroll
            for (int i = 0; i < kTiles; ++i) products[net][i] = pass.hidden_start(inputs[net * kTiles + i]);
        if constexpr (!kOneByOne) multiply_nets(true, prior);
#pragma unroll
        for (int net = 0; net < kNets; ++net) {
            if constexpr (kOneByOne) multiply_nets(net == 0, net == 1);
            pass.template hidden_activate<kTiles>(products[net], inputs + net * kTiles, kept + net * kTiles);
#pragma unroll
            for (int i = 0; i < kTiles; ++i)
                put_at<P, kPaired, kHiddenStride, 2>(hidden_place + net * Shape::kMaxM + i * kUnits, products[net][i],
                                                     hidden_counts[i]);
        }
        // What is read next comes while the products are on their way, behind an exchange at least: in one group, where
        // no other exchange follows, before this one.
        decltype(latent.prepared(pass, input)) prepared;
        const auto load_next = [&] {
            hidden.load(pass, step + 1, inputs);
            if constexpr (!kLoadsLater) {
                prepared = latent.prepared(pass, input);
                latent.load(pass, step + 1, input);
            }
        };
        if constexpr (Shape::kAll) load_next();
        sync_block();

        Four sums[2][kSums];  // even and odd k: two chains are half as long
#pragma unroll
        for (int sum = 0; sum < kSums; ++sum) {
            sums[0][sum] = starts[sum];
            sums[1][sum] = zeros();
        }
        // The second split's right sides have the rows of a pair exchanged: so what a warp finishes are its v[0], v[2].
        const Stored* share = hidden_buffer + split * kShare * P::kDepth;
        each_b<P, kShare, !kOneByOne>(share, kHiddenStride, first_row, [&](int k, const typename P::B& b) {
#pragma unroll
            for (int sum = 0; sum < kSums; ++sum) P::multiply(sums[k % 2][sum], weights_out[k][sum], b);
        });
        if constexpr (prior)
            each_b<P, kShare, !kOneByOne>(
                share + Shape::kMaxM, kHiddenStride, first_row,
                [&](int k, const typename P::B& b) { P::multiply(sums[k % 2][0], prior_out[k], b); });
        // Accesses of global memory hold up those of shared memory behind them: these have the time of the latents'
        // arithmetic, until the latents are written.
        const auto meanwhile = [&] {
            if constexpr (!Shape::kAll) load_next();
            hidden.store(pass, step, kept);
            if constexpr (kPrefetches)
#pragma unroll
                for (int slot = 0; slot < kSlots; ++slot) prefetches[slot].ask(pass.time(step + kPrefetched));
        };

        OfRows<kRowsOfWarp> own[kSums];
        if constexpr (kRowsOfWarp == 2 || kOneByOne) meanwhile();  // the latter for want of registers
        if constexpr (kRowsOfWarp == 2) {
#pragma unroll
            for (int sum = 0; sum < kSums; ++sum) {
                own[sum] = sums[0][sum];
                add(own[sum], sums[1][sum]);
            }
        } else {
            Part part;
#pragma unroll
            for (int sum = 0; sum < kSums; ++sum)
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    part.v[2 * sum + i] = sums[0][sum].v[2 * i + 1] + sums[1][sum].v[2 * i + 1];
                    own[sum].v[i] = sums[0][sum].v[2 * i] + sums[1][sum].v[2 * i];
                }
            parts[warp_id() * kWarp] = part;
            sync_block();
            const Part other = parts[(warp_id() ^ Shape::kGroups) * kWarp];
            if constexpr (!kOneByOne) meanwhile();
#pragma unroll
            for (int sum = 0; sum < kSums; ++sum)
#pragma unroll
                for (int i = 0; i < 2; ++i) own[sum].v[i] += other.v[2 * sum + i];
        }
        if constexpr (kLoadsLater) prepared = latent.prepared(pass, input);
        result = pass.template latents<kRowsOfWarp>(own, prepared);
        put_latent(result);
        if constexpr (kLoadsLater) {
            sync_warp();  // holds the compiler back from loading earlier
            latent.load(pass, step + 1, input);
        }
        if constexpr (Shape::kAll) {
            sync_warp();
            const int to_other = step % 2 == 0 ? kRows * kHiddenStride : -kRows * kHiddenStride;
            hidden_place += to_other;
            hidden_buffer += to_other;
        } else {
            sync_block();
        }
        latent.store(pass, step, result, only);
    }
    if (!Shape::kAll || only == 0) pass.template store_last_of<kRowsOfWarp>(group, first_row, result);
}

}  // namespace vssn::posterior

// The loop over steps that posterior_forward.cu and posterior_backward.cu share.
//
// A block, or a cluster of blocks, has a batch tile of 8 rows. In each step
//
//   latent buffer [8][parts x Z]  ->  hidden units [8][M]  ->  sums over M for 16 latents  ->  latent buffer
//
// where the two arrows in the middle are products with weights as the left operand, in tiles of 16 units, and each end
// is finished elementwise by the lanes that hold the product's accumulators. What the buffers mean is the Pass's:
//
//   kParts      parts of the latent buffer: z, or the gradients of (mu, raw). The posterior's hidden units are a
//               product over all parts, the prior's over the first.
//   kSums       sums over the posterior's hidden units for each latent: (mu, raw), or dz. The prior's units add to
//               the first.
//   hidden_input(step, net, tile)             what a tile of 16 hidden units needs beside its product (net: 0 the
//                                             posterior, 1 the prior); only to be loaded
//   hidden_finish(products, inputs, kept)     products become what the hidden buffer holds; kept: what store_hidden
//                                             writes to global memory
//   latent_input(step, group), prepared(.)    what a group of 16 latents needs beside its sums: as loaded, and as used
//   latent_finish(sums, prepared, group)      gives the group's Result: its parts of the latent buffer, and what
//                                             store_latent writes
//   first_latent(group), store_first          the same before the first step; store_last: what is written behind the
//   last Weights: weight_in(net, tile, part, k), weight_out(net, group, sum, unit)    tiles of the weights
//
// Loads are issued a step, or a product, before they are used. Weights live in registers (run_in_registers), or as
// tiles in shared memory and, what does not fit, in the workspace, from where they are streamed through L2
// (run_in_memory).
//
// In a cluster a block has a slice of M: its sums are partial. Either every block sends its sums to all, and each
// computes all latents (one exchange); or it sends them to the one block that a group belongs to, which sends the new
// latents to all (two exchanges, less traffic). Sums are added in the order of the blocks: bits do not depend on
// timing.
#pragma once

#include <stdexcept>
#include <string>
#include <type_traits>

#include "posterior.h"
#include "primitives.cuh"

namespace vssn::posterior {

using namespace gpu;

constexpr int kRows = 8;          // of the batch in a tile
constexpr int kUnits = 16;        // hidden units or latents in a tile
constexpr int kMaxThreads = 384;  // more, and the registers of a thread no longer suffice

// What a lane holds of 16 units and 8 batch rows: v[i] of unit accumulator_row(i), batch row accumulator_column(i).
using Four = Accumulator;

// One sum's accumulators as they are exchanged: every lane's four.
using Quad = Vector<float, 4>;
constexpr int kTileOfSums = kWarp * sizeof(Quad);

VSSN_DEVICE Four zeros() { return {{0, 0, 0, 0}}; }
VSSN_DEVICE Quad quad(const Four& four) { return {{four.v[0], four.v[1], four.v[2], four.v[3]}}; }

// to += from: a Four or a Quad.
template <class From>
VSSN_DEVICE void add(Four& to, const From& from) {
#pragma unroll
    for (int i = 0; i < 4; ++i) to.v[i] += from.v[i];
}

// ---- Rows of the batch -------------------------------------------------------------------------------------------

// The block's batch rows, as a lane sees them: its accumulators belong to rows `row` and row + 1.
struct BatchTile {
    int64_t first, row;
    int length[2];  // steps that are no padding; -1 beyond the batch
    int steps;      // the longest length of the tile

    VSSN_DEVICE BatchTile(const PosteriorProblem& k, int cluster)
        : first(static_cast<int64_t>(block_x() / cluster) * kRows), row(first + accumulator_column(0)) {
        const int64_t mine = first + lane_id() % kRows;
        int taken = -1;
        if (mine < k.B) {
            const int64_t given = k.lengths ? k.lengths[mine] : k.steps;
            taken = static_cast<int>(given < 0 ? 0 : given > k.steps ? k.steps : given);
        }
        steps = taken;
#pragma unroll
        for (int mask = kRows / 2; mask > 0; mask /= 2) {
            const int other = shuffle_xor(steps, mask);
            steps = other > steps ? other : steps;
        }
#pragma unroll
        for (int j = 0; j < 2; ++j) length[j] = shuffle(taken, accumulator_column(j));
    }

    VSSN_DEVICE bool inside(int j) const { return length[j] >= 0; }
    VSSN_DEVICE bool valid(int t, int j) const { return t >= 0 && t < length[j]; }
};

// Whether neighbouring units may be read or written as one access, in every row of a sequence: one that is contiguous
// and of an even width, or any.
template <class T>
bool in_pairs(const void* contiguous) {
    return reinterpret_cast<uintptr_t>(contiguous) % (2 * sizeof(T)) == 0;
}
template <class T>
bool in_pairs(const PosteriorSteps& steps) {
    return in_pairs<T>(steps.data) && steps.step_stride % 2 == 0 && steps.row_stride % 2 == 0;
}

// A Four as it was loaded: for each of the lane's two batch rows its two units. `paired`: as in Ahead.
template <class T, bool paired>
struct LoadedFour {
    Ahead<T, paired> row[2];

    static VSSN_DEVICE LoadedFour zero() { return {{Ahead<T, paired>::zero(), Ahead<T, paired>::zero()}}; }
    VSSN_DEVICE Four wide() const { return {{row[0][0], row[1][0], row[0][1], row[1][1]}}; }
    // In half the registers; waits for the elements.
    VSSN_DEVICE LoadedFour<T, true> joined() const {
        return {{{Packed<T, 2>::round(row[0][0], row[0][1])}, {Packed<T, 2>::round(row[1][0], row[1][1])}}};
    }
};

// A Four as it is to be stored.
template <class T>
struct StoredFour {
    Packed<T, 2> row[2];

    static VSSN_DEVICE StoredFour of(const Four& four) {
        return {{Packed<T, 2>::round(four.v[0], four.v[2]), Packed<T, 2>::round(four.v[1], four.v[3])}};
    }
};

// [T, B, width] as the caller gave it.
template <class T, bool paired>
struct Sequence {
    using Loaded = LoadedFour<T, paired>;

    const T* data;
    int64_t step_stride, row_stride;

    VSSN_DEVICE Sequence(const void* data, int64_t step_stride, int64_t row_stride)
        : data(static_cast<const T*>(data)), step_stride(step_stride), row_stride(row_stride) {}
    VSSN_DEVICE explicit Sequence(const PosteriorSteps& steps)
        : Sequence(steps.data, steps.step_stride, steps.row_stride) {}

    static VSSN_DEVICE Sequence contiguous(const void* data, int64_t B, int64_t width) {
        return Sequence(data, B * width, width);
    }
    // Member by member: a choice between two addresses would send both to local memory.
    static VSSN_DEVICE Sequence choose(bool first, const Sequence& a, const Sequence& b) {
        return Sequence(first ? a.data : b.data, first ? a.step_stride : b.step_stride,
                        first ? a.row_stride : b.row_stride);
    }

    // The four of a tile of units at step t; 0 at padding, beyond the width, and where there is no tensor.
    VSSN_DEVICE Loaded load(const BatchTile& batch, int t, int tile, int width) const {
        const int unit = tile * kUnits + accumulator_row(0);
        const int count = data == nullptr ? 0 : width - unit;
        const T* p = moved(data, t * step_stride + batch.row * row_stride + unit);
        Loaded four;
#pragma unroll
        for (int j = 0; j < 2; ++j, p = moved(p, row_stride))
            four.row[j] = Ahead<T, paired>::load(p, batch.valid(t, j) ? count : 0);
        return four;
    }
};

// Writes the four of a tile of units at step t of a contiguous [T, B, row_width], whose columns from `column` on hold
// `width` units; 0 at padding.
template <bool paired, class T>
VSSN_DEVICE void store_four(void* sequence, const BatchTile& batch, int64_t B, int t, int tile, int width,
                            int64_t row_width, int64_t column, const StoredFour<T>& four) {
    const int unit = tile * kUnits + accumulator_row(0);
    if (sequence == nullptr || unit >= width) return;
    T* p = static_cast<T*>(sequence) + (t * B + batch.row) * row_width + column + unit;
#pragma unroll
    for (int j = 0; j < 2; ++j, p += row_width)
        if (batch.inside(j))
            store_pair<paired>(p, batch.valid(t, j) ? four.row[j] : Packed<T, 2>::zero(), width - unit);
}

// Zeros in the tile's rows of a contiguous [T, B, width] behind its longest length; blocks of a cluster take turns.
template <class T>
VSSN_DEVICE void zero_steps(const PosteriorProblem& k, const BatchTile& batch, void* sequence, int64_t width, int rank,
                            int cluster) {
    if (sequence == nullptr) return;
    const int64_t rows = k.B - batch.first < kRows ? k.B - batch.first : kRows;
    for (int64_t t = batch.steps + rank; t < k.steps; t += cluster) {
        T* p = static_cast<T*>(sequence) + (t * k.B + batch.first) * width;
        for (int64_t i = thread_id(); i < rows * width; i += block_threads()) p[i] = from_float<T>(0.0f);
    }
}

// ---- Activations -------------------------------------------------------------------------------------------------

template <Activation act, int n>
VSSN_DEVICE void activate_all(Four (&x)[n]) {
#pragma unroll
    for (int j = 0; j < n; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) x[j].v[i] = activate<act, Math>(x[j].v[i]);
}

template <int n>
VSSN_DEVICE void activate_by(Activation act, Four (&x)[n]) {
    switch (act) {
        case Activation::tanh:
            return activate_all<Activation::tanh>(x);
        case Activation::relu:
            return activate_all<Activation::relu>(x);
        case Activation::leaky_relu:
            return activate_all<Activation::leaky_relu>(x);
        default:
            return activate_all<Activation::silu>(x);
    }
}

template <Activation act, class Loaded, int n>
VSSN_DEVICE void multiply_slopes(Four (&x)[n], const Loaded (&kept)[n]) {
#pragma unroll
    for (int j = 0; j < n; ++j) {
        const Four wide = kept[j].wide();
#pragma unroll
        for (int i = 0; i < 4; ++i) x[j].v[i] *= activation_slope<act, Math>(wide.v[i]);
    }
}

template <class Loaded, int n>
VSSN_DEVICE void multiply_slopes_by(Activation act, Four (&x)[n], const Loaded (&kept)[n]) {
    switch (act) {
        case Activation::tanh:
            return multiply_slopes<Activation::tanh>(x, kept);
        case Activation::relu:
            return multiply_slopes<Activation::relu>(x, kept);
        case Activation::leaky_relu:
            return multiply_slopes<Activation::leaky_relu>(x, kept);
        default:
            return multiply_slopes<Activation::silu>(x, kept);
    }
}

// ---- Buffers in shared memory ------------------------------------------------------------------------------------

// A tile's four into a buffer of [8][stride], from column `column` on.
template <class P>
VSSN_DEVICE void put(typename P::Stored* buffer, int stride, int column, const Four& four) {
#pragma unroll
    for (int j = 0; j < 2; ++j)
        operands<P>(four.v[j], four.v[2 + j])
            .store(buffer + accumulator_column(j) * stride + column + accumulator_row(0));
}

// The same into that buffer of every block of the cluster.
template <class P>
VSSN_DEVICE void send_to_all(typename P::Stored* buffer, int stride, int column, const Four& four, Mailbox* mailbox,
                             int cluster) {
    using Pair = Packed<typename P::Stored, 2>;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
        const Pair pair = operands<P>(four.v[j], four.v[2 + j]);
        auto* p = buffer + accumulator_column(j) * stride + column + accumulator_row(0);
        for (int rank = 0; rank < cluster; ++rank) send(reinterpret_cast<Pair*>(p), pair, mailbox, rank);
    }
}

// ---- Weights in registers ----------------------------------------------------------------------------------------

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
    auto input = pass.latent_input(0, group);
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
        pass.hidden_finish(products, inputs, kept);
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
            input = pass.latent_input(step + 1, group);
#pragma unroll
            for (int other = 0; other + 1 < Shape::kSplits; ++other)
#pragma unroll
                for (int sum = 0; sum < kSums; ++sum)
                    add(sums[0][sum], partial[(other * Shape::kGroups + group) * kSums * kWarp + sum * kWarp]);
            result = pass.latent_finish(sums[0], prepared, group);
            put_latent(result);
        }
        sync_block();
        if (finishes) pass.store_latent(step, group, result);
    }
    if (finishes) pass.store_last(group, result);
}

// ---- Weights in shared memory and L2 -----------------------------------------------------------------------------

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
    const auto multiply_step = [&](Four(&chain)[n], int k) {
        const auto right = P::load_b(b + k * P::kDepth, stride);
#pragma unroll
        for (int i = 0; i < n; ++i) {
            const unsigned char* tile = tiles + (static_cast<int64_t>(k) * n + i) * P::kTileBytes;
            P::multiply(chain[i], streamed ? P::load_l2(tile) : P::load(tile), right);
        }
    };
    int k = 0;
#pragma unroll 1  // more takes more than 128 registers
    for (; k + kChains <= depth; k += kChains)
#pragma unroll
        for (int chain = 0; chain < kChains; ++chain) multiply_step(chains[chain], k + chain);
    if (k < depth) multiply_step(chains[0], k);
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

// Where partial sums meet: slots of warps of one block or of blocks of a cluster.
template <class Pass>
struct Exchange {
    const PosteriorPlan& plan;
    int rank, slots, groups;  // groups: of one block
    Quad* sums;
    Mailbox* mailboxes;  // all compute all: one for even and one for odd steps; else one for sums, one for latents

    VSSN_DEVICE Exchange(const PosteriorPlan& plan, int rank)
        : plan(plan),
          rank(rank),
          slots(plan.cluster * plan.splits),
          groups(plan.scatter ? (plan.groups + plan.cluster - 1) / plan.cluster : plan.groups),
          sums(reinterpret_cast<Quad*>(dynamic_shared() + plan.exchange_at)),
          mailboxes(reinterpret_cast<Mailbox*>(dynamic_shared() + plan.mailboxes_at)) {}

    // The groups that this block finishes.
    VSSN_DEVICE int count() const {
        return plan.scatter ? (plan.groups - rank + plan.cluster - 1) / plan.cluster : plan.groups;
    }
    VSSN_DEVICE int group(int i) const { return plan.scatter ? i * plan.cluster + rank : i; }

    VSSN_DEVICE Quad* at(int step, int slot, int group) const {
        const int of_block = plan.scatter ? group / plan.cluster : group;
        const int round = plan.cluster > 1 && !plan.scatter ? step % 2 : 0;
        return sums + (((round * slots + slot) * groups + of_block) * Pass::kSums) * kWarp + lane_id();
    }

    VSSN_DEVICE Mailbox* sums_mailbox(int step) const { return mailboxes + (plan.scatter ? 0 : step % 2); }
    VSSN_DEVICE unsigned sums_round(int step) const { return plan.scatter ? step : step / 2; }
    VSSN_DEVICE int sums_bytes() const { return plan.cluster * count() * Pass::kSums * kTileOfSums; }
    VSSN_DEVICE int latent_bytes() const {
        return plan.groups * kUnits * kRows * Pass::kParts * static_cast<int>(sizeof(typename Pass::P::Stored));
    }

    VSSN_DEVICE void open_mailboxes() const {
        if (plan.cluster == 1 || thread_id() != 0) return;
        open(mailboxes);
        open(mailboxes + 1);
        if (count() > 0) expect(mailboxes, sums_bytes());
        expect(mailboxes + 1, plan.scatter ? latent_bytes() : sums_bytes());
    }

    VSSN_DEVICE void give(int step, int split, int group, const Four* partial) const {
#pragma unroll
        for (int sum = 0; sum < Pass::kSums; ++sum) {
            const Quad part = quad(partial[sum]);
            if (plan.cluster == 1) {
                at(step, split, group)[sum * kWarp] = part;
            } else {
                const int from = plan.scatter ? group % plan.cluster : 0, to = plan.scatter ? from + 1 : plan.cluster;
                for (int block = from; block < to; ++block)
                    send(at(step, rank, group) + sum * kWarp, part, sums_mailbox(step), block);
            }
        }
    }

    // Until all that was given in this step is there.
    VSSN_DEVICE void meet(int step) const {
        if (plan.cluster == 1) return sync_block();
        if (count() == 0) return;
        await(sums_mailbox(step), sums_round(step));
        if (thread_id() == 0) expect(sums_mailbox(step), sums_bytes());
    }

    VSSN_DEVICE void take(int step, int group, Four* total) const {
#pragma unroll
        for (int sum = 0; sum < Pass::kSums; ++sum) {
            total[sum] = zeros();
            for (int slot = 0; slot < slots; ++slot) add(total[sum], at(step, slot, group)[sum * kWarp]);
        }
    }

    // Until the latents of this step have come from their blocks.
    VSSN_DEVICE void await_latents(int step) const {
        if (!plan.scatter) return;
        await(mailboxes + 1, step);
        if (thread_id() == 0) expect(mailboxes + 1, latent_bytes());
    }
};

// What the parts of run_in_memory share.
template <class Pass>
struct InMemory {
    using P = typename Pass::P;
    using Stored = typename P::Stored;
    using Result = typename Pass::Result;
    static constexpr int kSums = Pass::kSums;
    static constexpr int kStepsOfTile = kUnits / P::kDepth;

    const PosteriorPlan& plan;
    const Pass& pass;
    int rank;
    TileOrder<Pass> order;
    Exchange<Pass> exchange;
    WeightTiles weights;
    Stored *latent, *hidden;
    Quad* held;  // sums over the hidden tiles that the hidden buffer held before

    VSSN_DEVICE InMemory(const typename Pass::Params& params, const Pass& pass, int rank)
        : plan(params.plan),
          pass(pass),
          rank(rank),
          order(params),
          exchange(params.plan, rank),
          weights{dynamic_shared(), streamed_tiles<P>(params, rank), params.plan.kept},
          latent(reinterpret_cast<Stored*>(dynamic_shared() + params.plan.latent_at)),
          hidden(reinterpret_cast<Stored*>(dynamic_shared() + params.plan.hidden_at)),
          held(reinterpret_cast<Quad*>(dynamic_shared() + params.plan.held_at)) {}

    VSSN_DEVICE int hidden_tiles() const { return order.nets * plan.slice; }

    VSSN_DEVICE void put_latent(int group, const Result& result, bool to_all) const {
#pragma unroll
        for (int part = 0; part < Pass::kParts; ++part) {
            const int column = (part * plan.groups + group) * kUnits;
            if (to_all)
                send_to_all<P>(latent, plan.latent_stride, column, result.latent[part], exchange.mailboxes + 1,
                               plan.cluster);
            else
                put<P>(latent, plan.latent_stride, column, result.latent[part]);
        }
    }

    // A tile counts the posterior's hidden units of the slice, then the prior's.
    VSSN_DEVICE int net_of(int tile) const { return tile < plan.slice ? 0 : 1; }
    VSSN_DEVICE int unit_tile(int tile) const { return rank * plan.slice + tile - net_of(tile) * plan.slice; }
    VSSN_DEVICE typename Pass::Loaded hidden_input(int step, int tile) const {
        return pass.hidden_input(step, net_of(tile), unit_tile(tile));
    }

    VSSN_DEVICE void finish_hidden(int step, int tile, int column, const typename Pass::Loaded& input) const {
        Four products[1] = {zeros()};
        const typename Pass::Loaded inputs[1] = {input};
        StoredFour<Stored> kept[1];
        const int net = net_of(tile);
        for (int part = 0; part < (net == 0 ? Pass::kParts : 1); ++part)
            multiply_tiles<P, 1>(products, weights, order.in(tile, part), plan.latent_depth,
                                 latent + part * plan.groups * kUnits, plan.latent_stride);
        pass.hidden_finish(products, inputs, kept);
        put<P>(hidden, plan.hidden_stride, column, products[0]);
        pass.store_hidden(step, net, unit_tile(tile), kept[0]);
    }

    // A group's sums over the hidden tiles below `end`; the buffer has those from `begin` on, of which each split takes
    // a share.
    VSSN_DEVICE void sum_up(Four* sums, int group, int split, int begin, int end) const {
        const int first = begin * kStepsOfTile, last = end * kStepsOfTile;
        const int share = (last - first + plan.splits - 1) / plan.splits, from = first + split * share;
        const int to = from + share < last ? from + share : last;
        const int own_to = to < plan.slice_depth ? to : plan.slice_depth;
        const int prior_from = from > plan.slice_depth ? from : plan.slice_depth;
#pragma unroll
        for (int sum = 0; sum < kSums; ++sum) {
            sums[sum] = zeros();
            if (begin > 0) add(sums[sum], held[(group * kSums + sum) * kWarp + lane_id()]);
        }
        multiply_tiles<P, kSums>(sums, weights, order.out(group) + from * kSums, own_to - from,
                                 hidden + (from - first) * P::kDepth, plan.hidden_stride);
        multiply_tiles<P, 1>(sums, weights, order.out(group) + (kSums - 1) * plan.slice_depth + prior_from,
                             to - prior_from, hidden + (prior_from - first) * P::kDepth, plan.hidden_stride);
    }

    VSSN_DEVICE void hold(int group, const Four* sums) const {
#pragma unroll
        for (int sum = 0; sum < kSums; ++sum) held[(group * kSums + sum) * kWarp + lane_id()] = quad(sums[sum]);
    }
};

template <class Pass>
VSSN_DEVICE void run_in_memory(const typename Pass::Params& params) {
    using P = typename Pass::P;
    const PosteriorPlan& plan = params.plan;
    const int rank = block_x() % plan.cluster, own = warp_id();
    const BatchTile batch(params.call, plan.cluster);
    const Pass pass(params, batch);
    const InMemory<Pass> block(params, pass, rank);
    const Exchange<Pass>& exchange = block.exchange;

    for (int index = own; index < plan.kept; index += warps())
        P::store(block.order.load(pass, rank, index), dynamic_shared() + static_cast<int64_t>(index) * P::kTileBytes);
    pass.prepare_block();
    exchange.open_mailboxes();
    for (int group = own; group < plan.groups; group += warps()) {
        const auto result = pass.first_latent(group);
        block.put_latent(group, result, false);
        if (group % plan.cluster == rank) {
            pass.store_first(group, result);
            if (batch.steps == 0) pass.store_last(group, result);
        }
    }
    pass.zero_padding(rank, plan.cluster);
    if (plan.cluster > 1)
        sync_cluster();
    else
        sync_block();

    const int hidden_tiles = block.hidden_tiles(), phases = exchange.slots > 1 ? 2 : 1;
    // Each is loaded when the warp begins with what comes before it: mostly a whole step ahead.
    auto hidden_input = block.hidden_input(0, own);
    auto latent_input = pass.latent_input(0, exchange.group(own));
    for (int step = 0; step < batch.steps; ++step) {
        if (step > 0) exchange.await_latents(step - 1);
        int begin = 0, end = 0;
        while (end < hidden_tiles) {  // once, but where the hidden buffer holds a part of the tiles
            begin = end;
            end = begin + plan.chunk < hidden_tiles ? begin + plan.chunk : hidden_tiles;
            for (int tile = begin + own; tile < end; tile += warps()) {
                const auto input = hidden_input;
                const int next = tile + warps() < end ? tile + warps() : end + own;
                const bool last = next >= hidden_tiles;
                hidden_input = block.hidden_input(last ? step + 1 : step, last ? own : next);
                block.finish_hidden(step, tile, (tile - begin) * kUnits, input);
            }
            sync_block();
            for (int phase = 0; phase < (end == hidden_tiles ? phases : 1); ++phase) {
                const bool sums_up = phase == 0, finishes = end == hidden_tiles && phase == phases - 1;
                if (!sums_up) exchange.meet(step);
                const int items = sums_up ? plan.groups * plan.splits : exchange.count();
                for (int item = own, split = 0; item < items; item += warps()) {
                    int group = exchange.group(item);
                    if (sums_up) {
                        split = item / plan.groups;
                        group = item - split * plan.groups;
                    }
                    Four sums[Pass::kSums];
                    if (sums_up)
                        block.sum_up(sums, group, split, begin, end);
                    else
                        exchange.take(step, group, sums);
                    if (finishes) {
                        const auto result = pass.latent_finish(sums, pass.prepared(step, group, latent_input), group);
                        block.put_latent(group, result, plan.scatter);
                        const bool last = item + warps() >= items;
                        latent_input =
                            pass.latent_input(last ? step + 1 : step, exchange.group(last ? own : item + warps()));
                        if (group % plan.cluster == rank) {
                            pass.store_latent(step, group, result);
                            if (step == batch.steps - 1) pass.store_last(group, result);
                        }
                    } else if (end == hidden_tiles) {
                        exchange.give(step, split, group, sums);
                    } else {
                        block.hold(group, sums);
                    }
                }
            }
            if (!plan.scatter || end < hidden_tiles) sync_block();
        }
    }
    if (batch.steps > 0) exchange.await_latents(batch.steps - 1);  // nobody writes to a block that has ended
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

// ---- Launching (host code) ---------------------------------------------------------------------------------------

template <class Call>
struct KernelParams {
    Call call;
    PosteriorPlan plan;
    bool paired;  // neighbouring hidden units and neighbouring latents lie in memory as aligned pairs
};

template <class Params>
void launch_or_throw(const char* name, void (*kernel)(Params), const Launch& shape, const Params& params) {
    const char* error = launch(kernel, shape, params);
    if (error == nullptr) return;
    const PosteriorProblem& k = params.call;
    throw std::runtime_error(std::string(name) + " (T=" + std::to_string(k.steps) + ", B=" + std::to_string(k.B) +
                             ", M=" + std::to_string(k.M) + ", Z=" + std::to_string(k.Z) +
                             "; blocks=" + std::to_string(shape.grid_x) + "x" + std::to_string(shape.grid_y) +
                             ", threads=" + std::to_string(shape.threads) +
                             ", cluster=" + std::to_string(shape.cluster) +
                             ", shared memory=" + std::to_string(shape.shared_bytes) + "): " + error);
}

// Batch tiles that the device holds at once, of a plan whose weights are in memory; 0: the plan does not fit.
int forward_at_once(Storage storage, bool tf32, const PosteriorPlan& plan);
int backward_at_once(Storage storage, bool tf32, const PosteriorPlan& plan);

// Throws for sizes that the kernels' indices cannot count.
inline void require_sizes(const char* name, const PosteriorProblem& k) {
    constexpr int64_t kMost = 1 << 30;
    if (k.steps > kMost || k.M > kMost || k.Z > kMost || k.B / kRows > kMost / 16)
        throw std::runtime_error(
            std::string(name) + ": T, M and Z must be at most 2^30, B 2^29, got T=" + std::to_string(k.steps) +
            ", B=" + std::to_string(k.B) + ", M=" + std::to_string(k.M) + ", Z=" + std::to_string(k.Z));
}

template <class Params>
Launch launch_shape(const Params& params) {
    Launch shape;
    shape.grid_x = (params.call.B + kRows - 1) / kRows * params.plan.cluster;
    shape.threads = params.plan.warps * kWarp;
    shape.cluster = params.plan.cluster;
    shape.shared_bytes = static_cast<size_t>(params.plan.shared_bytes);
    shape.stream = params.call.stream;
    return shape;
}

// The kernel for weights in memory, behind the one that packs what is streamed.
template <class Params>
void launch_in_memory(const char* name, void (*kernel)(Params), void (*pack)(Params), const Params& params) {
    if (params.plan.kept < params.plan.tiles && params.call.B > 0) {
        Launch shape;
        shape.threads = 4 * kWarp;
        shape.grid_x = (params.plan.tiles + 3) / 4;
        shape.grid_y = params.plan.cluster;
        shape.stream = params.call.stream;
        launch_or_throw((std::string(name) + ": packing the weights").c_str(), pack, shape, params);
    }
    launch_or_throw(name, kernel, launch_shape(params), params);
}

}  // namespace vssn::posterior

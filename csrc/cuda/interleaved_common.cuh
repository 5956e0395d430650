// What interleaved_forward.cu and interleaved_backward.cu share: a block's view of the four layers of a step.
//
// A block, or a cluster of blocks, has a batch tile of 8 rows. A step goes through four layers, of E, H, M and Z units,
// forward in this order,
//
//   latent buffer -> embed -> state -> hidden -> latent buffer             buffers [8][units] in shared memory
//
// backward from the latents to hidden, state and embed. Each is a product with weights as the left operand, in tiles of
// 16 units, finished elementwise by the lanes that hold its accumulators. A warp takes tile after tile of a layer;
// where a block has few of them, several warps share the sum of each, and the first of them adds up and finishes. In a
// cluster a block has every cluster-th tile of each layer, and sends what it makes of it to all blocks: so everyone has
// whole layers to multiply with, and no sum is split.
//
// What may be overwritten when. A layer is awaited by all warps before they take a tile of the next one, so a layer
// that is complete says that every tile of the one before has been read wherever it was needed for it. Each block has a
// tile of H and one of M. Two mailboxes for each layer take turns: bytes for a step's mailbox come only when all blocks
// have had the one before it, and thread 0 expects them only behind a barrier that all warps reach when they have.
#pragma once

#include <initializer_list>
#include <stdexcept>
#include <string>

#include "compute_type.cuh"
#include "interleaved.h"
#include "posterior_exchange.cuh"
#include "posterior_sequences.cuh"
#include "posterior_weights.cuh"

namespace vssn::interleaved {

using namespace posterior;  // tiles, their products, and sequences as they are loaded and stored

constexpr int kWarps = 8, kThreads = kWarps * kWarp;  // of a block: a thread may have 255 registers

enum Layer { kEmbed, kState, kHidden, kLatent, kLayers };

template <class Call>
struct KernelParams {
    Call call;
    InterleavedPlan plan;
    bool paired;  // neighbouring units of every layer lie in memory as aligned pairs
};

// ---- Activations -------------------------------------------------------------------------------------------------

template <Activation act>
struct Chosen {
    static constexpr Activation value = act;
};

// Branches: a table of addresses would be read in every step.
template <class Apply>
VSSN_DEVICE void with_activation(Activation act, const Apply& apply) {
    if (act == Activation::tanh)
        apply(Chosen<Activation::tanh>{});
    else if (act == Activation::silu)
        apply(Chosen<Activation::silu>{});
    else if (act == Activation::elu)
        apply(Chosen<Activation::elu>{});
    else if (act == Activation::relu)
        apply(Chosen<Activation::relu>{});
    else if (act == Activation::leaky_relu)
        apply(Chosen<Activation::leaky_relu>{});
}

template <class M>
VSSN_DEVICE void apply_activation(Activation act, Four& x) {
    with_activation(act, [&](auto chosen) {
#pragma unroll
        for (int i = 0; i < 4; ++i) x.v[i] = activate<decltype(chosen)::value, M>(x.v[i]);
    });
}

VSSN_DEVICE void multiply_slope(Activation act, Four& x, const Four& kept) {
    with_activation(act, [&](auto chosen) {
#pragma unroll
        for (int i = 0; i < 4; ++i) x.v[i] *= activation_slope<decltype(chosen)::value, Math>(kept.v[i]);
    });
}

// ---- States ------------------------------------------------------------------------------------------------------

template <class T>
VSSN_DEVICE float state_at(const InterleavedState& state, int64_t b, int unit) {
    const int64_t at = b * state.stride + unit;
    return state.is_float ? static_cast<const float*>(state.data)[at] : to_float(static_cast<const T*>(state.data)[at]);
}

// What stands for a state at a reset.
VSSN_DEVICE const InterleavedState& anew(const InterleavedState& given, const InterleavedState& first) {
    return given.data ? given : first;
}

// Whether the lane's two batch rows are reset before a step.
struct Resets {
    bool row[2];
};

// The flags of a batch tile as they are loaded for a later step: of one row by each lane.
struct LoadedResets {
    int32_t flag = 0;

    // At padding what was there before stays.
    VSSN_DEVICE void load_over(const InterleavedProblem& k, const BatchTile& batch, int t) {
        if (k.resets && t >= 0 && t < batch.lane_length) flag = k.resets[t * k.B + batch.first + lane_id() % kRows];
    }
    // By all lanes: the shuffle also holds the compiler from asking for the flags late, when younger loads wait.
    VSSN_DEVICE Resets of(const BatchTile& batch, int t) const {
        const int rows[2] = {shuffle(flag, accumulator_column(0)), shuffle(flag, accumulator_column(1))};
        return {{batch.valid(t, 0) && rows[0] != 0, batch.valid(t, 1) && rows[1] != 0}};
    }
};

// ---- A block -----------------------------------------------------------------------------------------------------

template <class C, class Call, Meeting meeting>
struct Block {
    using P = Product<C>;
    using T = typename P::Stored;

    const Call& k;
    const InterleavedPlan& plan;
    const BatchTile& batch;
    const int rank;
    const WeightTiles weights;

    VSSN_DEVICE Block(const KernelParams<Call>& params, const BatchTile& batch)
        : k(params.call),
          plan(params.plan),
          batch(batch),
          rank(meeting == Meeting::block ? 0 : block_x() % params.plan.cluster),
          weights{dynamic_shared(), streamed_tiles<P>(params, rank), params.plan.kept} {}

    VSSN_DEVICE bool alone() const { return meeting == Meeting::any ? plan.cluster == 1 : meeting == Meeting::block; }

    // Of a layer: how many tiles are this block's, and which the one in a slot is.
    VSSN_DEVICE int slots(Layer layer) const {
        const int tiles = plan.layer_tiles[layer];
        return alone() ? tiles : (tiles - rank + plan.cluster - 1) >> plan.cluster_log2;
    }
    VSSN_DEVICE int tile(int slot) const { return alone() ? slot : slot << plan.cluster_log2 | rank; }

    VSSN_DEVICE T* buffer(int at) const { return reinterpret_cast<T*>(dynamic_shared() + at); }
    VSSN_DEVICE float* floats(int at) const { return reinterpret_cast<float*>(dynamic_shared() + at); }
    // What this lane keeps of a slot.
    VSSN_DEVICE Quad& lane_quad(int at, int slot) const {
        return reinterpret_cast<Quad*>(dynamic_shared() + at)[slot * kWarp + lane_id()];
    }

    // ---- Which warps take which tiles: those of a group a slot, each a split of its sum

    VSSN_DEVICE int groups(Layer layer) const { return 1 << plan.groups_log2[layer]; }
    VSSN_DEVICE int group(Layer layer) const { return warp_id() & (groups(layer) - 1); }
    VSSN_DEVICE int split(Layer layer) const { return warp_id() >> plan.groups_log2[layer]; }
    VSSN_DEVICE bool multiplies(Layer layer, int slot) const {
        return slot < slots(layer) && split(layer) < 1 << plan.splits_log2[layer];
    }
    VSSN_DEVICE bool finishes(Layer layer, int slot) const { return slot < slots(layer) && split(layer) == 0; }

    // sums[i] += weights (part i of n) of a slot of the layer, times b: this split's k-steps. n = 1: of the part given.
    template <int n>
    VSSN_DEVICE void multiply(Four* sums, Layer layer, int matrix, int slot, const T* b, int stride,
                              int part = 0) const {
        const InterleavedMatrix& m = plan.matrices[matrix];
        const int splits_log2 = plan.splits_log2[layer], share = (m.depth + (1 << splits_log2) - 1) >> splits_log2;
        const int from = split(layer) * share, left = m.depth - from, depth = left < share ? left : share;
        const int first = m.first + slot * m.parts * m.depth + part * m.depth + from * n;
        if (depth > 0) multiply_tiles<P, n>(sums, weights, first, depth, b + from * P::kDepth, stride);
    }

    // The splits' sums come to the warp that finishes the slot. Reached by all warps, once in a layer where warps share
    // sums. region: one that no other warp may still be reading.
    template <int n>
    VSSN_DEVICE void join(Layer layer, int slot, Four (&sums)[n], int region = 0) const {
        const int splits = 1 << plan.splits_log2[layer];
        if (splits == 1) return;
        Quad* partial = reinterpret_cast<Quad*>(dynamic_shared() + plan.partial_at[region]) + lane_id();
        const auto at = [&](int split, int i) {
            return (((split - 1) << plan.groups_log2[layer] | slot) * n + i) * kWarp;
        };
        if (split(layer) > 0 && multiplies(layer, slot))
#pragma unroll
            for (int i = 0; i < n; ++i) partial[at(split(layer), i)] = quad(sums[i]);
        sync_block();
        if (finishes(layer, slot))
#pragma unroll 1
            for (int other = 1; other < splits; ++other)
#pragma unroll
                for (int i = 0; i < n; ++i) add(sums[i], partial[at(other, i)]);
    }

    // ---- Exchange

    VSSN_DEVICE Mailbox* mailbox(Layer layer, int step) const {
        return reinterpret_cast<Mailbox*>(dynamic_shared() + plan.mailboxes_at) + 2 * layer + step % 2;
    }

    VSSN_DEVICE void expect_all(int step) const {
        for (const Layer layer : {kEmbed, kState, kHidden, kLatent})
            expect(mailbox(layer, step), plan.sent_bytes[layer]);
    }

    // Once, by all threads, behind all that is written to shared memory before the first step.
    VSSN_DEVICE void start() const {
        if (alone()) return sync_block();
        if (thread_id() == 0) {
            for (int i = 0; i < 2 * kLayers; ++i) open(mailbox(kEmbed, 0) + i);
            expect_all(0);
            expect_all(1);
        }
        sync_cluster();
    }

    // A tile's four into everybody's buffer.
    VSSN_DEVICE void give(Layer layer, int step, T* buffer, int stride, int column, const Four& four) const {
        if (alone())
            put<P>(buffer, stride, column, four);
        else
            send_to_all<P>(buffer, stride, column, four, mailbox(layer, step), plan.cluster);
    }

    // Until all of a layer that was given in this step is there.
    VSSN_DEVICE void meet(Layer layer, int step) const {
        if (alone())
            sync_block();
        else
            await(mailbox(layer, step), static_cast<unsigned>(step) / 2);
    }

    VSSN_DEVICE void end_step(int step) const {
        if (alone()) return;
        sync_block();
        if (thread_id() == 0) expect_all(step + 2);
    }
};

// The slot that a warp takes behind `slot`: the next, or in the step after this its first one. What that one needs is
// loaded over what the warp has just used, mostly a whole step ahead; where there is nothing to load, at padding and
// beyond a layer's width, what was there stays.
struct NextSlot {
    int slot, step;

    template <class Block>
    VSSN_DEVICE NextSlot(const Block& block, Layer layer, int slot, int step) {
        const int following = slot + block.groups(layer);
        const bool last = following >= block.slots(layer);
        this->slot = last ? block.group(layer) : following;
        this->step = last ? step + 1 : step;
    }
};

// ---- Weights -----------------------------------------------------------------------------------------------------

// Rows: units of a tile, in part `part` of the matrix; k-steps: its columns.
template <class P>
VSSN_DEVICE typename P::A rows_of(const TensorRows& weight, int64_t units, int64_t columns, int tile, int part,
                                  int step) {
    const int unit = tile * kUnits, from = step * P::kDepth;
    return P::load_rows(
        static_cast<const typename P::Stored*>(weight.data) + (part * units + unit) * weight.stride + from,
        weight.stride, 1, static_cast<int>(units) - unit, static_cast<int>(columns) - from);
}

// Rows: units of a tile, which are columns of the matrix; k-steps: its rows, in part `part`.
template <class P>
VSSN_DEVICE typename P::A columns_of(const TensorRows& weight, int64_t units, int64_t rows, int tile, int part,
                                     int step) {
    const int unit = tile * kUnits, from = step * P::kDepth;
    return P::load_rows(
        static_cast<const typename P::Stored*>(weight.data) + (part * rows + from) * weight.stride + unit, 1,
        weight.stride, static_cast<int>(units) - unit, static_cast<int>(rows) - from);
}

// The weight tile `index` of the block of this rank. Weights: load<P>(call, matrix, tile, at), `at` counting the tiles
// of one unit tile.
template <class C, class Weights, class Params>
VSSN_DEVICE typename Product<C>::A weight_tile(const Params& params, int rank, int index) {
    int matrix = 0;
    while (matrix + 1 < 5 && index >= params.plan.matrices[matrix + 1].first) ++matrix;
    const InterleavedMatrix& m = params.plan.matrices[matrix];
    const int of_slot = m.parts * m.depth, slot = (index - m.first) / of_slot, at = (index - m.first) % of_slot;
    return Weights::template load<Product<C>>(params.call, matrix, slot * params.plan.cluster + rank, at, m);
}

// Into shared memory.
template <class C, class Weights, class Params>
VSSN_DEVICE void keep_weights(const Params& params, int rank) {
    using P = Product<C>;
    for (int index = warp_id(); index < params.plan.kept; index += warps())
        P::store(weight_tile<C, Weights>(params, rank, index),
                 dynamic_shared() + static_cast<int64_t>(index) * P::kTileBytes);
}

// Into the workspace, those of every block of a cluster: a warp each, grid_y() blocks of a cluster.
template <class C, class Weights, class Params>
VSSN_DEVICE void pack_weights(const Params& params) {
    using P = Product<C>;
    const int index = block_x() * warps() + warp_id(), rank = block_y();
    if (index >= params.plan.tiles) return;
    P::store(weight_tile<C, Weights>(params, rank, index),
             streamed_tiles<P>(params, rank) + static_cast<int64_t>(index) * P::kTileBytes);
}

// ---- Launching (host code) ---------------------------------------------------------------------------------------

// Batch tiles that the device holds at once; 0: the plan does not fit.
int forward_at_once(const InterleavedSizes& sizes, const InterleavedPlan& plan);
int backward_at_once(const InterleavedSizes& sizes, const InterleavedPlan& plan);

inline std::string sizes_text(const InterleavedSizes& k) {
    return "H=" + std::to_string(k.H) + ", E=" + std::to_string(k.E) + ", M=" + std::to_string(k.M) +
           ", Z=" + std::to_string(k.Z);
}

// The kernel of a direction. Direction: of<C, paired, meeting>(). Single elements cost more than the branches of a
// kernel that asks the plan.
template <class Direction, class C>
auto kernel_of(const InterleavedPlan& plan, bool paired) {
    if (!paired) return Direction::template of<C, false, Meeting::any>();
    return plan.cluster == 1 ? Direction::template of<C, true, Meeting::block>()
                             : Direction::template of<C, true, Meeting::all>();
}

template <class Call>
Launch launch_shape(const KernelParams<Call>& params) {
    Launch shape;
    shape.grid_x = (params.call.B + kRows - 1) / kRows * params.plan.cluster;
    shape.threads = params.plan.warps * kWarp;
    shape.cluster = params.plan.cluster;
    shape.shared_bytes = static_cast<size_t>(params.plan.shared_bytes);
    shape.stream = params.call.stream;
    return shape;
}

template <class Direction>
int at_once(const InterleavedSizes& sizes, const InterleavedPlan& plan) {
    KernelParams<typename Direction::Call> params{};
    params.plan = plan;
    params.call.B = kRows;
    return by_compute_type(sizes.storage, sizes.tf32, [&](auto compute) {
        return clusters_at_once(kernel_of<Direction, typename decltype(compute)::type>(plan, true),
                                launch_shape(params));
    });
}

template <class Call>
void launch_or_throw(const std::string& name, void (*kernel)(KernelParams<Call>), const Launch& shape,
                     const KernelParams<Call>& params) {
    const char* error = launch(kernel, shape, params);
    if (error == nullptr) return;
    throw std::runtime_error(
        name + " (T=" + std::to_string(params.call.steps) + ", B=" + std::to_string(params.call.B) + ", " +
        sizes_text(params.call) + "; blocks=" + std::to_string(shape.grid_x) + "x" + std::to_string(shape.grid_y) +
        ", threads=" + std::to_string(shape.threads) + ", cluster=" + std::to_string(shape.cluster) +
        ", shared memory=" + std::to_string(shape.shared_bytes) + "): " + error);
}

// A sequence's kernel, behind the one that packs the weights where they are streamed.
template <class Direction, class C>
void launch_sequence(const std::string& name, const KernelParams<typename Direction::Call>& params) {
    if (params.plan.kept < params.plan.tiles) {
        Launch shape;
        shape.threads = 4 * kWarp;
        shape.grid_x = (params.plan.tiles + 3) / 4;
        shape.grid_y = params.plan.cluster;
        shape.stream = params.call.stream;
        launch_or_throw(name + ": packing the weights", Direction::template pack<C>(), shape, params);
    }
    launch_or_throw(name, kernel_of<Direction, C>(params.plan, params.paired), launch_shape(params), params);
}

// Throws for sizes that the kernels' indices cannot count.
inline void require_sizes(const char* name, const InterleavedProblem& k) {
    constexpr int64_t kMost = 1 << 28;
    bool countable = k.steps <= kMost && k.B / kRows <= kMost / 16;
    for (const int64_t size : {k.H, k.E, k.M, k.Z}) countable &= size <= kMost;
    if (!countable)
        throw std::runtime_error(std::string(name) + ": T, H, E, M and Z must be at most 2^28, B 2^27, got T=" +
                                 std::to_string(k.steps) + ", B=" + std::to_string(k.B) + ", " + sizes_text(k));
}

// Whether neighbouring units form aligned pairs in all of these; `gates`: its eight elements.
template <class T>
bool all_paired(const InterleavedProblem& k, const void* gates, std::initializer_list<TensorSteps> strided,
                std::initializer_list<const void*> contiguous) {
    bool paired = k.H % 2 == 0 && k.E % 2 == 0 && k.M % 2 == 0 && k.Z % 2 == 0 && in_pairs<T>(k.eps) &&
                  reinterpret_cast<uintptr_t>(gates) % (8 * sizeof(T) < 16 ? 8 * sizeof(T) : 16) == 0;
    for (const TensorSteps& steps : strided) paired &= in_pairs<T>(steps);
    for (const void* sequence : contiguous) paired &= in_pairs<T>(sequence);
    return paired;
}

}  // namespace vssn::interleaved

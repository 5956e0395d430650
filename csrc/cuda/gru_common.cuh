// What the GRU's forward and backward kernels share: sizes, pairs of elements, the exchange between blocks.
#pragma once

#include <initializer_list>

#include "compute_type.cuh"
#include "gru.h"

namespace vssn::gpu {

constexpr int kUnits = 16;                       // hidden units of a tile: the rows of a product
constexpr int kRows = 8;                         // batch rows of a tile: its columns
constexpr int kGruThreads = 256;                 // of a block, at most: so a thread may have 255 registers
constexpr int kBackwardTiles = 4;                // tiles of rows that a warp of the backward kernel has side by side
constexpr int kMostAtOnce = 4;                   // batch tiles of a team that take turns
constexpr int kBuffersInGrid = 2 * kMostAtOnce;  // forward, of a state: two for each turn, or all for tiles without
constexpr int kMailboxBytes = 16;                // at the start of shared memory, then:
constexpr int kLengthBytes = 4 * 2 * kRows * kMostAtOnce;  // steps of each row of the batch tiles
constexpr int kHeaderBytes = kMailboxBytes + kLengthBytes;

// k tiles of a warp's weights that its registers hold: on tensor cores `most`, or `few` where these are all; with
// multiply-adds `full`.
struct RegisterDepths {
    int most, few, full;
};
constexpr RegisterDepths kForwardDepths = {8, 4, 4}, kBackwardDepths = {6, 3, 3};

// Of a kernel, `known` is the exchange that it is compiled for. Exchange::any: the plan says. Exchange::grid: a grid
// whose batch tiles take turns.

// (r, z, n, a) of two neighbouring units, of which `count` lie within the tensor. `paired` and what reload leaves: as
// in Ahead.
template <class S, bool paired>
VSSN_DEVICE void reload_gates(Packed<S, 8>& gates, const void* sequence, int64_t at, int count) {
    const S* p = static_cast<const S*>(sequence) + 4 * at;
    if constexpr (paired) {
        if (count > 0) gates = Packed<S, 8>::load(p);
    } else {
        if (count > 0) gates.set_half(0, Packed<S, 4>::load(p));
        if (count > 1) gates.set_half(1, Packed<S, 4>::load(p + 4));
    }
}

template <class S, bool paired>
VSSN_DEVICE void store_gates(void* sequence, int64_t at, int count, const Packed<S, 8>& gates) {
    S* p = static_cast<S*>(sequence) + 4 * at;
    if constexpr (paired) {
        if (count > 0) gates.store(p);
    } else {
        if (count > 0) gates.half(0).store(p);
        if (count > 1) gates.half(1).store(p + 4);
    }
}

// An element of h0 or grad_h_n: of the storage type S, or float32 beside it.
template <class S>
VSSN_DEVICE float load_state(const void* p, bool is_float, int64_t i) {
    return is_float ? static_cast<const float*>(p)[i] : to_float(static_cast<const S*>(p)[i]);
}

template <class S>
VSSN_DEVICE void store_state(void* p, bool is_float, int64_t i, float value) {
    if (is_float)
        static_cast<float*>(p)[i] = value;
    else
        static_cast<S*>(p)[i] = from_float<S>(value);
}

// Steps of a row: lengths[b] within [0, T]; 0 for a row past the batch.
VSSN_DEVICE int row_steps(const GruProblem& k, int64_t b) {
    if (b >= k.B) return 0;
    if (!k.lengths) return static_cast<int>(k.steps);
    const int64_t n = k.lengths[b];
    return static_cast<int>(n < 0 ? 0 : n > k.steps ? k.steps : n);
}

// Writes the steps of the tiles' rows to shared memory, and gives those of the longest: the recurrence runs over these
// alone. Called by all threads, of which there are as many as rows or more.
VSSN_DEVICE int tile_steps(const GruProblem& k, int64_t first_row, int rows, int* lengths) {
    sync_block();  // nobody still reads what belongs to the tile before
    if (thread_id() < rows) lengths[thread_id()] = row_steps(k, first_row + thread_id());
    sync_block();
    int longest = 0;
    for (int i = 0; i < rows; ++i) longest = lengths[i] > longest ? lengths[i] : longest;
    return longest;
}

// A block's view of the exchange in which every block of its team sends to all of them, and all receive, once a step.
// Two buffers are written in turn, so that one exchange a step is enough: nobody can send into a buffer before every
// block has sent what it computed from that buffer's last contents.
//
// In a grid that takes one or two microseconds, so there several batch tiles may take turns: a step of each, then the
// next step of each. What one tile's blocks have sent is on its way while the team computes the others' steps. Each
// turn has a counter and two buffers of its own; `done` counts its exchanges, and so those of all turns, which go
// through all steps of the longest row together.
//
// Forward a grid without turns has no counter: there a state is its own flag (gru_forward.cu).
struct Team {
    Exchange exchange;
    int blocks;
    unsigned* counters;  // of the grid: one for each turn
    Mailbox* mailboxes;  // of the cluster
    int expected_bytes;  // that come to this block's mailbox in an exchange
    unsigned done;       // exchanges in which this block has sent

    VSSN_DEVICE int buffer() const { return static_cast<int>(done % 2); }
    VSSN_DEVICE int next_buffer() const { return static_cast<int>((done + 1) % 2); }

    // Once, by all threads, before anything is sent.
    VSSN_DEVICE void start() const {
        if (exchange == Exchange::cluster) {
            if (thread_id() == 0) {
                open(mailboxes);
                open(mailboxes + 1);
            }
            sync_cluster();
        }
    }

    // Before this block computes what it sends.
    VSSN_DEVICE void expect_next() const {
        if (exchange == Exchange::cluster && thread_id() == 0) expect(mailboxes + next_buffer(), expected_bytes);
    }

    // This block has sent.
    VSSN_DEVICE void sent(int turn = 0) const {
        if (exchange != Exchange::cluster) sync_block();
        if (exchange == Exchange::grid && thread_id() == 0) add_release(counters + turn, 1);
    }

    // All blocks have sent in so many exchanges of that turn: waited for by one thread, which is to meet the others at
    // a barrier before any of them reads it. Not by the one that has just released, and still waits for its block's
    // stores.
    VSSN_DEVICE void await_turn(int turn, unsigned exchanges) const {
        if (thread_id() == block_threads() - kWarp)
            check_acquire(counters + turn, static_cast<unsigned>(blocks) * exchanges);
    }

    // All blocks have sent in exchange number `done`, and this thread may read it (from the grid: by load_l2). Where no
    // turns are taken, sent() belongs to ++done; what lies between these and receive() delays nobody.
    VSSN_DEVICE void receive() const {
        if (exchange == Exchange::cluster) await(mailboxes + buffer(), (done - 1) / 2);
        if (exchange == Exchange::grid) {
            if (thread_id() == 0) wait_acquire(counters, static_cast<unsigned>(blocks) * done);
            sync_block();
        }
    }
};

// ---- For the launchers (host code, gru_plan.cu) -----------------------------------------------------------------

// Whether neighbours at even units form aligned pairs in all of these tensors, and in `gates` their eight elements:
// even H, strides and addresses.
bool all_paired(int64_t H, Storage storage, const void* gates, std::initializer_list<const void*> tensors,
                std::initializer_list<int64_t> strides);

Launch launch_shape(const GruPlan& plan, void* stream);

// The kernel of a direction for compute type C. Direction: kDepths; kWideTurns, whether tiles of 16 rows take turns;
// has_more_items(plan), whether a thread has more items than the kernels for pairs take on tensor cores; of<C, depth,
// row tiles, paired, exchange>().
template <class Direction, class C, bool paired, Exchange exchange>
auto kernel_of(const GruPlan& plan) {
    constexpr RegisterDepths depths = Direction::kDepths;
    if constexpr (!Product<C>::kTensorCores) {
        return Direction::template of<C, depths.full, 1, paired, exchange>();
    } else {
        constexpr int wide = exchange == Exchange::grid && !Direction::kWideTurns ? 1 : 2;
        const bool narrow = plan.row_tiles == 1;
        if (plan.register_depth == depths.most)
            return narrow ? Direction::template of<C, depths.most, 1, paired, exchange>()
                          : Direction::template of<C, depths.most, wide, paired, exchange>();
        return narrow ? Direction::template of<C, depths.few, 1, paired, exchange>()
                      : Direction::template of<C, depths.few, wide, paired, exchange>();
    }
}

template <class Direction>
auto kernel_of(Storage storage, bool tf32_products, bool paired, const GruPlan& plan) {
    return by_compute_type(storage, tf32_products, [&](auto compute) {
        using C = typename decltype(compute)::type;
        // Of a grid, and of single elements, a step is so long that it can ask the plan. Single elements take no turns.
        if (!paired || (Product<C>::kTensorCores && Direction::has_more_items(plan)))
            return kernel_of<Direction, C, false, Exchange::any>(plan);
        if (plan.tiles_at_once > 1) return kernel_of<Direction, C, true, Exchange::grid>(plan);
        if (plan.exchange == Exchange::block) return kernel_of<Direction, C, true, Exchange::block>(plan);
        if (plan.exchange == Exchange::cluster) return kernel_of<Direction, C, true, Exchange::cluster>(plan);
        return kernel_of<Direction, C, true, Exchange::any>(plan);
    });
}

// Blocks, or where the plan has clusters these, that the device holds at once; 0: the plan does not fit.
int forward_launchable(Storage storage, bool tf32, const GruPlan& plan);
int backward_launchable(Storage storage, bool tf32, const GruPlan& plan);

// Throws std::runtime_error for sizes that the kernels do not count in an int.
void require_countable(const char* kernel, const GruProblem& problem);

[[noreturn]] void fail_to_launch(const char* kernel, const GruProblem& problem, const GruPlan& plan, const char* error);

}  // namespace vssn::gpu

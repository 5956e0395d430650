// gru_sequence on the GPU: what the launchers take, and how a call is laid out on the device.
//
// All memory belongs to the caller. Strides count elements; the last dimension of every tensor is contiguous. A null
// pointer means: not given, or not needed. Launchers throw std::runtime_error with the kernel's name and the sizes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "../common/fields.h"
#include "storage.h"
#include "tensors.h"

namespace vssn {

// How the blocks of a team, which share the hidden units of a batch tile, hand each other what a step produced.
enum class Exchange : int {
    any = 0,      // of a kernel that asks the plan; of a wish, which leaves it to the plan
    block = 1,    // a team is one block: shared memory
    cluster = 2,  // a thread-block cluster: writes into each other's shared memory
    grid = 3,     // blocks of a cooperative launch: global memory
};

// What tests, and nobody else, choose themselves; 0: the plan chooses.
struct GruWish {
    int exchange = 0, blocks = 0, row_tiles = 0, tiles_at_once = 0;
    VSSN_FIELDS(exchange, blocks, row_tiles, tiles_at_once)
};

struct GruProblem {
    Storage storage;        // of every tensor but the states
    Storage state_storage;  // of h0, h_n and their gradients: storage, or float32
    bool tf32;              // float32 products may round their factors to tf32
    int64_t steps, B, H;
    bool reverse;
    const int64_t* lengths;  // [B], clamped to [0, T] by the kernels
    TensorRows h0;           // [B, H]
    TensorRows weight;       // [3H, H]
    void* counters;          // of plan.counter_bytes, zeroed
    void* workspace;         // of plan.workspace_bytes, the first plan.blank_bytes of them 0xff
    void* stream;
    GruWish wish;
    VSSN_FIELDS(storage, state_storage, tf32, steps, B, H, reverse, lengths, h0, weight, counters, workspace, stream,
                wish)
};

struct GruForward : GruProblem {
    TensorSteps gates_x;  // [T, B, 3H]
    const void* bias;     // [3H]
    void* output;         // [T, B, H]
    void* h_n;            // [B, H]
    void* gates;          // [T, B, H, 4]: r, z, n, W_hn h + b_n of each unit
    VSSN_MORE_FIELDS(GruProblem, gates_x, bias, output, h_n, gates)
};

struct GruBackward : GruProblem {
    TensorSteps grad_output;  // [T, B, H]
    TensorRows grad_h_n;      // [B, H]
    const void* output;       // [T, B, H]
    const void* gates;        // as forward wrote them
    void* grad_gates_x;       // [T, B, 3H]
    void* grad_a;             // [T, B, H]: of W_hn h + b_n
    void* grad_h0;            // [B, H]
    VSSN_MORE_FIELDS(GruProblem, grad_output, grad_h_n, output, gates, grad_gates_x, grad_a, grad_h0)
};

// A batch tile is 8 row_tiles rows, a unit tile 16 hidden units. The warps of a block are groups x slices: a group has
// weights' tiles of its own, and a slice of it `depth` of their k tiles. Of a warp's weights the first register_depth k
// tiles lie in registers, then shared_tiles in shared memory, the last streamed_tiles in the workspace, packed.
struct GruPlan {
    Exchange exchange;
    int blocks;  // of a team
    int64_t teams, batch_tiles;
    int row_tiles;
    int tiles_at_once;       // of the grid: batch tiles of a team that take turns, step by step
    int unit_tiles;          // of a block
    int unit_tiles_inverse;  // times n, shifted by 16: n / unit_tiles, for unit_tiles <= 8 and n < 8192
    int groups, slices, depth, rounds;
    int shares;  // forward, of a block's slice: warps that do the same products and share their results
    int register_depth, shared_tiles, streamed_tiles;
    int parts;  // backward: neighbouring threads that share the sources of a unit's sum
    // Shared memory, in bytes from its start, behind gru_common.cuh's header.
    int operand;   // the product's right side: forward the states, backward the gradients of this block's gates
    int stride;    // of its rows, in elements
    int partials;  // forward: sums of the slices; backward: the sums that the sources send
    int carry;     // backward: what stays of the state's gradient in this block, then the first state; forward, where
                   // tiles take turns: this block's units of their states
    int tiles;     // weights
    int shared_bytes;
    // The workspace: what blocks of a grid exchange, then the streamed tiles.
    int64_t exchange_bytes, workspace_bytes, counter_bytes, blank_bytes;
    int64_t at_once;     // teams, by the device's own answer
    double step_cycles;  // an estimate

    int threads() const { return 32 * groups * slices * shares; }
};

// Throws std::runtime_error where no plan fits the device.
GruPlan gru_plan(Storage storage, bool tf32, bool backward, int64_t B, int64_t H, const GruWish& wish);
std::string describe(const GruPlan& plan);

void gru_forward(const GruForward& problem);
void gru_backward(const GruBackward& problem);

}  // namespace vssn

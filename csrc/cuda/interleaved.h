// A GRU whose input takes the latent sampled at the step before, and its gradient, on the GPU: what the launchers take.
//
//   e         = act_e(embed_context[t] + W_e z_{t-1})                  embed_context [T, B, E], W_e [E, Z]
//   r, u      = sigmoid(x_r + W_hr h + b_r), sigmoid(x_u + W_hu h + b_u)
//   n         = tanh(x_n + r a)                                        a = W_hn h + b_n, h = h_{t-1},
//   h_t       = (1 - u) n + u h                                        x = gates_x[t] + W_zh e [T, B, 3H]
//   hidden    = act(context[t] + W_h h_t)                              context [T, B, M], W_h [M, H]
//   (mu, raw) = W_out hidden + b_out                                   W_out [2Z, M]
//   logvar    = min_logvar + softplus(raw - min_logvar)   or   2 log(softplus(raw) + min_std)
//   z_t       = mu + exp(logvar / 2) eps[t]                            [T, B, Z]
//
// forward   writes h, z, mu, logvar and, where backward follows, the gates, and e and hidden as cell.h's keeps_input
//           says.
// backward  with dz and dh the gradients that reach z_t and h_t:
//             g                  = (grad_mu + dz, (grad_logvar + dz sigma eps / 2) slope)
//             grad_context       = act'(hidden) * g W_out,    dh += grad_h + grad_context W_h
//             grad_gates_x       = the gates' gradients of dh, grad_a that of a
//             grad_embed_context = act_e'(e) * grad_gates_x W_zh
//             of step t - 1: dz  = grad_embed_context W_e,    dh = dh u + (grad_r, grad_u, grad_a) W_hh
//           writes these, grad_out = g [T, B, 2Z], grad_eps = dz sigma and those of the first states. The gradients of
//           the weights are GEMMs of these for the caller.
// resets    where resets[t, b] is not 0, reset_h and reset_z stand before step t in the place of h_{t-1} and z_{t-1};
//           in backward their dh and dz are added to grad_reset_h and grad_reset_z, and go no further.
// Steps t >= lengths[b] are padding: never read, written as 0. Lengths outside [0, T] count as 0 or T.
//
// Storage is float32, bfloat16 or float16; the states, their maths and their sums are float32, but what enters a
// product is rounded to the storage's type (tf32 where float32 may be). Addresses are of device memory, strides count
// elements, the last dimension is contiguous. A launcher returns as soon as its kernels are queued on `stream`, and
// throws std::runtime_error where they could not be.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/cell.h"
#include "../common/fields.h"
#include "storage.h"
#include "tensors.h"

namespace vssn {

// How many blocks share a batch tile, and where the weights lie.
//   block     one block, in its shared memory
//   cluster   the units of every layer are shared out among the blocks of a cluster, each with its weights in its
//             shared memory
//   streamed  one block or a cluster: what does not fit in shared memory is read from L2 in every step
// choice: the fastest of them by an estimate; tests name the others.
VSSN_ENUM(InterleavedVariant, choice, block, cluster, streamed)

// The weights of one product, in a block: for each of its tiles of 16 units `depth` k-steps of `parts` weight tiles.
struct InterleavedMatrix {
    int parts, depth;
    int first;  // among the block's weight tiles
};

// How the kernel is laid out. In units of tiles of 16 units, and of the product's k-steps.
struct InterleavedPlan {
    InterleavedVariant variant;
    int cluster,
        cluster_log2;  // blocks of a batch tile: a power of two. Tile i of a layer belongs to block i % cluster
    int warps;
    // Of each layer: how many tiles the warps take at a time, and how many warps share the sum of one.
    int groups_log2[4], splits_log2[4];
    int layer_tiles[4];                                            // of E, H, M and Z
    int sent_bytes[4];                                             // of each layer to every block, in a step
    InterleavedMatrix matrices[5];                                 // in the order of the step
    int embed_stride, state_stride, hidden_stride, latent_stride;  // from one batch row to the next, in elements
    int tiles, kept;                                               // weight tiles of a block; in shared memory
    int embed_at, state_at[2], hidden_at, latent_at, anew_at;      // buffers of [8][units], in bytes; forward's states
                                                                   // take turns, backward has the gates' gradients
    int carry_at, first_at, state_anew_at, sums_at;                // what lanes keep of this block's states
    int latent_carry_at, latent_anew_at, latent_sums_at;           // and latents
    int partial_at[2];                                             // sums of the warps that share a tile
    int gates_bias_at, out_bias_at, mailboxes_at;
    int64_t shared_bytes;
    int64_t workspace_bytes;  // of global memory, for the weights as they are streamed
    int at_once;              // batch tiles, by the device's own answer
    double step_cycles;       // an estimate
};

struct InterleavedSizes {
    Storage storage;
    bool tf32;  // float32 may go through tensor cores
    InterleavedVariant variant;
    int64_t B, H, E, M, Z;
    bool with_resets;
    VSSN_FIELDS(storage, tf32, variant, B, H, E, M, Z, with_resets)
};

// A state: [B, units], of the storage's type or float32 beside it.
struct InterleavedState {
    const void* data = nullptr;
    int64_t stride = 0;
    bool is_float = false;
    VSSN_TENSOR(data, stride, is_float)
};

// What both directions take.
struct InterleavedProblem : InterleavedSizes {
    int64_t steps;
    Activation embed_activation, activation;
    Scale scale;
    float min_logvar, min_std;
    const int64_t* lengths;                     // [B], or nullptr
    const int32_t* resets;                      // [T, B], or nullptr
    InterleavedState h0, z0, reset_h, reset_z;  // the last two absent: the first two stand for them
    TensorSteps eps;                            // [T, B, Z]
    TensorRows weight_embed, weight_zh, weight_hh, weight_h, weight_out;
    void* workspace;  // InterleavedPlan::workspace_bytes, 16-byte aligned
    void* stream;
    VSSN_MORE_FIELDS(InterleavedSizes, steps, embed_activation, activation, scale, min_logvar, min_std, lengths, resets,
                     h0, z0, reset_h, reset_z, eps, weight_embed, weight_zh, weight_hh, weight_h, weight_out, workspace,
                     stream)
};

struct InterleavedForward : InterleavedProblem {
    TensorSteps gates_x, embed_context, context;  // [T, B, 3H], [T, B, E], [T, B, M]
    const void *bias_hh, *bias_out;               // [3H], [2Z]
    void *h, *z, *mu, *logvar;                    // [T, B, H], [T, B, Z]
    void* gates;                                  // [T, B, H, 4]: r, u, n, a of each unit; or nullptr, as the next two
    void *embed, *hidden;                         // [T, B, E], [T, B, M]
    VSSN_MORE_FIELDS(InterleavedProblem, gates_x, embed_context, context, bias_hh, bias_out, h, z, mu, logvar, gates,
                     embed, hidden)
};

struct InterleavedBackward : InterleavedProblem {
    TensorSteps grad_h, grad_z, grad_mu, grad_logvar;    // or absent
    const void *h, *logvar, *gates, *embed, *hidden;     // as forward wrote them
    void *grad_gates_x, *grad_a;                         // [T, B, 3H], [T, B, H]
    void *grad_embed_context, *grad_context, *grad_out;  // [T, B, E], [T, B, M], [T, B, 2Z]
    void* grad_eps;                                      // [T, B, Z], or nullptr: not wanted, as those below
    void *grad_h0, *grad_z0, *grad_reset_h, *grad_reset_z;
    VSSN_MORE_FIELDS(InterleavedProblem, grad_h, grad_z, grad_mu, grad_logvar, h, logvar, gates, embed, hidden,
                     grad_gates_x, grad_a, grad_embed_context, grad_context, grad_out, grad_eps, grad_h0, grad_z0,
                     grad_reset_h, grad_reset_z)
};

// Throws std::runtime_error where the variant asked for, or any, cannot hold these sizes on the current device.
InterleavedPlan interleaved_plan(const InterleavedSizes& sizes, bool backward);
void interleaved_forward(const InterleavedForward& call);
void interleaved_backward(const InterleavedBackward& call);

}  // namespace vssn

// The sampled chain of latents z_{t-1} -> z_t and its gradient, on the GPU: what the launchers take.
//
//   hidden    = act(context[t] + W_z z_{t-1})                              context [T, B, M], W_z [M, Z]
//   (mu, raw) = W_out hidden + b_out                                       W_out [2Z, M]
//   mu       += W_mu act(prior_context[t] + W_pz z_{t-1}) + b_mu           with the prior's mean only
//   logvar    = min_logvar + softplus(raw - min_logvar)
//   z_t       = mu + exp(logvar / 2) eps[t]                                [T, B, Z]
//
// forward   writes z, mu, logvar and, where backward follows, hidden and prior_hidden as cell.h's keeps_input says.
// backward  with dz the gradient that reaches z_t, g = (grad_mu + dz, (grad_logvar + dz sigma eps / 2) slope):
//             grad_context       = act'(hidden) * g W_out,    grad_prior_context = act'(prior_hidden) * g_mu W_mu
//             dz of step t - 1   = grad_context W_z + grad_prior_context W_pz
//           writes grad_context, grad_prior_context, grad_out = g [T, B, 2Z], grad_eps = dz sigma and grad_z0. The
//           gradients of the weights are GEMMs of these for the caller.
// Steps t >= lengths[b] are padding: never read, written as 0. Lengths outside [0, T] count as 0 or T.
//
// Storage is float32, bfloat16 or float16; the chain, its maths and its sums are float32, but what enters a product is
// rounded to the storage's type (tf32 where float32 may be). Addresses are of device memory, strides count elements,
// the last dimension is contiguous. A launcher returns as soon as its kernels are queued on `stream`, and throws
// std::runtime_error where they could not be.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/cell.h"
#include "../common/fields.h"
#include "storage.h"
#include "tensors.h"

namespace vssn {

// Where the weights lie, and how many blocks share a batch tile.
//   registers  one block, its warps hold them
//   shared     one block, in its shared memory
//   cluster    each block of a cluster has a slice of M in its shared memory; every block computes all latents
//   scatter    the same, but each latent is computed by one block, which sends it to the others
//   streamed   one block or a cluster: what does not fit in shared memory is read from L2 in every step
// choice: the fastest of them by an estimate; tests name the others.
VSSN_ENUM(PosteriorVariant, choice, registers, shared, cluster, scatter, streamed)

// How the kernel is laid out. In units of tiles of 16 hidden units or latents, and of the product's k-steps.
struct PosteriorPlan {
    PosteriorVariant variant;
    bool wide;     // registers: the larger of its two shapes
    bool scatter;  // in a cluster: each latent is computed by one block
    int cluster;   // blocks of a batch tile
    int warps;
    int splits;                        // one block alone: warps that share one group's sum over M
    int cluster_log2, splits_log2;     // both are powers of two: no step divides by them
    int slice;                         // tiles of hidden units of one network in a block
    int chunk;                         // of the block's tiles of both networks, how many the hidden buffer holds
    int groups;                        // tiles of latents
    int latent_depth, slice_depth;     // k-steps over Z, and over a slice's hidden units
    int latent_stride, hidden_stride;  // elements from one batch row to the next in shared memory
    int tiles, kept;                   // weight tiles of a block, and how many of them lie in shared memory
    int latent_at, hidden_at, bias_at, held_at, exchange_at, mailboxes_at;  // where in shared memory, in bytes
    int64_t shared_bytes;
    int64_t workspace_bytes;  // of global memory, for the weights as they are streamed
    int at_once;              // batch tiles, by the device's own answer
    double step_cycles;       // an estimate; 0: of registers there is none
};

// What both directions take.
struct PosteriorProblem {
    Storage storage;
    bool tf32;         // float32 may go through tensor cores
    bool float_state;  // z0 and its gradient are float32 beside half-precision storage
    PosteriorVariant variant;
    int64_t steps, B, M, Z;
    Activation activation;
    float min_logvar;
    const int64_t* lengths;                      // [B], or nullptr
    TensorSteps eps;                             // [T, B, Z]
    TensorRows weight_z, weight_out;             // [M, Z], [2Z, M]
    TensorRows prior_weight_z, prior_weight_mu;  // [M, Z], [Z, M]; absent: no prior mean
    void* workspace;                             // PosteriorPlan::workspace_bytes, 16-byte aligned
    void* stream;
    VSSN_FIELDS(storage, tf32, float_state, variant, steps, B, M, Z, activation, min_logvar, lengths, eps, weight_z,
                weight_out, prior_weight_z, prior_weight_mu, workspace, stream)
};

struct PosteriorForward : PosteriorProblem {
    TensorSteps context, prior_context;    // [T, B, M]
    TensorRows z0;                         // [B, Z]
    const void *bias_out, *prior_bias_mu;  // [2Z], [Z]
    void *z, *mu, *logvar;                 // [T, B, Z]
    void *hidden, *prior_hidden;           // [T, B, M], or nullptr: not kept
    VSSN_MORE_FIELDS(PosteriorProblem, context, prior_context, z0, bias_out, prior_bias_mu, z, mu, logvar, hidden,
                     prior_hidden)
};

struct PosteriorBackward : PosteriorProblem {
    TensorSteps grad_z, grad_mu, grad_logvar;  // [T, B, Z], or absent
    const void* logvar;                        // [T, B, Z]
    const void *hidden, *prior_hidden;         // [T, B, M]
    void *grad_context, *grad_prior_context;   // [T, B, M]
    void* grad_out;                            // [T, B, 2Z]
    void* grad_eps;                            // [T, B, Z], or nullptr: not wanted
    void* grad_z0;                             // [B, Z], or nullptr: not wanted
    VSSN_MORE_FIELDS(PosteriorProblem, grad_z, grad_mu, grad_logvar, logvar, hidden, prior_hidden, grad_context,
                     grad_prior_context, grad_out, grad_eps, grad_z0)
};

// Throws std::runtime_error where the variant asked for, or any, cannot hold these sizes on the current device.
PosteriorPlan posterior_plan(Storage storage, bool tf32, int64_t B, int64_t M, int64_t Z, bool prior, bool backward,
                             PosteriorVariant variant);
void posterior_forward(const PosteriorForward& call);
void posterior_backward(const PosteriorBackward& call);

}  // namespace vssn

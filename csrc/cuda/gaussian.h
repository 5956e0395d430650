// Sampling from a diagonal Gaussian and its KL divergence to another one, on the GPU: what the launchers take.
//
//   z[i, j] = mu + exp(logvar / 2) eps
//   kl[i]   = 1/2 sum_j (exp(lq - lp) - 1 - (lq - lp) + (mu - mp)^2 exp(-lp))      lq = logvar, (mp, lp) = prior or 0
//
// Storage is float32, bfloat16 or float16; maths and sums are float32. Addresses are of device memory; a launcher
// returns as soon as the kernel is queued on `stream`, and throws std::runtime_error where it could not be.
#pragma once

#include <cstdint>

#include "../common/fields.h"
#include "storage.h"
#include "tensors.h"

namespace vssn {

struct GaussianForward {
    Storage storage;
    int64_t N, Z;
    TensorRows mu, logvar, eps, prior_mu, prior_logvar;  // eps only with z; the prior's both or neither
    void* z;                                             // [N, Z] contiguous, or nullptr
    void* kl;                                            // [N]
    void* stream;
    VSSN_FIELDS(storage, N, Z, mu, logvar, eps, prior_mu, prior_logvar, z, kl, stream)
};

struct GaussianBackward {
    Storage storage;
    int64_t N, Z;
    TensorRows mu, logvar, eps, prior_mu, prior_logvar, grad_z;  // grad_z may be absent, and eps with it
    TensorRows grad_kl;                                          // [N, 1], or absent
    void *grad_mu, *grad_logvar, *grad_eps, *grad_prior_mu, *grad_prior_logvar;  // [N, Z] each, or nullptr: not wanted
    void* stream;
    VSSN_FIELDS(storage, N, Z, mu, logvar, eps, prior_mu, prior_logvar, grad_z, grad_kl, grad_mu, grad_logvar, grad_eps,
                grad_prior_mu, grad_prior_logvar, stream)
};

void gaussian_forward(const GaussianForward& call);
void gaussian_backward(const GaussianBackward& call);

}  // namespace vssn

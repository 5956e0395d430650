// Sampling from a diagonal Gaussian and its KL divergence to another one, in one pass.
//
//   z[i, j] = mu + exp(logvar / 2) eps
//   kl[i]   = 1/2 sum_j (lp - lq + exp(lq - lp) + (mu - mp)^2 exp(-lp) - 1)      lq = logvar, (mp, lp) = prior or 0
//
// mu, logvar, eps, prior_* and their gradients [N, Z]; kl [N]. Reads every input once, writes every output once.
// Threads share the rows; a row's sum runs over the lanes of one vector, so it does not depend on the threads.
#include "../common/cell.h"
#include "elementwise.h"
#include "kernels.h"
#include "tables.h"

namespace vssn::VSSN_ISA {

namespace {

template <class T>
VSSN_INLINE Vec<T> load_or_zero(const Rows<const T>& rows, int64_t i, int64_t j, int64_t count) {
    return rows.data ? load(rows.row(i) + j, count) : Vec<T>{};
}

template <class T>
void forward(const GaussianForward<T>& k) {
    using Math = VectorMath<T>;
    auto body = [&](Team team) {
        const Range rows = share(k.N, team.rank, team.size);
        for (int64_t i = rows.begin; i < rows.end; ++i) {
            Vec<T> sum{};
            for (int64_t j = 0; j < k.Z; j += kLanes<T>) {
                const int64_t count = k.Z - j;
                const Vec<T> mu = load(k.mu.row(i) + j, count), logvar = load(k.logvar.row(i) + j, count);
                // Lanes past the row's end are zeros throughout, whose KL is 0.
                sum += twice_kl<Math>(mu, logvar, load_or_zero(k.prior_mu, i, j, count),
                                      load_or_zero(k.prior_logvar, i, j, count));
                if (k.eps.data) {
                    const Vec<T> eps = load(k.eps.row(i) + j, count);
                    store(k.z + i * k.Z + j, mu + standard_deviation<Math>(logvar) * eps, count);
                }
            }
            k.kl[i] = sum_lanes<T>(sum) * Compute<T>(0.5);
        }
    };
    parallel(useful_threads(k.threads, k.N * k.Z), body);
}

template <class T>
void backward(const GaussianBackward<T>& k) {
    using Math = VectorMath<T>;
    const Compute<T> half = 0.5;
    auto body = [&](Team team) {
        const Range rows = share(k.N, team.rank, team.size);
        for (int64_t i = rows.begin; i < rows.end; ++i) {
            const Vec<T> grad_kl = broadcast(k.grad_kl.data ? Compute<T>(*k.grad_kl.row(i)) : Compute<T>(0));
            for (int64_t j = 0; j < k.Z; j += kLanes<T>) {
                const int64_t count = k.Z - j, at = i * k.Z + j;
                const Vec<T> mu = load(k.mu.row(i) + j, count), logvar = load(k.logvar.row(i) + j, count);
                KlGrads<Vec<T>> grad = kl_grads<Math>(mu, logvar, load_or_zero(k.prior_mu, i, j, count),
                                                      load_or_zero(k.prior_logvar, i, j, count), grad_kl);
                if (k.grad_prior_mu) store(k.grad_prior_mu + at, -grad.mu, count);
                if (k.grad_prior_logvar) store(k.grad_prior_logvar + at, grad.prior_logvar, count);
                if (k.grad_z.data) {
                    const Vec<T> grad_z = load(k.grad_z.row(i) + j, count);
                    const Vec<T> grad_eps = grad_z * standard_deviation<Math>(logvar);
                    grad.mu += grad_z;
                    grad.logvar += grad_eps * load(k.eps.row(i) + j, count) * half;
                    if (k.grad_eps) store(k.grad_eps + at, grad_eps, count);
                } else if (k.grad_eps) {
                    store(k.grad_eps + at, Vec<T>{}, count);
                }
                if (k.grad_mu) store(k.grad_mu + at, grad.mu, count);
                if (k.grad_logvar) store(k.grad_logvar + at, grad.logvar, count);
            }
        }
    };
    parallel(useful_threads(k.threads, k.N * k.Z), body);
}

}  // namespace

#define VSSN_ENTRIES(T)                                                \
    void gaussian_forward(const GaussianForward<T>& k) { forward(k); } \
    void gaussian_backward(const GaussianBackward<T>& k) { backward(k); }
VSSN_FOR_STORAGES(VSSN_ENTRIES)

}  // namespace vssn::VSSN_ISA

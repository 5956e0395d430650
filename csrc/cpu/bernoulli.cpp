// The log-density of independent Bernoulli entries with logits, summed over a row, and its gradient.
//
//   log_prob[i] = sum_j (x l - softplus(l))          l = logits; x in [0, 1]
//   grad_l      = grad[i] (x - sigmoid(l)),   grad_x = grad[i] l
//
// logits, x and their gradients [N, X]; log_prob [N]. Threads share the rows; a row's sum does not depend on them.
#include "elementwise.h"
#include "kernels.h"
#include "tables.h"

namespace vssn::VSSN_ISA {

namespace {

template <class T>
void forward(const BernoulliForward<T>& k) {
    using Math = VectorMath<T>;
    auto body = [&](Team team) {
        const Range rows = share(k.N, team.rank, team.size);
        for (int64_t i = rows.begin; i < rows.end; ++i) {
            Vec<T> sum{};
            for (int64_t j = 0; j < k.X; j += kLanes<T>) {
                const int64_t count = k.X - j;
                const Vec<T> logits = load(k.logits.row(i) + j, count), x = load(k.x.row(i) + j, count);
                // Lanes past the row's end hold logits of 0, whose softplus is log 2.
                sum += keep<T>(x * logits - Math::softplus(logits), count);
            }
            k.log_prob[i] = sum_lanes<T>(sum);
        }
    };
    parallel(useful_threads(k.threads, k.N * k.X), body);
}

template <class T>
void backward(const BernoulliBackward<T>& k) {
    using Math = VectorMath<T>;
    auto body = [&](Team team) {
        const Range rows = share(k.N, team.rank, team.size);
        for (int64_t i = rows.begin; i < rows.end; ++i) {
            const Vec<T> grad = broadcast(*k.grad.row(i));
            for (int64_t j = 0; j < k.X; j += kLanes<T>) {
                const int64_t count = k.X - j, at = i * k.X + j;
                const Vec<T> logits = load(k.logits.row(i) + j, count), x = load(k.x.row(i) + j, count);
                if (k.grad_logits) store(k.grad_logits + at, grad * (x - Math::sigmoid(logits)), count);
                if (k.grad_x) store(k.grad_x + at, grad * logits, count);
            }
        }
    };
    parallel(useful_threads(k.threads, k.N * k.X), body);
}

}  // namespace

#define VSSN_ENTRIES(T)                                                  \
    void bernoulli_forward(const BernoulliForward<T>& k) { forward(k); } \
    void bernoulli_backward(const BernoulliBackward<T>& k) { backward(k); }
VSSN_FOR_STORAGES(VSSN_ENTRIES)

}  // namespace vssn::VSSN_ISA

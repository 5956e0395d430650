// What the kernels take, and the table of entry points that each instruction set fills. bindings.cpp fills the structs
// from Python, each field by its name.
//
// All memory belongs to the caller. Strides count elements; the last dimension of every tensor is contiguous.
// A null pointer means: not given, or not needed.
//
// T is the type of storage. States and the gradients of states, weights and biases are Compute<T>: sums that a BFloat16
// would round at every step.
#pragma once

#include <stdint.h>

#include "../common/cell.h"
#include "../common/fields.h"
#include "bfloat16.h"

namespace vssn {

// [rows, width] with any distance between rows.
template <class T>
struct Rows {
    T* data;
    int64_t stride;
    VSSN_TENSOR(data, stride)
    T* row(int64_t i) const { return data + i * stride; }
};

// [T, B, width] with any distance between steps and between rows; packed (rows.h) [N, width], without step_stride.
template <class T>
struct Steps {
    T* data;
    int64_t step_stride, row_stride;
    VSSN_TENSOR(data, step_stride, row_stride)
    T* row(int64_t t, int64_t b) const { return data + t * step_stride + b * row_stride; }
};

// ---- gaussian.cpp ----------------------------------------------------------------------------------------

template <class T>
struct GaussianForward {
    int threads;
    int64_t N, Z;
    Rows<const T> mu, logvar, eps, prior_mu, prior_logvar;  // eps null: the KL alone
    T* z;                                                   // [N, Z], with eps
    T* kl;                                                  // [N]
    VSSN_FIELDS(threads, N, Z, mu, logvar, eps, prior_mu, prior_logvar, z, kl)
};

template <class T>
struct GaussianBackward {
    int threads;
    int64_t N, Z;
    Rows<const T> mu, logvar, eps, prior_mu, prior_logvar;
    Rows<const T> grad_z;                                                     // [N, Z]
    Rows<const T> grad_kl;                                                    // [N, 1]
    T *grad_mu, *grad_logvar, *grad_eps, *grad_prior_mu, *grad_prior_logvar;  // [N, Z]
    VSSN_FIELDS(threads, N, Z, mu, logvar, eps, prior_mu, prior_logvar, grad_z, grad_kl, grad_mu, grad_logvar, grad_eps,
                grad_prior_mu, grad_prior_logvar)
};

// ---- gru.cpp ---------------------------------------------------------------------------------------------

template <class T>
struct GruForward {
    int threads;
    int64_t steps, B, H;
    bool reverse;
    const int64_t* lengths;      // [B]; null where packed
    const int64_t* batch_sizes;  // [T], falling, B at most: [T, B, .] is packed as [N, .]; null: it is not
    Steps<const T> gates_x;      // [T, B, 3H]
    Rows<const Compute<T>> h0;   // [B, H]
    Rows<const T> weight;        // [3H, H]
    const T* bias;               // [3H]
    T* output;                   // [T, B, H]
    Compute<T>* h_n;             // [B, H]
    T* gates;                    // [T, B, 4H]: for each vector of units r, z, n, W_hn h + b_hn; null: not kept
    VSSN_FIELDS(threads, steps, B, H, reverse, lengths, batch_sizes, gates_x, h0, weight, bias, output, h_n, gates)
};

template <class T>
struct GruBackward {
    int threads;
    int64_t steps, B, H;
    bool reverse;
    const int64_t *lengths, *batch_sizes;
    Steps<const T> grad_output;       // [T, B, H]
    Rows<const Compute<T>> grad_h_n;  // [B, H]
    const T* output;                  // [T, B, H]
    const T* gates;                   // as forward wrote them
    Rows<const T> h0, weight;
    T* grad_gates_x;          // [T, B, 3H]
    T* grad_a;                // [T, B, H]: of W_hn h + b_hn
    Compute<T>* grad_h0;      // [B, H]
    Compute<T>* grad_weight;  // [3H, H]
    Compute<T>* grad_bias;    // [3H]
    VSSN_FIELDS(threads, steps, B, H, reverse, lengths, batch_sizes, grad_output, grad_h_n, output, gates, h0, weight,
                grad_gates_x, grad_a, grad_h0, grad_weight, grad_bias)
};

// ---- posterior.cpp ---------------------------------------------------------------------------------------

template <class T>
struct PosteriorForward {
    int threads;
    int64_t steps, B, M, Z;
    Activation activation;
    Compute<T> min_logvar;
    const int64_t* lengths;              // [B]
    Steps<const T> context, eps;         // [T, B, M], [T, B, Z]
    Rows<const Compute<T>> z0;           // [B, Z]
    Rows<const T> weight_z, weight_out;  // [M, Z], [2Z, M]
    const T* bias_out;                   // [2Z]
    Steps<const T> prior_context;        // [T, B, M]; null: no prior mean
    Rows<const T> prior_weight_z;        // [M, Z]
    Rows<const T> prior_weight_mu;       // [Z, M]
    const T* prior_bias_mu;              // [Z]
    T *z, *mu, *logvar;                  // [T, B, Z]
    T *hidden, *prior_hidden;            // [T, B, M] as cell.h's keeps_input says; null: not kept
    VSSN_FIELDS(threads, steps, B, M, Z, activation, min_logvar, lengths, context, eps, z0, weight_z, weight_out,
                bias_out, prior_context, prior_weight_z, prior_weight_mu, prior_bias_mu, z, mu, logvar, hidden,
                prior_hidden)
};

template <class T>
struct PosteriorBackward {
    int threads;
    int64_t steps, B, M, Z;
    Activation activation;
    Compute<T> min_logvar;
    const int64_t* lengths;
    Steps<const T> grad_z, grad_mu, grad_logvar;  // [T, B, Z]
    const T* logvar;                              // [T, B, Z]
    const T *hidden, *prior_hidden;               // [T, B, M]
    Steps<const T> eps;                           // [T, B, Z]
    Rows<const T> weight_z, weight_out, prior_weight_z, prior_weight_mu;
    const T* z;                                                  // [T, B, Z]
    Rows<const T> z0;                                            // [B, Z]
    const T *active, *prior_active;                              // [T, B, M]: after the activation
    T *grad_context, *grad_prior_context;                        // [T, B, M]
    T* grad_out;                                                 // [T, B, 2Z]: of the output layer (mu, raw)
    T* grad_eps;                                                 // [T, B, Z]
    Compute<T>* grad_z0;                                         // [B, Z]
    Compute<T>*grad_weight_z, *grad_weight_out, *grad_bias_out;  // [M, Z], [2Z, M], [2Z]
    Compute<T>*grad_prior_weight_z, *grad_prior_weight_mu, *grad_prior_bias_mu;  // [M, Z], [Z, M], [Z]
    VSSN_FIELDS(threads, steps, B, M, Z, activation, min_logvar, lengths, grad_z, grad_mu, grad_logvar, logvar, hidden,
                prior_hidden, eps, weight_z, weight_out, prior_weight_z, prior_weight_mu, z, z0, active, prior_active,
                grad_context, grad_prior_context, grad_out, grad_eps, grad_z0, grad_weight_z, grad_weight_out,
                grad_bias_out, grad_prior_weight_z, grad_prior_weight_mu, grad_prior_bias_mu)
};

// ---- mlp.cpp ---------------------------------------------------------------------------------------------

constexpr int kMlpInputs = 16;  // at most

template <class T>
using MlpList = List<T, kMlpInputs>;  // one for each input

template <class T>
struct MlpForward {
    int threads;
    int64_t N, M, O;  // O: columns of each output
    Activation activation;
    bool floored;  // a second output, the log-variance with its floor
    Compute<T> min_logvar;
    MlpList<int64_t> K;             // columns
    MlpList<Rows<const T>> x;       // [N, K]
    MlpList<Rows<const T>> weight;  // [M, K]: the columns that meet the input
    const T* bias;                  // [M]
    Rows<const T> weight_out;       // [O, M], floored [2 O, M]; null: one layer, out is the hidden layer's input [N, M]
    const T* bias_out;              // [O], [2 O]
    T* out;                         // [N, O]
    T* logvar;                      // [N, O], where floored
    T* hidden;                      // [N, M] as cell.h's keeps_input says; null: not kept
    VSSN_FIELDS(threads, N, M, O, activation, floored, min_logvar, K, x, weight, bias, weight_out, bias_out, out,
                logvar, hidden)
    int inputs() const { return K.count; }
};

template <class T>
struct MlpBackward {
    int threads;
    int64_t N, M, O;
    Activation activation;
    bool floored;
    Compute<T> min_logvar;
    MlpList<int64_t> K;
    MlpList<Rows<const T>> x, weight;
    Rows<const T> weight_out;
    Rows<const T> grad_out, grad_logvar;    // [N, O], one layer: grad_out [N, M]; null: zeros
    const T* logvar;                        // [N, O], where floored
    const T* hidden;                        // [N, M] as forward kept it
    MlpList<T*> grad_x;                     // [N, K]
    MlpList<Rows<Compute<T>>> grad_weight;  // [M, K]
    Compute<T>* grad_bias;                  // [M]
    Compute<T>* grad_weight_out;            // [O, M], [2 O, M]
    Compute<T>* grad_bias_out;              // [O], [2 O]
    VSSN_FIELDS(threads, N, M, O, activation, floored, min_logvar, K, x, weight, weight_out, grad_out, grad_logvar,
                logvar, hidden, grad_x, grad_weight, grad_bias, grad_weight_out, grad_bias_out)
    int inputs() const { return K.count; }
};

// ---- bernoulli.cpp ---------------------------------------------------------------------------------------

template <class T>
struct BernoulliForward {
    int threads;
    int64_t N, X;
    Rows<const T> logits, x;  // [N, X]
    T* log_prob;              // [N]
    VSSN_FIELDS(threads, N, X, logits, x, log_prob)
};

template <class T>
struct BernoulliBackward {
    int threads;
    int64_t N, X;
    Rows<const T> logits, x;
    Rows<const T> grad;       // [N, 1]
    T *grad_logits, *grad_x;  // [N, X]
    VSSN_FIELDS(threads, N, X, logits, x, grad, grad_logits, grad_x)
};

// ---- The table -------------------------------------------------------------------------------------------

VSSN_ENUM(Function, exp, expm1, sigmoid, tanh, softplus)

// workspace: memory for the call alone, of as many bytes as the function behind it tells from sizes and what is null.
template <class T>
struct Kernels {
    void (*gaussian_forward)(const GaussianForward<T>&);
    void (*gaussian_backward)(const GaussianBackward<T>&);
    void (*gru_forward)(const GruForward<T>&, void* workspace);
    int64_t (*gru_forward_workspace)(const GruForward<T>&);
    void (*gru_backward)(const GruBackward<T>&, void* workspace);
    int64_t (*gru_backward_workspace)(const GruBackward<T>&);
    void (*posterior_forward)(const PosteriorForward<T>&, void* workspace);
    int64_t (*posterior_forward_workspace)(const PosteriorForward<T>&);
    void (*posterior_backward)(const PosteriorBackward<T>&, void* workspace);
    int64_t (*posterior_backward_workspace)(const PosteriorBackward<T>&);
    void (*mlp_forward)(const MlpForward<T>&, void* workspace);
    int64_t (*mlp_forward_workspace)(const MlpForward<T>&);
    void (*mlp_backward)(const MlpBackward<T>&, void* workspace);
    int64_t (*mlp_backward_workspace)(const MlpBackward<T>&);
    void (*bernoulli_forward)(const BernoulliForward<T>&);
    void (*bernoulli_backward)(const BernoulliBackward<T>&);
    void (*evaluate)(Function function, const T* x, T* y, int64_t count);  // for the tests of math.h
};

// amx and avx512_bf16 are avx512 with kernels of their own for BFloat16.
struct KernelTable {
    const char* isa;
    const Kernels<float>* f32;
    const Kernels<double>* f64;
    const Kernels<BFloat16>* bf16;
};

#define VSSN_DECLARE_TABLE(isa)          \
    namespace isa {                      \
    extern const Kernels<float> f32;     \
    extern const Kernels<double> f64;    \
    extern const Kernels<BFloat16> bf16; \
    extern const KernelTable table;      \
    }
VSSN_DECLARE_TABLE(amx)
VSSN_DECLARE_TABLE(avx512_bf16)
VSSN_DECLARE_TABLE(avx512)
VSSN_DECLARE_TABLE(avx2)
VSSN_DECLARE_TABLE(generic)

// The table in use: the best one that the processor runs, or the one that VSSN_CPU_ISA names.
// Throws std::runtime_error where VSSN_CPU_ISA names an unknown one, or one that this processor lacks.
const KernelTable& kernels();

}  // namespace vssn

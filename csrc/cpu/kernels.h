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

template <class T>
Rows<const T> constant(const Rows<T>& rows) {
    return {rows.data, rows.stride};
}

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
    T* gates;                    // [T, B, 4H]: r, z, n, W_hn h + b_hn; null: not kept
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
    Rows<T> grad_gates_x;     // [T B, 3H]; may be r, z, n of gates
    Rows<T> grad_a;           // [T B, H]: of W_hn h + b_hn; may be the last H of gates
    Compute<T>* grad_h0;      // [B, H]
    Compute<T>* grad_weight;  // [3H, H]
    Compute<T>* grad_bias;    // [3H]
    VSSN_FIELDS(threads, steps, B, H, reverse, lengths, batch_sizes, grad_output, grad_h_n, output, gates, h0, weight,
                grad_gates_x, grad_a, grad_h0, grad_weight, grad_bias)
};

// ---- gru_step.cpp ----------------------------------------------------------------------------------------

template <class T>
struct GruPack {
    int64_t H;
    Rows<const T> weight;  // [3H, H]
    T* panels;             // null: nothing is packed
    VSSN_FIELDS(H, weight, panels)
};

template <class T>
struct GruStep {
    int threads;
    int64_t B, H;
    Rows<const T> gates_x, h;  // [B, 3H], [B, H]
    const T* panels;           // as gru_pack wrote them
    const T* bias;             // [3H]
    T* out;                    // [B, H]
    VSSN_FIELDS(threads, B, H, gates_x, h, panels, bias, out)
};

template <class T>
struct GruLayerStep {
    int threads;
    int64_t B, X, H;
    Rows<const T> x, h;                  // [B, X], [B, H]
    Rows<const T> weight_ih, weight_hh;  // [3H, X], [3H, H]
    const T *bias_ih, *bias_hh;          // [3H]; null: zeros
    T *output, *h_n;                     // [B, H], the same in both
    T* gates;                            // [B, 4H] as GruForward's; null: not kept
    VSSN_FIELDS(threads, B, X, H, x, h, weight_ih, weight_hh, bias_ih, bias_hh, output, h_n, gates)
};

template <class T>
struct GruCell {
    int threads;
    int64_t B, H;
    Rows<const T> gates_x, product, h;  // [B, 3H], W_hh h [B, 3H], [B, H]
    const T* bias;                      // [3H]
    T *output, *h_n;                    // [B, H], the same in both
    T* gates;                           // [B, 4H] as GruForward's; null: not kept
    VSSN_FIELDS(threads, B, H, gates_x, product, h, bias, output, h_n, gates)
};

template <class T>
struct GruCellBackward {
    int threads;
    int64_t B, H;
    Rows<const T> grad_output, grad_h_n, h;  // [B, H]
    const T* gates;                          // as forward kept them
    T *grad_gates_x, *grad_product;          // [B, 3H]
    T* grad_h;                               // [B, H]: what goes past the product; null: not asked for
    VSSN_FIELDS(threads, B, H, grad_output, grad_h_n, h, gates, grad_gates_x, grad_product, grad_h)
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

// ---- interleaved.cpp -------------------------------------------------------------------------------------

template <class T>
struct InterleavedForward {
    int threads;
    int64_t steps, B, H, E, M, Z;
    Activation embed_activation, activation;
    Scale scale;
    Compute<T> min_logvar, min_std;
    const int64_t* lengths;                         // [B]
    const bool* resets;                             // [T, B]
    Steps<const T> gates_x, embed_context;          // [T, B, 3H], [T, B, E]
    Steps<const T> context, eps;                    // [T, B, M], [T, B, Z]
    Rows<const T> h0, z0, reset_h, reset_z;         // [B, H], [B, Z]; the last two with resets
    Rows<const T> weight_embed, weight_zh;          // [E, Z], [3H, E]
    Rows<const T> weight_hh, weight_h, weight_out;  // [3H, H], [M, H], [2Z, M]
    const T *bias_hh, *bias_out;                    // [3H], [2Z]
    T *h, *z, *mu, *logvar;                         // [T, B, H], [T, B, Z]
    T* gates;                                       // [T, B, 4H]: for each vector of units r, u, n, a; null: not kept
    T *embed, *hidden;                              // [T, B, E], [T, B, M] as cell.h's keeps_input says; null: not kept
    VSSN_FIELDS(threads, steps, B, H, E, M, Z, embed_activation, activation, scale, min_logvar, min_std, lengths,
                resets, gates_x, embed_context, context, eps, h0, z0, reset_h, reset_z, weight_embed, weight_zh,
                weight_hh, weight_h, weight_out, bias_hh, bias_out, h, z, mu, logvar, gates, embed, hidden)
};

template <class T>
struct InterleavedBackward {
    int threads;
    int64_t steps, B, H, E, M, Z;
    Activation embed_activation, activation;
    Scale scale;
    Compute<T> min_logvar, min_std;
    const int64_t* lengths;
    const bool* resets;
    Steps<const T> grad_h, grad_z, grad_mu, grad_logvar;  // [T, B, H], [T, B, Z]
    Rows<const T> before_h, before_z;    // [T B, H], [T B, Z]: what each step started from, zeros at padding
    const T *h, *logvar, *gates;         // as forward wrote them
    const T *embed, *hidden;             // likewise
    Rows<const T> embed_active, active;  // [T B, E], [T B, M]: after the activations
    Steps<const T> eps;                  // [T, B, Z]
    Rows<const T> weight_embed, weight_zh, weight_hh, weight_h, weight_out;
    T *grad_gates_x, *grad_a;              // [T, B, 3H]; [T, B, H]: of W_hn h + b_hn
    T *grad_embed_context, *grad_context;  // [T, B, E], [T, B, M]
    T *grad_out, *grad_eps;                // [T, B, 2Z]: of the output layer (mu, raw); [T, B, Z]
    T *grad_h0, *grad_z0;                  // [B, H], [B, Z]
    T *grad_reset_h, *grad_reset_z;        // [B, H], [B, Z], with resets
    T *grad_weight_embed, *grad_weight_zh, *grad_weight_hh, *grad_bias_hh;  // [E, Z], [3H, E], [3H, H], [3H]
    T *grad_weight_h, *grad_weight_out, *grad_bias_out;                     // [M, H], [2Z, M], [2Z]
    VSSN_FIELDS(threads, steps, B, H, E, M, Z, embed_activation, activation, scale, min_logvar, min_std, lengths,
                resets, grad_h, grad_z, grad_mu, grad_logvar, before_h, before_z, h, logvar, gates, embed, hidden,
                embed_active, active, eps, weight_embed, weight_zh, weight_hh, weight_h, weight_out, grad_gates_x,
                grad_a, grad_embed_context, grad_context, grad_out, grad_eps, grad_h0, grad_z0, grad_reset_h,
                grad_reset_z, grad_weight_embed, grad_weight_zh, grad_weight_hh, grad_bias_hh, grad_weight_h,
                grad_weight_out, grad_bias_out)
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
    const T* panels;                // as mlp_pack wrote them, and no weight is read; null: packed within
    T* out;                         // [N, O]
    T* logvar;                      // [N, O], where floored
    T* hidden;                      // [N, M] as cell.h's keeps_input says; null: not kept
    VSSN_FIELDS(threads, N, M, O, activation, floored, min_logvar, K, x, weight, bias, weight_out, bias_out, panels,
                out, logvar, hidden)
    int inputs() const { return K.count; }
};

template <class T>
struct MlpPack {
    int64_t M, O;
    bool floored;
    MlpList<int64_t> K;
    MlpList<Rows<const T>> weight;
    Rows<const T> weight_out;
    T* panels;  // null: nothing is packed
    VSSN_FIELDS(M, O, floored, K, weight, weight_out, panels)
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

// ---- program.cpp -----------------------------------------------------------------------------------------

constexpr int kPanelBytes = 256;  // of a row of a panel of a linear's weights

// code [n, 8]: the instruction, then what it takes; places are offsets, -1 where there is none.
enum class Instruction : int64_t {
    linear,    // out, in, K, N, weight, bias, from
    activate,  // out, N, Activation
    gru,       // out, gates_x, gates_h, h, H
    copy,      // out, in, N
    add,       // out, in, N
    wait,
};

template <class T>
struct Program {
    int threads;
    int64_t B;
    int64_t first, last;       // instructions to run
    Rows<const T> x, u;        // [B, X], [B, U]
    int64_t X, x_at, U, u_at;  // and their places
    Compute<T> low, high;      // of x
    bool whole;                // x is
    Rows<T> memory;            // [B, size]
    const int64_t* code;       // [n, 8]
    const T* weights;
    VSSN_FIELDS(threads, B, first, last, x, u, X, x_at, U, u_at, low, high, whole, memory, code, weights)
};

// ---- The table -------------------------------------------------------------------------------------------

VSSN_ENUM(Function, exp, expm1, log, sigmoid, tanh, softplus)

// workspace: memory for the call alone, of as many bytes as the function behind it tells from sizes and what is null.
// Null is what there is not for a type: for BFloat16 the steps with weights prepared or as they are,
// interleaved_sequence and programs (tables.h), which are computed in float.
template <class T>
struct Kernels {
    void (*gaussian_forward)(const GaussianForward<T>&);
    void (*gaussian_backward)(const GaussianBackward<T>&);
    void (*gru_forward)(const GruForward<T>&, void* workspace);
    int64_t (*gru_forward_workspace)(const GruForward<T>&);
    void (*gru_backward)(const GruBackward<T>&, void* workspace);
    int64_t (*gru_backward_workspace)(const GruBackward<T>&);
    int64_t (*gru_pack)(const GruPack<T>&);  // as mlp_pack: packs, and tells how many numbers the panels take
    void (*gru_step)(const GruStep<T>&);
    void (*gru_layer_step)(const GruLayerStep<T>&);
    void (*gru_cell)(const GruCell<T>&);
    void (*gru_cell_backward)(const GruCellBackward<T>&);
    void (*posterior_forward)(const PosteriorForward<T>&, void* workspace);
    int64_t (*posterior_forward_workspace)(const PosteriorForward<T>&);
    void (*posterior_backward)(const PosteriorBackward<T>&, void* workspace);
    int64_t (*posterior_backward_workspace)(const PosteriorBackward<T>&);
    void (*interleaved_forward)(const InterleavedForward<T>&, void* workspace);
    int64_t (*interleaved_forward_workspace)(const InterleavedForward<T>&);
    void (*interleaved_backward)(const InterleavedBackward<T>&, void* workspace);
    int64_t (*interleaved_backward_workspace)(const InterleavedBackward<T>&);
    void (*mlp_forward)(const MlpForward<T>&, void* workspace);
    int64_t (*mlp_forward_workspace)(const MlpForward<T>&);
    int64_t (*mlp_pack)(const MlpPack<T>&);
    void (*mlp_backward)(const MlpBackward<T>&, void* workspace);
    int64_t (*mlp_backward_workspace)(const MlpBackward<T>&);
    void (*bernoulli_forward)(const BernoulliForward<T>&);
    void (*bernoulli_backward)(const BernoulliBackward<T>&);
    bool (*run_program)(const Program<T>&);
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

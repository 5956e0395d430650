// The table of this instruction set's entry points, and math.h's functions for its tests.
#include "kernels.h"
#include "math.h"
#include "tables.h"

#define VSSN_TEXT_(name) #name
#define VSSN_TEXT(name) VSSN_TEXT_(name)

namespace vssn::VSSN_ISA {

namespace {

template <class T>
void evaluate(Function function, const T* x, T* y, int64_t count) {
    using Math = VectorMath<T>;
    for (int64_t i = 0; i < count; i += kLanes<T>) {
        const Vec<T> v = load(x + i, count - i);
        Vec<T> result{};
        switch (function) {
            case Function::exp:
                result = Math::exp(v);
                break;
            case Function::expm1:
                result = Math::expm1(v);
                break;
            case Function::log:
                result = Math::log(v);
                break;
            case Function::sigmoid:
                result = Math::sigmoid(v);
                break;
            case Function::tanh:
                result = Math::tanh(v);
                break;
            case Function::softplus:
                result = Math::softplus(v);
                break;
        }
        store(y + i, result, count - i);
    }
}

template <class T>
constexpr Kernels<T> entries() {
    Kernels<T> has{};
    has.gaussian_forward = gaussian_forward;
    has.gaussian_backward = gaussian_backward;
    has.gru_forward = gru_forward;
    has.gru_forward_workspace = gru_forward_workspace;
    has.gru_backward = gru_backward;
    has.gru_backward_workspace = gru_backward_workspace;
    has.posterior_forward = posterior_forward;
    has.posterior_forward_workspace = posterior_forward_workspace;
    has.posterior_backward = posterior_backward;
    has.posterior_backward_workspace = posterior_backward_workspace;
    has.mlp_forward = mlp_forward;
    has.mlp_forward_workspace = mlp_forward_workspace;
    has.mlp_backward = mlp_backward;
    has.mlp_backward_workspace = mlp_backward_workspace;
    has.bernoulli_forward = bernoulli_forward;
    has.bernoulli_backward = bernoulli_backward;
    has.evaluate = evaluate<T>;
#if !defined(VSSN_BFLOAT16_ALONE)
    if constexpr (!kRounds<T>) {
        has.gru_pack = gru_pack;
        has.gru_step = gru_step;
        has.gru_layer_step = gru_layer_step;
        has.gru_cell = gru_cell;
        has.gru_cell_backward = gru_cell_backward;
        has.interleaved_forward = interleaved_forward;
        has.interleaved_forward_workspace = interleaved_forward_workspace;
        has.interleaved_backward = interleaved_backward;
        has.interleaved_backward_workspace = interleaved_backward_workspace;
        has.mlp_pack = mlp_pack;
        has.run_program = run_program;
    }
#endif
    return has;
}

}  // namespace

#if defined(VSSN_BFLOAT16_ALONE)
#if defined(VSSN_EMULATED)
#define VSSN_BASE generic
#else
#define VSSN_BASE avx512
#endif
const Kernels<BFloat16> bf16 = entries<BFloat16>();
const KernelTable table = {VSSN_TEXT(VSSN_ISA), &VSSN_BASE::f32, &VSSN_BASE::f64, &bf16};
#else
const Kernels<float> f32 = entries<float>();
const Kernels<double> f64 = entries<double>();
const Kernels<BFloat16> bf16 = entries<BFloat16>();
const KernelTable table = {VSSN_TEXT(VSSN_ISA), &f32, &f64, &bf16};
#endif

}  // namespace vssn::VSSN_ISA

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
    return {gaussian_forward,   gaussian_backward,
            gru_forward,        gru_forward_workspace,
            gru_backward,       gru_backward_workspace,
            posterior_forward,  posterior_forward_workspace,
            posterior_backward, posterior_backward_workspace,
            mlp_forward,        mlp_forward_workspace,
            mlp_backward,       mlp_backward_workspace,
            bernoulli_forward,  bernoulli_backward,
            evaluate<T>};
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

// The scalar formulas of the kernels, shared by the CPU and the GPU code.
//
// Every function is a template over a value type V (a float, a double, or a vector of them) and over Math, a
// class with static exp, expm1, sigmoid, tanh, softplus, maximum and select for V. Nothing here touches memory.
#pragma once

#include "fields.h"

#if defined(__CUDACC__)
#define VSSN_CELL __host__ __device__ __forceinline__
#else
#define VSSN_CELL inline __attribute__((always_inline))
#endif

namespace vssn {

// ---- GRU: r, z = sigmoid(x + h), n = tanh(x_n + r a) with a = W_hn h + b_hn, h' = (1 - z) n + z h --------

template <class V>
struct GruGates {
    V r, z, n, a;
};

template <class Math, class V>
VSSN_CELL GruGates<V> gru_gates(V r_input, V z_input, V n_input, V a) {
    const V r = Math::sigmoid(r_input);
    const V z = Math::sigmoid(z_input);
    return {r, z, Math::tanh(n_input + r * a), a};
}

template <class V>
VSSN_CELL V gru_next(const GruGates<V>& g, V h) {
    return g.n + g.z * (h - g.n);
}

// What the gradient of h' is multiplied with for those of the inputs of r, z, n and of a; .r is that from n's on.
template <class V>
struct GruSlopes {
    V r, z, n, a;
};
template <class V>
VSSN_CELL GruSlopes<V> gru_slopes(const GruGates<V>& g, V h) {
    const V one = V{} + 1;
    return {g.a * (g.r * (one - g.r)), (h - g.n) * (g.z * (one - g.z)), (one - g.z) * (one - g.n * g.n), g.r};
}

// Gradients with respect to the inputs of r, z, n and to a; dh is the gradient of h'.
template <class V>
VSSN_CELL GruGates<V> gru_gate_grads(const GruSlopes<V>& slopes, V dh) {
    const V grad_n = dh * slopes.n;
    return {grad_n * slopes.r, dh * slopes.z, grad_n, grad_n * slopes.a};
}
template <class V>
VSSN_CELL GruGates<V> gru_gate_grads(const GruGates<V>& g, V h, V dh) {
    return gru_gate_grads(gru_slopes(g, h), dh);
}

// ---- Activations of hidden layers ------------------------------------------------------------------------

// The first four are everyone's, the others interleaved_sequence's.
VSSN_ENUM(Activation, tanh, relu, leaky_relu, silu, elu, identity)

constexpr double kLeakySlope = 1.0 / 3.0;

// What is kept for backward is act(x), or x itself where act(x) does not determine the slope (silu).
constexpr bool keeps_input(Activation act) { return act == Activation::silu; }

template <Activation act, class Math, class V>
VSSN_CELL V activate(V x) {
    if constexpr (act == Activation::tanh) return Math::tanh(x);
    if constexpr (act == Activation::relu) return Math::select_positive(-x, V{}, x);  // NaN stays
    if constexpr (act == Activation::leaky_relu)
        return Math::select_positive(x, x, x * static_cast<typename Math::Scalar>(kLeakySlope));
    if constexpr (act == Activation::silu) return x * Math::sigmoid(x);
    if constexpr (act == Activation::elu) return Math::select_positive(x, x, Math::expm1(x));
    if constexpr (act == Activation::identity) return x;
}

// d act(x) / d x from what activate's caller kept. The slope of relu and leaky_relu at 0 is the left one.
template <Activation act, class Math, class V>
VSSN_CELL V activation_slope(V kept) {
    const V one = V{} + 1;
    if constexpr (act == Activation::tanh) return one - kept * kept;
    if constexpr (act == Activation::relu) return Math::select_positive(kept, one, V{});
    if constexpr (act == Activation::leaky_relu)
        return Math::select_positive(kept, one, one * static_cast<typename Math::Scalar>(kLeakySlope));
    if constexpr (act == Activation::silu) {
        const V s = Math::sigmoid(kept);
        return s + kept * s * (one - s);
    }
    if constexpr (act == Activation::elu) return Math::select_positive(kept, one, kept + one);
    if constexpr (act == Activation::identity) return one;
}

// ---- Gaussians with a log-variance -----------------------------------------------------------------------

// logvar = min_logvar + softplus(raw - min_logvar), and d logvar / d raw from logvar alone.
template <class Math, class V>
VSSN_CELL V floored_logvar(V raw, V min_logvar) {
    return min_logvar + Math::softplus(raw - min_logvar);
}

template <class Math, class V>
VSSN_CELL V floored_logvar_slope(V logvar, V min_logvar) {
    return -Math::expm1(min_logvar - logvar);
}

template <class Math, class V>
VSSN_CELL V half_of(V value) {
    return value * static_cast<typename Math::Scalar>(0.5);
}

template <class Math, class V>
VSSN_CELL V standard_deviation(V logvar) {
    return Math::exp(half_of<Math>(logvar));
}

// What the output layer's second half stands for: the log-variance with its floor above, or as Dreamer has it
// logvar = 2 log(softplus(raw) + min_std), and d logvar / d raw from logvar alone.
VSSN_ENUM(Scale, logvar, softplus)

template <class Math, class V>
VSSN_CELL V softplus_logvar(V raw, V min_std) {
    const V logarithm = Math::log(Math::softplus(raw) + min_std);
    return logarithm + logarithm;
}

template <class Math, class V>
VSSN_CELL V softplus_logvar_slope(V logvar, V min_std) {
    const V std = standard_deviation<Math>(logvar), above = std - min_std;
    const V slope =
        Math::expm1(Math::select_positive(above, -above, V{})) / std;  // rounded, std may be below its floor
    return -(slope + slope);
}

// One coordinate of KL(N(mu, exp logvar) || N(prior_mu, exp prior_logvar)) times 2. With d = logvar - prior_logvar,
// expm1(d) - d keeps full precision where the two variances are close. The difference squared, and exp(-prior_logvar),
// may leave the range of floats where their product does not: so the difference is divided by the standard deviation.
template <class Math, class V>
VSSN_CELL V twice_kl(V mu, V logvar, V prior_mu, V prior_logvar) {
    const V d = logvar - prior_logvar, difference = mu - prior_mu;
    const V scaled = difference * Math::exp(-half_of<Math>(prior_logvar));
    return (Math::expm1(d) - d) + scaled * scaled;
}

template <class V>
struct KlGrads {
    V mu, logvar, prior_logvar;  // the gradient of prior_mu is -mu
};

template <class Math, class V>
VSSN_CELL KlGrads<V> kl_grads(V mu, V logvar, V prior_mu, V prior_logvar, V grad_kl) {
    const V factor = Math::exp(-half_of<Math>(prior_logvar)), scaled = (mu - prior_mu) * factor;
    const V ratio = Math::expm1(logvar - prior_logvar), half = half_of<Math>(grad_kl);
    return {grad_kl * (scaled * factor), half * ratio, -half * (ratio + scaled * scaled)};
}

}  // namespace vssn

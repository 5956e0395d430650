// What the primitives' two implementations share: written on the primitives themselves. Include primitives.cuh.
#pragma once

namespace vssn::gpu {

template <class T>
VSSN_DEVICE T sum_over_lanes(T value, int width) {
    for (int offset = width / 2; offset > 0; offset /= 2) value += shuffle_xor(value, offset);
    return value;
}

// The functions that cell.h's formulas take, for float32 state. Absolute errors of sigmoid and tanh: about 1e-7.
struct Math {
    using Scalar = float;

    static VSSN_DEVICE float exp(float x) { return gpu::exp(x); }
    static VSSN_DEVICE float expm1(float x) { return gpu::expm1(x); }
    static VSSN_DEVICE float maximum(float a, float b) { return gpu::maximum(a, b); }
    static VSSN_DEVICE float select_positive(float x, float positive, float other) { return x > 0 ? positive : other; }

    // exp of a negative number only: nothing overflows, and NaN stays.
    static VSSN_DEVICE float sigmoid(float x) {
        const float t = gpu::exp(x > 0 ? -x : x);
        return gpu::divide(x > 0 ? 1.0f : t, 1.0f + t);
    }

    static VSSN_DEVICE float tanh(float x) {
        const float magnitude = x > 0 ? x : -x;
        const float t = gpu::exp(-2 * magnitude);
        const float large = gpu::divide(1.0f - t, 1.0f + t);
        const float square = x * x;
        const float small = magnitude * (1.0f - square * (1.0f / 3 - square * (2.0f / 15)));
        const float result = magnitude < 0.1f ? small : large;
        return x > 0 ? result : -result;
    }

    static VSSN_DEVICE float softplus(float x) { return gpu::maximum(x, 0.0f) + gpu::log1p(gpu::exp(x > 0 ? -x : x)); }
};

}  // namespace vssn::gpu

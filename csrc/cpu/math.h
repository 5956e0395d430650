// exp, expm1, log, tanh, sigmoid, log1p and softplus on vectors.
//
// Largest errors, in units in the last place, against the exact value over the whole range where the result is a
// normal number (tests/kernels/test_cpu_math.py checks them):
//             exp   expm1   log   tanh   sigmoid   softplus
//   float     2     3       3     3      3         3
//   double    2     3       3     3      3         3
// Outside: exp goes to 0 and to inf, so that sigmoid reaches 0 and 1: a gate times an infinite state is NaN here where
// it is NaN in PyTorch. NaN gives NaN.
//
// The polynomials interpolate at Chebyshev nodes, computed with 50 digits:
//   expm1(r) = r + r^2 q(r) for |r| <= log(2) / 2,      log1p(u) = 2 s (1 + s^2 w(s^2)) with s = u / (2 + u)
#pragma once

#include <limits>

#include "simd.h"

namespace vssn::VSSN_ISA {

template <class T>
struct Constants;

template <>
struct Constants<float> {
    static constexpr float log2e = 1.44269504f;
    static constexpr float ln2_high = 0.693145751953125f;  // 15 bits: n * ln2_high is exact
    static constexpr float ln2_low = 1.42860682e-6f;
    static constexpr float round = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    static constexpr float exp_min = -88.0f, exp_max = 88.3f, exp_inf = 88.722839f;
    static constexpr float tanh_max = 10.0f;  // tanh is 1 to the last bit from here on
    static constexpr int mantissa_bits = 23;
    static constexpr int exponent_bias = 127;
    static constexpr int32_t root_half = 0x3f3504f3;  // the bits of sqrt(1/2)
    static constexpr float q[] = {0.50000000134658092f,    0.166666666816232314f,   0.0416664649252859054f,
                                  0.00833331092548090083f, 0.00139336499963092504f, 0.000198909908246736538f};
    static constexpr float w[] = {0.333333336602637062f, 0.199998531659648587f, 0.142961789971514189f,
                                  0.108532879004401863f, 0.116121646120116744f};
};

template <>
struct Constants<double> {
    static constexpr double log2e = 1.4426950408889634;
    static constexpr double ln2_high = 0.693147180601954460144;  // 32 bits
    static constexpr double ln2_low = -4.20091507268108473e-11;
    static constexpr double round = 6755399441055744.0;  // 1.5 * 2^52
    static constexpr double exp_min = -709.0, exp_max = 709.3, exp_inf = 709.782712893384;
    static constexpr double tanh_max = 20.0;
    static constexpr int mantissa_bits = 52;
    static constexpr int exponent_bias = 1023;
    static constexpr int64_t root_half = 0x3fe6a09e667f3bcd;
    static constexpr double q[] = {0.5,
                                   0.166666666666666667,
                                   0.0416666666666666768,
                                   0.00833333333333333401,
                                   0.0013888888888879074,
                                   0.000198412698412632991,
                                   0.0000248015873364422379,
                                   2.75573192472187308e-6,
                                   2.75572632790884969e-7,
                                   2.50520710942935468e-8,
                                   2.09181377376427364e-9,
                                   1.60866279567803688e-10};
    static constexpr double w[] = {0.333333333333333334,  0.199999999999997613,  0.142857142858000496,
                                   0.111111110991183853,  0.0909090994898135719, 0.0769227198243027464,
                                   0.0666758931572462792, 0.0586713953065159873, 0.0542258919744000741,
                                   0.0374607189777538365, 0.0781528890046142522};
};

template <class T>
struct VectorMath {
    using Scalar = T;
    using V = Vec<T>;
    using C = Constants<T>;

    // Where x > 0, else: `otherwise` (NaN too).
    static VSSN_INLINE V select_positive(V x, V positive, V otherwise) { return x > V{} ? positive : otherwise; }

    // x within [low, high]; NaN stays.
    static VSSN_INLINE V clamp(V x, T low, T high) {
        const V lower = broadcast(low), upper = broadcast(high);
        x = x < lower ? lower : x;
        return x > upper ? upper : x;
    }

    static VSSN_INLINE V absolute(V x) { return x < V{} ? -x : x; }

    template <int size>
    static VSSN_INLINE V polynomial(const T (&coefficients)[size], V x) {
        V sum = broadcast(coefficients[size - 1]);
        for (int i = size - 2; i >= 0; --i) sum = sum * x + broadcast(coefficients[i]);
        return sum;
    }

    // x = n log(2) + r: scale = 2^n, less_one = expm1(r). Where `lower` has all bits set, scale = 2^(n-1).
    struct Reduced {
        V scale, less_one;
    };
    using Bits = typename VectorOf<T>::Bits;
    static VSSN_INLINE Reduced reduce(V x, Bits lower = Bits{}) {
        const V shifted = x * broadcast(C::log2e) + broadcast(C::round);
        const V n = shifted - broadcast(C::round);
        const V r = (x - n * broadcast(C::ln2_high)) - n * broadcast(C::ln2_low);
        Bits exponent;
        __builtin_memcpy(&exponent, &shifted, sizeof exponent);
        exponent = (exponent + C::exponent_bias + lower) << C::mantissa_bits;
        V scale;
        __builtin_memcpy(&scale, &exponent, sizeof scale);
        return {scale, r + r * r * polynomial(C::q, r)};
    }

    // Below the normal numbers n is one less than the least exponent, whose bits are 0: scale and exp are 0.
    static VSSN_INLINE V bounded_exp(V x) {
        const Reduced e = reduce(clamp(x, C::exp_min, C::exp_max));
        return e.scale + e.scale * e.less_one;
    }

    static VSSN_INLINE V bounded_expm1(V x) {
        const Reduced e = reduce(clamp(x, C::exp_min, C::exp_max));
        return (e.scale - broadcast(T(1))) + e.scale * e.less_one;
    }

    // exp(x) - less. Near the end of the range n is the exponent of infinity: there half of the result is doubled.
    static VSSN_INLINE V exp_less(V x, T less) {
        const Bits above = x > broadcast(C::exp_max);
        const Reduced e = reduce(clamp(x, C::exp_min, C::exp_inf), above);
        const V result = (e.scale - broadcast(less)) + e.scale * e.less_one;
        const V doubled = above ? result + result : result;
        return x > broadcast(C::exp_inf) ? broadcast(std::numeric_limits<T>::infinity()) : doubled;
    }

    static VSSN_INLINE V exp(V x) { return exp_less(x, T(0)); }

    static VSSN_INLINE V expm1(V x) { return exp_less(x, T(1)); }

    static VSSN_INLINE V sigmoid(V x) {
        const V e = bounded_exp(x);  // not inf, which divided by inf would be NaN
        return e / (broadcast(T(1)) + e);
    }

    // expm1(2|x|) / (expm1(2|x|) + 2) with the sign of x: no cancellation near 0.
    static VSSN_INLINE V tanh(V x) {
        const V e = bounded_expm1(clamp(absolute(x), T(0), C::tanh_max) * broadcast(T(2)));
        const V magnitude = e / (e + broadcast(T(2)));
        return x < V{} ? -magnitude : magnitude;
    }

    // For u in [sqrt(1/2) - 1, 1].
    static VSSN_INLINE V log1p(V u) {
        const V s = u / (broadcast(T(2)) + u), square = s * s;
        return (s + s) + (s + s) * square * polynomial(C::w, square);
    }

    // x = 2^n m with m between sqrt(1/2) and sqrt(2), so that nothing cancels near 1. Of 0: -inf; of less: NaN.
    static VSSN_INLINE V log(V x) {
        using Limits = std::numeric_limits<T>;
        const V least = broadcast(Limits::min()), infinity = broadcast(Limits::infinity());
        const V normal = x < least ? x * broadcast(1 / Limits::epsilon()) : x;  // 1 / epsilon = 2^mantissa_bits
        Bits bits;
        __builtin_memcpy(&bits, &normal, sizeof bits);
        const Bits exponent = (bits - C::root_half) >> C::mantissa_bits;
        bits -= exponent << C::mantissa_bits;
        V m;
        __builtin_memcpy(&m, &bits, sizeof m);
        V n = __builtin_convertvector(exponent, V);
        n = x < least ? n - broadcast(T(C::mantissa_bits)) : n;
        const V result = n * broadcast(C::ln2_high) + (log1p(m - broadcast(T(1))) + n * broadcast(C::ln2_low));
        const V outside = x == V{} ? -infinity : x < V{} ? broadcast(Limits::quiet_NaN()) : x;
        return x > V{} ? (x < infinity ? result : outside) : outside;
    }

    static VSSN_INLINE V softplus(V x) { return select_positive(x, x, V{}) + log1p(bounded_exp(-absolute(x))); }
};

template <>
struct VectorMath<BFloat16> : VectorMath<float> {};

}  // namespace vssn::VSSN_ISA

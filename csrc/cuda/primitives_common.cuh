// What the primitives' two implementations share: written on the primitives themselves. Include primitives.cuh.
#pragma once

#include <type_traits>

namespace vssn::gpu {

template <class T>
VSSN_DEVICE T sum_over_lanes(T value, int width) {
    for (int offset = width / 2; offset > 0; offset /= 2) value += shuffle_xor(value, offset);
    return value;
}

// n neighbouring elements, as the words that hold them: what waits in registers for its step. Taken apart behind its
// load, it would be waited for there.
template <class T, int n>
struct Packed {
    static constexpr int kPerWord = 4 / sizeof(T), kWords = n / kPerWord;
    static constexpr int kAccess = kWords < 4 ? kWords : 4;  // words of one access

    uint32_t words[kWords];

    static VSSN_DEVICE Packed zero() { return {}; }
    static VSSN_DEVICE Packed load(const void* p) {
        Packed packed;
#pragma unroll
        for (int i = 0; i < kWords; i += kAccess) {
            const auto part = load_words<kAccess>(static_cast<const T*>(p) + i * kPerWord);
#pragma unroll
            for (int j = 0; j < kAccess; ++j) packed.words[i + j] = part.v[j];
        }
        return packed;
    }
    VSSN_DEVICE void store(void* p) const {
#pragma unroll
        for (int i = 0; i < kWords; i += kAccess) {
            Vector<uint32_t, kAccess> part;
#pragma unroll
            for (int j = 0; j < kAccess; ++j) part.v[j] = words[i + j];
            store_words<kAccess>(static_cast<T*>(p) + i * kPerWord, part);
        }
    }

    template <class... Float>
    static VSSN_DEVICE Packed round(Float... values) {
        static_assert(sizeof...(values) == n);
        const float all[] = {values...};
        Packed packed;
#pragma unroll
        for (int i = 0; i < kWords; ++i)
            if constexpr (kPerWord == 2)
                packed.words[i] = pack<T>(all[2 * i], all[2 * i + 1]);
            else
                packed.words[i] = bits<uint32_t>(all[i]);
        return packed;
    }

    VSSN_DEVICE void set_half(int which, const Packed<T, n / 2>& part) {
#pragma unroll
        for (int i = 0; i < kWords / 2; ++i) words[which * (kWords / 2) + i] = part.words[i];
    }
    VSSN_DEVICE Packed<T, n / 2> half(int which) const {
        Packed<T, n / 2> part;
#pragma unroll
        for (int i = 0; i < kWords / 2; ++i) part.words[i] = words[which * (kWords / 2) + i];
        return part;
    }

    VSSN_DEVICE T element(int i) const {
        if constexpr (kPerWord == 2)
            return bits<T>(static_cast<uint16_t>(words[i / 2] >> i % 2 * 16));
        else
            return bits<T>(words[i]);
    }
    VSSN_DEVICE float operator[](int i) const {
        if constexpr (std::is_same_v<T, bfloat16>)
            return i % 2 ? upper_bfloat16(words[i / 2]) : lower_bfloat16(words[i / 2]);
        else
            return to_float(element(i));
    }
};

// Two neighbouring elements that were loaded for a later step. paired: such pairs are aligned, and lie within the
// tensor together; else each element was loaded by itself.
template <class T, bool paired>
struct Ahead {
    Packed<T, 2> pair;

    // The first `count` of them (<= 0: none); the rest is 0.
    static VSSN_DEVICE Ahead load(const T* p, int count) {
        return {count > 0 ? Packed<T, 2>::load(p) : Packed<T, 2>::zero()};
    }
    static VSSN_DEVICE Ahead zero() { return {Packed<T, 2>::zero()}; }
    // Loads them over what was there, which stays beyond `count`: where nothing is written, nothing waits for an older
    // load of these registers.
    VSSN_DEVICE void reload(const T* p, int count) {
        if (count > 0) pair = Packed<T, 2>::load(p);
    }
    VSSN_DEVICE float operator[](int i) const { return pair[i]; }
};

template <class T>
struct Ahead<T, false> {
    T one, other;

    static VSSN_DEVICE Ahead load(const T* p, int count) {
        return {count > 0 ? p[0] : from_float<T>(0.0f), count > 1 ? p[1] : from_float<T>(0.0f)};
    }
    static VSSN_DEVICE Ahead zero() { return {from_float<T>(0.0f), from_float<T>(0.0f)}; }
    VSSN_DEVICE void reload(const T* p, int count) {
        if (count > 0) one = p[0];
        if (count > 1) other = p[1];
    }
    VSSN_DEVICE float operator[](int i) const { return to_float(i == 0 ? one : other); }
};

// The first `count` of a pair to p, under the same condition.
template <bool paired, class T>
VSSN_DEVICE void store_pair(T* p, const Packed<T, 2>& pair, int count) {
    if constexpr (paired) {
        if (count > 0) pair.store(p);
    } else {
        if (count > 0) p[0] = pair.element(0);
        if (count > 1) p[1] = pair.element(1);
    }
}

// Two elements of a product's right side, rounded as it takes them.
template <class P>
VSSN_DEVICE Packed<typename P::Stored, 2> operands(float first, float second) {
    if constexpr (sizeof(typename P::Stored) == 2)
        return Packed<typename P::Stored, 2>::round(first, second);
    else
        return Packed<float, 2>::round(P::rounded(first), P::rounded(second));
}

// The functions that cell.h's formulas take, for float32 state. Absolute errors of sigmoid and tanh: about 1e-7.
struct Math {
    using Scalar = float;
    static constexpr float kLog2E = 1.4426950408889634f;

    static VSSN_DEVICE float exp(float x) { return gpu::exp(x); }
    static VSSN_DEVICE float expm1(float x) { return gpu::expm1(x); }
    static VSSN_DEVICE float log(float x) { return gpu::log(x); }
    static VSSN_DEVICE float maximum(float a, float b) { return gpu::maximum(a, b); }
    static VSSN_DEVICE float select_positive(float x, float positive, float other) { return x > 0 ? positive : other; }

    // 4 instructions: where 2^y overflows, its reciprocal is the 0 that is wanted, and NaN stays.
    static VSSN_DEVICE float sigmoid(float x) { return gpu::reciprocal(1.0f + gpu::exp2(x * -kLog2E)); }

    static VSSN_DEVICE float tanh(float x) {
        const float large = 1.0f - 2.0f * gpu::reciprocal(1.0f + gpu::exp2(x * (2 * kLog2E)));
        const float square = x * x;
        const float small = x + x * square * (square * (2.0f / 15) - 1.0f / 3);
        return square < 0.01f ? small : large;
    }

    static VSSN_DEVICE float softplus(float x) { return gpu::maximum(x, 0.0f) + gpu::log1p(gpu::exp(x > 0 ? -x : x)); }
};

// With a tanh of one instruction instead of eleven, whose error is a quarter of what rounding its value to bfloat16 is.
// No such sigmoid: of a gate near 1 it is the distance from 1 that counts.
struct MathOfBfloat16 : Math {
    static VSSN_DEVICE float tanh(float x) { return gpu::tanh_approximate(x); }
};

// Of what a kernel with compute type C stores in that precision.
template <class C>
using MathFor = std::conditional_t<std::is_same_v<C, bfloat16>, MathOfBfloat16, Math>;

}  // namespace vssn::gpu

// bfloat16 as a type of storage: the upper half of a float. What is computed from it is float.
#pragma once

#include <stdint.h>

#include <type_traits>

namespace vssn {

struct BFloat16 {
    uint16_t bits;

    BFloat16() = default;
    // To the nearest, to even in the middle; a NaN stays one.
    explicit inline __attribute__((always_inline)) BFloat16(float x) {
        uint32_t whole;
        __builtin_memcpy(&whole, &x, sizeof whole);
        bits = static_cast<uint16_t>((x != x ? whole | 0x400000 : whole + 0x7fff + (whole >> 16 & 1)) >> 16);
    }
    inline __attribute__((always_inline)) BFloat16& operator=(float x) { return *this = BFloat16(x); }
    inline __attribute__((always_inline)) operator float() const {
        const uint32_t whole = uint32_t{bits} << 16;
        float x;
        __builtin_memcpy(&x, &whole, sizeof x);
        return x;
    }
};

// What values of a storage type are computed in.
template <class S>
struct ComputeOf {
    using Type = S;
};
template <>
struct ComputeOf<BFloat16> {
    using Type = float;
};
template <class S>
using Compute = typename ComputeOf<S>::Type;

// Whether a store rounds.
template <class S>
constexpr bool kRounds = !std::is_same_v<S, Compute<S>>;

}  // namespace vssn

// bfloat16, float16 and tf32 as bits, with the roundings of the device: to nearest even, to tf32 with ties away from 0.
#pragma once

#include <cstdint>
#include <cstring>

namespace vssn::gpu {

struct bfloat16 {
    uint16_t bits;
};

struct float16 {
    uint16_t bits;
};

namespace host {

inline uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline float float_of(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

inline bool is_nan(uint32_t bits) { return (bits & 0x7fffffffu) > 0x7f800000u; }

inline bfloat16 round_to_bfloat16(float x) {
    const uint32_t bits = bits_of(x);
    if (is_nan(bits)) return {0x7fff};
    return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

inline float16 round_to_float16(float x) {
    const uint32_t bits = bits_of(x), magnitude = bits & 0x7fffffffu;
    const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
    if (is_nan(bits)) return {0x7fff};
    if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // 65520 and above
    if (magnitude < 0x38800000u) {
        // Subnormal, a multiple of 2^-24: adding 2^-24 times 1.5 * 2^23 lets the processor round to nearest even.
        const float shifted = float_of(magnitude) + 0.75f;
        return {static_cast<uint16_t>(sign | (bits_of(shifted) - bits_of(0.75f)))};
    }
    const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
    return {static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
}

inline float widen(bfloat16 x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }

inline float widen(float16 x) {
    const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7fffu;
    if (magnitude >= 0x7c00u) return float_of(sign | 0x7f800000u | magnitude << 13);
    if (magnitude >= 0x0400u) return float_of(sign | ((magnitude << 13) + 0x38000000u));
    const float small = static_cast<float>(magnitude) * (1.0f / 16777216.0f);
    return sign ? -small : small;
}

inline float round_to_tf32(float x) {
    const uint32_t bits = bits_of(x);
    return (bits & 0x7f800000u) == 0x7f800000u ? x : float_of((bits + 0x1000u) & 0xffffe000u);
}

}  // namespace host
}  // namespace vssn::gpu

// One vector type per scalar type, as wide as the instruction set that this translation unit is compiled for:
// 64 bytes (AVX-512), 32 (AVX2) or 16 (anything else: SSE2, NEON). Written with GCC's vector extensions.
//
// Every kernel file is compiled once per instruction set, with VSSN_ISA naming the set. All code that is compiled
// so stands in namespace vssn::VSSN_ISA: an inline function shared between the sets would let the linker keep
// the AVX-512 copy for all of them.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <utility>

#include "bfloat16.h"

// Part of a vector in one instruction; AddressSanitizer sees plain copies only.
#if defined(__AVX2__) && !defined(__SANITIZE_ADDRESS__)
#include <immintrin.h>
#define VSSN_MASKED_MEMORY
#endif

#define VSSN_INLINE inline __attribute__((always_inline))
// For lambdas. GCC takes one that only prefetches for a function without effect and drops its calls.
#define VSSN_INLINED __attribute__((always_inline))

namespace vssn::VSSN_ISA {

#if defined(__AVX512F__) || defined(VSSN_EMULATED)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

typedef float FloatVector __attribute__((vector_size(kVectorBytes)));
typedef double DoubleVector __attribute__((vector_size(kVectorBytes)));
typedef int32_t Int32Vector __attribute__((vector_size(kVectorBytes)));
typedef int64_t Int64Vector __attribute__((vector_size(kVectorBytes)));

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
    using Type = FloatVector;
    using Bits = Int32Vector;
};
template <>
struct VectorOf<double> {
    using Type = DoubleVector;
    using Bits = Int64Vector;
};

// Of what is computed: loads widen, stores round.
template <>
struct VectorOf<BFloat16> : VectorOf<float> {};
// Pairs of BFloat16, the first one low.
template <>
struct VectorOf<int32_t> {
    using Type = Int32Vector;
    using Bits = Int32Vector;
};

template <class T>
using Vec = typename VectorOf<T>::Type;
template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(Compute<T>));

template <class T, int... lane>
VSSN_INLINE Vec<T> broadcast_lanes(T x, std::integer_sequence<int, lane...>) {
    return Vec<T>{(static_cast<void>(lane), x)...};
}

template <class T>
VSSN_INLINE Vec<T> broadcast(T x) {
    return broadcast_lanes<T>(x, std::make_integer_sequence<int, kLanes<T>>{});
}

template <class T>
VSSN_INLINE Vec<T> load(const T* p) {
    Vec<T> v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}

template <class T>
VSSN_INLINE void store(T* p, Vec<T> v) {
    __builtin_memcpy(p, &v, sizeof v);
}

#if defined(VSSN_MASKED_MEMORY)
#if defined(__AVX512F__)
// Lanes below count, which lies in [0, lanes].
VSSN_INLINE __mmask16 lanes_below(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }
VSSN_INLINE FloatVector load_masked(const float* p, int64_t count) {
    return (FloatVector)_mm512_maskz_loadu_ps(lanes_below(count), p);
}
VSSN_INLINE DoubleVector load_masked(const double* p, int64_t count) {
    return (DoubleVector)_mm512_maskz_loadu_pd(static_cast<__mmask8>(lanes_below(count)), p);
}
VSSN_INLINE void store_masked(float* p, FloatVector v, int64_t count) {
    _mm512_mask_storeu_ps(p, lanes_below(count), (__m512)v);
}
VSSN_INLINE void store_masked(double* p, DoubleVector v, int64_t count) {
    _mm512_mask_storeu_pd(p, static_cast<__mmask8>(lanes_below(count)), (__m512d)v);
}
#else
VSSN_INLINE __m256i lanes_below(int64_t count, Int32Vector) {
    return (__m256i)(Int32Vector{0, 1, 2, 3, 4, 5, 6, 7} < (Int32Vector{} + static_cast<int32_t>(count)));
}
VSSN_INLINE __m256i lanes_below(int64_t count, Int64Vector) {
    return (__m256i)(Int64Vector{0, 1, 2, 3} < (Int64Vector{} + count));
}
VSSN_INLINE FloatVector load_masked(const float* p, int64_t count) {
    return (FloatVector)_mm256_maskload_ps(p, lanes_below(count, Int32Vector{}));
}
VSSN_INLINE DoubleVector load_masked(const double* p, int64_t count) {
    return (DoubleVector)_mm256_maskload_pd(p, lanes_below(count, Int64Vector{}));
}
VSSN_INLINE void store_masked(float* p, FloatVector v, int64_t count) {
    _mm256_maskstore_ps(p, lanes_below(count, Int32Vector{}), (__m256)v);
}
VSSN_INLINE void store_masked(double* p, DoubleVector v, int64_t count) {
    _mm256_maskstore_pd(p, lanes_below(count, Int64Vector{}), (__m256d)v);
}
#endif
#else
template <class T>
VSSN_INLINE Vec<T> load_masked(const T* p, int64_t count) {
    Vec<T> v{};
    __builtin_memcpy(&v, p, static_cast<size_t>(count) * sizeof(T));
    return v;
}
template <class T>
VSSN_INLINE void store_masked(T* p, Vec<T> v, int64_t count) {
    __builtin_memcpy(p, &v, static_cast<size_t>(count) * sizeof(T));
}
#endif

// ---- BFloat16 --------------------------------------------------------------------------------------------

typedef uint16_t HalfBits __attribute__((vector_size(kVectorBytes / 2)));
typedef uint32_t Uint32Vector __attribute__((vector_size(kVectorBytes)));

VSSN_INLINE FloatVector widen(HalfBits bits) {
    return (FloatVector)(__builtin_convertvector(bits, Uint32Vector) << 16);
}

// To the nearest, to even in the middle; the lower half of every lane is then to be ignored.
VSSN_INLINE Uint32Vector rounded_bits(FloatVector v) {
    const Uint32Vector whole = (Uint32Vector)v;
    return v != v ? whole | 0x400000 : whole + 0x7fff + (whole >> 16 & 1);
}
VSSN_INLINE FloatVector rounded(FloatVector v) { return (FloatVector)(rounded_bits(v) & 0xffff0000); }
VSSN_INLINE HalfBits narrow(FloatVector v) { return __builtin_convertvector(rounded_bits(v) >> 16, HalfBits); }

VSSN_INLINE FloatVector load(const BFloat16* p) {
    HalfBits bits;
    __builtin_memcpy(&bits, p, sizeof bits);
    return widen(bits);
}
VSSN_INLINE void store(BFloat16* p, FloatVector v) {
    const HalfBits bits = narrow(v);
    __builtin_memcpy(p, &bits, sizeof bits);
}
#if defined(VSSN_MASKED_MEMORY) && defined(__AVX512F__)
VSSN_INLINE FloatVector load_masked(const BFloat16* p, int64_t count) {
    return widen((HalfBits)_mm256_maskz_loadu_epi16(lanes_below(count), p));
}
VSSN_INLINE void store_masked(BFloat16* p, FloatVector v, int64_t count) {
    _mm256_mask_storeu_epi16(p, lanes_below(count), (__m256i)narrow(v));
}
#else
VSSN_INLINE FloatVector load_masked(const BFloat16* p, int64_t count) {
    HalfBits bits{};
    __builtin_memcpy(&bits, p, static_cast<size_t>(count) * sizeof(BFloat16));
    return widen(bits);
}
VSSN_INLINE void store_masked(BFloat16* p, FloatVector v, int64_t count) {
    const HalfBits bits = narrow(v);
    __builtin_memcpy(p, &bits, static_cast<size_t>(count) * sizeof(BFloat16));
}
#endif

// The first `count` entries at p in pairs, zeros behind them.
VSSN_INLINE Int32Vector load_pairs(const BFloat16* p, int64_t count) {
    Int32Vector pairs{};
    if (count >= 2 * kLanes<float>) {
        __builtin_memcpy(&pairs, p, sizeof pairs);
    } else if (count > 0) {
#if defined(VSSN_MASKED_MEMORY) && defined(__AVX512F__)
        pairs = (Int32Vector)_mm512_maskz_loadu_epi16((1u << count) - 1, p);
#else
        __builtin_memcpy(&pairs, p, static_cast<size_t>(count) * sizeof(BFloat16));
#endif
    }
    return pairs;
}
VSSN_INLINE void store_pairs(BFloat16* p, Int32Vector pairs) { __builtin_memcpy(p, &pairs, sizeof pairs); }

// Lanes of a, then of b, both as loads have widened them.
VSSN_INLINE Int32Vector pair(FloatVector a, FloatVector b) {
    return (Int32Vector)((Uint32Vector)a >> 16 | (Uint32Vector)b);
}

// ---- Parts of vectors, lanes -----------------------------------------------------------------------------

// The first `count` lanes; the others are 0 and their memory is not touched.
template <class T>
VSSN_INLINE Vec<T> load(const T* p, int64_t count) {
    return count >= kLanes<T> ? load(p) : load_masked(p, count);
}

template <class T>
VSSN_INLINE void store(T* p, Vec<T> v, int64_t count) {
    if (count >= kLanes<T>) return store(p, v);
    store_masked(p, v, count);
}

// v with the lanes from `count` on set to 0.
template <class T>
VSSN_INLINE Vec<T> keep(Vec<T> v, int64_t count) {
    if (count >= kLanes<T>) return v;
    Vec<T> kept{};
    __builtin_memcpy(&kept, &v, static_cast<size_t>(count) * sizeof(Compute<T>));
    return kept;
}

template <class T>
VSSN_INLINE Compute<T> sum_lanes(Vec<T> v) {
    Compute<T> lanes[kLanes<T>];
    store(lanes, v);
    for (int width = kLanes<T> / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    return lanes[0];
}

// Starts to bring `count` vectors at p into the first-level cache. The processor's own prefetcher does not follow the
// short pieces of rows that one panel touches.
template <class T>
VSSN_INLINE void prefetch(const T* p, int count = 1) {
#pragma GCC unroll 16
    for (int i = 0; i < count; ++i) __builtin_prefetch(p + i * kLanes<T>);
}

// Swaps the off-diagonal quarters of every square of 2 `half` rows and lanes.
template <class T, int half>
VSSN_INLINE void swap_quarters(Vec<T> (&rows)[kLanes<T>]) {
    constexpr int L = kLanes<T>;
    typename VectorOf<T>::Bits upper{}, lower{};  // lane of (a, b) that each lane of the two results takes
#pragma GCC unroll 16
    for (int lane = 0; lane < L; ++lane) {
        upper[lane] = lane & half ? L + lane - half : lane;
        lower[lane] = lane & half ? L + lane : lane + half;
    }
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) {
        if (i & half) continue;
        const Vec<T> a = rows[i], b = rows[i + half];
        rows[i] = __builtin_shuffle(a, b, upper);
        rows[i + half] = __builtin_shuffle(a, b, lower);
    }
}

template <class T, int half = 1>
VSSN_INLINE void transpose(Vec<T> (&rows)[kLanes<T>]) {
    if constexpr (half < kLanes<T>) {
        swap_quarters<T, half>(rows);
        transpose<T, 2 * half>(rows);
    }
}

}  // namespace vssn::VSSN_ISA

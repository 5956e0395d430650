// What the operands of a product are made of, by the type that a tensor is stored in and by what the processor has.
//
// float and double are their own operands. BFloat16 goes into products as it is where there are instructions for it
// (instructions.h), two entries of a row at a time: a panel holds pairs of its rows, [K / 2][columns][2]. Elsewhere the
// same values are floats, widened as panels are packed, and the kernels for float multiply them.
#pragma once

#include "instructions.h"

namespace vssn::VSSN_ISA {

template <class S>
struct OperandOf {
    using Type = Compute<S>;
};
#if defined(VSSN_BF16_DOTS)
template <>
struct OperandOf<BFloat16> {
    using Type = BFloat16;
};
#endif
template <class S>
using Operand = typename OperandOf<S>::Type;

// The products of operands E: one after another, or in pairs.
template <class E>
struct Products {
    static constexpr int kTogether = 1;  // entries of a row of A that meet as many rows of a panel
    static VSSN_INLINE Vec<E> left(const E* a) { return broadcast(*a); }
    // P: E, or what E is widened from.
    template <class P>
    static VSSN_INLINE Vec<E> right(const P* panel) {
        return load(panel);
    }
    // `count` entries of a row, of kTogether kLanes at most.
    template <class P>
    static VSSN_INLINE Vec<E> part(const P* row, int64_t count) {
        return load(row, count);
    }
    static VSSN_INLINE void add(Vec<E>& sum, Vec<E> x, Vec<E> w) { sum += x * w; }
};

#if defined(VSSN_BF16_DOTS)
template <>
struct Products<BFloat16> {
    static constexpr int kTogether = 2;
    static VSSN_INLINE Int32Vector left(const BFloat16* a) {
        int32_t both;
        __builtin_memcpy(&both, a, sizeof both);
        return broadcast(both);
    }
    static VSSN_INLINE Int32Vector right(const BFloat16* panel) { return load_pairs(panel, 2 * kLanes<float>); }
    static VSSN_INLINE Int32Vector part(const BFloat16* row, int64_t count) { return load_pairs(row, count); }
    static VSSN_INLINE void add(FloatVector& sum, Int32Vector x, Int32Vector w) { sum = dot_pairs(sum, x, w); }
};
#endif

// Whether tiles of AMX multiply.
#if defined(VSSN_BF16_TILES)
template <class E>
constexpr bool kByTiles = std::is_same_v<E, BFloat16>;
#else
template <class E>
constexpr bool kByTiles = false;
#endif

// Rows of A and panels have zeros up to a multiple of so many entries.
template <class E>
constexpr int64_t kDepth = kByTiles<E> ? 32 : Products<E>::kTogether;
template <class E>
VSSN_INLINE int64_t depth(int64_t K) {
    return (K + kDepth<E> - 1) / kDepth<E> * kDepth<E>;
}

// v as it goes into products, for values of the storage type S.
template <class S>
VSSN_INLINE void store_operand(Operand<S>* p, Vec<S> v) {
    if constexpr (kRounds<S> && !kRounds<Operand<S>>)
        store(p, rounded(v));
    else
        store(p, v);
}

template <class S>
VSSN_INLINE Operand<S> operand(Compute<S> x) {
    return Operand<S>(S(x));
}

// The parts of rows that a dot product of an operand E with a row of S takes at a time, and where the operand's row has
// its entries for that: as they come.
template <class E, class S>
struct Dots : Products<E> {
    static VSSN_INLINE auto left(const E* row, int64_t count) { return Products<E>::part(row, count); }
    static VSSN_INLINE auto right(const S* row, int64_t count) { return Products<E>::part(row, count); }
    static VSSN_INLINE int64_t place(int64_t unit) { return unit; }
    static VSSN_INLINE void store_part(E* row, int64_t unit, Vec<S> v) { store_operand<S>(row + unit, v); }
};

// Pairs of BFloat16 are two vectors of floats by a shift and a mask, less work than widening. So of each two vectors of
// the operand the first one has the even entries, the second the odd ones.
template <>
struct Dots<float, BFloat16> {
    static constexpr int kTogether = 2;
    static constexpr int64_t L = kLanes<float>;
    struct Parts {
        FloatVector even, odd;
    };
    static VSSN_INLINE Parts left(const float* row, int64_t) { return {load(row), load(row + L)}; }
    static VSSN_INLINE Parts right(const BFloat16* row, int64_t count) {
        const Uint32Vector pairs = (Uint32Vector)load_pairs(row, count);
        return {(FloatVector)(pairs << 16), (FloatVector)(pairs & 0xffff0000)};
    }
    static VSSN_INLINE void add(FloatVector& sum, const Parts& x, const Parts& w) {
        sum += x.even * w.even;
        sum += x.odd * w.odd;
    }
    static VSSN_INLINE int64_t place(int64_t unit) {
        return unit / (2 * L) * (2 * L) + unit % 2 * L + unit % (2 * L) / 2;
    }
    // unit: the first of L, a multiple of it.
    static VSSN_INLINE void store_part(float* row, int64_t unit, FloatVector v) {
        Int32Vector order{};
#pragma GCC unroll 16
        for (int lane = 0; lane < L; ++lane) order[lane] = lane < L / 2 ? 2 * lane : 2 * lane - static_cast<int>(L) + 1;
        const FloatVector parted = __builtin_shuffle(rounded(v), order);
        constexpr size_t half = sizeof(FloatVector) / 2;
        __builtin_memcpy(row + place(unit), &parted, half);
        __builtin_memcpy(row + place(unit + 1), reinterpret_cast<const char*>(&parted) + half, half);
    }
};

// For all entries at once: what is not written after it is padding.
template <class E>
VSSN_INLINE void fill_zeros(E* p, int64_t count) {
    __builtin_memset(static_cast<void*>(p), 0, static_cast<size_t>(count) * sizeof(E));
}

}  // namespace vssn::VSSN_ISA

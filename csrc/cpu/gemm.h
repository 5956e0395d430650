// The matrix products inside the recurrences: a few rows times packed weights, one register tile at a time.
//
//   C[i, j] = sum_k A[i, k] W[k, j]       A rows of K at any distance; W in panels of `vectors` vectors: [K][vectors L]
//
// A tile is up to kTileRows rows by one panel. Every element is one chain of multiply-adds over k = 0..K-1 in every
// shape of tile, so a row's result does not depend on the rows that share its tile.
#pragma once

#include "simd.h"

namespace vssn::VSSN_ISA {

// As many rows as keep the tile, one row of the panel and a broadcast in the registers.
#if defined(__AVX512F__)
template <int vectors>
constexpr int kTileRows = vectors == 3 ? 8 : 12;
#else
template <int vectors>
constexpr int kTileRows = vectors == 3 ? 4 : 6;
#endif

constexpr int64_t kAlign = 64;  // bytes; also the unit of padding between rows

VSSN_INLINE int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// The distance between rows of a working buffer `width` wide: whole vectors, and never a multiple of 4 KB, at which
// the rows of a tile would compete for the same few lines of the first-level cache.
template <class T>
VSSN_INLINE int64_t row_stride(int64_t width) {
    constexpr int64_t line = kAlign / static_cast<int64_t>(sizeof(T));
    const int64_t lines = round_up(width, line) / line;
    return (lines | 1) * line;
}

template <class T, int vectors>
using Tile = Vec<T>[kTileRows<vectors>][vectors];

template <class T, int vectors, int rows>
__attribute__((noinline)) void multiply_tile(const T* a, int64_t a_stride, const T* panel, int64_t K,
                                             Tile<T, vectors>& out) {
    Vec<T> sum[rows][vectors] = {};
    for (int64_t k = 0; k < K; ++k) {
        Vec<T> w[vectors];
#pragma GCC unroll 16
        for (int j = 0; j < vectors; ++j) w[j] = load(panel + (k * vectors + j) * kLanes<T>);
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i) {
            const Vec<T> x = broadcast(a[i * a_stride + k]);
#pragma GCC unroll 16
            for (int j = 0; j < vectors; ++j) sum[i][j] += x * w[j];
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 16
        for (int j = 0; j < vectors; ++j) out[i][j] = sum[i][j];
}

template <class T, int vectors>
using MultiplyTile = void (*)(const T*, int64_t, const T*, int64_t, Tile<T, vectors>&);

template <class T, int vectors, int... row>
VSSN_INLINE MultiplyTile<T, vectors> choose_tile(int rows, std::integer_sequence<int, row...>) {
    static constexpr MultiplyTile<T, vectors> table[] = {multiply_tile<T, vectors, row + 1>...};
    return table[rows - 1];
}

// Calls finish(first_row, rows, tile) for tiles that cover rows [0, n) of A, all about as tall.
template <class T, int vectors, class Finish>
VSSN_INLINE void multiply_panel(const T* a, int64_t a_stride, int64_t n, const T* panel, int64_t K,
                                const Finish& finish) {
    constexpr int most = kTileRows<vectors>;
    alignas(kAlign) Tile<T, vectors> tile;
    int64_t tiles = (n + most - 1) / most;
    for (int64_t i = 0; i < n; --tiles) {
        const int rows = static_cast<int>((n - i + tiles - 1) / tiles);
        choose_tile<T, vectors>(rows, std::make_integer_sequence<int, most>{})(a + i * a_stride, a_stride, panel, K,
                                                                               tile);
        finish(i, rows, tile);
        i += rows;
    }
}

}  // namespace vssn::VSSN_ISA

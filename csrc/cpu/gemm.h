// The matrix products of rows with packed weights, one register tile at a time.
//
//   C[i, j] = sum_k A[i, k] W[k, j]       A rows of K at any distance; W in panels of `vectors` vectors: [K][vectors L]
//
// A may be several matrices side by side, each a Segment of its columns. A tile is up to kTileRows rows by one panel.
// Every element is one chain of multiply-adds over k = 0..K-1 in every shape of tile, so a row's result does not depend
// on the rows that share its tile.
#pragma once

#include "kernels.h"
#include "simd.h"
#include "threads.h"

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

// Packing: panels from a weight W. Entries outside of W are 0. W is read in whole cache lines.
//
// panel[k][j] = W[first + j][k] for j < units, k < rows: the panel's columns are rows of W (a product with W^T).
// stride: from one of the panel's rows to the next. width: whole vectors.
template <class T>
VSSN_INLINE void pack_transposed(T* panel, int64_t rows, int64_t width, int64_t stride, const Rows<const T>& weight,
                                 int64_t first, int64_t units) {
    constexpr int64_t L = kLanes<T>;
    for (int64_t k = 0; k < rows; k += L)
        for (int64_t j = 0; j < width; j += L) {
            Vec<T> square[L];
            for (int64_t i = 0; i < L; ++i)
                square[i] = j + i < units ? load(weight.row(first + j + i) + k, rows - k) : Vec<T>{};
            transpose<T>(square);
            for (int64_t i = 0; i < L && k + i < rows; ++i) store(panel + (k + i) * stride + j, square[i]);
        }
}

// panels[block][k][j] = W[first + k][block width + j] for k < units, block width + j < columns, for a range of blocks
// panel_stride apart: rows of the panel are rows of W.
template <class T, int vectors>
VSSN_INLINE void pack_rows(T* panels, int64_t panel_stride, Range blocks, int64_t rows, const Rows<const T>& weight,
                           int64_t first, int64_t units, int64_t columns) {
    constexpr int64_t together = 8, L = kLanes<T>;
    for (int64_t begin = 0; begin < rows; begin += together)
        for (int64_t block = blocks.begin; block < blocks.end; ++block)
            for (int64_t k = begin; k < rows && k < begin + together; ++k)
                for (int64_t j = 0; j < vectors; ++j) {
                    const int64_t column = (block * vectors + j) * L, count = k < units ? columns - column : 0;
                    const Vec<T> entries = count > 0 ? load(weight.row(first + k) + column, count) : Vec<T>{};
                    store(panels + block * panel_stride + (k * vectors + j) * L, entries);
                }
}

// [rows, K]: some columns of A.
template <class T>
struct Segment {
    const T* a;
    int64_t stride, K;
};

// Rows [first, first + rows) of A times `panels` panels, panel_stride apart; out: a tile for each.
template <class T, int vectors, int rows, int panels>
__attribute__((noinline)) void multiply_tile(const Segment<T>* segments, int count, int64_t first, const T* panel,
                                             int64_t panel_stride, Tile<T, vectors>* out) {
    Vec<T> sum[panels][rows][vectors] = {};
    for (int s = 0; s < count; ++s) {
        const int64_t stride = segments[s].stride, K = segments[s].K;
        const T* a = segments[s].a + first * stride;
        for (int64_t k = 0; k < K; ++k) {
#pragma GCC unroll 16
            for (int p = 0; p < panels; ++p) {
                Vec<T> w[vectors];
#pragma GCC unroll 16
                for (int j = 0; j < vectors; ++j) w[j] = load(panel + p * panel_stride + (k * vectors + j) * kLanes<T>);
#pragma GCC unroll 16
                for (int i = 0; i < rows; ++i) {
                    const Vec<T> x = broadcast(a[i * stride + k]);
#pragma GCC unroll 16
                    for (int j = 0; j < vectors; ++j) sum[p][i][j] += x * w[j];
                }
            }
        }
        panel += K * vectors * kLanes<T>;
    }
#pragma GCC unroll 16
    for (int p = 0; p < panels; ++p)
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i)
#pragma GCC unroll 16
            for (int j = 0; j < vectors; ++j) out[p][i][j] = sum[p][i][j];
}

// multiply_tile for 1 .. kTileRows rows and one panel.
template <class T, int vectors, int... row>
VSSN_INLINE void multiply_rows(int rows, const Segment<T>* segments, int count, int64_t first, const T* panel,
                               Tile<T, vectors>* out, std::integer_sequence<int, row...>) {
    using Multiply = void (*)(const Segment<T>*, int, int64_t, const T*, int64_t, Tile<T, vectors>*);
    static constexpr Multiply table[] = {multiply_tile<T, vectors, row + 1, 1>...};
    table[rows - 1](segments, count, first, panel, 0, out);
}

constexpr auto nothing_to_expect = [](int64_t, int64_t, int) {};

// Rows [0, n) of A times the panels of `blocks`, in tiles: calls expect(block, first_row, rows) before a tile, to
// prefetch what finish(block, first_row, rows, tile) will read and write after it. A single row takes four panels at a
// time: one would wait for its few chains of additions. K: the columns of all segments.
template <class T, int vectors, class Expect, class Finish>
VSSN_INLINE void multiply(const Segment<T>* segments, int count, int64_t n, const T* panels, Range blocks, int64_t K,
                          const Expect& expect, const Finish& finish) {
    constexpr int most = kTileRows<vectors>, together = 4;
    alignas(kAlign) Tile<T, vectors> tiles[together];
    const int64_t panel_stride = K * vectors * kLanes<T>;
    int64_t block = blocks.begin;
    for (; n == 1 && block + together <= blocks.end; block += together) {
        for (int p = 0; p < together; ++p) expect(block + p, 0, 1);
        multiply_tile<T, vectors, 1, together>(segments, count, 0, panels + block * panel_stride, panel_stride, tiles);
        for (int p = 0; p < together; ++p) finish(block + p, 0, 1, tiles[p]);
    }
    for (; block < blocks.end; ++block) {
        // Tiles about as tall as each other: a last one of a row or two would be slow.
        int64_t left = (n + most - 1) / most;
        for (int64_t i = 0; i < n; --left) {
            const int rows = static_cast<int>((n - i + left - 1) / left);
            expect(block, i, rows);
            multiply_rows<T, vectors>(rows, segments, count, i, panels + block * panel_stride, tiles,
                                      std::make_integer_sequence<int, most>{});
            finish(block, i, rows, tiles[0]);
            i += rows;
        }
    }
}

// The same for an A in one piece.
template <class T, int vectors, class Expect, class Finish>
VSSN_INLINE void multiply(const T* a, int64_t a_stride, int64_t n, const T* panels, Range blocks, int64_t K,
                          const Expect& expect, const Finish& finish) {
    const Segment<T> segment{a, a_stride, K};
    multiply<T, vectors>(&segment, 1, n, panels, blocks, K, expect, finish);
}

}  // namespace vssn::VSSN_ISA

// The matrix products of rows with weights, packed or as they are, one register tile at a time.
//
//   C[i, j] = sum_k A[i, k] W[k, j]       A rows of K at any distance; W in panels of `vectors` vectors: [K][vectors L]
//
// A may be several matrices side by side, each a Segment of its columns. A tile is up to kTileRows rows by one panel.
// Every element is one chain of multiply-adds over k = 0..K-1 in every shape of tile, so a row's result does not depend
// on the rows that share its tile. multiply_dots, for few rows, meets the rows of a W [units, K]: there an element is a
// chain for each lane, and these are folded in one order.
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

// The height of the next tile of so many rows: `most` or fewer, all about equal; a last one of a row or two is slow.
VSSN_INLINE int tile_height(int64_t units, int most) {
    const int64_t tiles = (units + most - 1) / most;
    return static_cast<int>((units + tiles - 1) / tiles);
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

// Where the panels lie: from one to the next, and from one row of a panel to the next. Packed ones follow each other; a
// weight as it is may be read as panels too, as far as these are whole.
template <class T>
struct Panels {
    const T* data;
    int64_t stride, row;
    VSSN_INLINE const T* block(int64_t number) const { return data + number * stride; }
};

template <class T, int vectors>
VSSN_INLINE Panels<T> packed_panels(const T* panels, int64_t K) {
    return {panels, K * vectors * kLanes<T>, vectors * kLanes<T>};
}

// [rows, K]: some columns of A.
template <class T>
struct Segment {
    const T* a;
    int64_t stride, K;
};

// Rows [first, first + rows) of A times `panels` panels from `panel` on; out: a tile for each, added to where `add`.
// One panel: brings a line at `ahead` and after it into the second-level cache with each of its rows.
template <class T, int vectors, int rows, int panels>
__attribute__((noinline)) void multiply_tile(const Segment<T>* segments, int count, int64_t first, const T* panel,
                                             int64_t stride, int64_t row, Tile<T, vectors>* out, bool add,
                                             const T* ahead) {
    Vec<T> sum[panels][rows][vectors] = {};
    if (add)
#pragma GCC unroll 16
        for (int p = 0; p < panels; ++p)
#pragma GCC unroll 16
            for (int i = 0; i < rows; ++i)
#pragma GCC unroll 16
                for (int j = 0; j < vectors; ++j) sum[p][i][j] = out[p][i][j];
    for (int s = 0; s < count; ++s) {
        const int64_t a_stride = segments[s].stride, K = segments[s].K;
        const T* a = segments[s].a + first * a_stride;
        for (int64_t k = 0; k < K; ++k) {
            if (panels == 1) __builtin_prefetch(ahead + k * kLanes<T>, 0, 2);
#pragma GCC unroll 16
            for (int p = 0; p < panels; ++p) {
                Vec<T> w[vectors];
#pragma GCC unroll 16
                for (int j = 0; j < vectors; ++j) w[j] = load(panel + p * stride + k * row + j * kLanes<T>);
#pragma GCC unroll 16
                for (int i = 0; i < rows; ++i) {
                    const Vec<T> x = broadcast(a[i * a_stride + k]);
#pragma GCC unroll 16
                    for (int j = 0; j < vectors; ++j) sum[p][i][j] += x * w[j];
                }
            }
        }
        panel += K * row;
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
                               int64_t panel_row, Tile<T, vectors>* out, bool add, const T* ahead,
                               std::integer_sequence<int, row...>) {
    using Multiply =
        void (*)(const Segment<T>*, int, int64_t, const T*, int64_t, int64_t, Tile<T, vectors>*, bool, const T*);
    static constexpr Multiply table[] = {multiply_tile<T, vectors, row + 1, 1>...};
    table[rows - 1](segments, count, first, panel, 0, panel_row, out, add, ahead);
}

constexpr auto nothing_to_expect = [](int64_t, int64_t, int) {};

constexpr int kTogether = 8;           // tiles that share a part of a panel while it is in the first-level cache
constexpr int64_t kPanelPart = 24576;  // bytes of it

// Rows [first, first + n) of A, at most kTogether tiles of about the same height, times one packed panel: a part of the
// panel after the other, each for all tiles, which keep their sums in `tiles` in between.
template <class T, int vectors, class Expect, class Finish>
VSSN_INLINE void multiply_parts(const Segment<T>* segments, int count, int64_t first, int64_t n, const T* panel,
                                int64_t block, Tile<T, vectors>* tiles, const Expect& expect, const Finish& finish) {
    constexpr int64_t most = kTileRows<vectors>, width = vectors * kLanes<T>;
    constexpr int64_t whole = kPanelPart / (width * static_cast<int64_t>(sizeof(T)));
    constexpr auto heights = std::make_integer_sequence<int, most>{};
    const int64_t number = (n + most - 1) / most;
    const auto row = [&](int64_t tile) { return first + n * tile / number; };
    bool add = false;
    for (int s = 0; s < count; ++s) {
        const int64_t K = segments[s].K, parts = (K + whole - 1) / whole;
        for (int64_t part = 0; part < parts; ++part) {
            const int64_t from = K * part / parts, to = K * (part + 1) / parts;
            const Segment<T> piece{segments[s].a + from, segments[s].stride, to - from};
            const T* next = panel + piece.K * width;  // its lines are brought along by the tiles, each its share
            for (int64_t tile = 0; tile < number; ++tile) {
                const int rows = static_cast<int>(row(tile + 1) - row(tile));
                if (s == count - 1 && part == parts - 1) expect(block, row(tile), rows);
                multiply_rows<T, vectors>(rows, &piece, 1, row(tile), panel, width, tiles + tile, add,
                                          next + tile * piece.K * kLanes<T>, heights);
            }
            panel = next;
            add = true;
        }
    }
    for (int64_t tile = 0; tile < number; ++tile)
        finish(block, row(tile), static_cast<int>(row(tile + 1) - row(tile)), tiles[tile]);
}

// Rows [0, n) of A times the panels of `blocks`, in tiles: calls expect(block, first_row, rows) before a tile, to
// prefetch what finish(block, first_row, rows, tile) will read and write after it. A single row takes four panels at a
// time: one would wait for its few chains of additions.
template <class T, int vectors, class Expect, class Finish>
VSSN_INLINE void multiply(const Segment<T>* segments, int count, int64_t n, const Panels<T>& panels, Range blocks,
                          const Expect& expect, const Finish& finish) {
    constexpr int most = kTileRows<vectors>, together = 4;
    alignas(kAlign) Tile<T, vectors> tiles[kTogether];
    int64_t block = blocks.begin;
    for (; n == 1 && block + together <= blocks.end; block += together) {
        for (int p = 0; p < together; ++p) expect(block + p, 0, 1);
        multiply_tile<T, vectors, 1, together>(segments, count, 0, panels.block(block), panels.stride, panels.row,
                                               tiles, false, nullptr);
        for (int p = 0; p < together; ++p) finish(block + p, 0, 1, tiles[p]);
    }
    const bool in_parts = n > most && panels.stride * static_cast<int64_t>(sizeof(T)) > kPanelPart;  // and so packed
    for (; block < blocks.end; ++block) {
        const T* panel = panels.block(block);
        for (int64_t i = 0; i < n;) {
            const int rows = tile_height(n - i, in_parts ? kTogether * most : most);
            if (in_parts) {
                multiply_parts<T, vectors>(segments, count, i, rows, panel, block, tiles, expect, finish);
            } else {
                expect(block, i, rows);
                multiply_rows<T, vectors>(rows, segments, count, i, panel, panels.row, tiles, false, panel,
                                          std::make_integer_sequence<int, most>{});
                finish(block, i, rows, tiles[0]);
            }
            i += rows;
        }
    }
}

// The same for packed panels over the K columns of all segments.
template <class T, int vectors, class Expect, class Finish>
VSSN_INLINE void multiply(const Segment<T>* segments, int count, int64_t n, const T* panels, Range blocks, int64_t K,
                          const Expect& expect, const Finish& finish) {
    multiply<T, vectors>(segments, count, n, packed_panels<T, vectors>(panels, K), blocks, expect, finish);
}

// The same for an A in one piece.
template <class T, int vectors, class Expect, class Finish>
VSSN_INLINE void multiply(const T* a, int64_t a_stride, int64_t n, const T* panels, Range blocks, int64_t K,
                          const Expect& expect, const Finish& finish) {
    const Segment<T> segment{a, a_stride, K};
    multiply<T, vectors>(&segment, 1, n, panels, blocks, K, expect, finish);
}

// ---- Weights as they are ---------------------------------------------------------------------------------

#if defined(__AVX512F__)
constexpr int kDotRows = 6;
#else
constexpr int kDotRows = 2;
#endif

// Lanes without the bit `half` add two lanes of a, those with it two of b.
template <class T, int half>
VSSN_INLINE Vec<T> fold(Vec<T> a, Vec<T> b) {
    typename VectorOf<T>::Bits first{}, second{};
#pragma GCC unroll 16
    for (int lane = 0; lane < kLanes<T>; ++lane) {
        first[lane] = lane & half ? kLanes<T> + lane - half : lane;
        second[lane] = lane & half ? kLanes<T> + lane : lane + half;
    }
    return __builtin_shuffle(a, b, first) + __builtin_shuffle(a, b, second);
}

// sums[0] gets in each lane a sum of lanes of one of the `count` vectors: of that with the number of the lane's bits
// from `half` on, as far as count goes.
template <class T, int count, int half>
VSSN_INLINE void fold_all(Vec<T>* sums) {
    if constexpr (count > 1) {
#pragma GCC unroll 16
        for (int i = 0; i < count / 2; ++i) sums[i] = fold<T, half>(sums[2 * i], sums[2 * i + 1]);
        fold_all<T, count / 2, 2 * half>(sums);
    }
}

// sums[row * stride]: the products of `rows` rows of A with `units` rows of W, K columns; lane l has that of the unit
// l % units, or a part of it that goes on in the lanes `units` apart.
template <class T, int units, int rows>
__attribute__((noinline)) void dot_tile(const T* a, int64_t a_stride, const T* const* w, int64_t K, Vec<T>* sums,
                                        int stride) {
    constexpr int L = kLanes<T>;
    Vec<T> sum[rows][units] = {};
    const auto add = [&](int64_t k, int64_t lanes) VSSN_INLINED {
        Vec<T> x[rows];
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i) x[i] = load(a + i * a_stride + k, lanes);
#pragma GCC unroll 16
        for (int j = 0; j < units; ++j) {
            const Vec<T> y = load(w[j] + k, lanes);
#pragma GCC unroll 16
            for (int i = 0; i < rows; ++i) sum[i][j] += x[i] * y;
        }
    };
    const int64_t whole = K / L * L;
    for (int64_t k = 0; k < whole; k += L) add(k, L);
    if (whole < K) add(whole, K - whole);
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
        fold_all<T, units, 1>(sum[i]);
        sums[i * stride] = sum[i][0];
    }
}

template <class T, int units, int... row>
VSSN_INLINE void dot_rows(int rows, const T* a, int64_t a_stride, const T* const* w, int64_t K, Vec<T>* sums,
                          int stride, std::integer_sequence<int, row...>) {
    using Dot = void (*)(const T*, int64_t, const T* const*, int64_t, Vec<T>*, int);
    static constexpr Dot table[] = {dot_tile<T, units, row + 1>...};
    table[rows - 1](a, a_stride, w, K, sums, stride);
}

// out[row]: the products of `rows` rows of A, at most kDotRows, with rows [first, first + units) of W, at most kLanes.
template <class T>
void multiply_dots(const T* a, int64_t a_stride, int rows, const Rows<const T>& weight, int64_t first, int64_t units,
                   int64_t K, Vec<T>* out) {
    constexpr int L = kLanes<T>, group = L < 4 ? L : 4, groups = L / group;
    const T* w[L];
    for (int j = 0; j < L; ++j) w[j] = weight.row(first + (j < units ? j : units - 1));
    if (rows == 1) {  // as many chains of additions as there are units
        dot_tile<T, L, 1>(a, a_stride, w, K, out, 1);
        return;
    }
    Vec<T> sums[kDotRows][groups];
    for (int g = 0; g < groups; ++g)
        dot_rows<T, group>(rows, a, a_stride, w + g * group, K, &sums[0][g], groups,
                           std::make_integer_sequence<int, kDotRows>{});
    for (int i = 0; i < rows; ++i) {
        fold_all<T, groups, group>(sums[i]);
        out[i] = sums[i][0];
    }
}

}  // namespace vssn::VSSN_ISA

// The matrix products of rows with weights, packed or as they are, one register tile at a time.
//
//   C[i, j] = sum_k A[i, k] W[k, j]       A rows of K at any distance; W in panels of `vectors` vectors: [K][vectors L]
//
// A may be several matrices side by side, each a Segment of its columns. A tile is up to kTileRows rows by one panel.
// Every element is one chain of multiply-adds over k = 0..K-1 in every shape of tile, so a row's result does not depend
// on the rows that share its tile. multiply_dots, for few rows, meets the rows of a W [units, K]: there an element is a
// chain for each lane, and these are folded in one order.
//
// E is what operands are made of (operands.h), T what they are summed in. Pairs of BFloat16 are two links of a chain;
// on tiles of AMX (products_amx.h) every 32 are two chains, whose sum is a link.
#pragma once

#include "kernels.h"
#include "operands.h"
#include "threads.h"

namespace vssn::VSSN_ISA {

// As many rows as keep the tile, one row of the panel and a broadcast in the registers.
#if defined(__AVX512F__)
template <class E, int vectors>
constexpr int kTileRows = kByTiles<E>    ? 32
                          : vectors == 3 ? 8
                                         : 12;
#else
template <class E, int vectors>
constexpr int kTileRows = kByTiles<E>    ? 32
                          : vectors == 3 ? 4
                                         : 6;
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

template <class E, int vectors>
using Tile = Vec<E>[kTileRows<E, vectors>][vectors];

// Packing: panels from a weight W [., .] of S. Entries outside of W are 0. W is read in whole cache lines.
//
// panel[k][j] = W[first + j][k] for j < units, k < rows: the panel's columns are rows of W (a product with W^T).
// stride: from one of the panel's rows to the next. width: whole vectors.
template <class E, class S>
VSSN_INLINE void pack_transposed(E* panel, int64_t rows, int64_t width, int64_t stride, const Rows<const S>& weight,
                                 int64_t first, int64_t units) {
    constexpr int64_t L = kLanes<E>, together = Products<E>::kTogether;
    using Entry = std::conditional_t<together == 2, int32_t, E>;
    for (int64_t k = 0; k < depth<E>(rows); k += together * L)
        for (int64_t j = 0; j < width; j += L) {
            Vec<Entry> square[L];
            for (int64_t i = 0; i < L; ++i)
                square[i] = j + i < units ? Products<E>::part(weight.row(first + j + i) + k, rows - k) : Vec<Entry>{};
            transpose<Entry>(square);
            for (int64_t i = 0; i < L && k + together * i < depth<E>(rows); ++i) {
                E* row = panel + (k + together * i) * stride + together * j;
                if constexpr (together == 2)
                    store_pairs(row, square[i]);
                else
                    store(row, square[i]);
            }
        }
}

// The next rows of a panel of some vectors (two where they meet in pairs): W[row][column + j] for row < end,
// column + j < columns.
template <class E, class S>
VSSN_INLINE void pack_next(E* target, int vectors, const Rows<const S>& weight, int64_t row, int64_t end,
                           int64_t column, int64_t columns) {
    const auto entries = [&](int64_t row, int64_t column) VSSN_INLINED {
        const int64_t count = row < end ? columns - column : 0;
        return count > 0 ? load(weight.row(row) + column, count) : Vec<S>{};
    };
    for (int j = 0; j < vectors; ++j, column += kLanes<E>) {
        if constexpr (Products<E>::kTogether == 2)
            store_pairs(target + j * 2 * kLanes<E>, pair(entries(row, column), entries(row + 1, column)));
        else
            store(target + j * kLanes<E>, entries(row, column));
    }
}

// panels[block][k][j] = W[first + k][block width + j] for k < units, block width + j < columns, for a range of blocks
// panel_stride apart: rows of the panel are rows of W.
template <class E, int vectors, class S>
VSSN_INLINE void pack_rows(E* panels, int64_t panel_stride, Range blocks, int64_t rows, const Rows<const S>& weight,
                           int64_t first, int64_t units, int64_t columns) {
    constexpr int64_t together = 8, width = vectors * kLanes<E>;
    for (int64_t begin = 0; begin < rows; begin += together)
        for (int64_t block = blocks.begin; block < blocks.end; ++block)
            for (int64_t k = begin; k < rows && k < begin + together; k += Products<E>::kTogether)
                pack_next(panels + block * panel_stride + k * width, vectors, weight, first + k, first + units,
                          block * width, columns);
}

// Where the panels lie: from one to the next, and from one row of a panel to the next. Packed ones follow each other; a
// weight as it is may be read as panels too, as far as these are whole.
template <class P>
struct Panels {
    const P* data;
    int64_t stride, row;
    VSSN_INLINE const P* block(int64_t number) const { return data + number * stride; }
};

template <class E, int vectors>
VSSN_INLINE Panels<E> packed_panels(const E* panels, int64_t K) {
    return {panels, K * vectors * kLanes<E>, vectors * kLanes<E>};
}

// [rows, K]: some columns of A.
template <class E>
struct Segment {
    const E* a;
    int64_t stride, K;
};

// Rows [first, first + rows) of A times `panels` panels from `panel` on; out: a tile for each, added to where `add`.
// One panel: brings a line at `ahead` and after it into the second-level cache with each of its rows.
template <class E, class P, int vectors, int rows, int panels>
__attribute__((noinline)) void multiply_tile(const Segment<E>* segments, int count, int64_t first, const P* panel,
                                             int64_t stride, int64_t row, Tile<E, vectors>* out, bool add,
                                             const P* ahead) {
    using Own = Products<E>;
    Vec<E> sum[panels][rows][vectors] = {};
    if (add)
#pragma GCC unroll 16
        for (int p = 0; p < panels; ++p)
#pragma GCC unroll 16
            for (int i = 0; i < rows; ++i)
#pragma GCC unroll 16
                for (int j = 0; j < vectors; ++j) sum[p][i][j] = out[p][i][j];
    for (int s = 0; s < count; ++s) {
        const int64_t a_stride = segments[s].stride, K = segments[s].K;
        const E* a = segments[s].a + first * a_stride;
        for (int64_t k = 0; k < K; k += Own::kTogether) {
            if (panels == 1) __builtin_prefetch(ahead + k * kLanes<E>, 0, 2);
#pragma GCC unroll 16
            for (int p = 0; p < panels; ++p) {
                decltype(Own::right(panel)) w[vectors];
#pragma GCC unroll 16
                for (int j = 0; j < vectors; ++j)
                    w[j] = Own::right(panel + p * stride + k * row + j * Own::kTogether * kLanes<E>);
#pragma GCC unroll 16
                for (int i = 0; i < rows; ++i) {
                    const auto x = Own::left(a + i * a_stride + k);
#pragma GCC unroll 16
                    for (int j = 0; j < vectors; ++j) Own::add(sum[p][i][j], x, w[j]);
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
template <class E, class P, int vectors, int... row>
VSSN_INLINE void multiply_some(int rows, const Segment<E>* segments, int count, int64_t first, const P* panel,
                               int64_t panel_row, Tile<E, vectors>* out, bool add, const P* ahead,
                               std::integer_sequence<int, row...>) {
    using Multiply =
        void (*)(const Segment<E>*, int, int64_t, const P*, int64_t, int64_t, Tile<E, vectors>*, bool, const P*);
    static constexpr Multiply table[] = {multiply_tile<E, P, vectors, row + 1, 1>...};
    table[rows - 1](segments, count, first, panel, 0, panel_row, out, add, ahead);
}

// products_amx.h: multiply_tile on the tiles of AMX, and their use while one of these lives.
template <int vectors>
void multiply_by_tiles(int rows, const Segment<BFloat16>* segments, int count, int64_t first, const BFloat16* panel,
                       int64_t panel_row, Tile<BFloat16, vectors>* out, bool add);
template <class E>
struct TileUse {};

template <class E, class P, int vectors>
VSSN_INLINE void multiply_rows(int rows, const Segment<E>* segments, int count, int64_t first, const P* panel,
                               int64_t panel_row, Tile<E, vectors>* out, bool add, const P* ahead) {
    if constexpr (kByTiles<E>)
        multiply_by_tiles<vectors>(rows, segments, count, first, panel, panel_row, out, add);
    else
        multiply_some<E, P, vectors>(rows, segments, count, first, panel, panel_row, out, add, ahead,
                                     std::make_integer_sequence<int, kTileRows<E, vectors>>{});
}

constexpr auto nothing_to_expect = [](int64_t, int64_t, int) {};

// Tiles that share a part of a panel while it is in the first-level cache.
template <class E>
constexpr int kTogether = kByTiles<E> ? 3 : 8;
constexpr int64_t kPanelPart = 24576;  // bytes of it

// Rows [first, first + n) of A, at most kTogether tiles of about the same height, times one packed panel: a part of the
// panel after the other, each for all tiles, which keep their sums in `tiles` in between.
template <class E, class P, int vectors, class Expect, class Finish>
VSSN_INLINE void multiply_parts(const Segment<E>* segments, int count, int64_t first, int64_t n, const P* panel,
                                int64_t block, Tile<E, vectors>* tiles, const Expect& expect, const Finish& finish) {
    constexpr int64_t most = kTileRows<E, vectors>, width = vectors * kLanes<E>;
    constexpr int64_t whole = kPanelPart / (width * static_cast<int64_t>(sizeof(P)));
    const int64_t number = (n + most - 1) / most;
    const auto row = [&](int64_t tile) { return first + n * tile / number; };
    bool add = false;
    for (int s = 0; s < count; ++s) {
        const int64_t K = segments[s].K, parts = (K + whole - 1) / whole;
        const auto begin = [&](int64_t part) { return K / kDepth<E> * part / parts * kDepth<E>; };
        for (int64_t part = 0; part < parts; ++part) {
            const Segment<E> piece{segments[s].a + begin(part), segments[s].stride, begin(part + 1) - begin(part)};
            const P* next = panel + piece.K * width;  // its lines are brought along by the tiles, each its share
            for (int64_t tile = 0; tile < number; ++tile) {
                const int rows = static_cast<int>(row(tile + 1) - row(tile));
                if (s == count - 1 && part == parts - 1) expect(block, row(tile), rows);
                multiply_rows<E, P, vectors>(rows, &piece, 1, row(tile), panel, width, tiles + tile, add,
                                             next + tile * piece.K * kLanes<E>);
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
template <class E, int vectors, class P, class Expect, class Finish>
VSSN_INLINE void multiply(const Segment<E>* segments, int count, int64_t n, const Panels<P>& panels, Range blocks,
                          const Expect& expect, const Finish& finish) {
    constexpr int most = kTileRows<E, vectors>, together = 4;
    [[maybe_unused]] const TileUse<E> use;
    alignas(kAlign) Tile<E, vectors> tiles[kTogether<E>];
    int64_t block = blocks.begin;
    if constexpr (!kByTiles<E>)
        for (; n == 1 && block + together <= blocks.end; block += together) {
            for (int p = 0; p < together; ++p) expect(block + p, 0, 1);
            multiply_tile<E, P, vectors, 1, together>(segments, count, 0, panels.block(block), panels.stride,
                                                      panels.row, tiles, false, nullptr);
            for (int p = 0; p < together; ++p) finish(block + p, 0, 1, tiles[p]);
        }
    const bool in_parts = n > most && panels.stride * static_cast<int64_t>(sizeof(P)) > kPanelPart;  // and so packed
    for (; block < blocks.end; ++block) {
        const P* panel = panels.block(block);
        for (int64_t i = 0; i < n;) {
            const int rows = tile_height(n - i, in_parts ? kTogether<E> * most : most);
            if (in_parts) {
                multiply_parts<E, P, vectors>(segments, count, i, rows, panel, block, tiles, expect, finish);
            } else {
                expect(block, i, rows);
                multiply_rows<E, P, vectors>(rows, segments, count, i, panel, panels.row, tiles, false, panel);
                finish(block, i, rows, tiles[0]);
            }
            i += rows;
        }
    }
}

// The same for packed panels over the K columns of all segments.
template <class E, int vectors, class Expect, class Finish>
VSSN_INLINE void multiply(const Segment<E>* segments, int count, int64_t n, const E* panels, Range blocks, int64_t K,
                          const Expect& expect, const Finish& finish) {
    multiply<E, vectors>(segments, count, n, packed_panels<E, vectors>(panels, K), blocks, expect, finish);
}

// The same for an A in one piece.
template <class E, int vectors, class Expect, class Finish>
VSSN_INLINE void multiply(const E* a, int64_t a_stride, int64_t n, const E* panels, Range blocks, int64_t K,
                          const Expect& expect, const Finish& finish) {
    const Segment<E> segment{a, a_stride, K};
    multiply<E, vectors>(&segment, 1, n, panels, blocks, K, expect, finish);
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
template <class E, class S, int units, int rows>
__attribute__((noinline)) void dot_tile(const E* a, int64_t a_stride, const S* const* w, int64_t K, Vec<E>* sums,
                                        int stride) {
    using Own = Dots<E, S>;
    constexpr int L = Own::kTogether * kLanes<E>;
    Vec<E> sum[rows][units] = {};
    const auto add = [&](int64_t k, int64_t lanes) VSSN_INLINED {
        decltype(Own::left(a, lanes)) x[rows];
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i) x[i] = Own::left(a + i * a_stride + k, lanes);
#pragma GCC unroll 16
        for (int j = 0; j < units; ++j) {
            const auto y = Own::right(w[j] + k, lanes);
#pragma GCC unroll 16
            for (int i = 0; i < rows; ++i) Own::add(sum[i][j], x[i], y);
        }
    };
    const int64_t whole = K / L * L;
    for (int64_t k = 0; k < whole; k += L) add(k, L);
    if (whole < K) add(whole, K - whole);
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
        fold_all<E, units, 1>(sum[i]);
        sums[i * stride] = sum[i][0];
    }
}

template <class E, class S, int units, int... row>
VSSN_INLINE void dot_rows(int rows, const E* a, int64_t a_stride, const S* const* w, int64_t K, Vec<E>* sums,
                          int stride, std::integer_sequence<int, row...>) {
    using Dot = void (*)(const E*, int64_t, const S* const*, int64_t, Vec<E>*, int);
    static constexpr Dot table[] = {dot_tile<E, S, units, row + 1>...};
    table[rows - 1](a, a_stride, w, K, sums, stride);
}

// out[row]: the products of `rows` rows of A, at most kDotRows, with rows [first, first + units) of W, at most kLanes.
template <class E, class S>
void multiply_dots(const E* a, int64_t a_stride, int rows, const Rows<const S>& weight, int64_t first, int64_t units,
                   int64_t K, Vec<E>* out) {
    constexpr int L = kLanes<E>, group = L < 4 ? L : 4, groups = L / group;
    const S* w[L];
    for (int j = 0; j < L; ++j) w[j] = weight.row(first + (j < units ? j : units - 1));
    if (rows == 1) {  // as many chains of additions as there are units
        dot_tile<E, S, L, 1>(a, a_stride, w, K, out, 1);
        return;
    }
    Vec<E> sums[kDotRows][groups];
    for (int g = 0; g < groups; ++g)
        dot_rows<E, S, group>(rows, a, a_stride, w + g * group, K, &sums[0][g], groups,
                              std::make_integer_sequence<int, kDotRows>{});
    for (int i = 0; i < rows; ++i) {
        fold_all<E, groups, group>(sums[i]);
        out[i] = sums[i][0];
    }
}

}  // namespace vssn::VSSN_ISA

#if defined(VSSN_BF16_TILES)
#include "products_amx.h"
#endif

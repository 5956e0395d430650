// Gradients of weights and biases: sums over rows of outer products, straight from the rows, or from a copy of some of
// them.
//
//   out[m, k] = sum_n g[n, m] x[n, k]          g [N, M], x [N, K] of S with any distance between rows
//   sums[m]   = sum_n g[n, m]
//
// Threads share m. An element is a chain of multiply-adds over each kGradientRows rows, and a chain of these sums: the
// bits do not depend on the threads. Rows of BFloat16 are always copied: widened, or turned and in pairs for gemm.h's
// products.
#pragma once

#include "panels.h"

namespace vssn::VSSN_ISA {

constexpr int64_t kGradientRows = 192;  // so that what a tile reads stays in the cache for the next one
constexpr int64_t kCopyBytes = 1024;    // rows of x as long repay the copies
constexpr int64_t kFewRows = 16;        // as few cost less than the writes of out, which are then made row by row

template <class S>
struct WeightGradient {
    Rows<const S> g;  // [N, M]
    Rows<const S> x;  // [N, K]
    int64_t N, M, K;
    Compute<S>* out;  // [M, K]
    int64_t stride;
    bool add;  // to what out holds
};

// rows [0, n) of one tile; count: columns from the tile's first one on.
template <class T, int vectors, int rows, bool full>
__attribute__((noinline)) void gradient_tile(const T* g, int64_t g_stride, const T* x, int64_t x_stride, int64_t n,
                                             int64_t count, T* out, int64_t out_stride, bool add) {
    constexpr int L = kLanes<T>;
    Vec<T> sum[rows][vectors] = {};
    for (int64_t row = 0; row < n; ++row) {
        Vec<T> w[vectors];
#pragma GCC unroll 16
        for (int j = 0; j < vectors; ++j)
            w[j] = full || j < vectors - 1 ? load(x + row * x_stride + j * L)
                                           : load_masked(x + row * x_stride + j * L, count - j * L);
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i) {
            const Vec<T> factor = broadcast(g[row * g_stride + i]);
#pragma GCC unroll 16
            for (int j = 0; j < vectors; ++j) sum[i][j] += factor * w[j];
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 16
        for (int j = 0; j < vectors; ++j) {
            T* target = out + i * out_stride + j * L;
            const int64_t lanes = full ? L : count - j * L;
            store(target, add ? load(target, lanes) + sum[i][j] : sum[i][j], lanes);
        }
}

template <class T, int vectors, bool full, int... row>
VSSN_INLINE void gradient_rows(int rows, const T* g, int64_t g_stride, const T* x, int64_t x_stride, int64_t n,
                               int64_t count, T* out, int64_t out_stride, bool add,
                               std::integer_sequence<int, row...>) {
    using Tile = void (*)(const T*, int64_t, const T*, int64_t, int64_t, int64_t, T*, int64_t, bool);
    static constexpr Tile table[] = {gradient_tile<T, vectors, row + 1, full>...};
    table[rows - 1](g, g_stride, x, x_stride, n, count, out, out_stride, add);
}

// Copies of what the tiles read, where the rows lie far apart: rows a power of two apart share few lines of the caches.
template <class T>
struct GradientCopies {
    static constexpr int64_t kUnits = 128, kStride = kUnits + kAlign / sizeof(T);  // an odd number of cache lines
    alignas(kAlign) T g[kGradientRows * kStride];                                  // [n][units]
    alignas(kAlign) T x[kGradientRows * 3 * kLanes<T>];                            // [n][the panel's columns]
};

// A row's units lie side by side: they are copied row by row, each line of them read once, the next ones on their way.
template <class S>
void copy_units(const WeightGradient<S>& k, Range units, int64_t from, int64_t n, GradientCopies<Compute<S>>* copies) {
    const S* g = k.g.row(from) + units.begin;
    Compute<S>* copy = copies->g;
    for (int64_t row = 0; row < n; ++row, g += k.g.stride, copy += copies->kStride)
        for (int64_t m = 0; m < units.end - units.begin; m += kLanes<S>) {
            prefetch(g + 4 * k.g.stride + m);
            store(copy + m, load(g + m, units.end - units.begin - m));
        }
}

// The rows [from, from + n) for the units m and one panel of columns.
template <int vectors, class S>
VSSN_INLINE void gradient_panel(const WeightGradient<S>& k, Range units, int64_t column, int64_t from, int64_t n,
                                bool add, GradientCopies<Compute<S>>* copies) {
    using T = Compute<S>;
    constexpr int L = kLanes<T>, most = kTileRows<T, vectors>, width = vectors * L;
    constexpr auto sizes = std::make_integer_sequence<int, most>{};
    const int64_t count = k.K - column;
    const T* x = nullptr;
    int64_t x_stride = width;
    if (copies) {
        const S* rows = k.x.row(from) + column;
        for (int64_t row = 0; row < n; ++row) {
            prefetch(rows + (row + 8) * k.x.stride, vectors);
            for (int j = 0; j < vectors; ++j) {
                const int64_t lanes = count - j * L;
                store(copies->x + row * width + j * L, load(rows + row * k.x.stride + j * L, lanes));
            }
        }
        x = copies->x;
    } else if constexpr (!kRounds<S>) {
        x = k.x.row(from) + column;
        x_stride = k.x.stride;
    }
    for (int64_t m = units.begin; m < units.end;) {
        const int rows = tile_height(units.end - m, most);
        const T* g = nullptr;
        int64_t g_stride = GradientCopies<T>::kStride;
        if (copies) {
            g = copies->g + (m - units.begin);
        } else if constexpr (!kRounds<S>) {
            g = k.g.row(from) + m;
            g_stride = k.g.stride;
        }
        T* out = k.out + m * k.stride + column;
        if (add)
            for (int i = 0; i < rows; ++i) prefetch(out + i * k.stride, vectors);
        if (count >= width)
            gradient_rows<T, vectors, true>(rows, g, g_stride, x, x_stride, n, count, out, k.stride, add, sizes);
        else
            gradient_rows<T, vectors, false>(rows, g, g_stride, x, x_stride, n, count, out, k.stride, add, sizes);
        m += rows;
    }
}

#if defined(VSSN_BF16_DOTS)

// The copies for products of pairs: rows of g become columns, rows of x a panel.
struct PairCopies {
    static constexpr int64_t kUnits = 128, kStride = kGradientRows + 32;  // an odd number of cache lines
    alignas(kAlign) BFloat16 g[kUnits * kStride];                         // [units][n]
    alignas(kAlign) BFloat16 x[kGradientRows * 3 * kLanes<float>];        // [n / 2][the panel's columns][2]
};

// copies->g of the units, with zeros behind the n rows.
inline void copy_units(const WeightGradient<BFloat16>& k, Range units, int64_t from, int64_t n, PairCopies* copies) {
    constexpr int64_t L = kLanes<float>;
    for (int64_t row = 0; row < depth<BFloat16>(n); row += L)
        for (int64_t m = units.begin; m < units.end; m += L) {
            FloatVector square[L];
            for (int64_t i = 0; i < L; ++i)
                square[i] = row + i < n ? load(k.g.row(from + row + i) + m, units.end - m) : FloatVector{};
            transpose<float>(square);
            for (int64_t i = 0; i < L && m + i < units.end; ++i)
                store(copies->g + (m - units.begin + i) * copies->kStride + row, square[i]);
        }
}

template <int vectors>
VSSN_INLINE void gradient_panel(const WeightGradient<BFloat16>& k, Range units, int64_t column, int64_t from, int64_t n,
                                bool add, PairCopies* copies) {
    using E = BFloat16;
    constexpr int64_t L = kLanes<E>, width = vectors * L;
    for (int64_t row = 0; row < depth<E>(n); row += 2)
        pack_next(copies->x + row * width, vectors, k.x, from + row, from + n, column, k.K);
    const Segment<E> g{copies->g, copies->kStride, depth<E>(n)};
    alignas(kAlign) Tile<E, vectors> tile;
    for (int64_t m = units.begin; m < units.end;) {
        const int rows = tile_height(units.end - m, kTileRows<E, vectors>);
        multiply_rows<E, E, vectors>(rows, &g, 1, m - units.begin, copies->x, width, &tile, false, copies->x);
        for (int i = 0; i < rows; ++i, ++m)
            for (int j = 0; j < vectors; ++j) {
                float* target = k.out + m * k.stride + column + j * L;
                const int64_t lanes = k.K - column - j * L;
                store(target, add ? load(target, lanes) + tile[i][j] : tile[i][j], lanes);
            }
    }
}

#endif

template <class S, class Copies>
VSSN_INLINE void gradient_panels(const WeightGradient<S>& k, const PanelPlan<Compute<S>>& plan, Range units,
                                 int64_t from, int64_t n, bool add, Copies* copies) {
    for (int64_t panel = 0; panel < plan.count(); ++panel) {
        const int64_t column = plan.first_column(panel);
        if (plan.vectors(panel) == 3)
            gradient_panel<3>(k, units, column, from, n, add, copies);
        else if (plan.vectors(panel) == 2)
            gradient_panel<2>(k, units, column, from, n, add, copies);
        else
            gradient_panel<1>(k, units, column, from, n, add, copies);
    }
}

template <class S>
__attribute__((noinline)) void gradient_by_copies(const WeightGradient<S>& k, const PanelPlan<Compute<S>>& plan,
                                                  Range units, int64_t from, int64_t n, bool add) {
    using T = Compute<S>;
    const auto run = [&](auto& copies, const auto& copy_some) VSSN_INLINED {
        for (int64_t m = units.begin; m < units.end; m += copies.kUnits) {
            const Range some{m, units.end - m < copies.kUnits ? units.end : m + copies.kUnits};
            copy_some(some);
            gradient_panels(k, plan, some, from, n, add, &copies);
        }
    };
#if defined(VSSN_BF16_DOTS)
    if constexpr (kRounds<S>) {
        [[maybe_unused]] const TileUse<S> use;
        PairCopies copies;
        return run(copies, [&](Range some) { copy_units(k, some, from, n, &copies); });
    }
#endif
    if constexpr (!kRounds<Operand<S>>) {
        GradientCopies<T> copies;
        run(copies, [&](Range some) { copy_units(k, some, from, n, &copies); });
    }
}

// This thread's part of out. `turn` moves the parts on: short ones of several products fall to different threads.
template <class S>
void weight_gradient(const WeightGradient<S>& k, Team team, int turn) {
    using T = Compute<S>;
    const PanelPlan<T> plan(k.K);
    const Range units = share(k.M, (team.rank + turn) % team.size, team.size, 4);
    if (units.begin == units.end) return;
    GradientCopies<T>* const none = nullptr;
    if (!kRounds<S> && k.N <= kFewRows) {
        for (int64_t m = units.begin, rows; m < units.end; m += rows) {
            rows = tile_height(units.end - m, kTileRows<T, 3>);
            gradient_panels(k, plan, {m, m + rows}, 0, k.N, k.add, none);
        }
        return;
    }
    const bool copy = kRounds<S> || k.K * static_cast<int64_t>(sizeof(T)) >= kCopyBytes;
    for (int64_t from = 0; from == 0 || from < k.N; from += kGradientRows) {  // without rows there are zeros to write
        const int64_t n = k.N - from < kGradientRows ? k.N - from : kGradientRows;
        const bool add = k.add || from > 0;
        if (copy)
            gradient_by_copies(k, plan, units, from, n, add);
        else
            gradient_panels(k, plan, units, from, n, add, none);
    }
}

// This thread's part of sums [M]: some cache lines of a row at a time, as single ones far apart come slowly.
template <class S>
void bias_gradient(const Rows<const S>& g, int64_t N, int64_t M, Compute<S>* sums, Team team, int turn) {
    constexpr int64_t L = kLanes<S>, V = 4;
    const Range units = share(M, (team.rank + turn) % team.size, team.size, L);
    for (int64_t m = units.begin; m < units.end; m += V * L) {
        const auto count = [&](int64_t j) VSSN_INLINED { return units.end - m > j * L ? units.end - m - j * L : 0; };
        const auto add_row = [&](Vec<S>(&sum)[V], int64_t row) VSSN_INLINED {
            for (int64_t j = 0; j < V; ++j) {
                prefetch(g.row(row + 8) + m + j * L);
                sum[j] += load(g.row(row) + m + j * L, count(j));
            }
        };
        Vec<S> total[V] = {};
        for (int64_t from = 0; from < N; from += kGradientRows) {
            Vec<S> even[V] = {}, odd[V] = {};
            const int64_t end = N - from < kGradientRows ? N : from + kGradientRows;
            int64_t row = from;
            for (; row + 2 <= end; row += 2) {
                add_row(even, row);
                add_row(odd, row + 1);
            }
            if (row < end) add_row(even, row);
            for (int64_t j = 0; j < V; ++j) total[j] += even[j] + odd[j];
        }
        for (int64_t j = 0; j < V; ++j) store(sums + m + j * L, total[j], count(j));
    }
}

}  // namespace vssn::VSSN_ISA

// Gradients of weights and biases: sums over rows of outer products, straight from the rows, without packing.
//
//   out[m, k] = sum_n g[n, m] x[n, k]          g [N, M], x [N, K] with any distance between rows
//   sums[m]   = sum_n g[n, m]
//
// Threads share m. An element is a chain of multiply-adds over each kGradientRows rows, and a chain of these sums: the
// bits do not depend on the threads.
#pragma once

#include "panels.h"

namespace vssn::VSSN_ISA {

constexpr int64_t kGradientRows = 256;  // so that what a tile reads stays in the cache for the next one

template <class T>
struct WeightGradient {
    Rows<const T> g;  // [N, M]
    Rows<const T> x;  // [N, K]
    int64_t N, M, K;
    T* out;  // [M, K]
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

// The rows [from, from + n) for the units m and one panel of columns.
template <class T, int vectors>
VSSN_INLINE void gradient_panel(const WeightGradient<T>& k, Range units, int64_t column, int64_t from, int64_t n,
                                bool add) {
    constexpr int most = kTileRows<vectors>;
    constexpr auto sizes = std::make_integer_sequence<int, most>{};
    const int64_t count = k.K - column, m_count = units.end - units.begin;
    int64_t left = (m_count + most - 1) / most;
    for (int64_t m = units.begin; m < units.end; --left) {
        const int rows = static_cast<int>((units.end - m + left - 1) / left);
        const T *g = k.g.row(from) + m, *x = k.x.row(from) + column;
        T* out = k.out + m * k.stride + column;
        if (count >= vectors * kLanes<T>)
            gradient_rows<T, vectors, true>(rows, g, k.g.stride, x, k.x.stride, n, count, out, k.stride, add, sizes);
        else
            gradient_rows<T, vectors, false>(rows, g, k.g.stride, x, k.x.stride, n, count, out, k.stride, add, sizes);
        m += rows;
    }
}

// This thread's part of out. `turn` moves the parts on: short ones of several products fall to different threads.
template <class T>
void weight_gradient(const WeightGradient<T>& k, Team team, int turn) {
    const PanelPlan<T> plan(k.K);
    const Range units = share(k.M, (team.rank + turn) % team.size, team.size, 4);
    if (units.begin == units.end) return;
    for (int64_t from = 0; from < k.N || from == 0; from += kGradientRows) {
        const int64_t n = k.N - from < kGradientRows ? k.N - from : kGradientRows;
        const bool add = k.add || from > 0;
        for (int64_t panel = 0; panel < plan.count(); ++panel) {
            const int64_t column = plan.first_column(panel);
            if (plan.vectors(panel) == 3)
                gradient_panel<T, 3>(k, units, column, from, n, add);
            else if (plan.vectors(panel) == 2)
                gradient_panel<T, 2>(k, units, column, from, n, add);
            else
                gradient_panel<T, 1>(k, units, column, from, n, add);
        }
    }
}

// This thread's part of sums [M].
template <class T>
void bias_gradient(const Rows<const T>& g, int64_t N, int64_t M, T* sums, Team team, int turn) {
    constexpr int64_t L = kLanes<T>;
    const Range units = share(M, (team.rank + turn) % team.size, team.size, L);
    for (int64_t m = units.begin; m < units.end; m += L) {
        const int64_t count = units.end - m;
        Vec<T> total{};
        for (int64_t from = 0; from < N; from += kGradientRows) {
            Vec<T> sum[4] = {};
            const int64_t end = N - from < kGradientRows ? N : from + kGradientRows;
            int64_t row = from;
            for (; row + 4 <= end; row += 4)
                for (int i = 0; i < 4; ++i) sum[i] += load(g.row(row + i) + m, count);
            for (; row < end; ++row) sum[0] += load(g.row(row) + m, count);
            total += (sum[0] + sum[1]) + (sum[2] + sum[3]);
        }
        store(sums + m, total, count);
    }
}

}  // namespace vssn::VSSN_ISA

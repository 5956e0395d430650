// Products with a weight of any width: its columns cut into panels of 3, 2 or 1 vectors, so that little of a tile is
// padding.
#pragma once

#include "gemm.h"

namespace vssn::VSSN_ISA {

// Panels of 3 vectors, then at most two of 2; one of 1 alone.
template <class T>
struct PanelPlan {
    int64_t columns, threes, twos, ones;

    VSSN_INLINE explicit PanelPlan(int64_t columns) : columns(columns), ones(0) {
        const int64_t vectors = (columns + kLanes<T> - 1) / kLanes<T>;
        twos = vectors % 3 == 0 ? 0 : 3 - vectors % 3;
        if (vectors == 1) {
            twos = 0;
            ones = 1;
        }
        threes = (vectors - 2 * twos - ones) / 3;
    }
    VSSN_INLINE int64_t count() const { return threes + twos + ones; }
    VSSN_INLINE int vectors(int64_t panel) const { return panel < threes ? 3 : panel < threes + twos ? 2 : 1; }
    VSSN_INLINE int64_t first_column(int64_t panel) const {
        return (panel < threes ? 3 * panel : threes + 2 * panel) * kLanes<T>;
    }
    // Of all panels over K rows.
    VSSN_INLINE int64_t size(int64_t K) const { return (3 * threes + 2 * twos + ones) * kLanes<T> * K; }
};

// Where rows [row, ...) of a panel begin, in the memory of all panels over K rows.
template <class T>
VSSN_INLINE T* panel_rows(T* packed, const PanelPlan<T>& plan, int64_t panel, int64_t K, int64_t row) {
    return packed + plan.first_column(panel) * K + row * plan.vectors(panel) * kLanes<T>;
}

// Rows [row, row + inputs) of the panels, and zeros up to whole depth, get W^T: [k][j] = W[first + j][k], for
// W [columns, inputs] from row `first` on.
template <class E, class S>
void pack_panels_transposed(E* packed, const PanelPlan<E>& plan, Range panels, int64_t K, int64_t row,
                            const Rows<const S>& weight, int64_t first, int64_t inputs) {
    for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
        const int64_t column = plan.first_column(panel), width = plan.vectors(panel) * kLanes<E>;
        pack_transposed(panel_rows(packed, plan, panel, K, row), inputs, width, width, weight, first + column,
                        plan.columns - column);
    }
}

// Rows [row, row + rows) of the panels, and zeros up to whole depth, get W: [k][j] = W[first + k][j], for W [.,
// columns].
template <class E, class S>
void pack_panels(E* packed, const PanelPlan<E>& plan, Range panels, int64_t K, int64_t row, const Rows<const S>& weight,
                 int64_t first, int64_t rows) {
    for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
        const int vectors = plan.vectors(panel);
        E* target = panel_rows(packed, plan, panel, K, row);
        for (int64_t k = 0; k < depth<E>(rows); k += Products<E>::kTogether)
            pack_next(target + k * vectors * kLanes<E>, vectors, weight, first + k, first + rows,
                      plan.first_column(panel), plan.columns);
    }
}

// Rows [0, n) of A times all panels over K rows: calls expect(column, vectors, first_row, rows) before a tile, to
// prefetch what finish(column, first_row, rows, tile) will write after it.
template <class E, class Expect, class Finish>
VSSN_INLINE void multiply_panels(const Segment<E>* segments, int count, int64_t n, const E* packed,
                                 const PanelPlan<E>& plan, int64_t K, const Expect& expect, const Finish& finish) {
    constexpr int64_t L = kLanes<E>;
    const auto run = [&](auto vectors, int64_t panels, int64_t from) VSSN_INLINED {
        constexpr int V = decltype(vectors)::value;
        multiply<E, V>(
            segments, count, n, packed, {0, panels}, K,
            [&](int64_t block, int64_t first, int rows) VSSN_INLINED { expect(from + block * V * L, V, first, rows); },
            [&](int64_t block, int64_t first, int rows, const Tile<E, V>& tile)
                VSSN_INLINED { finish(from + block * V * L, first, rows, tile); });
        packed += V * L * K * panels;
    };
    run(std::integral_constant<int, 3>{}, plan.threes, 0);
    run(std::integral_constant<int, 2>{}, plan.twos, 3 * L * plan.threes);
    run(std::integral_constant<int, 1>{}, plan.ones, 0);
}

// `vectors` of each of some rows.
template <class T>
VSSN_INLINE void prefetch_rows(const T* first, int64_t stride, int rows, int vectors) {
    for (int i = 0; i < rows; ++i) prefetch(first + i * stride, vectors);
}

template <class E, int vectors>
constexpr int tile_vectors(const Tile<E, vectors>&) {
    return vectors;
}

}  // namespace vssn::VSSN_ISA

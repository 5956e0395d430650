// What kernels on blocks of units share: their counts and what of a sequence is padding or not given.
#pragma once

#include "gemm.h"
#include "rows.h"

namespace vssn::VSSN_ISA {

template <class T>
constexpr int64_t kWide = 2 * kLanes<T>;  // units in a block of two vectors

VSSN_INLINE int64_t count_blocks(int64_t units, int64_t width) { return (units + width - 1) / width; }
VSSN_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Zeros for the rows that have ended, in the columns [from, to) of step t of a sequence [T, B, width].
template <class S>
VSSN_INLINE void zero_padding(S* sequence, int64_t t, int64_t B, int64_t width, const RowList& list, int64_t from,
                              int64_t to) {
    for (int64_t i = list.active; i < list.count; ++i) {
        S* row = sequence + (t * B + list.rows[i]) * width;
        for (int64_t unit = from; unit < smaller(to, width); ++unit) row[unit] = 0;
    }
}

template <class S>
VSSN_INLINE Vec<S> load_or_zero(const Steps<const S>& steps, int64_t t, int64_t b, int64_t unit, int64_t count) {
    return steps.data ? load(steps.row(t, b) + unit, count) : Vec<S>{};
}

}  // namespace vssn::VSSN_ISA

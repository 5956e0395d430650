// What the posterior's kernels read and write in global memory: the rows of a batch tile, and tiles of units of a
// sequence as they are loaded and stored.
#pragma once

#include "posterior_fragments.cuh"

namespace vssn::posterior {

// The block's batch rows, as a lane sees them: its accumulators belong to rows `row` and row + 1.
struct BatchTile {
    int64_t first, row;
    int length[2];    // steps that are no padding; -1 beyond the batch
    int steps;        // the longest length of the tile
    int lane_length;  // the length of row lane_id() % kRows

    template <class Problem>
    VSSN_DEVICE BatchTile(const Problem& k, int cluster)
        : first(static_cast<int64_t>(block_x() / cluster) * kRows), row(first + accumulator_column(0)) {
        const int64_t mine = first + lane_id() % kRows;
        int taken = -1;
        if (mine < k.B) {
            const int64_t given = k.lengths ? k.lengths[mine] : k.steps;
            taken = static_cast<int>(given < 0 ? 0 : given > k.steps ? k.steps : given);
        }
        steps = lane_length = taken;
#pragma unroll
        for (int mask = kRows / 2; mask > 0; mask /= 2) {
            const int other = shuffle_xor(steps, mask);
            steps = other > steps ? other : steps;
        }
#pragma unroll
        for (int j = 0; j < 2; ++j) length[j] = shuffle(taken, accumulator_column(j));
    }

    VSSN_DEVICE bool inside(int j) const { return length[j] >= 0; }
    VSSN_DEVICE bool valid(int t, int j) const { return t >= 0 && t < length[j]; }
};

// Whether neighbouring units may be read or written as one access, in every row of a sequence: one that is contiguous
// and of an even width, or any.
template <class T>
bool in_pairs(const void* contiguous) {
    return reinterpret_cast<uintptr_t>(contiguous) % (2 * sizeof(T)) == 0;
}
template <class T>
bool in_pairs(const TensorSteps& steps) {
    return in_pairs<T>(steps.data) && steps.step_stride % 2 == 0 && steps.row_stride % 2 == 0;
}

// A Four as it was loaded: for each of the lane's two batch rows its two units. `paired`: as in Ahead.
template <class T, bool paired>
struct LoadedFour {
    Ahead<T, paired> row[2];

    static VSSN_DEVICE LoadedFour zero() { return {{Ahead<T, paired>::zero(), Ahead<T, paired>::zero()}}; }
    VSSN_DEVICE Four wide() const { return {{row[0][0], row[1][0], row[0][1], row[1][1]}}; }
};

// A Four as it is to be stored.
template <class T>
struct StoredFour {
    Packed<T, 2> row[2];

    static VSSN_DEVICE StoredFour of(const Four& four) {
        return {{Packed<T, 2>::round(four.v[0], four.v[2]), Packed<T, 2>::round(four.v[1], four.v[3])}};
    }
};

// [T, B, width] as the caller gave it.
template <class T, bool paired>
struct Sequence {
    using Loaded = LoadedFour<T, paired>;
    static constexpr bool kPaired = paired;

    const T* data;
    int64_t step_stride, row_stride;

    VSSN_DEVICE Sequence(const void* data, int64_t step_stride, int64_t row_stride)
        : data(static_cast<const T*>(data)), step_stride(step_stride), row_stride(row_stride) {}
    VSSN_DEVICE explicit Sequence(const TensorSteps& steps)
        : Sequence(steps.data, steps.step_stride, steps.row_stride) {}

    static VSSN_DEVICE Sequence contiguous(const void* data, int64_t B, int64_t width) {
        return Sequence(data, B * width, width);
    }
    // Member by member: a choice between two addresses would send both to local memory.
    static VSSN_DEVICE Sequence choose(bool first, const Sequence& a, const Sequence& b) {
        return Sequence(first ? a.data : b.data, first ? a.step_stride : b.step_stride,
                        first ? a.row_stride : b.row_stride);
    }

    // The four of a tile of units at step t; 0 at padding, beyond the width, and where there is no tensor.
    VSSN_DEVICE Loaded load(const BatchTile& batch, int t, int tile, int width) const {
        Loaded four = Loaded::zero();
        load_over(four, batch, t, tile, width);
        return four;
    }

    // The same, but where there is nothing to load what was there before stays: nothing waits for an older load of
    // these registers.
    VSSN_DEVICE void load_over(Loaded& four, const BatchTile& batch, int t, int tile, int width) const {
        const int unit = tile * kUnits + accumulator_row(0);
        const int count = data == nullptr ? 0 : width - unit;
        const T* p = moved(data, t * step_stride + batch.row * row_stride + unit);
#pragma unroll
        for (int j = 0; j < 2; ++j, p = moved(p, row_stride)) four.row[j].reload(p, batch.valid(t, j) ? count : 0);
    }

    // Asks for the tile's rows of step t to be brought into L2, a hint: a lane for each 32 bytes. `count` warps, of
    // which this one is number `index`, share the width.
    VSSN_DEVICE void prefetch(const BatchTile& batch, int t, int width, int index, int count) const {
        constexpr int kSector = 32 / sizeof(T), kColumns = kWarp / kRows;
        if (data == nullptr || t < 0 || t >= batch.lane_length) return;
        const T* row = data + t * step_stride + (batch.first + lane_id() % kRows) * row_stride;
        for (int i = index * kColumns + lane_id() / kRows; i * kSector < width; i += count * kColumns)
            prefetch_l2(row + i * kSector);
    }
};

// Writes the four of a tile of units at step t of a contiguous [T, B, row_width], whose columns from `column` on hold
// `width` units; 0 at padding.
template <bool paired, class T>
VSSN_DEVICE void store_four(void* sequence, const BatchTile& batch, int64_t B, int t, int tile, int width,
                            int64_t row_width, int64_t column, const StoredFour<T>& four) {
    const int unit = tile * kUnits + accumulator_row(0);
    if (sequence == nullptr || unit >= width) return;
    T* p = static_cast<T*>(sequence) + (t * B + batch.row) * row_width + column + unit;
#pragma unroll
    for (int j = 0; j < 2; ++j, p += row_width)
        if (batch.inside(j))
            store_pair<paired>(p, batch.valid(t, j) ? four.row[j] : Packed<T, 2>::zero(), width - unit);
}

// Zeros in the tile's rows of a contiguous [T, B, width] behind its longest length; blocks of a cluster take turns.
template <class T, class Problem>
VSSN_DEVICE void zero_steps(const Problem& k, const BatchTile& batch, void* sequence, int64_t width, int rank,
                            int cluster) {
    if (sequence == nullptr) return;
    const int64_t rows = k.B - batch.first < kRows ? k.B - batch.first : kRows;
    for (int64_t t = batch.steps + rank; t < k.steps; t += cluster) {
        T* p = static_cast<T*>(sequence) + (t * k.B + batch.first) * width;
        for (int64_t i = thread_id(); i < rows * width; i += block_threads()) p[i] = from_float<T>(0.0f);
    }
}

}  // namespace vssn::posterior

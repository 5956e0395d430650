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

    VSSN_DEVICE int length_of(int j) const { return j == 0 ? length[0] : length[1]; }  // no address of a register
    VSSN_DEVICE bool inside(int j) const { return length_of(j) >= 0; }
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

// A Four, or a Two, as it was loaded: for each of the lane's batch rows its two units. `paired`: as in Ahead.
template <class T, bool paired, int rows>
struct LoadedRows {
    Ahead<T, paired> row[rows];

    static VSSN_DEVICE LoadedRows zero() {
        LoadedRows result;
#pragma unroll
        for (int j = 0; j < rows; ++j) result.row[j] = Ahead<T, paired>::zero();
        return result;
    }
    static VSSN_DEVICE LoadedRows all(float value) {
        LoadedRows result;
#pragma unroll
        for (int j = 0; j < rows; ++j)
            if constexpr (paired)
                result.row[j].pair = Packed<T, 2>::round(value, value);
            else
                result.row[j].one = result.row[j].other = from_float<T>(value);
        return result;
    }
    VSSN_DEVICE OfRows<rows> wide() const {
        OfRows<rows> result;
#pragma unroll
        for (int j = 0; j < rows; ++j) {
            result.v[j] = row[j][0];
            result.v[rows + j] = row[j][1];
        }
        return result;
    }
};
template <class T, bool paired>
using LoadedFour = LoadedRows<T, paired, 2>;

// The same as it is to be stored.
template <class T, int rows>
struct StoredRows {
    Packed<T, 2> row[rows];

    static VSSN_DEVICE StoredRows of(const OfRows<rows>& values) {
        StoredRows result;
#pragma unroll
        for (int j = 0; j < rows; ++j) result.row[j] = Packed<T, 2>::round(values.v[j], values.v[rows + j]);
        return result;
    }
};
template <class T>
using StoredFour = StoredRows<T, 2>;

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
    // which this one is number `index`, share the width. `index` becomes its number for the next sequence, of which
    // others come first: a warp without a part of the width does next to nothing.
    VSSN_DEVICE void prefetch(const BatchTile& batch, int t, int width, int& index, int count) const {
        constexpr int kSector = 32 / sizeof(T), kColumns = kWarp / kRows, kOfWarp = kSector * kColumns;
        if (data == nullptr) return;
        if (index * kOfWarp < width && t >= 0 && t < batch.lane_length) {
            const T* row = data + t * step_stride + (batch.first + lane_id() % kRows) * row_stride;
            for (int i = index * kColumns + lane_id() / kRows; i * kSector < width; i += count * kColumns)
                prefetch_l2(row + i * kSector);
        }
        const int taken = (width + kOfWarp - 1) / kOfWarp;
        if (taken < count) index += index < taken ? count - taken : -taken;
    }
};

// Writes the four of a tile of units at step t of a contiguous [T, B, row_width], whose columns from `column` on hold
// `width` units; nothing at padding.
template <bool paired, class T>
VSSN_DEVICE void store_four(void* sequence, const BatchTile& batch, int64_t B, int t, int tile, int width,
                            int64_t row_width, int64_t column, const StoredFour<T>& four) {
    const int unit = tile * kUnits + accumulator_row(0);
    if (sequence == nullptr || unit >= width) return;
    T* p = static_cast<T*>(sequence) + (t * B + batch.row) * row_width + column + unit;
#pragma unroll
    for (int j = 0; j < 2; ++j, p += row_width)
        if (batch.valid(t, j)) store_pair<paired>(p, four.row[j], width - unit);
}

// ---- The same units in every step: addresses move by a step, and nothing is multiplied ------------------------------

// At which steps a lane has units of `tiles` neighbouring tiles: in the rows from its `first_row` on.
template <bool paired, int tiles, int rows>
struct Place {
    int ends[paired ? tiles : 1][rows];  // below; of single elements without regard to the width
    int counts[paired ? 1 : tiles];

    VSSN_DEVICE Place(const BatchTile& batch, int first_row, int tile, int width) {
#pragma unroll
        for (int i = 0; i < tiles; ++i) {
            const int count = width - ((tile + i) * kUnits + accumulator_row(0));
            if (!paired) counts[i] = count;
            if (!paired && i > 0) continue;
#pragma unroll
            for (int j = 0; j < rows; ++j) {
                const int length = batch.length_of(first_row + j);
                ends[i][j] = (count > 0 || !paired) && length > 0 ? length : 0;
            }
        }
    }
    // Negative steps have none.
    VSSN_DEVICE int count(int t, int i, int j) const {
        if (static_cast<unsigned>(t) >= static_cast<unsigned>(ends[paired ? i : 0][j])) return 0;
        return paired ? 2 : counts[i];
    }

    // From where the lane's first unit of step t is. Over what was there, which stays where there is nothing.
    template <class T>
    VSSN_DEVICE void load(const T* p, int64_t row_stride, int t, LoadedRows<T, paired, rows>* units) const {
#pragma unroll
        for (int j = 0; j < rows; ++j) {
#pragma unroll
            for (int i = 0; i < tiles; ++i) units[i].row[j].reload(moved(p, i * kUnits), count(t, i, j));
            if (j + 1 < rows) p = moved(p, row_stride);
        }
    }
    template <class T>
    VSSN_DEVICE void store(T* p, int64_t row_stride, int t, const StoredRows<T, rows>* units) const {
#pragma unroll
        for (int j = 0; j < rows; ++j) {
#pragma unroll
            for (int i = 0; i < tiles; ++i)
                if (const int n = count(t, i, j); n > 0) store_pair<paired>(p + i * kUnits, units[i].row[j], n);
            if (j + 1 < rows) p += row_stride;
        }
    }
};

// Of a sequence that is read: `at` is where the lane's first unit of the next step to read is.
template <class T, bool paired>
struct Reader {
    const T* at;
    int64_t step_stride, row_stride;

    VSSN_DEVICE Reader(const Sequence<T, paired>& sequence, const BatchTile& batch, int first_row, int t, int tile,
                       bool descending)
        : at(moved(sequence.data, t * sequence.step_stride + (batch.row + first_row) * sequence.row_stride +
                                      tile * kUnits + accumulator_row(0))),
          step_stride(descending ? -sequence.step_stride : sequence.step_stride),
          row_stride(sequence.row_stride) {}

    template <int tiles, int rows>
    VSSN_DEVICE void load(const Place<paired, tiles, rows>& place, int t, LoadedRows<T, paired, rows>* units) {
        place.load(at, row_stride, t, units);
        at = moved(at, step_stride);
    }
};

// Of contiguous sequences [T, B, width]: `at` is the element that is the lane's first unit at a step.
template <class T>
struct Contiguous {
    int64_t at, step_stride, row_stride;

    VSSN_DEVICE Contiguous(const BatchTile& batch, int first_row, int64_t B, int t, int tile, int64_t width,
                           bool descending)
        : at((t * B + batch.row + first_row) * width + tile * kUnits + accumulator_row(0)),
          step_stride(descending ? -B * width : B * width),
          row_stride(width) {}

    template <bool paired, int tiles, int rows>
    VSSN_DEVICE void load(const Place<paired, tiles, rows>& place, const void* sequence, int t,
                          LoadedRows<T, paired, rows>* units) const {
        place.load(moved(static_cast<const T*>(sequence), at), row_stride, t, units);
    }
    // column: in wider rows, where the units begin.
    template <bool paired, int tiles, int rows>
    VSSN_DEVICE void store(const Place<paired, tiles, rows>& place, void* sequence, int64_t column, int t,
                           const StoredRows<T, rows>* units) const {
        if (sequence != nullptr) place.store(static_cast<T*>(sequence) + column + at, row_stride, t, units);
    }
    VSSN_DEVICE void advance() { at += step_stride; }
};

// Asks for a tile's units of one row to be brought into L2, step after step: eight lanes have the rows of one tile.
template <class T>
struct Prefetch {
    const T* at = nullptr;
    int64_t step_stride = 0;
    int end = 0;

    VSSN_DEVICE Prefetch() {}
    template <bool paired>
    VSSN_DEVICE Prefetch(const Sequence<T, paired>& sequence, const BatchTile& batch, int t, int tile, int width,
                         bool descending)
        : at(moved(sequence.data,
                   t * sequence.step_stride + (batch.first + lane_id() % kRows) * sequence.row_stride + tile * kUnits)),
          step_stride(descending ? -sequence.step_stride : sequence.step_stride),
          end(sequence.data != nullptr && tile * kUnits < width && batch.lane_length > 0 ? batch.lane_length : 0) {}

    // Member by member: see Sequence::choose.
    VSSN_DEVICE void become(bool really, const Prefetch& other) {
        at = really ? other.at : at;
        step_stride = really ? other.step_stride : step_stride;
        end = really ? other.end : end;
    }
    VSSN_DEVICE void ask(int t) {
        if (static_cast<unsigned>(t) < static_cast<unsigned>(end)) prefetch_l2(at);
        at = moved(at, step_stride);
    }
};

// Zeros in a contiguous [T, B, width] where the tile's rows are padding: no step writes there. Blocks of a cluster take
// turns.
template <class T, class Problem>
VSSN_DEVICE void zero_padding_of(const Problem& k, const BatchTile& batch, void* sequence, int64_t width, int rank,
                                 int cluster) {
    if (sequence == nullptr) return;
    for (int row = 0; row < kRows; ++row) {
        const int length = shuffle(batch.lane_length, row);
        if (length < 0) break;  // beyond the batch
        for (int64_t t = length + rank; t < k.steps; t += cluster) {
            T* p = static_cast<T*>(sequence) + (t * k.B + batch.first + row) * width;
            for (int64_t i = thread_id(); i < width; i += block_threads()) p[i] = from_float<T>(0.0f);
        }
    }
}

}  // namespace vssn::posterior

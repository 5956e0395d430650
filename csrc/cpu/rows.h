// Which rows (batch entries) and which hidden units each thread works on, and which rows still have steps to take.
#pragma once

#include <stdint.h>

#include "kernels.h"
#include "threads.h"

namespace vssn {

// Where the rows of a sequence stand: row b of step t is number begin(t) + b. Padded, every step has B rows. Packed,
// the batch is in order of falling length, and step t has its first batch_sizes[t] rows alone.
struct Layout {
    int64_t steps, B;
    const int64_t* lengths;  // [B]; null: all steps
    const int64_t* begins;   // [steps + 1]; null: padded

    // places: memory for as many entries as `places` tells.
    Layout(int64_t steps, int64_t B, const int64_t* lengths, const int64_t* batch_sizes, int64_t* places);

    static int64_t places(const int64_t* batch_sizes, int64_t steps, int64_t B) {
        return batch_sizes ? steps + 1 + B : 0;
    }

    inline __attribute__((always_inline)) int64_t begin(int64_t t) const { return begins ? begins[t] : t * B; }
    inline __attribute__((always_inline)) int64_t rows() const { return begin(steps); }

    // The rows of one step.
    template <class T>
    inline __attribute__((always_inline)) Rows<T> step(const Steps<T>& sequence, int64_t t) const {
        return {sequence.data + (begins ? begins[t] * sequence.row_stride : t * sequence.step_stride),
                sequence.row_stride};
    }
};

// The rows of all steps.
int64_t count_rows(const int64_t* batch_sizes, int64_t steps, int64_t B);

// Either every thread takes some rows of the batch and all units (no barrier inside the loop over steps), or every
// thread takes all rows and some blocks of units (barriers, but each core's cache holds only its part of the weights).
struct Partition {
    int threads;
    bool split_units;

    // This thread's part of `count` blocks of units.
    Range blocks(int64_t count, Team team) const;
};

// step_work: multiply-adds of one step; blocks: blocks of units to share.
Partition partition(int threads, int64_t steps, int64_t B, int64_t step_work, int64_t weight_bytes, int64_t blocks);

// The rows a thread works on, in order of falling length, so that the rows valid at any step stand first.
struct RowList {
    const int64_t* rows;
    int64_t count;
    const int64_t* lengths;  // [B] or null
    int64_t first;           // where the thread's rows begin in the row-wise working buffers
    int64_t active;          // the first `active` rows are valid at the step last given to `step`

    inline __attribute__((always_inline)) void step(int64_t t) {
        if (!lengths) {
            active = count;
            return;
        }
        while (active > 0 && lengths[rows[active - 1]] <= t) --active;
        while (active < count && lengths[rows[active]] > t) ++active;
    }
};

// Fills order [B] with the batch in order of falling length (in its own order without lengths).
void order_rows(const int64_t* lengths, int64_t B, int64_t* order);

// meet(from, count) for every run of rows that have a valid step: what the others start from may be anything, and 0
// times inf is NaN.
template <class Meet>
inline __attribute__((always_inline)) void for_rows_with_steps(const int64_t* lengths, int64_t B, const Meet& meet) {
    for (int64_t from = 0, to = 0; to <= B; ++to) {
        if (to < B && (!lengths || lengths[to] > 0)) continue;
        if (to > from) meet(from, to - from);
        from = to + 1;
    }
}

// This thread's rows. slices [B]: memory for the lists of all threads.
RowList take_rows(const Partition& plan, Team team, const int64_t* order, int64_t* slices, const int64_t* lengths,
                  int64_t B);

}  // namespace vssn

// See rows.h.
#include "rows.h"

#include <algorithm>
#include <numeric>

namespace vssn {

namespace {

// Bytes of weights from which splitting the units pays even where there are rows for all threads.
constexpr int64_t kLargeWeights = 1 << 20;
// Multiply-adds per thread: of a whole call that repay waking the thread, and of a step that repay a barrier.
constexpr int64_t kCallWork = 1 << 15, kStepWork = 1 << 14;

}  // namespace

Layout::Layout(int64_t steps, int64_t B, const int64_t* lengths, const int64_t* batch_sizes, int64_t* places)
    : steps(steps), B(B), lengths(lengths), begins(nullptr) {
    if (!batch_sizes) return;
    int64_t *begin = places, *length = places + steps + 1;
    begin[0] = 0;
    for (int64_t t = 0; t < steps; ++t) begin[t + 1] = begin[t] + batch_sizes[t];
    for (int64_t t = steps, b = 0; t >= 0; --t)  // who is not there at step t ended before it
        for (; b < B && (t == 0 || b < batch_sizes[t - 1]); ++b) length[b] = t;
    begins = begin;
    this->lengths = length;
}

int64_t count_rows(const int64_t* batch_sizes, int64_t steps, int64_t B) {
    return batch_sizes ? std::accumulate(batch_sizes, batch_sizes + steps, int64_t{0}) : steps * B;
}

Range Partition::blocks(int64_t count, Team team) const {
    return split_units ? share(count, team.rank, team.size) : Range{0, count};
}

Partition partition(int threads, int64_t steps, int64_t B, int64_t step_work, int64_t weight_bytes, int64_t blocks) {
    const auto limit = [threads](int64_t most) {
        return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, most)));
    };
    if ((B < threads || weight_bytes > kLargeWeights) && step_work / kStepWork >= limit(blocks) && limit(blocks) > 1)
        return {limit(blocks), true};
    return {limit(std::min(B, steps * step_work / kCallWork)), false};
}

void order_rows(const int64_t* lengths, int64_t B, int64_t* order) {
    std::iota(order, order + B, int64_t{0});
    if (lengths)
        std::stable_sort(order, order + B, [lengths](int64_t i, int64_t j) { return lengths[i] > lengths[j]; });
}

RowList take_rows(const Partition& plan, Team team, const int64_t* order, int64_t* slices, const int64_t* lengths,
                  int64_t B) {
    if (plan.split_units) return {order, B, lengths, 0, 0};
    const Range mine = share(B, team.rank, team.size);
    int64_t* rows = slices + mine.begin;
    const int64_t count = mine.end - mine.begin;
    // With lengths every size-th row, as many as above, so that all threads get long and short ones.
    for (int64_t i = 0; i < count; ++i) rows[i] = order[lengths ? team.rank + i * team.size : mine.begin + i];
    return {rows, count, lengths, mine.begin, 0};
}

}  // namespace vssn

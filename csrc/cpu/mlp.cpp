// One or two linear layers over several inputs, and their gradient; one call for all rows.
//
//   sum    = bias + sum_i x_i W_i^T                                   x_i [N, K_i], W_i [M, K_i]
//   one layer:     out = sum                                          [N, M]
//   two layers:    hidden = act(sum), out = hidden W_out^T + b_out    W_out [O, M], out [N, O]
//   with logvar:   W_out [2 O, M]: out the first O columns, logvar = min_logvar + softplus(the others - min_logvar)
//
// forward   reads inputs, weights and biases; writes out, logvar and, for backward, hidden.
// backward  with g = (grad_out, grad_logvar slope):
//             grad_sum  = act'(hidden) * g W_out (one layer: grad_out),   grad_x_i = grad_sum W_i
//             grad_W_i  = grad_sum^T x_i,  grad_bias = sum of grad_sum,  grad_W_out = g^T hidden,  grad_b_out = sum of
//             g
//           writes each of grad_x_i, grad_W_i, grad_bias, grad_W_out, grad_b_out that is asked for.
//
// Threads share the rows, and take them some at a time: the hidden layer of these stays in the cache until the second
// layer has read it. For the weights' gradients they share the weights' rows, after a barrier.
#include "../common/cell.h"
#include "activation.h"
#include "kernels.h"
#include "math.h"
#include "panels.h"
#include "tables.h"
#include "threads.h"
#include "weight_gradients.h"
#include "workspace.h"

namespace vssn::VSSN_ISA {

namespace {

constexpr int64_t kChunk = 96;            // rows at a time: whole tiles of every kind
constexpr int64_t kThreadWork = 1 << 15;  // multiply-adds that repay waking a thread

template <class K>
int64_t columns_in(const K& k) {
    int64_t columns = 0;
    for (int i = 0; i < k.inputs(); ++i) columns += k.K[i];
    return columns;
}

// The same, each input's in whole depth: rows of the panels.
template <class E, class K>
int64_t depth_in(const K& k) {
    int64_t rows = 0;
    for (int i = 0; i < k.inputs(); ++i) rows += depth<E>(k.K[i]);
    return rows;
}

// Columns [0, K) of n rows for a product: as they are or, where that takes another type or zeros behind them, copied
// to `memory`, as wide as row_stride<E>(depth<E>(K)) says for all that goes into one row, and `column` on.
template <class S>
VSSN_INLINE Segment<Operand<S>> as_segment(const S* rows, int64_t stride, int64_t n, int64_t K, Operand<S>* memory,
                                           int64_t memory_stride, int64_t column) {
    using E = Operand<S>;
    if constexpr (kRounds<S>) {
        for (int64_t i = 0; i < n; ++i)
            for (int64_t k = 0; k < depth<E>(K); k += kLanes<E>) {
                const Vec<S> entries = k < K ? load(rows + i * stride + k, K - k) : Vec<S>{};
                store(memory + i * memory_stride + column + k, entries, depth<E>(K) - k);
            }
        return {memory + column, memory_stride, depth<E>(K)};
    } else {
        return {rows, stride, K};
    }
}

template <class K>
int useful_threads(const K& k, int64_t outputs) {
    const int64_t useful = k.N * k.M * (columns_in(k) + outputs) / kThreadWork + 1;
    return static_cast<int>(useful < k.threads ? useful : k.threads);
}

// ---- Forward ---------------------------------------------------------------------------------------------

template <class S>
struct ForwardBuffers {
    using E = Operand<S>;
    PanelPlan<E> in_plan, out_plan;  // columns: units of the hidden layer; of one output
    int64_t K, in_stride, stride;    // rows of all inputs' panels; distance between rows of inputs and of hidden
    int heads;                       // outputs of the second layer
    const E* in;                     // W_i, one after another
    const E* out[2];                 // W_out of each output
    E* panels;                       // the memory of both, where they are packed within; else null
    E* inputs;                       // [threads][kChunk][in_stride]: x_i, where they are not taken as they are
    E* hidden;                       // [threads][kChunk][stride]
    int64_t bytes;

    ForwardBuffers(void* memory, const MlpForward<S>& k)
        : in_plan(k.M),
          out_plan(k.O),
          K(depth_in<E>(k)),
          in_stride(row_stride<E>(K)),
          stride(row_stride<E>(in_plan.size(1))),
          heads(!k.weight_out.data ? 0
                : k.floored        ? 2
                                   : 1) {
        Arena arena(memory);
        panels = k.panels ? nullptr : arena.take<E>(panels_size());
        in = panels;
        if constexpr (!kRounds<S>) in = k.panels ? k.panels : panels;
        for (int head = 0; head < heads; ++head) out[head] = in + in_plan.size(K) + head * out_plan.size(depth<E>(k.M));
        inputs = arena.take<E>(kRounds<S> ? k.threads * kChunk * in_stride : 0);
        hidden = arena.take<E>(heads ? k.threads * kChunk * stride : 0);
        bytes = arena.bytes();
    }

    int64_t panels_size() const { return in_plan.size(K) + heads * out_plan.size(depth<E>(in_plan.columns)); }
};

// This thread's part of the panels, for a Problem with the weights.
template <class S, class Problem>
void pack_forward(const Problem& k, const ForwardBuffers<S>& w, Operand<S>* panels, Team team) {
    using E = Operand<S>;
    const Range in = share(w.in_plan.count(), team.rank, team.size);
    const Range out = share(w.out_plan.count(), team.rank, team.size);
    int64_t from = 0;
    for (int i = 0; i < k.inputs(); from += depth<E>(k.K[i++]))
        pack_panels_transposed(panels, w.in_plan, in, w.K, from, k.weight[i], 0, k.K[i]);
    panels += w.in_plan.size(w.K);
    for (int head = 0; head < w.heads; ++head, panels += w.out_plan.size(depth<E>(k.M)))
        pack_panels_transposed(panels, w.out_plan, out, depth<E>(k.M), 0, k.weight_out, head * k.O, k.M);
}

template <class S>
void forward_rows(const MlpForward<S>& k, const ForwardBuffers<S>& w, int64_t row, int64_t n, int rank) {
    using T = Compute<S>;
    using E = Operand<S>;
    using Math = VectorMath<T>;
    constexpr int64_t L = kLanes<T>;
    E *inputs = w.inputs + rank * kChunk * w.in_stride, *hidden = w.hidden + rank * kChunk * w.stride;
    Segment<E> segments[kMlpInputs];
    int64_t column = 0;
    for (int i = 0; i < k.inputs(); column += depth<E>(k.K[i++]))
        segments[i] = as_segment(k.x[i].row(row), k.x[i].stride, n, k.K[i], inputs, w.in_stride, column);
    if (!w.heads) {
        auto finish = [&](int64_t column, int64_t first, int rows, const auto& tile) VSSN_INLINED {
            for (int j = 0; j < tile_vectors<E>(tile); ++j) {
                const int64_t unit = column + j * L, lanes = k.M - unit;
                const Vec<T> bias = load(k.bias + unit, lanes);
                for (int i = 0; i < rows; ++i) store(k.out + (row + first + i) * k.M + unit, tile[i][j] + bias, lanes);
            }
        };
        const auto expect = [&](int64_t column, int vectors, int64_t first, int rows) VSSN_INLINED {
            prefetch_rows(k.out + (row + first) * k.M + column, k.M, rows, vectors);
        };
        multiply_panels(segments, k.inputs(), n, w.in, w.in_plan, w.K, expect, finish);
        return;
    }
    const bool keep_input = keeps_input(k.activation);
    auto finish_hidden = [&](int64_t column, int64_t first, int rows, const auto& tile) VSSN_INLINED {
        for (int j = 0; j < tile_vectors<E>(tile); ++j) {
            const int64_t unit = column + j * L, lanes = k.M - unit;
            const Vec<T> bias = load(k.bias + unit, lanes);
            for (int i = 0; i < rows; ++i) {
                const Vec<T> input = tile[i][j] + bias, active = activate_by<T>(k.activation, input);
                store_operand<S>(hidden + (first + i) * w.stride + unit, active);
                if (k.hidden) store(k.hidden + (row + first + i) * k.M + unit, keep_input ? input : active, lanes);
            }
        }
    };
    const auto expect_hidden = [&](int64_t column, int vectors, int64_t first, int rows) VSSN_INLINED {
        if (k.hidden) prefetch_rows(k.hidden + (row + first) * k.M + column, k.M, rows, vectors);
    };
    multiply_panels(segments, k.inputs(), n, w.in, w.in_plan, w.K, expect_hidden, finish_hidden);
    const Segment<E> segment{hidden, w.stride, depth<E>(k.M)};
    const Vec<T> min_logvar = broadcast(k.min_logvar);
    for (int head = 0; head < w.heads; ++head) {
        S* out = head ? k.logvar : k.out;
        auto finish = [&](int64_t column, int64_t first, int rows, const auto& tile) VSSN_INLINED {
            for (int j = 0; j < tile_vectors<E>(tile); ++j) {
                const int64_t unit = column + j * L, lanes = k.O - unit;
                const Vec<T> bias = load(k.bias_out + head * k.O + unit, lanes);
                for (int i = 0; i < rows; ++i) {
                    const Vec<T> value = tile[i][j] + bias;
                    store(out + (row + first + i) * k.O + unit, head ? floored_logvar<Math>(value, min_logvar) : value,
                          lanes);
                }
            }
        };
        const auto expect = [&](int64_t column, int vectors, int64_t first, int rows)
                                VSSN_INLINED { prefetch_rows(out + (row + first) * k.O + column, k.O, rows, vectors); };
        multiply_panels(&segment, 1, n, w.out[head], w.out_plan, segment.K, expect, finish);
    }
}

template <class S>
void forward(const MlpForward<S>& k, void* workspace) {
    using E = Operand<S>;
    const ForwardBuffers<S> w(workspace, k);
    if (kDepth<E> > 1 && w.heads) fill_zeros(w.hidden, k.threads * kChunk * w.stride);
    auto body = [&](Team team) {
        if (w.panels) {
            pack_forward(k, w, w.panels, team);
            team.wait();
        }
        const Range rows = share(k.N, team.rank, team.size, kTileRows<E, 1>);
        for (int64_t row = rows.begin; row < rows.end; row += kChunk)
            forward_rows(k, w, row, rows.end - row < kChunk ? rows.end - row : kChunk, team.rank);
    };
    parallel(useful_threads(k, w.heads * k.O), body);
}

template <class T>
int64_t pack(const MlpPack<T>& k) {
    MlpForward<T> of{};
    of.M = k.M;
    of.O = k.O;
    of.floored = k.floored;
    of.K = k.K;
    of.weight_out = k.weight_out;
    const ForwardBuffers<T> w(nullptr, of);
    if (k.panels) pack_forward(k, w, k.panels, Team{0, 1, nullptr});
    return w.panels_size();
}

// ---- Backward --------------------------------------------------------------------------------------------

template <class S>
struct BackwardBuffers {
    using E = Operand<S>;
    int heads;
    bool sums, raw, active;    // whether grad_sum, the gradient behind the floor, act(hidden) stand in buffers of ours
    PanelPlan<E> hidden_plan;  // columns: units of the hidden layer
    E* out;                    // W_out: rows of the outputs that have a gradient
    int64_t out_rows;
    E* in[kMlpInputs];        // W_i for each grad_x_i that is asked for
    Rows<S> grad_sum;         // [N, M]
    Rows<S> grad_raw;         // [N, O]
    Rows<S> hidden;           // [N, M]: act(.), where forward kept its input
    int64_t operands_stride;  // distance between rows of
    E* operands;              // [threads][kChunk][.]: the rows of a product, where they are not taken as they are
    int64_t bytes;

    BackwardBuffers(void* memory, const MlpBackward<S>& k) : hidden_plan(k.M) {
        heads = !k.weight_out.data ? 0 : k.floored ? 2 : 1;
        bool asked = k.grad_bias != nullptr;
        for (int i = 0; i < k.inputs(); ++i) asked = asked || k.grad_x[i] || k.grad_weight[i].data;
        const bool first = heads && k.grad_out.data, second = heads == 2 && k.grad_logvar.data;
        sums = heads && asked;
        raw = second;
        active = heads && keeps_input(k.activation) && k.grad_weight_out;
        out_rows = (int64_t(first) + int64_t(second)) * depth<E>(k.O);
        Arena arena(memory);
        out = arena.take<E>(sums ? hidden_plan.size(out_rows) : 0);
        for (int i = 0; i < k.inputs(); ++i)
            in[i] = arena.take<E>(k.grad_x[i] ? PanelPlan<E>(k.K[i]).size(depth<E>(k.M)) : 0);
        const int64_t stride = row_stride<S>(k.M), raw_stride = row_stride<S>(k.O);
        grad_sum = {arena.take<S>(sums ? k.N * stride : 0), stride};
        grad_raw = {arena.take<S>(raw ? k.N * raw_stride : 0), raw_stride};
        hidden = {arena.take<S>(active ? k.N * stride : 0), stride};
        const int64_t widest = depth<E>(k.M) > 2 * depth<E>(k.O) ? depth<E>(k.M) : 2 * depth<E>(k.O);
        operands_stride = row_stride<E>(widest);
        operands = arena.take<E>(kRounds<S> ? k.threads * kChunk * operands_stride : 0);
        bytes = arena.bytes();
    }
};

template <class S>
void backward_rows(const MlpBackward<S>& k, const BackwardBuffers<S>& w, int64_t row, int64_t n, int rank) {
    using T = Compute<S>;
    using E = Operand<S>;
    using Math = VectorMath<T>;
    constexpr int64_t L = kLanes<T>;
    E* operands = w.operands + rank * kChunk * w.operands_stride;
    const auto segment = [&](const Rows<const S>& rows, int64_t K, int64_t column) {
        return as_segment(rows.row(row), rows.stride, n, K, operands, w.operands_stride, column);
    };
    if (w.raw) {
        const Vec<T> min_logvar = broadcast(k.min_logvar);
        for (int64_t i = row; i < row + n; ++i)
            for (int64_t j = 0; j < k.O; j += L) {
                const Vec<T> logvar = load(k.logvar + i * k.O + j, k.O - j);
                const Vec<T> grad = load(k.grad_logvar.row(i) + j, k.O - j);
                store(w.grad_raw.row(i) + j, grad * floored_logvar_slope<Math>(logvar, min_logvar));
            }
    }
    if (w.active)
        for (int64_t i = row; i < row + n; ++i)
            for (int64_t j = 0; j < k.M; j += L)
                store(w.hidden.row(i) + j, activate_by<T>(k.activation, load(k.hidden + i * k.M + j, k.M - j)));
    if (w.sums) {
        Segment<E> segments[2];
        int count = 0;
        if (k.grad_out.data) segments[count++] = segment(k.grad_out, k.O, 0);
        const int64_t column = count * depth<E>(k.O);
        if (w.raw) segments[count++] = segment(constant(w.grad_raw), k.O, column);
        auto finish = [&](int64_t column, int64_t first, int rows, const auto& tile) VSSN_INLINED {
            for (int j = 0; j < tile_vectors<E>(tile); ++j) {
                const int64_t unit = column + j * L, lanes = k.M - unit;
                for (int i = 0; i < rows; ++i) {
                    const Vec<T> kept = load(k.hidden + (row + first + i) * k.M + unit, lanes);
                    store(w.grad_sum.row(row + first + i) + unit, tile[i][j] * slope_by<T>(k.activation, kept), lanes);
                }
            }
        };
        const auto expect = [&](int64_t column, int vectors, int64_t first, int rows) VSSN_INLINED {
            prefetch_rows(k.hidden + (row + first) * k.M + column, k.M, rows, vectors);
            prefetch_rows(w.grad_sum.row(row + first) + column, w.grad_sum.stride, rows, vectors);
        };
        multiply_panels(segments, count, n, w.out, w.hidden_plan, w.out_rows, expect, finish);
    }
    bool asked = false;
    for (int p = 0; p < k.inputs(); ++p) asked = asked || k.grad_x[p];
    if (!asked) return;
    const Segment<E> sums = segment(w.sums ? constant(w.grad_sum) : k.grad_out, k.M, 0);
    for (int p = 0; p < k.inputs(); ++p) {
        S* grad_x = k.grad_x[p];
        const int64_t K = k.K[p];
        if (!grad_x) continue;
        auto finish = [&](int64_t column, int64_t first, int rows, const auto& tile) VSSN_INLINED {
            for (int j = 0; j < tile_vectors<E>(tile); ++j) {
                const int64_t unit = column + j * L;
                for (int i = 0; i < rows; ++i) store(grad_x + (row + first + i) * K + unit, tile[i][j], K - unit);
            }
        };
        const auto expect = [&](int64_t column, int vectors, int64_t first, int rows)
                                VSSN_INLINED { prefetch_rows(grad_x + (row + first) * K + column, K, rows, vectors); };
        multiply_panels(&sums, 1, n, w.in[p], PanelPlan<E>(K), sums.K, expect, finish);
    }
}

// This thread's part of grad^T x, or zeros where there is no gradient.
template <class S>
void weight_gradient_or_zeros(const Rows<const S>& grad, const Rows<const S>& x, int64_t N, int64_t M, int64_t K,
                              Compute<S>* out, int64_t stride, Team team, int turn) {
    weight_gradient<S>({grad, x, grad.data ? N : 0, M, K, out, stride, false}, team, turn);
}

template <class S>
void weight_grads(const MlpBackward<S>& k, const BackwardBuffers<S>& w, Team team) {
    int turn = 0;
    const Rows<const S> sums = w.sums ? constant(w.grad_sum) : k.grad_out;
    for (int i = 0; i < k.inputs(); ++i)
        if (k.grad_weight[i].data)
            weight_gradient_or_zeros(sums, k.x[i], k.N, k.M, k.K[i], k.grad_weight[i].data, k.grad_weight[i].stride,
                                     team, turn++);
    if (k.grad_bias) bias_gradient(sums, sums.data ? k.N : 0, k.M, k.grad_bias, team, turn++);
    const Rows<const S> hidden = w.active ? constant(w.hidden) : Rows<const S>{k.hidden, k.M};
    for (int head = 0; head < w.heads; ++head) {
        const Rows<const S> grad = head ? (w.raw ? constant(w.grad_raw) : Rows<const S>{nullptr, 0}) : k.grad_out;
        if (k.grad_weight_out)
            weight_gradient_or_zeros(grad, hidden, k.N, k.O, k.M, k.grad_weight_out + head * k.O * k.M, k.M, team,
                                     turn++);
        if (k.grad_bias_out) bias_gradient(grad, grad.data ? k.N : 0, k.O, k.grad_bias_out + head * k.O, team, turn++);
    }
}

template <class S>
void backward(const MlpBackward<S>& k, void* workspace) {
    using E = Operand<S>;
    const BackwardBuffers<S> w(workspace, k);
    auto body = [&](Team team) {
        if (w.sums) {
            const Range panels = share(w.hidden_plan.count(), team.rank, team.size);
            int64_t from = 0;
            if (k.grad_out.data) {
                pack_panels(w.out, w.hidden_plan, panels, w.out_rows, 0, k.weight_out, 0, k.O);
                from = depth<E>(k.O);
            }
            if (w.raw) pack_panels(w.out, w.hidden_plan, panels, w.out_rows, from, k.weight_out, k.O, k.O);
        }
        for (int i = 0; i < k.inputs(); ++i)
            if (k.grad_x[i]) {
                const PanelPlan<E> plan(k.K[i]);
                pack_panels(w.in[i], plan, share(plan.count(), team.rank, team.size), depth<E>(k.M), 0, k.weight[i], 0,
                            k.M);
            }
        team.wait();
        const Range rows = share(k.N, team.rank, team.size, kTileRows<E, 1>);
        for (int64_t row = rows.begin; row < rows.end; row += kChunk)
            backward_rows(k, w, row, rows.end - row < kChunk ? rows.end - row : kChunk, team.rank);
        team.wait();
        weight_grads(k, w, team);
    };
    parallel(useful_threads(k, w.heads * k.O), body);
}

}  // namespace

#define VSSN_ENTRIES(T)                                                                                   \
    void mlp_forward(const MlpForward<T>& k, void* workspace) { forward(k, workspace); }                  \
    void mlp_backward(const MlpBackward<T>& k, void* workspace) { backward(k, workspace); }               \
    int64_t mlp_forward_workspace(const MlpForward<T>& k) { return ForwardBuffers<T>(nullptr, k).bytes; } \
    int64_t mlp_backward_workspace(const MlpBackward<T>& k) { return BackwardBuffers<T>(nullptr, k).bytes; }
VSSN_FOR_STORAGES(VSSN_ENTRIES)
#undef VSSN_ENTRIES

#define VSSN_ENTRIES(T) \
    int64_t mlp_pack(const MlpPack<T>& k) { return pack(k); }
VSSN_FOR_FLOATS(VSSN_ENTRIES)

}  // namespace vssn::VSSN_ISA

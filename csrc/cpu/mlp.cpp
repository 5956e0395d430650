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

template <class K>
int useful_threads(const K& k, int64_t outputs) {
    const int64_t useful = k.N * k.M * (columns_in(k) + outputs) / kThreadWork + 1;
    return static_cast<int>(useful < k.threads ? useful : k.threads);
}

// ---- Forward ---------------------------------------------------------------------------------------------

template <class T>
struct ForwardBuffers {
    PanelPlan<T> in_plan, out_plan;  // columns: units of the hidden layer; of one output
    int64_t K, stride;               // columns of all inputs; distance between rows of hidden
    int heads;                       // outputs of the second layer
    const T* in;                     // W_i, one after another
    const T* out[2];                 // W_out of each output
    T* panels;                       // the memory of both, where they are packed within; else null
    T* hidden;                       // [threads][kChunk][stride]
    int64_t bytes;

    ForwardBuffers(void* memory, const MlpForward<T>& k)
        : in_plan(k.M),
          out_plan(k.O),
          K(columns_in(k)),
          stride(row_stride<T>(in_plan.size(1))),
          heads(!k.weight_out.data ? 0
                : k.floored        ? 2
                                   : 1) {
        Arena arena(memory);
        panels = k.panels ? nullptr : arena.take<T>(panels_size());
        in = k.panels ? k.panels : panels;
        for (int head = 0; head < heads; ++head) out[head] = in + in_plan.size(K) + head * out_plan.size(k.M);
        hidden = arena.take<T>(heads ? k.threads * kChunk * stride : 0);
        bytes = arena.bytes();
    }

    int64_t panels_size() const { return in_plan.size(K) + heads * out_plan.size(in_plan.columns); }
};

// This thread's part of the panels, for a Problem with the weights.
template <class T, class Problem>
void pack_forward(const Problem& k, const ForwardBuffers<T>& w, T* panels, Team team) {
    const Range in = share(w.in_plan.count(), team.rank, team.size);
    const Range out = share(w.out_plan.count(), team.rank, team.size);
    int64_t from = 0;
    for (int i = 0; i < k.inputs(); from += k.K[i++])
        pack_panels_transposed(panels, w.in_plan, in, w.K, from, k.weight[i], 0, k.K[i]);
    panels += w.in_plan.size(w.K);
    for (int head = 0; head < w.heads; ++head, panels += w.out_plan.size(k.M))
        pack_panels_transposed(panels, w.out_plan, out, k.M, 0, k.weight_out, head * k.O, k.M);
}

template <class T>
void forward_rows(const MlpForward<T>& k, const ForwardBuffers<T>& w, int64_t row, int64_t n, T* hidden) {
    using Math = VectorMath<T>;
    constexpr int64_t L = kLanes<T>;
    Segment<T> segments[kMlpInputs];
    for (int i = 0; i < k.inputs(); ++i) segments[i] = {k.x[i].row(row), k.x[i].stride, k.K[i]};
    if (!w.heads) {
        auto finish = [&](int64_t column, int64_t first, int rows, const auto& tile) VSSN_INLINED {
            for (int j = 0; j < tile_vectors<T>(tile); ++j) {
                const int64_t unit = column + j * L, lanes = k.M - unit;
                const Vec<T> bias = load(k.bias + unit, lanes);
                for (int i = 0; i < rows; ++i) store(k.out + (row + first + i) * k.M + unit, tile[i][j] + bias, lanes);
            }
        };
        multiply_panels(segments, k.inputs(), n, w.in, w.in_plan, w.K, finish);
        return;
    }
    const bool keep_input = keeps_input(k.activation);
    auto finish_hidden = [&](int64_t column, int64_t first, int rows, const auto& tile) VSSN_INLINED {
        for (int j = 0; j < tile_vectors<T>(tile); ++j) {
            const int64_t unit = column + j * L, lanes = k.M - unit;
            const Vec<T> bias = load(k.bias + unit, lanes);
            for (int i = 0; i < rows; ++i) {
                const Vec<T> input = tile[i][j] + bias, active = activate_by<T>(k.activation, input);
                store(hidden + (first + i) * w.stride + unit, active);
                if (k.hidden) store(k.hidden + (row + first + i) * k.M + unit, keep_input ? input : active, lanes);
            }
        }
    };
    multiply_panels(segments, k.inputs(), n, w.in, w.in_plan, w.K, finish_hidden);
    const Segment<T> segment{hidden, w.stride, k.M};
    const Vec<T> min_logvar = broadcast(k.min_logvar);
    for (int head = 0; head < w.heads; ++head) {
        T* out = head ? k.logvar : k.out;
        auto finish = [&](int64_t column, int64_t first, int rows, const auto& tile) VSSN_INLINED {
            for (int j = 0; j < tile_vectors<T>(tile); ++j) {
                const int64_t unit = column + j * L, lanes = k.O - unit;
                const Vec<T> bias = load(k.bias_out + head * k.O + unit, lanes);
                for (int i = 0; i < rows; ++i) {
                    const Vec<T> value = tile[i][j] + bias;
                    store(out + (row + first + i) * k.O + unit, head ? floored_logvar<Math>(value, min_logvar) : value,
                          lanes);
                }
            }
        };
        multiply_panels(&segment, 1, n, w.out[head], w.out_plan, k.M, finish);
    }
}

template <class T>
void forward(const MlpForward<T>& k, void* workspace) {
    const ForwardBuffers<T> w(workspace, k);
    auto body = [&](Team team) {
        if (w.panels) {
            pack_forward(k, w, w.panels, team);
            team.wait();
        }
        const Range rows = share(k.N, team.rank, team.size, kTileRows<1>);
        T* hidden = w.hidden + team.rank * kChunk * w.stride;
        for (int64_t row = rows.begin; row < rows.end; row += kChunk)
            forward_rows(k, w, row, rows.end - row < kChunk ? rows.end - row : kChunk, hidden);
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

template <class T>
struct BackwardBuffers {
    int heads;
    bool sums, raw, active;    // whether grad_sum, the gradient behind the floor, act(hidden) stand in buffers of ours
    PanelPlan<T> hidden_plan;  // columns: units of the hidden layer
    T* out;                    // W_out: rows of the outputs that have a gradient
    int64_t out_rows;
    T* in[kMlpInputs];  // W_i for each grad_x_i that is asked for
    Rows<T> grad_sum;   // [N, M]
    Rows<T> grad_raw;   // [N, O]
    Rows<T> hidden;     // [N, M]: act(.), where forward kept its input
    int64_t bytes;

    BackwardBuffers(void* memory, const MlpBackward<T>& k) : hidden_plan(k.M) {
        heads = !k.weight_out.data ? 0 : k.floored ? 2 : 1;
        bool asked = k.grad_bias != nullptr;
        for (int i = 0; i < k.inputs(); ++i) asked = asked || k.grad_x[i] || k.grad_weight[i].data;
        const bool first = heads && k.grad_out.data, second = heads == 2 && k.grad_logvar.data;
        sums = heads && asked;
        raw = second;
        active = heads && keeps_input(k.activation) && k.grad_weight_out;
        out_rows = (int64_t(first) + int64_t(second)) * k.O;
        Arena arena(memory);
        out = arena.take<T>(sums ? hidden_plan.size(out_rows) : 0);
        for (int i = 0; i < k.inputs(); ++i) in[i] = arena.take<T>(k.grad_x[i] ? PanelPlan<T>(k.K[i]).size(k.M) : 0);
        const int64_t stride = row_stride<T>(k.M), raw_stride = row_stride<T>(k.O);
        grad_sum = {arena.take<T>(sums ? k.N * stride : 0), stride};
        grad_raw = {arena.take<T>(raw ? k.N * raw_stride : 0), raw_stride};
        hidden = {arena.take<T>(active ? k.N * stride : 0), stride};
        bytes = arena.bytes();
    }
};

template <class T>
Rows<const T> constant(const Rows<T>& rows) {
    return {rows.data, rows.stride};
}

template <class T>
void backward_rows(const MlpBackward<T>& k, const BackwardBuffers<T>& w, int64_t row, int64_t n) {
    using Math = VectorMath<T>;
    constexpr int64_t L = kLanes<T>;
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
    Segment<T> sums{k.grad_out.data ? k.grad_out.row(row) : nullptr, k.grad_out.stride, k.M};
    if (w.sums) {
        Segment<T> segments[2];
        int count = 0;
        if (k.grad_out.data) segments[count++] = {k.grad_out.row(row), k.grad_out.stride, k.O};
        if (w.raw) segments[count++] = {w.grad_raw.row(row), w.grad_raw.stride, k.O};
        auto finish = [&](int64_t column, int64_t first, int rows, const auto& tile) VSSN_INLINED {
            for (int j = 0; j < tile_vectors<T>(tile); ++j) {
                const int64_t unit = column + j * L, lanes = k.M - unit;
                for (int i = 0; i < rows; ++i) {
                    const Vec<T> kept = load(k.hidden + (row + first + i) * k.M + unit, lanes);
                    store(w.grad_sum.row(row + first + i) + unit, tile[i][j] * slope_by<T>(k.activation, kept), lanes);
                }
            }
        };
        multiply_panels(segments, count, n, w.out, w.hidden_plan, w.out_rows, finish);
        sums = {w.grad_sum.row(row), w.grad_sum.stride, k.M};
    }
    for (int p = 0; p < k.inputs(); ++p) {
        T* grad_x = k.grad_x[p];
        const int64_t K = k.K[p];
        if (!grad_x) continue;
        auto finish = [&](int64_t column, int64_t first, int rows, const auto& tile) VSSN_INLINED {
            for (int j = 0; j < tile_vectors<T>(tile); ++j) {
                const int64_t unit = column + j * L;
                for (int i = 0; i < rows; ++i) store(grad_x + (row + first + i) * K + unit, tile[i][j], K - unit);
            }
        };
        multiply_panels(&sums, 1, n, w.in[p], PanelPlan<T>(K), k.M, finish);
    }
}

// This thread's part of grad^T x, or zeros where there is no gradient.
template <class T>
void weight_gradient_or_zeros(const Rows<const T>& grad, const Rows<const T>& x, int64_t N, int64_t M, int64_t K,
                              T* out, int64_t stride, Team team, int turn) {
    weight_gradient<T>({grad, x, grad.data ? N : 0, M, K, out, stride, false}, team, turn);
}

template <class T>
void weight_grads(const MlpBackward<T>& k, const BackwardBuffers<T>& w, Team team) {
    int turn = 0;
    const Rows<const T> sums = w.sums ? constant(w.grad_sum) : k.grad_out;
    for (int i = 0; i < k.inputs(); ++i)
        if (k.grad_weight[i].data)
            weight_gradient_or_zeros(sums, k.x[i], k.N, k.M, k.K[i], k.grad_weight[i].data, k.grad_weight[i].stride,
                                     team, turn++);
    if (k.grad_bias) bias_gradient(sums, sums.data ? k.N : 0, k.M, k.grad_bias, team, turn++);
    const Rows<const T> hidden = w.active ? constant(w.hidden) : Rows<const T>{k.hidden, k.M};
    for (int head = 0; head < w.heads; ++head) {
        const Rows<const T> grad = head ? (w.raw ? constant(w.grad_raw) : Rows<const T>{nullptr, 0}) : k.grad_out;
        if (k.grad_weight_out)
            weight_gradient_or_zeros(grad, hidden, k.N, k.O, k.M, k.grad_weight_out + head * k.O * k.M, k.M, team,
                                     turn++);
        if (k.grad_bias_out) bias_gradient(grad, grad.data ? k.N : 0, k.O, k.grad_bias_out + head * k.O, team, turn++);
    }
}

template <class T>
void backward(const MlpBackward<T>& k, void* workspace) {
    const BackwardBuffers<T> w(workspace, k);
    auto body = [&](Team team) {
        if (w.sums) {
            const Range panels = share(w.hidden_plan.count(), team.rank, team.size);
            int64_t from = 0;
            if (k.grad_out.data) {
                pack_panels(w.out, w.hidden_plan, panels, w.out_rows, 0, k.weight_out, 0, k.O);
                from = k.O;
            }
            if (w.raw) pack_panels(w.out, w.hidden_plan, panels, w.out_rows, from, k.weight_out, k.O, k.O);
        }
        for (int i = 0; i < k.inputs(); ++i)
            if (k.grad_x[i]) {
                const PanelPlan<T> plan(k.K[i]);
                pack_panels(w.in[i], plan, share(plan.count(), team.rank, team.size), k.M, 0, k.weight[i], 0, k.M);
            }
        team.wait();
        const Range rows = share(k.N, team.rank, team.size, kTileRows<1>);
        for (int64_t row = rows.begin; row < rows.end; row += kChunk)
            backward_rows(k, w, row, rows.end - row < kChunk ? rows.end - row : kChunk);
        team.wait();
        weight_grads(k, w, team);
    };
    parallel(useful_threads(k, w.heads * k.O), body);
}

}  // namespace

void mlp_forward(const MlpForward<float>& k, void* workspace) { forward(k, workspace); }
void mlp_forward(const MlpForward<double>& k, void* workspace) { forward(k, workspace); }
int64_t mlp_pack(const MlpPack<float>& k) { return pack(k); }
int64_t mlp_pack(const MlpPack<double>& k) { return pack(k); }
void mlp_backward(const MlpBackward<float>& k, void* workspace) { backward(k, workspace); }
void mlp_backward(const MlpBackward<double>& k, void* workspace) { backward(k, workspace); }
int64_t mlp_forward_workspace(const MlpForward<float>& k) { return ForwardBuffers<float>(nullptr, k).bytes; }
int64_t mlp_forward_workspace(const MlpForward<double>& k) { return ForwardBuffers<double>(nullptr, k).bytes; }
int64_t mlp_backward_workspace(const MlpBackward<float>& k) { return BackwardBuffers<float>(nullptr, k).bytes; }
int64_t mlp_backward_workspace(const MlpBackward<double>& k) { return BackwardBuffers<double>(nullptr, k).bytes; }

}  // namespace vssn::VSSN_ISA

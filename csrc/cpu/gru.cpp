// The GRU recurrence over given input gates, and its gradient; one call per sequence.
//
//   r, z = sigmoid(x_r + W_hr h + b_r), sigmoid(x_z + W_hz h + b_z)      x = gates_x[t]  [B, 3H]
//   a    = W_hn h + b_n,   n = tanh(x_n + r a)
//   h'   = (1 - z) n + z h = output[t]                                   [B, H]
//
// forward   reads gates_x, h0, weight [3H, H], bias; writes output, h_n and, for backward, gates = (r, z, n, a).
// backward  reads grad_output, grad_h_n, output, gates, h0, weight; writes grad_gates_x [T, B, 3H], grad_a [T, B, H]
//           (the gradient of the n part of W_h h, where grad_gates_x has that of x_n), grad_h0 and, after the loop,
//           grad_weight = sum over steps of (grad r, grad z, grad_a)^T h and grad_bias. The first two may be written
//           over gates, which are read for the last time then.
// Steps t >= lengths[b] are padding: never read, written as 0 (in gates too), the state carried past them.
// Packed (batch_sizes), there is no padding: [N, .] has of step t the first batch_sizes[t] rows, step after step, and
// the batch is in order of falling length; rows.h's Layout tells where a row is.
//
// In BFloat16 the gates, the output and the gradients of the gates are stored rounded, and h and these gradients enter
// products rounded; the state itself, sums and the gradient of the state are floats.
//
// Threads take rows of the batch and need no barrier, or, where the rows are too few or the weights too large for a
// core's cache, blocks of hidden units with one barrier a step. Both give the same bits.
#include "../common/cell.h"
#include "gemm.h"
#include "kernels.h"
#include "math.h"
#include "rows.h"
#include "tables.h"
#include "threads.h"
#include "weight_gradients.h"
#include "workspace.h"

namespace vssn::VSSN_ISA {

namespace {

template <class Problem>
Partition plan_threads(const Problem& k, const Layout& layout, int64_t blocks, size_t scalar_bytes) {
    const int64_t weights = 3 * k.H * k.H, mean_rows = layout.begins && k.steps > 0 ? layout.rows() / k.steps : k.B;
    return partition(k.threads, k.steps, k.B, mean_rows * weights, weights * static_cast<int64_t>(scalar_bytes),
                     blocks);
}

// ---- Forward ---------------------------------------------------------------------------------------------

// Whether the weights are met as they are: for so few rows in all steps together that packing them costs more than it
// saves. Large ones take longer to pack, as they come from further away.
inline bool forward_unpacked(int64_t rows, int64_t H) { return rows <= (H < 128 ? 16 : 64); }
inline bool backward_unpacked(int64_t rows) { return rows <= 12; }

template <class S>
struct ForwardBuffers {
    using T = Compute<S>;
    using E = Operand<S>;
    bool packed;
    int64_t blocks, K;               // blocks of kLanes units; H in whole depth
    int64_t stride, operand_stride;  // distance between rows of a state
    E* panels;                       // [blocks][K][3 L]: for a block the columns of r, z and n
    T* bias;                         // [blocks][3 L]
    T* state[2];                     // [B][stride] each, read and written in turn
    E* operand[2];                   // [B][operand_stride]: the same as products take it, where that is not as it is
    int64_t *order, *slices, *places;
    int64_t bytes;

    ForwardBuffers(void* memory, const GruForward<S>& k)
        : packed(!forward_unpacked(count_rows(k.batch_sizes, k.steps, k.B), k.H)),
          blocks((k.H + kLanes<T> - 1) / kLanes<T>),
          K(depth<E>(k.H)),
          stride(row_stride<T>(k.H)),
          operand_stride(row_stride<E>(round_up(k.H, 2 * kLanes<T>))) {
        Arena arena(memory);
        panels = arena.take<E>(packed ? blocks * K * 3 * kLanes<T> : 0);
        bias = arena.take<T>(blocks * 3 * kLanes<T>);
        for (T*& buffer : state) buffer = arena.take<T>(k.B * stride);
        for (E*& buffer : operand) buffer = arena.take<E>(kRounds<S> ? k.B * operand_stride : 0);
        order = arena.take<int64_t>(k.B);
        slices = arena.take<int64_t>(k.B);
        places = arena.take<int64_t>(Layout::places(k.batch_sizes, k.steps, k.B));
        bytes = arena.bytes();
    }
};

// A state for some rows on, and as products take it: the same where nothing is rounded.
template <class S>
struct State {
    Compute<S>* values;
    Operand<S>* operands;
};

template <class S>
State<S> state_of(const ForwardBuffers<S>& w, int turn, int64_t first) {
    Compute<S>* values = w.state[turn] + first * w.stride;
    if constexpr (kRounds<S>)
        return {values, w.operand[turn] + first * w.operand_stride};
    else
        return {values, values};
}

template <class S>
void pack_forward(const GruForward<S>& k, const ForwardBuffers<S>& w, Range blocks) {
    constexpr int64_t L = kLanes<S>, vector = Products<Operand<S>>::kTogether * L;  // of a panel
    for (int64_t block = blocks.begin; block < blocks.end; ++block)
        for (int64_t gate = 0; gate < 3; ++gate) {
            const int64_t first = gate * k.H + block * L, units = k.H - block * L;
            if (w.packed)
                pack_transposed(w.panels + block * w.K * 3 * L + gate * vector, k.H, L, 3 * L, k.weight, first, units);
            for (int64_t j = 0; j < L; ++j)
                w.bias[(block * 3 + gate) * L + j] = j < units ? k.bias[first + j] : Compute<S>(0);
        }
}

template <class S>
void forward_step(const GruForward<S>& k, const Layout& layout, const ForwardBuffers<S>& w, const RowList& list,
                  Range blocks, int64_t t, const State<S>& now, const State<S>& next) {
    using T = Compute<S>;
    using E = Operand<S>;
    using Math = VectorMath<T>;
    constexpr int64_t L = kLanes<T>;
    const Rows<const S> gates_x = layout.step(k.gates_x, t);
    const int64_t begin = layout.begin(t), operand_stride = kRounds<S> ? w.operand_stride : w.stride;
    auto expect = [&](int64_t block, int64_t first, int rows) VSSN_INLINED {
        for (int i = 0; i < rows; ++i) {
            const S* x = gates_x.row(list.rows[first + i]) + block * L;
            for (int gate = 0; gate < 3; ++gate) prefetch(x + gate * k.H);
            if (!k.gates) continue;
            const S* gates = k.gates + 4 * (begin + list.rows[first + i]) * k.H + block * L;
            for (int gate = 0; gate < 4; ++gate) prefetch(gates + gate * k.H);
        }
    };
    auto finish = [&](int64_t block, int64_t first, int rows, const Tile<E, 3>& product) {
        const int64_t unit = block * L, count = k.H - unit < L ? k.H - unit : L;
        const T* bias = w.bias + block * 3 * L;
        for (int i = 0; i < rows; ++i) {
            const int64_t b = list.rows[first + i], at = begin + b, slot = (first + i) * w.stride + unit;
            const S* x = gates_x.row(b) + unit;
            const GruGates<Vec<T>> g = gru_gates<Math>(load(x, count) + (product[i][0] + load(bias)),
                                                       load(x + k.H, count) + (product[i][1] + load(bias + L)),
                                                       load(x + 2 * k.H, count), product[i][2] + load(bias + 2 * L));
            const Vec<T> h = gru_next(g, load(now.values + slot));
            store(next.values + slot, h);
            E* operands = next.operands + (first + i) * w.operand_stride;
            if (kRounds<S> && w.packed) store_operand<S>(operands + unit, h);
            if (kRounds<S> && !w.packed) Dots<E, S>::store_part(operands, unit, h);
            store(k.output + at * k.H + unit, h, count);
            if (k.gates) {
                S* gates = k.gates + 4 * at * k.H + unit;
                store(gates, g.r, count);
                store(gates + k.H, g.z, count);
                store(gates + 2 * k.H, g.n, count);
                store(gates + 3 * k.H, g.a, count);
            }
        }
    };
    if (w.packed) {
        multiply<E, 3>(now.operands, operand_stride, list.active, w.panels, blocks, w.K, expect, finish);
    } else {
        Tile<E, 3> product;
        Vec<T> dots[kDotRows];
        for (int64_t block = blocks.begin; block < blocks.end; ++block)
            for (int64_t first = 0; first < list.active;) {
                const int64_t units = k.H - block * L < L ? k.H - block * L : L;
                const int rows = tile_height(list.active - first, kDotRows);
                const E* operands = now.operands + first * operand_stride;
                for (int gate = 0; gate < 3; ++gate) {
                    multiply_dots(operands, operand_stride, rows, k.weight, gate * k.H + block * L, units, k.H, dots);
                    for (int i = 0; i < rows; ++i) product[i][gate] = dots[i];
                }
                finish(block, first, rows, product);
                first += rows;
            }
    }
    if (layout.begins) return;
    const int64_t from = blocks.begin * L, end = blocks.end * L, to = end < k.H ? end : k.H;
    for (int64_t i = list.active; i < list.count; ++i) {
        const int64_t row = (begin + list.rows[i]) * k.H;
        for (int64_t unit = from; unit < to; ++unit) k.output[row + unit] = 0;
        for (int64_t gate = 0; k.gates && gate < 4; ++gate)
            for (int64_t unit = from; unit < to; ++unit) k.gates[4 * row + gate * k.H + unit] = 0;
    }
}

template <class S>
void forward(const GruForward<S>& k, void* workspace) {
    using T = Compute<S>;
    const ForwardBuffers<S> w(workspace, k);
    const Layout layout(k.steps, k.B, k.lengths, k.batch_sizes, w.places);
    const Partition plan = plan_threads(k, layout, w.blocks, sizeof(Operand<S>));
    order_rows(layout.lengths, k.B, w.order);
    for (Operand<S>* operands : w.operand)
        if (kRounds<S>) fill_zeros(operands, k.B * w.operand_stride);
    auto body = [&](Team team) {
        RowList list = take_rows(plan, team, w.order, w.slices, layout.lengths, k.B);
        const Range blocks = plan.blocks(w.blocks, team);
        const int64_t from = blocks.begin * kLanes<T>, end = blocks.end * kLanes<T>;
        const int64_t to = end < k.H ? end : k.H;
        const State<S> states[2] = {state_of(w, 0, list.first), state_of(w, 1, list.first)};
        pack_forward(k, w, share(w.blocks, team.rank, team.size));
        for (int64_t i = 0; i < list.count; ++i)
            for (int64_t unit = from; unit < end; ++unit)
                for (const State<S>& state : states) {
                    const T h = unit < k.H ? k.h0.row(list.rows[i])[unit] : T(0);
                    state.values[i * w.stride + unit] = h;
                    const int64_t place = w.packed ? unit : Dots<Operand<S>, S>::place(unit);
                    if (kRounds<S>) state.operands[i * w.operand_stride + place] = operand<S>(h);
                }
        team.wait();
        for (int64_t s = 0; s < k.steps; ++s) {
            const int64_t t = k.reverse ? k.steps - 1 - s : s;
            list.step(t);
            forward_step(k, layout, w, list, blocks, t, states[s % 2], states[(s + 1) % 2]);
            if (plan.split_units) team.wait();
        }
        for (int64_t i = 0; i < list.count; ++i) {
            const int64_t b = list.rows[i];
            // The buffer that the row's last step wrote: forward stops at its length, reverse ends at t = 0.
            const int64_t last = layout.lengths && !k.reverse ? layout.lengths[b] : k.steps;
            const T* state = states[last % 2].values + i * w.stride;
            for (int64_t unit = from; unit < to; ++unit) k.h_n[b * k.H + unit] = state[unit];
        }
    };
    parallel(plan.threads, body);
}

// ---- Backward --------------------------------------------------------------------------------------------

template <class S>
struct BackwardBuffers {
    using T = Compute<S>;
    using E = Operand<S>;
    bool packed;                  // else whole blocks are read from W_h, and one that is not whole from panels
    int64_t blocks, padded;       // blocks of 2 kLanes units; H in whole vectors and whole depth
    int64_t grad_stride, stride;  // distance between rows of grads and of carry
    E* panels;                    // [blocks][3 padded][2 L]: W_h's columns; rows of r, z, n, each padded with zeros
    E* grads[2];                  // [B][grad_stride]: gradients of W_h h, as the panels' rows
    T* carry;                     // [B][stride]: the gradient of the state, on its way to the step before
    S* starts;                    // [B][4 H]: the gates' gradients at each row's first step, where it is not the same t
    int64_t *order, *slices, *places;
    int64_t bytes;

    BackwardBuffers(void* memory, const GruBackward<S>& k)
        : packed(kRounds<E> || !backward_unpacked(count_rows(k.batch_sizes, k.steps, k.B))),  // pairs have to be made
          blocks((k.H + 2 * kLanes<T> - 1) / (2 * kLanes<T>)),
          padded(round_up(k.H, kDepth<E> > kLanes<T> ? kDepth<E> : kLanes<T>)),
          grad_stride(row_stride<E>(3 * padded)),
          stride(row_stride<T>(blocks * 2 * kLanes<T>)) {
        Arena arena(memory);
        panels = arena.take<E>((packed ? blocks : 1) * 3 * padded * 2 * kLanes<T>);
        for (E*& buffer : grads) buffer = arena.take<E>(k.B * grad_stride);
        carry = arena.take<T>(k.B * stride);
        starts = arena.take<S>(k.B * 4 * k.H);
        order = arena.take<int64_t>(k.B);
        slices = arena.take<int64_t>(k.B);
        places = arena.take<int64_t>(Layout::places(k.batch_sizes, k.steps, k.B));
        bytes = arena.bytes();
    }
};

// The gradients of a step's gates for this thread's units [from, to); dh z stays in carry.
template <class S>
void gate_step(const GruBackward<S>& k, const Layout& layout, const BackwardBuffers<S>& w, const RowList& list,
               int64_t t, int64_t from, int64_t to, Operand<S>* grads, Compute<S>* carry) {
    using T = Compute<S>;
    constexpr int64_t L = kLanes<T>;
    const Rows<const S> grad_output = layout.step(k.grad_output, t);
    const int64_t begin = layout.begin(t), previous = k.reverse ? layout.begin(t + 1) : t > 0 ? layout.begin(t - 1) : 0;
    for (int64_t i = 0; i < list.active; ++i) {
        const int64_t b = list.rows[i], at = begin + b;
        const int64_t first = !k.reverse ? 0 : (layout.lengths ? layout.lengths[b] : k.steps) - 1;  // of its steps
        const S* state = t == first ? k.h0.row(b) : k.output + (previous + b) * k.H;
        Operand<S>* grad_row = grads + i * w.grad_stride;
        T* carry_row = carry + i * w.stride;
        S *grad_x = k.grad_gates_x.row(at), *grad_a = k.grad_a.row(at);
        for (int64_t unit = from; unit < to; unit += L) {
            const int64_t count = k.H - unit < L ? k.H - unit : L;
            const S* gates = k.gates + 4 * at * k.H + unit;
            const GruGates<Vec<T>> g = {load(gates, count), load(gates + k.H, count), load(gates + 2 * k.H, count),
                                        load(gates + 3 * k.H, count)};
            Vec<T> dh = load(carry_row + unit);
            if (grad_output.data) dh += load(grad_output.row(b) + unit, count);
            const GruGates<Vec<T>> grad = gru_gate_grads(g, load(state + unit, count), dh);
            store(grad_x + unit, grad.r, count);
            store(grad_x + k.H + unit, grad.z, count);
            store(grad_x + 2 * k.H + unit, grad.n, count);
            store(grad_a + unit, grad.a, count);
            // Lanes past H hold zeros: everything that they were computed from is 0.
            store_operand<S>(grad_row + unit, grad.r);
            store_operand<S>(grad_row + w.padded + unit, grad.z);
            store_operand<S>(grad_row + 2 * w.padded + unit, grad.a);
            store(carry_row + unit, dh * g.z);
        }
    }
    for (int64_t i = list.active; !layout.begins && i < list.count; ++i) {
        const int64_t at = begin + list.rows[i];
        for (int64_t unit = from; unit < to; ++unit) {
            for (int64_t gate = 0; gate < 3; ++gate) k.grad_gates_x.row(at)[gate * k.H + unit] = 0;
            k.grad_a.row(at)[unit] = 0;
        }
    }
}

// The gradients of the gates at the last valid step of each row, zeros where there is none, for units [from, to).
template <class S>
void gather_starts(const GruBackward<S>& k, const Layout& layout, const BackwardBuffers<S>& w, const RowList& list,
                   int64_t from, int64_t to) {
    for (int64_t i = 0; i < list.count; ++i) {
        const int64_t b = list.rows[i], last = layout.lengths[b] - 1, at = last < 0 ? -1 : layout.begin(last) + b;
        S* starts = w.starts + b * 4 * k.H;
        for (int64_t unit = from; unit < to; ++unit) {
            for (int64_t gate = 0; gate < 3; ++gate)
                starts[gate * k.H + unit] = at < 0 ? S(0) : k.grad_gates_x.row(at)[gate * k.H + unit];
            starts[3 * k.H + unit] = at < 0 ? S(0) : k.grad_a.row(at)[unit];
        }
    }
}

// meet(row, before, count, again): `count` rows of gradients from `row` on go with those of output from `before` on,
// the states before their steps; for all steps but the first. The two are as far apart as the earlier of two steps is
// wide, so packed it takes a call for each width, all but the first with again = true. Reverse with lengths, padded:
// what goes with a row's first step here is the padding behind it, zeros.
template <class Meet>
VSSN_INLINE void for_rows_and_before(const Layout& layout, bool reverse, const Meet& meet) {
    int64_t runs = 0;
    for (int64_t t = 1, end; t < layout.steps; t = end, ++runs) {
        const int64_t wide = layout.begin(t) - layout.begin(t - 1);
        end = layout.begins ? t + 1 : layout.steps;
        while (end < layout.steps && layout.begin(end) - layout.begin(end - 1) == wide) ++end;
        const int64_t early = layout.begin(t - 1), late = layout.begin(t);
        meet(reverse ? early : late, reverse ? late : early, layout.begin(end) - late, runs > 0);
    }
    if (runs == 0) meet(0, 0, 0, false);
}

// This thread's part of grad_weight and grad_bias: every step's gradients with the state before the step.
template <class S>
void weight_grads(const GruBackward<S>& k, const Layout& layout, const BackwardBuffers<S>& w, Team team) {
    const int64_t H = k.H, all = layout.rows(), first = k.steps > 0 ? k.B : 0;
    const int64_t later = k.steps > 0 ? all - layout.begin(1) : 0;
    const int64_t start = k.reverse && k.steps > 0 ? layout.begin(k.steps - 1) : 0;
    const bool gather = k.reverse && layout.lengths;
    // [rows, .] of r and z, and of a: at all steps, and at each row's first one.
    const Rows<const S> rz = constant(k.grad_gates_x), a = constant(k.grad_a);
    const Rows<const S> first_rz = gather ? Rows<const S>{w.starts, 4 * H} : Rows<const S>{rz.row(start), rz.stride};
    const Rows<const S> first_a =
        gather ? Rows<const S>{w.starts + 3 * H, 4 * H} : Rows<const S>{a.row(start), a.stride};
    auto add_later = [&](const Rows<const S>& grads, int64_t units, Compute<S>* out, int turn) {
        for_rows_and_before(layout, k.reverse, [&](int64_t from, int64_t before, int64_t count, bool add) {
            const Rows<const S> run = {grads.row(from), grads.stride}, states = {k.output + before * H, H};
            weight_gradient<S>({run, states, count, units, H, out, H, add}, team, turn);
        });
    };
    auto add_first = [&](const Rows<const S>& grads, int64_t units, Compute<S>* out, int turn) {
        for_rows_with_steps(layout.lengths, first, [&](int64_t from, int64_t count) VSSN_INLINED {
            const Rows<const S> run = {grads.row(from), grads.stride}, h0 = {k.h0.row(from), k.h0.stride};
            weight_gradient<S>({run, h0, count, units, H, out, H, true}, team, turn);
        });
    };
    if (k.grad_weight) {
        Compute<S>* grad_n = k.grad_weight + 2 * H * H;
        if (later == 0 && !layout.lengths) {  // a single step: nothing to add to
            weight_gradient<S>({first_rz, k.h0, first, 2 * H, H, k.grad_weight, H, false}, team, 0);
            weight_gradient<S>({first_a, k.h0, first, H, H, grad_n, H, false}, team, 1);
        } else {
            add_later(rz, 2 * H, k.grad_weight, 0);
            add_first(first_rz, 2 * H, k.grad_weight, 0);
            add_later(a, H, grad_n, 1);
            add_first(first_a, H, grad_n, 1);
        }
    }
    if (k.grad_bias) {
        bias_gradient(rz, all, 2 * H, k.grad_bias, team, 0);
        bias_gradient(a, all, H, k.grad_bias + 2 * H, team, 1);
    }
}

template <class S>
void pack_backward(const GruBackward<S>& k, const BackwardBuffers<S>& w, Team team) {
    constexpr int64_t width = 2 * kLanes<S>;
    Range mine = share(w.blocks, team.rank, team.size);
    Operand<S>* panels = w.panels;
    if (!w.packed) {  // the one that is not whole, by the thread that packs the last one
        mine.begin = k.H / width > mine.begin ? k.H / width : mine.begin;
        panels -= (k.H / width) * 3 * w.padded * width;
    }
    for (int64_t gate = 0; gate < 3; ++gate)
        pack_rows<Operand<S>, 2>(panels + gate * w.padded * width, 3 * w.padded * width, mine, w.padded, k.weight,
                                 gate * k.H, k.H, k.H);
}

// The gradients of a step's gates times W_h, for some blocks of its columns: add(block, first, rows, tile).
template <class S, class Add>
VSSN_INLINE void multiply_backward(const GruBackward<S>& k, const BackwardBuffers<S>& w, const Operand<S>* grads,
                                   int64_t rows, Range blocks, const Add& add) {
    using E = Operand<S>;
    constexpr int64_t width = 2 * kLanes<S>;
    if (kRounds<E> || w.packed)
        return multiply<E, 2>(grads, w.grad_stride, rows, w.panels, blocks, 3 * w.padded, nothing_to_expect, add);
    if constexpr (!kRounds<E>) {
        const Segment<E> gates[3] = {{grads, w.grad_stride, k.H},
                                     {grads + w.padded, w.grad_stride, k.H},
                                     {grads + 2 * w.padded, w.grad_stride, k.H}};
        const int64_t whole = k.H / width < blocks.end ? k.H / width : blocks.end;
        multiply<E, 2>(gates, 3, rows, Panels<S>{k.weight.data, width, k.weight.stride}, {blocks.begin, whole},
                       nothing_to_expect, add);
        if (whole < blocks.end)
            multiply<E, 2>(grads, w.grad_stride, rows, w.panels, Range{0, 1}, 3 * w.padded, nothing_to_expect,
                           [&](int64_t, int64_t first, int rows, const Tile<E, 2>& tile)
                               VSSN_INLINED { add(whole, first, rows, tile); });
    }
}

template <class S>
void backward(const GruBackward<S>& k, void* workspace) {
    using T = Compute<S>;
    using E = Operand<S>;
    constexpr int64_t L = kLanes<T>, width = 2 * L;
    const BackwardBuffers<S> w(workspace, k);
    const Layout layout(k.steps, k.B, k.lengths, k.batch_sizes, w.places);
    const Partition plan = plan_threads(k, layout, w.blocks, sizeof(E));
    const int64_t products = k.steps - (k.grad_h0 ? 0 : 1);  // what goes back past the first step is grad_h0
    order_rows(layout.lengths, k.B, w.order);
    for (E* grads : w.grads)
        if (w.padded > round_up(k.H, L)) fill_zeros(grads, k.B * w.grad_stride);
    auto body = [&](Team team) {
        RowList list = take_rows(plan, team, w.order, w.slices, layout.lengths, k.B);
        const Range blocks = plan.blocks(w.blocks, team);
        const int64_t from = blocks.begin * width, end = blocks.end * width, to = end < k.H ? end : k.H;
        T* carry = w.carry + list.first * w.stride;
        if (products > 0) pack_backward(k, w, team);
        for (int64_t i = 0; i < list.count; ++i)
            for (int64_t unit = from; unit < end; ++unit)
                carry[i * w.stride + unit] = unit < k.H && k.grad_h_n.data ? k.grad_h_n.row(list.rows[i])[unit] : T(0);
        team.wait();
        for (int64_t s = k.steps - 1; s >= 0; --s) {
            const int64_t t = k.reverse ? k.steps - 1 - s : s;
            list.step(t);
            // Units split: one thread may begin the next step while another still reads this step's gradients.
            E* grads = w.grads[plan.split_units ? s % 2 : 0] + list.first * w.grad_stride;
            gate_step(k, layout, w, list, t, from, to, grads, carry);
            if (plan.split_units) team.wait();
            auto add = [&](int64_t block, int64_t first, int rows, const Tile<E, 2>& product) {
                for (int i = 0; i < rows; ++i)
                    for (int j = 0; j < 2; ++j) {
                        T* sum = carry + (first + i) * w.stride + block * width + j * L;
                        store(sum, load(sum) + product[i][j]);
                    }
            };
            if (k.steps - s <= products) multiply_backward(k, w, grads, list.active, blocks, add);
        }
        for (int64_t i = 0; k.grad_h0 && i < list.count; ++i)
            for (int64_t unit = from; unit < to; ++unit)
                k.grad_h0[list.rows[i] * k.H + unit] = carry[i * w.stride + unit];
        if (!k.grad_weight && !k.grad_bias) return;
        if (k.grad_weight && k.reverse && layout.lengths) gather_starts(k, layout, w, list, from, to);
        team.wait();
        weight_grads(k, layout, w, team);
    };
    parallel(plan.threads, body);
}

}  // namespace

#define VSSN_ENTRIES(T)                                                                                   \
    void gru_forward(const GruForward<T>& k, void* workspace) { forward(k, workspace); }                  \
    void gru_backward(const GruBackward<T>& k, void* workspace) { backward(k, workspace); }               \
    int64_t gru_forward_workspace(const GruForward<T>& k) { return ForwardBuffers<T>(nullptr, k).bytes; } \
    int64_t gru_backward_workspace(const GruBackward<T>& k) { return BackwardBuffers<T>(nullptr, k).bytes; }
VSSN_FOR_STORAGES(VSSN_ENTRIES)

}  // namespace vssn::VSSN_ISA

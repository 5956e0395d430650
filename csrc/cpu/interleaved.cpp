// A GRU whose input takes the latent sampled at the step before, and its gradient; one call per sequence.
//
//   e         = act_e(embed_context[t] + W_e z_{t-1})                      embed_context [T, B, E], W_e [E, Z]
//   r, u      = sigmoid(x_r + W_hr h + b_r), sigmoid(x_u + W_hu h + b_u)   x = gates_x[t] + W_zh e  [B, 3H], h =
//   h_{t-1} a         = W_hn h + b_n,   n = tanh(x_n + r a) h_t       = (1 - u) n + u h [T, B, H] hidden    =
//   act(context[t] + W_h h_t)                                  context [T, B, M], W_h [M, H] (mu, raw) = W_out hidden +
//   b_out                                       W_out [2Z, M] logvar    = min_logvar + softplus(raw - min_logvar)   or
//   2 log(softplus(raw) + min_std) z_t       = mu + exp(logvar / 2) eps[t]                                [T, B, Z]
//
// forward   reads what stands on the right; writes h, z, mu, logvar and, for backward, gates = (r, u, n, a), embed and
//           hidden.
// backward  with dz and dh the gradients that reach z_t and h_t, g = (grad_mu + dz, (grad_logvar + dz sigma eps / 2)
//           slope):
//             grad_context       = act'(hidden) * g W_out,   dh += grad_context W_h
//             grad_gates_x       = the gates' gradients of dh, grad_a that of a
//             grad_embed_context = act_e'(embed) * grad_gates_x W_zh
//             of step t - 1:  dz = grad_embed_context W_e,   dh = dh u + (grad_r, grad_u, grad_a) W_hh
//           writes these, grad_out = g, grad_eps = dz sigma, grad_h0, grad_z0 and, after the loop, the gradients of
//           weights and biases.
// resets    [T, B]: before step t the rows that are set go on from reset_h and reset_z; backward their dh and dz go to
//           grad_reset_h and grad_reset_z, and no further.
// Steps t >= lengths[b] are padding: never read, written as 0.
//
// Threads take rows of the batch, or blocks of units of every layer with a barrier after each (rows.h).
#include "../common/cell.h"
#include "activation.h"
#include "blocks.h"
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

// Blocks of units of each layer: of kLanes for the gates and the latent, whose panels hold several of each, else kWide.
struct Blocks {
    int64_t embed, state, hidden, latent;
};

template <class Problem>
Partition plan_threads(const Problem& k, int64_t blocks, size_t scalar_bytes) {
    const int64_t weights = 3 * k.H * (k.H + k.E) + k.E * k.Z + k.M * k.H + 2 * k.Z * k.M;
    return partition(k.threads, k.steps, k.B, k.B * weights, weights * static_cast<int64_t>(scalar_bytes), blocks);
}

// This thread's blocks of every layer.
struct Share {
    Range embed, state, hidden, latent;
};

VSSN_INLINE Share take_blocks(const Partition& plan, const Blocks& blocks, Team team) {
    return {plan.blocks(blocks.embed, team), plan.blocks(blocks.state, team), plan.blocks(blocks.hidden, team),
            plan.blocks(blocks.latent, team)};
}

// The columns [from, to) of a block of units that exist.
VSSN_INLINE Range columns(Range blocks, int64_t width, int64_t units) {
    return {smaller(blocks.begin * width, units), smaller(blocks.end * width, units)};
}

// ---- Forward ---------------------------------------------------------------------------------------------

template <class T>
struct ForwardBuffers {
    Blocks blocks;
    int64_t embed_stride, gates_stride, state_stride, hidden_stride, latent_stride;  // between rows
    T *into_embed, *into_hidden;  // W_e: [embed][Z][kWide];  W_h: [hidden][H][kWide]
    T *into_gates, *recurrent;    // W_zh: [state][E][3 L];  W_hh: [state][H][3 L]: for a block the columns r, u, n
    T* out;                       // W_out: [latent][M][mu L | raw L]
    T *bias_gates, *bias_out;     // [state][3 L], [latent][mu L | raw L]
    T *embed, *gates, *hidden;    // act_e(.) [B][.];  gates_x + W_zh e [B][state blocks][3 L];  act(.) [B][.]
    T *state[2], *latent;         // h_{t-1} and h_t in turn, z_{t-1}
    int64_t *order, *slices;
    int64_t bytes;

    ForwardBuffers(void* memory, const InterleavedForward<T>& k)
        : blocks{count_blocks(k.E, kWide<T>), count_blocks(k.H, kLanes<T>), count_blocks(k.M, kWide<T>),
                 count_blocks(k.Z, kLanes<T>)},
          embed_stride(row_stride<T>(blocks.embed * kWide<T>)),
          gates_stride(row_stride<T>(blocks.state * 3 * kLanes<T>)),
          state_stride(row_stride<T>(blocks.state * kLanes<T>)),
          hidden_stride(row_stride<T>(blocks.hidden * kWide<T>)),
          latent_stride(row_stride<T>(blocks.latent * kLanes<T>)) {
        constexpr int64_t L = kLanes<T>;
        Arena arena(memory);
        into_embed = arena.take<T>(blocks.embed * k.Z * kWide<T>);
        into_gates = arena.take<T>(blocks.state * k.E * 3 * L);
        recurrent = arena.take<T>(blocks.state * k.H * 3 * L);
        into_hidden = arena.take<T>(blocks.hidden * k.H * kWide<T>);
        out = arena.take<T>(blocks.latent * k.M * 2 * L);
        bias_gates = arena.take<T>(blocks.state * 3 * L);
        bias_out = arena.take<T>(blocks.latent * 2 * L);
        embed = arena.take<T>(k.B * embed_stride);
        gates = arena.take<T>(k.B * gates_stride);
        for (T*& buffer : state) buffer = arena.take<T>(k.B * state_stride);
        hidden = arena.take<T>(k.B * hidden_stride);
        latent = arena.take<T>(k.B * latent_stride);
        order = arena.take<int64_t>(k.B);
        slices = arena.take<int64_t>(k.B);
        bytes = arena.bytes();
    }
};

// Panels of `parts` vectors side by side: for a block of kLanes units the rows `units` apart of W and of the bias.
template <class T>
void pack_parts(T* panels, T* bias, int parts, Range blocks, int64_t K, const Rows<const T>& weight, const T* biases,
                int64_t units) {
    constexpr int64_t L = kLanes<T>;
    for (int64_t block = blocks.begin; block < blocks.end; ++block)
        for (int part = 0; part < parts; ++part) {
            const int64_t first = part * units + block * L, count = units - block * L;
            pack_transposed(panels + (block * K * parts + part) * L, K, L, parts * L, weight, first, count);
            for (int64_t j = 0; biases && j < L; ++j)
                bias[(block * parts + part) * L + j] = j < count ? biases[first + j] : T(0);
        }
}

template <class T>
void pack_wide(T* panels, Range blocks, int64_t K, const Rows<const T>& weight, int64_t units) {
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
        const int64_t first = block * kWide<T>;
        pack_transposed(panels + first * K, K, kWide<T>, kWide<T>, weight, first, units - first);
    }
}

template <class T>
void pack_forward(const InterleavedForward<T>& k, const ForwardBuffers<T>& w, Team team) {
    const Range state = share(w.blocks.state, team.rank, team.size);
    pack_wide(w.into_embed, share(w.blocks.embed, team.rank, team.size), k.Z, k.weight_embed, k.E);
    pack_parts<T>(w.into_gates, nullptr, 3, state, k.E, k.weight_zh, nullptr, k.H);
    pack_parts(w.recurrent, w.bias_gates, 3, state, k.H, k.weight_hh, k.bias_hh, k.H);
    pack_wide(w.into_hidden, share(w.blocks.hidden, team.rank, team.size), k.H, k.weight_h, k.M);
    pack_parts(w.out, w.bias_out, 2, share(w.blocks.latent, team.rank, team.size), k.M, k.weight_out, k.bias_out, k.Z);
}

// A hidden layer: active = act(context[t] + W input) for the blocks given; kept: for backward, or null.
template <class T>
struct Layer {
    Activation activation;
    int64_t units, K;
    const T* panels;
    Steps<const T> context;
    T* active;
    int64_t stride;
    T* kept;
};

template <class T>
void layer_step(const Layer<T>& layer, const RowList& list, Range blocks, int64_t t, int64_t B, const T* input,
                int64_t input_stride) {
    constexpr int64_t L = kLanes<T>;
    const bool keep_input = keeps_input(layer.activation);
    auto expect = [&](int64_t block, int64_t first, int rows) VSSN_INLINED {
        for (int i = 0; i < rows; ++i) prefetch(layer.context.row(t, list.rows[first + i]) + block * kWide<T>, 2);
    };
    auto finish = [&](int64_t block, int64_t first, int rows, const Tile<T, 2>& product) {
        for (int i = 0; i < rows; ++i)
            for (int j = 0; j < 2; ++j) {
                const int64_t unit = block * kWide<T> + j * L, count = layer.units - unit, b = list.rows[first + i];
                if (count <= 0) break;
                const Vec<T> before = load(layer.context.row(t, b) + unit, count) + product[i][j];
                const Vec<T> after = activate_by<T>(layer.activation, before);
                store(layer.active + (first + i) * layer.stride + unit, after);
                if (layer.kept)
                    store(layer.kept + (t * B + b) * layer.units + unit, keep_input ? before : after, count);
            }
    };
    multiply<T, 2>(input, input_stride, list.active, layer.panels, blocks, layer.K, expect, finish);
    if (layer.kept) zero_padding(layer.kept, t, B, layer.units, list, blocks.begin * kWide<T>, blocks.end * kWide<T>);
}

// h_t for the blocks of units given.
template <class T>
void state_step(const InterleavedForward<T>& k, const ForwardBuffers<T>& w, const RowList& list, Range blocks,
                int64_t t, const T* state, T* next) {
    using Math = VectorMath<T>;
    constexpr int64_t L = kLanes<T>;
    T* inputs = w.gates + list.first * w.gates_stride;
    auto expect = [&](int64_t block, int64_t first, int rows) VSSN_INLINED {
        for (int i = 0; i < rows; ++i) {
            const T* x = k.gates_x.row(t, list.rows[first + i]) + block * L;
            for (int gate = 0; gate < 3; ++gate) prefetch(x + gate * k.H);
        }
    };
    auto add_inputs = [&](int64_t block, int64_t first, int rows, const Tile<T, 3>& product) {
        const int64_t unit = block * L, count = k.H - unit;
        for (int i = 0; i < rows; ++i)
            for (int gate = 0; gate < 3; ++gate)
                store(inputs + (first + i) * w.gates_stride + block * 3 * L + gate * L,
                      load(k.gates_x.row(t, list.rows[first + i]) + gate * k.H + unit, count) + product[i][gate]);
    };
    auto finish = [&](int64_t block, int64_t first, int rows, const Tile<T, 3>& product) {
        const int64_t unit = block * L, count = smaller(k.H - unit, L);
        const T* bias = w.bias_gates + block * 3 * L;
        for (int i = 0; i < rows; ++i) {
            const int64_t at = t * k.B + list.rows[first + i], slot = (first + i) * w.state_stride + unit;
            const T* x = inputs + (first + i) * w.gates_stride + block * 3 * L;
            const GruGates<Vec<T>> g =
                gru_gates<Math>(load(x) + (product[i][0] + load(bias)), load(x + L) + (product[i][1] + load(bias + L)),
                                load(x + 2 * L), product[i][2] + load(bias + 2 * L));
            const Vec<T> h = gru_next(g, load(state + slot));
            store(next + slot, h);
            store(k.h + at * k.H + unit, h, count);
            if (k.gates) {
                T* gates = k.gates + 4 * (at * k.H + unit);
                store(gates, g.r, count);
                store(gates + count, g.z, count);
                store(gates + 2 * count, g.n, count);
                store(gates + 3 * count, g.a, count);
            }
        }
    };
    multiply<T, 3>(w.embed + list.first * w.embed_stride, w.embed_stride, list.active, w.into_gates, blocks, k.E,
                   expect, add_inputs);
    multiply<T, 3>(state, w.state_stride, list.active, w.recurrent, blocks, k.H, nothing_to_expect, finish);
    const Range units = columns(blocks, L, k.H);
    zero_padding(k.h, t, k.B, k.H, list, units.begin, units.end);
    if (k.gates) zero_padding(k.gates, t, k.B, 4 * k.H, list, 4 * units.begin, 4 * units.end);
}

// mu, logvar and z_t for the blocks of latents given.
template <class T>
void latent_step(const InterleavedForward<T>& k, const ForwardBuffers<T>& w, const RowList& list, Range blocks,
                 int64_t t) {
    using Math = VectorMath<T>;
    constexpr int64_t L = kLanes<T>;
    const Vec<T> min_logvar = broadcast(k.min_logvar), min_std = broadcast(k.min_std);
    auto expect = [&](int64_t block, int64_t first, int rows) VSSN_INLINED {
        for (int i = 0; i < rows; ++i) prefetch(k.eps.row(t, list.rows[first + i]) + block * L);
    };
    auto finish = [&](int64_t block, int64_t first, int rows, const Tile<T, 2>& product) {
        const int64_t unit = block * L, count = k.Z - unit;
        const T* bias = w.bias_out + block * 2 * L;
        for (int i = 0; i < rows; ++i) {
            const int64_t b = list.rows[first + i], at = (t * k.B + b) * k.Z + unit;
            const Vec<T> mu = product[i][0] + load(bias), raw = product[i][1] + load(bias + L);
            const Vec<T> logvar = k.scale == Scale::softplus ? softplus_logvar<Math>(raw, min_std)
                                                             : floored_logvar<Math>(raw, min_logvar);
            const Vec<T> z = mu + standard_deviation<Math>(logvar) * load(k.eps.row(t, b) + unit, count);
            store(w.latent + (list.first + first + i) * w.latent_stride + unit, z);
            store(k.z + at, z, count);
            store(k.mu + at, mu, count);
            store(k.logvar + at, logvar, count);
        }
    };
    multiply<T, 2>(w.hidden + list.first * w.hidden_stride, w.hidden_stride, list.active, w.out, blocks, k.M, expect,
                   finish);
    for (T* sequence : {k.z, k.mu, k.logvar})
        zero_padding(sequence, t, k.B, k.Z, list, blocks.begin * L, blocks.end * L);
}

// Row i goes on from what stands in row b of h and z, in the columns given; zeros behind the last one.
template <class T>
void place(const InterleavedForward<T>& k, const ForwardBuffers<T>& w, const Share& mine, int64_t i, int64_t b,
           const Rows<const T>& h, const Rows<const T>& z, T* state) {
    constexpr int64_t L = kLanes<T>;
    for (int64_t unit = mine.state.begin * L; unit < mine.state.end * L; ++unit)
        state[i * w.state_stride + unit] = unit < k.H ? h.row(b)[unit] : T(0);
    for (int64_t unit = mine.latent.begin * L; unit < mine.latent.end * L; ++unit)
        w.latent[i * w.latent_stride + unit] = unit < k.Z ? z.row(b)[unit] : T(0);
}

template <class T>
void reset(const InterleavedForward<T>& k, const ForwardBuffers<T>& w, const Share& mine, const RowList& list,
           int64_t t, T* state) {
    if (!k.resets || t == k.steps) return;
    for (int64_t i = 0; i < list.count; ++i)
        if (k.resets[t * k.B + list.rows[i]])
            place(k, w, mine, list.first + i, list.rows[i], k.reset_h, k.reset_z, state);
}

template <class T>
void forward(const InterleavedForward<T>& k, void* workspace) {
    const ForwardBuffers<T> w(workspace, k);
    const Partition plan = plan_threads(k, w.blocks.state, sizeof(T));
    order_rows(k.lengths, k.B, w.order);
    auto body = [&](Team team) {
        RowList list = take_rows(plan, team, w.order, w.slices, k.lengths, k.B);
        const Share mine = take_blocks(plan, w.blocks, team);
        const Layer<T> embed{
            k.embed_activation, k.E,    k.Z, w.into_embed, k.embed_context, w.embed + list.first * w.embed_stride,
            w.embed_stride,     k.embed};
        const Layer<T> hidden{k.activation,    k.M,       k.H,
                              w.into_hidden,   k.context, w.hidden + list.first * w.hidden_stride,
                              w.hidden_stride, k.hidden};
        pack_forward(k, w, team);
        for (int64_t i = 0; i < list.count; ++i)
            place(k, w, mine, list.first + i, list.rows[i], k.h0, k.z0, w.state[0]);
        reset(k, w, mine, list, 0, w.state[0]);
        team.wait();
        for (int64_t t = 0; t < k.steps; ++t) {
            T *state = w.state[t % 2] + list.first * w.state_stride, *next = w.state[(t + 1) % 2];
            list.step(t);
            layer_step(embed, list, mine.embed, t, k.B, w.latent + list.first * w.latent_stride, w.latent_stride);
            if (plan.split_units) team.wait();
            state_step<T>(k, w, list, mine.state, t, state, next + list.first * w.state_stride);
            if (plan.split_units) team.wait();
            layer_step<T>(hidden, list, mine.hidden, t, k.B, next + list.first * w.state_stride, w.state_stride);
            if (plan.split_units) team.wait();
            latent_step(k, w, list, mine.latent, t);
            reset(k, w, mine, list, t + 1, next);
            if (plan.split_units) team.wait();
        }
    };
    parallel(plan.threads, body);
}

// ---- Backward --------------------------------------------------------------------------------------------

template <class T>
struct BackwardBuffers {
    Blocks blocks;                         // of kWide units, all
    int64_t embed, state, hidden, latent;  // E, H, M and Z in whole blocks
    int64_t out_stride, hidden_stride, gates_stride, embed_stride, state_stride, latent_stride;
    T* out;                // W_out: [hidden][mu latent | raw latent][kWide]
    T* into_hidden;        // W_h: [state][hidden][kWide]
    T* recurrent;          // W_hh: [state][r state | u state | n state][kWide]
    T* into_gates;         // W_zh: [embed][r state | u state | n state][kWide]
    T* into_embed;         // W_e: [latent][embed][kWide]
    T* grad_out;           // [B][mu latent | raw latent]
    T* grad_hidden;        // [B][hidden], before the activation
    T* grad_gates;         // [B][r state | u state | a state | n state]
    T* grad_embed;         // [B][embed], before the activation
    T *carry_h, *carry_z;  // [B][state], [B][latent]: dh and dz, on their way to the step before
    int64_t *order, *slices;
    int64_t bytes;

    BackwardBuffers(void* memory, const InterleavedBackward<T>& k)
        : blocks{count_blocks(k.E, kWide<T>), count_blocks(k.H, kWide<T>), count_blocks(k.M, kWide<T>),
                 count_blocks(k.Z, kWide<T>)},
          embed(blocks.embed * kWide<T>),
          state(blocks.state * kWide<T>),
          hidden(blocks.hidden * kWide<T>),
          latent(blocks.latent * kWide<T>),
          out_stride(row_stride<T>(2 * latent)),
          hidden_stride(row_stride<T>(hidden)),
          gates_stride(row_stride<T>(4 * state)),
          embed_stride(row_stride<T>(embed)),
          state_stride(row_stride<T>(state)),
          latent_stride(row_stride<T>(latent)) {
        Arena arena(memory);
        out = arena.take<T>(hidden * 2 * latent);
        into_hidden = arena.take<T>(state * hidden);
        recurrent = arena.take<T>(state * 3 * state);
        into_gates = arena.take<T>(embed * 3 * state);
        into_embed = arena.take<T>(latent * embed);
        grad_out = arena.take<T>(k.B * out_stride);
        grad_hidden = arena.take<T>(k.B * hidden_stride);
        grad_gates = arena.take<T>(k.B * gates_stride);
        grad_embed = arena.take<T>(k.B * embed_stride);
        carry_h = arena.take<T>(k.B * state_stride);
        carry_z = arena.take<T>(k.B * latent_stride);
        order = arena.take<int64_t>(k.B);
        slices = arena.take<int64_t>(k.B);
        bytes = arena.bytes();
    }
};

template <class T>
void pack_backward(const InterleavedBackward<T>& k, const BackwardBuffers<T>& w, Team team) {
    constexpr int64_t width = kWide<T>;
    const auto mine = [&](int64_t blocks) { return share(blocks, team.rank, team.size); };
    for (int64_t part = 0; part < 2; ++part)
        pack_rows<T, 2>(w.out + part * w.latent * width, 2 * w.latent * width, mine(w.blocks.hidden), w.latent,
                        k.weight_out, part * k.Z, k.Z, k.M);
    pack_rows<T, 2>(w.into_hidden, w.hidden * width, mine(w.blocks.state), w.hidden, k.weight_h, 0, k.M, k.H);
    for (int64_t gate = 0; gate < 3; ++gate) {
        const int64_t at = gate * w.state * width, panel = 3 * w.state * width;
        pack_rows<T, 2>(w.recurrent + at, panel, mine(w.blocks.state), w.state, k.weight_hh, gate * k.H, k.H, k.H);
        pack_rows<T, 2>(w.into_gates + at, panel, mine(w.blocks.embed), w.state, k.weight_zh, gate * k.H, k.H, k.E);
    }
    pack_rows<T, 2>(w.into_embed, w.embed * width, mine(w.blocks.latent), w.embed, k.weight_embed, 0, k.E, k.Z);
}

// The gradients of mu, raw and eps for the latents given, from dz in carry_z.
template <class T>
void sample_step(const InterleavedBackward<T>& k, const BackwardBuffers<T>& w, const RowList& list, int64_t t,
                 Range units) {
    using Math = VectorMath<T>;
    const Vec<T> min_logvar = broadcast(k.min_logvar), min_std = broadcast(k.min_std);
    for (int64_t i = 0; i < list.active; ++i) {
        const int64_t b = list.rows[i], at = t * k.B + b;
        T* grad_row = w.grad_out + (list.first + i) * w.out_stride;
        const T* carry = w.carry_z + (list.first + i) * w.latent_stride;
        for (int64_t unit = units.begin; unit < units.end; unit += kLanes<T>) {
            const int64_t count = k.Z - unit;
            const Vec<T> dz = load(carry + unit) + load_or_zero(k.grad_z, t, b, unit, count);
            const Vec<T> logvar = load(k.logvar + at * k.Z + unit, count);
            const Vec<T> grad_eps = dz * standard_deviation<Math>(logvar);
            const Vec<T> grad_mu = dz + load_or_zero(k.grad_mu, t, b, unit, count);
            const Vec<T> grad_logvar = load_or_zero(k.grad_logvar, t, b, unit, count) +
                                       grad_eps * load(k.eps.row(t, b) + unit, count) * T(0.5);
            const Vec<T> slope = k.scale == Scale::softplus ? softplus_logvar_slope<Math>(logvar, min_std)
                                                            : floored_logvar_slope<Math>(logvar, min_logvar);
            const Vec<T> grad_raw = grad_logvar * slope;
            store(k.grad_out + at * 2 * k.Z + unit, grad_mu, count);
            store(k.grad_out + at * 2 * k.Z + k.Z + unit, grad_raw, count);
            if (k.grad_eps) store(k.grad_eps + at * k.Z + unit, grad_eps, count);
            store(grad_row + unit, keep<T>(grad_mu, count));
            store(grad_row + w.latent + unit, keep<T>(grad_raw, count));
        }
    }
    zero_padding(k.grad_out, t, k.B, 2 * k.Z, list, units.begin, units.end);
    zero_padding(k.grad_out, t, k.B, 2 * k.Z, list, k.Z + units.begin, k.Z + units.end);
    if (k.grad_eps) zero_padding(k.grad_eps, t, k.B, k.Z, list, units.begin, units.end);
}

// A hidden layer: grad_context = act'(kept) * grads W, for the blocks given; the buffer gets it too.
template <class T>
struct GradLayer {
    Activation activation;
    int64_t units, K;
    const T *panels, *kept;
    T *grad_context, *buffer;
    int64_t stride;
};

template <class T>
void grad_layer_step(const GradLayer<T>& layer, const RowList& list, Range blocks, int64_t t, int64_t B,
                     const Segment<T>* grads, int count_segments) {
    constexpr int64_t L = kLanes<T>;
    auto expect = [&](int64_t block, int64_t first, int rows) VSSN_INLINED {
        for (int i = 0; i < rows; ++i)
            prefetch(layer.kept + (t * B + list.rows[first + i]) * layer.units + block * kWide<T>, 2);
    };
    auto finish = [&](int64_t block, int64_t first, int rows, const Tile<T, 2>& product) {
        for (int i = 0; i < rows; ++i)
            for (int j = 0; j < 2; ++j) {
                const int64_t unit = block * kWide<T> + j * L, count = layer.units - unit;
                if (count <= 0) break;
                const int64_t at = (t * B + list.rows[first + i]) * layer.units + unit;
                const Vec<T> grad = product[i][j] * slope_by<T>(layer.activation, load(layer.kept + at, count));
                store(layer.grad_context + at, grad, count);
                store(layer.buffer + (first + i) * layer.stride + unit, keep<T>(grad, count));
            }
    };
    multiply<T, 2>(grads, count_segments, list.active, layer.panels, blocks, layer.K, expect, finish);
    zero_padding(layer.grad_context, t, B, layer.units, list, blocks.begin * kWide<T>, blocks.end * kWide<T>);
}

// dh and from it the gradients of the gates for the blocks of units given; dh u stays in carry_h.
template <class T>
void gate_step(const InterleavedBackward<T>& k, const BackwardBuffers<T>& w, const RowList& list, Range blocks,
               int64_t t) {
    constexpr int64_t L = kLanes<T>;
    auto expect = [&](int64_t block, int64_t first, int rows) VSSN_INLINED {
        for (int i = 0; i < rows; ++i)
            prefetch(k.gates + 4 * ((t * k.B + list.rows[first + i]) * k.H + block * kWide<T>), 8);
    };
    auto finish = [&](int64_t block, int64_t first, int rows, const Tile<T, 2>& product) {
        for (int i = 0; i < rows; ++i)
            for (int j = 0; j < 2; ++j) {
                const int64_t unit = block * kWide<T> + j * L, count = smaller(k.H - unit, L);
                if (count <= 0) break;
                const int64_t b = list.rows[first + i], at = t * k.B + b;
                T* carry = w.carry_h + (list.first + first + i) * w.state_stride + unit;
                T* grad_row = w.grad_gates + (list.first + first + i) * w.gates_stride + unit;
                const T* gates = k.gates + 4 * (at * k.H + unit);
                const GruGates<Vec<T>> g = {load(gates, count), load(gates + count, count),
                                            load(gates + 2 * count, count), load(gates + 3 * count, count)};
                const Vec<T> dh = load(carry) + load_or_zero(k.grad_h, t, b, unit, count) + product[i][j];
                const GruGates<Vec<T>> grad = gru_gate_grads(g, load(k.before_h.row(at) + unit, count), dh);
                T *grad_x = k.grad_gates_x + at * 3 * k.H + unit, *grad_a = k.grad_a + at * k.H + unit;
                store(grad_x, grad.r, count);
                store(grad_x + k.H, grad.z, count);
                store(grad_x + 2 * k.H, grad.n, count);
                store(grad_a, grad.a, count);
                store(grad_row, keep<T>(grad.r, count));
                store(grad_row + w.state, keep<T>(grad.z, count));
                store(grad_row + 2 * w.state, keep<T>(grad.a, count));
                store(grad_row + 3 * w.state, keep<T>(grad.n, count));
                store(carry, keep<T>(dh * g.z, count));
            }
    };
    multiply<T, 2>(w.grad_hidden + list.first * w.hidden_stride, w.hidden_stride, list.active, w.into_hidden, blocks,
                   w.hidden, expect, finish);
    const Range units = columns(blocks, kWide<T>, k.H);
    for (int64_t gate = 0; gate < 3; ++gate)
        zero_padding(k.grad_gates_x, t, k.B, 3 * k.H, list, gate * k.H + units.begin, gate * k.H + units.end);
    zero_padding(k.grad_a, t, k.B, k.H, list, units.begin, units.end);
}

// carry = (what it holds, where `add`) + grads W for the blocks given.
template <class T>
void carry_step(T* carry, int64_t stride, const T* grads, int64_t grads_stride, int64_t rows, const T* panels,
                Range blocks, int64_t K, bool add) {
    constexpr int64_t L = kLanes<T>;
    auto finish = [&](int64_t block, int64_t first, int count, const Tile<T, 2>& product) {
        for (int i = 0; i < count; ++i)
            for (int j = 0; j < 2; ++j) {
                T* sum = carry + (first + i) * stride + block * kWide<T> + j * L;
                store(sum, add ? load(sum) + product[i][j] : product[i][j]);
            }
    };
    multiply<T, 2>(grads, grads_stride, rows, panels, blocks, K, nothing_to_expect, finish);
}

// Of the rows that were reset before step t: the gradients of where they went on from, and zeros for what was before.
template <class T>
void reset_step(const InterleavedBackward<T>& k, const BackwardBuffers<T>& w, const RowList& list, int64_t t,
                Range state, Range latent) {
    if (!k.resets) return;
    for (int64_t i = 0; i < list.active; ++i) {
        const int64_t b = list.rows[i];
        if (!k.resets[t * k.B + b]) continue;
        T* carry_h = w.carry_h + (list.first + i) * w.state_stride;
        T* carry_z = w.carry_z + (list.first + i) * w.latent_stride;
        for (int64_t unit = state.begin; unit < state.end; ++unit) {
            k.grad_reset_h[b * k.H + unit] += carry_h[unit];
            carry_h[unit] = 0;
        }
        for (int64_t unit = latent.begin; unit < latent.end; ++unit) {
            k.grad_reset_z[b * k.Z + unit] += carry_z[unit];
            carry_z[unit] = 0;
        }
    }
}

template <class T>
void weight_grads(const InterleavedBackward<T>& k, Team team) {
    const int64_t all = k.steps * k.B;
    const Rows<const T> rz = {k.grad_gates_x, 3 * k.H}, a = {k.grad_a, k.H}, out = {k.grad_out, 2 * k.Z};
    if (k.grad_weight_hh) {
        weight_gradient<T>({rz, k.before_h, all, 2 * k.H, k.H, k.grad_weight_hh, k.H, false}, team, 0);
        weight_gradient<T>({a, k.before_h, all, k.H, k.H, k.grad_weight_hh + 2 * k.H * k.H, k.H, false}, team, 1);
    }
    if (k.grad_weight_zh)
        weight_gradient<T>({rz, k.embed_active, all, 3 * k.H, k.E, k.grad_weight_zh, k.E, false}, team, 0);
    if (k.grad_weight_h)
        weight_gradient<T>({{k.grad_context, k.M}, {k.h, k.H}, all, k.M, k.H, k.grad_weight_h, k.H, false}, team, 1);
    if (k.grad_weight_out)
        weight_gradient<T>({out, k.active, all, 2 * k.Z, k.M, k.grad_weight_out, k.M, false}, team, 0);
    if (k.grad_weight_embed)
        weight_gradient<T>({{k.grad_embed_context, k.E}, k.before_z, all, k.E, k.Z, k.grad_weight_embed, k.Z, false},
                           team, 1);
    if (k.grad_bias_hh) {
        bias_gradient(rz, all, 2 * k.H, k.grad_bias_hh, team, 0);
        bias_gradient(a, all, k.H, k.grad_bias_hh + 2 * k.H, team, 1);
    }
    if (k.grad_bias_out) bias_gradient(out, all, 2 * k.Z, k.grad_bias_out, team, 0);
}

template <class T>
void backward(const InterleavedBackward<T>& k, void* workspace) {
    const BackwardBuffers<T> w(workspace, k);
    const Partition plan = plan_threads(k, w.blocks.state, sizeof(T));
    order_rows(k.lengths, k.B, w.order);
    // The products also run over the columns that pad a layer; the panels hold zeros there.
    fill_zeros(w.grad_out, k.B * w.out_stride);
    fill_zeros(w.grad_hidden, k.B * w.hidden_stride);
    fill_zeros(w.grad_gates, k.B * w.gates_stride);
    fill_zeros(w.grad_embed, k.B * w.embed_stride);
    fill_zeros(w.carry_h, k.B * w.state_stride);
    fill_zeros(w.carry_z, k.B * w.latent_stride);
    if (k.grad_reset_h) fill_zeros(k.grad_reset_h, k.B * k.H);
    if (k.grad_reset_z) fill_zeros(k.grad_reset_z, k.B * k.Z);
    auto body = [&](Team team) {
        RowList list = take_rows(plan, team, w.order, w.slices, k.lengths, k.B);
        const Share mine = take_blocks(plan, w.blocks, team);
        const Range state = columns(mine.state, kWide<T>, k.H), latent = columns(mine.latent, kWide<T>, k.Z);
        T* grad_hidden = w.grad_hidden + list.first * w.hidden_stride;
        T* grad_gates = w.grad_gates + list.first * w.gates_stride;
        T* grad_embed = w.grad_embed + list.first * w.embed_stride;
        T *carry_h = w.carry_h + list.first * w.state_stride, *carry_z = w.carry_z + list.first * w.latent_stride;
        const GradLayer<T> hidden{k.activation,   k.M,         2 * w.latent,   w.out, k.hidden,
                                  k.grad_context, grad_hidden, w.hidden_stride};
        const GradLayer<T> embed{k.embed_activation,   k.E,        3 * w.state,   w.into_gates, k.embed,
                                 k.grad_embed_context, grad_embed, w.embed_stride};
        const Segment<T> of_out[] = {{w.grad_out + list.first * w.out_stride, w.out_stride, 2 * w.latent}};
        const Segment<T> of_gates_x[] = {{grad_gates, w.gates_stride, 2 * w.state},
                                         {grad_gates + 3 * w.state, w.gates_stride, w.state}};
        pack_backward(k, w, team);
        team.wait();
        for (int64_t t = k.steps - 1; t >= 0; --t) {
            list.step(t);
            sample_step(k, w, list, t, latent);
            if (plan.split_units) team.wait();
            grad_layer_step(hidden, list, mine.hidden, t, k.B, of_out, 1);
            if (plan.split_units) team.wait();
            gate_step(k, w, list, mine.state, t);
            if (plan.split_units) team.wait();
            carry_step<T>(carry_h, w.state_stride, grad_gates, w.gates_stride, list.active, w.recurrent, mine.state,
                          3 * w.state, true);
            grad_layer_step(embed, list, mine.embed, t, k.B, of_gates_x, 2);
            if (plan.split_units) team.wait();
            carry_step<T>(carry_z, w.latent_stride, grad_embed, w.embed_stride, list.active, w.into_embed, mine.latent,
                          w.embed, false);
            reset_step(k, w, list, t, state, latent);
        }
        for (int64_t i = 0; i < list.count; ++i) {
            const int64_t b = list.rows[i];
            for (int64_t unit = state.begin; k.grad_h0 && unit < state.end; ++unit)
                k.grad_h0[b * k.H + unit] = carry_h[i * w.state_stride + unit];
            for (int64_t unit = latent.begin; k.grad_z0 && unit < latent.end; ++unit)
                k.grad_z0[b * k.Z + unit] = carry_z[i * w.latent_stride + unit];
        }
        team.wait();
        weight_grads(k, team);
    };
    parallel(plan.threads, body);
}

}  // namespace

#define VSSN_ENTRIES(T)                                                                                     \
    void interleaved_forward(const InterleavedForward<T>& k, void* workspace) { forward(k, workspace); }    \
    void interleaved_backward(const InterleavedBackward<T>& k, void* workspace) { backward(k, workspace); } \
    int64_t interleaved_forward_workspace(const InterleavedForward<T>& k) {                                 \
        return ForwardBuffers<T>(nullptr, k).bytes;                                                         \
    }                                                                                                       \
    int64_t interleaved_backward_workspace(const InterleavedBackward<T>& k) {                               \
        return BackwardBuffers<T>(nullptr, k).bytes;                                                        \
    }
VSSN_FOR_FLOATS(VSSN_ENTRIES)

}  // namespace vssn::VSSN_ISA

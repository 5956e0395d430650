// The sampled chain of latents z_{t-1} -> z_t, and its gradient; one call per sequence.
//
//   hidden    = act(context[t] + W_z z_{t-1})                              context [T, B, M], W_z [M, Z]
//   (mu, raw) = W_out hidden + b_out                                       W_out [2Z, M]
//   mu       += W_mu act(prior_context[t] + W_pz z_{t-1}) + b_mu           with the prior's mean only
//   logvar    = min_logvar + softplus(raw - min_logvar)
//   z_t       = mu + exp(logvar / 2) eps[t]                                [T, B, Z]
//
// forward   reads context, z0, eps and the weights; writes z, mu, logvar and, for backward, hidden and prior_hidden.
// backward  with dz the gradient that reaches z_t, g = (grad_mu + dz, (grad_logvar + dz sigma eps / 2) slope):
//             grad_context       = act'(hidden) * g W_out,    grad_prior_context = act'(prior_hidden) * g_mu W_mu
//             dz of step t - 1   = grad_context W_z + grad_prior_context W_pz
//           writes grad_context, grad_prior_context, grad_out = g [T, B, 2Z], grad_eps = dz sigma, grad_z0 and, after
//           the loop, grad_weight_z = sum of grad_context^T z_{t-1}, grad_weight_out = sum of g^T hidden,
//           grad_bias_out = sum of g; likewise with the prior.
// Steps t >= lengths[b] are padding: never read, written as 0.
// In BFloat16 all sequences are stored rounded, and what enters a product is rounded; the rest is computed in float.
//
// Threads take rows of the batch, or blocks of M and of Z with a barrier after each product (rows.h).
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

Partition plan_threads(int threads, int64_t steps, int64_t B, int64_t M, int64_t Z, bool prior, int64_t blocks,
                       size_t scalar_bytes) {
    const int64_t weights = (prior ? 5 : 3) * M * Z;
    return partition(threads, steps, B, B * weights, weights * static_cast<int64_t>(scalar_bytes), blocks);
}

// ---- Forward ---------------------------------------------------------------------------------------------

template <class S>
struct ForwardBuffers {
    using T = Compute<S>;
    using E = Operand<S>;
    int64_t hidden_blocks, latent_blocks;  // blocks of kWide hidden units, and of kLanes latents
    int64_t hidden_stride, latent_stride;  // distance between rows
    int64_t into_rows, out_rows;           // Z and M in whole depth
    E *into, *prior_into;                  // W_z, W_pz: [hidden_blocks][Z][kWide]
    E *out, *prior_out;                    // W_out: [latent_blocks][M][mu L | raw L];  W_mu: [latent_blocks][M][L]
    T* bias;                               // [latent_blocks][mu L | raw L]; b_mu is added to mu's
    E *latent, *hidden, *prior_hidden;     // z_{t-1} [B][latent_stride]; act(.) [B][hidden_stride]
    T* prior_mu;                           // [B][latent_stride]
    int64_t *order, *slices;
    int64_t bytes;

    ForwardBuffers(void* memory, const PosteriorForward<S>& k)
        : ForwardBuffers(memory, k.B, k.M, k.Z, k.prior_context.data != nullptr) {}
    ForwardBuffers(void* memory, int64_t B, int64_t M, int64_t Z, bool prior)
        : hidden_blocks(count_blocks(M, kWide<T>)),
          latent_blocks(count_blocks(Z, kLanes<T>)),
          hidden_stride(row_stride<E>(hidden_blocks * kWide<T>)),
          latent_stride(row_stride<E>(latent_blocks * kLanes<T>)),
          into_rows(depth<E>(Z)),
          out_rows(depth<E>(M)) {
        Arena arena(memory);
        into = arena.take<E>(hidden_blocks * into_rows * kWide<T>);
        out = arena.take<E>(latent_blocks * out_rows * kWide<T>);
        bias = arena.take<T>(latent_blocks * kWide<T>);
        latent = arena.take<E>(B * latent_stride);
        hidden = arena.take<E>(B * hidden_stride);
        prior_into = arena.take<E>(prior ? hidden_blocks * into_rows * kWide<T> : 0);
        prior_out = arena.take<E>(prior ? latent_blocks * out_rows * kLanes<T> : 0);
        prior_mu = arena.take<T>(prior ? B * latent_stride : 0);
        prior_hidden = arena.take<E>(prior ? B * hidden_stride : 0);
        order = arena.take<int64_t>(B);
        slices = arena.take<int64_t>(B);
        bytes = arena.bytes();
    }
};

template <class S>
void pack_forward(const PosteriorForward<S>& k, const ForwardBuffers<S>& w, Team team) {
    using T = Compute<S>;
    constexpr int64_t L = kLanes<T>, width = kWide<T>, vector = Products<Operand<S>>::kTogether * L;  // of a panel
    const bool prior = k.prior_context.data != nullptr;
    const Range hidden = share(w.hidden_blocks, team.rank, team.size);
    for (int64_t block = hidden.begin; block < hidden.end; ++block) {
        const int64_t first = block * width, at = first * w.into_rows;
        pack_transposed(w.into + at, k.Z, width, width, k.weight_z, first, k.M - first);
        if (prior) pack_transposed(w.prior_into + at, k.Z, width, width, k.prior_weight_z, first, k.M - first);
    }
    const Range latent = share(w.latent_blocks, team.rank, team.size);
    for (int64_t block = latent.begin; block < latent.end; ++block) {
        const int64_t first = block * L, units = k.Z - first;
        Operand<S>* panel = w.out + block * w.out_rows * width;
        pack_transposed(panel, k.M, L, width, k.weight_out, first, units);
        pack_transposed(panel + vector, k.M, L, width, k.weight_out, k.Z + first, units);
        if (prior) pack_transposed(w.prior_out + block * w.out_rows * L, k.M, L, L, k.prior_weight_mu, first, units);
        T* bias = w.bias + block * width;
        for (int64_t j = 0; j < L; ++j) {
            const T prior_bias = prior && j < units ? k.prior_bias_mu[first + j] : T(0);
            bias[j] = j < units ? k.bias_out[first + j] + prior_bias : T(0);
            bias[L + j] = j < units ? k.bias_out[k.Z + first + j] : T(0);
        }
    }
}

// state = act(context[t] + weights z_{t-1}) for the blocks of hidden units given; kept: for backward, or null.
template <class S>
void hidden_step(const PosteriorForward<S>& k, const ForwardBuffers<S>& w, const RowList& list, Range blocks, int64_t t,
                 const Steps<const S>& context, const Operand<S>* weights, Operand<S>* state, S* kept) {
    using T = Compute<S>;
    using E = Operand<S>;
    constexpr int64_t L = kLanes<T>;
    const bool keep_input = keeps_input(k.activation);
    auto expect = [&](int64_t block, int64_t first, int rows) VSSN_INLINED {
        for (int i = 0; i < rows; ++i) prefetch(context.row(t, list.rows[first + i]) + block * kWide<T>, 2);
    };
    auto finish = [&](int64_t block, int64_t first, int rows, const Tile<E, 2>& product) {
        for (int i = 0; i < rows; ++i)
            for (int j = 0; j < 2; ++j) {
                const int64_t unit = block * kWide<T> + j * L, count = k.M - unit, b = list.rows[first + i];
                if (count <= 0) break;
                const Vec<T> input = load(context.row(t, b) + unit, count) + product[i][j];
                const Vec<T> active = activate_by<T>(k.activation, input);
                store_operand<S>(state + (first + i) * w.hidden_stride + unit, active);
                if (kept) store(kept + (t * k.B + b) * k.M + unit, keep_input ? input : active, count);
            }
    };
    multiply<E, 2>(w.latent + list.first * w.latent_stride, w.latent_stride, list.active, weights, blocks, w.into_rows,
                   expect, finish);
    if (kept) zero_padding(kept, t, k.B, k.M, list, blocks.begin * kWide<T>, blocks.end * kWide<T>);
}

// mu, logvar and z_t for the blocks of latents given.
template <class S>
void latent_step(const PosteriorForward<S>& k, const ForwardBuffers<S>& w, const RowList& list, Range blocks,
                 int64_t t) {
    using T = Compute<S>;
    using E = Operand<S>;
    using Math = VectorMath<T>;
    constexpr int64_t L = kLanes<T>;
    const bool prior = k.prior_context.data != nullptr;
    const int64_t hidden_row = list.first * w.hidden_stride, latent_row = list.first * w.latent_stride;
    const Vec<T> min_logvar = broadcast(k.min_logvar);
    auto finish_prior = [&](int64_t block, int64_t first, int rows, const Tile<E, 1>& product) {
        for (int i = 0; i < rows; ++i)
            store(w.prior_mu + latent_row + (first + i) * w.latent_stride + block * L, product[i][0]);
    };
    auto expect = [&](int64_t block, int64_t first, int rows) VSSN_INLINED {
        for (int i = 0; i < rows; ++i) prefetch(k.eps.row(t, list.rows[first + i]) + block * L);
    };
    auto finish = [&](int64_t block, int64_t first, int rows, const Tile<E, 2>& product) {
        const int64_t unit = block * L, count = k.Z - unit;
        const T* bias = w.bias + block * kWide<T>;
        for (int i = 0; i < rows; ++i) {
            const int64_t b = list.rows[first + i], at = (t * k.B + b) * k.Z + unit;
            const int64_t slot = latent_row + (first + i) * w.latent_stride + unit;
            Vec<T> mu = product[i][0] + load(bias);
            if (prior) mu += load(w.prior_mu + slot);
            const Vec<T> logvar = floored_logvar<Math>(product[i][1] + load(bias + L), min_logvar);
            const Vec<T> z = mu + standard_deviation<Math>(logvar) * load(k.eps.row(t, b) + unit, count);
            store_operand<S>(w.latent + slot, z);
            store(k.z + at, z, count);
            store(k.mu + at, mu, count);
            store(k.logvar + at, logvar, count);
        }
    };
    if (prior)
        multiply<E, 1>(w.prior_hidden + hidden_row, w.hidden_stride, list.active, w.prior_out, blocks, w.out_rows,
                       nothing_to_expect, finish_prior);
    multiply<E, 2>(w.hidden + hidden_row, w.hidden_stride, list.active, w.out, blocks, w.out_rows, expect, finish);
    for (S* sequence : {k.z, k.mu, k.logvar})
        zero_padding(sequence, t, k.B, k.Z, list, blocks.begin * L, blocks.end * L);
}

template <class S>
void forward(const PosteriorForward<S>& k, void* workspace) {
    using T = Compute<S>;
    using E = Operand<S>;
    const bool prior = k.prior_context.data != nullptr;
    const ForwardBuffers<S> w(workspace, k);
    const Partition plan = plan_threads(k.threads, k.steps, k.B, k.M, k.Z, prior, w.hidden_blocks, sizeof(E));
    order_rows(k.lengths, k.B, w.order);
    if (kDepth<E> > 1) {  // the products run over what pads M and Z
        fill_zeros(w.latent, k.B * w.latent_stride);
        fill_zeros(w.hidden, k.B * w.hidden_stride);
        if (prior) fill_zeros(w.prior_hidden, k.B * w.hidden_stride);
    }
    auto body = [&](Team team) {
        RowList list = take_rows(plan, team, w.order, w.slices, k.lengths, k.B);
        const Range hidden_blocks = plan.blocks(w.hidden_blocks, team);
        const Range latent_blocks = plan.blocks(w.latent_blocks, team);
        pack_forward(k, w, team);
        for (int64_t i = 0; i < list.count; ++i)
            for (int64_t unit = latent_blocks.begin * kLanes<T>; unit < latent_blocks.end * kLanes<T>; ++unit)
                w.latent[(list.first + i) * w.latent_stride + unit] =
                    operand<S>(unit < k.Z ? k.z0.row(list.rows[i])[unit] : T(0));
        team.wait();
        for (int64_t t = 0; t < k.steps; ++t) {
            list.step(t);
            hidden_step(k, w, list, hidden_blocks, t, k.context, w.into, w.hidden + list.first * w.hidden_stride,
                        k.hidden);
            if (prior)
                hidden_step(k, w, list, hidden_blocks, t, k.prior_context, w.prior_into,
                            w.prior_hidden + list.first * w.hidden_stride, k.prior_hidden);
            if (plan.split_units) team.wait();
            latent_step(k, w, list, latent_blocks, t);
            if (plan.split_units) team.wait();
        }
    };
    parallel(plan.threads, body);
}

// ---- Backward --------------------------------------------------------------------------------------------

template <class S>
struct BackwardBuffers {
    using T = Compute<S>;
    using E = Operand<S>;
    int64_t hidden_blocks, latent_blocks;  // blocks of kWide units
    int64_t hidden, latent;                // M and Z in whole blocks
    int64_t out_stride, hidden_stride, latent_stride;
    E *out, *prior_out;  // W_out: [hidden_blocks][mu latent | raw latent][kWide];  W_mu: [hidden_blocks][latent][kWide]
    E* into;             // (W_z; W_pz): [latent_blocks][hidden (| hidden)][kWide]
    E* grad_out;         // [B][out_stride]: (mu latent | raw latent)
    E* grad_hidden;      // [B][hidden_stride]: (hidden (| hidden)), before the activation
    T* carry;            // [B][latent_stride]: dz, on its way to the step before
    int64_t *order, *slices;
    int64_t bytes;

    BackwardBuffers(void* memory, const PosteriorBackward<S>& k)
        : BackwardBuffers(memory, k.B, k.M, k.Z, k.prior_weight_z.data != nullptr) {}
    BackwardBuffers(void* memory, int64_t B, int64_t M, int64_t Z, bool prior)
        : hidden_blocks(count_blocks(M, kWide<T>)),
          latent_blocks(count_blocks(Z, kWide<T>)),
          hidden(hidden_blocks * kWide<T>),
          latent(latent_blocks * kWide<T>),
          out_stride(row_stride<E>(2 * latent)),
          hidden_stride(row_stride<E>((prior ? 2 : 1) * hidden)),
          latent_stride(row_stride<T>(latent)) {
        Arena arena(memory);
        out = arena.take<E>(hidden * 2 * latent);
        prior_out = arena.take<E>(prior ? hidden * latent : 0);
        into = arena.take<E>((prior ? 2 : 1) * hidden * latent);
        grad_out = arena.take<E>(B * out_stride);
        grad_hidden = arena.take<E>(B * hidden_stride);
        carry = arena.take<T>(B * latent_stride);
        order = arena.take<int64_t>(B);
        slices = arena.take<int64_t>(B);
        bytes = arena.bytes();
    }
};

template <class S>
void pack_backward(const PosteriorBackward<S>& k, const BackwardBuffers<S>& w, Team team) {
    using E = Operand<S>;
    const bool prior = k.prior_weight_z.data != nullptr;
    const int64_t half = w.latent * kWide<S>, hidden_part = w.hidden * kWide<S>;
    const Range hidden = share(w.hidden_blocks, team.rank, team.size);
    pack_rows<E, 2>(w.out, 2 * half, hidden, w.latent, k.weight_out, 0, k.Z, k.M);
    pack_rows<E, 2>(w.out + half, 2 * half, hidden, w.latent, k.weight_out, k.Z, k.Z, k.M);
    if (prior) pack_rows<E, 2>(w.prior_out, half, hidden, w.latent, k.prior_weight_mu, 0, k.Z, k.M);
    const Range latent = share(w.latent_blocks, team.rank, team.size);
    const int64_t panel = (prior ? 2 : 1) * hidden_part;
    pack_rows<E, 2>(w.into, panel, latent, w.hidden, k.weight_z, 0, k.M, k.Z);
    if (prior) pack_rows<E, 2>(w.into + hidden_part, panel, latent, w.hidden, k.prior_weight_z, 0, k.M, k.Z);
}

// The gradients of mu, raw and eps for latents [from, to), from dz in carry.
template <class S>
void sample_step(const PosteriorBackward<S>& k, const BackwardBuffers<S>& w, const RowList& list, int64_t t,
                 int64_t from, int64_t to) {
    using T = Compute<S>;
    using Math = VectorMath<T>;
    const Vec<T> min_logvar = broadcast(k.min_logvar);
    for (int64_t i = 0; i < list.active; ++i) {
        const int64_t b = list.rows[i], at = t * k.B + b;
        Operand<S>* grad_row = w.grad_out + (list.first + i) * w.out_stride;
        const T* carry = w.carry + (list.first + i) * w.latent_stride;
        for (int64_t unit = from; unit < smaller(to, k.Z); unit += kLanes<T>) {
            const int64_t count = k.Z - unit;
            const Vec<T> dz = load(carry + unit) + load_or_zero(k.grad_z, t, b, unit, count);
            const Vec<T> logvar = load(k.logvar + at * k.Z + unit, count);
            const Vec<T> grad_eps = dz * standard_deviation<Math>(logvar);
            const Vec<T> grad_mu = dz + load_or_zero(k.grad_mu, t, b, unit, count);
            const Vec<T> grad_logvar = load_or_zero(k.grad_logvar, t, b, unit, count) +
                                       grad_eps * load(k.eps.row(t, b) + unit, count) * T(0.5);
            const Vec<T> grad_raw = grad_logvar * floored_logvar_slope<Math>(logvar, min_logvar);
            store(k.grad_out + at * 2 * k.Z + unit, grad_mu, count);
            store(k.grad_out + at * 2 * k.Z + k.Z + unit, grad_raw, count);
            if (k.grad_eps) store(k.grad_eps + at * k.Z + unit, grad_eps, count);
            store_operand<S>(grad_row + unit, keep<T>(grad_mu, count));
            store_operand<S>(grad_row + w.latent + unit, keep<T>(grad_raw, count));
        }
    }
    zero_padding(k.grad_out, t, k.B, 2 * k.Z, list, from, smaller(to, k.Z));
    zero_padding(k.grad_out, t, k.B, 2 * k.Z, list, k.Z + from, k.Z + smaller(to, k.Z));
    if (k.grad_eps) zero_padding(k.grad_eps, t, k.B, k.Z, list, from, to);
}

// grad_context = act'(kept) * grad_out weights for the blocks of hidden units given; column: where it goes in
// grad_hidden. K: how many of grad_out's columns enter.
template <class S>
void hidden_grad_step(const PosteriorBackward<S>& k, const BackwardBuffers<S>& w, const RowList& list, Range blocks,
                      int64_t t, const Operand<S>* weights, int64_t K, const S* kept, S* grad_context, int64_t column) {
    using T = Compute<S>;
    using E = Operand<S>;
    constexpr int64_t L = kLanes<T>;
    auto expect = [&](int64_t block, int64_t first, int rows) VSSN_INLINED {
        for (int i = 0; i < rows; ++i) prefetch(kept + (t * k.B + list.rows[first + i]) * k.M + block * kWide<T>, 2);
    };
    auto finish = [&](int64_t block, int64_t first, int rows, const Tile<E, 2>& product) {
        for (int i = 0; i < rows; ++i)
            for (int j = 0; j < 2; ++j) {
                const int64_t unit = block * kWide<T> + j * L, count = k.M - unit;
                if (count <= 0) break;
                const int64_t at = (t * k.B + list.rows[first + i]) * k.M + unit;
                const Vec<T> grad = product[i][j] * slope_by<T>(k.activation, load(kept + at, count));
                store(grad_context + at, grad, count);
                store_operand<S>(w.grad_hidden + (list.first + first + i) * w.hidden_stride + column + unit,
                                 keep<T>(grad, count));
            }
    };
    multiply<E, 2>(w.grad_out + list.first * w.out_stride, w.out_stride, list.active, weights, blocks, K, expect,
                   finish);
    zero_padding(grad_context, t, k.B, k.M, list, blocks.begin * kWide<T>, blocks.end * kWide<T>);
}

// carry = grad_hidden (W_z; W_pz) for the blocks of latents given.
template <class S>
void carry_step(const BackwardBuffers<S>& w, const RowList& list, Range blocks, int64_t K) {
    using T = Compute<S>;
    using E = Operand<S>;
    constexpr int64_t L = kLanes<T>;
    T* carry = w.carry + list.first * w.latent_stride;
    auto finish = [&](int64_t block, int64_t first, int rows, const Tile<E, 2>& product) {
        for (int i = 0; i < rows; ++i)
            for (int j = 0; j < 2; ++j)
                store(carry + (first + i) * w.latent_stride + block * kWide<T> + j * L, product[i][j]);
    };
    multiply<E, 2>(w.grad_hidden + list.first * w.hidden_stride, w.hidden_stride, list.active, w.into, blocks, K,
                   nothing_to_expect, finish);
}

// This thread's part of sum over steps of grad[t]^T z_{t-1}, for grad [T, B, M].
template <class S>
void weight_z_grad(const PosteriorBackward<S>& k, const S* grad, Compute<S>* out, Team team, int turn) {
    if (!out) return;
    const int64_t first = k.steps > 0 ? k.B : 0, later = k.steps * k.B - first;
    weight_gradient<S>({{grad + first * k.M, k.M}, {k.z, k.Z}, later, k.M, k.Z, out, k.Z, false}, team, turn);
    for_rows_with_steps(k.lengths, first, [&](int64_t from, int64_t count) VSSN_INLINED {
        const Rows<const S> run = {grad + from * k.M, k.M}, z0 = {k.z0.row(from), k.z0.stride};
        weight_gradient<S>({run, z0, count, k.M, k.Z, out, k.Z, true}, team, turn);
    });
}

template <class S>
void weight_grads(const PosteriorBackward<S>& k, Team team) {
    const int64_t all = k.steps * k.B;
    const Rows<const S> grad_out = {k.grad_out, 2 * k.Z};
    weight_z_grad(k, k.grad_context, k.grad_weight_z, team, 0);
    if (k.grad_weight_out)
        weight_gradient<S>({grad_out, {k.active, k.M}, all, 2 * k.Z, k.M, k.grad_weight_out, k.M, false}, team, 1);
    if (k.grad_bias_out) bias_gradient(grad_out, all, 2 * k.Z, k.grad_bias_out, team, 0);
    weight_z_grad(k, k.grad_prior_context, k.grad_prior_weight_z, team, 0);
    if (k.grad_prior_weight_mu)
        weight_gradient<S>({grad_out, {k.prior_active, k.M}, all, k.Z, k.M, k.grad_prior_weight_mu, k.M, false}, team,
                           1);
    if (k.grad_prior_bias_mu) bias_gradient(grad_out, all, k.Z, k.grad_prior_bias_mu, team, 1);
}

template <class S>
void backward(const PosteriorBackward<S>& k, void* workspace) {
    using T = Compute<S>;
    using E = Operand<S>;
    const bool prior = k.prior_weight_z.data != nullptr;
    const BackwardBuffers<S> w(workspace, k);
    const Partition plan = plan_threads(k.threads, k.steps, k.B, k.M, k.Z, prior, w.hidden_blocks, sizeof(E));
    order_rows(k.lengths, k.B, w.order);
    // The products also run over the columns that pad M and Z; the panels hold zeros there.
    fill_zeros(w.grad_out, k.B * w.out_stride);
    fill_zeros(w.grad_hidden, k.B * w.hidden_stride);
    fill_zeros(w.carry, k.B * w.latent_stride);
    const bool asked = k.grad_weight_z || k.grad_weight_out || k.grad_bias_out || k.grad_prior_weight_z ||
                       k.grad_prior_weight_mu || k.grad_prior_bias_mu;
    auto body = [&](Team team) {
        RowList list = take_rows(plan, team, w.order, w.slices, k.lengths, k.B);
        const Range hidden_blocks = plan.blocks(w.hidden_blocks, team);
        const Range latent_blocks = plan.blocks(w.latent_blocks, team);
        const int64_t from = latent_blocks.begin * kWide<T>, to = latent_blocks.end * kWide<T>;
        pack_backward(k, w, team);
        team.wait();
        for (int64_t t = k.steps - 1; t >= 0; --t) {
            list.step(t);
            sample_step(k, w, list, t, from, to);
            if (plan.split_units) team.wait();
            hidden_grad_step(k, w, list, hidden_blocks, t, w.out, 2 * w.latent, k.hidden, k.grad_context, 0);
            if (prior)
                hidden_grad_step(k, w, list, hidden_blocks, t, w.prior_out, w.latent, k.prior_hidden,
                                 k.grad_prior_context, w.hidden);
            if (plan.split_units) team.wait();
            carry_step(w, list, latent_blocks, (prior ? 2 : 1) * w.hidden);
        }
        for (int64_t i = 0; k.grad_z0 && i < list.count; ++i)
            for (int64_t unit = from; unit < smaller(to, k.Z); ++unit)
                k.grad_z0[list.rows[i] * k.Z + unit] = w.carry[(list.first + i) * w.latent_stride + unit];
        if (!asked) return;
        team.wait();
        weight_grads(k, team);
    };
    parallel(plan.threads, body);
}

}  // namespace

#define VSSN_ENTRIES(T)                                                                                               \
    void posterior_forward(const PosteriorForward<T>& k, void* workspace) { forward(k, workspace); }                  \
    void posterior_backward(const PosteriorBackward<T>& k, void* workspace) { backward(k, workspace); }               \
    int64_t posterior_forward_workspace(const PosteriorForward<T>& k) { return ForwardBuffers<T>(nullptr, k).bytes; } \
    int64_t posterior_backward_workspace(const PosteriorBackward<T>& k) { return BackwardBuffers<T>(nullptr, k).bytes; }
VSSN_FOR_STORAGES(VSSN_ENTRIES)

}  // namespace vssn::VSSN_ISA

// interleaved.h's forward: a launch for a sequence, after one that packs the weights where they are streamed.
//
// Of the layers of interleaved_common.cuh the latent buffer holds z_{t-1}, the state buffers in turn h_{t-1} and h_t.
// Reads gates_x, embed_context, context and eps once, a step ahead; writes h, z, mu, logvar and what backward needs
// once. At a reset the owner of a latent sends what stands in its place; of the states every block has a copy, which it
// puts over h_t when nobody multiplies with that any more.
#include "interleaved_common.cuh"

namespace vssn {

namespace interleaved {

namespace {

using ForwardParams = KernelParams<InterleavedForward>;

enum Matrix { kIntoEmbed, kRecurrent, kIntoGates, kIntoHidden, kOut };

// The tiles of a unit tile: k-step by k-step, those of all parts.
struct ForwardWeights {
    template <class P>
    static VSSN_DEVICE typename P::A load(const InterleavedForward& k, int matrix, int tile, int at,
                                          const InterleavedMatrix& m) {
        const int part = at % m.parts, step = at / m.parts;
        switch (matrix) {
            case kIntoEmbed:
                return rows_of<P>(k.weight_embed, k.E, k.Z, tile, part, step);
            case kRecurrent:
                return rows_of<P>(k.weight_hh, k.H, k.H, tile, part, step);
            case kIntoGates:
                return rows_of<P>(k.weight_zh, k.H, k.E, tile, part, step);
            case kIntoHidden:
                return rows_of<P>(k.weight_h, k.M, k.H, tile, part, step);
            default:
                return rows_of<P>(k.weight_out, k.Z, k.M, tile, part, step);
        }
    }
};

template <class C, bool paired, Meeting meeting>
struct Forward : Block<C, InterleavedForward, meeting> {
    using Base = Block<C, InterleavedForward, meeting>;
    using typename Base::P;
    using typename Base::T;
    using Steps = Sequence<T, paired>;
    using Loaded = typename Steps::Loaded;

    struct Gates {
        Loaded r, u, n;
    };

    using Base::batch, Base::k, Base::plan, Base::rank, Base::slots, Base::tile, Base::lane_quad;
    const Steps embed_context, gates_x, context, eps;
    const int E, H, M, Z;
    T *const embed, *const hidden, *const latent;

    VSSN_DEVICE Forward(const ForwardParams& params, const BatchTile& batch)
        : Base(params, batch),
          embed_context(k.embed_context),
          gates_x(k.gates_x),
          context(k.context),
          eps(k.eps),
          E(static_cast<int>(k.E)),
          H(static_cast<int>(k.H)),
          M(static_cast<int>(k.M)),
          Z(static_cast<int>(k.Z)),
          embed(this->buffer(plan.embed_at)),
          hidden(this->buffer(plan.hidden_at)),
          latent(this->buffer(plan.latent_at)) {}

    // The states that a step starts from and that it makes.
    VSSN_DEVICE T* state(int step) const { return this->buffer(step % 2 == 0 ? plan.state_at[0] : plan.state_at[1]); }

    // ---- Before the first step

    VSSN_DEVICE void fill(T* to, int stride, int tiles, const InterleavedState& from, const InterleavedState& at_reset,
                          int units) const {
        const int columns = tiles * kUnits;
        for (int i = thread_id(); i < kRows * columns; i += block_threads()) {
            const int row = i / columns, unit = i % columns;
            const int64_t b = batch.first + row;
            const bool inside = b < k.B && unit < units;
            to[row * stride + unit] = P::rounded(!inside                        ? 0.0f
                                                 : k.resets && k.resets[b] != 0 ? state_at<T>(at_reset, b, unit)
                                                                                : state_at<T>(from, b, unit));
        }
    }

    VSSN_DEVICE Quad first_quad(const InterleavedState& from, int of_tile, int units) const {
        Quad result = {{0, 0, 0, 0}};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int unit = of_tile * kUnits + accumulator_row(i);
            if (batch.inside(i % 2) && unit < units) result.v[i] = state_at<T>(from, batch.row + i % 2, unit);
        }
        return result;
    }

    VSSN_DEVICE void load_bias(int at, Layer layer, int parts, const void* bias, int units) const {
        const auto* from = static_cast<const T*>(bias);
        for (int i = thread_id(); i < slots(layer) * parts * kUnits; i += block_threads()) {
            const int part = i / kUnits % parts, unit = tile(i / kUnits / parts) * kUnits + i % kUnits;
            this->floats(at)[i] = unit < units ? to_float(from[part * units + unit]) : 0.0f;
        }
    }

    VSSN_DEVICE void prepare() const {
        const InterleavedState &anew_h = anew(k.reset_h, k.h0), &anew_z = anew(k.reset_z, k.z0);
        fill(state(0), plan.state_stride, plan.layer_tiles[kState], k.h0, anew_h, H);
        fill(latent, plan.latent_stride, plan.layer_tiles[kLatent], k.z0, anew_z, Z);
        LoadedResets flags;
        flags.load_over(k, batch, 0);
        const Resets first = flags.of(batch, 0);
        for (int slot = warp_id(); slot < slots(kState); slot += warps()) {
            Quad start = first_quad(k.h0, tile(slot), H);
            if (k.resets) {
                const Quad at_reset = first_quad(anew_h, tile(slot), H);
                lane_quad(plan.state_anew_at, slot) = at_reset;
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    if (first.row[i % 2]) start.v[i] = at_reset.v[i];
            }
            lane_quad(plan.carry_at, slot) = start;
        }
        if (k.resets) {
            fill(this->buffer(plan.anew_at), plan.state_stride, plan.layer_tiles[kState], anew_h, anew_h, H);
            for (int slot = warp_id(); slot < slots(kLatent); slot += warps())
                lane_quad(plan.latent_anew_at, slot) = first_quad(anew_z, tile(slot), Z);
        }
        load_bias(plan.gates_bias_at, kState, 3, k.bias_hh, H);
        load_bias(plan.out_bias_at, kLatent, 2, k.bias_out, Z);
        zero_padding_of<T>(k, batch, k.z, k.Z, rank, plan.cluster);
        zero_padding_of<T>(k, batch, k.mu, k.Z, rank, plan.cluster);
        zero_padding_of<T>(k, batch, k.logvar, k.Z, rank, plan.cluster);
        zero_padding_of<T>(k, batch, k.h, k.H, rank, plan.cluster);
        zero_padding_of<T>(k, batch, k.gates, 4 * k.H, rank, plan.cluster);
        zero_padding_of<T>(k, batch, k.embed, k.E, rank, plan.cluster);
        zero_padding_of<T>(k, batch, k.hidden, k.M, rank, plan.cluster);
    }

    // ---- Inputs

    VSSN_DEVICE void load_gates(Gates& over, int step, int slot) const {
        const auto part = [&](Loaded& gate, int number) {
            Steps(moved(gates_x.data, number * H), gates_x.step_stride, gates_x.row_stride)
                .load_over(gate, batch, step, tile(slot), H);
        };
        part(over.r, 0);
        part(over.u, 1);
        part(over.n, 2);
    }

    VSSN_DEVICE void prefetch(int step) const {
        const int count = warps() * plan.cluster;
        int index = (warps() - 1 - warp_id()) * plan.cluster + rank;
        gates_x.prefetch(batch, step, 3 * H, index, count);
        embed_context.prefetch(batch, step, E, index, count);
        context.prefetch(batch, step, M, index, count);
        eps.prefetch(batch, step, Z, index, count);
    }

    // ---- Layers

    // Beyond a layer's width the next weights are 0, and 0 times what stands there must be 0.
    VSSN_DEVICE static void zero_beyond(Four& four, int of_tile, int units) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (of_tile * kUnits + accumulator_row(i) >= units) four.v[i] = 0;
    }

    // What a hidden layer's product and its context become: `sum`, activated. Gives what backward needs.
    VSSN_DEVICE StoredFour<T> finish_layer(Four& sum, const Loaded& input, Activation act, int of_tile,
                                           int units) const {
        add(sum, input.wide());
        zero_beyond(sum, of_tile, units);
        const StoredFour<T> before = StoredFour<T>::of(sum);
        apply_activation<MathFor<C>>(act, sum);
        return keeps_input(act) ? before : StoredFour<T>::of(sum);
    }

    VSSN_DEVICE void embed_layer(int step, Loaded& input) const {
        int slot = this->group(kEmbed);
        do {
            Four sum[1] = {zeros()};
            if (this->multiplies(kEmbed, slot))
                this->template multiply<1>(sum, kEmbed, kIntoEmbed, slot, latent, plan.latent_stride);
            this->join(kEmbed, slot, sum);
            if (this->finishes(kEmbed, slot)) {
                const auto kept = finish_layer(sum[0], input, k.embed_activation, tile(slot), E);
                this->give(kEmbed, step, embed, plan.embed_stride, tile(slot) * kUnits, sum[0]);
                store_four<paired, T>(k.embed, batch, k.B, step, tile(slot), E, E, 0, kept);
                const NextSlot next(*this, kEmbed, slot, step);
                embed_context.load_over(input, batch, next.step, tile(next.slot), E);
            }
            slot += this->groups(kEmbed);
        } while (slot < slots(kEmbed));
    }

    VSSN_DEVICE void hidden_layer(int step, Loaded& input) const {
        int slot = this->group(kHidden);
        do {
            Four sum[1] = {zeros()};
            if (this->multiplies(kHidden, slot))
                this->template multiply<1>(sum, kHidden, kIntoHidden, slot, state(step + 1), plan.state_stride);
            this->join(kHidden, slot, sum);
            if (this->finishes(kHidden, slot)) {
                const auto kept = finish_layer(sum[0], input, k.activation, tile(slot), M);
                this->give(kHidden, step, hidden, plan.hidden_stride, tile(slot) * kUnits, sum[0]);
                store_four<paired, T>(k.hidden, batch, k.B, step, tile(slot), M, M, 0, kept);
                const NextSlot next(*this, kHidden, slot, step);
                context.load_over(input, batch, next.step, tile(next.slot), M);
            }
            slot += this->groups(kHidden);
        } while (slot < slots(kHidden));
    }

    // sums: of r, u, W_hn h and W_zh e's part of n. First W_hh h.
    VSSN_DEVICE void multiply_state(int step, int slot, Four (&sums)[4]) const {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[i] = zeros();
        if (this->multiplies(kState, slot))
            this->template multiply<3>(sums, kState, kRecurrent, slot, state(step), plan.state_stride);
    }

    VSSN_DEVICE void multiply_embed(int slot, Four (&sums)[4]) const {
        if (!this->multiplies(kState, slot)) return;
        Four from_embed[3] = {zeros(), zeros(), zeros()};
        this->template multiply<3>(from_embed, kState, kIntoGates, slot, embed, plan.embed_stride);
        add(sums[0], from_embed[0]);
        add(sums[1], from_embed[1]);
        add(sums[3], from_embed[2]);
    }

    VSSN_DEVICE void finish_gates(int step, int slot, const Four (&sums)[4], const Gates& input,
                                  const Resets& coming) const {
        const float* bias = this->floats(plan.gates_bias_at) + slot * 3 * kUnits + accumulator_row(0);
        Quad& carry = lane_quad(plan.carry_at, slot);
        const Four x_r = input.r.wide(), x_u = input.u.wide(), x_n = input.n.wide();
        Four h;
        GruGates<float> gates[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            gates[i] = gru_gates<MathFor<C>>(x_r.v[i] + (sums[0].v[i] + bias[i / 2]),
                                             x_u.v[i] + (sums[1].v[i] + bias[kUnits + i / 2]), x_n.v[i] + sums[3].v[i],
                                             sums[2].v[i] + bias[2 * kUnits + i / 2]);
            h.v[i] = gru_next(gates[i], carry.v[i]);
        }
        zero_beyond(h, tile(slot), H);
        this->give(kState, step, state(step + 1), plan.state_stride, tile(slot) * kUnits, h);
        store_four<paired, T>(k.h, batch, k.B, step, tile(slot), H, H, 0, StoredFour<T>::of(h));
        store_gates(step, slot, gates);
        carry = quad(h);
        if (k.resets) {
            const Quad at_reset = lane_quad(plan.state_anew_at, slot);
#pragma unroll
            for (int i = 0; i < 4; ++i)
                if (coming.row[i % 2]) carry.v[i] = at_reset.v[i];
        }
    }

    VSSN_DEVICE void store_gates(int step, int slot, const GruGates<float> (&gates)[4]) const {
        const int unit = tile(slot) * kUnits + accumulator_row(0);
        if (k.gates == nullptr) return;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            if (!batch.valid(step, j)) continue;
            T* p = static_cast<T*>(k.gates) + 4 * ((step * k.B + batch.row + j) * H + unit);
            const GruGates<float>&g = gates[j], &o = gates[2 + j];
            const auto one = Packed<T, 4>::round(g.r, g.z, g.n, g.a), other = Packed<T, 4>::round(o.r, o.z, o.n, o.a);
            if constexpr (paired) {
                Packed<T, 8> both;
                both.set_half(0, one);
                both.set_half(1, other);
                if (unit < H) both.store(p);
            } else {
                if (unit < H) one.store(p);
                if (unit + 1 < H) other.store(p + 4);
            }
        }
    }

    // Of the rows that are reset before the next step.
    VSSN_DEVICE void put_anew(int step, const Resets& coming) const {
        using Pair = Packed<T, 2>;
        const T* from = this->buffer(plan.anew_at);
        T* to = state(step + 1);
        const int columns = plan.layer_tiles[kState] * kUnits;
        for (int column = (warp_id() * (kWarp / 4) + lane_id() / 4) * 2; column < columns;
             column += warps() * (kWarp / 2))
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const int at = accumulator_column(j) * plan.state_stride + column;
                if (coming.row[j]) Pair::load(from + at).store(to + at);
            }
    }

    VSSN_DEVICE void latent_layer(int step, Loaded& input, const Resets& coming) const {
        int slot = this->group(kLatent);
        do {
            Four sums[2] = {zeros(), zeros()};
            if (this->multiplies(kLatent, slot))
                this->template multiply<2>(sums, kLatent, kOut, slot, hidden, plan.hidden_stride);
            this->join(kLatent, slot, sums);
            if (this->finishes(kLatent, slot)) finish_latent(step, slot, sums, input, coming);
            slot += this->groups(kLatent);
        } while (slot < slots(kLatent));
    }

    VSSN_DEVICE void finish_latent(int step, int slot, const Four (&sums)[2], Loaded& input,
                                   const Resets& coming) const {
        const Four noise = input.wide();
        Four all_mu, all_logvar, all_z;
        const float* bias = this->floats(plan.out_bias_at) + slot * 2 * kUnits + accumulator_row(0);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float mu = sums[0].v[i] + bias[i / 2], raw = sums[1].v[i] + bias[kUnits + i / 2];
            const float logvar = k.scale == Scale::softplus ? softplus_logvar<LatentMath>(raw, k.min_std)
                                                            : floored_logvar<LatentMath>(raw, k.min_logvar);
            all_mu.v[i] = mu;
            all_logvar.v[i] = logvar;
            all_z.v[i] = mu + standard_deviation<Math>(logvar) * noise.v[i];
        }
        Four next_z = all_z;
        zero_beyond(next_z, tile(slot), Z);
        if (k.resets) {
            const Quad at_reset = lane_quad(plan.latent_anew_at, slot);
#pragma unroll
            for (int i = 0; i < 4; ++i)
                if (coming.row[i % 2]) next_z.v[i] = at_reset.v[i];
        }
        this->give(kLatent, step, latent, plan.latent_stride, tile(slot) * kUnits, next_z);
        const NextSlot next(*this, kLatent, slot, step);
        eps.load_over(input, batch, next.step, tile(next.slot), Z);
        store_four<paired, T>(k.z, batch, k.B, step, tile(slot), Z, Z, 0, StoredFour<T>::of(all_z));
        store_four<paired, T>(k.mu, batch, k.B, step, tile(slot), Z, Z, 0, StoredFour<T>::of(all_mu));
        store_four<paired, T>(k.logvar, batch, k.B, step, tile(slot), Z, Z, 0, StoredFour<T>::of(all_logvar));
    }

    VSSN_DEVICE void run() const {
        prepare();
        const auto first = [&](Layer layer) { return tile(this->group(layer)); };
        Loaded of_embed = embed_context.load(batch, 0, first(kEmbed), E);
        Loaded of_hidden = context.load(batch, 0, first(kHidden), M), noise = eps.load(batch, 0, first(kLatent), Z);
        Gates of_gates{};
        load_gates(of_gates, 0, this->group(kState));
        LoadedResets ahead;
        ahead.load_over(k, batch, 1);
        this->start();
        for (int step = 0; step < batch.steps; ++step) {
            const Resets coming = ahead.of(batch, step + 1);
            embed_layer(step, of_embed);
            int slot = this->group(kState);
            Four sums[4];
            multiply_state(step, slot, sums);  // while the embedding is on its way
            this->meet(kEmbed, step);
            do {
                multiply_embed(slot, sums);
                this->join(kState, slot, sums);
                if (this->finishes(kState, slot)) {
                    finish_gates(step, slot, sums, of_gates, coming);
                    const NextSlot next(*this, kState, slot, step);
                    load_gates(of_gates, next.step, next.slot);
                }
                slot += this->groups(kState);
                if (slot < slots(kState)) multiply_state(step, slot, sums);
            } while (slot < slots(kState));
            prefetch(step + kPrefetched);
            this->meet(kState, step);
            hidden_layer(step, of_hidden);
            this->meet(kHidden, step);
            if (k.resets) put_anew(step, coming);
            latent_layer(step, noise, coming);
            ahead.load_over(k, batch, step + 2);
            this->meet(kLatent, step);
            this->end_step(step);
        }
    }
};

template <class C, bool paired, Meeting meeting>
VSSN_BOUNDED_KERNEL(kThreads, 1)
forward_kernel(ForwardParams params) {
    const BatchTile batch(params.call, params.plan.cluster);
    keep_weights<C, ForwardWeights>(params, meeting == Meeting::block ? 0 : block_x() % params.plan.cluster);
    Forward<C, paired, meeting>(params, batch).run();
}

template <class C>
VSSN_KERNEL forward_pack(ForwardParams params) {
    pack_weights<C, ForwardWeights>(params);
}

struct ForwardKernels {
    using Call = InterleavedForward;

    template <class C, bool paired, Meeting meeting>
    static auto of() {
        return forward_kernel<C, paired, meeting>;
    }
    template <class C>
    static auto pack() {
        return forward_pack<C>;
    }
};

}  // namespace

int forward_at_once(const InterleavedSizes& sizes, const InterleavedPlan& plan) {
    return at_once<ForwardKernels>(sizes, plan);
}

}  // namespace interleaved

void interleaved_forward(const InterleavedForward& call) {
    using namespace interleaved;
    require_sizes("interleaved_forward", call);
    if (call.B == 0 || call.steps == 0) return;
    by_compute_type(call.storage, call.tf32, [&](auto compute) {
        using C = typename decltype(compute)::type;
        using T = typename Product<C>::Stored;
        ForwardParams params{};
        params.call = call;
        params.plan = interleaved_plan(call, false);
        params.paired = all_paired<T>(call, call.gates, {call.gates_x, call.embed_context, call.context}, {});
        launch_sequence<ForwardKernels, C>("interleaved_forward", params);
    });
}

}  // namespace vssn

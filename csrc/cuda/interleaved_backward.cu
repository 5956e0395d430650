// interleaved.h's backward: a launch for a sequence, after one that packs the weights where they are streamed.
//
// The layers of interleaved_common.cuh run from the last step to the first: step s is t = last - s. The latent buffer
// holds the gradients of (mu, raw) of t, the hidden buffer that of context, the state buffer those of (r, u, a, n), and
// the embed buffer that of embed_context; what the last one sums to is what reaches z_{t-1}, from which the gradients
// of (mu, raw) of t - 1 follow at once. Of the states a lane keeps dh in float32, on its way to t - 1. Reads the
// gradients of the outputs and what forward kept once, a step ahead; writes every gradient once.
#include "interleaved_common.cuh"

namespace vssn {

namespace interleaved {

namespace {

using BackwardParams = KernelParams<InterleavedBackward>;

enum Matrix { kIntoHidden, kIntoState, kIntoEmbed, kRecurrent, kIntoLatent };

// The tiles of a unit tile: part by part, k-step by k-step.
struct BackwardWeights {
    template <class P>
    static VSSN_DEVICE typename P::A load(const InterleavedBackward& k, int matrix, int tile, int at,
                                          const InterleavedMatrix& m) {
        const int part = at / m.depth, step = at % m.depth;
        switch (matrix) {
            case kIntoHidden:
                return columns_of<P>(k.weight_out, k.M, k.Z, tile, part, step);
            case kIntoState:
                return columns_of<P>(k.weight_h, k.H, k.M, tile, part, step);
            case kIntoEmbed:
                return columns_of<P>(k.weight_zh, k.E, k.H, tile, part, step);
            case kRecurrent:
                return columns_of<P>(k.weight_hh, k.H, k.H, tile, part, step);
            default:
                return columns_of<P>(k.weight_embed, k.Z, k.E, tile, part, step);
        }
    }
};

// d logvar / d raw with Scale::softplus, as cell.h has it, but by a fast division.
VSSN_DEVICE float softplus_slope(float logvar, float min_std) {
    const float std = standard_deviation<Math>(logvar), above = std - min_std;
    return -2 * divide(LatentMath::expm1(above > 0 ? -above : 0.0f), std);
}

// (r, u, n, a) of two neighbouring units of a batch row, as they were loaded for a later step. together: as one access
// of 16 bytes; else in accesses of 8, which find their registers wherever these are: for what comes in fours the
// compiler moves it, and so waits for it.
template <class T, bool together>
struct LoadedGates {
    Packed<T, 8> both;

    // The first `count` of the units, over what was there.
    VSSN_DEVICE void load_over(const T* p, int count) {
        if (count > 0) both = Packed<T, 8>::load(p);
    }
    VSSN_DEVICE GruGates<float> of(int unit) const {
        const int at = 4 * unit;
        return {both[at], both[at + 1], both[at + 2], both[at + 3]};
    }
};

template <class T>
struct LoadedGates<T, false> {
    static constexpr int kOfAccess = 8 / sizeof(T), kAccesses = 4 / kOfAccess;

    Packed<T, kOfAccess> units[2][kAccesses];

    VSSN_DEVICE void load_over(const T* p, int count) {
#pragma unroll
        for (int unit = 0; unit < 2; ++unit)
#pragma unroll
            for (int i = 0; i < kAccesses; ++i)
                if (count > unit) units[unit][i] = Packed<T, kOfAccess>::load(p + 4 * unit + i * kOfAccess);
    }
    VSSN_DEVICE GruGates<float> of(int unit) const {
        const auto at = [&](int gate) { return units[unit][gate / kOfAccess][gate % kOfAccess]; };
        return {at(0), at(1), at(2), at(3)};
    }
};

template <class C, bool paired, Meeting meeting>
struct Backward : Block<C, InterleavedBackward, meeting> {
    using Base = Block<C, InterleavedBackward, meeting>;
    using typename Base::P;
    using typename Base::T;
    using Steps = Sequence<T, paired>;
    using Loaded = typename Steps::Loaded;

    struct GatesInput {
        Loaded grad_h, before;
        LoadedGates<T, paired && sizeof(T) == 2> gates[2];  // of the lane's two rows
    };
    struct LatentInput {
        Loaded grad_z, grad_mu, grad_logvar, logvar, eps;
    };

    using Base::batch, Base::k, Base::plan, Base::rank, Base::slots, Base::tile, Base::lane_quad;
    const Steps grad_h, grad_z, grad_mu, grad_logvar, eps, h, logvar, embed, hidden;
    const int E, H, M, Z, last;
    T *const grad_embed, *const grad_gates, *const grad_hidden, *const grad_out;  // in shared memory

    VSSN_DEVICE Backward(const BackwardParams& params, const BatchTile& batch)
        : Base(params, batch),
          grad_h(k.grad_h),
          grad_z(k.grad_z),
          grad_mu(k.grad_mu),
          grad_logvar(k.grad_logvar),
          eps(k.eps),
          h(Steps::contiguous(k.h, k.B, k.H)),
          logvar(Steps::contiguous(k.logvar, k.B, k.Z)),
          embed(Steps::contiguous(k.embed, k.B, k.E)),
          hidden(Steps::contiguous(k.hidden, k.B, k.M)),
          E(static_cast<int>(k.E)),
          H(static_cast<int>(k.H)),
          M(static_cast<int>(k.M)),
          Z(static_cast<int>(k.Z)),
          last(batch.steps - 1),
          grad_embed(this->buffer(plan.embed_at)),
          grad_gates(this->buffer(plan.state_at[0])),
          grad_hidden(this->buffer(plan.hidden_at)),
          grad_out(this->buffer(plan.latent_at)) {}

    // Where in its buffer a part of a layer begins.
    VSSN_DEVICE int column(Layer layer, int part) const { return part * plan.layer_tiles[layer] * kUnits; }

    // ---- Before the first step, and behind the last

    VSSN_DEVICE Quad first_quad(const InterleavedState& from, int of_tile, int units) const {
        Quad result = {{0, 0, 0, 0}};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int unit = of_tile * kUnits + accumulator_row(i);
            if (batch.inside(i % 2) && unit < units) result.v[i] = state_at<T>(from, batch.row + i % 2, unit);
        }
        return result;
    }

    VSSN_DEVICE void prepare() const {
        const Quad zero = {{0, 0, 0, 0}};
        for (int slot = warp_id(); slot < slots(kState); slot += warps()) {
            lane_quad(plan.carry_at, slot) = zero;
            lane_quad(plan.first_at, slot) = first_quad(k.h0, tile(slot), H);
            if (k.resets) {
                lane_quad(plan.state_anew_at, slot) = first_quad(anew(k.reset_h, k.h0), tile(slot), H);
                lane_quad(plan.sums_at, slot) = zero;
            }
        }
        for (int slot = warp_id(); slot < slots(kLatent); slot += warps()) {
            lane_quad(plan.latent_carry_at, slot) = zero;
            if (k.resets) lane_quad(plan.latent_sums_at, slot) = zero;
        }
        zero_padding_of<T>(k, batch, k.grad_gates_x, 3 * k.H, rank, plan.cluster);
        zero_padding_of<T>(k, batch, k.grad_a, k.H, rank, plan.cluster);
        zero_padding_of<T>(k, batch, k.grad_embed_context, k.E, rank, plan.cluster);
        zero_padding_of<T>(k, batch, k.grad_context, k.M, rank, plan.cluster);
        zero_padding_of<T>(k, batch, k.grad_out, 2 * k.Z, rank, plan.cluster);
        zero_padding_of<T>(k, batch, k.grad_eps, k.Z, rank, plan.cluster);
    }

    VSSN_DEVICE void store_state(void* to, bool is_float, int of_tile, int units, const Quad& values) const {
        if (to == nullptr) return;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int unit = of_tile * kUnits + accumulator_row(i);
            if (!batch.inside(i % 2) || unit >= units) continue;
            const int64_t at = (batch.row + i % 2) * units + unit;
            if (is_float)
                static_cast<float*>(to)[at] = values.v[i];
            else
                static_cast<T*>(to)[at] = from_float<T>(values.v[i]);
        }
    }

    // Of a slot: the gradients of the first state and of the one at resets, which is the first where none was given.
    VSSN_DEVICE void store_states(int carry_at, int sums_at, int slot, int units, void* grad_first, bool first_is_float,
                                  void* grad_anew, const InterleavedState& given) const {
        Quad carry = lane_quad(carry_at, slot), sums = {{0, 0, 0, 0}};
        if (k.resets) sums = lane_quad(sums_at, slot);
        if (given.data == nullptr)
#pragma unroll
            for (int i = 0; i < 4; ++i) carry.v[i] += sums.v[i];
        store_state(grad_first, first_is_float, tile(slot), units, carry);
        store_state(grad_anew, given.is_float, tile(slot), units, sums);
    }

    // ---- Inputs

    VSSN_DEVICE void load_gates(GatesInput& over, int step, int slot) const {
        const int t = last - step, unit = tile(slot) * kUnits + accumulator_row(0);
        grad_h.load_over(over.grad_h, batch, t, tile(slot), H);
        h.load_over(over.before, batch, t - 1, tile(slot), H);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const bool there = batch.valid(t, j);
            const int64_t at =
                there ? 4 * ((t * k.B + batch.row + j) * H + unit) : 0;  // of no steps there is no memory
            over.gates[j].load_over(static_cast<const T*>(k.gates) + at, there ? H - unit : 0);
        }
    }

    VSSN_DEVICE void load_latent(LatentInput& over, int t, int of_tile) const {
        grad_z.load_over(over.grad_z, batch, t, of_tile, Z);
        grad_mu.load_over(over.grad_mu, batch, t, of_tile, Z);
        grad_logvar.load_over(over.grad_logvar, batch, t, of_tile, Z);
        logvar.load_over(over.logvar, batch, t, of_tile, Z);
        eps.load_over(over.eps, batch, t, of_tile, Z);
    }

    VSSN_DEVICE void prefetch(int step) const {
        const int count = warps() * plan.cluster;
        int index = (warps() - 1 - warp_id()) * plan.cluster + rank;
        const int t = last - step;
        hidden.prefetch(batch, t, M, index, count);
        embed.prefetch(batch, t, E, index, count);
        grad_h.prefetch(batch, t, H, index, count);
        h.prefetch(batch, t - 1, H, index, count);
        Steps::contiguous(k.gates, k.B, 4 * k.H).prefetch(batch, t, 4 * H, index, count);
        grad_z.prefetch(batch, t - 1, Z, index, count);
        grad_mu.prefetch(batch, t - 1, Z, index, count);
        grad_logvar.prefetch(batch, t - 1, Z, index, count);
        logvar.prefetch(batch, t - 1, Z, index, count);
        eps.prefetch(batch, t - 1, Z, index, count);
    }

    // ---- Layers

    // The gradients of (mu, raw) of t - 1, from dz; t - 1 >= 0. To all, or, where every block does this, to its own
    // buffer.
    VSSN_DEVICE void finish_latent(int step, int of_tile, const Four& dz, const LatentInput& loaded, bool to_all,
                                   bool stores) const {
        const int t = last - step - 1;
        const Four in_z = loaded.grad_z.wide(), in_mu = loaded.grad_mu.wide(), in_logvar = loaded.grad_logvar.wide();
        const Four log_variance = loaded.logvar.wide(), noise = loaded.eps.wide();
        Four mu, raw, of_eps;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const bool inside = batch.valid(t, i % 2) && of_tile * kUnits + accumulator_row(i) < Z;
            const float slope = k.scale == Scale::softplus
                                    ? softplus_slope(log_variance.v[i], k.min_std)
                                    : floored_logvar_slope<LatentMath>(log_variance.v[i], k.min_logvar);
            const float total = dz.v[i] + in_z.v[i], sigma = standard_deviation<Math>(log_variance.v[i]);
            of_eps.v[i] = total * sigma;
            mu.v[i] = inside ? total + in_mu.v[i] : 0.0f;
            raw.v[i] = inside ? (in_logvar.v[i] + of_eps.v[i] * noise.v[i] * 0.5f) * slope : 0.0f;
        }
        const int to = of_tile * kUnits;
        if (to_all) {
            this->give(kLatent, step, grad_out, plan.latent_stride, to, mu);
            this->give(kLatent, step, grad_out, plan.latent_stride, column(kLatent, 1) + to, raw);
        } else {
            put<P>(grad_out, plan.latent_stride, to, mu);
            put<P>(grad_out, plan.latent_stride, column(kLatent, 1) + to, raw);
        }
        if (!stores) return;
        store_four<paired, T>(k.grad_out, batch, k.B, t, of_tile, Z, 2 * k.Z, 0, StoredFour<T>::of(mu));
        store_four<paired, T>(k.grad_out, batch, k.B, t, of_tile, Z, 2 * k.Z, k.Z, StoredFour<T>::of(raw));
        store_four<paired, T>(k.grad_eps, batch, k.B, t, of_tile, Z, Z, 0, StoredFour<T>::of(of_eps));
    }

    // Of the last step, by every block: nothing is exchanged before the first layer.
    VSSN_DEVICE void start_latents() const {
        for (int of_tile = warp_id(); of_tile < plan.layer_tiles[kLatent]; of_tile += warps()) {
            LatentInput input{};
            load_latent(input, last, of_tile);
            const bool own = this->alone() || (of_tile & (plan.cluster - 1)) == rank;
            finish_latent(-1, of_tile, zeros(), input, false, own);
        }
    }

    VSSN_DEVICE void hidden_layer(int step, Loaded& kept) const {
        int slot = this->group(kHidden);
        do {
            Four sum[1] = {zeros()};
            if (this->multiplies(kHidden, slot))
#pragma unroll
                for (int part = 0; part < 2; ++part)
                    this->template multiply<1>(sum, kHidden, kIntoHidden, slot, grad_out + column(kLatent, part),
                                               plan.latent_stride, part);
            this->join(kHidden, slot, sum);
            if (this->finishes(kHidden, slot)) {
                multiply_slope(k.activation, sum[0], kept.wide());
                const NextSlot next(*this, kHidden, slot, step);
                hidden.load_over(kept, batch, last - next.step, tile(next.slot), M);
                this->give(kHidden, step, grad_hidden, plan.hidden_stride, tile(slot) * kUnits, sum[0]);
                store_four<paired, T>(k.grad_context, batch, k.B, last - step, tile(slot), M, M, 0,
                                      StoredFour<T>::of(sum[0]));
            }
            slot += this->groups(kHidden);
        } while (slot < slots(kHidden));
    }

    VSSN_DEVICE void state_layer(int step, GatesInput& input, const Resets& resets) const {
        int slot = this->group(kState);
        do {
            Four dh[1] = {zeros()};
            if (this->multiplies(kState, slot))
                this->template multiply<1>(dh, kState, kIntoState, slot, grad_hidden, plan.hidden_stride);
            this->join(kState, slot, dh);
            const bool own = this->finishes(kState, slot);
            if (own) finish_state(step, slot, dh[0], input, resets);
            // Not in the branch, behind which the compiler would move what was loaded, and so wait for it.
            const NextSlot next(*this, kState, slot, step);
            load_gates(input, own ? next.step : last + 1, next.slot);
            slot += this->groups(kState);
        } while (slot < slots(kState));
    }

    VSSN_DEVICE void finish_state(int step, int slot, const Four& dh, const GatesInput& input,
                                  const Resets& resets) const {
        const int t = last - step;
        Quad& carry = lane_quad(plan.carry_at, slot);
        Four before = input.before.wide();
        const Four of_output = input.grad_h.wide();
        const Quad first = lane_quad(plan.first_at, slot);
        Quad at_reset = first;
        if (k.resets) at_reset = lane_quad(plan.state_anew_at, slot);
        Four grad[4];  // r, u, a, n
        Quad stays;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (t == 0) before.v[i] = first.v[i];
            if (resets.row[i % 2]) before.v[i] = at_reset.v[i];
            const GruGates<float> g = input.gates[i % 2].of(i / 2);
            const float total = dh.v[i] + carry.v[i] + of_output.v[i];
            const GruGates<float> of = gru_gate_grads(g, before.v[i], total);
            const bool valid = batch.valid(t, i % 2);
            grad[0].v[i] = valid ? of.r : 0.0f;
            grad[1].v[i] = valid ? of.z : 0.0f;
            grad[2].v[i] = valid ? of.a : 0.0f;
            grad[3].v[i] = valid ? of.n : 0.0f;
            stays.v[i] = valid ? total * g.z : 0.0f;
        }
        carry = stays;
#pragma unroll
        for (int part = 0; part < 4; ++part)
            this->give(kState, step, grad_gates, plan.state_stride, column(kState, part) + tile(slot) * kUnits,
                       grad[part]);
        constexpr int kOfGate[] = {0, 1, 3};
#pragma unroll
        for (int gate = 0; gate < 3; ++gate)
            store_four<paired, T>(k.grad_gates_x, batch, k.B, t, tile(slot), H, 3 * k.H, gate * k.H,
                                  StoredFour<T>::of(grad[kOfGate[gate]]));
        store_four<paired, T>(k.grad_a, batch, k.B, t, tile(slot), H, H, 0, StoredFour<T>::of(grad[2]));
    }

    VSSN_DEVICE void embed_layer(int step, Loaded& kept) const {
        int slot = this->group(kEmbed);
        do {
            Four sum[1] = {zeros()};
            if (this->multiplies(kEmbed, slot))
                for (int gate = 0; gate < 3; ++gate)
                    this->template multiply<1>(sum, kEmbed, kIntoEmbed, slot,
                                               grad_gates + column(kState, gate < 2 ? gate : 3), plan.state_stride,
                                               gate);
            this->join(kEmbed, slot, sum);
            if (this->finishes(kEmbed, slot)) {
                multiply_slope(k.embed_activation, sum[0], kept.wide());
                const NextSlot next(*this, kEmbed, slot, step);
                embed.load_over(kept, batch, last - next.step, tile(next.slot), E);
                this->give(kEmbed, step, grad_embed, plan.embed_stride, tile(slot) * kUnits, sum[0]);
                store_four<paired, T>(k.grad_embed_context, batch, k.B, last - step, tile(slot), E, E, 0,
                                      StoredFour<T>::of(sum[0]));
            }
            slot += this->groups(kEmbed);
        } while (slot < slots(kEmbed));
    }

    // What reaches h_{t-1} or z_{t-1}: nothing at padding; at a reset it is added to `sums` instead.
    VSSN_DEVICE void pass_on(int t, Four& grad, const Resets& resets, int sums_at, int slot) const {
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (!batch.valid(t, i % 2)) grad.v[i] = 0;
        if (k.resets == nullptr) return;
        Quad& sums = lane_quad(sums_at, slot);
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (resets.row[i % 2]) {
                sums.v[i] += grad.v[i];
                grad.v[i] = 0;
            }
    }

    // While the gradient of the embedding is on its way.
    VSSN_DEVICE void carry_states(int step, const Resets& resets) const {
        int slot = this->group(kState);
        do {
            Four sum[1] = {zeros()};
            if (this->multiplies(kState, slot))
                for (int gate = 0; gate < 3; ++gate)
                    this->template multiply<1>(sum, kState, kRecurrent, slot, grad_gates + column(kState, gate),
                                               plan.state_stride, gate);
            this->join(kState, slot, sum, 1);  // the embedding's sums may still be read
            if (this->finishes(kState, slot)) {
                Quad& carry = lane_quad(plan.carry_at, slot);
                add(sum[0], carry);
                pass_on(last - step, sum[0], resets, plan.sums_at, slot);
                carry = quad(sum[0]);
            }
            slot += this->groups(kState);
        } while (slot < slots(kState));
    }

    VSSN_DEVICE void latent_layer(int step, LatentInput& input, const Resets& resets) const {
        int slot = this->group(kLatent);
        do {
            Four dz[1] = {zeros()};
            if (this->multiplies(kLatent, slot))
                this->template multiply<1>(dz, kLatent, kIntoLatent, slot, grad_embed, plan.embed_stride);
            this->join(kLatent, slot, dz);
            if (this->finishes(kLatent, slot)) {
                pass_on(last - step, dz[0], resets, plan.latent_sums_at, slot);
                lane_quad(plan.latent_carry_at, slot) = quad(dz[0]);
                finish_latent(step, tile(slot), dz[0], input, true, step < last);
                const NextSlot next(*this, kLatent, slot, step);
                load_latent(input, last - next.step - 1, tile(next.slot));
            }
            slot += this->groups(kLatent);
        } while (slot < slots(kLatent));
    }

    VSSN_DEVICE void run() const {
        prepare();
        if (batch.steps > 0) start_latents();
        const auto first = [&](Layer layer) { return tile(this->group(layer)); };
        Loaded of_hidden = hidden.load(batch, last, first(kHidden), M),
               of_embed = embed.load(batch, last, first(kEmbed), E);
        GatesInput of_gates{};
        load_gates(of_gates, 0, this->group(kState));
        LatentInput of_latent{};
        load_latent(of_latent, last - 1, first(kLatent));
        LoadedResets ahead;
        ahead.load_over(k, batch, last);
        this->start();
        for (int step = 0; step < batch.steps; ++step) {
            const Resets resets = ahead.of(batch, last - step);
            hidden_layer(step, of_hidden);
            this->meet(kHidden, step);
            state_layer(step, of_gates, resets);
            prefetch(step + kPrefetched);
            this->meet(kState, step);
            embed_layer(step, of_embed);
            carry_states(step, resets);
            this->meet(kEmbed, step);
            latent_layer(step, of_latent, resets);
            ahead.load_over(k, batch, last - step - 1);
            this->meet(kLatent, step);
            this->end_step(step);
        }
        for (int slot = warp_id(); slot < slots(kState); slot += warps())
            store_states(plan.carry_at, plan.sums_at, slot, H, k.grad_h0, k.h0.is_float, k.grad_reset_h, k.reset_h);
        for (int slot = warp_id(); slot < slots(kLatent); slot += warps())
            store_states(plan.latent_carry_at, plan.latent_sums_at, slot, Z, k.grad_z0, k.z0.is_float, k.grad_reset_z,
                         k.reset_z);
    }
};

template <class C, bool paired, Meeting meeting>
VSSN_BOUNDED_KERNEL(kThreads, 1)
backward_kernel(BackwardParams params) {
    const BatchTile batch(params.call, params.plan.cluster);
    keep_weights<C, BackwardWeights>(params, meeting == Meeting::block ? 0 : block_x() % params.plan.cluster);
    Backward<C, paired, meeting>(params, batch).run();
}

template <class C>
VSSN_KERNEL backward_pack(BackwardParams params) {
    pack_weights<C, BackwardWeights>(params);
}

struct BackwardKernels {
    using Call = InterleavedBackward;

    template <class C, bool paired, Meeting meeting>
    static auto of() {
        return backward_kernel<C, paired, meeting>;
    }
    template <class C>
    static auto pack() {
        return backward_pack<C>;
    }
};

}  // namespace

int backward_at_once(const InterleavedSizes& sizes, const InterleavedPlan& plan) {
    return at_once<BackwardKernels>(sizes, plan);
}

}  // namespace interleaved

void interleaved_backward(const InterleavedBackward& call) {
    using namespace interleaved;
    require_sizes("interleaved_backward", call);
    if (call.B == 0) return;
    by_compute_type(call.storage, call.tf32, [&](auto compute) {
        using C = typename decltype(compute)::type;
        using T = typename Product<C>::Stored;
        BackwardParams params{};
        params.call = call;
        params.plan = interleaved_plan(call, true);
        params.paired = all_paired<T>(call, call.gates, {call.grad_h, call.grad_z, call.grad_mu, call.grad_logvar},
                                      {call.h, call.logvar, call.embed, call.hidden});
        launch_sequence<BackwardKernels, C>("interleaved_backward", params);
    });
}

}  // namespace vssn

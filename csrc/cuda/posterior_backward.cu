// posterior.h's backward: a launch for a sequence, after one that packs the weights where they are streamed.
//
// The loop of posterior_common.cuh runs from the last step to the first: step s of it is t = last - s. The latent
// buffer holds the gradients of (mu, raw) of t, the hidden buffer those of context and prior_context, and the sums of a
// group of latents are what reaches z_{t-1} through them. Reads the gradients of the outputs, logvar, eps, hidden and
// prior_hidden once; writes every gradient once.
#include <type_traits>

#include "posterior_common.cuh"

namespace vssn {

namespace posterior {

namespace {

using BackwardParams = KernelParams<PosteriorBackward>;

template <class C>
struct BackwardWeights {
    using P = Product<C>;
    using Stored = typename P::Stored;

    const PosteriorBackward& k;

    VSSN_DEVICE explicit BackwardWeights(const PosteriorBackward& k) : k(k) {}

    // Rows: hidden units; k-steps: the latents of mu (part 0) or raw (1).
    VSSN_DEVICE typename P::A weight_in(int net, int tile, int part, int step) const {
        const void* data = net == 0 ? k.weight_out.data : k.prior_weight_mu.data;
        const int64_t stride = net == 0 ? k.weight_out.stride : k.prior_weight_mu.stride;
        const int unit = tile * kUnits, from = step * P::kDepth;
        return P::load_rows(static_cast<const Stored*>(data) + (part * k.Z + from) * stride + unit, 1, stride,
                            static_cast<int>(k.M) - unit, static_cast<int>(k.Z) - from);
    }

    // Rows: latents; k-steps: hidden units from `unit` on.
    VSSN_DEVICE typename P::A weight_out(int net, int group, int, int unit) const {
        const void* data = net == 0 ? k.weight_z.data : k.prior_weight_z.data;
        const int64_t stride = net == 0 ? k.weight_z.stride : k.prior_weight_z.stride;
        const int latent = group * kUnits;
        return P::load_rows(static_cast<const Stored*>(data) + unit * stride + latent, 1, stride,
                            static_cast<int>(k.Z) - latent, static_cast<int>(k.M) - unit);
    }
};

template <class C, bool paired>
struct Backward : BackwardWeights<C> {
    using Params = BackwardParams;
    using Weights = BackwardWeights<C>;
    using P = Product<C>;
    using T = typename P::Stored;
    using Steps = Sequence<T, paired>;
    using Loaded = typename Steps::Loaded;  // of hidden
    static constexpr int kParts = 2, kSums = 1;

    template <int rows>
    struct LatentInputsOf {
        LoadedRows<T, paired, rows> grad_z, grad_mu, grad_logvar, logvar, eps;
    };
    using LatentInputs = LatentInputsOf<2>;

    // grad_raw = raw_from_logvar + dz raw_from_z
    template <int rows>
    struct PreparedOf {
        OfRows<rows> grad_z, grad_mu, raw_from_logvar, raw_from_z, sigma;
    };
    using Prepared = PreparedOf<2>;

    template <int rows>
    struct ResultOf {
        OfRows<rows> latent[kParts];  // the gradients of mu and raw
        StoredRows<T, rows> grad_mu, grad_raw, grad_eps;
        OfRows<rows> carry;  // the gradient of z_t that came through step t + 1: behind the last step, z0's
    };
    using Result = ResultOf<2>;

    using Weights::k;
    const BatchTile& batch;
    const Steps grad_z, grad_mu, grad_logvar, logvar, eps, hidden, prior_hidden;
    const int M, Z, last;

    VSSN_DEVICE Backward(const Params& params, const BatchTile& batch)
        : Weights(params.call),
          batch(batch),
          grad_z(k.grad_z),
          grad_mu(k.grad_mu),
          grad_logvar(k.grad_logvar),
          logvar(Steps::contiguous(k.logvar, k.B, k.Z)),
          eps(k.eps),
          hidden(Steps::contiguous(k.hidden, k.B, k.M)),
          prior_hidden(Steps::contiguous(k.prior_hidden, k.B, k.M)),
          M(static_cast<int>(k.M)),
          Z(static_cast<int>(k.Z)),
          last(batch.steps - 1) {}

    VSSN_DEVICE void prepare_block() const {}

    VSSN_DEVICE Loaded hidden_input(int step, int net, int tile) const {
        return Steps::choose(net == 0, hidden, prior_hidden).load(batch, last - step, tile, M);
    }

    template <int tiles, int n>
    VSSN_DEVICE void hidden_finish(Four (&products)[n], const Loaded (&inputs)[n], StoredFour<T> (&kept)[n],
                                   int first_tile) const {
        multiply_slopes_by(k.activation, products, inputs);
        zero_beyond<tiles>(products, first_tile, M);
#pragma unroll
        for (int j = 0; j < n; ++j) kept[j] = StoredFour<T>::of(products[j]);
    }

    // What a tile's product begins with, and what it becomes.
    static VSSN_DEVICE Four hidden_start(const Loaded&) { return zeros(); }
    template <int n>
    VSSN_DEVICE void hidden_activate(Four (&products)[n], const Loaded* inputs, StoredFour<T>* kept) const {
        multiply_slopes_by(k.activation, products, inputs);
#pragma unroll
        for (int j = 0; j < n; ++j) kept[j] = StoredFour<T>::of(products[j]);
    }

    VSSN_DEVICE void store_hidden(int step, int net, int tile, const StoredFour<T>& kept) const {
        store_four<paired, T>(net == 0 ? k.grad_context : k.grad_prior_context, batch, k.B, last - step, tile, M, M, 0,
                              kept);
    }

    VSSN_DEVICE Result first_latent(int group) const {
        const Four nothing[kSums] = {zeros()};
        LatentInputs inputs;
        latent_input(inputs, -1, group);
        return latent_finish(nothing, prepared(-1, group, inputs), group);
    }

    VSSN_DEVICE void store_first(int group, const Result& result) const { store_latent(-1, group, result); }

    // Of the step before: what its gradients need beside dz.
    VSSN_DEVICE void latent_input(LatentInputs& inputs, int step, int group) const {
        const int t = last - step - 1;
        inputs = {grad_z.load(batch, t, group, Z), grad_mu.load(batch, t, group, Z),
                  grad_logvar.load(batch, t, group, Z), logvar.load(batch, t, group, Z), eps.load(batch, t, group, Z)};
    }

    VSSN_DEVICE void prefetch(int step, int index, int count) const {
        hidden.prefetch(batch, last - step, M, index, count);
        prior_hidden.prefetch(batch, last - step, M, index, count);
        grad_z.prefetch(batch, last - step - 1, Z, index, count);
        grad_mu.prefetch(batch, last - step - 1, Z, index, count);
        grad_logvar.prefetch(batch, last - step - 1, Z, index, count);
        logvar.prefetch(batch, last - step - 1, Z, index, count);
        eps.prefetch(batch, last - step - 1, Z, index, count);
    }

    template <int rows>
    static VSSN_DEVICE PreparedOf<rows> prepare(const LatentInputsOf<rows>& loaded, float min_logvar) {
        PreparedOf<rows> result;
        const auto grad_logvar = loaded.grad_logvar.wide(), logvar = loaded.logvar.wide(), eps = loaded.eps.wide();
        result.grad_z = loaded.grad_z.wide();
        result.grad_mu = loaded.grad_mu.wide();
#pragma unroll
        for (int i = 0; i < 2 * rows; ++i) {
            const float sigma = standard_deviation<Math>(logvar.v[i]);
            const float slope = floored_logvar_slope<LatentMath>(logvar.v[i], min_logvar);
            result.sigma.v[i] = sigma;
            result.raw_from_logvar.v[i] = grad_logvar.v[i] * slope;
            result.raw_from_z.v[i] = sigma * eps.v[i] * (0.5f * slope);
        }
        return result;
    }

    VSSN_DEVICE Prepared prepared(int step, int group, const LatentInputs& loaded) const {
        Prepared result = prepare<2>(loaded, k.min_logvar);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (batch.valid(last - step - 1, i % 2) && group * kUnits + accumulator_row(i) < Z) continue;
            result.raw_from_logvar.v[i] = result.raw_from_z.v[i] = 0.0f;
        }
        return result;
    }

    VSSN_DEVICE Result latent_finish(const Four* sums, const Prepared& prepared, int) const {
        return latents<2>(sums, prepared);
    }

    // What the sums begin with, and what becomes of them.
    VSSN_DEVICE Four latent_start(int, int) const { return zeros(); }
    template <int rows>
    VSSN_DEVICE ResultOf<rows> latents(const OfRows<rows>* sums, const PreparedOf<rows>& prepared) const {
        ResultOf<rows> result;
        OfRows<rows> grad_eps;
        result.carry = sums[0];
#pragma unroll
        for (int i = 0; i < 2 * rows; ++i) {
            const float dz = sums[0].v[i] + prepared.grad_z.v[i];
            result.latent[0].v[i] = dz + prepared.grad_mu.v[i];
            result.latent[1].v[i] = prepared.raw_from_logvar.v[i] + dz * prepared.raw_from_z.v[i];
            grad_eps.v[i] = dz * prepared.sigma.v[i];
        }
        result.grad_mu = StoredRows<T, rows>::of(result.latent[0]);
        result.grad_raw = StoredRows<T, rows>::of(result.latent[1]);
        result.grad_eps = StoredRows<T, rows>::of(grad_eps);
        return result;
    }

    VSSN_DEVICE void store_latent(int step, int group, const Result& result) const {
        const int t = last - step - 1;
        if (t < 0) return;
        store_four<paired, T>(k.grad_out, batch, k.B, t, group, Z, 2 * k.Z, 0, result.grad_mu);
        store_four<paired, T>(k.grad_out, batch, k.B, t, group, Z, 2 * k.Z, k.Z, result.grad_raw);
        store_four<paired, T>(k.grad_eps, batch, k.B, t, group, Z, Z, 0, result.grad_eps);
    }

    VSSN_DEVICE void store_last(int group, const Result& result) const { store_last_of<2>(group, 0, result); }
    template <int rows>
    VSSN_DEVICE void store_last_of(int group, int first_row, const ResultOf<rows>& result) const {
        if (k.grad_z0 == nullptr) return;
#pragma unroll
        for (int i = 0; i < 2 * rows; ++i) {
            const int unit = group * kUnits + accumulator_row(0) + i / rows, row = first_row + i % rows;
            if (!batch.inside(row) || unit >= Z) continue;
            const int64_t at = (batch.row + row) * k.Z + unit;
            if (k.float_state)
                static_cast<float*>(k.grad_z0)[at] = result.carry.v[i];
            else
                static_cast<T*>(k.grad_z0)[at] = from_float<T>(result.carry.v[i]);
        }
    }

    // ---- Of run_in_registers: the same tiles, or the same group, in every step ------------------------------------

    VSSN_DEVICE int time(int step) const { return last - step; }

    // What is read and what is written lie alike.
    template <int nets, int tiles>
    struct Hidden {
        Place<paired, tiles, 2> place;
        Contiguous<T> units;

        VSSN_DEVICE void load(const Backward& pass, int step, Loaded* loaded) {
            units.load(place, pass.k.hidden, pass.time(step), loaded);
            if (nets == 2) units.load(place, pass.k.prior_hidden, pass.time(step), loaded + tiles);
            units.advance();
        }
        // Behind load of the step after.
        VSSN_DEVICE void store(const Backward& pass, int step, const StoredFour<T>* grads) const {
            const int64_t back = -2 * units.step_stride;
            units.store(place, pass.k.grad_context, back, pass.time(step), grads);
            if (nets == 2) units.store(place, pass.k.grad_prior_context, back, pass.time(step), grads + tiles);
        }
    };
    template <int nets, int tiles>
    VSSN_DEVICE Hidden<nets, tiles> hidden_of(int first) const {
        return {{batch, 0, first, M}, {batch, 0, k.B, last, first, M, true}};
    }

    // Of the step before, as latent_input and store_latent have it: first of step -1.
    template <int rows>
    struct Latents {
        using Inputs = LatentInputsOf<rows>;
        Place<paired, 1, rows> place;
        Reader<T, paired> grad_z, grad_mu, grad_logvar, eps;
        Contiguous<T> units;     // logvar, a step ahead of the gradient of eps
        Contiguous<T> grad_out;  // rows of 2 Z

        VSSN_DEVICE void load(const Backward& pass, int step, Inputs& inputs) {
            const int t = pass.time(step + 1);
            grad_z.load(place, pass.k.grad_z.data ? t : -1, &inputs.grad_z);
            grad_mu.load(place, pass.k.grad_mu.data ? t : -1, &inputs.grad_mu);
            grad_logvar.load(place, pass.k.grad_logvar.data ? t : -1, &inputs.grad_logvar);
            units.load(place, pass.k.logvar, t, &inputs.logvar);
            eps.load(place, t, &inputs.eps);
            units.advance();
        }
        VSSN_DEVICE PreparedOf<rows> prepared(const Backward& pass, const Inputs& inputs) const {
            return prepare<rows>(inputs, pass.k.min_logvar);
        }
        // Behind load of the step after.
        VSSN_DEVICE void store(const Backward& pass, int step, const ResultOf<rows>& result, int only) {
            const int t = pass.time(step + 1);
            if (only < 0 || only == 0) grad_out.store(place, pass.k.grad_out, 0, t, &result.grad_mu);
            if (only < 0 || only == 1) grad_out.store(place, pass.k.grad_out, pass.k.Z, t, &result.grad_raw);
            if (only < 0 || only == 2) units.store(place, pass.k.grad_eps, -2 * units.step_stride, t, &result.grad_eps);
            grad_out.advance();
        }
    };
    template <int rows>
    VSSN_DEVICE Latents<rows> latents_of(int group, int first_row) const {
        const auto reader = [&](const Steps& sequence) {
            return Reader<T, paired>(sequence, batch, first_row, last, group, true);
        };
        return {{batch, first_row, group, Z},
                reader(grad_z),
                reader(grad_mu),
                reader(grad_logvar),
                reader(eps),
                {batch, first_row, k.B, last, group, Z, true},
                {batch, first_row, k.B, last, group, 2 * k.Z, true}};
    }
    // Where nothing is loaded, behind a row's length and beyond Z, every gradient is 0: so must what it is multiplied
    // by be finite.
    template <int rows>
    VSSN_DEVICE LatentInputsOf<rows> latent_nothing() const {
        using Rows = LoadedRows<T, paired, rows>;
        return {Rows::zero(), Rows::zero(), Rows::zero(), Rows::all(k.min_logvar), Rows::zero()};
    }
    template <int rows>
    VSSN_DEVICE ResultOf<rows> first_latents(Latents<rows>& latent, LatentInputsOf<rows>& inputs, int, int,
                                             int only) const {
        latent.load(*this, -1, inputs);
        const OfRows<rows> nothing[kSums] = {};
        const auto result = latents<rows>(nothing, latent.prepared(*this, inputs));
        latent.load(*this, 0, inputs);
        latent.store(*this, -1, result, only);
        return result;
    }

    // What is asked into L2 of the sequences that hidden units, or latents, read.
    static VSSN_DEVICE constexpr int latent_sequences() { return 5; }
    VSSN_DEVICE Prefetch<T> prefetch_hidden(int net, int tile) const {
        return {Steps::choose(net == 0, hidden, prior_hidden), batch, time(kPrefetched), tile, M, true};
    }
    VSSN_DEVICE Prefetch<T> prefetch_latent(int which, int group) const {
        const Steps sequence = which == 0   ? grad_z
                               : which == 1 ? grad_mu
                               : which == 2 ? grad_logvar
                               : which == 3 ? logvar
                                            : eps;
        return {sequence, batch, time(kPrefetched), group, Z, true};
    }

    VSSN_DEVICE void zero_padding(int rank, int cluster) const {
        zero_padding_of<T>(k, batch, k.grad_context, k.M, rank, cluster);
        zero_padding_of<T>(k, batch, k.grad_prior_context, k.M, rank, cluster);
        zero_padding_of<T>(k, batch, k.grad_out, 2 * k.Z, rank, cluster);
        zero_padding_of<T>(k, batch, k.grad_eps, k.Z, rank, cluster);
    }
};

template <class C, bool paired, Meeting meeting>
VSSN_BOUNDED_KERNEL(kMaxThreads)
backward_in_memory(BackwardParams params) {
    run_in_memory<Backward<C, paired>, meeting>(params);
}

template <class C>
VSSN_KERNEL backward_pack(BackwardParams params) {
    pack_weights<Backward<C, true>>(params);
}

template <class C, bool paired, class Shape, bool prior>
VSSN_BOUNDED_KERNEL(Shape::kWarps* kWarp)
backward_in_registers(BackwardParams params) {
    run_in_registers<Backward<C, paired>, Shape, prior>(params);
}

struct InMemoryBackward {
    template <class C, bool paired, Meeting meeting>
    static auto of() {
        return backward_in_memory<C, paired, meeting>;
    }
};

constexpr const char* kName = "posterior_backward";

template <class C, bool paired>
void launch_registers(const BackwardParams& params) {
    const bool prior = params.call.prior_weight_z.data != nullptr;
    const auto kernel = params.plan.wide ? prior ? backward_in_registers<C, paired, Wide, true>
                                                 : backward_in_registers<C, paired, Wide, false>
                        : prior          ? backward_in_registers<C, paired, Narrow, true>
                                         : backward_in_registers<C, paired, Narrow, false>;
    launch_or_throw(kName, kernel, launch_shape(params), params);
}

template <class C>
void run(const PosteriorBackward& call) {
    using T = typename Product<C>::Stored;
    BackwardParams params{};
    params.call = call;
    params.plan = posterior_plan(call.storage, call.tf32, call.B, call.M, call.Z, call.prior_weight_z.data != nullptr,
                                 true, call.variant);
    params.paired = call.M % 2 == 0 && call.Z % 2 == 0 && in_pairs<T>(call.hidden) && in_pairs<T>(call.prior_hidden) &&
                    in_pairs<T>(call.logvar) && in_pairs<T>(call.eps) && in_pairs<T>(call.grad_z) &&
                    in_pairs<T>(call.grad_mu) && in_pairs<T>(call.grad_logvar);
    if constexpr (sizeof(T) == 2)
        if (params.plan.variant == PosteriorVariant::registers)
            return params.paired ? launch_registers<C, true>(params) : launch_registers<C, false>(params);
    launch_in_memory(kName,
                     params.paired ? in_memory<InMemoryBackward, C, true>(params.plan)
                                   : in_memory<InMemoryBackward, C, false>(params.plan),
                     backward_pack<C>, params);
}

}  // namespace

int backward_at_once(Storage storage, bool tf32, const PosteriorPlan& plan) {
    BackwardParams params{};
    params.plan = plan;
    params.call.B = kRows;
    const auto kernel = by_compute_type(storage, tf32, [&](auto compute) {
        return in_memory<InMemoryBackward, typename decltype(compute)::type, true>(plan);
    });
    return clusters_at_once(kernel, launch_shape(params));
}

}  // namespace posterior

void posterior_backward(const PosteriorBackward& call) {
    posterior::require_sizes(posterior::kName, call);
    gpu::by_compute_type(call.storage, call.tf32,
                         [&](auto compute) { posterior::run<typename decltype(compute)::type>(call); });
}

}  // namespace vssn

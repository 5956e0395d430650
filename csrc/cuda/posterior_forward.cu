// posterior.h's forward: a launch for a sequence, after one that packs the weights where they are streamed.
//
// The latent buffer of posterior_common.cuh's loop holds z_{t-1}; the sums of a group of latents are mu and raw.
// Reads context, prior_context and eps once; writes z, mu, logvar and what backward needs once.
#include "posterior_common.cuh"

namespace vssn {

namespace posterior {

namespace {

using ForwardParams = KernelParams<PosteriorForward>;

template <class C>
struct ForwardWeights {
    using P = Product<C>;
    using Stored = typename P::Stored;

    const PosteriorForward& k;

    VSSN_DEVICE explicit ForwardWeights(const PosteriorForward& k) : k(k) {}

    // Rows: hidden units; k-steps: latents.
    VSSN_DEVICE typename P::A weight_in(int net, int tile, int, int step) const {
        const void* data = net == 0 ? k.weight_z.data : k.prior_weight_z.data;
        const int64_t stride = net == 0 ? k.weight_z.stride : k.prior_weight_z.stride;
        const int unit = tile * kUnits, from = step * P::kDepth;
        return P::load_rows(static_cast<const Stored*>(data) + unit * stride + from, stride, 1,
                            static_cast<int>(k.M) - unit, static_cast<int>(k.Z) - from);
    }

    // Rows: the latents' mu (sum 0) or raw (1); k-steps: hidden units from `unit` on.
    VSSN_DEVICE typename P::A weight_out(int net, int group, int sum, int unit) const {
        const void* data = net == 0 ? k.weight_out.data : k.prior_weight_mu.data;
        const int64_t stride = net == 0 ? k.weight_out.stride : k.prior_weight_mu.stride;
        const int latent = group * kUnits;
        return P::load_rows(static_cast<const Stored*>(data) + (sum * k.Z + latent) * stride + unit, stride, 1,
                            static_cast<int>(k.Z) - latent, static_cast<int>(k.M) - unit);
    }
};

template <class C, bool paired>
struct Forward : ForwardWeights<C> {
    using Params = ForwardParams;
    using Weights = ForwardWeights<C>;
    using P = Product<C>;
    using T = typename P::Stored;
    using Steps = Sequence<T, paired>;
    using Loaded = typename Steps::Loaded;
    static constexpr int kParts = 1, kSums = 2;

    using LatentInputs = Loaded;  // eps
    using Prepared = Four;

    template <int rows>
    struct ResultOf {
        OfRows<rows> latent[kParts];
        StoredRows<T, rows> z, mu, logvar;
    };
    using Result = ResultOf<2>;

    using Weights::k;
    const BatchTile& batch;
    const Steps context, prior_context, eps;
    const int M, Z, groups;
    float* bias;  // [mu, raw][groups x 16], b_mu added to mu's

    VSSN_DEVICE Forward(const Params& params, const BatchTile& batch)
        : Weights(params.call),
          batch(batch),
          context(k.context),
          prior_context(k.prior_context),
          eps(k.eps),
          M(static_cast<int>(k.M)),
          Z(static_cast<int>(k.Z)),
          groups(params.plan.groups),
          bias(reinterpret_cast<float*>(dynamic_shared() + params.plan.bias_at)) {}

    VSSN_DEVICE void prepare_block() const {
        const auto* out = static_cast<const T*>(k.bias_out);
        const auto* prior = static_cast<const T*>(k.prior_bias_mu);
        for (int i = thread_id(); i < groups * kUnits; i += block_threads()) {
            const bool inside = i < Z;
            bias[i] = inside ? to_float(out[i]) + (prior ? to_float(prior[i]) : 0.0f) : 0.0f;
            bias[groups * kUnits + i] = inside ? to_float(out[Z + i]) : 0.0f;
        }
    }

    VSSN_DEVICE Loaded hidden_input(int step, int net, int tile) const {
        return Steps::choose(net == 0, context, prior_context).load(batch, step, tile, M);
    }

    template <int tiles, int n>
    VSSN_DEVICE void hidden_finish(Four (&products)[n], const Loaded (&inputs)[n], StoredFour<T> (&kept)[n],
                                   int first_tile) const {
#pragma unroll
        for (int j = 0; j < n; ++j) add(products[j], inputs[j].wide());
        hidden_activate(products, inputs, kept);
        zero_beyond<tiles>(products, first_tile, M);  // here, where it costs no registers: the inputs are done with
    }

    // What a tile's product begins with, and what it becomes.
    static VSSN_DEVICE Four hidden_start(const Loaded& input) { return input.wide(); }
    template <int n>
    VSSN_DEVICE void hidden_activate(Four (&products)[n], const Loaded*, StoredFour<T>* kept) const {
        activate_by<MathFor<C>>(k.activation, products, [&](Activation act, bool activated) {
            if (keeps_input(act) != activated)
#pragma unroll
                for (int j = 0; j < n; ++j) kept[j] = StoredFour<T>::of(products[j]);
        });
    }

    VSSN_DEVICE void store_hidden(int step, int net, int tile, const StoredFour<T>& kept) const {
        store_four<paired, T>(net == 0 ? k.hidden : k.prior_hidden, batch, k.B, step, tile, M, M, 0, kept);
    }

    template <int rows>
    VSSN_DEVICE OfRows<rows> initial(int group, int first_row) const {
        OfRows<rows> z{};
#pragma unroll
        for (int i = 0; i < 2 * rows; ++i) {
            const int unit = group * kUnits + accumulator_row(0) + i / rows, row = first_row + i % rows;
            if (!batch.inside(row) || unit >= Z) continue;
            const int64_t at = (batch.row + row) * k.z0.stride + unit;
            z.v[i] = k.float_state ? static_cast<const float*>(k.z0.data)[at]
                                   : to_float(static_cast<const T*>(k.z0.data)[at]);
        }
        return z;
    }

    VSSN_DEVICE Result first_latent(int group) const {
        Result result{};
        result.latent[0] = initial<2>(group, 0);
        return result;
    }

    VSSN_DEVICE void store_first(int, const Result&) const {}
    VSSN_DEVICE void store_last(int, const Result&) const {}

    // Where eps ends, what was there before may stay: nothing that is made of it there is kept.
    VSSN_DEVICE void latent_input(LatentInputs& noise, int step, int group) const {
        eps.load_over(noise, batch, step, group, Z);
    }

    VSSN_DEVICE void prefetch(int step, int index, int count) const {
        context.prefetch(batch, step, M, index, count);
        prior_context.prefetch(batch, step, M, index, count);
        eps.prefetch(batch, step, Z, index, count);
    }

    VSSN_DEVICE Prepared prepared(int, int, const Loaded& noise) const { return noise.wide(); }

    VSSN_DEVICE Result latent_finish(const Four* sums, const Prepared& noise, int group) const {
        const float* mu_bias = bias + group * kUnits + accumulator_row(0);
        const float* raw_bias = mu_bias + groups * kUnits;
        Four biased[kSums];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            biased[0].v[i] = sums[0].v[i] + mu_bias[i / 2];
            biased[1].v[i] = sums[1].v[i] + raw_bias[i / 2];
        }
        Result result = latents<2>(biased, noise);
        // Beyond Z the weights are 0, and 0 times what stands here must be 0.
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (group * kUnits + accumulator_row(i) >= Z) result.latent[0].v[i] = 0.0f;
        return result;
    }

    // What the sums begin with, and what becomes of them.
    VSSN_DEVICE Four latent_start(int sum, int group) const {
        const float* own = bias + (sum * groups + group) * kUnits + accumulator_row(0);
        return {{own[0], own[0], own[1], own[1]}};
    }
    template <int rows>
    VSSN_DEVICE ResultOf<rows> latents(const OfRows<rows>* sums, const OfRows<rows>& noise) const {
        ResultOf<rows> result;
        OfRows<rows> logvar;
#pragma unroll
        for (int i = 0; i < 2 * rows; ++i) {
            logvar.v[i] = floored_logvar<LatentMath>(sums[1].v[i], k.min_logvar);
            result.latent[0].v[i] = sums[0].v[i] + standard_deviation<Math>(logvar.v[i]) * noise.v[i];
        }
        result.z = StoredRows<T, rows>::of(result.latent[0]);
        result.mu = StoredRows<T, rows>::of(sums[0]);
        result.logvar = StoredRows<T, rows>::of(logvar);
        return result;
    }

    VSSN_DEVICE void store_latent(int step, int group, const Result& result) const {
        store_four<paired, T>(k.z, batch, k.B, step, group, Z, Z, 0, result.z);
        store_four<paired, T>(k.mu, batch, k.B, step, group, Z, Z, 0, result.mu);
        store_four<paired, T>(k.logvar, batch, k.B, step, group, Z, Z, 0, result.logvar);
    }

    // ---- Of run_in_registers: the same tiles, or the same group, in every step ------------------------------------

    template <int nets, int tiles>
    struct Hidden {
        Place<paired, tiles, 2> place;
        Reader<T, paired> inputs[nets];
        Contiguous<T> kept;

        VSSN_DEVICE void load(const Forward&, int step, Loaded* units) {
#pragma unroll
            for (int net = 0; net < nets; ++net) inputs[net].load(place, step, units + net * tiles);
        }
        VSSN_DEVICE void store(const Forward& pass, int step, const StoredFour<T>* units) {
            kept.store(place, pass.k.hidden, 0, step, units);
            if (nets == 2) kept.store(place, pass.k.prior_hidden, 0, step, units + tiles);
            kept.advance();
        }
    };
    template <int nets, int tiles>
    VSSN_DEVICE Hidden<nets, tiles> hidden_of(int first) const {
        const Place<paired, tiles, 2> place(batch, 0, first, M);
        const Reader<T, paired> own(context, batch, 0, 0, first, false);
        const Contiguous<T> kept(batch, 0, k.B, 0, first, M, false);
        if constexpr (nets == 2)
            return {place, {own, {prior_context, batch, 0, 0, first, false}}, kept};
        else
            return {place, {own}, kept};
    }

    template <int rows>
    struct Latents {
        using Inputs = LoadedRows<T, paired, rows>;
        using Prepared = OfRows<rows>;
        Place<paired, 1, rows> place;
        Reader<T, paired> eps;
        Contiguous<T> written;

        VSSN_DEVICE void load(const Forward&, int step, Inputs& inputs) { eps.load(place, step, &inputs); }
        VSSN_DEVICE Prepared prepared(const Forward&, const Inputs& inputs) const { return inputs.wide(); }
        VSSN_DEVICE void store(const Forward& pass, int step, const ResultOf<rows>& result, int only) {
            if (only < 0 || only == 0) written.store(place, pass.k.z, 0, step, &result.z);
            if (only < 0 || only == 1) written.store(place, pass.k.mu, 0, step, &result.mu);
            if (only < 0 || only == 2) written.store(place, pass.k.logvar, 0, step, &result.logvar);
            written.advance();
        }
    };
    template <int rows>
    VSSN_DEVICE Latents<rows> latents_of(int group, int first_row) const {
        return {{batch, first_row, group, Z},
                {eps, batch, first_row, 0, group, false},
                {batch, first_row, k.B, 0, group, Z, false}};
    }
    template <int rows>
    VSSN_DEVICE typename Latents<rows>::Inputs latent_nothing() const {
        return Latents<rows>::Inputs::zero();
    }

    template <int rows>
    VSSN_DEVICE ResultOf<rows> first_latents(Latents<rows>& latent, typename Latents<rows>::Inputs& inputs, int group,
                                             int first_row, int) const {
        latent.load(*this, 0, inputs);
        ResultOf<rows> result{};
        result.latent[0] = initial<rows>(group, first_row);
        return result;
    }
    template <int rows>
    VSSN_DEVICE void store_last_of(int, int, const ResultOf<rows>&) const {}

    VSSN_DEVICE int time(int step) const { return step; }
    // What is asked into L2 of the sequences that hidden units, or latents, read.
    static VSSN_DEVICE constexpr int latent_sequences() { return 1; }
    VSSN_DEVICE Prefetch<T> prefetch_hidden(int net, int tile) const {
        return {Steps::choose(net == 0, context, prior_context), batch, kPrefetched, tile, M, false};
    }
    VSSN_DEVICE Prefetch<T> prefetch_latent(int, int group) const { return {eps, batch, kPrefetched, group, Z, false}; }

    VSSN_DEVICE void zero_padding(int rank, int cluster) const {
        zero_padding_of<T>(k, batch, k.z, k.Z, rank, cluster);
        zero_padding_of<T>(k, batch, k.mu, k.Z, rank, cluster);
        zero_padding_of<T>(k, batch, k.logvar, k.Z, rank, cluster);
        zero_padding_of<T>(k, batch, k.hidden, k.M, rank, cluster);
        zero_padding_of<T>(k, batch, k.prior_hidden, k.M, rank, cluster);
    }
};

template <class C, bool paired, Meeting meeting>
VSSN_BOUNDED_KERNEL(kMaxThreads)
forward_in_memory(ForwardParams params) {
    run_in_memory<Forward<C, paired>, meeting>(params);
}

template <class C>
VSSN_KERNEL forward_pack(ForwardParams params) {
    pack_weights<Forward<C, true>>(params);
}

template <class C, bool paired, class Shape, bool prior>
VSSN_BOUNDED_KERNEL(Shape::kWarps* kWarp)
forward_in_registers(ForwardParams params) {
    run_in_registers<Forward<C, paired>, Shape, prior>(params);
}

struct InMemoryForward {
    template <class C, bool paired, Meeting meeting>
    static auto of() {
        return forward_in_memory<C, paired, meeting>;
    }
};

constexpr const char* kName = "posterior_forward";

template <class C, bool paired>
void launch_registers(const ForwardParams& params) {
    const bool prior = params.call.prior_weight_z.data != nullptr;
    const auto kernel = params.plan.wide ? prior ? forward_in_registers<C, paired, Wide, true>
                                                 : forward_in_registers<C, paired, Wide, false>
                        : prior          ? forward_in_registers<C, paired, Narrow, true>
                                         : forward_in_registers<C, paired, Narrow, false>;
    launch_or_throw(kName, kernel, launch_shape(params), params);
}

template <class C>
void run(const PosteriorForward& call) {
    using T = typename Product<C>::Stored;
    ForwardParams params{};
    params.call = call;
    params.plan = posterior_plan(call.storage, call.tf32, call.B, call.M, call.Z, call.prior_weight_z.data != nullptr,
                                 false, call.variant);
    params.paired = call.M % 2 == 0 && call.Z % 2 == 0 && in_pairs<T>(call.context) &&
                    in_pairs<T>(call.prior_context) && in_pairs<T>(call.eps);
    if constexpr (sizeof(T) == 2)
        if (params.plan.variant == PosteriorVariant::registers)
            return params.paired ? launch_registers<C, true>(params) : launch_registers<C, false>(params);
    launch_in_memory(kName,
                     params.paired ? in_memory<InMemoryForward, C, true>(params.plan)
                                   : in_memory<InMemoryForward, C, false>(params.plan),
                     forward_pack<C>, params);
}

}  // namespace

int forward_at_once(Storage storage, bool tf32, const PosteriorPlan& plan) {
    ForwardParams params{};
    params.plan = plan;
    params.call.B = kRows;
    const auto kernel = by_compute_type(storage, tf32, [&](auto compute) {
        return in_memory<InMemoryForward, typename decltype(compute)::type, true>(plan);
    });
    return clusters_at_once(kernel, launch_shape(params));
}

}  // namespace posterior

void posterior_forward(const PosteriorForward& call) {
    posterior::require_sizes(posterior::kName, call);
    gpu::by_compute_type(call.storage, call.tf32,
                         [&](auto compute) { posterior::run<typename decltype(compute)::type>(call); });
}

}  // namespace vssn

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

    struct Result {
        Four latent[kParts];
        StoredFour<T> z, mu, logvar;
    };

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
        if (keeps_input(k.activation)) {
#pragma unroll
            for (int j = 0; j < n; ++j) kept[j] = StoredFour<T>::of(products[j]);
            activate_by(k.activation, products);
        } else {
            activate_by(k.activation, products);
#pragma unroll
            for (int j = 0; j < n; ++j) kept[j] = StoredFour<T>::of(products[j]);
        }
        zero_beyond<tiles>(products, first_tile, M);  // here, where it costs no registers: the inputs are done with
    }

    VSSN_DEVICE void store_hidden(int step, int net, int tile, const StoredFour<T>& kept) const {
        store_four<paired, T>(net == 0 ? k.hidden : k.prior_hidden, batch, k.B, step, tile, M, M, 0, kept);
    }

    VSSN_DEVICE Result first_latent(int group) const {
        Result result{};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int unit = group * kUnits + accumulator_row(i);
            if (!batch.inside(i % 2) || unit >= Z) continue;
            const int64_t at = (batch.row + i % 2) * k.z0.stride + unit;
            result.latent[0].v[i] = k.float_state ? static_cast<const float*>(k.z0.data)[at]
                                                  : to_float(static_cast<const T*>(k.z0.data)[at]);
        }
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
        Result result;
        Four all_mu, all_logvar;
        const float* mu_bias = bias + group * kUnits + accumulator_row(0);
        const float* raw_bias = mu_bias + groups * kUnits;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float mu = sums[0].v[i] + mu_bias[i / 2], raw = sums[1].v[i] + raw_bias[i / 2];
            const float logvar = floored_logvar<Math>(raw, k.min_logvar);
            const float z = mu + standard_deviation<Math>(logvar) * noise.v[i];
            // Beyond Z the weights are 0, and 0 times what stands here must be 0.
            result.latent[0].v[i] = group * kUnits + accumulator_row(i) < Z ? z : 0.0f;
            all_mu.v[i] = mu;
            all_logvar.v[i] = logvar;
        }
        result.z = StoredFour<T>::of(result.latent[0]);
        result.mu = StoredFour<T>::of(all_mu);
        result.logvar = StoredFour<T>::of(all_logvar);
        return result;
    }

    VSSN_DEVICE void store_latent(int step, int group, const Result& result) const {
        store_four<paired, T>(k.z, batch, k.B, step, group, Z, Z, 0, result.z);
        store_four<paired, T>(k.mu, batch, k.B, step, group, Z, Z, 0, result.mu);
        store_four<paired, T>(k.logvar, batch, k.B, step, group, Z, Z, 0, result.logvar);
    }

    VSSN_DEVICE void zero_padding(int rank, int cluster) const {
        for (void* sequence : {k.z, k.mu, k.logvar}) zero_steps<T>(k, batch, sequence, k.Z, rank, cluster);
        for (void* sequence : {k.hidden, k.prior_hidden}) zero_steps<T>(k, batch, sequence, k.M, rank, cluster);
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

// The chain of latents of the posterior, with and without a prior.
#include <math.h>

#include <string>
#include <vector>

#include "checks.h"
#include "tests.h"

namespace checks {

namespace {

// Returns the gradients of context, prior_context (with a prior), eps and z0, then of the weights and biases in the
// order of Posterior.
template <class T>
Array run(const Posterior& p, int threads, const Array& cotangent, const std::string& name, double tolerance) {
    const int64_t rows = p.steps * p.B, size = rows * p.Z, hidden_size = rows * p.M,
                  prior_size = p.prior ? hidden_size : 0;
    const int64_t* lengths = p.lengths_pointer();
    const Sequence<T> context(p.context, p.steps, p.B, p.M, lengths, 1), eps(p.eps, p.steps, p.B, p.Z, lengths, 2);
    const Sequence<T> prior_context(p.prior_context, p.prior ? p.steps : 0, p.B, p.M, lengths, 3);
    const std::vector<Compute<T>> z0 = cast<Compute<T>>(p.z0);
    const std::vector<T> stored_z0 = cast<T>(p.z0), weight_z = cast<T>(p.weight_z), weight_out = cast<T>(p.weight_out);
    const std::vector<T> bias_out = cast<T>(p.bias_out), prior_weight_z = cast<T>(p.prior_weight_z);
    const std::vector<T> prior_weight_mu = cast<T>(p.prior_weight_mu), prior_bias_mu = cast<T>(p.prior_bias_mu);
    std::vector<T> z = fresh<T>(size), mu = fresh<T>(size), logvar = fresh<T>(size);
    std::vector<T> hidden = fresh<T>(hidden_size), prior_hidden = fresh<T>(prior_size);
    const PosteriorForward<T> forward{.threads = threads,
                                      .steps = p.steps,
                                      .B = p.B,
                                      .M = p.M,
                                      .Z = p.Z,
                                      .activation = p.activation,
                                      .min_logvar = Compute<T>(kMinLogvar),
                                      .lengths = lengths,
                                      .context = context.view(),
                                      .eps = eps.view(),
                                      .z0 = {z0.data(), p.Z},
                                      .weight_z = {weight_z.data(), p.Z},
                                      .weight_out = {weight_out.data(), p.M},
                                      .bias_out = bias_out.data(),
                                      .prior_context = p.prior ? prior_context.view() : Steps<const T>{},
                                      .prior_weight_z = {prior_weight_z.data(), p.Z},
                                      .prior_weight_mu = {prior_weight_mu.data(), p.M},
                                      .prior_bias_mu = prior_bias_mu.data(),
                                      .z = z.data(),
                                      .mu = mu.data(),
                                      .logvar = logvar.data(),
                                      .hidden = hidden.data(),
                                      .prior_hidden = p.prior ? prior_hidden.data() : nullptr};
    call(entries<T>().posterior_forward, entries<T>().posterior_forward_workspace, forward);
    std::vector<T> outputs(z);
    outputs.insert(outputs.end(), mu.begin(), mu.end());
    outputs.insert(outputs.end(), logvar.begin(), logvar.end());
    check_close(name + " forward", outputs, plain(p), tolerance);

    std::vector<Sequence<T>> grad_outputs;
    for (int i = 0; i < 3; ++i) {
        const Array part(cotangent.begin() + i * size, cotangent.begin() + (i + 1) * size);
        grad_outputs.emplace_back(part, p.steps, p.B, p.Z, lengths, i);
    }
    std::vector<T> grad_context = fresh<T>(hidden_size), grad_prior_context = fresh<T>(prior_size);
    std::vector<T> grad_out = fresh<T>(2 * size), grad_eps = fresh<T>(size);
    std::vector<Compute<T>> grad_z0 = fresh<Compute<T>>(p.B * p.Z);
    const int64_t sizes[] = {p.M * p.Z, 2 * p.Z * p.M, 2 * p.Z, p.M * p.Z, p.Z * p.M, p.Z};
    std::vector<std::vector<Compute<T>>> grad_weights;
    for (int i = 0; i < (p.prior ? 6 : 3); ++i) grad_weights.push_back(fresh<Compute<T>>(sizes[i]));
    grad_weights.resize(6);
    std::vector<T> active[2] = {hidden, prior_hidden};
    for (std::vector<T>& values : active)
        for (T& value : values)
            if (keeps_input(p.activation)) value = T(act(p.activation, double(Compute<T>(value))));
    const PosteriorBackward<T> backward{.threads = threads,
                                        .steps = p.steps,
                                        .B = p.B,
                                        .M = p.M,
                                        .Z = p.Z,
                                        .activation = p.activation,
                                        .min_logvar = Compute<T>(kMinLogvar),
                                        .lengths = lengths,
                                        .grad_z = grad_outputs[0].view(),
                                        .grad_mu = grad_outputs[1].view(),
                                        .grad_logvar = grad_outputs[2].view(),
                                        .logvar = logvar.data(),
                                        .hidden = hidden.data(),
                                        .prior_hidden = p.prior ? prior_hidden.data() : nullptr,
                                        .eps = eps.view(),
                                        .weight_z = {weight_z.data(), p.Z},
                                        .weight_out = {weight_out.data(), p.M},
                                        .prior_weight_z = {p.prior ? prior_weight_z.data() : nullptr, p.Z},
                                        .prior_weight_mu = {p.prior ? prior_weight_mu.data() : nullptr, p.M},
                                        .z = z.data(),
                                        .z0 = {stored_z0.data(), p.Z},
                                        .active = active[0].data(),
                                        .prior_active = p.prior ? active[1].data() : nullptr,
                                        .grad_context = grad_context.data(),
                                        .grad_prior_context = p.prior ? grad_prior_context.data() : nullptr,
                                        .grad_out = grad_out.data(),
                                        .grad_eps = grad_eps.data(),
                                        .grad_z0 = grad_z0.data(),
                                        .grad_weight_z = grad_weights[0].data(),
                                        .grad_weight_out = grad_weights[1].data(),
                                        .grad_bias_out = grad_weights[2].data(),
                                        .grad_prior_weight_z = p.prior ? grad_weights[3].data() : nullptr,
                                        .grad_prior_weight_mu = p.prior ? grad_weights[4].data() : nullptr,
                                        .grad_prior_bias_mu = p.prior ? grad_weights[5].data() : nullptr};
    call(entries<T>().posterior_backward, entries<T>().posterior_backward_workspace, backward);
    Array grads;
    for (const auto* part : {&grad_context, &grad_prior_context, &grad_eps})
        grads.insert(grads.end(), part->begin(), part->end());
    grads.insert(grads.end(), grad_z0.begin(), grad_z0.end());
    for (const auto& part : grad_weights) grads.insert(grads.end(), part.begin(), part.end());
    return grads;
}

}  // namespace

void test_posterior(int64_t steps, int64_t B, int64_t M, int64_t Z, Activation activation, bool prior,
                    std::vector<int64_t> lengths, int threads) {
    const std::string name = "posterior " + std::to_string(steps) + "x" + std::to_string(B) + "x" + std::to_string(M) +
                             "x" + std::to_string(Z) + " activation " + std::to_string(int(activation)) +
                             (prior ? " prior" : "") + (lengths.empty() ? "" : " lengths") + " on " +
                             std::to_string(threads);
    draw_anew(name);
    const double small = 0.2;
    Posterior p{steps,
                B,
                M,
                Z,
                activation,
                prior,
                lengths,
                normal(steps * B * M),
                normal(steps * B * Z),
                normal(B * Z),
                normal(M * Z, small / sqrt(double(Z))),
                normal(2 * Z * M, small / sqrt(double(M))),
                normal(2 * Z),
                {},
                {},
                {},
                {}};
    if (prior) {
        p.prior_context = normal(steps * B * M);
        p.prior_weight_z = normal(M * Z, small / sqrt(double(Z)));
        p.prior_weight_mu = normal(Z * M, small / sqrt(double(M)));
        p.prior_bias_mu = normal(Z);
    }
    // Away from the kink of relu and leaky_relu, where float and double may see different slopes.
    for (Array* context : {&p.context, &p.prior_context})
        for (double& x : *context) x += x < 0 ? -2 : 2;
    const Array cotangent = normal(3 * steps * B * Z);
    const Array grads = run<double>(p, threads, cotangent, name, 1e-12);
    check_close(name + " float backward", run<float>(p, threads, cotangent, name, 1e-5), grads, 1e-4);
    Posterior half(p);
    for (Array Posterior::* const part :
         {&Posterior::context, &Posterior::eps, &Posterior::z0, &Posterior::weight_z, &Posterior::weight_out,
          &Posterior::bias_out, &Posterior::prior_context, &Posterior::prior_weight_z, &Posterior::prior_weight_mu,
          &Posterior::prior_bias_mu})
        half.*part = rounded(p.*part);
    const Array slopes = rounded(cotangent);
    check_bfloat16(
        name, [&](double tolerance) { return run<BFloat16>(half, threads, slopes, name + " bfloat16", tolerance); },
        run<double>(half, threads, slopes, name, 1e-12));
    const Array context_way = normal(p.context.size()), prior_way = normal(p.prior_context.size());
    const Array eps_way = normal(p.eps.size()), z0_way = normal(p.z0.size());
    Array way;
    for (const Array* part : {&context_way, &prior_way, &eps_way, &z0_way})
        way.insert(way.end(), part->begin(), part->end());
    Array Posterior::* const weights[] = {&Posterior::weight_z,        &Posterior::weight_out,
                                          &Posterior::bias_out,        &Posterior::prior_weight_z,
                                          &Posterior::prior_weight_mu, &Posterior::prior_bias_mu};
    std::vector<Array> weight_ways;
    for (const auto& weight : weights) {
        weight_ways.push_back(normal((p.*weight).size()));
        way.insert(way.end(), weight_ways.back().begin(), weight_ways.back().end());
    }
    const double difference = slope([&](double step) {
        Posterior moved(p);
        moved.context = plus(p.context, context_way, step);
        moved.prior_context = plus(p.prior_context, prior_way, step);
        moved.eps = plus(p.eps, eps_way, step);
        moved.z0 = plus(p.z0, z0_way, step);
        for (size_t i = 0; i < weight_ways.size(); ++i) moved.*weights[i] = plus(p.*weights[i], weight_ways[i], step);
        return dot(plain(moved), cotangent);
    });
    check_close(name + " backward", dot(grads, way), difference, 1e-6);
}

}  // namespace checks

// Runs every kernel at odd sizes, with lengths, both directions and several threads, for a sanitizer to watch, and
// compares: values with plain loops in double, gradients with differences of these loops. Those for BFloat16 are
// compared with the ones for double on rounded inputs and, closer, with the generic ones, which round at the same
// points.
//
// Buffers have exactly the size that a kernel may touch; gaps between rows, padding and fresh memory hold NaN.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <array>
#include <functional>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../kernels.h"
#include "plain.h"

namespace {

using namespace vssn;

int failures = 0, checks = 0;

void check_close(const std::string& what, double actual, double expected, double tolerance) {
    ++checks;
    if (fabs(actual - expected) <= tolerance * (1 + fabs(expected))) return;
    ++failures;
    printf("FAILED %s: %.9g, expected %.9g\n", what.c_str(), actual, expected);
}

template <class T>
void check_close(const std::string& what, const std::vector<T>& actual, const Array& expected, double tolerance) {
    double difference = 0, scale = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
        difference += (actual[i] - expected[i]) * (actual[i] - expected[i]);
        scale += expected[i] * expected[i];
    }
    check_close(what, sqrt(difference / (scale + 1e-30)), 0, tolerance);
}

std::mt19937 generator(1);

Array normal(int64_t count, double scale = 1) {
    std::normal_distribution<double> distribution(0, scale);
    Array values(count);
    for (double& value : values) value = distribution(generator);
    return values;
}

double dot(const Array& a, const Array& b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
}

Array plus(const Array& a, const Array& b, double factor) {
    Array sum(a);
    for (size_t i = 0; i < a.size(); ++i) sum[i] += factor * b[i];
    return sum;
}

template <class T>
std::vector<T> cast(const Array& values) {
    return std::vector<T>(values.begin(), values.end());
}

template <class T>
std::vector<T> fresh(int64_t count) {
    return std::vector<T>(count, T(NAN));
}

// [T, B, width] with `gap` entries of NaN behind every row but the last, and NaN at padding.
template <class T>
struct Sequence {
    std::vector<T> data;
    int64_t B, stride;
    Sequence(const Array& values, int64_t steps, int64_t batch, int64_t width, const int64_t* lengths, int64_t gap)
        : data(steps * batch > 0 ? steps * batch * (width + gap) - gap : 0, T(NAN)), B(batch), stride(width + gap) {
        for (int64_t row = 0; row < steps * batch; ++row)
            for (int64_t i = 0; i < width && !(lengths && row / batch >= lengths[row % batch]); ++i)
                data[row * stride + i] = T(values[row * width + i]);
    }
    Steps<const T> view() const { return {data.data(), B * stride, stride}; }
};

const KernelTable* table = nullptr;

template <class T>
const Kernels<T>& entries() {
    if constexpr (sizeof(T) == 2)
        return *table->bf16;
    else if constexpr (sizeof(T) == 4)
        return *table->f32;
    else
        return *table->f64;
}

Array rounded(const Array& values) {
    Array all;
    for (double value : values) all.push_back(float(BFloat16(float(value))));
    return all;
}

// run(tolerance of outputs): the gradients; of a problem whose values are as rounded() gives them.
void check_bfloat16(const std::string& name, const std::function<Array(double)>& run, const Array& grads) {
    const Array found = run(1e-2);
    check_close(name + " bfloat16 backward", found, grads, 3e-2);
    const KernelTable* own = std::exchange(table, &generic::table);
    check_close(name + " bfloat16 as generic", found, run(1e-2), 1e-3);
    table = own;
}

// On memory that starts as NaN.
template <class Problem>
void call(void (*kernel)(const Problem&, void*), int64_t (*bytes)(const Problem&), const Problem& problem) {
    std::vector<char> workspace(bytes(problem), char(-1));
    kernel(problem, workspace.data());
}

// ---- GRU -------------------------------------------------------------------------------------------------

// The valid rows among the T B, step after step; the batch must be in order of falling length.
std::vector<int64_t> valid_rows(const Gru& p) {
    std::vector<int64_t> valid;
    for (int64_t row = 0; row < p.steps * p.B; ++row)
        if (row / p.B < p.length(row % p.B)) valid.push_back(row);
    return valid;
}

Array packed(const Array& rows, const std::vector<int64_t>& valid, int64_t width) {
    Array found;
    for (int64_t row : valid) found.insert(found.end(), &rows[row * width], &rows[row * width] + width);
    return found;
}

// Zeros at padding.
template <class T>
std::vector<T> padded(const std::vector<T>& rows, const std::vector<int64_t>& valid, int64_t width, int64_t count) {
    std::vector<T> all(count * width, T(0));
    for (size_t i = 0; i < valid.size() * width; ++i) all[valid[i / width] * width + i % width] = rows[i];
    return all;
}

// cotangent: of plain's result. Returns the gradients of gates_x, h0, weight and bias.
template <class T>
Array run(const Gru& p, bool pack, int threads, const Array& cotangent, const std::string& name, double tolerance) {
    const std::vector<int64_t> valid = pack ? valid_rows(p) : std::vector<int64_t>();
    std::vector<int64_t> batch_sizes(pack ? p.steps : 0, 0);
    for (int64_t row : valid) ++batch_sizes[row / p.B];
    const int64_t all = p.steps * p.B, rows = pack ? valid.size() : all;
    const int64_t *lengths = pack ? nullptr : p.lengths_pointer(), *sizes = pack ? batch_sizes.data() : nullptr;
    const auto sequence = [&](const Array& values, int64_t width, int64_t gap) {
        return pack ? Sequence<T>(packed(values, valid, width), rows, 1, width, nullptr, gap)
                    : Sequence<T>(values, p.steps, p.B, width, lengths, gap);
    };
    const Sequence<T> x = sequence(p.gates_x, 3 * p.H, 3);
    const std::vector<T> weight = cast<T>(p.weight), bias = cast<T>(p.bias), stored_h0 = cast<T>(p.h0);
    const std::vector<Compute<T>> h0 = cast<Compute<T>>(p.h0);
    std::vector<Compute<T>> h_n = fresh<Compute<T>>(p.B * p.H);
    std::vector<T> output = fresh<T>(rows * p.H), gates = fresh<T>(rows * 4 * p.H);
    const GruForward<T> forward{threads,
                                p.steps,
                                p.B,
                                p.H,
                                p.reverse,
                                lengths,
                                sizes,
                                x.view(),
                                {h0.data(), p.H},
                                {weight.data(), p.H},
                                bias.data(),
                                output.data(),
                                h_n.data(),
                                gates.data()};
    call(entries<T>().gru_forward, entries<T>().gru_forward_workspace, forward);
    const std::vector<T> sequence_out = pack ? padded(output, valid, p.H, all) : output;
    Array outputs(sequence_out.begin(), sequence_out.end());
    outputs.insert(outputs.end(), h_n.begin(), h_n.end());
    check_close(name + " forward", outputs, plain(p), tolerance);

    const Sequence<T> grad_output = sequence(Array(cotangent.begin(), cotangent.begin() + all * p.H), p.H, 1);
    const std::vector<Compute<T>> grad_h_n(cotangent.begin() + all * p.H, cotangent.end());
    std::vector<T> grad_x = fresh<T>(rows * 3 * p.H), grad_a = fresh<T>(rows * p.H);
    std::vector<Compute<T>> grad_h0 = fresh<Compute<T>>(p.B * p.H), grad_weight = fresh<Compute<T>>(3 * p.H * p.H);
    std::vector<Compute<T>> grad_bias = fresh<Compute<T>>(3 * p.H);
    const GruBackward<T> backward{threads,
                                  p.steps,
                                  p.B,
                                  p.H,
                                  p.reverse,
                                  lengths,
                                  sizes,
                                  grad_output.view(),
                                  {grad_h_n.data(), p.H},
                                  output.data(),
                                  gates.data(),
                                  {stored_h0.data(), p.H},
                                  {weight.data(), p.H},
                                  grad_x.data(),
                                  grad_a.data(),
                                  grad_h0.data(),
                                  grad_weight.data(),
                                  grad_bias.data()};
    call(entries<T>().gru_backward, entries<T>().gru_backward_workspace, backward);
    if (pack) grad_x = padded(grad_x, valid, 3 * p.H, all);
    Array grads(grad_x.begin(), grad_x.end());
    for (const auto* part : {&grad_h0, &grad_weight, &grad_bias}) grads.insert(grads.end(), part->begin(), part->end());
    return grads;
}

// The derivative of f at 0 by differences.
double slope(const std::function<double(double)>& f) { return (f(1e-5) - f(-1e-5)) / 2e-5; }

void test_gru(int64_t steps, int64_t B, int64_t H, bool reverse, std::vector<int64_t> lengths, int threads,
              bool pack = false) {
    const std::string name = "gru " + std::to_string(steps) + "x" + std::to_string(B) + "x" + std::to_string(H) +
                             (reverse ? " reverse" : "") +
                             (pack              ? " packed"
                              : lengths.empty() ? ""
                                                : " lengths") +
                             " on " + std::to_string(threads);
    const Gru p{steps,
                B,
                H,
                reverse,
                lengths,
                normal(steps * B * 3 * H),
                normal(B * H),
                normal(3 * H * H, 1 / sqrt(double(H))),
                normal(3 * H)};
    const Array cotangent = normal((steps * B + B) * H);
    const Array grads = run<double>(p, pack, threads, cotangent, name, 1e-12);
    check_close(name + " float backward", run<float>(p, pack, threads, cotangent, name, 1e-5), grads, 1e-4);
    const Gru half{steps,          B, H, reverse, lengths, rounded(p.gates_x), rounded(p.h0), rounded(p.weight),
                   rounded(p.bias)};
    const Array slopes = rounded(cotangent);
    check_bfloat16(
        name,
        [&](double tolerance) { return run<BFloat16>(half, pack, threads, slopes, name + " bfloat16", tolerance); },
        run<double>(half, pack, threads, slopes, name, 1e-12));
    const Array x_way = normal(p.gates_x.size()), h_way = normal(p.h0.size());
    const Array weight_way = normal(p.weight.size()), bias_way = normal(p.bias.size());
    Array way;
    for (const Array* part : {&x_way, &h_way, &weight_way, &bias_way})
        way.insert(way.end(), part->begin(), part->end());
    const double difference = slope([&](double step) {
        Gru moved(p);
        moved.gates_x = plus(p.gates_x, x_way, step);
        moved.h0 = plus(p.h0, h_way, step);
        moved.weight = plus(p.weight, weight_way, step);
        moved.bias = plus(p.bias, bias_way, step);
        return dot(plain(moved), cotangent);
    });
    check_close(name + " backward", dot(grads, way), difference, 1e-6);
}

// ---- Posterior -------------------------------------------------------------------------------------------

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
    PosteriorForward<T> forward{};
    forward = {threads,
               p.steps,
               p.B,
               p.M,
               p.Z,
               p.activation,
               Compute<T>(kMinLogvar),
               lengths,
               context.view(),
               eps.view(),
               {z0.data(), p.Z},
               {weight_z.data(), p.Z},
               {weight_out.data(), p.M},
               bias_out.data(),
               p.prior ? prior_context.view() : Steps<const T>{},
               {prior_weight_z.data(), p.Z},
               {prior_weight_mu.data(), p.M},
               prior_bias_mu.data(),
               z.data(),
               mu.data(),
               logvar.data(),
               hidden.data(),
               p.prior ? prior_hidden.data() : nullptr};
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
    const PosteriorBackward<T> backward{threads,
                                        p.steps,
                                        p.B,
                                        p.M,
                                        p.Z,
                                        p.activation,
                                        Compute<T>(kMinLogvar),
                                        lengths,
                                        grad_outputs[0].view(),
                                        grad_outputs[1].view(),
                                        grad_outputs[2].view(),
                                        logvar.data(),
                                        hidden.data(),
                                        p.prior ? prior_hidden.data() : nullptr,
                                        eps.view(),
                                        {weight_z.data(), p.Z},
                                        {weight_out.data(), p.M},
                                        {p.prior ? prior_weight_z.data() : nullptr, p.Z},
                                        {p.prior ? prior_weight_mu.data() : nullptr, p.M},
                                        z.data(),
                                        {stored_z0.data(), p.Z},
                                        active[0].data(),
                                        p.prior ? active[1].data() : nullptr,
                                        grad_context.data(),
                                        p.prior ? grad_prior_context.data() : nullptr,
                                        grad_out.data(),
                                        grad_eps.data(),
                                        grad_z0.data(),
                                        grad_weights[0].data(),
                                        grad_weights[1].data(),
                                        grad_weights[2].data(),
                                        p.prior ? grad_weights[3].data() : nullptr,
                                        p.prior ? grad_weights[4].data() : nullptr,
                                        p.prior ? grad_weights[5].data() : nullptr};
    call(entries<T>().posterior_backward, entries<T>().posterior_backward_workspace, backward);
    Array grads;
    for (const auto* part : {&grad_context, &grad_prior_context, &grad_eps})
        grads.insert(grads.end(), part->begin(), part->end());
    grads.insert(grads.end(), grad_z0.begin(), grad_z0.end());
    for (const auto& part : grad_weights) grads.insert(grads.end(), part.begin(), part.end());
    return grads;
}

void test_posterior(int64_t steps, int64_t B, int64_t M, int64_t Z, Activation activation, bool prior,
                    std::vector<int64_t> lengths, int threads) {
    const std::string name = "posterior " + std::to_string(steps) + "x" + std::to_string(B) + "x" + std::to_string(M) +
                             "x" + std::to_string(Z) + " activation " + std::to_string(int(activation)) +
                             (prior ? " prior" : "") + (lengths.empty() ? "" : " lengths") + " on " +
                             std::to_string(threads);
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

// ---- Gaussian --------------------------------------------------------------------------------------------

template <class T>
Array run(const Gaussian& p, int threads, const Array& cotangent, const std::string& name, double tolerance) {
    std::vector<Sequence<T>> in;
    for (const Array& values : p.values) in.emplace_back(values, p.N, 1, p.Z, nullptr, int64_t(in.size()));
    auto rows = [&](size_t i) { return Rows<const T>{in[i].data.data(), in[i].stride}; };
    std::vector<T> z = fresh<T>(p.N * p.Z), kl = fresh<T>(p.N);
    entries<T>().gaussian_forward(
        {threads, p.N, p.Z, rows(0), rows(1), rows(2), rows(3), rows(4), z.data(), kl.data()});
    std::vector<T> outputs(z);
    outputs.insert(outputs.end(), kl.begin(), kl.end());
    check_close(name + " forward", outputs, plain(p), tolerance);
    const std::vector<T> grad = cast<T>(cotangent);
    std::vector<T> grads[5];
    for (std::vector<T>& part : grads) part = fresh<T>(p.N * p.Z);
    entries<T>().gaussian_backward({threads,
                                    p.N,
                                    p.Z,
                                    rows(0),
                                    rows(1),
                                    rows(2),
                                    rows(3),
                                    rows(4),
                                    {grad.data(), p.Z},
                                    {grad.data() + p.N * p.Z, 1},
                                    grads[0].data(),
                                    grads[1].data(),
                                    grads[2].data(),
                                    grads[3].data(),
                                    grads[4].data()});
    Array all;
    for (const std::vector<T>& part : grads) all.insert(all.end(), part.begin(), part.end());
    return all;
}

void test_gaussian(int64_t N, int64_t Z, int threads) {
    const std::string name =
        "gaussian " + std::to_string(N) + "x" + std::to_string(Z) + " on " + std::to_string(threads);
    Gaussian p{N, Z, {}};
    Array way;
    Array ways[5];
    for (int i = 0; i < 5; ++i) {
        p.values[i] = normal(N * Z);
        ways[i] = normal(N * Z);
        way.insert(way.end(), ways[i].begin(), ways[i].end());
    }
    const Array cotangent = normal(N * Z + N);
    const Array grads = run<double>(p, threads, cotangent, name, 1e-12);
    check_close(name + " float backward", run<float>(p, threads, cotangent, name, 1e-5), grads, 1e-4);
    Gaussian half(p);
    for (Array& values : half.values) values = rounded(values);
    const Array slopes = rounded(cotangent);
    check_bfloat16(
        name, [&](double tolerance) { return run<BFloat16>(half, threads, slopes, name + " bfloat16", tolerance); },
        run<double>(half, threads, slopes, name, 1e-12));
    const double difference = slope([&](double step) {
        Gaussian moved(p);
        for (int i = 0; i < 5; ++i) moved.values[i] = plus(p.values[i], ways[i], step);
        return dot(plain(moved), cotangent);
    });
    check_close(name + " backward", dot(grads, way), difference, 1e-6);
}

// ---- MLP -------------------------------------------------------------------------------------------------

// Returns the gradients of the inputs, their weights, bias, weight_out and bias_out.
template <class T>
Array run(const Mlp& p, int threads, const Array& cotangent, const std::string& name, double tolerance) {
    const int64_t outputs = p.N * (p.two ? p.O : p.M), floors = p.floored ? p.N * p.O : 0;
    std::vector<Sequence<T>> x;
    std::vector<std::vector<T>> w, grad_x;
    std::vector<std::vector<Compute<T>>> grad_w;
    MlpList<int64_t> K{};
    MlpList<Rows<const T>> x_rows{}, w_rows{};
    MlpList<T*> grad_x_pointers{};
    MlpList<Rows<Compute<T>>> grad_w_rows{};
    for (size_t i = 0; i < p.x.size(); ++i) {
        x.emplace_back(p.x[i], p.N, 1, p.widths[i], nullptr, int64_t(i));
        w.push_back(cast<T>(p.w[i]));
        grad_x.push_back(fresh<T>(p.x[i].size()));
        grad_w.push_back(fresh<Compute<T>>(p.w[i].size()));
    }
    for (size_t i = 0; i < p.x.size(); ++i) {
        const int64_t width = p.widths[i];
        K.values[K.count++] = width;
        x_rows.values[x_rows.count++] = {x[i].data.data(), x[i].stride};
        w_rows.values[w_rows.count++] = {w[i].data(), width};
        grad_x_pointers.values[grad_x_pointers.count++] = grad_x[i].data();
        grad_w_rows.values[grad_w_rows.count++] = {grad_w[i].data(), width};
    }
    const std::vector<T> bias = cast<T>(p.bias), weight_out = cast<T>(p.weight_out), bias_out = cast<T>(p.bias_out);
    const Rows<const T> second{p.two ? weight_out.data() : nullptr, p.M};
    std::vector<T> out = fresh<T>(outputs), logvar = fresh<T>(floors), hidden = fresh<T>(p.two ? p.N * p.M : 0);
    MlpForward<T> forward{
        threads, p.N,    p.M,         p.O,    p.activation,    p.floored,  Compute<T>(kMinLogvar), K,
        x_rows,  w_rows, bias.data(), second, bias_out.data(), out.data(), logvar.data(),          hidden.data()};
    call(entries<T>().mlp_forward, entries<T>().mlp_forward_workspace, forward);
    std::vector<T> results(out);
    results.insert(results.end(), logvar.begin(), logvar.end());
    check_close(name + " forward", results, plain(p), tolerance);

    const std::vector<T> grad = cast<T>(cotangent);
    std::vector<Compute<T>> grad_bias = fresh<Compute<T>>(p.M), grad_bias_out = fresh<Compute<T>>(bias_out.size());
    std::vector<Compute<T>> grad_weight_out = fresh<Compute<T>>(weight_out.size());
    MlpBackward<T> backward{threads,
                            p.N,
                            p.M,
                            p.O,
                            p.activation,
                            p.floored,
                            Compute<T>(kMinLogvar),
                            K,
                            x_rows,
                            w_rows,
                            second,
                            {grad.data(), p.two ? p.O : p.M},
                            {p.floored ? grad.data() + outputs : nullptr, p.O},
                            logvar.data(),
                            hidden.data(),
                            grad_x_pointers,
                            grad_w_rows,
                            grad_bias.data(),
                            p.two ? grad_weight_out.data() : nullptr,
                            p.two ? grad_bias_out.data() : nullptr};
    call(entries<T>().mlp_backward, entries<T>().mlp_backward_workspace, backward);
    Array grads;
    for (const auto& part : grad_x) grads.insert(grads.end(), part.begin(), part.end());
    for (const auto& part : grad_w) grads.insert(grads.end(), part.begin(), part.end());
    for (const auto* part : {&grad_bias, &grad_weight_out, &grad_bias_out})
        grads.insert(grads.end(), part->begin(), part->end());
    return grads;
}

void test_mlp(int64_t N, std::vector<int64_t> widths, int64_t M, int64_t O, Activation activation, bool floored,
              int threads) {
    const bool two = O > 0;
    std::string name = "mlp " + std::to_string(N) + "x" + std::to_string(M) + "x" + std::to_string(O) + " activation " +
                       std::to_string(int(activation)) + (floored ? " floored" : "") + " on " + std::to_string(threads);
    Mlp p{N, M, O, widths, activation, two, floored, {}, {}, normal(M), {}, {}};
    for (double& x : p.bias) x += x < 0 ? -6 : 6;  // away from the kink of relu and leaky_relu
    for (int64_t K : widths) {
        p.x.push_back(normal(N * K));
        p.w.push_back(normal(M * K, 0.3 / sqrt(double(K + 1))));
    }
    const int64_t rows = (floored ? 2 : 1) * O;
    if (two) {
        p.weight_out = normal(rows * M, 1 / sqrt(double(M)));
        p.bias_out = normal(rows);
    }
    const Array cotangent = normal(N * (two ? rows : M));
    const Array grads = run<double>(p, threads, cotangent, name, 1e-12);
    check_close(name + " float backward", run<float>(p, threads, cotangent, name, 1e-5), grads, 1e-4);
    Mlp half(p);
    for (auto* parts : {&half.x, &half.w})
        for (Array& part : *parts) part = rounded(part);
    for (Array* part : {&half.bias, &half.weight_out, &half.bias_out}) *part = rounded(*part);
    const Array slopes = rounded(cotangent);
    check_bfloat16(
        name, [&](double tolerance) { return run<BFloat16>(half, threads, slopes, name + " bfloat16", tolerance); },
        run<double>(half, threads, slopes, name, 1e-12));
    Mlp way(p);
    Array flat;
    const auto draw = [&](Array& part) {
        part = normal(part.size());
        flat.insert(flat.end(), part.begin(), part.end());
    };
    for (auto* parts : {&way.x, &way.w})
        for (Array& part : *parts) draw(part);
    for (Array* part : {&way.bias, &way.weight_out, &way.bias_out}) draw(*part);
    const double difference = slope([&](double step) {
        Mlp moved(p);
        for (size_t i = 0; i < p.x.size(); ++i) {
            moved.x[i] = plus(p.x[i], way.x[i], step);
            moved.w[i] = plus(p.w[i], way.w[i], step);
        }
        moved.bias = plus(p.bias, way.bias, step);
        moved.weight_out = plus(p.weight_out, way.weight_out, step);
        moved.bias_out = plus(p.bias_out, way.bias_out, step);
        return dot(plain(moved), cotangent);
    });
    check_close(name + " backward", dot(grads, flat), difference, 1e-6);
}

// Products of small whole numbers are exact whatever the order: a wrong place in a tile or a panel shows as a number.
void test_exact_products(int64_t N, std::vector<int64_t> widths, int64_t M, int threads) {
    const std::string name = "exact products " + std::to_string(N) + "x" + std::to_string(widths[0]) + "x" +
                             std::to_string(M) + " on " + std::to_string(threads);
    const auto whole = [](int64_t count) {
        std::uniform_int_distribution<int> distribution(-3, 3);
        Array values(count);
        for (double& value : values) value = distribution(generator);
        return values;
    };
    Mlp p{N, M, 0, widths, Activation::tanh, false, false, {}, {}, Array(M, 0.0), {}, {}};
    for (int64_t K : widths) {
        p.x.push_back(whole(N * K));
        p.w.push_back(whole(M * K));
    }
    const Array cotangent = whole(N * M);
    const Array grads = run<BFloat16>(p, threads, cotangent, name, 3e-3),
                exact = run<double>(p, threads, cotangent, name, 0);
    size_t rounds = 0;  // gradients of inputs are stored rounded
    for (int64_t K : widths) rounds += N * K;
    for (size_t i = 0; i < exact.size(); ++i)
        check_close(name, grads[i], i < rounds ? rounded({exact[i]})[0] : exact[i], 0);
}

// ---- Bernoulli -------------------------------------------------------------------------------------------

// Returns the gradients of logits and x.
template <class T>
Array run(const BernoulliCase& p, int threads, const Array& cotangent, const std::string& name, double tolerance) {
    const Sequence<T> logits(p.logits, p.N, 1, p.X, nullptr, 3), x(p.x, p.N, 1, p.X, nullptr, 1);
    const std::vector<T> grad = cast<T>(cotangent);
    std::vector<T> log_prob = fresh<T>(p.N), grad_logits = fresh<T>(p.N * p.X), grad_x = fresh<T>(p.N * p.X);
    const Rows<const T> logits_rows{logits.data.data(), logits.stride}, x_rows{x.data.data(), x.stride};
    entries<T>().bernoulli_forward({threads, p.N, p.X, logits_rows, x_rows, log_prob.data()});
    check_close(name + " forward", log_prob, plain(p), tolerance);
    entries<T>().bernoulli_backward(
        {threads, p.N, p.X, logits_rows, x_rows, {grad.data(), 1}, grad_logits.data(), grad_x.data()});
    Array grads(grad_logits.begin(), grad_logits.end());
    grads.insert(grads.end(), grad_x.begin(), grad_x.end());
    return grads;
}

void test_bernoulli(int64_t N, int64_t X, int threads) {
    const std::string name =
        "bernoulli " + std::to_string(N) + "x" + std::to_string(X) + " on " + std::to_string(threads);
    const BernoulliCase p{N, X, normal(N * X, 3), normal(N * X)};
    const Array cotangent = normal(N), logits_way = normal(N * X), x_way = normal(N * X);
    const Array grads = run<double>(p, threads, cotangent, name, 1e-12);
    check_close(name + " float backward", run<float>(p, threads, cotangent, name, 1e-5), grads, 1e-4);
    const BernoulliCase half{N, X, rounded(p.logits), rounded(p.x)};
    const Array slopes = rounded(cotangent);
    check_bfloat16(
        name, [&](double tolerance) { return run<BFloat16>(half, threads, slopes, name + " bfloat16", tolerance); },
        run<double>(half, threads, slopes, name, 1e-12));
    Array way(logits_way);
    way.insert(way.end(), x_way.begin(), x_way.end());
    const double difference = slope([&](double step) {
        return dot(plain(BernoulliCase{N, X, plus(p.logits, logits_way, step), plus(p.x, x_way, step)}), cotangent);
    });
    check_close(name + " backward", dot(grads, way), difference, 1e-6);
}

void test_all() {
    const int64_t gru_sizes[][3] = {{3, 1, 1},  {4, 2, 7}, {3, 5, 17}, {2, 13, 33}, {2, 29, 16},
                                    {3, 3, 97}, {0, 2, 3}, {2, 0, 3},  {3, 2, 150}};
    const int64_t posterior_sizes[][4] = {{3, 1, 1, 1}, {3, 5, 17, 9}, {2, 13, 33, 16}, {2, 27, 10, 35},
                                          {0, 2, 3, 2}, {2, 0, 3, 2},  {2, 2, 210, 50}};
    for (int threads : {1, 3}) {
        for (const auto& [steps, B, H] : gru_sizes)
            for (bool reverse : {false, true}) {
                test_gru(steps, B, H, reverse, {}, threads);
                std::vector<int64_t> lengths(B);
                for (int64_t b = 0; b < B; ++b) lengths[b] = (b * 7 + 1) % (steps + 1);
                test_gru(steps, B, H, reverse, lengths, threads);
                std::sort(lengths.rbegin(), lengths.rend());
                test_gru(steps, B, H, reverse, lengths, threads, true);
            }
        int next = 0;
        for (const auto& [steps, B, M, Z] : posterior_sizes)
            for (bool prior : {false, true}) {
                std::vector<int64_t> lengths(B);
                for (int64_t b = 0; b < B; ++b) lengths[b] = (b * 5 + 1) % (steps + 1);
                test_posterior(steps, B, M, Z, Activation(next++ % 4), prior, {}, threads);
                test_posterior(steps, B, M, Z, Activation(next++ % 4), prior, lengths, threads);
            }
        test_gaussian(3, 1, threads);
        test_gaussian(5, 17, threads);
        test_gaussian(700, 40, threads);
        test_gaussian(0, 4, threads);
        for (const auto& [N, M, O] :
             {std::array<int64_t, 3>{1, 1, 1}, {5, 7, 3}, {300, 33, 17}, {40, 100, 50}, {0, 3, 2}})
            for (const std::vector<int64_t>& widths :
                 {std::vector<int64_t>{3}, std::vector<int64_t>{17, 8}, std::vector<int64_t>{0, 50, 1}}) {
                test_mlp(N, widths, M, 0, Activation::tanh, false, threads);
                test_mlp(N, widths, M, O, Activation(next++ % 4), false, threads);
                test_mlp(N, widths, M, O, Activation(next++ % 4), true, threads);
            }
        test_exact_products(1, {1}, 1, threads);
        test_exact_products(37, {33, 5}, 50, threads);
        test_exact_products(210, {700}, 97, threads);
        test_bernoulli(3, 1, threads);
        test_bernoulli(300, 88, threads);
        test_bernoulli(0, 4, threads);
    }
}

}  // namespace

int main() {
    try {
        table = &kernels();
        printf("%s: ", table->isa);
    } catch (const std::runtime_error& error) {
        printf("skipped: %s\n", error.what());
        return 0;
    }
    test_all();
    printf("%d checks, %d failed\n", checks, failures);
    return failures != 0;
}

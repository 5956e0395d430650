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
#include <limits>
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

// Each case has numbers of its own, whatever runs before it.
void draw_anew(const std::string& name) {
    std::seed_seq letters(name.begin(), name.end());
    generator.seed(letters);
}

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
    const GruForward<T> forward{.threads = threads,
                                .steps = p.steps,
                                .B = p.B,
                                .H = p.H,
                                .reverse = p.reverse,
                                .lengths = lengths,
                                .batch_sizes = sizes,
                                .gates_x = x.view(),
                                .h0 = {h0.data(), p.H},
                                .weight = {weight.data(), p.H},
                                .bias = bias.data(),
                                .output = output.data(),
                                .h_n = h_n.data(),
                                .gates = gates.data()};
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
    GruBackward<T> backward{.threads = threads,
                            .steps = p.steps,
                            .B = p.B,
                            .H = p.H,
                            .reverse = p.reverse,
                            .lengths = lengths,
                            .batch_sizes = sizes,
                            .grad_output = grad_output.view(),
                            .grad_h_n = {grad_h_n.data(), p.H},
                            .output = output.data(),
                            .gates = gates.data(),
                            .h0 = {stored_h0.data(), p.H},
                            .weight = {weight.data(), p.H},
                            .grad_gates_x = {grad_x.data(), 3 * p.H},
                            .grad_a = {grad_a.data(), p.H},
                            .grad_h0 = grad_h0.data(),
                            .grad_weight = grad_weight.data(),
                            .grad_bias = grad_bias.data()};
    call(entries<T>().gru_backward, entries<T>().gru_backward_workspace, backward);
    // Once more, written over the gates: the same bits.
    backward.grad_gates_x = {gates.data(), 4 * p.H};
    backward.grad_a = {gates.data() + 3 * p.H, 4 * p.H};
    call(entries<T>().gru_backward, entries<T>().gru_backward_workspace, backward);
    for (int64_t row = 0; row < rows; ++row) {
        check_close(name + " over gates", std::vector<T>(&gates[row * 4 * p.H], &gates[row * 4 * p.H] + 3 * p.H),
                    Array(&grad_x[row * 3 * p.H], &grad_x[row * 3 * p.H] + 3 * p.H), 0);
        check_close(name + " over gates",
                    std::vector<T>(&gates[row * 4 * p.H] + 3 * p.H, &gates[row * 4 * p.H] + 4 * p.H),
                    Array(&grad_a[row * p.H], &grad_a[row * p.H] + p.H), 0);
    }
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
    draw_anew(name);
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

// ---- Single steps of the GRU -----------------------------------------------------------------------------

// A step by each of the kernels that take one, each against plain; the cell's gradients against gru_backward's.
template <class T>
void test_gru_step(int64_t B, int64_t X, int64_t H, int threads, double tolerance) {
    const std::string name = "gru step " + std::to_string(B) + "x" + std::to_string(X) + "x" + std::to_string(H) +
                             " on " + std::to_string(threads);
    draw_anew(name);
    const Array x = normal(B * X), weight_ih = normal(3 * H * X), bias_ih = normal(3 * H);
    Gru p{1, B, H, false, {}, Array(B * 3 * H), normal(B * H), normal(3 * H * H, 1 / sqrt(double(H))), normal(3 * H)};
    // rows W^T, for W [3H, K].
    const auto product = [&](const Array& rows, const Array& weight, int64_t K) {
        Array found(B * 3 * H, 0.0);
        for (int64_t i = 0; i < B * 3 * H; ++i)
            for (int64_t k = 0; k < K; ++k) found[i] += rows[i / (3 * H) * K + k] * weight[i % (3 * H) * K + k];
        return found;
    };
    const auto check = [&](const std::string& kernel, const std::vector<T>& found) {
        const Array all = plain(p);
        check_close(name + " " + kernel, found, Array(all.begin(), all.begin() + B * H), tolerance);
    };
    const Sequence<T> x_rows(x, B, 1, X, nullptr, 2), h_rows(p.h0, B, 1, H, nullptr, 1);
    const std::vector<T> weight_x = cast<T>(weight_ih), weight_h = cast<T>(p.weight);
    const std::vector<T> bias_x = cast<T>(bias_ih), bias_h = cast<T>(p.bias);
    const auto rows = [](const Sequence<T>& of) { return Rows<const T>{of.data.data(), of.stride}; };
    std::vector<T> output = fresh<T>(B * H), h_n = fresh<T>(B * H);
    const Array own = p.bias;
    for (bool biased : {false, true}) {
        p.gates_x = product(x, weight_ih, X);
        for (int64_t i = 0; biased && i < B * 3 * H; ++i) p.gates_x[i] += bias_ih[i % (3 * H)];
        p.bias = biased ? own : Array(3 * H, 0.0);
        std::vector<T> gates = fresh<T>(B * 4 * H);
        entries<T>().gru_layer_step({.threads = threads,
                                     .B = B,
                                     .X = X,
                                     .H = H,
                                     .x = rows(x_rows),
                                     .h = rows(h_rows),
                                     .weight_ih = {weight_x.data(), X},
                                     .weight_hh = {weight_h.data(), H},
                                     .bias_ih = biased ? bias_x.data() : nullptr,
                                     .bias_hh = biased ? bias_h.data() : nullptr,
                                     .output = output.data(),
                                     .h_n = h_n.data(),
                                     .gates = biased ? gates.data() : nullptr});
        check("of a layer", output);
        check("of a layer, h_n", h_n);
    }

    const Sequence<T> gates_x(p.gates_x, B, 1, 3 * H, nullptr, 3);
    GruPack<T> pack{.H = H, .weight = {weight_h.data(), H}, .panels = nullptr};
    std::vector<T> panels = fresh<T>(entries<T>().gru_pack(pack)), out = fresh<T>(B * H);
    pack.panels = panels.data();
    entries<T>().gru_pack(pack);
    entries<T>().gru_step({.threads = threads,
                           .B = B,
                           .H = H,
                           .gates_x = rows(gates_x),
                           .h = rows(h_rows),
                           .panels = panels.data(),
                           .bias = bias_h.data(),
                           .out = out.data()});
    check("packed", out);

    const Sequence<T> hidden(product(p.h0, p.weight, H), B, 1, 3 * H, nullptr, 1);
    std::vector<T> gates = fresh<T>(B * 4 * H);
    output = h_n = fresh<T>(B * H);
    entries<T>().gru_cell({.threads = threads,
                           .B = B,
                           .H = H,
                           .gates_x = rows(gates_x),
                           .product = rows(hidden),
                           .h = rows(h_rows),
                           .bias = bias_h.data(),
                           .output = output.data(),
                           .h_n = h_n.data(),
                           .gates = gates.data()});
    check("cell", output);
    check("cell, h_n", h_n);
    const Array cotangent = normal(2 * B * H), want = run<double>(p, false, threads, cotangent, name, 1e-12);
    const Sequence<T> grad_output(Array(cotangent.begin(), cotangent.begin() + B * H), B, 1, H, nullptr, 1);
    const Sequence<T> grad_h_n(Array(cotangent.begin() + B * H, cotangent.end()), B, 1, H, nullptr, 2);
    std::vector<T> grad_x = fresh<T>(B * 3 * H), grad_product = fresh<T>(B * 3 * H), grad_h = fresh<T>(B * H);
    entries<T>().gru_cell_backward({.threads = threads,
                                    .B = B,
                                    .H = H,
                                    .grad_output = rows(grad_output),
                                    .grad_h_n = rows(grad_h_n),
                                    .h = rows(h_rows),
                                    .gates = gates.data(),
                                    .grad_gates_x = grad_x.data(),
                                    .grad_product = grad_product.data(),
                                    .grad_h = grad_h.data()});
    Array grads(grad_x.begin(), grad_x.end()), grad_weight(3 * H * H, 0.0), grad_bias(3 * H, 0.0);
    for (int64_t b = 0; b < B; ++b)
        for (int64_t j = 0; j < H; ++j) {
            double sum = grad_h[b * H + j];
            for (int64_t i = 0; i < 3 * H; ++i) {
                sum += grad_product[b * 3 * H + i] * p.weight[i * H + j];
                grad_weight[i * H + j] += grad_product[b * 3 * H + i] * p.h0[b * H + j];
            }
            grads.push_back(sum);
        }
    for (int64_t i = 0; i < B * 3 * H; ++i) grad_bias[i % (3 * H)] += grad_product[i];
    grads.insert(grads.end(), grad_weight.begin(), grad_weight.end());
    grads.insert(grads.end(), grad_bias.begin(), grad_bias.end());
    check_close(name + " cell backward", grads, want, 10 * tolerance);
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

// ---- Interleaved -----------------------------------------------------------------------------------------

// What each step started from, zeros at padding.
template <class T>
std::vector<T> before(const Interleaved& p, const Array& states, const Array& first, const Array& anew, int64_t width) {
    std::vector<T> found(states.size(), T(0));
    for (int64_t row = 0; row < p.steps * p.B; ++row) {
        const int64_t t = row / p.B, b = row % p.B;
        if (t >= p.length(b)) continue;
        const double* from = !p.resets.empty() && p.resets[row] ? &anew[b * width]
                             : t == 0                           ? &first[b * width]
                                                                : &states[(row - p.B) * width];
        for (int64_t i = 0; i < width; ++i) found[row * width + i] = T(from[i]);
    }
    return found;
}

// Returns the gradients of Interleaved's inputs, in their order.
template <class T>
Array run(const Interleaved& p, int threads, const Array& cotangent, const std::string& name, double tolerance) {
    const int64_t rows = p.steps * p.B, *lengths = p.lengths_pointer();
    const int64_t widths[] = {3 * p.H, p.E, p.M, p.Z};
    std::vector<Sequence<T>> sequences;
    for (int i = 0; i < p.kSequences; ++i) sequences.emplace_back(p.in[i], p.steps, p.B, widths[i], lengths, i);
    std::vector<T> in[p.kInputs];
    for (int i = p.kSequences; i < p.kInputs; ++i) in[i] = cast<T>(p.in[i]);
    std::vector<T> h = fresh<T>(rows * p.H), z = fresh<T>(rows * p.Z), mu = fresh<T>(rows * p.Z);
    std::vector<T> logvar = fresh<T>(rows * p.Z), gates = fresh<T>(rows * 4 * p.H), embed = fresh<T>(rows * p.E);
    std::vector<T> hidden = fresh<T>(rows * p.M);
    std::vector<char> resets(p.resets);
    const bool* set = resets.empty() ? nullptr : reinterpret_cast<const bool*>(resets.data());
    const InterleavedForward<T> forward{.threads = threads,
                                        .steps = p.steps,
                                        .B = p.B,
                                        .H = p.H,
                                        .E = p.E,
                                        .M = p.M,
                                        .Z = p.Z,
                                        .embed_activation = p.embed_activation,
                                        .activation = p.activation,
                                        .scale = p.scale,
                                        .min_logvar = Compute<T>(kMinLogvar),
                                        .min_std = Compute<T>(kMinStd),
                                        .lengths = lengths,
                                        .resets = set,
                                        .gates_x = sequences[0].view(),
                                        .embed_context = sequences[1].view(),
                                        .context = sequences[2].view(),
                                        .eps = sequences[3].view(),
                                        .h0 = {in[4].data(), p.H},
                                        .z0 = {in[5].data(), p.Z},
                                        .reset_h = {in[6].data(), p.H},
                                        .reset_z = {in[7].data(), p.Z},
                                        .weight_embed = {in[8].data(), p.Z},
                                        .weight_zh = {in[9].data(), p.E},
                                        .weight_hh = {in[10].data(), p.H},
                                        .weight_h = {in[12].data(), p.H},
                                        .weight_out = {in[13].data(), p.M},
                                        .bias_hh = in[11].data(),
                                        .bias_out = in[14].data(),
                                        .h = h.data(),
                                        .z = z.data(),
                                        .mu = mu.data(),
                                        .logvar = logvar.data(),
                                        .gates = gates.data(),
                                        .embed = embed.data(),
                                        .hidden = hidden.data()};
    call(entries<T>().interleaved_forward, entries<T>().interleaved_forward_workspace, forward);
    std::vector<T> outputs;
    for (const auto* part : {&h, &z, &mu, &logvar}) outputs.insert(outputs.end(), part->begin(), part->end());
    check_close(name + " forward", outputs, plain(p), tolerance);

    std::vector<Sequence<T>> grad_outputs;
    auto at = cotangent.begin();
    for (int64_t width : {p.H, p.Z, p.Z, p.Z}) {
        grad_outputs.emplace_back(Array(at, at + rows * width), p.steps, p.B, width, lengths, int64_t(width % 3));
        at += rows * width;
    }
    const std::vector<T> before_h = before<T>(p, Array(h.begin(), h.end()), p.in[4], p.in[6], p.H);
    const std::vector<T> before_z = before<T>(p, Array(z.begin(), z.end()), p.in[5], p.in[7], p.Z);
    std::vector<T> embed_active(embed), active(hidden);
    const auto activate = [](std::vector<T>& values, Activation activation) {
        for (T& value : values)
            if (keeps_input(activation)) value = T(act(activation, double(value)));
    };
    activate(embed_active, p.embed_activation);
    activate(active, p.activation);
    std::vector<T> grads[p.kInputs], grad_a = fresh<T>(rows * p.H), grad_out = fresh<T>(rows * 2 * p.Z);
    for (int i = 0; i < p.kInputs; ++i) grads[i] = fresh<T>(p.size(i));
    const InterleavedBackward<T> backward{.threads = threads,
                                          .steps = p.steps,
                                          .B = p.B,
                                          .H = p.H,
                                          .E = p.E,
                                          .M = p.M,
                                          .Z = p.Z,
                                          .embed_activation = p.embed_activation,
                                          .activation = p.activation,
                                          .scale = p.scale,
                                          .min_logvar = Compute<T>(kMinLogvar),
                                          .min_std = Compute<T>(kMinStd),
                                          .lengths = lengths,
                                          .resets = set,
                                          .grad_h = grad_outputs[0].view(),
                                          .grad_z = grad_outputs[1].view(),
                                          .grad_mu = grad_outputs[2].view(),
                                          .grad_logvar = grad_outputs[3].view(),
                                          .before_h = {before_h.data(), p.H},
                                          .before_z = {before_z.data(), p.Z},
                                          .h = h.data(),
                                          .logvar = logvar.data(),
                                          .gates = gates.data(),
                                          .embed = embed.data(),
                                          .hidden = hidden.data(),
                                          .embed_active = {embed_active.data(), p.E},
                                          .active = {active.data(), p.M},
                                          .eps = sequences[3].view(),
                                          .weight_embed = {in[8].data(), p.Z},
                                          .weight_zh = {in[9].data(), p.E},
                                          .weight_hh = {in[10].data(), p.H},
                                          .weight_h = {in[12].data(), p.H},
                                          .weight_out = {in[13].data(), p.M},
                                          .grad_gates_x = grads[0].data(),
                                          .grad_a = grad_a.data(),
                                          .grad_embed_context = grads[1].data(),
                                          .grad_context = grads[2].data(),
                                          .grad_out = grad_out.data(),
                                          .grad_eps = grads[3].data(),
                                          .grad_h0 = grads[4].data(),
                                          .grad_z0 = grads[5].data(),
                                          .grad_reset_h = grads[6].data(),
                                          .grad_reset_z = grads[7].data(),
                                          .grad_weight_embed = grads[8].data(),
                                          .grad_weight_zh = grads[9].data(),
                                          .grad_weight_hh = grads[10].data(),
                                          .grad_bias_hh = grads[11].data(),
                                          .grad_weight_h = grads[12].data(),
                                          .grad_weight_out = grads[13].data(),
                                          .grad_bias_out = grads[14].data()};
    call(entries<T>().interleaved_backward, entries<T>().interleaved_backward_workspace, backward);
    Array all;
    for (const std::vector<T>& part : grads) all.insert(all.end(), part.begin(), part.end());
    return all;
}

void test_interleaved(int64_t steps, int64_t B, std::array<int64_t, 4> sizes, Activation activation, Scale scale,
                      bool resets, std::vector<int64_t> lengths, int threads) {
    const auto [H, E, M, Z] = sizes;
    const std::string name = "interleaved " + std::to_string(steps) + "x" + std::to_string(B) + "x" +
                             std::to_string(H) + " activation " + std::to_string(int(activation)) +
                             (resets ? " resets" : "") + (lengths.empty() ? "" : " lengths") + " on " +
                             std::to_string(threads);
    draw_anew(name);
    Interleaved p{steps, B, H, E, M, Z, activation, activation, scale, lengths, {}, {}};
    for (int64_t row = 0; resets && row < steps * B; ++row) p.resets.push_back(row % 3 == 1);
    const int64_t inputs[] = {1, 1, 1, 1, 1, 1, 1, 1, Z, E, H, 1, H, M, 1};
    for (int i = 0; i < p.kInputs; ++i) p.in[i] = normal(p.size(i), inputs[i] > 1 ? 0.2 / sqrt(double(inputs[i])) : 1);
    // Away from the kinks of the activations, where float and double may see different slopes.
    for (int i : {1, 2})
        for (double& x : p.in[i]) x += x < 0 ? -2 : 2;
    const Array cotangent = normal(steps * B * (H + 3 * Z));
    const Array grads = run<double>(p, threads, cotangent, name, 1e-12);
    check_close(name + " float backward", run<float>(p, threads, cotangent, name, 1e-5), grads, 1e-4);
    Array ways[p.kInputs], way;
    for (int i = 0; i < p.kInputs; ++i) {
        // Without resets nobody goes on from there, and the kernel says so with zeros.
        ways[i] = normal(p.size(i));
        way.insert(way.end(), ways[i].begin(), ways[i].end());
    }
    const double difference = slope([&](double step) {
        Interleaved moved(p);
        for (int i = 0; i < p.kInputs; ++i) moved.in[i] = plus(p.in[i], ways[i], step);
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
    entries<T>().gaussian_forward({.threads = threads,
                                   .N = p.N,
                                   .Z = p.Z,
                                   .mu = rows(0),
                                   .logvar = rows(1),
                                   .eps = rows(2),
                                   .prior_mu = rows(3),
                                   .prior_logvar = rows(4),
                                   .z = z.data(),
                                   .kl = kl.data()});
    std::vector<T> outputs(z);
    outputs.insert(outputs.end(), kl.begin(), kl.end());
    check_close(name + " forward", outputs, plain(p), tolerance);
    const std::vector<T> grad = cast<T>(cotangent);
    std::vector<T> grads[5];
    for (std::vector<T>& part : grads) part = fresh<T>(p.N * p.Z);
    entries<T>().gaussian_backward({.threads = threads,
                                    .N = p.N,
                                    .Z = p.Z,
                                    .mu = rows(0),
                                    .logvar = rows(1),
                                    .eps = rows(2),
                                    .prior_mu = rows(3),
                                    .prior_logvar = rows(4),
                                    .grad_z = {grad.data(), p.Z},
                                    .grad_kl = {grad.data() + p.N * p.Z, 1},
                                    .grad_mu = grads[0].data(),
                                    .grad_logvar = grads[1].data(),
                                    .grad_eps = grads[2].data(),
                                    .grad_prior_mu = grads[3].data(),
                                    .grad_prior_logvar = grads[4].data()});
    Array all;
    for (const std::vector<T>& part : grads) all.insert(all.end(), part.begin(), part.end());
    return all;
}

void test_gaussian(int64_t N, int64_t Z, int threads) {
    const std::string name =
        "gaussian " + std::to_string(N) + "x" + std::to_string(Z) + " on " + std::to_string(threads);
    draw_anew(name);
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
    MlpForward<T> forward{.threads = threads,
                          .N = p.N,
                          .M = p.M,
                          .O = p.O,
                          .activation = p.activation,
                          .floored = p.floored,
                          .min_logvar = Compute<T>(kMinLogvar),
                          .K = K,
                          .x = x_rows,
                          .weight = w_rows,
                          .bias = bias.data(),
                          .weight_out = second,
                          .bias_out = bias_out.data(),
                          .panels = nullptr,
                          .out = out.data(),
                          .logvar = logvar.data(),
                          .hidden = hidden.data()};
    call(entries<T>().mlp_forward, entries<T>().mlp_forward_workspace, forward);
    std::vector<T> results(out);
    results.insert(results.end(), logvar.begin(), logvar.end());
    check_close(name + " forward", results, plain(p), tolerance);
    if constexpr (!kRounds<T>) {  // with weights packed before there are the same bits
        MlpPack<T> pack{.M = p.M,
                        .O = p.O,
                        .floored = p.floored,
                        .K = K,
                        .weight = w_rows,
                        .weight_out = second,
                        .panels = nullptr};
        std::vector<T> panels = fresh<T>(entries<T>().mlp_pack(pack)), again = fresh<T>(outputs);
        pack.panels = panels.data();
        entries<T>().mlp_pack(pack);
        MlpForward<T> packed(forward);
        packed.panels = panels.data();
        for (int i = 0; i < K.count; ++i) packed.weight.values[i] = {nullptr, 0};
        packed.out = again.data();
        call(entries<T>().mlp_forward, entries<T>().mlp_forward_workspace, packed);
        check_close(name + " forward, packed", again, Array(out.begin(), out.end()), 0);
    }

    const std::vector<T> grad = cast<T>(cotangent);
    std::vector<Compute<T>> grad_bias = fresh<Compute<T>>(p.M), grad_bias_out = fresh<Compute<T>>(bias_out.size());
    std::vector<Compute<T>> grad_weight_out = fresh<Compute<T>>(weight_out.size());
    MlpBackward<T> backward{.threads = threads,
                            .N = p.N,
                            .M = p.M,
                            .O = p.O,
                            .activation = p.activation,
                            .floored = p.floored,
                            .min_logvar = Compute<T>(kMinLogvar),
                            .K = K,
                            .x = x_rows,
                            .weight = w_rows,
                            .weight_out = second,
                            .grad_out = {grad.data(), p.two ? p.O : p.M},
                            .grad_logvar = {p.floored ? grad.data() + outputs : nullptr, p.O},
                            .logvar = logvar.data(),
                            .hidden = hidden.data(),
                            .grad_x = grad_x_pointers,
                            .grad_weight = grad_w_rows,
                            .grad_bias = grad_bias.data(),
                            .grad_weight_out = p.two ? grad_weight_out.data() : nullptr,
                            .grad_bias_out = p.two ? grad_bias_out.data() : nullptr};
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
    draw_anew(name);
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
    draw_anew(name);
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
    entries<T>().bernoulli_forward(
        {.threads = threads, .N = p.N, .X = p.X, .logits = logits_rows, .x = x_rows, .log_prob = log_prob.data()});
    check_close(name + " forward", log_prob, plain(p), tolerance);
    entries<T>().bernoulli_backward({.threads = threads,
                                     .N = p.N,
                                     .X = p.X,
                                     .logits = logits_rows,
                                     .x = x_rows,
                                     .grad = {grad.data(), 1},
                                     .grad_logits = grad_logits.data(),
                                     .grad_x = grad_x.data()});
    Array grads(grad_logits.begin(), grad_logits.end());
    grads.insert(grads.end(), grad_x.begin(), grad_x.end());
    return grads;
}

void test_bernoulli(int64_t N, int64_t X, int threads) {
    const std::string name =
        "bernoulli " + std::to_string(N) + "x" + std::to_string(X) + " on " + std::to_string(threads);
    draw_anew(name);
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

// ---- Programs --------------------------------------------------------------------------------------------

// A hidden layer on [x, a part of the memory] and what the other instructions do with it, in a memory that ends with
// what is written last. The gates are copied by other threads than those that read them.
template <class T>
void test_program(int64_t B, int64_t X, int64_t N, int threads, double tolerance) {
    const std::string name = "program " + std::to_string(B) + "x" + std::to_string(X) + "x" + std::to_string(N) +
                             " on " + std::to_string(threads);
    draw_anew(name);
    const int64_t wide = kPanelBytes / static_cast<int64_t>(sizeof(T)), P = N <= wide / 4 ? wide / 4 : wide,
                  panels = (N + P - 1) / P;
    const int64_t x_at = 0, h_at = X, gates_at = h_at + N, copy_at = gates_at + 3 * N, hidden_at = copy_at + 3 * N,
                  size = hidden_at + N;
    const Array x = normal(B * X), h = normal(B * N), gates = normal(B * 3 * N), weight = normal(N * X),
                bias = normal(N);
    std::vector<T> weights(panels * X * P + N, T(0));
    for (int64_t n = 0; n < N; ++n) {
        for (int64_t i = 0; i < X; ++i) weights[(n / P * X + i) * P + n % P] = T(weight[n * X + i]);
        weights[panels * X * P + n] = T(bias[n]);
    }
    std::vector<T> memory = fresh<T>(B * size), rows = cast<T>(x);
    for (int64_t b = 0; b < B; ++b)
        for (int64_t n = 0; n < N; ++n) {
            memory[b * size + h_at + n] = T(h[b * N + n]);
            for (int64_t g = 0; g < 3; ++g) memory[b * size + gates_at + g * N + n] = T(gates[(b * 3 + g) * N + n]);
        }
    const std::vector<std::array<int64_t, 8>> code = {{0, hidden_at, x_at, X, N, 0, panels * X * P, -1},  // linear
                                                      {1, hidden_at, N, 0},                               // tanh
                                                      {3, copy_at, gates_at, 3 * N},                      // copy
                                                      {5},                                                // wait
                                                      {2, h_at, copy_at, copy_at, h_at, N},               // gru
                                                      {4, hidden_at, h_at, N},                            // add
                                                      {3, h_at, hidden_at, N}};                           // copy
    const double infinity = std::numeric_limits<double>::infinity();
    const bool ran = entries<T>().run_program({.threads = threads,
                                               .B = B,
                                               .first = 0,
                                               .last = 7,
                                               .x = {rows.data(), X},
                                               .u = {nullptr, 0},
                                               .X = X,
                                               .x_at = x_at,
                                               .U = 0,
                                               .u_at = 0,
                                               .low = Compute<T>(-infinity),
                                               .high = Compute<T>(infinity),
                                               .whole = false,
                                               .memory = {memory.data(), size},
                                               .code = code[0].data(),
                                               .weights = weights.data()});
    Array want, got;
    for (int64_t b = 0; b < B; ++b)
        for (int64_t n = 0; n < N; ++n) {
            double sum = bias[n];
            for (int64_t i = 0; i < X; ++i) sum += weight[n * X + i] * x[b * X + i];
            const auto gate = [&](int64_t g) { return gates[(b * 3 + g) * N + n]; };
            const auto sigmoid = [](double v) { return 1 / (1 + std::exp(-v)); };
            const double r = sigmoid(2 * gate(0)), z = sigmoid(2 * gate(1)), m = std::tanh(gate(2) + r * gate(2));
            want.push_back(std::tanh(sum) + (1 - z) * m + z * h[b * N + n]);
            got.push_back(memory[b * size + h_at + n]);
        }
    check_close(name, std::vector<double>(got.begin(), got.end()), want, tolerance);
    check_close(name + " runs", ran, 1, 0);
}

void test_all() {
    for (const auto& [B, X, N] : {std::array<int64_t, 3>{1, 1, 1}, {3, 5, 17}, {2, 33, 70}, {0, 3, 2}, {3, 350, 400}})
        for (int threads : {1, 3}) {
            test_program<double>(B, X, N, threads, 1e-12);
            test_program<float>(B, X, N, threads, 1e-5);
        }
    for (const auto& [B, X, H] : {std::array<int64_t, 3>{1, 1, 1}, {1, 5, 17}, {3, 33, 70}, {13, 4, 40}, {0, 3, 2}})
        for (int threads : {1, 3}) {
            test_gru_step<double>(B, X, H, threads, 1e-12);
            test_gru_step<float>(B, X, H, threads, 1e-5);
        }
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
        const int64_t interleaved_sizes[][6] = {{3, 1, 1, 1, 1, 1},   {3, 5, 17, 9, 4, 7}, {2, 13, 33, 16, 35, 18},
                                                {0, 2, 3, 2, 1, 2},   {2, 0, 3, 2, 1, 2},  {4, 2, 90, 120, 40, 33},
                                                {2, 27, 6, 40, 20, 3}};
        for (const auto& [steps, B, H, E, M, Z] : interleaved_sizes)
            for (Scale scale : {Scale::logvar, Scale::softplus}) {
                std::vector<int64_t> lengths(B);
                for (int64_t b = 0; b < B; ++b) lengths[b] = (b * 5 + 1) % (steps + 1);
                test_interleaved(steps, B, {H, E, M, Z}, Activation(next++ % 6), scale, false, {}, threads);
                test_interleaved(steps, B, {H, E, M, Z}, Activation(next++ % 6), scale, true, lengths, threads);
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

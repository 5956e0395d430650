// The recurrence of the GRU, dense and packed, and its single steps.
#include <math.h>

#include <algorithm>
#include <string>
#include <vector>

#include "checks.h"
#include "tests.h"

namespace checks {

namespace {

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

// A step by each of the kernels that take one, each against plain; the cell's gradients against gru_backward's.
template <class T>
void gru_step_of_type(int64_t B, int64_t X, int64_t H, int threads, double tolerance) {
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

}  // namespace

void test_gru(int64_t steps, int64_t B, int64_t H, bool reverse, std::vector<int64_t> lengths, int threads, bool pack) {
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

void test_gru_step(int64_t B, int64_t X, int64_t H, int threads) {
    gru_step_of_type<double>(B, X, H, threads, 1e-12);
    gru_step_of_type<float>(B, X, H, threads, 1e-5);
}

}  // namespace checks

// Multilayer perceptrons, and the places of their products.
#include <math.h>

#include <random>
#include <string>
#include <vector>

#include "checks.h"
#include "tests.h"

namespace checks {

namespace {

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

}  // namespace

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

}  // namespace checks

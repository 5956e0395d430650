// The log-likelihood of Bernoulli entries.
#include <string>
#include <vector>

#include "checks.h"
#include "tests.h"

namespace checks {

namespace {

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

}  // namespace

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

}  // namespace checks

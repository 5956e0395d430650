// Samples and divergences of Gaussians.
#include <string>
#include <vector>

#include "checks.h"
#include "tests.h"

namespace checks {

namespace {

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

}  // namespace

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

}  // namespace checks

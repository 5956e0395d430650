// Programs of a few instructions.
#include <math.h>

#include <array>
#include <limits>
#include <string>
#include <vector>

#include "checks.h"
#include "tests.h"

namespace checks {

namespace {

// A hidden layer on [x, a part of the memory] and what the other instructions do with it, in a memory that ends with
// what is written last. The gates are copied by other threads than those that read them.
template <class T>
void program_of_type(int64_t B, int64_t X, int64_t N, int threads, double tolerance) {
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

}  // namespace

void test_program(int64_t B, int64_t X, int64_t N, int threads) {
    program_of_type<double>(B, X, N, threads, 1e-12);
    program_of_type<float>(B, X, N, threads, 1e-5);
}

}  // namespace checks

// Runs every kernel at odd sizes, with lengths, both directions and several threads, for a sanitizer to watch, and
// compares: values with plain loops in double, gradients with differences of these loops. Those for BFloat16 are
// compared with the ones for double on rounded inputs and, closer, with the generic ones, which round at the same
// points.
//
// Buffers have exactly the size that a kernel may touch; gaps between rows, padding and fresh memory hold NaN.
#include <stdio.h>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <vector>

#include "checks.h"
#include "tests.h"

namespace {

using namespace checks;

void test_all() {
    for (const auto& [B, X, N] : {std::array<int64_t, 3>{1, 1, 1}, {3, 5, 17}, {2, 33, 70}, {0, 3, 2}, {3, 350, 400}})
        for (int threads : {1, 3}) test_program(B, X, N, threads);
    for (const auto& [B, X, H] : {std::array<int64_t, 3>{1, 1, 1}, {1, 5, 17}, {3, 33, 70}, {13, 4, 40}, {0, 3, 2}})
        for (int threads : {1, 3}) test_gru_step(B, X, H, threads);
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
    printf("%d checks, %d failed\n", compared, failures);
    return failures != 0;
}

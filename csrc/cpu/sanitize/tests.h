// The checks of driver.cpp, each of one kernel at one size, on so many threads, for all types.
#pragma once

#include <stdint.h>
#include <array>
#include <vector>

#include "../kernels.h"

namespace checks {

using namespace vssn;

void test_gru(int64_t steps, int64_t B, int64_t H, bool reverse, std::vector<int64_t> lengths, int threads,
              bool pack = false);
void test_gru_step(int64_t B, int64_t X, int64_t H, int threads);
void test_posterior(int64_t steps, int64_t B, int64_t M, int64_t Z, Activation activation, bool prior,
                    std::vector<int64_t> lengths, int threads);
void test_interleaved(int64_t steps, int64_t B, std::array<int64_t, 4> sizes, Activation activation, Scale scale,
                      bool resets, std::vector<int64_t> lengths, int threads);
void test_gaussian(int64_t N, int64_t Z, int threads);
void test_mlp(int64_t N, std::vector<int64_t> widths, int64_t M, int64_t O, Activation activation, bool floored,
              int threads);
void test_exact_products(int64_t N, std::vector<int64_t> widths, int64_t M, int threads);
void test_bernoulli(int64_t N, int64_t X, int threads);
void test_program(int64_t B, int64_t X, int64_t N, int threads);

}  // namespace checks

// Kernels for the tests of the host implementation itself: some right, some with a planted error that must be reported.
#pragma once

#include <cstdint>
#include <string>

namespace vssn::gpu::host {

// out [threads]: out[i] = i + 1 of the thread opposite, through shared memory; without the barrier between writing and
// reading when `barrier` is false.
std::string exchange(float* out, int threads, bool barrier);

// Steps of a state that four blocks of a cluster, or of a cooperative grid, hand round: out [4, 32].
std::string hand_round(float* out, unsigned* flags, bool cluster, int steps);

// Each name plants one error: see planted.cu.
std::string plant(const std::string& name, float* data, int64_t count);

// C [16, 8] += A [rows, depth] (of any strides) B [8, K]^T by one warp, through load_rows, store, load and load_b.
// kind: bfloat16, float16, tf32 or float; B and C contiguous, in the kind's storage and in float.
std::string product(const std::string& kind, const void* a, int64_t row_stride, int64_t k_stride, int rows, int depth,
                    const void* b, float* c);

}  // namespace vssn::gpu::host

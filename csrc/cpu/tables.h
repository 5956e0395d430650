// The entry points of one instruction set, overloaded for the types of storage; table.cpp collects them.
#pragma once

#include "kernels.h"

// A kernel file says with VSSN_FOR_STORAGES(what it has for one type) that it has it for all, with VSSN_FOR_FLOATS that
// it has it for those that need no rounding. The instruction sets that differ in their products of BFloat16 alone have
// the former for that, the latter not at all.
#if defined(VSSN_BFLOAT16_ALONE)
#define VSSN_FOR_FLOATS(has)
#define VSSN_FOR_STORAGES(has) has(BFloat16)
#else
#define VSSN_FOR_FLOATS(has) has(float) has(double)
#define VSSN_FOR_STORAGES(has) VSSN_FOR_FLOATS(has) has(BFloat16)
#endif

namespace vssn::VSSN_ISA {

#define VSSN_ENTRIES(T)                                                    \
    void gaussian_forward(const GaussianForward<T>&);                      \
    void gaussian_backward(const GaussianBackward<T>&);                    \
    void gru_forward(const GruForward<T>&, void* workspace);               \
    int64_t gru_forward_workspace(const GruForward<T>&);                   \
    void gru_backward(const GruBackward<T>&, void* workspace);             \
    int64_t gru_backward_workspace(const GruBackward<T>&);                 \
    void posterior_forward(const PosteriorForward<T>&, void* workspace);   \
    int64_t posterior_forward_workspace(const PosteriorForward<T>&);       \
    void posterior_backward(const PosteriorBackward<T>&, void* workspace); \
    int64_t posterior_backward_workspace(const PosteriorBackward<T>&);     \
    void mlp_forward(const MlpForward<T>&, void* workspace);               \
    int64_t mlp_forward_workspace(const MlpForward<T>&);                   \
    void mlp_backward(const MlpBackward<T>&, void* workspace);             \
    int64_t mlp_backward_workspace(const MlpBackward<T>&);                 \
    void bernoulli_forward(const BernoulliForward<T>&);                    \
    void bernoulli_backward(const BernoulliBackward<T>&);
VSSN_FOR_STORAGES(VSSN_ENTRIES)
#undef VSSN_ENTRIES

#define VSSN_ENTRIES(T)                                                        \
    int64_t gru_pack(const GruPack<T>&);                                       \
    void gru_step(const GruStep<T>&);                                          \
    void gru_layer_step(const GruLayerStep<T>&);                               \
    void gru_cell(const GruCell<T>&);                                          \
    void gru_cell_backward(const GruCellBackward<T>&);                         \
    void interleaved_forward(const InterleavedForward<T>&, void* workspace);   \
    int64_t interleaved_forward_workspace(const InterleavedForward<T>&);       \
    void interleaved_backward(const InterleavedBackward<T>&, void* workspace); \
    int64_t interleaved_backward_workspace(const InterleavedBackward<T>&);     \
    int64_t mlp_pack(const MlpPack<T>&);                                       \
    bool run_program(const Program<T>&);
VSSN_FOR_FLOATS(VSSN_ENTRIES)
#undef VSSN_ENTRIES

}  // namespace vssn::VSSN_ISA

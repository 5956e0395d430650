// The entry points of one instruction set, overloaded for float and double; table.cpp collects them.
#pragma once

#include "kernels.h"

namespace vssn::VSSN_ISA {

void gaussian_forward(const GaussianForward<float>&);
void gaussian_forward(const GaussianForward<double>&);
void gaussian_backward(const GaussianBackward<float>&);
void gaussian_backward(const GaussianBackward<double>&);
void gru_forward(const GruForward<float>&, void* workspace);
int64_t gru_forward_workspace(const GruForward<float>&);
void gru_forward(const GruForward<double>&, void* workspace);
int64_t gru_forward_workspace(const GruForward<double>&);
void gru_backward(const GruBackward<float>&, void* workspace);
int64_t gru_backward_workspace(const GruBackward<float>&);
void gru_backward(const GruBackward<double>&, void* workspace);
int64_t gru_backward_workspace(const GruBackward<double>&);
int64_t gru_pack(const GruPack<float>&);
int64_t gru_pack(const GruPack<double>&);
void gru_step(const GruStep<float>&);
void gru_step(const GruStep<double>&);
void gru_layer_step(const GruLayerStep<float>&);
void gru_layer_step(const GruLayerStep<double>&);
void gru_cell(const GruCell<float>&);
void gru_cell(const GruCell<double>&);
void gru_cell_backward(const GruCellBackward<float>&);
void gru_cell_backward(const GruCellBackward<double>&);
void posterior_forward(const PosteriorForward<float>&, void* workspace);
int64_t posterior_forward_workspace(const PosteriorForward<float>&);
void posterior_forward(const PosteriorForward<double>&, void* workspace);
int64_t posterior_forward_workspace(const PosteriorForward<double>&);
void posterior_backward(const PosteriorBackward<float>&, void* workspace);
int64_t posterior_backward_workspace(const PosteriorBackward<float>&);
void posterior_backward(const PosteriorBackward<double>&, void* workspace);
int64_t posterior_backward_workspace(const PosteriorBackward<double>&);
void interleaved_forward(const InterleavedForward<float>&, void* workspace);
int64_t interleaved_forward_workspace(const InterleavedForward<float>&);
void interleaved_forward(const InterleavedForward<double>&, void* workspace);
int64_t interleaved_forward_workspace(const InterleavedForward<double>&);
void interleaved_backward(const InterleavedBackward<float>&, void* workspace);
int64_t interleaved_backward_workspace(const InterleavedBackward<float>&);
void interleaved_backward(const InterleavedBackward<double>&, void* workspace);
int64_t interleaved_backward_workspace(const InterleavedBackward<double>&);
void mlp_forward(const MlpForward<float>&, void* workspace);
int64_t mlp_forward_workspace(const MlpForward<float>&);
void mlp_forward(const MlpForward<double>&, void* workspace);
int64_t mlp_forward_workspace(const MlpForward<double>&);
int64_t mlp_pack(const MlpPack<float>&);
int64_t mlp_pack(const MlpPack<double>&);
void mlp_backward(const MlpBackward<float>&, void* workspace);
int64_t mlp_backward_workspace(const MlpBackward<float>&);
void mlp_backward(const MlpBackward<double>&, void* workspace);
int64_t mlp_backward_workspace(const MlpBackward<double>&);
void bernoulli_forward(const BernoulliForward<float>&);
void bernoulli_forward(const BernoulliForward<double>&);
void bernoulli_backward(const BernoulliBackward<float>&);
void bernoulli_backward(const BernoulliBackward<double>&);
bool run_program(const Program<float>&);
bool run_program(const Program<double>&);

}  // namespace vssn::VSSN_ISA

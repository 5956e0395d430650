// The entry points of one instruction set, overloaded for float and double; table.cpp collects them.
#pragma once

#include "kernels.h"

namespace vssn::VSSN_ISA {

void gaussian_forward(const GaussianForward<float>&);
void gaussian_forward(const GaussianForward<double>&);
void gaussian_backward(const GaussianBackward<float>&);
void gaussian_backward(const GaussianBackward<double>&);
void gru_forward(const GruForward<float>&);
void gru_forward(const GruForward<double>&);
void gru_backward(const GruBackward<float>&);
void gru_backward(const GruBackward<double>&);
template <class T>
int64_t gru_workspace(int64_t steps, int64_t B, int64_t H, bool backward);
void posterior_forward(const PosteriorForward<float>&);
void posterior_forward(const PosteriorForward<double>&);
void posterior_backward(const PosteriorBackward<float>&);
void posterior_backward(const PosteriorBackward<double>&);
template <class T>
int64_t posterior_workspace(int64_t B, int64_t M, int64_t Z, bool prior, bool backward);
void mlp_forward(const MlpForward<float>&);
void mlp_forward(const MlpForward<double>&);
void mlp_backward(const MlpBackward<float>&);
void mlp_backward(const MlpBackward<double>&);
int64_t mlp_forward_workspace(const MlpForward<float>&);
int64_t mlp_forward_workspace(const MlpForward<double>&);
int64_t mlp_backward_workspace(const MlpBackward<float>&);
int64_t mlp_backward_workspace(const MlpBackward<double>&);
void bernoulli_forward(const BernoulliForward<float>&);
void bernoulli_forward(const BernoulliForward<double>&);
void bernoulli_backward(const BernoulliBackward<float>&);
void bernoulli_backward(const BernoulliBackward<double>&);

}  // namespace vssn::VSSN_ISA

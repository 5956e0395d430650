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
int64_t gru_workspace(int64_t B, int64_t H, bool backward);

}  // namespace vssn::VSSN_ISA

// How the posterior's kernels are launched: host code.
#pragma once

#include <stdexcept>
#include <string>

#include "compute_type.cuh"
#include "posterior_fragments.cuh"

namespace vssn::posterior {

template <class Call>
struct KernelParams {
    Call call;
    PosteriorPlan plan;
    bool paired;  // neighbouring hidden units and neighbouring latents lie in memory as aligned pairs
};

template <class Params>
void launch_or_throw(const char* name, void (*kernel)(Params), const Launch& shape, const Params& params) {
    const char* error = launch(kernel, shape, params);
    if (error == nullptr) return;
    const PosteriorProblem& k = params.call;
    throw std::runtime_error(std::string(name) + " (T=" + std::to_string(k.steps) + ", B=" + std::to_string(k.B) +
                             ", M=" + std::to_string(k.M) + ", Z=" + std::to_string(k.Z) +
                             "; blocks=" + std::to_string(shape.grid_x) + "x" + std::to_string(shape.grid_y) +
                             ", threads=" + std::to_string(shape.threads) +
                             ", cluster=" + std::to_string(shape.cluster) +
                             ", shared memory=" + std::to_string(shape.shared_bytes) + "): " + error);
}

// The kernel of a direction for weights in memory. Direction: of<C, paired, meeting>(). Only pairs have one for every
// meeting: so many are compiled, and single elements cost more than its branches.
template <class Direction, class C, bool paired>
auto in_memory(const PosteriorPlan& plan) {
    if constexpr (!paired)
        return Direction::template of<C, false, Meeting::any>();
    else
        return plan.cluster == 1 ? Direction::template of<C, true, Meeting::block>()
               : plan.scatter    ? Direction::template of<C, true, Meeting::owner>()
                                 : Direction::template of<C, true, Meeting::all>();
}

// Batch tiles that the device holds at once, of a plan whose weights are in memory; 0: the plan does not fit.
int forward_at_once(Storage storage, bool tf32, const PosteriorPlan& plan);
int backward_at_once(Storage storage, bool tf32, const PosteriorPlan& plan);

// Throws for sizes that the kernels' indices cannot count.
inline void require_sizes(const char* name, const PosteriorProblem& k) {
    constexpr int64_t kMost = 1 << 30;
    if (k.steps > kMost || k.M > kMost || k.Z > kMost || k.B / kRows > kMost / 16)
        throw std::runtime_error(
            std::string(name) + ": T, M and Z must be at most 2^30, B 2^29, got T=" + std::to_string(k.steps) +
            ", B=" + std::to_string(k.B) + ", M=" + std::to_string(k.M) + ", Z=" + std::to_string(k.Z));
}

template <class Params>
Launch launch_shape(const Params& params) {
    Launch shape;
    shape.grid_x = (params.call.B + kRows - 1) / kRows * params.plan.cluster;
    shape.threads = params.plan.warps * kWarp;
    shape.cluster = params.plan.cluster;
    shape.shared_bytes = static_cast<size_t>(params.plan.shared_bytes);
    shape.stream = params.call.stream;
    return shape;
}

// The kernel for weights in memory, behind the one that packs what is streamed.
template <class Params>
void launch_in_memory(const char* name, void (*kernel)(Params), void (*pack)(Params), const Params& params) {
    if (params.plan.kept < params.plan.tiles && params.call.B > 0) {
        Launch shape;
        shape.threads = 4 * kWarp;
        shape.grid_x = (params.plan.tiles + 3) / 4;
        shape.grid_y = params.plan.cluster;
        shape.stream = params.call.stream;
        launch_or_throw((std::string(name) + ": packing the weights").c_str(), pack, shape, params);
    }
    launch_or_throw(name, kernel, launch_shape(params), params);
}

}  // namespace vssn::posterior

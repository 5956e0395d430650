// What a lane of the posterior's kernels holds of a tile: its part of a product's sums, the activations on it, and its
// way into the buffers in shared memory.
#pragma once

#include "posterior.h"
#include "primitives.cuh"

namespace vssn::posterior {

using namespace gpu;

constexpr int kRows = 8;          // of the batch in a tile
constexpr int kUnits = 16;        // hidden units or latents in a tile
constexpr int kMaxThreads = 384;  // more, and the registers of a thread no longer suffice
constexpr int kPrefetched = 4;    // steps from now, of which what is read is asked into L2

// Where the sums of a batch tile over its hidden units meet: in its one block, in every block of its cluster, or in the
// one to which the latents belong. any: the plan says.
enum class Meeting { any, block, all, owner };

// What a lane holds of 16 units and 8 batch rows: v[i] of unit accumulator_row(i), batch row accumulator_column(i).
using Four = Accumulator;

// One sum's accumulators as they are exchanged: every lane's four.
using Quad = Vector<float, 4>;
constexpr int kTileOfSums = kWarp * sizeof(Quad);

VSSN_DEVICE Four zeros() { return {{0, 0, 0, 0}}; }
VSSN_DEVICE Quad quad(const Four& four) { return {{four.v[0], four.v[1], four.v[2], four.v[3]}}; }

// to += from: a Four or a Quad.
template <class From>
VSSN_DEVICE void add(Four& to, const From& from) {
#pragma unroll
    for (int i = 0; i < 4; ++i) to.v[i] += from.v[i];
}

// ---- Activations -------------------------------------------------------------------------------------------------

template <Activation act, int n>
VSSN_DEVICE void activate_all(Four (&x)[n]) {
#pragma unroll
    for (int j = 0; j < n; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) x[j].v[i] = activate<act, Math>(x[j].v[i]);
}

template <int n>
VSSN_DEVICE void activate_by(Activation act, Four (&x)[n]) {
    switch (act) {
        case Activation::tanh:
            return activate_all<Activation::tanh>(x);
        case Activation::relu:
            return activate_all<Activation::relu>(x);
        case Activation::leaky_relu:
            return activate_all<Activation::leaky_relu>(x);
        default:
            return activate_all<Activation::silu>(x);
    }
}

template <Activation act, class Loaded, int n>
VSSN_DEVICE void multiply_slopes(Four (&x)[n], const Loaded (&kept)[n]) {
#pragma unroll
    for (int j = 0; j < n; ++j) {
        const Four wide = kept[j].wide();
#pragma unroll
        for (int i = 0; i < 4; ++i) x[j].v[i] *= activation_slope<act, Math>(wide.v[i]);
    }
}

template <class Loaded, int n>
VSSN_DEVICE void multiply_slopes_by(Activation act, Four (&x)[n], const Loaded (&kept)[n]) {
    switch (act) {
        case Activation::tanh:
            return multiply_slopes<Activation::tanh>(x, kept);
        case Activation::relu:
            return multiply_slopes<Activation::relu>(x, kept);
        case Activation::leaky_relu:
            return multiply_slopes<Activation::leaky_relu>(x, kept);
        default:
            return multiply_slopes<Activation::silu>(x, kept);
    }
}

// Beyond `units` the next weights are 0, and 0 times what stands there must be 0: not inf, not NaN. The tiles of one
// network are `first` and those behind it, then come the other network's.
template <int tiles, int n>
VSSN_DEVICE void zero_beyond(Four (&x)[n], int first, int units) {
#pragma unroll
    for (int j = 0; j < n; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if ((first + j % tiles) * kUnits + accumulator_row(i) >= units) x[j].v[i] = 0;
}

// ---- Buffers in shared memory ------------------------------------------------------------------------------------

// A tile's four into a buffer of [8][stride], from column `column` on.
template <class P>
VSSN_DEVICE void put(typename P::Stored* buffer, int stride, int column, const Four& four) {
#pragma unroll
    for (int j = 0; j < 2; ++j)
        operands<P>(four.v[j], four.v[2 + j])
            .store(buffer + accumulator_column(j) * stride + column + accumulator_row(0));
}

}  // namespace vssn::posterior

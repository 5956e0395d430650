// What a lane of the posterior's kernels holds of a tile: its part of a product's sums, the activations on it, and its
// way into the buffers in shared memory.
#pragma once

#include <type_traits>

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

// The same of one of the two batch rows: of its two units.
struct Two {
    float v[2];
};
template <int rows>
using OfRows = std::conditional_t<rows == 2, Four, Two>;

VSSN_DEVICE Four zeros() { return {{0, 0, 0, 0}}; }
VSSN_DEVICE Quad quad(const Four& four) { return {{four.v[0], four.v[1], four.v[2], four.v[3]}}; }

// to += from: a Four or a Quad.
template <class From>
VSSN_DEVICE void add(Four& to, const From& from) {
#pragma unroll
    for (int i = 0; i < 4; ++i) to.v[i] += from.v[i];
}

// ---- Functions of the latents ------------------------------------------------------------------------------------

// softplus and expm1 without the branches and special cases of the general functions: polynomials, to about 2 units in
// the last place.
struct LatentMath : Math {
    // max(x, 0) + log1p(exp(-|x|)): log1p(t) / t on [0, 1]. NaN stays.
    static VSSN_DEVICE float softplus(float x) {
        const float t = Math::exp(x > 0 ? -x : x);
        float p = -0.00317605701f;
        p = p * t + 0.0195425265f;
        p = p * t + -0.0563736111f;
        p = p * t + 0.105436236f;
        p = p * t + -0.152696669f;
        p = p * t + 0.196632743f;
        p = p * t + -0.249516159f;
        p = p * t + 0.333297104f;
        p = p * t + -0.499998927f;
        p = p * t + 1.0f;
        return p * t + (x < 0 ? 0.0f : x);
    }

    // By its series where exp(x) - 1 would cancel.
    static VSSN_DEVICE float expm1(float x) {
        float p = 1.0f / 40320;
        p = p * x + 1.0f / 5040;
        p = p * x + 1.0f / 720;
        p = p * x + 1.0f / 120;
        p = p * x + 1.0f / 24;
        p = p * x + 1.0f / 6;
        p = p * x + 0.5f;
        p = p * x + 1.0f;
        const float magnitude = x > 0 ? x : -x;
        return magnitude < 0.5f ? p * x : Math::exp(x) - 1.0f;
    }
};

// ---- Activations -------------------------------------------------------------------------------------------------

template <class M, Activation act, int n>
VSSN_DEVICE void activate_all(Four (&x)[n]) {
#pragma unroll
    for (int j = 0; j < n; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) x[j].v[i] = activate<act, M>(x[j].v[i]);
}

// `also` is called before and behind, where the activation is known at compile time.
template <class M, Activation act, int n, class Also>
VSSN_DEVICE void activate_all(Four (&x)[n], const Also& also) {
    also(act, false);
    activate_all<M, act>(x);
    also(act, true);
}

// Branches, in the order of what is asked for: a table of addresses would be read in every step.
template <class M, int n, class Also>
VSSN_DEVICE void activate_by(Activation act, Four (&x)[n], const Also& also) {
    if (act == Activation::tanh)
        activate_all<M, Activation::tanh>(x, also);
    else if (act == Activation::silu)
        activate_all<M, Activation::silu>(x, also);
    else if (act == Activation::relu)
        activate_all<M, Activation::relu>(x, also);
    else
        activate_all<M, Activation::leaky_relu>(x, also);
}

template <Activation act, class Loaded, int n>
VSSN_DEVICE void multiply_slopes(Four (&x)[n], const Loaded* kept) {
#pragma unroll
    for (int j = 0; j < n; ++j) {
        const Four wide = kept[j].wide();
#pragma unroll
        for (int i = 0; i < 4; ++i) x[j].v[i] *= activation_slope<act, Math>(wide.v[i]);
    }
}

template <class Loaded, int n>
VSSN_DEVICE void multiply_slopes_by(Activation act, Four (&x)[n], const Loaded* kept) {
    if (act == Activation::tanh)
        multiply_slopes<Activation::tanh>(x, kept);
    else if (act == Activation::silu)
        multiply_slopes<Activation::silu>(x, kept);
    else if (act == Activation::relu)
        multiply_slopes<Activation::relu>(x, kept);
    else
        multiply_slopes<Activation::leaky_relu>(x, kept);
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

// The same, where the lane's place for its first row is known: of each row the first `count` units. Both where `paired`
// and count > 0.
template <class P, bool paired, int stride, int rows>
VSSN_DEVICE void put_at(typename P::Stored* place, const OfRows<rows>& values, int count) {
    if (count <= 0) return;
#pragma unroll
    for (int j = 0; j < rows; ++j)
        operands<P>(values.v[j], paired || count > 1 ? values.v[rows + j] : 0.0f).store(place + j * stride);
}

}  // namespace vssn::posterior

// The activation that a run-time value names, on vectors.
#pragma once

#include "../common/cell.h"
#include "math.h"

namespace vssn::VSSN_ISA {

template <class T>
VSSN_INLINE Vec<T> activate_by(Activation act, Vec<T> x) {
    using Math = VectorMath<T>;
    switch (act) {
        case Activation::tanh:
            return activate<Activation::tanh, Math>(x);
        case Activation::relu:
            return activate<Activation::relu, Math>(x);
        case Activation::leaky_relu:
            return activate<Activation::leaky_relu, Math>(x);
        case Activation::elu:
            return activate<Activation::elu, Math>(x);
        case Activation::identity:
            return activate<Activation::identity, Math>(x);
        default:
            return activate<Activation::silu, Math>(x);
    }
}

template <class T>
VSSN_INLINE Vec<T> slope_by(Activation act, Vec<T> kept) {
    using Math = VectorMath<T>;
    switch (act) {
        case Activation::tanh:
            return activation_slope<Activation::tanh, Math>(kept);
        case Activation::relu:
            return activation_slope<Activation::relu, Math>(kept);
        case Activation::leaky_relu:
            return activation_slope<Activation::leaky_relu, Math>(kept);
        case Activation::elu:
            return activation_slope<Activation::elu, Math>(kept);
        case Activation::identity:
            return activation_slope<Activation::identity, Math>(kept);
        default:
            return activation_slope<Activation::silu, Math>(kept);
    }
}

}  // namespace vssn::VSSN_ISA

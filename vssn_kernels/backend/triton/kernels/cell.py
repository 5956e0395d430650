"""Scalar formulas, products and barriers that the kernels share.

Only exp and log are called, so that the same source runs in Triton's interpreter and on every GPU. A GPU's exp is
2^(x log2 e) by its approximation, relatively within 2^-22 + |x| 2^-23. Beside that error: expm1 and sigmoid within
3 ulp, tanh 4, softplus 5, exp_excess 6 (`tests/kernels/triton_interpreted.py`).

What has no annotation here is a Triton value; everything is float32 unless it says otherwise.
"""

from __future__ import annotations

import triton
import triton.language as tl

LEAKY_SLOPE = tl.constexpr(1 / 3)


@triton.jit
def exp_excess(x):
    """exp(x) - 1 - x, to full precision near 0: there x^2 times the sum of x^k / (k + 2)!, k <= 10."""
    near = tl.minimum(tl.maximum(x, -1.0), 1.0)
    series = 2.0876757e-9
    series = series * near + 2.5052108e-8
    series = series * near + 2.7557319e-7
    series = series * near + 2.7557319e-6
    series = series * near + 2.4801587e-5
    series = series * near + 1.9841270e-4
    series = series * near + 1.3888889e-3
    series = series * near + 8.3333333e-3
    series = series * near + 4.1666667e-2
    series = series * near + 1.6666667e-1
    series = series * near + 0.5
    return tl.where(tl.abs(x) <= 1, series * x * x, tl.exp(x) - 1 - x)


@triton.jit
def expm1(x):
    return tl.where(tl.abs(x) <= 1, x + exp_excess(x), tl.exp(x) - 1)


@triton.jit
def sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def tanh(x):
    decay = expm1(-2 * tl.abs(x))  # in (-1, 0]: nothing overflows
    size = -decay / (2 + decay)
    return tl.where(x < 0, -size, size)


@triton.jit
def softplus(x):
    """log(1 + exp(x)). The quotient undoes the rounding of 1 + small."""
    small = tl.exp(-tl.abs(x))
    sum_ = 1 + small
    log_sum = tl.where(sum_ == 1, small, tl.log(sum_) * (small / tl.where(sum_ == 1, 1.0, sum_ - 1)))
    return tl.where(x > 0, x, 0.0) + log_sum


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """act(x). NaN stays NaN."""
    if ACTIVATION == "tanh":
        return tanh(x)
    elif ACTIVATION == "relu":
        return tl.where(x < 0, 0.0, x)
    elif ACTIVATION == "leaky_relu":
        return tl.where(x < 0, x * LEAKY_SLOPE, x)
    elif ACTIVATION == "elu":
        return tl.where(x < 0, expm1(x), x)
    elif ACTIVATION == "identity":
        return x
    else:
        return x * sigmoid(x)


@triton.jit
def activation_slope(kept, ACTIVATION: tl.constexpr):
    """d act(x) / dx from what forward kept: x for silu, else act(x). At 0 the slope of the left side."""
    if ACTIVATION == "tanh":
        return 1 - kept * kept
    elif ACTIVATION == "relu":
        return tl.where(kept > 0, 1.0, 0.0)
    elif ACTIVATION == "leaky_relu":
        return tl.where(kept > 0, 1.0, LEAKY_SLOPE)
    elif ACTIVATION == "elu":
        return tl.where(kept > 0, 1.0, kept + 1)
    elif ACTIVATION == "identity":
        return tl.full(kept.shape, 1.0, tl.float32)
    else:
        part = sigmoid(kept)
        return part + kept * part * (1 - part)


@triton.jit
def within(value, mask):
    """Beyond a layer's width the next weights are 0, and 0 times what stands there must be 0: not inf, not NaN."""
    return tl.where(mask, value, 0.0)


@triton.jit
def narrow(value, dtype: tl.constexpr, EMULATED: tl.constexpr):
    """A float32 value in `dtype`, to nearest even.

    EMULATED: bfloat16 in the interpreter, which cuts bits off and multiplies bfloat16 as if it were an integer: there
    the rounding is done by hand, and `product` widens what it rounded.
    """
    if EMULATED and dtype == tl.bfloat16:
        bits = value.to(tl.int32, bitcast=True)
        rounded = ((bits + 32767 + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
        value = tl.where(value == value, rounded, value)
    return value.to(dtype)


@triton.jit
def put(base, offsets, value, mask, EMULATED: tl.constexpr):
    """Stores a float32 tile in the dtype of `base`; nothing where that is None."""
    if base is not None:
        tl.store(base + offsets, narrow(value, base.dtype.element_ty, EMULATED), mask=mask)


@triton.jit
def product(left, right, total, PRECISION: tl.constexpr, EMULATED: tl.constexpr):
    """total + left right, left [M, K] rounded to the dtype of right [K, N], sums in float32."""
    left = narrow(left.to(tl.float32), right.dtype, EMULATED)
    if EMULATED:
        left = left.to(tl.float32)
        right = right.to(tl.float32)
    return tl.dot(left, right, total, input_precision=PRECISION)


@triton.jit
def barrier(counter, target, SYNC: tl.constexpr):
    """Makes what every program of a group has written visible to all of them.

    SYNC "block": the group is one program. "grid": its programs, all resident (a cooperative launch sees to it), have
    added to `counter` until it reaches `target`. "launch": the end of the launch is the barrier.
    """
    if SYNC == "block":
        tl.debug_barrier()
    elif SYNC == "grid":
        tl.debug_barrier()
        tl.atomic_add(counter, 1, sem="release", scope="gpu")
        while tl.atomic_add(counter, 0, sem="acquire", scope="gpu") < target:
            pass
        tl.debug_barrier()


@triton.jit
def row_lengths(lengths, rows, inside, steps):
    """Lengths of the rows within [0, T], int32; 0 outside the batch. None: T for every row."""
    if lengths is None:
        return tl.where(inside, steps, 0)
    else:
        return tl.minimum(tl.load(lengths + rows, mask=inside, other=0), steps).to(tl.int32)


@triton.jit
def has_step(time, length):
    """Whether each row has a step at `time`, which may lie outside [0, T)."""
    return tl.minimum(time, length - 1 - time) >= 0


@triton.jit
def is_reset(resets, time, length, batch, rows):
    """Whether each row is reset before its step at `time`, which may lie outside [0, T); not at padding. `resets`
    [T, B] holds bytes."""
    offsets = tl.cast(time, tl.int64) * batch + rows
    return tl.load(resets + offsets, mask=has_step(time, length), other=0) != 0

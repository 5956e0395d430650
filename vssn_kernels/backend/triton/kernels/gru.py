"""The GRU recurrence, forward and backward; equations and gradients stand in vssn_kernels/README.md.

Each direction has two forms. "resident": one program for ROWS sequences, the weights loaded once, the state in
registers, no barrier but those that Triton puts in (vssn_kernels/README.md counts them); for H that fits one tile.
"tiled": a group of `slices` programs for ROWS sequences, each owning tiles of UNITS hidden units; per step a product
over K in parts of DEPTH, weights from the caches, what the group exchanges through global memory, and one barrier
(cell.barrier).

Step i of a kernel is time t: forward runs over t = i, or t = T - 1 - i with REVERSE; backward the other way round.
Every output is written in full, with 0 at padding; padding is never read. LENGTHS None means T for every row; a length
outside [0, T] counts as the nearer end.

    gates_x  [T, B, 3H] any strides   h0 [B, H] any strides   weight_hh [3H, H] any strides   bias_hh [3H] any stride
    lengths  [B] int64                grad_output [T, B, H], grad_h_n [B, H] any strides, or None: zeros
    output   [T, B, H]                gates [T, B, 4H] r, z, n and W_hn h + b_n, or None: not kept
    grad_gates_x [T, B, 3H]           grad_a [T, B, H] of W_hn h + b_n          all contiguous, allocated by the caller
"""

from __future__ import annotations

import triton
import triton.language as tl

from vssn_kernels.backend.triton.kernels.cell import barrier, has_step, product, put, row_lengths, sigmoid, tanh, within
from vssn_kernels.backend.triton.kernels.compilation import kernel
from vssn_kernels.backend.triton.kernels.parts import gate_grads, load_gate_weight, load_three, store_four

# ---- Resident --------------------------------------------------------------------------------------------


@kernel("steps", "batch")
def gru_forward_resident(
    gates_x,
    gates_x_t,
    gates_x_b,
    gates_x_u,
    h0,
    h0_b,
    h0_u,
    weight,
    weight_r,
    weight_c,
    bias,
    bias_u,
    lengths,
    output,
    h_n,
    gates,
    steps,
    batch,
    H: tl.constexpr,
    REVERSE: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATED: tl.constexpr,
):
    """output, h_n and gates of ROWS sequences, UNITS >= H."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    units = tl.arange(0, UNITS)
    inside = rows < batch
    unit_mask = (units < H)[None, :]
    tile = inside[:, None] & unit_mask
    length = row_lengths(lengths, rows, inside, steps)
    stored = rows[:, None] * H + units[None, :]
    gate_step = tl.cast(gates_x_u, tl.int64) * H

    w_r = load_gate_weight(weight, 0, units[None, :], units[:, None], weight_r, weight_c, H)  # [K, N]
    w_z = load_gate_weight(weight, 1, units[None, :], units[:, None], weight_r, weight_c, H)
    w_n = load_gate_weight(weight, 2, units[None, :], units[:, None], weight_r, weight_c, H)
    biases = bias + units.to(tl.int64)[None, :] * bias_u
    b_r, b_z, b_n = load_three(biases, tl.cast(bias_u, tl.int64) * H, unit_mask)
    h = tl.load(h0 + rows[:, None] * h0_b + units.to(tl.int64)[None, :] * h0_u, mask=tile, other=0).to(tl.float32)

    time = tl.cast(steps - 1 if REVERSE else 0, tl.int32)
    x = gates_x + rows[:, None] * gates_x_b + units.to(tl.int64)[None, :] * gates_x_u
    x_r, x_z, x_n = load_three(
        x + tl.cast(time, tl.int64) * gates_x_t, gate_step, unit_mask & has_step(time, length)[:, None]
    )
    for i in range(steps):
        time = steps - 1 - i if REVERSE else i
        valid = (time < length)[:, None]
        # The next step's inputs are on their way while this step computes.
        later = time - 1 if REVERSE else time + 1
        next_r, next_z, next_n = load_three(
            x + tl.cast(later, tl.int64) * gates_x_t, gate_step, unit_mask & has_step(later, length)[:, None]
        )
        r = sigmoid(product(h, w_r, x_r + b_r, PRECISION, EMULATED))
        z = sigmoid(product(h, w_z, x_z + b_z, PRECISION, EMULATED))
        a = product(h, w_n, tl.zeros_like(h) + b_n, PRECISION, EMULATED)
        n = tanh(x_n + r * a)
        h_next = within(n + z * (h - n), unit_mask)
        h = tl.where(valid, h_next, h)
        here = tl.cast(time, tl.int64) * batch
        out = tl.where(valid, h_next, 0.0)
        put(output, here * H + stored, out, tile, EMULATED)
        if gates is not None:
            offsets = 4 * here * H + rows[:, None] * (4 * H) + units[None, :]
            zero = tl.zeros_like(h)
            store_four(
                gates, offsets, H, tile,
                tl.where(valid, r, zero), tl.where(valid, z, zero), tl.where(valid, n, zero), tl.where(valid, a, zero),
                EMULATED,
            )  # fmt: skip
        x_r, x_z, x_n = next_r, next_z, next_n
    put(h_n, stored, h, tile, EMULATED)


@triton.jit
def _load_step(
    grad_output, output, gates, time, length, rows, units, unit_mask, batch, grad_t, grad_b, grad_u,
    H: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """What backward needs of one step: grad_output, r, z, n, a and the state before it (0 at a row's first step)."""
    mask = unit_mask & has_step(time, length)[:, None]
    step = tl.cast(time, tl.int64)
    kept = gates + (step * batch + rows[:, None]) * (4 * H) + units[None, :]
    r, z, n = load_three(kept, H, mask)
    a = tl.load(kept + 3 * H, mask=mask, other=0).to(tl.float32)
    before = time + 1 if REVERSE else time - 1
    known = mask & has_step(before, length)[:, None]
    previous = output + (tl.cast(before, tl.int64) * batch + rows[:, None]) * H + units[None, :]
    h = tl.load(previous, mask=known, other=0).to(tl.float32)
    if grad_output is None:
        grad = tl.zeros_like(h)
    else:
        address = grad_output + step * grad_t + rows[:, None] * grad_b + units.to(tl.int64)[None, :] * grad_u
        grad = tl.load(address, mask=mask, other=0).to(tl.float32)
    return grad, r, z, n, a, h


@triton.jit
def _store_grads(
    grad_gates_x, grad_a, time, rows, units, tile, batch, grad_r, grad_z, grad_n, grad_h,
    H: tl.constexpr, EMULATED: tl.constexpr,
):  # fmt: skip
    row = tl.cast(time, tl.int64) * batch + rows[:, None]
    offsets = row * (3 * H) + units[None, :]
    put(grad_gates_x, offsets, grad_r, tile, EMULATED)
    put(grad_gates_x, offsets + H, grad_z, tile, EMULATED)
    put(grad_gates_x, offsets + 2 * H, grad_n, tile, EMULATED)
    put(grad_a, row * H + units[None, :], grad_h, tile, EMULATED)


@kernel("steps", "batch")
def gru_backward_resident(
    grad_output,
    grad_output_t,
    grad_output_b,
    grad_output_u,
    grad_h_n,
    grad_h_n_b,
    grad_h_n_u,
    output,
    gates,
    h0,
    h0_b,
    h0_u,
    weight,
    weight_r,
    weight_c,
    lengths,
    grad_gates_x,
    grad_a,
    grad_h0,
    steps,
    batch,
    H: tl.constexpr,
    REVERSE: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATED: tl.constexpr,
):
    """grad_gates_x, grad_a and grad_h0 of ROWS sequences, UNITS >= H."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    units = tl.arange(0, UNITS)
    inside = rows < batch
    unit_mask = (units < H)[None, :]
    tile = inside[:, None] & unit_mask
    length = row_lengths(lengths, rows, inside, steps)
    wide = units.to(tl.int64)[None, :]

    w_r = load_gate_weight(weight, 0, units[:, None], units[None, :], weight_r, weight_c, H)  # [K, N]
    w_z = load_gate_weight(weight, 1, units[:, None], units[None, :], weight_r, weight_c, H)
    w_n = load_gate_weight(weight, 2, units[:, None], units[None, :], weight_r, weight_c, H)
    first = tl.load(h0 + rows[:, None] * h0_b + wide * h0_u, mask=tile, other=0).to(tl.float32)
    if grad_h_n is None:
        dh = tl.zeros_like(first)
    else:
        dh = tl.load(grad_h_n + rows[:, None] * grad_h_n_b + wide * grad_h_n_u, mask=tile, other=0).to(tl.float32)

    time = tl.cast(0 if REVERSE else steps - 1, tl.int32)
    grad, r, z, n, a, h = _load_step(
        grad_output, output, gates, time, length, rows, units, unit_mask, batch,
        grad_output_t, grad_output_b, grad_output_u, H, REVERSE,
    )  # fmt: skip
    for i in range(steps):
        time = i if REVERSE else steps - 1 - i
        later = time + 1 if REVERSE else time - 1
        next_grad, next_r, next_z, next_n, next_a, next_h = _load_step(
            grad_output, output, gates, later, length, rows, units, unit_mask, batch,
            grad_output_t, grad_output_b, grad_output_u, H, REVERSE,
        )  # fmt: skip
        valid = (time < length)[:, None]
        starts = (time == (length - 1 if REVERSE else tl.zeros_like(length)))[:, None] & valid
        h = tl.where(starts, first, h)
        here = tl.where(valid, dh + grad, 0.0)
        grad_r, grad_z, grad_n, grad_h = gate_grads(here, r, z, n, a, h)
        _store_grads(grad_gates_x, grad_a, time, rows, units, tile, batch, grad_r, grad_z, grad_n, grad_h, H, EMULATED)
        dh = tl.where(valid, here * z, dh)
        dh = product(grad_r, w_r, dh, PRECISION, EMULATED)
        dh = product(grad_z, w_z, dh, PRECISION, EMULATED)
        dh = within(product(grad_h, w_n, dh, PRECISION, EMULATED), unit_mask)
        grad, r, z, n, a, h = next_grad, next_r, next_z, next_n, next_a, next_h
    put(grad_h0, rows[:, None] * H + units[None, :], dh, tile, EMULATED)


# ---- Tiled -----------------------------------------------------------------------------------------------


@kernel("steps", "batch", "first_tile", "slices", "begin", "end")
def gru_forward_tiled(
    gates_x,
    gates_x_t,
    gates_x_b,
    gates_x_u,
    weight,
    weight_r,
    weight_c,
    bias,
    bias_u,
    lengths,
    output,
    gates,
    states,
    counters,
    steps,
    batch,
    first_tile,
    slices,
    begin,
    end,
    H: tl.constexpr,
    REVERSE: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
    SYNC: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATED: tl.constexpr,
):
    """Steps begin..end - 1 of the rows of tiles first_tile.. : output, gates, and states [2, B, H] float32, of which
    step i reads i % 2 and writes the other; the caller puts h0 into states[0] and finds h_n in states[T % 2].

    counters [tiles] int32, zeros: the barriers' counts.
    """
    group = first_tile + tl.program_id(0) // slices
    slice_ = tl.program_id(0) % slices
    rows = group.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = rows < batch
    length = row_lengths(lengths, rows, inside, steps)
    state_size = tl.cast(batch, tl.int64) * H
    gate_step = tl.cast(gates_x_u, tl.int64) * H
    for i in range(begin, end):
        time = steps - 1 - i if REVERSE else i
        valid = (time < length)[:, None]
        here = tl.cast(time, tl.int64)
        read = states + (i % 2) * state_size
        write = states + (1 - i % 2) * state_size
        for first in range(slice_ * UNITS, H, slices * UNITS):
            units = first + tl.arange(0, UNITS)
            unit_mask = (units < H)[None, :]
            tile = inside[:, None] & unit_mask
            x = gates_x + here * gates_x_t + rows[:, None] * gates_x_b + units.to(tl.int64)[None, :] * gates_x_u
            x_r, x_z, x_n = load_three(x, gate_step, unit_mask & valid)
            biases = bias + units.to(tl.int64)[None, :] * bias_u
            b_r, b_z, b_n = load_three(biases, tl.cast(bias_u, tl.int64) * H, unit_mask)
            sum_r = x_r + b_r
            sum_z = x_z + b_z
            a = tl.zeros_like(x_n) + b_n
            for part in range(0, H, DEPTH):
                inner = part + tl.arange(0, DEPTH)
                before = tl.load(
                    read + rows[:, None] * H + inner[None, :],
                    mask=inside[:, None] & (inner < H)[None, :],
                    other=0,
                    cache_modifier=".cg",
                )
                w_r = load_gate_weight(weight, 0, units[None, :], inner[:, None], weight_r, weight_c, H)  # [K, N]
                sum_r = product(before, w_r, sum_r, PRECISION, EMULATED)
                w_z = load_gate_weight(weight, 1, units[None, :], inner[:, None], weight_r, weight_c, H)
                sum_z = product(before, w_z, sum_z, PRECISION, EMULATED)
                w_n = load_gate_weight(weight, 2, units[None, :], inner[:, None], weight_r, weight_c, H)
                a = product(before, w_n, a, PRECISION, EMULATED)
            stored = rows[:, None] * H + units[None, :]
            h = tl.load(read + stored, mask=tile, other=0, cache_modifier=".cg")
            r = sigmoid(sum_r)
            z = sigmoid(sum_z)
            n = tanh(x_n + r * a)
            h_next = n + z * (h - n)
            zero = tl.zeros_like(h)
            tl.store(write + stored, tl.where(valid, h_next, h), mask=tile)
            out = tl.where(valid, h_next, zero)
            put(output, here * state_size + stored, out, tile, EMULATED)
            if gates is not None:
                offsets = 4 * here * state_size + rows[:, None] * (4 * H) + units[None, :]
                r = tl.where(valid, r, zero)
                z = tl.where(valid, z, zero)
                store_four(gates, offsets, H, tile, r, z, tl.where(valid, n, zero), tl.where(valid, a, zero), EMULATED)
        barrier(counters + group, (i + 1 - begin) * slices, SYNC)


@kernel("steps", "batch", "first_tile", "slices", "begin", "end")
def gru_backward_tiled(
    grad_output,
    grad_output_t,
    grad_output_b,
    grad_output_u,
    output,
    gates,
    h0,
    h0_b,
    h0_u,
    weight,
    weight_r,
    weight_c,
    lengths,
    grad_gates_x,
    grad_a,
    carry,
    counters,
    steps,
    batch,
    first_tile,
    slices,
    begin,
    end,
    H: tl.constexpr,
    REVERSE: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
    SYNC: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATED: tl.constexpr,
):
    """Rounds begin..end - 1 of the rows of tiles first_tile.. : grad_gates_x and grad_a.

    Round i adds to the state's gradient what step i - 1 sends through the weights (its grads are in global memory, for
    all programs of the group), then takes step i; round T only adds. It reads carry [2, B, H] float32 at i % 2 and
    writes the other; the caller puts grad_h_n, or zeros, into carry[0] and finds grad_h0 in carry[(T + 1) % 2].
    """
    group = first_tile + tl.program_id(0) // slices
    slice_ = tl.program_id(0) % slices
    rows = group.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = rows < batch
    length = row_lengths(lengths, rows, inside, steps)
    carry_size = tl.cast(batch, tl.int64) * H
    for i in range(begin, end):
        read = carry + (i % 2) * carry_size
        write = carry + (1 - i % 2) * carry_size
        time = i if REVERSE else steps - 1 - i
        done = time - 1 if REVERSE else time + 1
        sent = tl.cast(done, tl.int64) * batch + rows[:, None]
        for first in range(slice_ * UNITS, H, slices * UNITS):
            units = first + tl.arange(0, UNITS)
            unit_mask = (units < H)[None, :]
            tile = inside[:, None] & unit_mask
            stored = rows[:, None] * H + units[None, :]
            dh = tl.load(read + stored, mask=tile, other=0)
            # Round 0 has nothing to add: no part.
            for part in range(0, tl.where(i > 0, H, 0), DEPTH):
                inner = part + tl.arange(0, DEPTH)
                known = inside[:, None] & (inner < H)[None, :]
                grads = grad_gates_x + sent * (3 * H) + inner[None, :]
                grad_r = tl.load(grads, mask=known, other=0, cache_modifier=".cg")
                w_r = load_gate_weight(weight, 0, inner[:, None], units[None, :], weight_r, weight_c, H)  # [K, N]
                dh = product(grad_r, w_r, dh, PRECISION, EMULATED)
                grad_z = tl.load(grads + H, mask=known, other=0, cache_modifier=".cg")
                w_z = load_gate_weight(weight, 1, inner[:, None], units[None, :], weight_r, weight_c, H)
                dh = product(grad_z, w_z, dh, PRECISION, EMULATED)
                grad_h = tl.load(grad_a + sent * H + inner[None, :], mask=known, other=0, cache_modifier=".cg")
                w_n = load_gate_weight(weight, 2, inner[:, None], units[None, :], weight_r, weight_c, H)
                dh = product(grad_h, w_n, dh, PRECISION, EMULATED)
            if i < steps:
                grad, r, z, n, a, h = _load_step(
                    grad_output, output, gates, time, length, rows, units, unit_mask, batch,
                    grad_output_t, grad_output_b, grad_output_u, H, REVERSE,
                )  # fmt: skip
                valid = (time < length)[:, None]
                starts = (time == (length - 1 if REVERSE else tl.zeros_like(length)))[:, None] & valid
                begins = h0 + rows[:, None] * h0_b + units.to(tl.int64)[None, :] * h0_u
                h += tl.load(begins, mask=starts & unit_mask, other=0).to(tl.float32)
                here = tl.where(valid, dh + grad, 0.0)
                grad_r, grad_z, grad_n, grad_h = gate_grads(here, r, z, n, a, h)
                _store_grads(
                    grad_gates_x, grad_a, time, rows, units, tile, batch, grad_r, grad_z, grad_n, grad_h, H, EMULATED
                )
                dh = tl.where(valid, here * z, dh)
            tl.store(write + stored, dh, mask=tile)
        barrier(counters + group, (i + 1 - begin) * slices, SYNC)

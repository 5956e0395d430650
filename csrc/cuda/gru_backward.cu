// The gradient of the GRU recurrence; one launch per sequence, from the last step taken to the first.
//
//   grad_z = dh (h - n) z (1 - z),   grad_n = dh (1 - z) (1 - n^2),   grad_r = grad_n a r (1 - r),   grad_a = grad_n r
//   dh    <- dh z + [grad_r, grad_z, grad_a] W_hh + grad_output
//
// reads   grad_output, grad_h_n, output, gates (as forward wrote them), h0, weight, lengths
// writes  grad_gates_x [T, B, 3H], grad_a [T, B, H] (the gradient of the n part of W_h h, where grad_gates_x has that
// of
//         x_n) and grad_h0; zeros at padding. The weight's gradient is a GEMM of these for the caller.
//
// A team of blocks runs a batch tile through all its steps. A block computes the gates' gradients of its own hidden
// units, and multiplies them with the weights' rows of these units: its part of the gradient of every unit of the state
// before. It sends each part to the block that owns the unit, which adds what came from all blocks in a fixed order. So
// a step sends one float for each unit, row and block, and the gates' gradients never leave their block. Where batch
// tiles take turns (gru_common.cuh), a turn ends with the wait for what the next one adds up.
#include "../common/cell.h"
#include "gru_common.cuh"

namespace vssn::gpu {

namespace {

struct BackwardParams {
    GruBackward k;
    GruPlan plan;
};

// Two units of a row of the batch: what their gradients are computed from.
template <class S, bool paired>
struct Inputs {
    Packed<S, 8> gates;
    Ahead<S, paired> before;  // the state that the step started from
    Ahead<S, paired> grad_output;
};

// What of them does not depend on the gradient of the state. Where nothing is to be computed the slopes are 0.
struct Prepared {
    GruSlopes<float> slopes[2];
    float z[2], grad_output[2];
    bool active[2];
};

// What is written of them.
template <class S>
struct Written {
    Packed<S, 2> r, z, n, a;
};

// paired: H is even and every row of the sequences starts at a pair's alignment. known: as in gru_common.cuh.
template <class C, int kDepth, int kRowTiles, bool paired, Exchange known>
VSSN_BOUNDED_KERNEL(kGruThreads, 1)
gru_backward_kernel(BackwardParams params) {
    using P = Product<C>;
    using S = typename P::Stored;
    constexpr int kTileRows = kRows * kRowTiles;
    constexpr int kTiles = kBackwardTiles;
    constexpr bool kTakesTurns = known == Exchange::grid;
    // Whether there are registers for where a step's parts go.
    constexpr bool kHolds = paired && kRowTiles == 1 && P::kTensorCores;
    // Of a thread, at most: the plan, and the choice of the kernel, see to it.
    constexpr int kItems = kHolds ? 1 : 2 * kRowTiles;
    // And for its slopes, which are told while those before it are on their way, and for what is written of it until
    // its parts are sent. In a block alone nothing is on its way, and float32's loads would hold up the sums' reads.
    constexpr bool kEarly = kHolds && !kTakesTurns && (sizeof(S) == 2 || known != Exchange::block);
    // k tiles on their way: single elements take registers, and so do turns
    [[maybe_unused]] constexpr int kAtOnce =
        (paired && sizeof(S) == 2 && kRowTiles == 1) || (kRowTiles == 1 && !kTakesTurns && known != Exchange::any) ? 2
                                                                                                                   : 1;
    const GruBackward& k = params.k;
    const GruPlan& plan = params.plan;
    const int turns = kTakesTurns ? plan.tiles_at_once : 1;
    // Pairs have kernels of their own for a block and for a cluster (gru_common.cuh).
    const Exchange exchange = known != Exchange::any ? known : paired ? Exchange::grid : plan.exchange;
    const bool float_state = k.state_storage == Storage::float32;
    const int H = static_cast<int>(k.H), T = static_cast<int>(k.steps);
    const int units = plan.unit_tiles * kUnits, all_units = plan.blocks * units;  // of the block, of the team
    const int first_own = block_x() * units;
    const int sources = plan.blocks * plan.slices;
    const bool grid = exchange == Exchange::grid;

    unsigned char* shared = dynamic_shared();
    int* lengths = reinterpret_cast<int*>(shared + kMailboxBytes);  // [turns][rows]
    // [2][rows][stride]: r, z, a of the own units. Two, in turn: what this block waits for tells it that all blocks
    // have sent, not that all its own warps have: some of these send to other blocks alone, and may still read.
    S* grads = reinterpret_cast<S*>(shared + plan.operand);
    const int grads_size = kTileRows * plan.stride;
    float* carry = reinterpret_cast<float*>(shared + plan.carry);  // [turns][rows][units]
    float* first_state = carry + turns * kTileRows * units;        // [turns][rows][units] of h0
    const int sum_stride = grid ? units : units + 4;               // 16 modulo 128 bytes between shared rows
    const int sums_size = sources * kTileRows * sum_stride;        // what a block receives in a step
    // [2][sources][rows][sum_stride], in the grid [turns][2][blocks][sources][rows][sum_stride]
    float* sums = reinterpret_cast<float*>(shared + plan.partials);
    float* global_sums =
        static_cast<float*>(k.workspace) + static_cast<int64_t>(block_y()) * turns * 2 * plan.blocks * sums_size;

    Team team{exchange,
              plan.blocks,
              static_cast<unsigned*>(k.counters) + block_y() * turns,
              reinterpret_cast<Mailbox*>(shared),
              sources * kTileRows * units * static_cast<int>(sizeof(float)),
              0};

    const int group = warp_id() / plan.slices, slice = warp_id() % plan.slices;
    const int first_depth = slice * plan.depth;
    const int source = block_x() * plan.slices + slice;
    const int row_tiles = all_units / kUnits;  // tiles of 16 units of the state before
    const auto row_tile = [&](int round, int i) { return (round * plan.groups + group) * kTiles + i; };

    // ---- Weights, once: row `unit` of the state before, k = a gate of an own unit ----------------------------------
    const auto weights = [&](int round, int i, int tile) {
        const int deep = (first_depth + tile) * P::kDepth, gate = deep / units, own = first_own + deep % units;
        const int unit = row_tile(round, i) * kUnits;
        return P::load_rows(
            static_cast<const S*>(k.weight.data) + (static_cast<int64_t>(gate) * H + own) * k.weight.stride + unit, 1,
            k.weight.stride, H - unit, gate < 3 && tile < plan.depth ? H - own : 0);
    };
    typename P::A resident[kDepth][kTiles];
#pragma unroll
    for (int tile = 0; tile < kDepth; ++tile) {
#pragma unroll
        for (int i = 0; i < kTiles; ++i) resident[tile][i] = weights(0, i, tile);
        sync_warp();  // holds the compiler back from more loads at once than there are registers
    }
    unsigned char* shared_tiles = shared + plan.tiles + warp_id() * plan.shared_tiles * P::kTileBytes;
    unsigned char* streamed_tiles =
        static_cast<unsigned char*>(k.workspace) + plan.exchange_bytes +
        static_cast<int64_t>(block_x() * warps() + warp_id()) * plan.streamed_tiles * P::kTileBytes;
#pragma unroll 1
    for (int i = 0; i < plan.shared_tiles + plan.streamed_tiles; ++i) {
        const int deep = i / kTiles + kDepth;
        unsigned char* to = i < plan.shared_tiles
                                ? shared_tiles + i * P::kTileBytes
                                : streamed_tiles + static_cast<int64_t>(i - plan.shared_tiles) * P::kTileBytes;
        P::store(weights(deep / plan.depth, i % kTiles, deep % plan.depth), to);
    }
    for (int i = thread_id(); i < 2 * grads_size; i += block_threads()) grads[i] = from_float<S>(0.0f);
    team.start();

    // Where a tile of a round goes: the block that owns its units, and there this lane's place in the sums; none: < 0.
    struct Destination {
        int owner, slot;
    };
    const bool odd = lane_id() / 4 % 2 == 1;
    const auto destination = [&](int round, int i) {
        const int to = row_tile(round, i), owner = to * plan.unit_tiles_inverse >> 16;
        const int unit = (to - owner * plan.unit_tiles) * kUnits + accumulator_row(0) - (odd ? 2 : 0);
        const int slot = (source * kTileRows + accumulator_column(odd ? 1 : 0)) * sum_stride + unit;
        return Destination{to < row_tiles ? owner : 0, to < row_tiles ? slot : -1};
    };
    [[maybe_unused]] Destination first_round[kHolds ? kTiles : 1];
    [[maybe_unused]] Peer first_peers[kHolds ? kTiles : 1];
    [[maybe_unused]] bool all_there = true;
#pragma unroll
    for (int i = 0; kHolds && i < kTiles; ++i) {
        const Destination to = destination(0, i);
        first_round[i] = {held(to.owner), held(to.slot)};
        if (exchange == Exchange::cluster) first_peers[i] = peer(to.owner);
        all_there &= to.slot >= 0;
    }

    // An item: two units of a row. `parts` neighbouring threads share the sources of its sum.
    const int parts = kRowTiles == 1 ? plan.parts : 1;  // with more rows there are no registers left for it
    const int part = thread_id() % parts, own_sources = (sources - part + parts - 1) / parts;
    const int pairs = units / 2, items = kTileRows * pairs;
    int row_of[kItems], unit_of[kItems];  // of a thread's items, in the tile and in the block
    bool summed[kItems], mine[kItems];    // whether there is one, and whether its gates are this thread's
    [[maybe_unused]] bool asks_gates[kItems], asks[kItems];  // for 32 bytes of them, and of the state
    constexpr int kSector = 32 / sizeof(S);
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
        const int item = thread_id() / parts + i * block_threads();
        summed[i] = item < items;
        mine[i] = summed[i] && part == 0;
        row_of[i] = summed[i] ? item / pairs : 0;
        unit_of[i] = item % pairs * 2;
        asks_gates[i] = mine[i] && 4 * unit_of[i] % kSector == 0 && first_own + unit_of[i] < H;
        asks[i] = asks_gates[i] && unit_of[i] % kSector == 0;
    }

    for (int64_t tile = block_y() * turns; tile < plan.batch_tiles; tile += grid_y() * turns) {
        const int64_t first_row = tile * kTileRows;
        const int longest = tile_steps(k, first_row, turns * kTileRows, lengths);
        const auto kept = [](auto value) {
            if constexpr (P::kTensorCores && (kRowTiles == 1 || known == Exchange::any))
                return held(value);
            else
                return value;
        };
        // Steps go against those of the recurrence.
        const int t_step = kept(k.reverse ? 1 : -1);
        int t = k.reverse ? 0 : longest - 1;

        // Of a thread's items: the steps in which there is something to compute, and the one that began with the first
        // state; in turns they are read anew.
        int steps_of_item[kItems], first_of_item[kItems], units_of_item[kItems];
        const auto meet_items = [&](int turn) {
#pragma unroll
            for (int i = 0; i < kItems; ++i) {
                const int b = turn * kTileRows + row_of[i], length = lengths[b], left = H - first_own - unit_of[i];
                units_of_item[i] = kept(mine[i] && first_row + b < k.B ? left : 0);
                steps_of_item[i] = kept(mine[i] ? length : 0);
                first_of_item[i] = kept(!mine[i] ? -1 : k.reverse ? length - 1 : 0);
            }
        };
        meet_items(0);

        Inputs<S, paired> ahead[kItems] = {};
        // Where a thread's items are in [T, B, H] and in grad_gates_x, at the step and turn whose inputs are loaded
        // next, and in grad_output; advanced with the steps. A thread without an item, beyond B or H, reads another's.
        constexpr auto kBytes = static_cast<int64_t>(sizeof(S));
        const int64_t state_step = kept(t_step * k.B * H), out_step = kept(t_step * k.grad_output.step_stride * kBytes);
        const int64_t gate_bytes = kept(H * kBytes);
        const int has_out = kept(static_cast<int>(k.grad_output.data != nullptr));
        int64_t at_item[kItems];
        const S* out_of_item[kItems];
        const auto row_read = [&](int i, int turn) {
            const int64_t row = first_row + turn * kTileRows + row_of[i];
            return row < k.B ? row : 0;
        };
        const auto unit_read = [&](int i) { return first_own + unit_of[i] < H ? first_own + unit_of[i] : 0; };
        const auto place = [&](int i, int step, int turn) {
            return (step * k.B + row_read(i, turn)) * H + unit_read(i);
        };
        const auto meet_inputs = [&](int step, int turn) {
#pragma unroll
            for (int i = 0; i < kItems; ++i) {
                at_item[i] = kept(place(i, step, turn));
                const int64_t behind =
                    step * k.grad_output.step_stride + row_read(i, turn) * k.grad_output.row_stride + unit_read(i);
                out_of_item[i] = kept(advanced(static_cast<const S*>(k.grad_output.data), behind * kBytes));
            }
        };
        meet_inputs(t, 0);
        // Where there are registers for each address, of the item: of what is read for the step whose inputs are loaded
        // next, of what is written of the step that is computed.
        [[maybe_unused]] const int64_t state_bytes = kept(state_step * kBytes);
        [[maybe_unused]] const S* gates_at = kept(advanced(static_cast<const S*>(k.gates), 4 * at_item[0] * kBytes));
        [[maybe_unused]] const S* before_at =
            kept(advanced(static_cast<const S*>(k.output), (at_item[0] + state_step) * kBytes));
        [[maybe_unused]] const S* grad_output_at = out_of_item[0];
        [[maybe_unused]] S* grad_x_at =
            kept(advanced(static_cast<S*>(k.grad_gates_x), (3 * at_item[0] - 2 * (first_own + unit_of[0])) * kBytes));
        [[maybe_unused]] S* grad_a_at = kept(advanced(static_cast<S*>(k.grad_a), at_item[0] * kBytes));
        [[maybe_unused]] const int has_a = kept(static_cast<int>(k.grad_a != nullptr));
        [[maybe_unused]] const auto load_step = [&](int s) {
            const int count = mine[0] ? 2 : 0;
            reload_gates<S, true>(ahead[0].gates, gates_at, 0, count);
            // Before the last step to compute lies the first state for every row that takes part in it.
            ahead[0].before.reload(before_at, s + 1 < longest ? count : 0);
            ahead[0].grad_output.reload(grad_output_at, has_out ? count : 0);
            gates_at = advanced(gates_at, 4 * state_bytes);
            before_at = advanced(before_at, state_bytes);
            grad_output_at = advanced(grad_output_at, out_step);
        };
        [[maybe_unused]] const auto advance_inputs = [&] {
#pragma unroll
            for (int i = 0; i < kItems; ++i) {
                at_item[i] += state_step;
                out_of_item[i] = advanced(out_of_item[i], out_step);
            }
        };

        // At padding they are something: nothing that is made of them there is kept. No branch between the loads, so
        // that none of them waits for the one before. Before the first step there is no state, and none is read.
        const auto load_ahead = [&](int step) {
            const int64_t back = step + t_step < 0 || step + t_step >= T ? 0 : state_step;
#pragma unroll
            for (int i = 0; i < kItems; ++i) {
                const int count = !mine[i] ? 0 : paired ? 2 : units_of_item[i];
                reload_gates<S, paired>(ahead[i].gates, k.gates, at_item[i], count);
                ahead[i].before.reload(static_cast<const S*>(k.output) + (at_item[i] + back), count);
                ahead[i].grad_output.reload(out_of_item[i], has_out ? count : 0);
            }
        };

        // What load_ahead reads so many steps later, as a hint: a thread for each 32 bytes.
        constexpr int kAhead = 4;  // from the next step on, of which the inputs are there, or on their way
        const auto prefetch = [&] {
#pragma unroll
            for (int i = 0; i < kItems; ++i) {
                const int64_t later = at_item[i] + kAhead * state_step;
                if (asks_gates[i]) prefetch_l2(static_cast<const S*>(k.gates) + 4 * later);
                if (!asks[i]) continue;
                prefetch_l2(static_cast<const S*>(k.output) + later);
                if (has_out) prefetch_l2(advanced(out_of_item[i], kAhead * out_step));
            }
        };

        // An item's gradient of the state that stayed here.
        [[maybe_unused]] Vector<float, 2> carried[kEarly ? kItems : 1] = {};
        const auto stayed = [&](int i, int turn) -> Vector<float, 2>& {
            if constexpr (kEarly)
                return carried[i];
            else
                return *reinterpret_cast<Vector<float, 2>*>(carry + (turn * kTileRows + row_of[i]) * units +
                                                            unit_of[i]);
        };

        // The gradient of the state at an item: what stayed, and the sources' parts, added in a fixed order. Called by
        // all lanes of a warp.
        const auto collect = [&](int i, int turn, bool any) {
            Vector<float, 2> sum = {{0, 0}};
            if (any) {
                const int source_size = kTileRows * sum_stride;
                const int slot = part * source_size + row_of[i] * sum_stride + unit_of[i];
                const int64_t distance = int64_t{parts} * source_size;
                const auto add = [&](const auto& load, const float* from) {
                    // On their way together, as registers allow.
                    constexpr int kLoads = kHolds                                      ? 8
                                           : P::kTensorCores && kRowTiles == 1         ? 4
                                           : P::kTensorCores || known == Exchange::any ? 1
                                                                                       : 4;
#pragma unroll 1
                    for (int i = 0; i < own_sources; i += kLoads, from += kLoads * distance) {
                        Vector<float, 2> one[kLoads];
#pragma unroll
                        for (int j = 0; j < kLoads; ++j)
                            one[j] = i + j < own_sources
                                         ? load(reinterpret_cast<const Vector<float, 2>*>(from + j * distance))
                                         : Vector<float, 2>{{0, 0}};
#pragma unroll
                        for (int j = 0; j < kLoads; ++j) {
                            sum.v[0] += one[j].v[0];
                            sum.v[1] += one[j].v[1];
                        }
                    }
                };
                if (grid)
                    add([](const auto* p) { return load_l2(p); },
                        global_sums + (int64_t{2 * turn + team.buffer()} * plan.blocks + block_x()) * sums_size + slot);
                else
                    add([](const auto* p) { return *p; }, sums + team.buffer() * sums_size + slot);
                for (int mask = 1; mask < parts; mask *= 2) {
                    sum.v[0] += shuffle_xor(sum.v[0], mask);
                    sum.v[1] += shuffle_xor(sum.v[1], mask);
                }
            }
            const Vector<float, 2> own = stayed(i, turn);
            return Vector<float, 2>{{own.v[0] + sum.v[0], own.v[1] + sum.v[1]}};
        };

        // Of the item whose input was loaded, for step t.
        const auto prepare = [&](int i, int t, int turn) {
            const Inputs<S, paired>& in = ahead[i];
            Vector<float, 2> before = {{in.before[0], in.before[1]}};
            if (t == first_of_item[i])
                before = *reinterpret_cast<const Vector<float, 2>*>(
                    first_state + (turn * kTileRows + row_of[i]) * units + unit_of[i]);
            Prepared result;
#pragma unroll
            for (int n = 0; n < 2; ++n) {
                const GruGates<float> g = {in.gates[4 * n], in.gates[4 * n + 1], in.gates[4 * n + 2],
                                           in.gates[4 * n + 3]};
                const GruSlopes<float> slopes = gru_slopes(g, before.v[n]);
                result.active[n] = t < steps_of_item[i] && (paired || n < units_of_item[i]);
                result.slopes[n] = result.active[n] ? slopes : GruSlopes<float>{0, 0, 0, 0};
                result.z[n] = g.z;
                result.grad_output[n] = in.grad_output[n];
            }
            return result;
        };

        // The item's gradients, with that of its state; the operands of its products.
        const auto gate_gradients = [&](int i, int turn, const Prepared& from, Vector<float, 2> dh) {
            GruGates<float> grad[2];
#pragma unroll
            for (int n = 0; n < 2; ++n) {
                const float sum = dh.v[n] + from.grad_output[n];
                grad[n] = gru_gate_grads(from.slopes[n], from.active[n] ? sum : 0.0f);
                if (from.active[n]) dh.v[n] = sum * from.z[n];
            }
            stayed(i, turn) = dh;
            S* operand = grads + team.buffer() * grads_size + row_of[i] * plan.stride + unit_of[i];
            operands<P>(grad[0].r, grad[1].r).store(operand);
            operands<P>(grad[0].z, grad[1].z).store(operand + units);
            operands<P>(grad[0].a, grad[1].a).store(operand + 2 * units);
            using Pair = Packed<S, 2>;
            return Written<S>{Pair::round(grad[0].r, grad[1].r), Pair::round(grad[0].z, grad[1].z),
                              Pair::round(grad[0].n, grad[1].n), Pair::round(grad[0].a, grad[1].a)};
        };

        // Of grad_a where there is one.
        const auto write_to = [&](int i, S* grad_x, S* grad_a, bool has_a, const Written<S>& written) {
            store_pair<paired>(grad_x, written.r, units_of_item[i]);
            store_pair<paired>(advanced(grad_x, gate_bytes), written.z, units_of_item[i]);
            store_pair<paired>(advanced(grad_x, 2 * gate_bytes), written.n, units_of_item[i]);
            if (has_a) store_pair<paired>(grad_a, written.a, units_of_item[i]);
        };
        // To where the item is in [T, B, H].
        [[maybe_unused]] const auto write = [&](int i, int64_t at, const Written<S>& written) {
            // 3 at, but that a row's units are not three times as far from its start.
            write_to(i, static_cast<S*>(k.grad_gates_x) + (3 * at - 2 * (first_own + unit_of[i])),
                     advanced(static_cast<S*>(k.grad_a), at * kBytes), k.grad_a != nullptr, written);
        };

        // All blocks have sent what the turn's sums are made of.
        [[maybe_unused]] const auto receive_turn = [&](int turn) {
            team.await_turn(turn, team.done);
            sync_block();
        };

#pragma unroll 1
        for (int turn = 0; turn < turns; ++turn) {
#pragma unroll
            for (int i = 0; i < kItems; ++i) {
                if (!mine[i]) continue;
                const int b = turn * kTileRows + row_of[i];
                const int64_t row = first_row + b;
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    const int at = b * units + unit_of[i] + j, unit = first_own + unit_of[i] + j;
                    const bool inside = row < k.B && unit < H;
                    stayed(i, turn).v[j] = inside && k.grad_h_n.data ? load_state<S>(k.grad_h_n.data, float_state,
                                                                                     row * k.grad_h_n.stride + unit)
                                                                     : 0.0f;
                    first_state[at] = inside ? load_state<S>(k.h0.data, float_state, row * k.h0.stride + unit) : 0.0f;
                }
            }
        }
        if (longest > 0) {
            if constexpr (kEarly)
                load_step(0);
            else
                load_ahead(t);
        }

        // What does not depend on the step before, while that is on its way: the slopes of step t, number s, of inputs
        // that were loaded a step ahead, and the inputs of the one behind it.
        [[maybe_unused]] Prepared prepared;
        [[maybe_unused]] const auto prepare_step = [&](int s, int t) {
            prepared = prepare(0, t, 0);
            if (s + 1 < longest) load_step(s + 1);
        };
        // What the first step sends on reaches nobody but grad_h0.
        const auto has_sends = [&](int s) { return kTakesTurns || s + 1 < longest || (s < longest && k.grad_h0); };
        if (kEarly && has_sends(0)) team.expect_next();
        if (kEarly && longest > 0) prepare_step(0, t);

        int turn = 0;
#pragma unroll 1
        for (int s = 0; s < longest;) {
            const bool sends = has_sends(s);
            if (!kEarly && sends) team.expect_next();
            if (!kHolds && !kTakesTurns) meet_items(0);
            const int next_turn = kTakesTurns && turn + 1 < turns ? turn + 1 : 0, next_s = s + (next_turn == 0 ? 1 : 0);

            // ---- Gates -------------------------------------------------------------------------------------------
            [[maybe_unused]] Written<S> written;
#pragma unroll
            for (int i = 0; i < kItems; ++i)
                if (summed[i]) {
                    const Vector<float, 2> dh = collect(i, turn, s > 0);
                    if (!mine[i]) continue;
                    if constexpr (kEarly) {
                        written = gate_gradients(i, turn, prepared, dh);
                    } else {
                        const Written<S> one = gate_gradients(i, turn, prepare(i, t, turn), dh);
                        write(i, P::kTensorCores ? at_item[i] : place(i, t, turn), one);  // held, or told again
                    }
                }
            if (!sends) {
                if (kEarly) write_to(0, grad_x_at, grad_a_at, has_a, written);
                break;
            }
            const int next_t = next_turn == 0 ? t + t_step : t;
            if constexpr (!kHolds || kTakesTurns) {
                if (kTakesTurns) meet_items(next_turn);
                meet_inputs(next_s < longest ? next_t : t, next_turn);
                if (next_s < longest) load_ahead(next_t);
            } else if (!kEarly && next_s < longest) {
                advance_inputs();
                load_ahead(next_t);
            }
            sync_block();

            // ---- Products, and what they send ----------------------------------------------------------------------
            const S* operand = grads + team.buffer() * grads_size + first_depth * P::kDepth;
            const unsigned char *from_shared = shared_tiles, *from_stream = streamed_tiles;
            int left_in_shared = plan.shared_tiles;
            Accumulator sum[kTiles][kRowTiles] = {};
            const auto multiply = [&](const typename P::A(&a)[kTiles], int depth) {
#pragma unroll
                for (int n = 0; n < kRowTiles; ++n) {
                    const auto b = P::load_b(operand + n * kRows * plan.stride + depth * P::kDepth, plan.stride);
#pragma unroll
                    for (int i = 0; i < kTiles; ++i) P::multiply(sum[i][n], a[i], b);
                }
            };
            // Every warp has a first round, with the resident tiles before all else.
            constexpr int kInPairs = P::kTensorCores ? kDepth / 2 * 2 : 0;  // multiply-adds leave no registers for two
#pragma unroll
            for (int depth = 0; depth < kInPairs; depth += 2)
#pragma unroll
                for (int n = 0; n < kRowTiles; ++n) {
                    typename P::B b[2];
                    P::load_b_pair(operand + n * kRows * plan.stride + depth * P::kDepth, plan.stride, b[0], b[1]);
#pragma unroll
                    for (int j = 0; j < 2; ++j)
#pragma unroll
                        for (int i = 0; i < kTiles; ++i) P::multiply(sum[i][n], resident[depth + j][i], b[j]);
                }
#pragma unroll
            for (int depth = kInPairs; depth < kDepth; ++depth) multiply(resident[depth], depth);
            int depth = kDepth, round = 0;
#pragma unroll 1
            do {
#pragma unroll(kAtOnce)
                for (; depth < plan.depth && left_in_shared > 0; ++depth, left_in_shared -= kTiles) {
                    typename P::A a[kTiles];
#pragma unroll
                    for (int i = 0; i < kTiles; ++i, from_shared += P::kTileBytes) a[i] = P::load(from_shared);
                    multiply(a, depth);
                }
#pragma unroll(kAtOnce)
                for (; !kTakesTurns && depth < plan.depth; ++depth) {
                    typename P::A a[kTiles];
#pragma unroll
                    for (int i = 0; i < kTiles; ++i, from_stream += P::kTileBytes) a[i] = P::load_l2(from_stream);
                    multiply(a, depth);
                }
                // Neighbouring lanes put their pairs of two rows together: 16 bytes of one row each.
                const auto part_of = [&](int i, int n) {
                    const float* v = sum[i][n].v;
                    const float other[2] = {shuffle_xor(odd ? v[0] : v[1], 4), shuffle_xor(odd ? v[2] : v[3], 4)};
                    return Vector<float, 4>{
                        {odd ? other[0] : v[0], odd ? other[1] : v[2], odd ? v[1] : other[0], odd ? v[3] : other[1]}};
                };
                const int buffer = team.next_buffer(), mailbox_at = buffer * static_cast<int>(sizeof(Mailbox));
                const auto in_bytes = [&](int slot) { return plan.partials + (buffer * sums_size + slot) * 4; };
                if (kHolds && exchange == Exchange::cluster && round == 0 && all_there) {
                    // Without a branch around each.
#pragma unroll
                    for (int i = 0; i < kTiles; ++i)
                        send_to(first_peers[kHolds ? i : 0], in_bytes(first_round[kHolds ? i : 0].slot), part_of(i, 0),
                                mailbox_at);
                } else {
#pragma unroll
                    for (int i = 0; i < kTiles; ++i) {
                        const Destination to =
                            kHolds && round == 0 ? first_round[kHolds ? i : 0] : destination(round, i);
#pragma unroll
                        for (int n = 0; n < kRowTiles; ++n) {
                            const Vector<float, 4> part = part_of(i, n);
                            const int slot = to.slot + n * kRows * sum_stride;
                            if (to.slot < 0) continue;
                            if (exchange == Exchange::cluster)
                                send_to(peer(to.owner), in_bytes(slot), part, mailbox_at);
                            else if (grid)
                                store_l2(reinterpret_cast<Vector<float, 4>*>(
                                             global_sums +
                                             (int64_t{2 * turn + buffer} * plan.blocks + to.owner) * sums_size + slot),
                                         part);
                            else
                                *reinterpret_cast<Vector<float, 4>*>(sums + buffer * sums_size + slot) = part;
                        }
                    }
                }
#pragma unroll
                for (int i = 0; i < kTiles; ++i)
#pragma unroll
                    for (int n = 0; n < kRowTiles; ++n) sum[i][n] = {};
                depth = 0;
            } while (++round < plan.rounds && row_tile(round, 0) < row_tiles);
            team.sent(turn);
            if (next_turn == 0) ++team.done;

            // ---- What others do not wait for ---------------------------------------------------------------------
            if constexpr (kEarly) {
                if (has_sends(next_s)) team.expect_next();
                write_to(0, grad_x_at, grad_a_at, has_a, written);
                grad_x_at = advanced(grad_x_at, 3 * state_bytes);
                grad_a_at = advanced(grad_a_at, state_bytes);
                if (next_s < longest) prepare_step(next_s, next_t);
            }
            // In some there is no register for it, and a step is longer; in others loads are a whole step ahead.
            if (kRowTiles == 1 && P::kTensorCores && !kEarly && next_s + kAhead < longest) prefetch();
            if constexpr (kTakesTurns) {
                if (next_s > 0) receive_turn(next_turn);
            } else {
                team.receive();
            }
            turn = next_turn;
            t = next_t;
            s = next_s;
        }

        // ---- Steps past the longest row, and the gradient of the first state
        // ----------------------------------
        const bool sent_on = longest > 0 && k.grad_h0;
#pragma unroll 1
        for (turn = 0; turn < turns; ++turn) {
            // Also where nothing is made of it: another block's next tiles send to where this one still reads.
            if (turn > 0 && longest > 0) receive_turn(turn);
#pragma unroll
            for (int i = 0; i < kItems; ++i) {
                const int unit = first_own + unit_of[i], own_units = H - unit;
                const int64_t row = first_row + turn * kTileRows + row_of[i];
                if (!summed[i]) continue;
                const Vector<float, 2> dh = collect(i, turn, sent_on);
                if (!mine[i] || row >= k.B) continue;
                const auto zero = Packed<S, 2>::zero();
#pragma unroll 1
                for (int past = longest; past < T; ++past) {
                    const int64_t at = past * k.B + row;
#pragma unroll
                    for (int gate = 0; gate < 3; ++gate)
                        store_pair<paired>(static_cast<S*>(k.grad_gates_x) + (3 * at + gate) * H + unit, zero,
                                           own_units);
                    if (k.grad_a) store_pair<paired>(static_cast<S*>(k.grad_a) + at * H + unit, zero, own_units);
                }
                if (k.grad_h0) {
#pragma unroll
                    for (int j = 0; j < 2; ++j)
                        if (j < own_units) store_state<S>(k.grad_h0, float_state, row * H + unit + j, dh.v[j]);
                }
            }
        }
    }
}

// ---- Launchers --------------------------------------------------------------------------------------------------

struct Backward {
    static constexpr RegisterDepths kDepths = kBackwardDepths;
    static constexpr bool kWideTurns = false;  // there are no registers left for them
    static bool has_more_items(const GruPlan& plan) {
        return plan.row_tiles == 1 && 2 * plan.unit_tiles > plan.groups * plan.slices;
    }

    template <class C, int depth, int row_tiles, bool paired, Exchange exchange>
    static auto of() {
        return gru_backward_kernel<C, depth, row_tiles, paired, exchange>;
    }
};

}  // namespace

int backward_launchable(Storage storage, bool tf32, const GruPlan& plan) {
    return clusters_at_once(kernel_of<Backward>(storage, tf32, true, plan), launch_shape(plan, nullptr));
}

}  // namespace vssn::gpu

namespace vssn {

void gru_backward(const GruBackward& k) {
    using namespace gpu;
    if (k.B == 0) return;
    require_countable("gru_backward", k);
    const GruPlan plan = gru_plan(k.storage, k.tf32, true, k.B, k.H, k.wish);
    const bool paired = all_paired(k.H, k.storage, k.gates, {k.output, k.grad_output.data, k.grad_gates_x, k.grad_a},
                                   {k.grad_output.step_stride, k.grad_output.row_stride});
    const BackwardParams params{k, plan};
    const Launch shape = launch_shape(plan, k.stream);
    const char* error = launch(kernel_of<Backward>(k.storage, k.tf32, paired, plan), shape, params);
    if (error) fail_to_launch("gru_backward", k, plan, error);
}

}  // namespace vssn

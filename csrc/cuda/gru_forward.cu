// The GRU recurrence over given input gates; one launch per sequence.
//
//   r, z = sigmoid(x_r + W_hr h + b_r), sigmoid(x_z + W_hz h + b_z)      x = gates_x[t]  [B, 3H]
//   a    = W_hn h + b_n,   n = tanh(x_n + r a)
//   h'   = (1 - z) n + z h = output[t]                                   [B, H]
//
// reads   gates_x, h0, weight [3H, H], bias, lengths
// writes  output, h_n and, for backward, gates = (r, z, n, a) of each unit; zeros at padding, which is never read
//
// A team of blocks runs a batch tile through all its steps. A warp owns a tile of 16 hidden units, and keeps the rows
// of r, z and n of these units in three accumulators, so that the gates need no other lane. Where a block has few
// unit tiles, slices of warps share the sum over the hidden units of the step before. Each step: products of the
// weights, on chip, with the state in shared memory; gates; the new state goes to every block of the team.
//
// Where batch tiles take turns (gru_common.cuh), a turn's state comes into shared memory while the turn before it
// computes: on tensor cores during its products, into a second buffer; else behind them, into the only one.
#include "../common/cell.h"
#include "gru_common.cuh"

namespace vssn::gpu {

namespace {

struct ForwardParams {
    GruForward k;
    GruPlan plan;
};

// What a lane writes of a step for one row of the batch and its two units.
template <class S>
struct StepResult {
    Packed<S, 2> h;
    Packed<S, 8> gates;
};

// The state of two units of a row, to every block of the team. `next`: the state that the next step reads in shared
// memory, `global`: the same for the grid.
template <class S>
VSSN_DEVICE void send_state(const Team& team, const Packed<S, 2>& pair, S* next, S* global, int stride,
                            int global_stride, int row, int first_unit) {
    constexpr int kMembers = 8 / sizeof(S);  // lanes whose pairs make 16 bytes: 4 or 2, 8 units or 4
    if (team.exchange == Exchange::block) {
        pair.store(next + row * stride + first_unit);
        return;
    }
    const int member = lane_id() / 4 % kMembers;
    const auto swapped = [](bool swap, uint32_t a, uint32_t b) { return swap ? b : a; };
    Vector<uint32_t, 4> together;
    if constexpr (sizeof(S) == 2) {
        const uint32_t own = pair.words[0], neighbour = shuffle_xor(own, 4);
        const uint32_t low = swapped(member & 1, own, neighbour), high = swapped(member & 1, neighbour, own);
        const uint32_t other_low = shuffle_xor(low, 8), other_high = shuffle_xor(high, 8);
        together = {{swapped(member & 2, low, other_low), swapped(member & 2, high, other_high),
                     swapped(member & 2, other_low, low), swapped(member & 2, other_high, high)}};
    } else {
        const uint32_t first = shuffle_xor(pair.words[0], 4), second = shuffle_xor(pair.words[1], 4);
        together = {{swapped(member, pair.words[0], first), swapped(member, pair.words[1], second),
                     swapped(member, first, pair.words[0]), swapped(member, second, pair.words[1])}};
    }
    const int unit = first_unit - 2 * member;
    if (team.exchange == Exchange::cluster) {
        auto* to = reinterpret_cast<decltype(together)*>(next + row * stride + unit);
        for (int rank = member; rank < team.blocks; rank += kMembers)
            send(to, together, team.mailboxes + team.next_buffer(), rank);
    } else if (member == 0) {
        store_l2(reinterpret_cast<decltype(together)*>(global + row * global_stride + unit), together);
    }
}

// paired: H is even and every row of gates_x and of the outputs starts at a pair's alignment. known: as in
// gru_common.cuh.
template <class C, int kDepth, int kRowTiles, bool paired, Exchange known>
VSSN_BOUNDED_KERNEL(kGruThreads, 1)
gru_forward_kernel(ForwardParams params) {
    using P = Product<C>;
    using S = typename P::Stored;
    constexpr int kItems = 2 * kRowTiles;  // an item: two units of a row; a lane has them of kItems rows
    constexpr int kChains = P::kTensorCores && kRowTiles == 1 ? 2 : 1;  // sums that do not wait for each other
    constexpr int kTileRows = kRows * kRowTiles;
    constexpr bool kTakesTurns = known == Exchange::grid;
    constexpr bool kTwoStates = kTakesTurns && P::kTensorCores;  // one is multiplied while the next comes
    const GruForward& k = params.k;
    const GruPlan& plan = params.plan;
    const int turns = kTakesTurns ? plan.tiles_at_once : 1;
    const Exchange exchange = known == Exchange::any ? plan.exchange : known;
    const bool float_state = k.state_storage == Storage::float32;
    const int H = static_cast<int>(k.H), T = static_cast<int>(k.steps);

    unsigned char* shared = dynamic_shared();
    int* lengths = reinterpret_cast<int*>(shared + kMailboxBytes);  // [turns][rows]
    S* states = reinterpret_cast<S*>(shared + plan.operand);
    const int stride = plan.stride, state_size = kTileRows * stride;
    auto* partials = reinterpret_cast<Vector<float, 2>*>(shared + plan.partials);
    const int global_stride = plan.blocks * plan.unit_tiles * kUnits, global_size = kTileRows * global_stride;
    // [turns][2][rows][global_stride]
    S* global = static_cast<S*>(k.workspace) + static_cast<int64_t>(block_y()) * turns * 2 * global_size;

    Team team{exchange,
              plan.blocks,
              static_cast<unsigned*>(k.counters) + block_y() * turns,
              reinterpret_cast<Mailbox*>(shared),
              global_size * static_cast<int>(sizeof(S)),
              0};

    const int group = warp_id() / plan.slices, slice = warp_id() % plan.slices;
    const int first_unit = (block_x() * plan.unit_tiles + group) * kUnits;   // of the warp
    const int unit = first_unit + accumulator_row(0), own_units = H - unit;  // of the lane: `unit` and the next one
    const auto row_of = [](int item) { return item / 2 * kRows + accumulator_column(item % 2); };  // in the batch tile
    bool mine[kItems];  // of the lane's items, those whose gates this slice computes
#pragma unroll
    for (int i = 0; i < kItems; ++i) mine[i] = i % plan.slices == slice;
    const int first_k = slice * plan.depth * P::kDepth;
    // In turns a lane's states wait here: [turns][rows][units] of the block.
    const auto kept = [&](int turn, int item) {
        const int at = (turn * kTileRows + row_of(item)) * plan.unit_tiles * kUnits + group * kUnits;
        return reinterpret_cast<Vector<float, 2>*>(shared + plan.carry) + (at + accumulator_row(0)) / 2;
    };

    // ---- Weights, once -----------------------------------------------------------------------------------------
    const auto weights = [&](int gate, int tile) {
        const int at = first_k + tile * P::kDepth;
        return P::load_rows(
            static_cast<const S*>(k.weight.data) + (static_cast<int64_t>(gate) * H + first_unit) * k.weight.stride + at,
            k.weight.stride, 1, H - first_unit, tile < plan.depth ? H - at : 0);
    };
    typename P::A resident[kDepth][3];
#pragma unroll
    for (int tile = 0; tile < kDepth; ++tile) {
#pragma unroll
        for (int gate = 0; gate < 3; ++gate) resident[tile][gate] = weights(gate, tile);
        sync_warp();  // holds the compiler back from more loads at once than there are registers
    }
    unsigned char* shared_tiles = shared + plan.tiles + warp_id() * plan.shared_tiles * P::kTileBytes;
    unsigned char* streamed_tiles =
        static_cast<unsigned char*>(k.workspace) + plan.exchange_bytes +
        static_cast<int64_t>(block_x() * warps() + warp_id()) * plan.streamed_tiles * P::kTileBytes;
#pragma unroll 1
    for (int i = 0; i < plan.shared_tiles + plan.streamed_tiles; ++i) {
        unsigned char* to = i < plan.shared_tiles
                                ? shared_tiles + i * P::kTileBytes
                                : streamed_tiles + static_cast<int64_t>(i - plan.shared_tiles) * P::kTileBytes;
        P::store(weights(i % 3, kDepth + i / 3), to);
    }
    Vector<float, 2> bias[3];
#pragma unroll
    for (int gate = 0; gate < 3; ++gate) {
        const auto pair = Ahead<S, false>::load(static_cast<const S*>(k.bias) + gate * H + unit, own_units);
        bias[gate] = {{pair[0], pair[1]}};
    }
    for (int i = thread_id(); i < (exchange == Exchange::grid && !kTwoStates ? 1 : 2) * state_size;
         i += block_threads())
        states[i] = from_float<S>(0.0f);
    team.start();

    // A state of a turn, from L2 to shared memory: on its way until await_copies.
    const auto copy_state = [&](int turn, unsigned exchanges, S* to) {
        constexpr int kPiece = 16 / sizeof(S);
        const S* from = global + (2 * turn + static_cast<int>(exchanges % 2)) * global_size;
        for (int b = warp_id(); b < kTileRows; b += warps())
            for (int i = lane_id() * kPiece; i < global_stride; i += kWarp * kPiece)
                copy_l2(to + b * stride + i, from + b * global_stride + i);
    };

    for (int64_t tile = block_y() * turns; tile < plan.batch_tiles; tile += grid_y() * turns) {
        const int64_t first_row = tile * kTileRows;
        const int longest = tile_steps(k, first_row, turns * kTileRows, lengths);
        const auto step_time = [&](int s) { return k.reverse ? longest - 1 - s : s; };

        // ---- The first state: its units in registers, all of it in shared memory ---------------------------------
        float h[kItems][2];
        Ahead<S, paired> x[kItems][3];
        const auto load_h0 = [&](int turn) {
#pragma unroll
            for (int i = 0; i < kItems; ++i) {
                const int64_t row = first_row + turn * kTileRows + row_of(i);
#pragma unroll
                for (int j = 0; j < 2; ++j)
                    h[i][j] = row < k.B && j < own_units
                                  ? load_state<S>(k.h0.data, float_state, row * k.h0.stride + unit + j)
                                  : 0.0f;
            }
        };
#pragma unroll
        for (int i = 0; i < kItems; ++i)
            for (auto& gate : x[i]) gate = Ahead<S, paired>::zero();
        if constexpr (kTakesTurns) {
            // Each block sends its units, as in a step.
#pragma unroll 1
            for (int turn = 0; turn < turns; ++turn) {
                load_h0(turn);
#pragma unroll
                for (int i = 0; i < kItems; ++i)
                    if (mine[i]) {
                        *kept(turn, i) = {{h[i][0], h[i][1]}};
                        send_state(team, operands<P>(h[i][0], h[i][1]), states,
                                   global + (2 * turn + team.next_buffer()) * global_size, stride, global_stride,
                                   row_of(i), unit);
                    }
                if (longest > 0) team.sent(turn);
            }
            if (longest > 0) team.await_turn(0, ++team.done);
        } else {
            load_h0(0);
            S* first_state = states + (exchange == Exchange::grid ? 0 : team.buffer() * state_size);
            for (int i = thread_id(); i < kTileRows * H; i += block_threads()) {
                const int b = i / H, j = i % H;
                const bool inside = first_row + b < k.B;
                first_state[b * stride + j] = P::rounded(
                    inside ? load_state<S>(k.h0.data, float_state, (first_row + b) * k.h0.stride + j) : 0.0f);
            }
        }
        // At padding it is left as it was: nothing that is made of it there is kept. No branch between the loads, so
        // that none of them waits for the one before.
        const auto load_x = [&](int t, int turn) {
            int count[kItems];
#pragma unroll
            for (int i = 0; i < kItems; ++i)
                count[i] = mine[i] && t < lengths[turn * kTileRows + row_of(i)] ? own_units : 0;
#pragma unroll
            for (int i = 0; i < kItems; ++i) {
                const S* from = static_cast<const S*>(k.gates_x.data) + t * k.gates_x.step_stride +
                                (first_row + turn * kTileRows + row_of(i)) * k.gates_x.row_stride + unit;
#pragma unroll
                for (int gate = 0; gate < 3; ++gate) x[i][gate].reload(from + gate * H, count[i]);
            }
        };
        if (!kTakesTurns && longest > 0) load_x(step_time(0), 0);
        sync_block();
        if (kTakesTurns && longest > 0) copy_state(0, team.done, states);

        int turn = 0;
        [[maybe_unused]] int shown = 0;  // of two states, the turn's own
#pragma unroll 1
        for (int s = 0; s < longest;) {
            const int t = step_time(s), turn_rows = turn * kTileRows;
            const bool last = s + 1 == longest;
            if (!last) team.expect_next();
            // The turn behind this one, and the exchanges that it waits for.
            const int next_turn = kTakesTurns && turn + 1 < turns ? turn + 1 : 0, next_s = s + (next_turn == 0 ? 1 : 0);
            [[maybe_unused]] const unsigned next_done = team.done + (next_turn == 0 ? 1 : 0);
            // The same where no tiles take turns; which of the two leaves a kernel its registers differs (sm_120,
            // tf32).
            const bool more = kTakesTurns || known == Exchange::cluster ? next_s < longest : !last;
            if constexpr (kTakesTurns) {
                if (kTwoStates && more) team.await_turn(next_turn, next_done);
                await_copies();
                sync_block();
                if (kTwoStates && more) copy_state(next_turn, next_done, states + (1 - shown) * state_size);
                load_x(t, turn);  // from L2, where they were asked: they come during the products
            }
            if (s + 4 < longest && slice == plan.slices - 1 && lane_id() < 24 && first_unit < H) {
                const S* later =
                    static_cast<const S*>(k.gates_x.data) + step_time(s + 4) * k.gates_x.step_stride + first_unit;
#pragma unroll
                for (int n = 0; n < kRowTiles; ++n) {
                    const int64_t b = first_row + turn_rows + n * kRows + lane_id() % 8;
                    if (b < k.B) prefetch_l2(later + b * k.gates_x.row_stride + lane_id() / 8 * H);
                }
            }

            // ---- Products ----------------------------------------------------------------------------------------
            Accumulator sum[3][kRowTiles][kChains] = {};
            const int buffer = exchange != Exchange::grid ? team.buffer() : kTwoStates ? shown : 0;
            const S* state = states + buffer * state_size + first_k;
#pragma unroll
            for (int depth = 0; depth < kDepth; ++depth)
#pragma unroll
                for (int n = 0; n < kRowTiles; ++n) {
                    const auto b = P::load_b(state + n * kRows * stride + depth * P::kDepth, stride);
#pragma unroll
                    for (int gate = 0; gate < 3; ++gate)
                        P::multiply(sum[gate][n][depth % kChains], resident[depth][gate], b);
                }
            const auto multiply_rest = [&](const auto& tile, int depth, int count) {
#pragma unroll 2
                for (int i = 0; i < count; ++i) {
                    const typename P::A a[3] = {tile(3 * i), tile(3 * i + 1), tile(3 * i + 2)};
#pragma unroll
                    for (int n = 0; n < kRowTiles; ++n) {
                        const auto b = P::load_b(state + n * kRows * stride + (depth + i) * P::kDepth, stride);
#pragma unroll
                        for (int gate = 0; gate < 3; ++gate) P::multiply(sum[gate][n][0], a[gate], b);
                    }
                }
            };
            multiply_rest([&](int i) { return P::load(shared_tiles + i * P::kTileBytes); }, kDepth,
                          plan.shared_tiles / 3);
            if (!kTakesTurns)
                multiply_rest(
                    [&](int i) { return P::load_l2(streamed_tiles + static_cast<int64_t>(i) * P::kTileBytes); },
                    kDepth + plan.shared_tiles / 3, plan.streamed_tiles / 3);

            // ---- Sums over the slices; slice i takes the items i, i + slices, ...
            // ------------------------------------
            Vector<float, 2> total[kItems][3];
#pragma unroll
            for (int i = 0; i < kItems; ++i)
#pragma unroll
                for (int gate = 0; gate < 3; ++gate) {
                    const Accumulator* part = sum[gate][i / 2];
                    total[i][gate] = {{part[0].v[i % 2], part[0].v[2 + i % 2]}};
                    if constexpr (kChains == 2) {
                        total[i][gate].v[0] += part[1].v[i % 2];
                        total[i][gate].v[1] += part[1].v[2 + i % 2];
                    }
                }
            if (kTakesTurns || plan.slices > 1) {
                const auto at = [&](int from, int i, int gate) {
                    return partials + ((((group * plan.slices + from) * kItems + i) * 3 + gate) * kWarp + lane_id());
                };
#pragma unroll
                for (int i = 0; i < kItems; ++i)
                    if (!mine[i])
#pragma unroll
                        for (int gate = 0; gate < 3; ++gate) *at(slice, i, gate) = total[i][gate];
                constexpr bool kOneState = kTakesTurns && !kTwoStates;  // nobody multiplies it behind the barrier
                if (kOneState && more) team.await_turn(next_turn, next_done);
                sync_block();
                if (kOneState && more) copy_state(next_turn, next_done, states);
#pragma unroll
                for (int i = 0; i < kItems; ++i)
                    if (mine[i])
#pragma unroll 2
                        for (int step = 1; step < plan.slices; ++step) {
                            const int from = slice + step < plan.slices ? slice + step : slice + step - plan.slices;
#pragma unroll
                            for (int gate = 0; gate < 3; ++gate) {
                                const Vector<float, 2> part = *at(from, i, gate);
                                total[i][gate].v[0] += part.v[0];
                                total[i][gate].v[1] += part.v[1];
                            }
                        }
            }

            // ---- Gates
            // -----------------------------------------------------------------------------------------------
            S* next = states + team.next_buffer() * state_size;
            S* global_next = global + (2 * turn + team.next_buffer()) * global_size;
            StepResult<S> result[kItems] = {};  // set in every step: their registers are free in between
#pragma unroll
            for (int i = 0; i < kItems; ++i)
                if (mine[i]) {
                    const bool active = t < lengths[turn_rows + row_of(i)];
                    if constexpr (kTakesTurns) {
                        const Vector<float, 2> before = *kept(turn, i);
                        h[i][0] = before.v[0];
                        h[i][1] = before.v[1];
                    }
                    GruGates<float> g[2];
#pragma unroll
                    for (int j = 0; j < 2; ++j) {
                        g[j] = gru_gates<Math>(x[i][0][j] + (total[i][0].v[j] + bias[0].v[j]),
                                               x[i][1][j] + (total[i][1].v[j] + bias[1].v[j]), x[i][2][j],
                                               total[i][2].v[j] + bias[2].v[j]);
                        const float after = gru_next(g[j], h[i][j]);
                        if (active && j < own_units) h[i][j] = after;
                    }
                    if constexpr (kTakesTurns) *kept(turn, i) = {{h[i][0], h[i][1]}};
                    if (!last)
                        send_state(team, operands<P>(h[i][0], h[i][1]), next, global_next, stride, global_stride,
                                   row_of(i), unit);
                    if (active)
                        result[i] = {
                            Packed<S, 2>::round(h[i][0], h[i][1]),
                            Packed<S, 8>::round(g[0].r, g[0].z, g[0].n, g[0].a, g[1].r, g[1].z, g[1].n, g[1].a)};
                }
            if (!last) team.sent(turn);

            // ---- What others do not wait for ---------------------------------------------------------------------
            if (!kTakesTurns && more) load_x(step_time(next_s), next_turn);
#pragma unroll
            for (int i = 0; i < kItems; ++i)
                if (mine[i] && first_row + turn_rows + row_of(i) < k.B) {
                    const int64_t at = (t * k.B + first_row + turn_rows + row_of(i)) * H + unit;
                    store_pair<paired>(static_cast<S*>(k.output) + at, result[i].h, own_units);
                    if (k.gates) store_gates<S, paired>(k.gates, at, own_units, result[i].gates);
                }
            if (!more) break;

            // ---- The next state ------------------------------------------------------------------------------------
            if constexpr (kTakesTurns) {
                team.done = next_done;
                turn = next_turn;
                shown = 1 - shown;
            } else {
                team.receive();
                if (exchange == Exchange::grid) {
                    copy_state(0, team.done, states);
                    await_copies();
                    sync_block();
                }
            }
            s = next_s;
        }

        // ---- Steps past the longest row, and the last state
        // ---------------------------------------------------
#pragma unroll 1
        for (turn = 0; turn < turns; ++turn)
#pragma unroll
            for (int i = 0; i < kItems; ++i) {
                const int64_t row = first_row + turn * kTileRows + row_of(i);
                if (!mine[i] || row >= k.B) continue;
                const Vector<float, 2> state = kTakesTurns ? *kept(turn, i) : Vector<float, 2>{{h[i][0], h[i][1]}};
#pragma unroll 1
                for (int t = longest; t < T; ++t) {
                    const int64_t at = (t * k.B + row) * H + unit;
                    store_pair<paired>(static_cast<S*>(k.output) + at, Packed<S, 2>::zero(), own_units);
                    if (k.gates) store_gates<S, paired>(k.gates, at, own_units, Packed<S, 8>::zero());
                }
#pragma unroll
                for (int j = 0; j < 2; ++j)
                    if (j < own_units) store_state<S>(k.h_n, float_state, row * H + unit + j, state.v[j]);
            }
    }
}

// ---- Launchers --------------------------------------------------------------------------------------------------

struct Forward {
    static constexpr RegisterDepths kDepths = kForwardDepths;
    static constexpr bool kWideTurns = true;

    template <class C, int depth, int row_tiles, bool paired, Exchange exchange>
    static auto of() {
        return gru_forward_kernel<C, depth, row_tiles, paired, exchange>;
    }
};

}  // namespace

int forward_launchable(Storage storage, bool tf32, const GruPlan& plan) {
    return clusters_at_once(kernel_of<Forward>(storage, tf32, true, plan), launch_shape(plan, nullptr));
}

}  // namespace vssn::gpu

namespace vssn {

void gru_forward(const GruForward& k) {
    using namespace gpu;
    if (k.B == 0) return;
    require_countable("gru_forward", k);
    const GruPlan plan = gru_plan(k.storage, k.tf32, false, k.B, k.H, k.wish);
    const bool paired =
        all_paired(k.H, k.storage, k.gates, {k.gates_x.data, k.output}, {k.gates_x.step_stride, k.gates_x.row_stride});
    const ForwardParams params{k, plan};
    const Launch shape = launch_shape(plan, k.stream);
    const char* error = launch(kernel_of<Forward>(k.storage, k.tf32, paired, plan), shape, params);
    if (error) fail_to_launch("gru_forward", k, plan, error);
}

}  // namespace vssn

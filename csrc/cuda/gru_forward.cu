// The GRU recurrence over given input gates; one launch per sequence.
//
//   r, z = sigmoid(x_r + W_hr h + b_r), sigmoid(x_z + W_hz h + b_z)      x = gates_x[t]  [B, 3H]
//   a    = W_hn h + b_n,   n = tanh(x_n + r a)
//   h'   = (1 - z) n + z h = output[t]                                   [B, H]
//
// reads   gates_x, h0, weight [3H, H], bias, lengths
// writes  output, h_n and, for backward, gates = (r, z, n, a) of each unit; zeros at padding, where no input counts
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

// The state goes to the other blocks in pieces of 16 bytes, which so many lanes have together: 4 or 2, of 8 units or 4.
template <class S>
constexpr int kMembers = 8 / sizeof(S);
constexpr int kLargestCluster = 16;

// The same numbers, in words that are not kAbsent: a NaN of float32 that the caller gave may be.
template <class S>
VSSN_DEVICE Packed<S, 2> present(Packed<S, 2> pair) {
    if constexpr (sizeof(S) == 4)
#pragma unroll
        for (uint32_t& word : pair.words) word = word == kAbsent ? kAbsent >> 1 : word;
    return pair;
}

// Those of the team that a lane sends to, and where a pair of its state goes.
template <class S, bool holds>
struct Receivers {
    static constexpr bool kHolds = holds;
    Peer peers[kHolds ? kLargestCluster / kMembers<S> : 1];
    int blocks;

    VSSN_DEVICE explicit Receivers(const Team& team) : blocks(team.exchange == Exchange::cluster ? team.blocks : 0) {
#pragma unroll
        for (int i = 0; kHolds && i < kLargestCluster / kMembers<S>; ++i)
            peers[i] = peer(rank(i) < blocks ? rank(i) : 0);
    }

    static VSSN_DEVICE int member() { return lane_id() / 4 % kMembers<S>; }
    static VSSN_DEVICE int rank(int i) { return member() + i * kMembers<S>; }

    // All lanes that have a piece together get the whole of it.
    static VSSN_DEVICE Vector<uint32_t, 4> together(const Packed<S, 2>& pair) {
        constexpr int kWords = Packed<S, 2>::kWords;
        const int first = lane_id() - 4 * member();
        Vector<uint32_t, 4> piece;
#pragma unroll
        for (int i = 0; i < 4; ++i) piece.v[i] = shuffle(pair.words[i % kWords], first + i / kWords * 4);
        return piece;
    }

    // at, mailbox_at: bytes behind the start of a block's shared memory
    VSSN_DEVICE void send(const Packed<S, 2>& pair, int at, int mailbox_at) const {
        const Vector<uint32_t, 4> piece = together(pair);
        // A branch around each costs more than the instruction: one for the clusters that there mostly are.
        constexpr int kMost = kLargestCluster / kMembers<S>;
        if (kHolds && blocks == kLargestCluster) {
#pragma unroll
            for (int i = 0; i < kMost; ++i) send_to(peers[kHolds ? i : 0], at, piece, mailbox_at);
        } else if (kHolds && 2 * blocks == kLargestCluster) {
#pragma unroll
            for (int i = 0; i < kMost / 2; ++i) send_to(peers[kHolds ? i : 0], at, piece, mailbox_at);
        } else {
#pragma unroll
            for (int i = 0; i < kMost; ++i)
                if (rank(i) < blocks) send_to(kHolds ? peers[kHolds ? i : 0] : peer(rank(i)), at, piece, mailbox_at);
        }
    }
};

// paired: H is even and every row of gates_x and of the outputs starts at a pair's alignment. known: as in
// gru_common.cuh.
template <class C, int kDepth, int kRowTiles, bool paired, Exchange known>
VSSN_BOUNDED_KERNEL(kGruThreads, 1)
gru_forward_kernel(ForwardParams params) {
    using P = Product<C>;
    using S = typename P::Stored;
    using To = Receivers<S, paired && sizeof(S) == 2>;  // of float32 there are twice as many, and no registers left
    constexpr int kItems = 2 * kRowTiles;               // an item: two units of a row; a lane has them of kItems rows
    constexpr int kChains =
        P::kTensorCores && kRowTiles == 1 && kDepth > 4 ? 2 : 1;  // sums that do not wait for each other
    constexpr int kTileRows = kRows * kRowTiles;
    constexpr bool kTakesTurns = known == Exchange::grid;
    constexpr bool kTwoStates = kTakesTurns && P::kTensorCores;              // one is multiplied while the next comes
    constexpr bool kOneSlice = known == Exchange::block && P::kTensorCores;  // there every warp sums alone: gru_plan.cu
    constexpr bool kAllResident = kOneSlice && sizeof(S) == 2;               // and has all its weights in registers
    // Whether the input of r and z is in their sums from the start. In turns it comes during the products, and a grid
    // without turns has the same bits; in others there are no registers for both.
    constexpr bool kInputFirst =
        P::kTensorCores &&
        ((known == Exchange::block && (kRowTiles == 1 || kDepth == 4 || sizeof(S) == 4)) || known == Exchange::cluster);
    // Two warps of a unit tile share its items, each takes every other row: the first two slices, or where every warp
    // sums alone two that do the same products (gru_plan.cu). Its rows are made the even columns of its products.
    constexpr int kShares = P::kTensorCores && ((kAllResident && kDepth == 4) || known == Exchange::cluster) ? 2 : 1;
    constexpr int kOwn = kItems / kShares;  // items of a lane, at most
    const GruForward& k = params.k;
    const GruPlan& plan = params.plan;
    const int turns = kTakesTurns ? plan.tiles_at_once : 1;
    // Pairs have kernels of their own for a block and for a cluster (gru_common.cuh).
    const Exchange exchange = known != Exchange::any ? known : paired ? Exchange::grid : plan.exchange;
    const bool float_state = k.state_storage == Storage::float32;
    const int H = static_cast<int>(k.H), T = static_cast<int>(k.steps);

    unsigned char* shared = dynamic_shared();
    int* lengths = reinterpret_cast<int*>(shared + kMailboxBytes);  // [turns][rows]
    S* states = reinterpret_cast<S*>(shared + plan.operand);
    const int stride = plan.stride, state_size = kTileRows * stride;
    auto* partials = reinterpret_cast<Vector<float, 2>*>(shared + plan.partials);
    const int global_stride = plan.blocks * plan.unit_tiles * kUnits, global_size = kTileRows * global_stride;
    // [turns][2][rows][global_stride], or without turns [kBuffersInGrid][rows][global_stride]
    constexpr int kBuffers = kTakesTurns ? 2 : kBuffersInGrid;
    S* global = static_cast<S*>(k.workspace) + static_cast<int64_t>(block_y()) * turns * kBuffers * global_size;

    Team team{exchange,
              plan.blocks,
              kTakesTurns ? static_cast<unsigned*>(k.counters) + block_y() * turns : nullptr,
              reinterpret_cast<Mailbox*>(shared),
              global_size * static_cast<int>(sizeof(S)),
              0};

    const int slices = kOneSlice ? 1 : plan.slices, warps_of_group = kOneSlice ? kShares : slices;
    const int group = warp_id() / warps_of_group, member = warp_id() % warps_of_group;
    const int slice = kOneSlice ? 0 : member, share = kShares == 2 ? member % 2 : 0;
    const int first_unit = (block_x() * plan.unit_tiles + group) * kUnits;   // of the warp
    const int unit = first_unit + accumulator_row(0), own_units = H - unit;  // of the lane: `unit` and the next one
    // An item's place among the products' columns, and its row in the batch tile.
    const auto tile_of = [](int item) { return kShares == 2 ? item : item / 2; };
    const auto column_of = [](int item) { return kShares == 2 ? 0 : item % 2; };
    const auto rows_behind = [=](int item) { return tile_of(item) * kRows + column_of(item); };
    const auto row_of = [=](int item) { return rows_behind(item) + accumulator_column(0) + share; };
    bool mine[kOwn];  // of the lane's items, those whose gates this slice computes
#pragma unroll
    for (int i = 0; i < kOwn; ++i) mine[i] = kShares == 2 ? member < 2 : i % slices == slice;
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
    [[maybe_unused]] const int shared_depth = held(plan.shared_tiles / 3),
                               streamed_depth = held(plan.streamed_tiles / 3);
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
    const To receivers(team);

    // Without turns a grid's state is its own flag: a block stores its units, and all wait for the words of all. A
    // buffer is blank before it is written. When all of state n has come, all have had state n - 1, and each block
    // makes its units of that blank again. That buffer gets state n + 7. All threads pass a fence after every second
    // send: the blank comes before one, behind a barrier, with state n + 4 at the latest behind it; whoever has read
    // that passes one before the barrier that lies before the wait for state n + 7. So nobody takes state n - 1 for
    // that.
    constexpr int kPiece = 16 / sizeof(S);
    const auto receive_state = [&](S* to) {
        constexpr int kAtOnce = 4;
        const S* from = global + static_cast<int>(team.done % kBuffers) * global_size;
#pragma unroll 1
        for (int b = warp_id(); b < kTileRows; b += warps())
#pragma unroll 1
            for (int i = lane_id() * kPiece; i < global_stride; i += kAtOnce * kWarp * kPiece) {
                const Vector<uint32_t, 4>* places[kAtOnce];
                Vector<uint32_t, 4> pieces[kAtOnce];
                const auto at = [&](int j) {
                    return i + j * kWarp * kPiece < global_stride ? i + j * kWarp * kPiece : i;
                };
#pragma unroll
                for (int j = 0; j < kAtOnce; ++j)
                    places[j] = reinterpret_cast<const Vector<uint32_t, 4>*>(from + b * global_stride + at(j));
                await_words(places, pieces);
#pragma unroll
                for (int j = 0; j < kAtOnce; ++j) store_words<4>(to + b * stride + at(j), pieces[j]);
            }
        sync_block();
    };
    const auto make_blank = [&](unsigned exchanges) {
        S* old = global + static_cast<int>(exchanges % kBuffers) * global_size + block_x() * plan.unit_tiles * kUnits;
        for (int b = lane_id() / 4; b < kTileRows; b += kWarp / 4)
            for (int i = lane_id() % 4 * kPiece; i < plan.unit_tiles * kUnits; i += 4 * kPiece)
                give_words(reinterpret_cast<Vector<uint32_t, 4>*>(old + b * global_stride + i),
                           Vector<uint32_t, 4>{{kAbsent, kAbsent, kAbsent, kAbsent}});
    };

    // A state of a turn, from L2 to shared memory: on its way until await_copies.
    const auto copy_state = [&](int turn, unsigned exchanges, S* to) {
        const S* from = global + (2 * turn + static_cast<int>(exchanges % 2)) * global_size;
        for (int b = warp_id(); b < kTileRows; b += warps())
            for (int i = lane_id() * kPiece; i < global_stride; i += kWarp * kPiece)
                copy_l2(to + b * stride + i, from + b * global_stride + i);
    };

    for (int64_t tile = block_y() * turns; tile < plan.batch_tiles; tile += grid_y() * turns) {
        const int64_t first_row = tile * kTileRows;
        const int longest = tile_steps(k, first_row, turns * kTileRows, lengths);
        int t = k.reverse ? longest - 1 : 0;

        const auto stays = [](auto value) {
            if constexpr (P::kTensorCores && kRowTiles == 1)
                return held(value);
            else
                return value;
        };
        // Of a lane's items: the steps that change them, and the units that it writes; in turns they are read anew.
        int steps_of_item[kOwn], units_of_item[kOwn], gates_of_item[kOwn];
        const auto meet_items = [&](int turn) {
#pragma unroll
            for (int i = 0; i < kOwn; ++i) {
                const int row = turn * kTileRows + row_of(i);
                units_of_item[i] = stays(mine[i] && first_row + row < k.B ? own_units : 0);
                gates_of_item[i] = stays(k.gates ? units_of_item[i] : 0);
                steps_of_item[i] = stays(units_of_item[i] > 0 ? lengths[row] : 0);
            }
        };
        meet_items(0);

        // Addresses of a step, advanced with it: of the lane's first item, and the others' distances in bytes. Where a
        // lane has no item, beyond B or H, it reads another one's input: nothing that is made of it is kept.
        constexpr auto kBytes = static_cast<int64_t>(sizeof(S));
        const int t_step = stays(k.reverse ? -1 : 1);
        const int64_t x_row = stays(k.gates_x.row_stride * kBytes),
                      x_step = stays(t_step * k.gates_x.step_stride * kBytes);
        const int64_t gate_bytes = stays(H * kBytes), out_row = gate_bytes, out_step = stays(t_step * k.B * H * kBytes);
        const int64_t lane_row = first_row + row_of(0), out_at = (t * k.B + lane_row) * H + unit;
        S* output = stays(advanced(static_cast<S*>(k.output), out_at * kBytes));
        S* gates = stays(advanced(static_cast<S*>(k.gates), 4 * out_at * kBytes));
        // Without a step there may be no tensor either.
        const S* x_data = advanced(static_cast<const S*>(k.gates_x.data), t * k.gates_x.step_stride * kBytes);
        const S* x_from[kOwn];
        const auto meet_inputs = [&](int turn) {
#pragma unroll
            for (int i = 0; i < kOwn; ++i) {
                const int64_t row = first_row + turn * kTileRows + row_of(i);
                x_from[i] =
                    stays(advanced(x_data, (row < k.B ? row : 0) * x_row + (own_units > 0 ? unit : 0) * kBytes));
            }
        };
        meet_inputs(0);
        // A lane for each gate and row asks for the input of the step after the next three.
        constexpr int kAhead = 4;
        const S* later = stays(advanced(
            x_data, (lane_id() / 8 * H + first_unit) * kBytes + kAhead * x_step + (first_row + lane_id() % 8) * x_row));
        const int64_t rows_left = k.B - first_row < turns * kTileRows ? k.B - first_row : turns * kTileRows;
        const int rows_to_ask = stays(member == warps_of_group - 1 && lane_id() < 24 && first_unit < H
                                          ? static_cast<int>(rows_left) - lane_id() % 8
                                          : 0);
        int own_at[kOwn];  // of a lane's items in a state, in elements
#pragma unroll
        for (int i = 0; i < kOwn; ++i)
            own_at[i] =
                stays(exchange == Exchange::grid ? row_of(i) * global_stride + unit : row_of(i) * stride + unit);

        // Of two states, where the one begins that is multiplied; where there is but one, it stays 0.
        int shown = !kTakesTurns && exchange != Exchange::grid ? team.buffer() * state_size : 0;

        // ---- The first state: its units in registers, all of it in shared memory ---------------------------------
        float h[kOwn][2];
        Ahead<S, paired> x[kOwn][3];
        const auto load_h0 = [&](int turn) {
#pragma unroll
            for (int i = 0; i < kOwn; ++i) {
                const int64_t row = first_row + turn * kTileRows + row_of(i);
#pragma unroll
                for (int j = 0; j < 2; ++j)
                    h[i][j] = row < k.B && j < own_units
                                  ? load_state<S>(k.h0.data, float_state, row * k.h0.stride + unit + j)
                                  : 0.0f;
            }
        };
#pragma unroll
        for (int i = 0; i < kOwn; ++i)
            for (auto& gate : x[i]) gate = Ahead<S, paired>::zero();
        // The state of an item as the next step reads it.
        const auto send_state = [&](int turn, int i) {
            const auto pair = operands<P>(h[i][0], h[i][1]);
            if (exchange == Exchange::block) {
                pair.store(states + (state_size - shown) + own_at[i]);
            } else if (exchange == Exchange::cluster) {
                const int at = state_size - shown + own_at[i] - 2 * To::member();
                receivers.send(pair, plan.operand + at * static_cast<int>(sizeof(S)),
                               team.next_buffer() * static_cast<int>(sizeof(Mailbox)));
            } else {
                const auto piece = To::together(kTakesTurns ? pair : present(pair));
                S* to =
                    global + (kBuffers * turn + static_cast<int>((team.done + 1) % kBuffers)) * global_size + own_at[i];
                if (To::member() != 0) return;
                if (kTakesTurns)
                    store_l2(reinterpret_cast<Vector<uint32_t, 4>*>(to), piece);
                else
                    give_words(reinterpret_cast<Vector<uint32_t, 4>*>(to), piece);
            }
        };
        if constexpr (kTakesTurns) {
            // Each block sends its units, as in a step.
#pragma unroll 1
            for (int turn = 0; turn < turns; ++turn) {
                load_h0(turn);
#pragma unroll
                for (int i = 0; i < kOwn; ++i)
                    if (mine[i]) {
                        *kept(turn, i) = {{h[i][0], h[i][1]}};
                        send_state(turn, i);
                    }
                if (longest > 0) team.sent(turn);
            }
            if (longest > 0) team.await_turn(0, ++team.done);
        } else {
            load_h0(0);
            S* first_state = states + shown;
            for (int i = thread_id(); i < kTileRows * H; i += block_threads()) {
                const int b = i / H, j = i % H;
                const bool inside = first_row + b < k.B;
                first_state[b * stride + j] = P::rounded(
                    inside ? load_state<S>(k.h0.data, float_state, (first_row + b) * k.h0.stride + j) : 0.0f);
            }
        }
        // At padding, too: nothing that is made of it there is kept. No branch, so that no load waits for another.
        const auto load_x = [&] {
#pragma unroll
            for (int i = 0; i < kOwn; ++i)
#pragma unroll
                for (int gate = 0; gate < 3; ++gate)
                    x[i][gate].reload(advanced(x_from[i], gate * gate_bytes), !mine[i] ? 0 : paired ? 2 : own_units);
        };
        if (!kTakesTurns && longest > 0) load_x();
        sync_block();
        if (kTakesTurns && longest > 0) copy_state(0, team.done, states);

        int turn = 0;
#pragma unroll 1
        for (int s = 0; s < longest;) {
            const bool last = s + 1 == longest;
            if (!last) team.expect_next();
            // The turn behind this one, and the exchanges that it waits for.
            const int next_turn = kTakesTurns && turn + 1 < turns ? turn + 1 : 0, next_s = s + (next_turn == 0 ? 1 : 0);
            [[maybe_unused]] const unsigned next_done = team.done + (next_turn == 0 ? 1 : 0);
            const bool more = kTakesTurns ? next_s < longest : !last;
            const int64_t turn_rows = kTakesTurns ? turn * kTileRows : 0;
            if constexpr (kTakesTurns) {
                if (kTwoStates && more) team.await_turn(next_turn, next_done);
                await_copies();
                sync_block();
                if (kTwoStates && more) copy_state(next_turn, next_done, states + (state_size - shown));
                meet_items(turn);
                meet_inputs(turn);
                load_x();  // from L2, where they were asked: they come during the products
            }
            if (s + kAhead < longest)
#pragma unroll
                for (int n = 0; n < kRowTiles; ++n)
                    if (turn_rows + n * kRows < rows_to_ask)
                        prefetch_l2(advanced(later, (turn_rows + n * kRows) * x_row));

            // ---- Products ----------------------------------------------------------------------------------------
            // What is there before them, made while the state is on its way: the bias and, where it has come, the input
            // of r and z.
            Accumulator sum[3][kRowTiles][kChains] = {};
            [[maybe_unused]] float n_input[kOwn][2];
#pragma unroll
            for (int i = 0; i < kOwn; ++i)
                if (mine[i])
#pragma unroll
                    for (int j = 0; j < 2; ++j) {
#pragma unroll
                        for (int gate = 0; gate < 3; ++gate)
                            sum[gate][tile_of(i)][0].v[2 * j + column_of(i)] =
                                bias[gate].v[j] + (kInputFirst && gate < 2 ? x[i][gate][j] : 0.0f);
                        if (kInputFirst) n_input[i][j] = x[i][2][j];
                    }
            const auto load_next_x = [&] {  // behind the last step the same ones once more
#pragma unroll
                for (int i = 0; i < kOwn; ++i) x_from[i] = advanced(x_from[i], more ? x_step : 0);
                load_x();
            };
            if (kInputFirst && known != Exchange::block) load_next_x();
            if constexpr (!kTakesTurns) {
                if (exchange == Exchange::cluster && s > 0) team.receive();
                if (exchange == Exchange::grid && s > 0) {
                    if (slices == 1) sync_block();  // else the sums' barrier was behind the last product
                    receive_state(states);
                }
            }
            const S* state = states + shown + first_k;
            constexpr int kInPairs = P::kTensorCores ? kDepth : 0;  // multiply-adds leave no registers for two
#pragma unroll
            for (int depth = 0; depth < kInPairs; depth += 2)
#pragma unroll
                for (int n = 0; n < kRowTiles; ++n) {
                    typename P::B b[2];
                    P::load_b_pair(state + n * kRows * stride + depth * P::kDepth, stride, b[0], b[1], share);
#pragma unroll
                    for (int i = 0; i < 2; ++i)
#pragma unroll
                        for (int gate = 0; gate < 3; ++gate)
                            P::multiply(sum[gate][n][i % kChains], resident[depth + i][gate], b[i]);
                }
#pragma unroll
            for (int depth = kInPairs; depth < kDepth; ++depth) {
                const auto b = P::load_b(state + depth * P::kDepth, stride);
#pragma unroll
                for (int gate = 0; gate < 3; ++gate) P::multiply(sum[gate][0][0], resident[depth][gate], b);
            }
            const auto multiply_rest = [&](const auto& tile, int depth, int count) {
#pragma unroll(paired ? 2 : 1)
                for (int i = 0; i < count; ++i) {
                    const typename P::A a[3] = {tile(3 * i), tile(3 * i + 1), tile(3 * i + 2)};
#pragma unroll
                    for (int n = 0; n < kRowTiles; ++n) {
                        const auto b = P::load_b(state + n * kRows * stride + (depth + i) * P::kDepth, stride, share);
#pragma unroll
                        for (int gate = 0; gate < 3; ++gate) P::multiply(sum[gate][n][0], a[gate], b);
                    }
                }
            };
            if constexpr (!kAllResident) {
                multiply_rest([&](int i) { return P::load(shared_tiles + i * P::kTileBytes); }, kDepth, shared_depth);
                if (!kTakesTurns)
                    multiply_rest(
                        [&](int i) { return P::load_l2(streamed_tiles + static_cast<int64_t>(i) * P::kTileBytes); },
                        kDepth + shared_depth, streamed_depth);
            }

            // In a block alone they would hold up the reads of the state.
            if (kInputFirst && known == Exchange::block) load_next_x();

            // ---- Sums over the slices; slice i takes the items i, i + slices, ...
            // ------------------------------------
            const auto summed = [&](int n, int column, int gate) {
                const Accumulator* part = sum[gate][n];
                Vector<float, 2> one = {{part[0].v[column], part[0].v[2 + column]}};
                if constexpr (kChains == 2) {
                    one.v[0] += part[1].v[column];
                    one.v[1] += part[1].v[2 + column];
                }
                return one;
            };
            Vector<float, 2> total[kOwn][3];
#pragma unroll
            for (int i = 0; i < kOwn; ++i)
#pragma unroll
                for (int gate = 0; gate < 3; ++gate) total[i][gate] = summed(tile_of(i), column_of(i), gate);
            if (!kOneSlice && (kTakesTurns || kShares == 2 || slices > 1)) {
                // [groups][slices][shares][items][3][lanes]
                constexpr int kOfShare = kOwn * 3 * kWarp, kOfSlice = kShares * kOfShare;
                auto* of_group = partials + group * slices * kOfSlice + lane_id();
                const auto at = [](int i, int gate) { return (3 * i + gate) * kWarp; };
                auto* of_slice = of_group + slice * kOfSlice;
#pragma unroll
                for (int i = 0; i < kOwn; ++i)
                    if (!mine[i])
#pragma unroll
                        for (int gate = 0; gate < 3; ++gate) of_slice[share * kOfShare + at(i, gate)] = total[i][gate];
                if (kShares == 2)
#pragma unroll
                    for (int i = 0; i < kOwn; ++i)
#pragma unroll
                        for (int gate = 0; gate < 3; ++gate)
                            of_slice[(1 - share) * kOfShare + at(i, gate)] = summed(i, 1, gate);
                constexpr bool kOneState = kTakesTurns && !kTwoStates;  // nobody multiplies it behind the barrier
                if (kOneState && more) team.await_turn(next_turn, next_done);
                sync_block();
                if (kOneState && more) copy_state(next_turn, next_done, states);
                const auto add = [&](int from) {
#pragma unroll
                    for (int i = 0; i < kOwn; ++i)
                        if (mine[i])
#pragma unroll
                            for (int gate = 0; gate < 3; ++gate) {
                                const Vector<float, 2> part =
                                    of_group[from * kOfSlice + share * kOfShare + at(i, gate)];
                                total[i][gate].v[0] += part.v[0];
                                total[i][gate].v[1] += part.v[1];
                            }
                };
                if (kShares == 2) {
                    if (mine[0]) {
                        add(1 - slice);
#pragma unroll 2
                        for (int from = 2; from < slices; ++from) add(from);
                    }
                } else {
#pragma unroll 1
                    for (int step = 1, from = slice; step < slices; ++step) {
                        from = from + 1 < slices ? from + 1 : 0;
                        add(from);
                    }
                }
            }

            // ---- Gates
            // -----------------------------------------------------------------------------------------------
            StepResult<S> result[kOwn] = {};  // set in every step: their registers are free in between
#pragma unroll
            for (int i = 0; i < kOwn; ++i)
                if (mine[i]) {
                    if constexpr (kTakesTurns) {
                        const Vector<float, 2> before = *kept(turn, i);
                        h[i][0] = before.v[0];
                        h[i][1] = before.v[1];
                    }
                    GruGates<float> g[2];
                    const bool active = t < steps_of_item[i];
#pragma unroll
                    for (int j = 0; j < 2; ++j) {
                        if constexpr (!kInputFirst)
                            g[j] = gru_gates<MathFor<C>>(x[i][0][j] + total[i][0].v[j], x[i][1][j] + total[i][1].v[j],
                                                         x[i][2][j], total[i][2].v[j]);
                        else
                            g[j] = gru_gates<MathFor<C>>(total[i][0].v[j], total[i][1].v[j], n_input[i][j],
                                                         total[i][2].v[j]);
                        const float after = gru_next(g[j], h[i][j]);
                        if (active && (paired || j < own_units)) h[i][j] = after;
                    }
                    if constexpr (kTakesTurns) *kept(turn, i) = {{h[i][0], h[i][1]}};
                    if (!last) send_state(turn, i);
                    result[i] = {Packed<S, 2>::round(h[i][0], h[i][1]),
                                 Packed<S, 8>::round(g[0].r, g[0].z, g[0].n, g[0].a, g[1].r, g[1].z, g[1].n, g[1].a)};
                }
            if (!last && (kTakesTurns || exchange != Exchange::grid)) team.sent(turn);
            if (!kTakesTurns && exchange == Exchange::grid) {
                if (s > 0 && warp_id() == warps() - 1) make_blank(team.done - 1);
                if (team.done % 2 == 0) release_fence();
            }

            // ---- What others do not wait for ---------------------------------------------------------------------
            if (!kInputFirst && !kTakesTurns && more) {
#pragma unroll
                for (int i = 0; i < kOwn; ++i) x_from[i] = advanced(x_from[i], x_step);
                load_x();
            }
#pragma unroll
            for (int i = 0; i < kOwn; ++i) {
                const int64_t behind = (turn_rows + rows_behind(i)) * out_row;
                const bool active = t < steps_of_item[i];
                store_pair<paired>(advanced(output, behind), result[i].h, active ? units_of_item[i] : 0);
                store_gates<S, paired>(advanced(gates, 4 * behind), 0, active ? gates_of_item[i] : 0, result[i].gates);
            }
            if (!more) break;
            if (next_turn == 0) {
                t += t_step;
                if (kTakesTurns) x_data = advanced(x_data, x_step);
                later = advanced(later, x_step);
                output = advanced(output, out_step);
                gates = advanced(gates, 4 * out_step);
            }

            // ---- The next state ------------------------------------------------------------------------------------
            if constexpr (kTakesTurns) {
                team.done = next_done;
                turn = next_turn;
            } else {
                ++team.done;
            }
            if (kTakesTurns ? kTwoStates : exchange != Exchange::grid) shown = state_size - shown;
            s = next_s;
        }

        // ---- Steps past each row, and the last state
        // ---------------------------------------------------
#pragma unroll 1
        for (turn = 0; turn < turns; ++turn)
#pragma unroll
            for (int i = 0; i < kOwn; ++i) {
                const int64_t row = first_row + turn * kTileRows + row_of(i);
                if (!mine[i] || row >= k.B) continue;
                const Vector<float, 2> state = kTakesTurns ? *kept(turn, i) : Vector<float, 2>{{h[i][0], h[i][1]}};
#pragma unroll 1
                for (int past = lengths[turn * kTileRows + row_of(i)]; past < T; ++past) {
                    const int64_t at = (past * k.B + row) * H + unit;
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
    static bool has_more_items(const GruPlan&) { return false; }

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
    GruPlan plan = gru_plan(k.storage, k.tf32, false, k.B, k.H, k.wish);
    const bool paired =
        all_paired(k.H, k.storage, k.gates, {k.gates_x.data, k.output}, {k.gates_x.step_stride, k.gates_x.row_stride});
    if (!paired) plan.shares = 1;  // the kernel for single elements has no such warps
    const ForwardParams params{k, plan};
    const Launch shape = launch_shape(plan, k.stream);
    const char* error = launch(kernel_of<Forward>(k.storage, k.tf32, paired, plan), shape, params);
    if (error) fail_to_launch("gru_forward", k, plan, error);
}

}  // namespace vssn

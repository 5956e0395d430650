// How a GRU call is laid out on the device: host code, no kernels.
//
// What a warp's registers do not hold of the weights (24 tiles of 512 bytes) lies in shared memory, and what that does
// not hold either is read from the L2 cache in each step. Of the teams that keep their weights on chip the plan takes
// the one with the fewest estimated cycles: larger ones share the products, and fewer of them run at once.
#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "gru_common.cuh"

namespace vssn {

namespace {

using gpu::kGruThreads;
using gpu::kRows;
using gpu::kUnits;
using gpu::RegisterDepths;

constexpr int kWarps = kGruThreads / gpu::kWarp;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
int element_bytes(Storage storage) { return storage == Storage::float32 ? 4 : 2; }

// What a product of this compute type takes.
struct ComputeType {
    int depth;       // of a k tile
    int tile_bytes;  // of 16 rows x depth
    bool tensor_cores;

    ComputeType(Storage storage, bool tf32)
        : depth(storage != Storage::float32 ? 16
                : tf32                      ? 8
                                            : 4),
          tile_bytes(storage != Storage::float32 || tf32 ? 512 : 256),
          tensor_cores(storage != Storage::float32 || tf32) {}
};

// Distance between rows of a product's right side: 16 modulo 128 bytes, as load_b likes it.
int operand_stride(int64_t width, int bytes) { return static_cast<int>((round_up(width * bytes, 128) + 16) / bytes); }

// The plan for a given team and batch tile; shared_bytes is 0 where it does not fit.
GruPlan lay_out(const gpu::DeviceLimits& device, Storage storage, bool tf32, bool backward, int64_t B, int64_t H,
                Exchange exchange, int blocks, int row_tiles, int tiles_at_once) {
    const ComputeType type(storage, tf32);
    const int bytes = element_bytes(storage), rows = kRows * row_tiles;
    const RegisterDepths depths = backward ? gpu::kBackwardDepths : gpu::kForwardDepths;
    const int most = type.tensor_cores ? depths.most : depths.full;
    const int64_t unit_tiles = ceil_div(ceil_div(H, kUnits), blocks), units = blocks * unit_tiles * kUnits;
    GruPlan plan{};
    plan.exchange = exchange;
    plan.blocks = blocks;
    plan.row_tiles = row_tiles;
    plan.tiles_at_once = tiles_at_once;
    plan.batch_tiles = ceil_div(B, rows);
    plan.unit_tiles = static_cast<int>(unit_tiles);
    plan.unit_tiles_inverse = static_cast<int>((65536 + unit_tiles - 1) / unit_tiles);
    plan.rounds = 1;
    plan.shares = 1;
    int64_t tiles;  // of weights, of a warp
    int across;     // tiles of rows that a k tile of a warp multiplies
    if (!backward) {
        if (unit_tiles > kWarps) return plan;  // a warp keeps the state of one unit tile
        const int64_t deep = ceil_div(H, type.depth);
        plan.groups = plan.unit_tiles;
        // Two slices of a cluster share the items; there a sum alone would leave a warp twice as many.
        const bool shares = exchange == Exchange::cluster && type.tensor_cores;
        plan.slices = static_cast<int>(
            std::min<int64_t>(kWarps / plan.groups, std::max<int64_t>(ceil_div(deep, most), shares ? 2 : 1)));
        if (shares && plan.slices < 2) return plan;
        const int64_t depth = ceil_div(deep, plan.slices);
        plan.register_depth = type.tensor_cores && depth <= depths.few ? depths.few : most;
        plan.depth = static_cast<int>(std::max<int64_t>(depth, plan.register_depth));
        if (exchange == Exchange::block && bytes == 2 && plan.register_depth == depths.few) plan.shares = 2;
        if (tiles_at_once > 1 && plan.slices == 1) return plan;  // turns take the barrier of the slices' sums
        across = 3;
        tiles = int64_t{3} * plan.depth;
    } else {
        const int64_t row_groups = ceil_div(units / kUnits, gpu::kBackwardTiles);
        const int64_t deep = 3 * unit_tiles * (kUnits / type.depth);
        plan.groups = static_cast<int>(std::min<int64_t>(row_groups, kWarps));
        plan.rounds = static_cast<int>(ceil_div(row_groups, plan.groups));
        const int at_most = kWarps / plan.groups;
        const auto slices = [&](int depth) {
            return static_cast<int>(std::min<int64_t>(at_most, ceil_div(deep, depth)));
        };
        // All four of the multiprocessor's schedulers should have a warp; in a block alone two, so that a thread has
        // fewer units to compute gradients of, which takes it longer than a product more.
        plan.slices = exchange == Exchange::block && type.tensor_cores
                          ? slices(1)
                          : slices(plan.groups * slices(most) >= 4 ? most : depths.few);
        const int64_t depth = ceil_div(deep, plan.slices);
        plan.register_depth = type.tensor_cores && depth <= depths.few ? depths.few : most;
        plan.depth = static_cast<int>(std::max<int64_t>(depth, plan.register_depth));
        if (unit_tiles > plan.groups * plan.slices) return plan;  // a thread has two pairs of units in each 8 rows
        const int64_t items = rows * unit_tiles * kUnits / 2;
        plan.parts = 1;
        while (row_tiles == 1 && 2 * plan.parts * items <= plan.threads() && 2 * plan.parts <= blocks * plan.slices)
            plan.parts *= 2;
        across = gpu::kBackwardTiles;
        tiles = int64_t{gpu::kBackwardTiles} * plan.depth * plan.rounds;
    }
    tiles -= int64_t{across} * plan.register_depth;

    const int warps = plan.groups * plan.slices;
    const int64_t deep_width = int64_t{plan.slices} * plan.depth * type.depth;
    const bool through_shared = exchange != Exchange::grid;
    int64_t at = gpu::kHeaderBytes;
    plan.operand = static_cast<int>(at);
    if (!backward) {
        plan.stride = operand_stride(std::max(units, deep_width), bytes);
        // In turns one is multiplied while the next one comes.
        at +=
            (through_shared || (tiles_at_once > 1 && type.tensor_cores) ? 2 : 1) * rows * int64_t{plan.stride} * bytes;
        plan.carry = static_cast<int>(at);
        if (tiles_at_once > 1) at += int64_t{tiles_at_once} * rows * unit_tiles * kUnits * 4;
        plan.partials = static_cast<int>(at);
        if (plan.slices > 1) at += int64_t{warps} * 2 * row_tiles * 3 * gpu::kWarp * 8;
    } else {
        plan.stride = operand_stride(deep_width, bytes);
        at += 2 * rows * int64_t{plan.stride} * bytes;
        plan.carry = static_cast<int>(at);
        at += int64_t{2} * tiles_at_once * rows * unit_tiles * kUnits * 4;
        plan.partials = static_cast<int>(at);
        if (through_shared) at += 2 * int64_t{blocks} * plan.slices * rows * (unit_tiles * kUnits + 4) * 4;
    }
    plan.tiles = static_cast<int>(at);
    const int64_t room = device.shared_bytes - at;
    if (room < 0) return plan;
    const int64_t fit = room / (int64_t{warps} * across * type.tile_bytes) * across;
    plan.shared_tiles = static_cast<int>(std::min(tiles, fit));
    plan.streamed_tiles = static_cast<int>(tiles - plan.shared_tiles);
    plan.shared_bytes = static_cast<int>(at + int64_t{warps} * plan.shared_tiles * type.tile_bytes);

    int64_t teams = std::min<int64_t>(ceil_div(plan.batch_tiles, tiles_at_once), 65535);
    if (exchange == Exchange::grid) {
        teams = std::min(teams, std::max<int64_t>(1, device.multiprocessors / blocks));
        if (plan.streamed_tiles > 0) teams = 1;  // packed once
        const int64_t sent = backward ? int64_t{blocks} * plan.slices * rows * units * 4 : rows * units * bytes;
        if (backward || tiles_at_once > 1) plan.counter_bytes = 4 * teams * tiles_at_once;
        // Forward enough for kernels that take no turns, also where the plan has them.
        plan.exchange_bytes = (backward ? 2 * tiles_at_once : gpu::kBuffersInGrid) * teams * sent;
        if (!backward) plan.blank_bytes = plan.exchange_bytes;
    }
    plan.teams = teams;
    plan.workspace_bytes = plan.exchange_bytes + int64_t{blocks} * warps * plan.streamed_tiles * type.tile_bytes;
    return plan;
}

// Cycles of a step beside products, memory and the exchange: its instructions, most of which wait for the one before.
// As an H200 took them (benchmarks/results/gpu/layouts.csv); two warps that share items have half of them. Single
// precision has wider accesses and, in full, multiply-adds whose weights and operands wait for each other.
double instruction_cycles(const GruPlan& plan, const ComputeType& type, bool backward, int bytes) {
    // Backward there are no registers for two tiles of rows and the sums of all blocks: three times the time of one.
    if (plan.exchange == Exchange::grid)
        return ((backward ? 3500 : 2000) + 25.0 * plan.blocks) * (backward && plan.row_tiles == 2 ? 3 : 1);
    const double far = plan.blocks > 8 ? 100 : 0;
    if (!backward) {
        if (plan.exchange == Exchange::block) return plan.shares == 2 ? 600 : 1200;
        return far + (!type.tensor_cores ? 1700 : bytes == 4 ? 800 : 300);
    }
    const int64_t items = int64_t{kRows} * plan.row_tiles * plan.unit_tiles * kUnits / 2;
    const int64_t most = ceil_div(items, plan.threads());
    // A second item of 8 rows takes the kernel for single elements.
    const double each = 1200.0 * static_cast<double>(most * (type.tensor_cores && plan.row_tiles == 1 ? most : 1));
    if (!type.tensor_cores) return far + 1700 + each;
    return far + (plan.exchange == Exchange::block ? 800 : bytes == 4 ? 700 : 400) + each;
}

// Cycles of a step of all tiles of a team that take turns, roughly: the products at 62% of mma.sync's peak rate (or 80%
// of the multiply-adds'), at least a chain of them; weights and operands at 128 bytes a cycle from shared memory, 45
// from L2; 200 for the gates, backward 100; 30 for a block's barrier; to another block of the cluster 210, 10 bytes a
// cycle (backward, where no block sends the same to all, 14) and 4 for each block that is sent to; through L2 2000,
// then 32 bytes a cycle, and 340 for each eight sums that a thread collects there; forward without turns, where the
// state is its own flag, 300 and the bytes; and the instructions. Turns hide all but 500 of the 2000: until what a
// block has stored is released.
double step_cycles(const GruPlan& plan, const ComputeType& type, bool backward, int bytes) {
    const double across = backward ? gpu::kBackwardTiles : 3, warps = plan.groups * plan.slices;
    const double deep = static_cast<double>(plan.depth) * plan.rounds, units = plan.unit_tiles * kUnits;
    const double rows = kRows * plan.row_tiles, products = warps * across * deep * plan.row_tiles;
    double cycles = type.tensor_cores ? std::max(products / 0.62, 18 * deep) : products * 4 / 0.8;
    cycles += warps * plan.shared_tiles * type.tile_bytes / 128 + warps * plan.streamed_tiles * type.tile_bytes / 45;
    cycles += warps * deep * rows * type.depth * bytes / 128;
    cycles += backward ? 100 : 200;
    cycles += instruction_cycles(plan, type, backward, bytes);
    const double sums = plan.blocks * plan.slices,
                 sent = backward ? sums * rows * units * 4 : rows * plan.blocks * units * bytes;
    if (backward)
        cycles += 30;
    else if (plan.slices > 1)
        cycles += 30 + 2 * warps * 2 * plan.row_tiles * 3 * gpu::kWarp * 8 / 128;
    if (plan.exchange == Exchange::block) return cycles + 30 + (backward ? sent / 128 : 0);
    if (plan.exchange == Exchange::cluster) return cycles + 210 + sent / (backward ? 14 : 10) + 4 * plan.blocks;
    const double latency = 2000, read = (backward ? sums * rows * units * 4 : sent) / 32 +
                                        340 * (backward ? std::ceil(sums / plan.parts / 8) : 1);
    const int turns = plan.tiles_at_once;
    if (turns == 1) return backward ? cycles + latency + read : cycles + 300 + sent / 32;
    // What a turn waits for was sent so many turns before. Forward the read is hidden too: on tensor cores by all that
    // the turn before it does, else by what follows its products.
    const double release = 500;
    const double own = backward            ? cycles + read + release
                       : type.tensor_cores ? std::max(cycles + release, read)
                                           : cycles - 200 + std::max(200 + release, read);
    return turns * std::max(own, (latency + own) / (backward ? turns : turns - 1));
}

bool fits(const GruPlan& plan) { return plan.shared_bytes > 0; }
bool on_chip(const GruPlan& plan) { return fits(plan) && plan.streamed_tiles == 0; }

const char* name(Exchange exchange) {
    return exchange == Exchange::block ? "block" : exchange == Exchange::cluster ? "cluster" : "grid";
}

std::string sizes(int64_t B, int64_t H) { return "B = " + std::to_string(B) + ", H = " + std::to_string(H); }

}  // namespace

GruPlan gru_plan(Storage storage, bool tf32, bool backward, int64_t B, int64_t H, const GruWish& wish) {
    const gpu::DeviceLimits device = gpu::device_limits();
    const int64_t unit_tiles = ceil_div(H, kUnits);
    const auto lay = [&](Exchange exchange, int64_t blocks, int row_tiles, int tiles_at_once) {
        return lay_out(device, storage, tf32, backward, B, H, exchange, static_cast<int>(blocks), row_tiles,
                       tiles_at_once);
    };
    // In full precision the multiply-adds leave no time to win by wider batch tiles; backward no kernel has wide turns.
    const ComputeType type(storage, tf32);
    const auto widest = [&](int at_once) { return type.tensor_cores && !(backward && at_once > 1) ? 2 : 1; };
    GruPlan best{};
    // The fewest cycles of a step, times the waves in which the batch tiles run; by the device's own answer how many
    // run at once. A larger team must be worth it, and so must more tiles that take turns.
    const auto cost = [](const GruPlan& p) {
        return static_cast<double>(ceil_div(ceil_div(p.batch_tiles, p.tiles_at_once), p.at_once)) * p.step_cycles;
    };
    const auto consider_tiles = [&](Exchange exchange, int64_t blocks, int row_tiles, int tiles_at_once, bool streams) {
        GruPlan plan = lay(exchange, blocks, row_tiles, tiles_at_once);
        if (!fits(plan) || (!streams && !on_chip(plan))) return;
        plan.at_once =
            backward ? gpu::backward_launchable(storage, tf32, plan) : gpu::forward_launchable(storage, tf32, plan);
        if (exchange == Exchange::grid) plan.at_once = std::min<int64_t>(plan.at_once / blocks, plan.teams);
        if (plan.at_once == 0) return;
        if (exchange == Exchange::grid) plan.teams = std::min<int64_t>(plan.teams, plan.at_once);
        plan.step_cycles = step_cycles(plan, type, backward, element_bytes(storage));
        if (!fits(best) || cost(plan) < 0.95 * cost(best)) best = plan;
    };
    // Tiles take turns in a grid, whose exchange is long, and only where the weights are on chip.
    const auto consider = [&](Exchange exchange, int64_t blocks, bool streams) {
        const int most_at_once = exchange == Exchange::grid ? gpu::kMostAtOnce : 1;
        const int wished_at_once = std::min(wish.tiles_at_once, most_at_once);
        for (int at_once = std::max(1, wished_at_once); at_once <= (wished_at_once ? wished_at_once : most_at_once);
             ++at_once)
            for (int row_tiles = 1; row_tiles <= widest(at_once); ++row_tiles)
                if (wish.row_tiles == 0 || row_tiles == std::min(wish.row_tiles, widest(at_once)))
                    consider_tiles(exchange, blocks, row_tiles, at_once, streams && at_once == 1);
    };
    // Several unit tiles a block make smaller teams, and more of them.
    const auto consider_grid = [&] {
        for (const int64_t tiles : {4, 2, 1})
            consider(Exchange::grid,
                     ceil_div(unit_tiles, std::max(tiles, ceil_div(unit_tiles, device.multiprocessors))), tiles == 1);
    };
    if (wish.exchange != 0) {
        const auto exchange = static_cast<Exchange>(wish.exchange);
        if (exchange == Exchange::grid && wish.blocks == 0)
            consider_grid();
        else
            consider(exchange, std::max(1, wish.blocks), true);
    } else {
        if (H <= 128) consider(Exchange::block, 1, false);
        for (int blocks = 2; blocks <= device.max_cluster && H <= 512; blocks *= 2)
            // Backward also blocks without units: the others' sums have fewer sources each.
            if (blocks <= (backward ? 2 : 1) * unit_tiles) consider(Exchange::cluster, blocks, false);
        // Backward a cluster, where one holds the weights, is always faster; forward a grid has little more to wait
        // for, and may be where a step is long. A plan is made at every call: no more of them than that.
        if (!fits(best) || (!backward && H > 256)) consider_grid();
    }
    const GruPlan plan = best;
    if (!fits(plan))
        throw std::runtime_error(std::string("gru_") + (backward ? "backward" : "forward") + ": " + sizes(B, H) +
                                 " does not fit this device (" + std::to_string(device.multiprocessors) +
                                 " multiprocessors, " + std::to_string(device.shared_bytes) +
                                 " bytes of shared memory a block); use backend='reference'");
    return plan;
}

std::string describe(const GruPlan& plan) {
    const auto number = [](int64_t n) { return std::to_string(n); };
    return std::string(name(plan.exchange)) + ": " + number(plan.teams) + " teams of " + number(plan.blocks) +
           " blocks of " + number(plan.threads()) + " threads, " + number(kRows * plan.row_tiles) + " rows, " +
           number(plan.tiles_at_once) + " tiles at once; of a block " + number(plan.unit_tiles * kUnits) +
           " units in " + number(plan.groups) + " groups of " + number(plan.slices * plan.shares) + " warps, " +
           number(plan.shared_bytes) + " bytes of shared memory; of a warp's weights " + number(plan.register_depth) +
           " of " + number(plan.depth) + " k tiles (" + number(plan.rounds) + " rounds) in registers, " +
           number(plan.shared_tiles) + " tiles in shared memory, " + number(plan.streamed_tiles) + " streamed; " +
           number(plan.at_once) + " at once; estimated " + number(static_cast<int64_t>(plan.step_cycles)) +
           " cycles a step";
}

namespace gpu {

bool all_paired(int64_t H, Storage storage, const void* gates, std::initializer_list<const void*> tensors,
                std::initializer_list<int64_t> strides) {
    bool paired = H % 2 == 0 && reinterpret_cast<uintptr_t>(gates) % 16 == 0;
    for (const void* tensor : tensors)
        paired &= reinterpret_cast<uintptr_t>(tensor) % (2 * element_bytes(storage)) == 0;
    for (const int64_t stride : strides) paired &= stride % 2 == 0;
    return paired;
}

Launch launch_shape(const GruPlan& plan, void* stream) {
    Launch shape;
    shape.grid_x = plan.blocks;
    shape.grid_y = plan.teams;
    shape.threads = plan.threads();
    shape.cluster = plan.exchange == Exchange::cluster ? plan.blocks : 1;
    shape.cooperative = plan.exchange == Exchange::grid;
    shape.shared_bytes = static_cast<size_t>(plan.shared_bytes);
    shape.stream = stream;
    return shape;
}

void require_countable(const char* kernel, const GruProblem& k) {
    constexpr int64_t most = 1 << 30;
    if (k.steps > most || k.H > most / 4)
        throw std::runtime_error(std::string(kernel) + ": T = " + std::to_string(k.steps) + ", " + sizes(k.B, k.H) +
                                 " is too long a sequence or state");
}

void fail_to_launch(const char* kernel, const GruProblem& k, const GruPlan& plan, const char* error) {
    throw std::runtime_error(std::string(kernel) + ": T = " + std::to_string(k.steps) + ", " + sizes(k.B, k.H) + " (" +
                             describe(plan) + "): " + error);
}

}  // namespace gpu

}  // namespace vssn

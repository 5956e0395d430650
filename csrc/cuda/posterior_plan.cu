// posterior.h's posterior_plan: which variant takes these sizes on the current device, and how its memory is laid out.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "posterior_common.cuh"

namespace vssn {

namespace posterior {

namespace {

constexpr int kLargestCluster = 8;  // what every device with clusters can run
constexpr int kFewestWarps = 4, kMostWarps = kMaxThreads / kWarp;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What the plan needs to know of the product and of the direction.
struct Sizes {
    int64_t M, Z;
    int nets;
    int parts, sums;  // of the Pass
    int depth, stored_bytes, tile_bytes;
    bool tensor_cores;
    DeviceLimits device;

    int hidden_tiles() const { return static_cast<int>(divide_up(M, kUnits)); }
    int groups() const { return static_cast<int>(divide_up(Z, kUnits)); }
    // Elements between rows of a buffer: 16 modulo 128 bytes, so that load_b meets no bank conflict.
    int stride(int64_t columns) const {
        return static_cast<int>((divide_up(columns * stored_bytes, 128) * 128 + 16) / stored_bytes);
    }
};

template <class C>
Sizes sizes_of(int64_t M, int64_t Z, bool prior, bool backward) {
    using P = Product<C>;
    return {M,
            Z,
            prior ? 2 : 1,
            backward ? 2 : 1,
            backward ? 1 : 2,
            P::kDepth,
            static_cast<int>(sizeof(typename P::Stored)),
            P::kTileBytes,
            P::kTensorCores,
            device_limits()};
}

int log2_of(int power) {
    int log2 = 0;
    while (1 << log2 < power) ++log2;
    return log2;
}

// Gives the next `bytes` of shared memory.
int take(PosteriorPlan& plan, int64_t bytes) {
    const int64_t at = plan.shared_bytes;
    plan.shared_bytes += divide_up(bytes, 16) * 16;
    return static_cast<int>(std::min<int64_t>(at, INT32_MAX));
}

int take_bias(PosteriorPlan& plan, const Sizes& s) {
    return take(plan, s.sums == 2 ? 2 * sizeof(float) * plan.groups * kUnits : 0);
}

void lay_out_buffers(PosteriorPlan& plan, const Sizes& s) {
    plan.latent_stride = s.stride(static_cast<int64_t>(s.parts) * plan.groups * kUnits);
    plan.hidden_stride = s.stride(static_cast<int64_t>(plan.chunk) * kUnits);
    plan.latent_at = take(plan, static_cast<int64_t>(kRows) * plan.latent_stride * s.stored_bytes);
    plan.hidden_at = take(plan, static_cast<int64_t>(kRows) * plan.hidden_stride * s.stored_bytes);
    plan.bias_at = take_bias(plan, s);
}

template <class Shape>
PosteriorPlan plan_registers(const Sizes& s, bool wide) {
    PosteriorPlan plan{};
    plan.variant = PosteriorVariant::registers;
    plan.wide = wide;
    plan.cluster = 1;
    plan.warps = Shape::kWarps;
    plan.splits = Shape::kSplits;
    plan.slice = Shape::kMaxM / kUnits;
    plan.chunk = s.nets * plan.slice;
    plan.groups = Shape::kGroups;
    plan.latent_stride = Shape::latent_stride(s.parts);
    plan.hidden_stride = Shape::hidden_stride(s.nets);
    plan.exchange_at =
        take(plan, Shape::kSplits == 1 ? 0 : Shape::kWarps * kWarp * 2 * s.sums * static_cast<int64_t>(sizeof(float)));
    const int64_t row = static_cast<int64_t>(kRows) * s.stored_bytes;
    plan.latent_at = take(plan, Shape::kLatentBuffers * row * plan.latent_stride);
    plan.hidden_at = take(plan, Shape::kHiddenBuffers * row * plan.hidden_stride);
    plan.bias_at = take_bias(plan, s);
    return plan;
}

// The plan with `weight_share` of the weights, or what fits, in shared memory; shared_bytes < 0 where not even the
// buffers do, or the tiles are too many to count.
PosteriorPlan plan_in_memory(const Sizes& s, int cluster, bool scatter, double weight_share) {
    PosteriorPlan plan{};
    plan.cluster = cluster;
    plan.scatter = scatter;
    plan.slice = static_cast<int>(divide_up(s.hidden_tiles(), cluster));
    plan.groups = s.groups();
    plan.latent_depth = static_cast<int>(divide_up(s.Z, s.depth));
    plan.slice_depth = plan.slice * (kUnits / s.depth);
    const int hidden_tiles = s.nets * plan.slice, k_steps = s.nets * plan.slice_depth;
    const int64_t tiles = static_cast<int64_t>(plan.slice) * (s.parts + s.nets - 1) * plan.latent_depth +
                          static_cast<int64_t>(plan.groups) * (s.sums + s.nets - 1) * plan.slice_depth;
    if (tiles > INT32_MAX) return plan.shared_bytes = -1, plan;
    plan.tiles = static_cast<int>(tiles);

    // More warps share a sum over M where that is long and there are few groups.
    plan.splits = 1;
    const int shortest = s.tensor_cores ? 8 : 4;
    while (cluster == 1 && 2 * plan.splits * plan.groups <= kMostWarps && k_steps >= 2 * plan.splits * shortest)
        plan.splits *= 2;
    plan.chunk = hidden_tiles;
    for (;;) {
        if (plan.chunk < hidden_tiles) plan.splits = 1;
        plan.shared_bytes = 0;
        const int64_t sums = static_cast<int64_t>(s.sums) * kTileOfSums;
        const int64_t of_block = scatter ? divide_up(plan.groups, cluster) : plan.groups;
        const int64_t slots = static_cast<int64_t>(cluster) * plan.splits;
        plan.exchange_at = take(plan, slots > 1 ? (cluster > 1 && !scatter ? 2 : 1) * slots * of_block * sums : 0);
        plan.mailboxes_at = take(plan, 2 * sizeof(Mailbox));
        plan.held_at = take(plan, plan.chunk < hidden_tiles ? plan.groups * sums : 0);
        lay_out_buffers(plan, s);
        if (plan.shared_bytes <= s.device.shared_bytes) break;
        if (plan.chunk == 1) return plan.shared_bytes = -1, plan;
        plan.chunk = (plan.chunk + 1) / 2;
    }
    const int64_t room = (s.device.shared_bytes - plan.shared_bytes) / s.tile_bytes;
    plan.kept = static_cast<int>(std::min(room, static_cast<int64_t>(static_cast<double>(tiles) * weight_share)));
    // The weights come first, so that their tiles are aligned as the block's memory is.
    const int weights = plan.kept * s.tile_bytes;
    for (int* at :
         {&plan.exchange_at, &plan.mailboxes_at, &plan.held_at, &plan.latent_at, &plan.hidden_at, &plan.bias_at})
        *at += weights;
    plan.shared_bytes += weights;
    plan.workspace_bytes = plan.kept < plan.tiles ? static_cast<int64_t>(cluster) * tiles * s.tile_bytes : 0;
    plan.variant = plan.kept < plan.tiles ? PosteriorVariant::streamed
                   : cluster == 1         ? PosteriorVariant::shared
                   : scatter              ? PosteriorVariant::scatter
                                          : PosteriorVariant::cluster;
    plan.warps = std::clamp(std::max(hidden_tiles, plan.groups * plan.splits), kFewestWarps, kMostWarps);
    plan.cluster_log2 = log2_of(plan.cluster);
    plan.splits_log2 = log2_of(plan.splits);
    return plan;
}

// Cycles of a step, roughly: weights at 128 bytes a cycle from shared memory and 32 from L2 (in full precision each is
// read beside its operand and by four lanes: 6 times that); 16 elementary functions a cycle; 300 cycles for bytes to
// reach another block, which takes 16 a cycle.
double estimate(const Sizes& s, const PosteriorPlan& plan) {
    const double effort = s.tensor_cores ? 1 : 6;
    const double kept = static_cast<double>(plan.kept) * s.tile_bytes;
    const double streamed = static_cast<double>(plan.tiles - plan.kept) * s.tile_bytes;
    const double functions = 2.0 * kUnits * kRows * s.nets * plan.slice;
    double cycles = effort * kept / 128 + std::max(effort / 128, 1.0 / 32) * streamed + functions / 16;
    if (plan.cluster > 1) {
        const double sums = static_cast<double>(plan.groups) * s.sums * kTileOfSums * (plan.cluster - 1);
        const double latents = static_cast<double>(plan.groups) * kUnits * kRows * s.parts * s.stored_bytes;
        cycles += plan.scatter ? 600 + (sums / plan.cluster + latents) / 16 : 300 + sums / 16;
    }
    return cycles;
}

// By the estimate, times the waves in which the batch tiles run.
template <class AtOnce>
PosteriorPlan fastest(const Sizes& s, int64_t B, PosteriorVariant wanted, const AtOnce& at_once) {
    PosteriorPlan best{};
    double best_cycles = 0;
    const int largest = std::min(s.device.max_cluster, kLargestCluster);
    for (int cluster = 1; cluster <= largest; cluster *= 2)
        for (const bool scatter : {false, true}) {
            if (scatter && cluster == 1) continue;
            if (cluster > 1 && (cluster - 1) * divide_up(s.hidden_tiles(), cluster) >= s.hidden_tiles()) continue;
            const bool half = wanted == PosteriorVariant::streamed;
            PosteriorPlan plan = plan_in_memory(s, cluster, scatter, half ? 0.5 : 1);
            if (plan.shared_bytes < 0) continue;
            if (wanted != PosteriorVariant::choice && plan.variant != wanted) continue;
            plan.at_once = at_once(plan);
            if (plan.at_once == 0) continue;
            plan.step_cycles = estimate(s, plan);
            const int64_t waves = divide_up(std::max<int64_t>(divide_up(B, kRows), 1), plan.at_once);
            // A cluster asked for by name is the largest one.
            const double cycles =
                wanted == PosteriorVariant::choice ? plan.step_cycles * static_cast<double>(waves) : -cluster;
            if (best.shared_bytes == 0 || cycles < best_cycles) {
                best = plan;
                best_cycles = cycles;
            }
        }
    return best;
}

const char* name_of(PosteriorVariant variant) {
    constexpr const char* kNames[] = {"choice", "registers", "shared", "cluster", "scatter", "streamed"};
    return kNames[static_cast<int>(variant)];
}

}  // namespace

}  // namespace posterior

PosteriorPlan posterior_plan(Storage storage, bool tf32, int64_t B, int64_t M, int64_t Z, bool prior, bool backward,
                             PosteriorVariant variant) {
    using namespace posterior;
    const Sizes s = by_compute_type(
        storage, tf32, [&](auto compute) { return sizes_of<typename decltype(compute)::type>(M, Z, prior, backward); });
    const bool fits_narrow = s.stored_bytes == 2 && M <= Narrow::kMaxM && Z <= Narrow::kMaxZ;
    const bool fits_wide = s.stored_bytes == 2 && M <= Wide::kMaxM && Z <= Wide::kMaxZ;
    // The wide shape works on zeros beyond M and Z, so smaller sizes than half of it are left to shared memory. At half
    // of it an H200 took 1.5 us a step where shared memory took 2.1.
    const bool worth_wide = M >= Wide::kMaxM / 2 || Z >= Wide::kMaxZ / 2;
    if (variant == PosteriorVariant::registers || variant == PosteriorVariant::choice) {
        const bool wide = !fits_narrow && fits_wide && (worth_wide || variant == PosteriorVariant::registers);
        if (fits_narrow || wide) {
            const PosteriorPlan plan = wide ? plan_registers<Wide>(s, true) : plan_registers<Narrow>(s, false);
            if (plan.shared_bytes <= s.device.shared_bytes) return plan;
        }
    }
    const PosteriorPlan plan = fastest(s, B, variant, [&](const PosteriorPlan& p) {
        return backward ? backward_at_once(storage, tf32, p) : forward_at_once(storage, tf32, p);
    });
    if (plan.shared_bytes == 0)
        throw std::runtime_error(std::string("posterior_sequence: no ") +
                                 (variant == PosteriorVariant::choice ? "variant" : name_of(variant)) +
                                 " can hold M=" + std::to_string(M) + ", Z=" + std::to_string(Z) + " in the " +
                                 std::to_string(s.device.shared_bytes) +
                                 " bytes of shared memory of a block of this device; use backend='reference'");
    return plan;
}

}  // namespace vssn

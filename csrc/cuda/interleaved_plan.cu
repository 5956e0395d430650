// interleaved.h's interleaved_plan: how many blocks share a batch tile on the current device, and how their memory is
// laid out.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "interleaved_common.cuh"

namespace vssn {

namespace interleaved {

namespace {

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What the plan needs to know of the product and of the direction.
struct Sizes {
    int64_t units[kLayers];  // E, H, M, Z
    bool backward, with_resets;
    int depth, stored_bytes, tile_bytes;
    bool tensor_cores;
    DeviceLimits device;

    int64_t tiles(Layer layer) const { return divide_up(units[layer], kUnits); }
    int64_t slots(Layer layer, int cluster) const { return divide_up(tiles(layer), cluster); }
    int64_t steps_over(Layer layer) const { return divide_up(units[layer], depth); }
    // Elements between rows of a buffer: 16 modulo 128 bytes, so that load_b meets no bank conflict.
    int64_t stride(int64_t columns) const { return (divide_up(columns * stored_bytes, 128) * 128 + 16) / stored_bytes; }
    // Sums of a tile that warps may share, the longest of them in k-steps, and how many of these are worth a warp.
    int sums(Layer layer) const { return backward ? 1 : layer == kState ? 4 : layer == kLatent ? 2 : 1; }
    int64_t longest_sum(Layer layer) const {
        const int64_t over[2][kLayers] = {{steps_over(kLatent), std::max(steps_over(kState), steps_over(kEmbed)),
                                           steps_over(kState), steps_over(kHidden)},
                                          {steps_over(kState), std::max(steps_over(kState), steps_over(kHidden)),
                                           steps_over(kLatent), steps_over(kEmbed)}};
        return over[backward][layer];
    }
    int64_t shortest_share() const { return tensor_cores ? 2 : 4; }
    // What a layer sends: forward its units, backward for each unit of H four gradients, of Z two.
    int parts(Layer layer) const { return !backward ? 1 : layer == kState ? 4 : layer == kLatent ? 2 : 1; }
};

template <class C>
Sizes sizes_of(const InterleavedSizes& k, bool backward) {
    using P = Product<C>;
    return {
        {k.E, k.H, k.M, k.Z}, backward,        k.with_resets,  P::kDepth, static_cast<int>(sizeof(typename P::Stored)),
        P::kTileBytes,        P::kTensorCores, device_limits()};
}

struct StepProduct {
    Layer to, over;
    int parts;
};

// The products of a step, in its order.
constexpr StepProduct kForwardProducts[] = {
    {kEmbed, kLatent, 1}, {kState, kState, 3}, {kState, kEmbed, 3}, {kHidden, kState, 1}, {kLatent, kHidden, 2}};
constexpr StepProduct kBackwardProducts[] = {
    {kHidden, kLatent, 2}, {kState, kHidden, 1}, {kEmbed, kState, 3}, {kState, kState, 3}, {kLatent, kEmbed, 1}};

// The plan with `weight_share` of the weights, or what fits, in shared memory; shared_bytes < 0 where not even the
// buffers do.
InterleavedPlan plan_of(const Sizes& s, int cluster, double weight_share) {
    InterleavedPlan plan{};
    plan.cluster = cluster;
    while (1 << plan.cluster_log2 < cluster) ++plan.cluster_log2;
    int64_t tiles = 0;
    for (int i = 0; i < 5; ++i) {
        const StepProduct& product = s.backward ? kBackwardProducts[i] : kForwardProducts[i];
        const int64_t depth = s.steps_over(product.over);
        plan.matrices[i] = {product.parts, static_cast<int>(depth),
                            static_cast<int>(std::min<int64_t>(tiles, INT32_MAX))};
        tiles += s.slots(product.to, cluster) * product.parts * depth;
    }
    if (tiles > INT32_MAX) return plan.shared_bytes = -1, plan;
    plan.tiles = static_cast<int>(tiles);
    int64_t partial_bytes = 0;
    for (const Layer layer : {kEmbed, kState, kHidden, kLatent}) {
        const int64_t bytes = s.tiles(layer) * kUnits * kRows * s.parts(layer) * s.stored_bytes;
        plan.layer_tiles[layer] = static_cast<int>(s.tiles(layer));
        plan.sent_bytes[layer] = static_cast<int>(std::min<int64_t>(bytes, INT32_MAX));
        int& groups_log2 = plan.groups_log2[layer];
        while (1 << groups_log2 < std::min<int64_t>(s.slots(layer, cluster), kWarps)) ++groups_log2;
        // More warps share a sum where it is long enough for each.
        int& splits_log2 = plan.splits_log2[layer];
        while (2 << (splits_log2 + groups_log2) <= kWarps && s.longest_sum(layer) >= s.shortest_share()
                                                                                         << (splits_log2 + 1))
            ++splits_log2;
        const int64_t others = (int64_t{1} << splits_log2) - 1;
        partial_bytes = std::max(partial_bytes, others * (1 << groups_log2) * s.sums(layer) * kTileOfSums);
    }

    // Gives the next `bytes` of shared memory.
    const auto take = [&](int64_t bytes) {
        const int64_t at = plan.shared_bytes;
        plan.shared_bytes += divide_up(bytes, 16) * 16;
        return static_cast<int>(std::min<int64_t>(at, INT32_MAX));
    };
    const auto buffer = [&](Layer layer, int& stride) {
        const int64_t elements = s.stride(s.tiles(layer) * kUnits * s.parts(layer));
        stride = static_cast<int>(std::min<int64_t>(elements, INT32_MAX));
        return take(kRows * elements * s.stored_bytes);
    };
    const auto of_lanes = [&](Layer layer, bool wanted) {
        return take(wanted ? s.slots(layer, cluster) * kTileOfSums : 0);
    };
    plan.embed_at = buffer(kEmbed, plan.embed_stride);
    plan.state_at[0] = plan.state_at[1] = buffer(kState, plan.state_stride);
    plan.hidden_at = buffer(kHidden, plan.hidden_stride);
    plan.latent_at = buffer(kLatent, plan.latent_stride);
    if (!s.backward) plan.state_at[1] = buffer(kState, plan.state_stride);
    if (!s.backward && s.with_resets) plan.anew_at = buffer(kState, plan.state_stride);
    plan.carry_at = of_lanes(kState, true);
    plan.first_at = of_lanes(kState, s.backward);
    plan.state_anew_at = of_lanes(kState, s.with_resets);
    plan.sums_at = of_lanes(kState, s.backward && s.with_resets);
    plan.latent_carry_at = of_lanes(kLatent, s.backward);
    plan.latent_anew_at = of_lanes(kLatent, !s.backward && s.with_resets);
    plan.latent_sums_at = of_lanes(kLatent, s.backward && s.with_resets);
    plan.partial_at[0] = take(partial_bytes);
    plan.partial_at[1] = take(s.backward ? partial_bytes : 0);
    plan.gates_bias_at = take(s.backward ? 0 : s.slots(kState, cluster) * 3 * kUnits * sizeof(float));
    plan.out_bias_at = take(s.backward ? 0 : s.slots(kLatent, cluster) * 2 * kUnits * sizeof(float));
    plan.mailboxes_at = take(cluster > 1 ? 2 * kLayers * sizeof(Mailbox) : 0);
    if (plan.shared_bytes > s.device.shared_bytes) return plan.shared_bytes = -1, plan;

    const int64_t room = (s.device.shared_bytes - plan.shared_bytes) / s.tile_bytes;
    plan.kept = static_cast<int>(std::min(room, static_cast<int64_t>(static_cast<double>(tiles) * weight_share)));
    // The weights come first, so that their tiles are aligned as the block's memory is.
    const int weights = plan.kept * s.tile_bytes;
    for (int* at : {&plan.embed_at, &plan.state_at[0], &plan.state_at[1], &plan.hidden_at, &plan.latent_at,
                    &plan.anew_at, &plan.carry_at, &plan.first_at, &plan.state_anew_at, &plan.sums_at,
                    &plan.latent_carry_at, &plan.latent_anew_at, &plan.latent_sums_at, &plan.partial_at[0],
                    &plan.partial_at[1], &plan.gates_bias_at, &plan.out_bias_at, &plan.mailboxes_at})
        *at += weights;
    plan.shared_bytes += weights;
    plan.workspace_bytes = plan.kept < plan.tiles ? static_cast<int64_t>(cluster) * tiles * s.tile_bytes : 0;
    plan.variant = plan.kept < plan.tiles ? InterleavedVariant::streamed
                   : cluster == 1         ? InterleavedVariant::block
                                          : InterleavedVariant::cluster;
    plan.warps = kWarps;
    return plan;
}

// Cycles of a step, roughly. A product takes what its weights take to come, at 128 bytes a cycle from shared memory and
// 32 from L2 (in full precision each is read beside its operand and by four lanes: 6 times that), or what its longest
// warp takes, at 20 cycles for a tile on tensor cores and 32 with multiply-adds. 16 elementary functions a cycle; for
// each of the four exchanges 300 cycles to reach another block, which takes 16 bytes a cycle, or 40 for a barrier.
double estimate(const Sizes& s, const InterleavedPlan& plan) {
    const double effort = s.tensor_cores ? 1 : 6, of_tile = s.tensor_cores ? 20 : 32;
    const double far = static_cast<double>(plan.tiles - plan.kept) / plan.tiles;
    double cycles = 0;
    for (int i = 0; i < 5; ++i) {
        const StepProduct& product = s.backward ? kBackwardProducts[i] : kForwardProducts[i];
        const int64_t slots = s.slots(product.to, plan.cluster),
                      of_slot = plan.matrices[i].parts * plan.matrices[i].depth;
        const double bytes = static_cast<double>(slots * of_slot) * s.tile_bytes;
        const double coming = effort * bytes * (1 - far) / 128 + std::max(effort / 128, 1.0 / 32) * bytes * far;
        const int64_t share = divide_up(plan.matrices[i].depth, int64_t{1} << plan.splits_log2[product.to]);
        const int64_t rounds = divide_up(slots, int64_t{1} << plan.groups_log2[product.to]);
        cycles += std::max(coming, static_cast<double>(rounds * share * plan.matrices[i].parts) * of_tile);
        if (plan.splits_log2[product.to] > 0) cycles += 60;
    }
    for (const Layer layer : {kEmbed, kState, kHidden, kLatent}) {
        cycles += 3.0 * kUnits * kRows * static_cast<double>(s.slots(layer, plan.cluster)) / 16;
        cycles += plan.cluster > 1 ? 300 + plan.sent_bytes[layer] / 16.0 : 40;
    }
    return cycles;
}

// By the estimate, times the waves in which the batch tiles run.
template <class AtOnce>
InterleavedPlan fastest(const Sizes& s, const InterleavedSizes& k, const AtOnce& at_once) {
    InterleavedPlan best{};
    double best_cycles = 0;
    const bool half = k.variant == InterleavedVariant::streamed;
    for (int cluster = 1; cluster <= s.device.max_cluster; cluster *= 2) {
        if (cluster > 1 && (s.tiles(kState) < cluster || s.tiles(kHidden) < cluster)) break;
        InterleavedPlan plan = plan_of(s, cluster, half ? 0.5 : 1);
        if (plan.shared_bytes < 0) continue;
        if (k.variant != InterleavedVariant::choice && plan.variant != k.variant) continue;
        plan.at_once = at_once(plan);
        if (plan.at_once == 0) continue;
        plan.step_cycles = estimate(s, plan);
        const int64_t waves = divide_up(std::max<int64_t>(divide_up(k.B, kRows), 1), plan.at_once);
        // A cluster asked for by name is the largest one.
        const double cycles =
            k.variant == InterleavedVariant::choice ? plan.step_cycles * static_cast<double>(waves) : -cluster;
        if (best.shared_bytes == 0 || cycles < best_cycles) {
            best = plan;
            best_cycles = cycles;
        }
    }
    return best;
}

const char* name_of(InterleavedVariant variant) {
    constexpr const char* kNames[] = {"variant", "block", "cluster", "streamed"};
    return kNames[static_cast<int>(variant)];
}

}  // namespace

}  // namespace interleaved

InterleavedPlan interleaved_plan(const InterleavedSizes& k, bool backward) {
    using namespace interleaved;
    const Sizes s = by_compute_type(
        k.storage, k.tf32, [&](auto compute) { return sizes_of<typename decltype(compute)::type>(k, backward); });
    const InterleavedPlan plan = fastest(
        s, k, [&](const InterleavedPlan& p) { return backward ? backward_at_once(k, p) : forward_at_once(k, p); });
    if (plan.shared_bytes == 0)
        throw std::runtime_error(std::string("interleaved_sequence: no ") + name_of(k.variant) + " can hold " +
                                 sizes_text(k) + " in the " + std::to_string(s.device.shared_bytes) +
                                 " bytes of shared memory of a block of this device; use backend='reference'");
    return plan;
}

}  // namespace vssn

// The posterior's loop over steps with weights in shared memory and L2, in one block or in a cluster of them.
#pragma once

#include "posterior_exchange.cuh"
#include "posterior_sequences.cuh"
#include "posterior_weights.cuh"

namespace vssn::posterior {

// What the parts of run_in_memory share.
template <class Pass, Meeting meeting>
struct InMemory {
    using P = typename Pass::P;
    using Stored = typename P::Stored;
    using Result = typename Pass::Result;
    static constexpr int kSums = Pass::kSums;
    static constexpr int kStepsOfTile = kUnits / P::kDepth;

    const PosteriorPlan& plan;
    const Pass& pass;
    int rank;
    TileOrder<Pass> order;
    Exchange<Pass, meeting> exchange;
    WeightTiles weights;
    Stored *latent, *hidden;
    Quad* held;  // sums over the hidden tiles that the hidden buffer held before

    VSSN_DEVICE InMemory(const typename Pass::Params& params, const Pass& pass, int rank)
        : plan(params.plan),
          pass(pass),
          rank(rank),
          order(params),
          exchange(params.plan, rank),
          weights{dynamic_shared(), streamed_tiles<P>(params, rank), params.plan.kept},
          latent(reinterpret_cast<Stored*>(dynamic_shared() + params.plan.latent_at)),
          hidden(reinterpret_cast<Stored*>(dynamic_shared() + params.plan.hidden_at)),
          held(reinterpret_cast<Quad*>(dynamic_shared() + params.plan.held_at)) {}

    VSSN_DEVICE int hidden_tiles() const { return order.nets * plan.slice; }

    VSSN_DEVICE void put_latent(int group, const Result& result, bool to_all) const {
#pragma unroll
        for (int part = 0; part < Pass::kParts; ++part) {
            const int column = (part * plan.groups + group) * kUnits;
            if (to_all)
                send_to_all<P>(latent, plan.latent_stride, column, result.latent[part], exchange.mailboxes + 1,
                               plan.cluster);
            else
                put<P>(latent, plan.latent_stride, column, result.latent[part]);
        }
    }

    // A tile counts the posterior's hidden units of the slice, then the prior's.
    VSSN_DEVICE int net_of(int tile) const { return tile < plan.slice ? 0 : 1; }
    VSSN_DEVICE int unit_tile(int tile) const { return rank * plan.slice + tile - net_of(tile) * plan.slice; }
    VSSN_DEVICE typename Pass::Loaded hidden_input(int step, int tile) const {
        return pass.hidden_input(step, net_of(tile), unit_tile(tile));
    }

    VSSN_DEVICE void finish_hidden(int step, int tile, int column, const typename Pass::Loaded& input) const {
        Four products[1] = {zeros()};
        const typename Pass::Loaded inputs[1] = {input};
        StoredFour<Stored> kept[1];
        const int net = net_of(tile);
        for (int part = 0; part < (net == 0 ? Pass::kParts : 1); ++part)
            multiply_tiles<P, 1>(products, weights, order.in(tile, part), plan.latent_depth,
                                 latent + part * plan.groups * kUnits, plan.latent_stride);
        pass.template hidden_finish<1>(products, inputs, kept, unit_tile(tile));
        put<P>(hidden, plan.hidden_stride, column, products[0]);
        pass.store_hidden(step, net, unit_tile(tile), kept[0]);
    }

    // A group's sums over the hidden tiles below `end`; the buffer has those from `begin` on, of which each split takes
    // a share.
    VSSN_DEVICE void sum_up(Four* sums, int group, int split, int begin, int end) const {
        const int first = begin * kStepsOfTile, last = end * kStepsOfTile;
        const int share = (last - first + plan.splits - 1) >> plan.splits_log2, from = first + split * share;
        const int to = from + share < last ? from + share : last;
        const int own_to = to < plan.slice_depth ? to : plan.slice_depth;
        const int prior_from = from > plan.slice_depth ? from : plan.slice_depth;
#pragma unroll
        for (int sum = 0; sum < kSums; ++sum) {
            sums[sum] = zeros();
            if (begin > 0) add(sums[sum], held[(group * kSums + sum) * kWarp + lane_id()]);
        }
        multiply_tiles<P, kSums>(sums, weights, order.out(group) + from * kSums, own_to - from,
                                 hidden + (from - first) * P::kDepth, plan.hidden_stride);
        multiply_tiles<P, 1>(sums, weights, order.out(group) + (kSums - 1) * plan.slice_depth + prior_from,
                             to - prior_from, hidden + (prior_from - first) * P::kDepth, plan.hidden_stride);
    }

    VSSN_DEVICE void hold(int group, const Four* sums) const {
#pragma unroll
        for (int sum = 0; sum < kSums; ++sum) held[(group * kSums + sum) * kWarp + lane_id()] = quad(sums[sum]);
    }
};

template <class Pass, Meeting meeting>
VSSN_DEVICE void run_in_memory(const typename Pass::Params& params) {
    using P = typename Pass::P;
    const PosteriorPlan& plan = params.plan;
    const int rank = meeting == Meeting::block ? 0 : block_x() % plan.cluster, own = warp_id();
    const BatchTile batch(params.call, plan.cluster);
    const Pass pass(params, batch);
    const InMemory<Pass, meeting> block(params, pass, rank);
    const auto& exchange = block.exchange;

    for (int index = own; index < plan.kept; index += warps())
        P::store(block.order.load(pass, rank, index), dynamic_shared() + static_cast<int64_t>(index) * P::kTileBytes);
    pass.prepare_block();
    exchange.open_mailboxes();
    for (int group = own; group < plan.groups; group += warps()) {
        const auto result = pass.first_latent(group);
        block.put_latent(group, result, false);
        if (exchange.owns(group)) {
            pass.store_first(group, result);
            if (batch.steps == 0) pass.store_last(group, result);
        }
    }
    pass.zero_padding(rank, plan.cluster);
    if (exchange.alone())
        sync_block();
    else
        sync_cluster();

    const int hidden_tiles = block.hidden_tiles(), phases = exchange.splits_sums() ? 2 : 1;
    // Each is loaded when the warp begins with what comes before it: mostly a whole step ahead.
    auto hidden_input = block.hidden_input(0, own);
    typename Pass::LatentInputs latent_input{};
    pass.latent_input(latent_input, 0, exchange.group(own));
    for (int step = 0; step < batch.steps; ++step) {
        if (step > 0) exchange.await_latents(step - 1);
        int begin = 0, end = 0;
        while (end < hidden_tiles) {  // once, but where the hidden buffer holds a part of the tiles
            begin = end;
            end = begin + plan.chunk < hidden_tiles ? begin + plan.chunk : hidden_tiles;
            for (int tile = begin + own; tile < end; tile += warps()) {
                const auto input = hidden_input;
                const int next = tile + warps() < end ? tile + warps() : end + own;
                const bool last = next >= hidden_tiles;
                hidden_input = block.hidden_input(last ? step + 1 : step, last ? own : next);
                block.finish_hidden(step, tile, (tile - begin) * kUnits, input);
            }
            sync_block();
            for (int phase = 0; phase < (end == hidden_tiles ? phases : 1); ++phase) {
                const bool sums_up = phase == 0, finishes = end == hidden_tiles && phase == phases - 1;
                if (!sums_up) exchange.meet(step);
                const int items = sums_up ? plan.groups * plan.splits : exchange.count();
                for (int item = own, split = 0, passed = 0; item < items; item += warps()) {
                    int group = exchange.group(item);
                    if (sums_up) {
                        for (; item - passed >= plan.groups; ++split) passed += plan.groups;
                        group = item - passed;
                    }
                    Four sums[Pass::kSums];
                    if (sums_up)
                        block.sum_up(sums, group, split, begin, end);
                    else
                        exchange.take(step, group, sums);
                    if (finishes) {
                        const auto result = pass.latent_finish(sums, pass.prepared(step, group, latent_input), group);
                        block.put_latent(group, result, exchange.scatters());
                        const bool last = item + warps() >= items;
                        pass.latent_input(latent_input, last ? step + 1 : step,
                                          exchange.group(last ? own : item + warps()));
                        if (exchange.owns(group)) {
                            pass.store_latent(step, group, result);
                            if (step == batch.steps - 1) pass.store_last(group, result);
                        }
                    } else if (end == hidden_tiles) {
                        exchange.give(step, split, group, sums);
                    } else {
                        block.hold(group, sums);
                    }
                }
                // While the sums of other blocks, or the warps that finish, are on their way.
                if (sums_up && end == hidden_tiles)
                    pass.prefetch(step + kPrefetched, (warps() - 1 - own) * plan.cluster + rank,
                                  warps() * plan.cluster);
            }
            if (!exchange.scatters() || end < hidden_tiles) sync_block();
        }
    }
    if (batch.steps > 0) exchange.await_latents(batch.steps - 1);  // nobody writes to a block that has ended
}

}  // namespace vssn::posterior

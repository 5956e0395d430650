// How the posterior's partial sums, and the new latents, come from warps and blocks to those that need them.
#pragma once

#include "posterior_fragments.cuh"

namespace vssn::posterior {

// A tile's four into a buffer of [8][stride], from column `column` on, of every block of the cluster.
template <class P>
VSSN_DEVICE void send_to_all(typename P::Stored* buffer, int stride, int column, const Four& four, Mailbox* mailbox,
                             int cluster) {
    using Pair = Packed<typename P::Stored, 2>;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
        const Pair pair = operands<P>(four.v[j], four.v[2 + j]);
        auto* p = buffer + accumulator_column(j) * stride + column + accumulator_row(0);
        for (int rank = 0; rank < cluster; ++rank) send(reinterpret_cast<Pair*>(p), pair, mailbox, rank);
    }
}

// Where partial sums meet: slots of warps of one block or of blocks of a cluster.
template <class Pass, Meeting meeting>
struct Exchange {
    const PosteriorPlan& plan;
    int rank, slots, groups;  // groups: room for those of one block
    Quad* sums;
    Mailbox* mailboxes;  // all compute all: one for even and one for odd steps; else one for sums, one for latents

    VSSN_DEVICE Exchange(const PosteriorPlan& plan, int rank)
        : plan(plan),
          rank(rank),
          slots(plan.cluster * plan.splits),
          groups(scatters() ? (plan.groups + plan.cluster - 1) >> plan.cluster_log2 : plan.groups),
          sums(reinterpret_cast<Quad*>(dynamic_shared() + plan.exchange_at)),
          mailboxes(reinterpret_cast<Mailbox*>(dynamic_shared() + plan.mailboxes_at)) {}

    VSSN_DEVICE bool alone() const { return meeting == Meeting::any ? plan.cluster == 1 : meeting == Meeting::block; }
    VSSN_DEVICE bool scatters() const { return meeting == Meeting::any ? plan.scatter : meeting == Meeting::owner; }
    VSSN_DEVICE bool splits_sums() const { return !alone() || plan.splits > 1; }

    // The groups that this block finishes.
    VSSN_DEVICE int count() const {
        return scatters() ? (plan.groups - rank + plan.cluster - 1) >> plan.cluster_log2 : plan.groups;
    }
    VSSN_DEVICE int group(int i) const { return scatters() ? i * plan.cluster + rank : i; }
    // Of the cluster: the block whose group it is.
    VSSN_DEVICE int owner(int group) const { return group & (plan.cluster - 1); }
    VSSN_DEVICE bool owns(int group) const { return alone() || owner(group) == rank; }

    VSSN_DEVICE Quad* at(int step, int slot, int group) const {
        const int of_block = scatters() ? group >> plan.cluster_log2 : group;
        const int round = !alone() && !scatters() ? step % 2 : 0;
        return sums + (((round * slots + slot) * groups + of_block) * Pass::kSums) * kWarp + lane_id();
    }

    VSSN_DEVICE Mailbox* sums_mailbox(int step) const { return mailboxes + (scatters() ? 0 : step % 2); }
    VSSN_DEVICE unsigned sums_round(int step) const { return scatters() ? step : step / 2; }
    VSSN_DEVICE int sums_bytes() const { return plan.cluster * count() * Pass::kSums * kTileOfSums; }
    VSSN_DEVICE int latent_bytes() const {
        return plan.groups * kUnits * kRows * Pass::kParts * static_cast<int>(sizeof(typename Pass::P::Stored));
    }

    VSSN_DEVICE void open_mailboxes() const {
        if (alone() || thread_id() != 0) return;
        open(mailboxes);
        open(mailboxes + 1);
        if (count() > 0) expect(mailboxes, sums_bytes());
        expect(mailboxes + 1, scatters() ? latent_bytes() : sums_bytes());
    }

    VSSN_DEVICE void give(int step, int split, int group, const Four* partial) const {
#pragma unroll
        for (int sum = 0; sum < Pass::kSums; ++sum) {
            const Quad part = quad(partial[sum]);
            if (alone()) {
                at(step, split, group)[sum * kWarp] = part;
            } else {
                const int from = scatters() ? owner(group) : 0, to = scatters() ? from + 1 : plan.cluster;
                for (int block = from; block < to; ++block)
                    send(at(step, rank, group) + sum * kWarp, part, sums_mailbox(step), block);
            }
        }
    }

    // Until all that was given in this step is there.
    VSSN_DEVICE void meet(int step) const {
        if (alone()) return sync_block();
        if (count() == 0) return;
        await(sums_mailbox(step), sums_round(step));
        if (thread_id() == 0) expect(sums_mailbox(step), sums_bytes());
    }

    VSSN_DEVICE void take(int step, int group, Four* total) const {
#pragma unroll
        for (int sum = 0; sum < Pass::kSums; ++sum) {
            total[sum] = zeros();
            for (int slot = 0; slot < slots; ++slot) add(total[sum], at(step, slot, group)[sum * kWarp]);
        }
    }

    // Until the latents of this step have come from their blocks.
    VSSN_DEVICE void await_latents(int step) const {
        if (!scatters()) return;
        await(mailboxes + 1, step);
        if (thread_id() == 0) expect(mailboxes + 1, latent_bytes());
    }
};

}  // namespace vssn::posterior

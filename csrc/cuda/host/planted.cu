// See planted.h. Kernels first, launchers last.
#include "planted.h"

#include "../primitives.cuh"

namespace vssn::gpu::host {

namespace {

struct ExchangeParams {
    float* out;  // [threads]
    bool barrier;
};

VSSN_KERNEL exchange_kernel(ExchangeParams p) {
    float* shared = reinterpret_cast<float*>(dynamic_shared());  // [threads]
    shared[thread_id()] = static_cast<float>(thread_id() + 1);
    if (p.barrier) sync_block();
    p.out[thread_id()] = shared[block_threads() - 1 - thread_id()];
}

constexpr int kBlocks = 4;

struct RoundParams {
    float* out;      // [kBlocks, 32]
    float* state;    // [2, kBlocks, 32] in global memory, for a grid
    unsigned* flag;  // 0 at the start
    int steps;
};

// Every step each block adds what its left neighbour had.
VSSN_KERNEL cluster_round_kernel(RoundParams p) {
    float* shared = reinterpret_cast<float*>(dynamic_shared());  // [2, 32]
    const int lane = lane_id(), rank = cluster_rank(), next = (rank + 1) % cluster_size();
    float state = static_cast<float>(rank * 32 + lane + 1);
    for (int step = 0; step < p.steps; ++step) {
        cluster_address(shared + step % 2 * 32, next)[lane] = state;
        sync_cluster();
        state += shared[step % 2 * 32 + lane] / 2;
    }
    p.out[rank * 32 + lane] = state;
}

VSSN_KERNEL grid_round_kernel(RoundParams p) {
    const int lane = lane_id(), rank = block_x(), before = (rank + kBlocks - 1) % kBlocks;
    float state = static_cast<float>(rank * 32 + lane + 1);
    for (int step = 0; step < p.steps; ++step) {
        float* buffer = p.state + step % 2 * kBlocks * 32;
        store_l2(buffer + rank * 32 + lane, state);
        sync_block();
        if (thread_id() == 0) {
            add_release(p.flag, 1);
            wait_acquire(p.flag, static_cast<unsigned>(kBlocks * (step + 1)));
        }
        sync_block();
        state += load_l2(buffer + before * 32 + lane) / 2;
    }
    p.out[rank * 32 + lane] = state;
}

struct PlantParams {
    float* data;  // [count]
    int64_t count;
    unsigned* flag;
};

VSSN_KERNEL read_behind_shared(PlantParams p) {
    const float* shared = reinterpret_cast<const float*>(dynamic_shared());
    p.data[0] = shared[block_threads() + (thread_id() == 0 ? 0 : -1)];
}

VSSN_KERNEL write_behind_shared(PlantParams) {
    reinterpret_cast<float*>(dynamic_shared())[block_threads() - thread_id()] = 1;
}

VSSN_KERNEL read_behind_global(PlantParams p) {
    if (thread_id() == 0) p.data[0] = p.data[p.count];
}

VSSN_KERNEL barrier_of_some(PlantParams) {
    if (thread_id() != 5) sync_block();
}

VSSN_KERNEL barriers_at_two_places(PlantParams) {
    if (warp_id() == 0)
        sync_block();
    else
        sync_block();
}

VSSN_KERNEL shuffle_of_some_lanes(PlantParams p) {
    if (lane_id() < 16) p.data[0] = shuffle_xor(p.data[0], 1);
}

VSSN_KERNEL two_collectives(PlantParams p) {
    if (lane_id() < 16)
        p.data[0] = shuffle_xor(p.data[0], 1);
    else
        sync_warp();
}

VSSN_KERNEL flag_never_reached(PlantParams p) {
    if (thread_id() == 0) wait_acquire(p.flag, 1);
    sync_block();
}

// A block ends while its neighbour still writes into its shared memory.
VSSN_KERNEL write_to_ended_block(PlantParams) {
    float* shared = reinterpret_cast<float*>(dynamic_shared());
    float* peer = cluster_address(shared, 1 - cluster_rank());
    sync_cluster();
    if (cluster_rank() == 0) sync_block();
    if (cluster_rank() == 0) peer[thread_id()] = 1;
}

VSSN_KERNEL arrive_without_wait(PlantParams) { cluster_arrive(); }

// 16 bytes are on their way into shared memory, and read before they are waited for: they are NaN there.
VSSN_KERNEL copy_read_too_early(PlantParams p) {
    auto* shared = reinterpret_cast<float*>(dynamic_shared());
    if (thread_id() != 0) return;
    copy_l2(shared, p.data + 4);
    p.data[0] = shared[0];
    await_copies();
    p.data[1] = shared[0];
}

VSSN_KERNEL copy_without_wait(PlantParams p) {
    if (thread_id() == 0) copy_l2(dynamic_shared(), p.data);
}

VSSN_KERNEL misaligned(PlantParams p) { store_l2(reinterpret_cast<Vector<float, 4>*>(p.data + 1), {}); }

template <class C>
struct ProductParams {
    const typename Product<C>::Stored* a;
    int64_t row_stride, k_stride;
    int rows, depth;
    const typename Product<C>::Stored* b;  // [8, kDepth]
    float* c;                              // [16, 8]
};

template <class C>
VSSN_KERNEL product_kernel(ProductParams<C> p) {
    using P = Product<C>;
    using Stored = typename P::Stored;
    constexpr int kStride = P::kDepth + 16 / sizeof(Stored);
    unsigned char* tile = dynamic_shared();
    Stored* b = reinterpret_cast<Stored*>(tile + P::kTileBytes);  // [8, kStride]
    P::store(P::load_rows(p.a, p.row_stride, p.k_stride, p.rows, p.depth), tile);
    for (int i = lane_id(); i < 8 * P::kDepth; i += kWarp)
        b[i / P::kDepth * kStride + i % P::kDepth] = P::rounded(to_float(p.b[i]));
    sync_warp();
    Accumulator c;
    for (int i = 0; i < 4; ++i) c.v[i] = p.c[accumulator_row(i) * 8 + accumulator_column(i)];
    P::multiply(c, P::load(tile), P::load_b(b, kStride));
    for (int i = 0; i < 4; ++i) p.c[accumulator_row(i) * 8 + accumulator_column(i)] = c.v[i];
}

// ---- Launchers --------------------------------------------------------------------------------------------------

std::string text(const char* report) { return report ? report : ""; }

template <class C>
std::string launch_product(const void* a, int64_t row_stride, int64_t k_stride, int rows, int depth, const void* b,
                           float* c) {
    using Stored = typename Product<C>::Stored;
    Launch shape;
    shape.shared_bytes = Product<C>::kTileBytes + 8 * (Product<C>::kDepth * sizeof(Stored) + 16);
    const ProductParams<C> params{static_cast<const Stored*>(a), row_stride, k_stride, rows, depth,
                                  static_cast<const Stored*>(b), c};
    return text(launch(product_kernel<C>, shape, params));
}

}  // namespace

std::string exchange(float* out, int threads, bool barrier) {
    Launch shape;
    shape.threads = threads;
    shape.shared_bytes = static_cast<size_t>(threads) * sizeof(float);
    return text(launch(exchange_kernel, shape, ExchangeParams{out, barrier}));
}

std::string hand_round(float* out, unsigned* flags, bool cluster, int steps) {
    float state[2 * kBlocks * 32];
    Launch shape;
    shape.grid_x = kBlocks;
    shape.cluster = cluster ? kBlocks : 1;
    shape.cooperative = !cluster;
    shape.shared_bytes = cluster ? 2 * 32 * sizeof(float) : 0;
    return text(
        launch(cluster ? cluster_round_kernel : grid_round_kernel, shape, RoundParams{out, state, flags, steps}));
}

std::string plant(const std::string& name, float* data, int64_t count) {
    const struct {
        const char* name;
        void (*kernel)(PlantParams);
    } errors[] = {
        {"read_behind_shared", read_behind_shared},
        {"write_behind_shared", write_behind_shared},
        {"read_behind_global", read_behind_global},
        {"barrier_of_some", barrier_of_some},
        {"barriers_at_two_places", barriers_at_two_places},
        {"shuffle_of_some_lanes", shuffle_of_some_lanes},
        {"two_collectives", two_collectives},
        {"flag_never_reached", flag_never_reached},
        {"write_to_ended_block", write_to_ended_block},
        {"arrive_without_wait", arrive_without_wait},
        {"copy_read_too_early", copy_read_too_early},
        {"copy_without_wait", copy_without_wait},
        {"misaligned", misaligned},
    };
    unsigned flag = 0;
    for (const auto& error : errors)
        if (name == error.name) {
            Launch shape;
            shape.grid_x = shape.cluster = 2;
            shape.threads = 64;
            shape.shared_bytes = 64 * sizeof(float);
            return text(launch(error.kernel, shape, PlantParams{data, count, &flag}));
        }
    return "no such error";
}

std::string product(const std::string& kind, const void* a, int64_t row_stride, int64_t k_stride, int rows, int depth,
                    const void* b, float* c) {
    if (kind == "bfloat16") return launch_product<bfloat16>(a, row_stride, k_stride, rows, depth, b, c);
    if (kind == "float16") return launch_product<float16>(a, row_stride, k_stride, rows, depth, b, c);
    if (kind == "tf32") return launch_product<tf32>(a, row_stride, k_stride, rows, depth, b, c);
    if (kind == "float") return launch_product<float>(a, row_stride, k_stride, rows, depth, b, c);
    return "no such kind";
}

}  // namespace vssn::gpu::host

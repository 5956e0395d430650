// The kernels of gpu_floor.cu: a loop of one thing each, timed inside, each block by its own clock.
//
// Sends, mailboxes, counters and products are those of the library's kernels (primitives.cuh); waits are the same
// instructions, but end the launch when they have polled for too long.
#pragma once

#include "../csrc/cuda/primitives.cuh"

#include <cstring>

namespace vssn::gpu {

namespace {

constexpr int kMostBlocks = 256;    // that write their cycles
constexpr int kMostThreads = 1024;  // of a block
constexpr size_t kData = 16 << 20;  // bytes of global memory that are read
constexpr int kLine = 32;           // words: a counter each
// Far more polls than any wait takes; try_wait may sleep in each.
constexpr unsigned kMostPolls = 1u << 20;
[[maybe_unused]] constexpr unsigned kMostTries = 1u << 18;

struct Task {
    int rounds = 0;                // of the loop that is timed
    int bytes = 0;                 // of a round
    bool stores = false;           // whether every thread stores before a release
    unsigned* counters = nullptr;  // 0 at first
    unsigned* data = nullptr;      // kData bytes
    long long* cycles = nullptr;   // of each block
    float* sink = nullptr;         // one for each thread: what was computed is written, so that it is computed
    int* wrong = nullptr;          // set where bytes came that were not sent
};

// ---- For all of them ---------------------------------------------------------------------------------------------

VSSN_DEVICE long long cycles_now() {
    long long now;
    asm volatile("mov.u64 %0, %%clock64;" : "=l"(now)::"memory");
    return now;
}

VSSN_DEVICE long long nanoseconds_now() {
    long long now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now)::"memory");
    return now;
}

VSSN_DEVICE void put_cycles(const Task& task, long long cycles) {
    if (thread_id() == 0) task.cycles[block_x()] = cycles;
}

VSSN_DEVICE void put(const Task& task, float value) { task.sink[block_x() * block_threads() + thread_id()] = value; }

VSSN_DEVICE void count_poll(unsigned& polls, unsigned most) {
    if (++polls == most) __trap();
}

// wait_acquire, bounded.
VSSN_DEVICE void await_counter(const unsigned* counter, unsigned n) {
    unsigned seen, polls = 0;
    for (;; count_poll(polls, kMostPolls)) {
        asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
        if (static_cast<int>(seen - n) >= 0) break;
    }
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
}

// check_acquire, bounded.
VSSN_DEVICE void check_counter(const unsigned* counter, unsigned n) {
    unsigned seen, polls = 0;
    for (;; count_poll(polls, kMostPolls)) {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
        if (static_cast<int>(seen - n) >= 0) break;
    }
}

VSSN_DEVICE unsigned load_own(unsigned address) {
    unsigned value;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(address));
    return value;
}

VSSN_DEVICE unsigned load_own_vector(unsigned address) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(address));
    return v.x ^ v.y ^ v.z ^ v.w;
}

VSSN_DEVICE unsigned shared_word(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
// await, bounded. of_block: acquires in the scope of the block instead of the cluster.
template <bool of_block = false>
VSSN_DEVICE void await_bytes(Mailbox* m, unsigned round) {
    unsigned done, polls = 0;
    for (;; count_poll(polls, kMostTries)) {
        if constexpr (of_block)
            asm volatile(
                "{ .reg .pred p; mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2; "
                "selp.u32 %0, 1, 0, p; }"
                : "=r"(done)
                : "r"(shared_word(m)), "r"(round & 1)
                : "memory");
        else
            asm volatile(
                "{ .reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2; "
                "selp.u32 %0, 1, 0, p; }"
                : "=r"(done)
                : "r"(shared_word(m)), "r"(round & 1)
                : "memory");
        if (done) break;
    }
}

// The barrier of a cluster whose arrival releases nothing.
VSSN_DEVICE void meet_cluster() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
}

VSSN_DEVICE unsigned remote_word(const void* p, int rank) { return detail::cluster_shared_address(p, rank); }

VSSN_DEVICE unsigned load_remote(unsigned address) {
    unsigned value;
    asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(value) : "r"(address));
    return value;
}

VSSN_DEVICE unsigned load_remote_vector(unsigned address) {
    uint4 v;
    asm volatile("ld.shared::cluster.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(address));
    return v.x ^ v.y ^ v.z ^ v.w;
}
#else  // no cluster is launched here
template <bool of_block = false>
VSSN_DEVICE void await_bytes(Mailbox*, unsigned) {
    __trap();
}
VSSN_DEVICE void meet_cluster() { __trap(); }
VSSN_DEVICE unsigned remote_word(const void*, int) { return 0; }
VSSN_DEVICE unsigned load_remote(unsigned address) { return load_own(address); }
VSSN_DEVICE unsigned load_remote_vector(unsigned address) { return load_own_vector(address); }
#endif

// ---- Barriers ---------------------------------------------------------------------------------------------------

VSSN_KERNEL block_barrier_kernel(Task task) {
    const long long begin = cycles_now();
#pragma unroll 1
    for (int round = 0; round < task.rounds; ++round)
#pragma unroll
        for (int i = 0; i < 8; ++i) sync_block();
    put_cycles(task, (cycles_now() - begin) / 8);
}

template <bool orders>
VSSN_KERNEL cluster_barrier_kernel(Task task) {
    sync_cluster();
    const long long begin = cycles_now();
#pragma unroll 1
    for (int round = 0; round < task.rounds; ++round) {
        if constexpr (orders)
            sync_cluster();
        else
            meet_cluster();
    }
    put_cycles(task, cycles_now() - begin);
}

// All blocks of the grid, which run at once. With task.bytes each block first writes its share of them and, behind the
// barrier, reads all: the exchange of a grid's team, in two buffers by turns.
template <bool exchange>
VSSN_KERNEL grid_barrier_kernel(Task task) {
    constexpr int kAtOnce = 4;  // and so task.bytes is a multiple of 4 vectors for each thread
    const int blocks = grid_x(), vectors = task.bytes / 16, share = vectors / blocks;
    auto* buffers = reinterpret_cast<Vector<unsigned, 4>*>(task.data);
    unsigned different = 0;
    const long long begin = cycles_now();
#pragma unroll 1
    for (unsigned done = 0; done < static_cast<unsigned>(task.rounds); ++done) {
        Vector<unsigned, 4>* buffer = buffers + done % 2 * vectors;
        if constexpr (exchange) {
            const Vector<unsigned, 4> value{{done, done, done, done}};
            for (int i = thread_id(); i < share; i += block_threads()) store_l2(buffer + block_x() * share + i, value);
        }
        sync_block();
        if (thread_id() == 0) {
            add_release(task.counters, 1);
            await_counter(task.counters, static_cast<unsigned>(blocks) * (done + 1));
        }
        sync_block();
        if constexpr (exchange) {
#pragma unroll 1
            for (int i = thread_id(); i < vectors; i += kAtOnce * block_threads()) {
                Vector<unsigned, 4> read[kAtOnce];
#pragma unroll
                for (int j = 0; j < kAtOnce; ++j) read[j] = load_l2(buffer + i + j * block_threads());
#pragma unroll
                for (int j = 0; j < kAtOnce; ++j)
#pragma unroll
                    for (int k = 0; k < 4; ++k) different |= read[j].v[k] ^ done;
            }
        }
    }
    put_cycles(task, cycles_now() - begin);
    if (different) *task.wrong = 1;
}

// From the release by one block until the other has seen it, and back. Two blocks that run at once.
VSSN_KERNEL grid_ping_kernel(Task task) {
    if (thread_id() != 0) return;
    unsigned *own = task.counters + block_x() * kLine, *other = task.counters + (1 - block_x()) * kLine;
    const long long begin = cycles_now();
#pragma unroll 1
    for (unsigned done = 0; done < static_cast<unsigned>(task.rounds); ++done) {
        if (block_x() == 0) add_release(other, 1);
        check_counter(own, done + 1);
        if (block_x() == 1) add_release(other, 1);
    }
    put_cycles(task, (cycles_now() - begin) / 2);
}

// What a thread waits until its release is on its way: that of the stores before it, if there were any.
VSSN_KERNEL release_kernel(Task task) {
    auto* data = reinterpret_cast<Vector<unsigned, 4>*>(task.data) + block_x() * block_threads() + thread_id();
    long long waited = 0;
#pragma unroll 1
    for (unsigned done = 0; done < static_cast<unsigned>(task.rounds); ++done) {
        if (task.stores) store_l2(data, Vector<unsigned, 4>{{done, done, done, done}});
        sync_block();
        if (thread_id() == 0) {
            const long long begin = cycles_now();
            add_release(task.counters, 1);
            waited += cycles_now() - begin;
        }
        sync_block();
    }
    put_cycles(task, waited);
}

// ---- In a cluster -----------------------------------------------------------------------------------------------

// Every block sends its share of task.bytes to all blocks, itself too, 16 bytes at a time, four lanes to a vector; and
// waits for task.bytes. Every warp sends to every block in every round: so no mailbox ends a round of which a warp has
// not seen the end of the one before.
template <bool of_block>
VSSN_KERNEL cluster_exchange_kernel(Task task) {
    constexpr int kMembers = 4;
    using Value = Vector<uint32_t, 4>;
    unsigned char* shared = dynamic_shared();
    auto* mailboxes = reinterpret_cast<Mailbox*>(shared);
    auto* buffers = reinterpret_cast<Value*>(shared + 16);
    const int blocks = cluster_size(), rank = cluster_rank(), all = task.bytes / 16, share = all / blocks;
    if (thread_id() == 0) {
        open(mailboxes);
        open(mailboxes + 1);
    }
    sync_cluster();
    const long long begin = cycles_now();
#pragma unroll 1
    for (unsigned done = 0; done < static_cast<unsigned>(task.rounds); ++done) {
        const int next = static_cast<int>((done + 1) % 2);
        if (thread_id() == 0) expect(mailboxes + next, task.bytes);
        for (int i = thread_id() / kMembers; i < share; i += block_threads() / kMembers) {
            const Value value{{done, done, done, static_cast<uint32_t>(rank * share + i)}};
            for (int to = thread_id() % kMembers; to < blocks; to += kMembers)
                send(buffers + next * all + rank * share + i, value, mailboxes + next, to);
        }
        sync_warp();
        await_bytes<of_block>(mailboxes + next, done / 2);
        sync_warp();
    }
    put_cycles(task, cycles_now() - begin);
    for (int i = thread_id(); i < all; i += block_threads()) {
        const Value last = buffers[task.rounds % 2 * all + i];
        if (last.v[0] != static_cast<uint32_t>(task.rounds - 1) || last.v[3] != static_cast<uint32_t>(i))
            *task.wrong = 1;
    }
    sync_cluster();
}

// One word or vector from the first block of the cluster to the last one, and back.
template <class T>
VSSN_KERNEL cluster_ping_kernel(Task task) {
    unsigned char* shared = dynamic_shared();
    auto* mailbox = reinterpret_cast<Mailbox*>(shared);
    T* buffer = reinterpret_cast<T*>(shared + 16);
    const int rank = cluster_rank(), last = cluster_size() - 1;
    if (thread_id() == 0) open(mailbox);
    sync_cluster();
    if (thread_id() == 0 && (rank == 0 || rank == last)) {
        const long long begin = cycles_now();
#pragma unroll 1
        for (unsigned done = 0; done < static_cast<unsigned>(task.rounds); ++done) {
            T value{};
            memcpy(&value, &done, sizeof(done));
            if (rank == 0) send(buffer, value, mailbox, last);
            expect(mailbox, sizeof(T));
            await_bytes<>(mailbox, done);
            if (rank == last) send(buffer, value, mailbox, 0);
        }
        put_cycles(task, (cycles_now() - begin) / 2);
    }
    sync_warp();
    sync_cluster();
}

// Each word says where the next one lies. far: in the last block of the cluster, read by the first one.
template <bool far>
VSSN_KERNEL shared_chain_kernel(Task task) {
    constexpr int kWords = 1024;
    auto* ring = reinterpret_cast<unsigned*>(dynamic_shared());
    const int rank = far ? cluster_rank() : 0, last = far ? cluster_size() - 1 : 0;
    for (int i = thread_id(); i < kWords; i += block_threads()) {
        const unsigned* next = ring + (i + 33) % kWords;
        ring[i] = far ? remote_word(next, rank) : shared_word(next);
    }
    if (far)
        sync_cluster();
    else
        sync_block();
    if (thread_id() == 0 && rank == 0) {
        unsigned at = far ? remote_word(ring, last) : shared_word(ring);
        const long long begin = cycles_now();
#pragma unroll 1
        for (int round = 0; round < task.rounds; ++round)
#pragma unroll
            for (int i = 0; i < 16; ++i) at = far ? load_remote(at) : load_own(at);
        put_cycles(task, (cycles_now() - begin) / 16);
        put(task, static_cast<float>(at));
    }
    sync_warp();
    if (far) sync_cluster();
}

// Neighbouring lanes read neighbouring words or vectors. far: those of the next block of the cluster. A round reads
// eight from each thread.
template <bool far, int bytes>
VSSN_KERNEL shared_rate_kernel(Task task) {
    unsigned char* shared = dynamic_shared();
    for (int i = thread_id(); i < 8 * bytes / 4 * block_threads(); i += block_threads())
        reinterpret_cast<unsigned*>(shared)[i] = static_cast<unsigned>(i + 1);
    if (far)
        sync_cluster();
    else
        sync_block();
    // By turns what this warp and what its neighbour reads: else the compiler reads before the loop.
    const unsigned base = far ? remote_word(shared, (cluster_rank() + 1) % cluster_size()) : shared_word(shared);
    const unsigned stride = static_cast<unsigned>(block_threads() * bytes);
    unsigned from = base + thread_id() * bytes, other = base + (thread_id() ^ kWarp) * bytes;
    unsigned sum = 0;
    const long long begin = cycles_now();
#pragma unroll 1
    for (int round = 0; round < task.rounds; ++round) {
        unsigned read[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const unsigned address = from + i * stride;
            if constexpr (far)
                read[i] = bytes == 16 ? load_remote_vector(address) : load_remote(address);
            else
                read[i] = bytes == 16 ? load_own_vector(address) : load_own(address);
        }
        const unsigned swapped = from;
        from = other;
        other = swapped;
#pragma unroll
        for (int i = 0; i < 8; ++i) sum ^= read[i];
    }
    sync_block();
    put_cycles(task, cycles_now() - begin);
    put(task, static_cast<float>(sum));
    if (far) sync_cluster();
}

// Four 8x8 tiles of 16 bits at a time, eight times a round.
VSSN_KERNEL ldmatrix_kernel(Task task) {
    unsigned char* shared = dynamic_shared();
    for (int i = thread_id(); i < 8 * 4 * block_threads(); i += block_threads())
        reinterpret_cast<unsigned*>(shared)[i] = static_cast<unsigned>(i + 1);
    sync_block();
    const unsigned from = shared_word(shared) + thread_id() * 16, stride = static_cast<unsigned>(block_threads() * 16);
    unsigned sum = 0;
    const long long begin = cycles_now();
#pragma unroll 1
    for (int round = 0; round < task.rounds; ++round) {
        unsigned r[8][4];
#pragma unroll
        for (int i = 0; i < 8; ++i)
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                         : "=r"(r[i][0]), "=r"(r[i][1]), "=r"(r[i][2]), "=r"(r[i][3])
                         : "r"(from + i * stride));
#pragma unroll
        for (int i = 0; i < 8; ++i) sum ^= r[i][0] ^ r[i][1] ^ r[i][2] ^ r[i][3];
    }
    sync_block();
    put_cycles(task, cycles_now() - begin);
    put(task, static_cast<float>(sum));
}

// ---- L2 ---------------------------------------------------------------------------------------------------------

// One thread; a word of each line of task.bytes says which word is next.
VSSN_KERNEL l2_chain_kernel(Task task) {
    unsigned at = 0;
    const long long begin = cycles_now();
#pragma unroll 1
    for (int round = 0; round < task.rounds; ++round)
#pragma unroll
        for (int i = 0; i < 8; ++i) at = load_l2(task.data + at);
    put_cycles(task, (cycles_now() - begin) / 8);
    put(task, static_cast<float>(at));
}

// Vectors that a block reads in a round of l2_rate_kernel, a whole number for each thread.
__host__ __device__ constexpr int l2_vectors(int bytes, int blocks, int threads, int at_once) {
    return bytes / 16 / blocks / (threads * at_once) * (threads * at_once);
}

// The blocks share out task.bytes, and read another part in each round. shared: each reads all of them.
template <int at_once, bool shared>
VSSN_KERNEL l2_rate_kernel(Task task) {
    const int blocks = shared ? 1 : grid_x(), count = l2_vectors(task.bytes, blocks, block_threads(), at_once);
    const auto* data = reinterpret_cast<const Vector<unsigned, 4>*>(task.data);
    unsigned sum = 0;
    const long long begin = cycles_now();
#pragma unroll 1
    for (int round = 0; round < task.rounds; ++round) {
        const auto* part = data + static_cast<int64_t>(shared ? 0 : (block_x() + round) % blocks) * count + thread_id();
#pragma unroll 1
        for (int i = 0; i < count; i += block_threads() * at_once) {
            Vector<unsigned, 4> read[at_once];
#pragma unroll
            for (int j = 0; j < at_once; ++j) read[j] = load_l2(part + i + j * block_threads());
#pragma unroll
            for (int j = 0; j < at_once; ++j) sum ^= read[j].v[0] ^ read[j].v[1] ^ read[j].v[2] ^ read[j].v[3];
        }
    }
    sync_block();
    put_cycles(task, cycles_now() - begin);
    put(task, static_cast<float>(sum));
}

// ---- Arithmetic -------------------------------------------------------------------------------------------------

constexpr int kUnrolled = 16;  // operations of a chain in a round

// `chains` products of every warp that do not wait for each other.
template <class C, int chains>
VSSN_KERNEL product_kernel(Task task) {
    using P = Product<C>;
    typename P::A a;
    typename P::B b;
    const auto operand = [](int i) {  // positive and near 1
        const float x = 0.5f + 0.01f * static_cast<float>((lane_id() + i) % 32);
        if constexpr (sizeof(typename P::Stored) == 2) return pack<C>(x, x + 0.25f);
        if constexpr (sizeof(typename P::Stored) == 4) return bits<unsigned>(P::rounded(x));
    };
#pragma unroll
    for (int i = 0; i < 4; ++i) a.r[i] = operand(i);
#pragma unroll
    for (int i = 0; i < 2; ++i) b.r[i] = operand(i + 5);
    Accumulator sums[chains];
#pragma unroll
    for (int c = 0; c < chains; ++c)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[c].v[i] = static_cast<float>(c + i);
    sync_block();
    const long long begin = cycles_now();
#pragma unroll 1
    for (int round = 0; round < task.rounds; ++round)
#pragma unroll
        for (int i = 0; i < kUnrolled; ++i)
#pragma unroll
            for (int c = 0; c < chains; ++c) P::multiply(sums[c], a, b);
    sync_block();
    put_cycles(task, cycles_now() - begin);
    float sum = 0;
#pragma unroll
    for (int c = 0; c < chains; ++c)
#pragma unroll
        for (int i = 0; i < 4; ++i) sum += sums[c].v[i];
    put(task, sum);
}

// Functions whose iterates neither vanish nor grow.
struct MultiplyAdd {
    static VSSN_DEVICE float of(float x, float c) {
        asm volatile("fma.rn.f32 %0, %0, %1, %1;" : "+f"(x) : "f"(c));  // c / (1 - c) in the end
        return x;
    }
};
struct Ex2 {
    static VSSN_DEVICE float of(float x, float) {
        asm volatile("{ .reg .f32 t; neg.f32 t, %0; ex2.approx.ftz.f32 %0, t; }" : "+f"(x));
        return x;
    }
};
struct TanhApprox {
    static VSSN_DEVICE float of(float x, float) {
        asm volatile("tanh.approx.f32 %0, %0;" : "+f"(x));
        return x;
    }
};
struct Exp {
    static VSSN_DEVICE float of(float x, float) { return exp(-x); }
};
struct Sigmoid {
    static VSSN_DEVICE float of(float x, float) { return Math::sigmoid(x); }
};
struct Tanh {
    static VSSN_DEVICE float of(float x, float) { return Math::tanh(x); }
};
struct Shuffle {
    static VSSN_DEVICE float of(float x, float) { return shuffle_xor(x, 1); }
};

template <class Function, int chains>
VSSN_KERNEL function_kernel(Task task) {
    float x[chains];
    const float c = 0.5f + 0.001f * static_cast<float>(lane_id());
#pragma unroll
    for (int i = 0; i < chains; ++i) x[i] = 0.3f + 0.01f * static_cast<float>(lane_id() + i);
    sync_block();
    const long long begin = cycles_now();
#pragma unroll 1
    for (int round = 0; round < task.rounds; ++round)
#pragma unroll
        for (int u = 0; u < kUnrolled; ++u)
#pragma unroll
            for (int i = 0; i < chains; ++i) x[i] = Function::of(x[i], c);
    sync_block();
    put_cycles(task, cycles_now() - begin);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < chains; ++i) sum += x[i];
    put(task, sum);
}

// Multiply-adds for task.rounds times 1000 cycles; of each block the nanoseconds of a million cycles.
VSSN_KERNEL clock_kernel(Task task) {
    const long long begin = cycles_now(), begin_ns = nanoseconds_now(), wanted = 1000LL * task.rounds;
    float x = 0.3f;
    long long taken = 0;
    while (taken < wanted) {
#pragma unroll
        for (int i = 0; i < 256; ++i) x = MultiplyAdd::of(x, 0.5f);
        taken = cycles_now() - begin;
    }
    const long long ns = nanoseconds_now() - begin_ns;
    put_cycles(task, ns * 1000000 / taken);
    put(task, x);
}

VSSN_KERNEL empty_kernel(Task) {}

}  // namespace

}  // namespace vssn::gpu

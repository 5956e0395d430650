// What a step on the device is made of, one part at a time: barriers, exchanges, memories, products, functions.
//
//   nvcc -std=c++17 -O3 -gencode=arch=compute_90a,code=sm_90a -o gpu_floor benchmarks/gpu_floor.cu
//   ./gpu_floor [all | list | NAME...]
//
// A line for each measurement, `name,unit,value`: the median of RUNS runs behind one that warms up. To stderr goes its
// name before it runs, and then least and most of its runs. Exit status 1 where one failed. Cycles are of the
// multiprocessor's clock, taken in the kernel. Sends, mailboxes, counters and products are those of the library's
// kernels (primitives.cuh); waits are the same instructions, but end the launch when they have polled for too long.
#include "../csrc/cuda/primitives.cuh"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace vssn::gpu {

namespace {

constexpr int kRuns = 7;
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

// ---- In the kernels ---------------------------------------------------------------------------------------------

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

// ---- On the host ------------------------------------------------------------------------------------------------

void check(cudaError_t error, const char* what) {
    if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

#define CHECK(call) check(call, #call)

using Kernel = void (*)(Task);

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

enum class Of { slowest, first };  // of the blocks' cycles

// What the kernels use; it is there until the process ends.
class Device {
  public:
    Device() : limits_(device_limits()) {
        CHECK(cudaMalloc(&task_.counters, kCounterBytes));
        CHECK(cudaMalloc(&task_.data, kData));
        CHECK(cudaMalloc(&task_.cycles, kMostBlocks * sizeof(long long)));
        CHECK(cudaMalloc(&task_.sink, size_t{kMostBlocks} * kMostThreads * sizeof(float)));
        CHECK(cudaMalloc(&task_.wrong, sizeof(int)));
    }
    Device(const Device&) = delete;

    const DeviceLimits& limits() const { return limits_; }
    const Task& task() const { return task_; }

    // Cycles of a round, in each of the runs behind the first.
    std::vector<double> runs(Kernel kernel, const Launch& shape, int rounds, int bytes = 0, bool stores = false,
                             Of of = Of::slowest) const {
        if (shape.grid_x > kMostBlocks || shape.threads > kMostThreads) throw std::runtime_error("too many blocks");
        Task task = task_;
        task.rounds = rounds;
        task.bytes = bytes;
        task.stores = stores;
        std::vector<double> found;
        for (int run = 0; run <= kRuns; ++run) {
            CHECK(cudaMemset(task_.counters, 0, kCounterBytes));
            CHECK(cudaMemset(task_.wrong, 0, sizeof(int)));
            CHECK(cudaMemset(task_.cycles, 0, kMostBlocks * sizeof(long long)));
            if (const char* error = launch(kernel, shape, task)) throw std::runtime_error(error);
            CHECK(cudaGetLastError());
            CHECK(cudaDeviceSynchronize());
            std::vector<long long> cycles(static_cast<size_t>(shape.grid_x));
            CHECK(cudaMemcpy(cycles.data(), task_.cycles, cycles.size() * sizeof(long long), cudaMemcpyDeviceToHost));
            int wrong = 0;
            CHECK(cudaMemcpy(&wrong, task_.wrong, sizeof(int), cudaMemcpyDeviceToHost));
            if (wrong) throw std::runtime_error("other bytes came than were sent");
            const long long chosen = of == Of::first ? cycles[0] : *std::max_element(cycles.begin(), cycles.end());
            if (chosen <= 0) throw std::runtime_error("no cycles were counted");
            if (run > 0) found.push_back(static_cast<double>(chosen) / rounds);
        }
        return found;
    }

    // A cycle through a word of each line of so many bytes, in an order that jumps.
    void write_chain(int bytes) const {
        const int lines = bytes / 4 / kLine;
        std::vector<unsigned> order(static_cast<size_t>(lines)), words(static_cast<size_t>(bytes) / 4, 1);
        std::iota(order.begin(), order.end(), 0u);
        std::shuffle(order.begin() + 1, order.end(), std::mt19937(1));
        for (int i = 0; i < lines; ++i) words[order[i] * kLine] = order[(i + 1) % lines] * kLine;
        CHECK(cudaMemcpy(task_.data, words.data(), static_cast<size_t>(bytes), cudaMemcpyHostToDevice));
    }

    void fill(int value) const { CHECK(cudaMemset(task_.data, value, kData)); }

  private:
    static constexpr size_t kCounterBytes = 16 * kLine * sizeof(unsigned);
    DeviceLimits limits_;
    Task task_;
};

struct Measurement {
    std::string name, unit;
    std::function<std::vector<double>()> runs;
};

std::vector<double> scaled(std::vector<double> values, double factor) {
    for (double& value : values) value *= factor;
    return values;
}

std::vector<double> over(double amount, std::vector<double> values) {
    for (double& value : values) value = amount / value;
    return values;
}

Launch shaped(int64_t blocks, int threads, int cluster = 1, size_t shared_bytes = 0, bool cooperative = false) {
    Launch shape;
    shape.grid_x = blocks;
    shape.threads = threads;
    shape.cluster = cluster;
    shape.shared_bytes = shared_bytes;
    shape.cooperative = cooperative;
    return shape;
}

// Microseconds from one empty kernel to the next, launched one by one or as a graph.
std::vector<double> launch_gaps(const Device& device, bool graph, bool cooperative, int cluster) {
    constexpr int kLaunches = 1000;
    cudaStream_t stream;
    CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    Launch shape = shaped(cluster, 32, cluster, 0, cooperative);
    shape.stream = stream;
    const auto all = [&] {
        for (int i = 0; i < kLaunches; ++i)
            if (const char* error = launch(empty_kernel, shape, device.task())) throw std::runtime_error(error);
    };
    all();
    CHECK(cudaStreamSynchronize(stream));
    cudaGraphExec_t instance = nullptr;
    if (graph) {
        cudaGraph_t captured;
        CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
        try {
            all();
        } catch (...) {
            cudaStreamEndCapture(stream, &captured);
            throw;
        }
        CHECK(cudaStreamEndCapture(stream, &captured));
        CHECK(cudaGraphInstantiate(&instance, captured, 0));
        CHECK(cudaGraphDestroy(captured));
    }
    cudaEvent_t begin, end;
    CHECK(cudaEventCreate(&begin));
    CHECK(cudaEventCreate(&end));
    std::vector<double> found;
    for (int run = 0; run <= kRuns; ++run) {
        CHECK(cudaEventRecord(begin, stream));
        if (graph)
            CHECK(cudaGraphLaunch(instance, stream));
        else
            all();
        CHECK(cudaEventRecord(end, stream));
        CHECK(cudaEventSynchronize(end));
        float ms = 0;
        CHECK(cudaEventElapsedTime(&ms, begin, end));
        if (run > 0) found.push_back(1e3 * ms / kLaunches);
    }
    if (graph) CHECK(cudaGraphExecDestroy(instance));
    CHECK(cudaEventDestroy(begin));
    CHECK(cudaEventDestroy(end));
    CHECK(cudaStreamDestroy(stream));
    return found;
}

std::vector<Measurement> measurements(const Device& device) {
    std::vector<Measurement> all;
    const auto add = [&](std::string name, const char* unit, std::function<std::vector<double>()> runs) {
        all.push_back({std::move(name), unit, std::move(runs)});
    };
    const auto number = [](int64_t n) { return std::to_string(n); };
    const Device* d = &device;
    const int multiprocessors = std::min(device.limits().multiprocessors, kMostBlocks);
    const auto clusters_up_to = [&](std::initializer_list<int> sizes) {
        std::vector<int> found;
        for (const int size : sizes)
            if (size <= device.limits().max_cluster) found.push_back(size);
        return found;
    };

    // The clock, while all multiprocessors multiply: 20 million cycles.
    const auto clock = [d, multiprocessors] {
        return over(1e9 / 20000, d->runs(clock_kernel, shaped(multiprocessors, 512), 20000));
    };
    add("sm_clock_first", "MHz", clock);

    // How many clusters of 256 threads run at once.
    for (const int cluster : clusters_up_to({8, 16}))
        for (const int kilobytes : {32, device.limits().shared_bytes / 1024})
            add("clusters_at_once_" + number(cluster) + "_" + number(kilobytes) + "KB", "clusters", [=] {
                const Launch shape = shaped(cluster, 256, cluster, static_cast<size_t>(kilobytes) * 1024);
                return std::vector<double>{
                    static_cast<double>(clusters_at_once(cluster_exchange_kernel<false>, shape))};
            });

    // Barriers of a block and of a cluster.
    for (const int threads : {64, 128, 256, 512})
        add("block_barrier_" + number(threads), "cycles",
            [=] { return d->runs(block_barrier_kernel, shaped(1, threads), 500); });
    for (const int cluster : clusters_up_to({2, 4, 8, 16}))
        for (const int threads : {128, 256}) {
            const Launch shape = shaped(cluster, threads, cluster);
            const std::string name = number(cluster) + "x" + number(threads);
            add("cluster_barrier_" + name, "cycles",
                [=] { return d->runs(cluster_barrier_kernel<true>, shape, 2000); });
            add("cluster_barrier_relaxed_" + name, "cycles",
                [=] { return d->runs(cluster_barrier_kernel<false>, shape, 2000); });
        }

    // A step's exchange in a cluster: so many bytes come to every block. all: with as many clusters as there can be.
    // block_scope: waits acquire in the scope of the block, which invalidates no L1 cache.
    for (const int cluster : clusters_up_to({4, 8, 16}))
        for (const int kilobytes : {1, 4, 8, 16}) {
            const int bytes = 1024 * kilobytes;
            const int threads = std::min(256, std::max(kWarp, bytes / 16 / cluster * 4));
            const Launch shape = shaped(cluster, threads, cluster, 16 + 2 * static_cast<size_t>(bytes));
            const std::string name = "cluster_exchange_" + number(cluster) + "_" + number(kilobytes) + "KB";
            add(name, "cycles", [=] { return d->runs(cluster_exchange_kernel<false>, shape, 2000, bytes); });
            if (kilobytes == 4) {
                add(name + "_block_scope", "cycles",
                    [=] { return d->runs(cluster_exchange_kernel<true>, shape, 2000, bytes); });
                add(name + "_all", "cycles", [=] {
                    Launch wide = shape;
                    wide.shared_bytes = 120 * 1024;  // one block to a multiprocessor
                    wide.grid_x = int64_t{cluster} * clusters_at_once(cluster_exchange_kernel<false>, wide);
                    if (wide.grid_x == 0) throw std::runtime_error("no such cluster fits");
                    return d->runs(cluster_exchange_kernel<false>, wide, 2000, bytes);
                });
            }
        }

    // One way in a cluster, and shared memory near and far.
    for (const int cluster : clusters_up_to({2, 8, 16})) {
        const Launch shape = shaped(cluster, 32, cluster, 4096);
        add("send_4B_one_way_" + number(cluster), "cycles",
            [=] { return d->runs(cluster_ping_kernel<unsigned>, shape, 2000, 0, false, Of::first); });
        add("send_16B_one_way_" + number(cluster), "cycles",
            [=] { return d->runs(cluster_ping_kernel<Vector<uint32_t, 4>>, shape, 2000, 0, false, Of::first); });
        add("far_shared_latency_" + number(cluster), "cycles",
            [=] { return d->runs(shared_chain_kernel<true>, shape, 500, 0, false, Of::first); });
    }
    add("shared_latency", "cycles", [=] { return d->runs(shared_chain_kernel<false>, shaped(1, 32, 1, 4096), 500); });
    constexpr int kReaders = 256;
    constexpr double kRead = 8.0 * kReaders;
    for (const int cluster : clusters_up_to({2, 8, 16})) {
        const Launch words = shaped(cluster, kReaders, cluster, 8 * kReaders * 4);
        const Launch vectors = shaped(cluster, kReaders, cluster, 8 * kReaders * 16);
        add("far_shared_rate_4B_" + number(cluster), "bytes/cycle/SM",
            [=] { return over(kRead * 4, d->runs(shared_rate_kernel<true, 4>, words, 1000)); });
        add("far_shared_rate_16B_" + number(cluster), "bytes/cycle/SM",
            [=] { return over(kRead * 16, d->runs(shared_rate_kernel<true, 16>, vectors, 1000)); });
    }
    const Launch words = shaped(1, kReaders, 1, 8 * kReaders * 4), vectors = shaped(1, kReaders, 1, 8 * kReaders * 16);
    add("shared_rate_4B", "bytes/cycle/SM",
        [=] { return over(kRead * 4, d->runs(shared_rate_kernel<false, 4>, words, 1000)); });
    add("shared_rate_16B", "bytes/cycle/SM",
        [=] { return over(kRead * 16, d->runs(shared_rate_kernel<false, 16>, vectors, 1000)); });
    add("ldmatrix_x4_rate", "bytes/cycle/SM",
        [=] { return over(kRead * 16, d->runs(ldmatrix_kernel, vectors, 1000)); });

    // Blocks of a grid: the barrier alone, and the exchange of 16 KB (8 rows of 1024 units of 16 bits) and 64 KB.
    std::vector<int> grids;
    for (const int blocks : {8, 16, 32, 64, multiprocessors})
        if (blocks <= multiprocessors && (grids.empty() || blocks > grids.back())) grids.push_back(blocks);
    for (const int blocks : grids) {
        const Launch shape = shaped(blocks, 256, 1, 0, true);
        add("grid_barrier_" + number(blocks), "cycles",
            [=] { return d->runs(grid_barrier_kernel<false>, shape, 1000); });
        for (const int kilobytes : {16, 64})
            if (1024 * kilobytes % (16 * blocks) == 0)  // 4 vectors for each thread, and as many from each block
                add("grid_exchange_" + number(blocks) + "_" + number(kilobytes) + "KB", "cycles",
                    [=] { return d->runs(grid_barrier_kernel<true>, shape, 500, 1024 * kilobytes); });
    }
    add("grid_one_way", "cycles",
        [=] { return d->runs(grid_ping_kernel, shaped(2, 32, 1, 0, true), 1000, 0, false, Of::first); });
    for (const int blocks : {1, 64}) {
        const Launch shape = shaped(std::min(blocks, multiprocessors), 256);
        add("release_" + number(blocks), "cycles", [=] { return d->runs(release_kernel, shape, 500); });
        add("release_behind_stores_" + number(blocks), "cycles",
            [=] { return d->runs(release_kernel, shape, 500, 0, true); });
    }

    // L2. The first run of each has brought the bytes there.
    add("l2_latency", "cycles", [=] {
        d->write_chain(8 << 20);
        return d->runs(l2_chain_kernel, shaped(1, 1), (8 << 20) / 4 / kLine / 8);  // every line
    });
    const auto l2_rate = [=](Kernel kernel, int blocks, int threads, int at_once, int bytes, bool shared) {
        d->fill(1);
        const double read = 16.0 * l2_vectors(bytes, shared ? 1 : blocks, threads, at_once);
        return over(read, d->runs(kernel, shaped(blocks, threads), 100, bytes));
    };
    const int some = static_cast<int>(kData), few = 64 << 10;
    add("l2_rate_256", "bytes/cycle/SM",
        [=] { return l2_rate(l2_rate_kernel<8, false>, multiprocessors, 256, 8, some, false); });
    add("l2_rate_512", "bytes/cycle/SM",
        [=] { return l2_rate(l2_rate_kernel<8, false>, multiprocessors, 512, 8, some, false); });
    add("l2_rate_1024", "bytes/cycle/SM",
        [=] { return l2_rate(l2_rate_kernel<4, false>, multiprocessors, 1024, 4, some, false); });
    add("l2_rate_same_64KB", "bytes/cycle/SM",
        [=] { return l2_rate(l2_rate_kernel<8, true>, multiprocessors, 256, 8, few, true); });
    add("l2_rate_one_SM", "bytes/cycle/SM", [=] { return l2_rate(l2_rate_kernel<8, true>, 1, 256, 8, few, true); });

    // Products: a chain of one warp; then cycles of an instruction in each of the multiprocessor's four parts, by the
    // warps that a part has and the chains of a warp.
    const auto products = [&](const std::string& type, Kernel one, Kernel four, Kernel eight) {
        add("mma_latency_" + type, "cycles", [=] { return scaled(d->runs(one, shaped(1, 32), 500), 1.0 / kUnrolled); });
        for (const int warps : {1, 2, 4}) {
            const Launch shape = shaped(1, 4 * warps * kWarp);
            for (const int chains : {1, 4, 8})
                add("mma_" + type + "_" + number(warps) + "x" + number(chains), "cycles/instruction", [=] {
                    const Kernel kernel = chains == 1 ? one : chains == 4 ? four : eight;
                    return scaled(d->runs(kernel, shape, 500), 1.0 / (kUnrolled * chains * warps));
                });
        }
    };
    products("bf16", product_kernel<bfloat16, 1>, product_kernel<bfloat16, 4>, product_kernel<bfloat16, 8>);
    products("tf32", product_kernel<tf32, 1>, product_kernel<tf32, 4>, product_kernel<tf32, 8>);

    // Functions: a chain of one warp, and how many a multiprocessor does in a cycle with 16 warps of 4 chains.
    const auto functions = [&](const std::string& name, Kernel one, Kernel four) {
        add(name + "_latency", "cycles", [=] { return scaled(d->runs(one, shaped(1, 32), 500), 1.0 / kUnrolled); });
        add(name + "_rate", "1/cycle/SM",
            [=] { return over(512.0 * 4 * kUnrolled, d->runs(four, shaped(1, 512), 500)); });
    };
    functions("fma", function_kernel<MultiplyAdd, 1>, function_kernel<MultiplyAdd, 4>);
    functions("ex2", function_kernel<Ex2, 1>, function_kernel<Ex2, 4>);
    functions("tanh_approx", function_kernel<TanhApprox, 1>, function_kernel<TanhApprox, 4>);
    functions("exp", function_kernel<Exp, 1>, function_kernel<Exp, 4>);
    functions("sigmoid", function_kernel<Sigmoid, 1>, function_kernel<Sigmoid, 4>);
    functions("tanh", function_kernel<Tanh, 1>, function_kernel<Tanh, 4>);
    functions("shuffle", function_kernel<Shuffle, 1>, function_kernel<Shuffle, 4>);

    add("launch_gap_stream", "us", [=] { return launch_gaps(*d, false, false, 1); });
    add("launch_gap_graph", "us", [=] { return launch_gaps(*d, true, false, 1); });
    add("launch_gap_graph_cooperative", "us", [=] { return launch_gaps(*d, true, true, 1); });
    for (const int cluster : clusters_up_to({8}))
        add("launch_gap_graph_cluster_" + number(cluster), "us", [=] { return launch_gaps(*d, true, false, cluster); });
    add("sm_clock_last", "MHz", clock);
    return all;
}

// False where it failed. Throws where the device cannot be used any more.
bool measure(const Measurement& one) {
    std::fprintf(stderr, "# %s\n", one.name.c_str());
    std::fflush(stderr);
    std::string why;
    try {
        const std::vector<double> runs = one.runs();
        const auto [least, most] = std::minmax_element(runs.begin(), runs.end());
        std::fprintf(stderr, "#   %zu runs: %.6g to %.6g\n", runs.size(), *least, *most);
        std::printf("%s,%s,%.6g\n", one.name.c_str(), one.unit.c_str(), median(runs));
        std::fflush(stdout);
        return true;
    } catch (const std::exception& error) {
        why = error.what();
    }
    std::fprintf(stderr, "# %s failed: %s\n", one.name.c_str(), why.c_str());
    std::fflush(stderr);
    cudaGetLastError();
    CHECK(cudaDeviceSynchronize());
    return false;
}

int measure_all(const std::vector<std::string>& names) {
    const Device device;
    const std::vector<Measurement> all = measurements(device);
    const auto is_asked = [&](const std::string& name) {
        return names.empty() || std::find(names.begin(), names.end(), name) != names.end();
    };
    for (const std::string& name : names)
        if (std::none_of(all.begin(), all.end(), [&](const Measurement& one) { return one.name == name; })) {
            std::fprintf(stderr, "gpu_floor: no measurement is called %s\n", name.c_str());
            return 2;
        }
    bool good = true;
    for (const Measurement& one : all)
        if (is_asked(one.name)) good &= measure(one);
    return good ? 0 : 1;
}

int list() {
    const Device device;
    for (const Measurement& one : measurements(device)) std::printf("%s,%s\n", one.name.c_str(), one.unit.c_str());
    return 0;
}

}  // namespace

int floor_main(int count, char** arguments) {
    try {
        int devices = 0;
        CHECK(cudaGetDeviceCount(&devices));
        if (count == 2 && !std::strcmp(arguments[1], "list")) return list();
        if (count == 2 && !std::strcmp(arguments[1], "all")) count = 1;
        return measure_all({arguments + 1, arguments + count});
    } catch (const std::exception& error) {
        std::fprintf(stderr, "gpu_floor: %s\n", error.what());
        return 1;
    }
}

}  // namespace vssn::gpu

int main(int count, char** arguments) { return vssn::gpu::floor_main(count, arguments); }

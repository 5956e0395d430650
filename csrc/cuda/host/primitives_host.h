// The primitives on the host, for the tests: what each means stands in ../primitives.cuh; include that.
//
// Every thread is a fiber (fibers.h). What the device leaves undefined is reported here where it is seen: a barrier or
// a collective that not all threads reach, or reach at different places of the source; a misaligned access; an address
// outside the block's shared memory given to cluster_address; shared memory of a block that has ended; a launch that
// the device's limits would refuse.
#pragma once

#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <type_traits>
#include <vector>

#include "fibers.h"
#include "numbers.h"

#define VSSN_KERNEL inline void
#define VSSN_BOUNDED_KERNEL(...) inline void
#define VSSN_DEVICE inline

namespace vssn::gpu {

// ---- Where ------------------------------------------------------------------------------------------------------

inline int thread_id() { return host::current->id; }
inline int block_threads() { return host::current->block->threads; }
inline int lane_id() { return host::current->id % kWarp; }
inline int warp_id() { return host::current->id / kWarp; }
inline int warps() { return host::current->block->threads / kWarp; }
inline int block_x() { return host::current->block->x; }
inline int block_y() { return host::current->block->y; }
inline int grid_x() { return host::grid_x; }
inline int grid_y() { return host::grid_y; }

// ---- Memory -----------------------------------------------------------------------------------------------------

inline unsigned char* dynamic_shared() { return host::current->block->shared; }

template <class T, int N>
struct alignas(sizeof(T) * N) Vector {
    T v[N];
};

namespace host {

// The device needs every access aligned to its size.
inline void require_aligned(const void* p, size_t bytes, const char* what, Site site) {
    if (reinterpret_cast<uintptr_t>(p) % bytes != 0)
        fail(std::string(what) + " at " + describe(site) + ": the address is not a multiple of " +
             std::to_string(bytes) + " bytes");
}

}  // namespace host

template <class To, class From>
To bits(const From& from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof(To));
    return to;
}

template <class T>
const T* moved(const T* p, int64_t elements) {
    return p == nullptr ? nullptr : p + elements;
}

template <class T>
T held(T value) {
    return value;
}

template <class T>
T* advanced(T* p, int64_t bytes) {
    return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(p) + static_cast<uintptr_t>(bytes));
}

template <int n>
Vector<uint32_t, n> load_words(const void* p, host::Site site = host::Site::here()) {
    static_assert(n == 1 || n == 2 || n == 4);
    host::require_aligned(p, sizeof(uint32_t) * n, "load_words", site);
    Vector<uint32_t, n> words;
    std::memcpy(words.v, p, sizeof(words));
    return words;
}

template <int n>
void store_words(void* p, const Vector<uint32_t, n>& words, host::Site site = host::Site::here()) {
    static_assert(n == 1 || n == 2 || n == 4);
    host::require_aligned(p, sizeof(uint32_t) * n, "store_words", site);
    std::memcpy(p, words.v, sizeof(words));
}

template <class T>
T load_l2(const T* p, host::Site site = host::Site::here()) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
    host::require_aligned(p, sizeof(T), "load_l2", site);
    return *p;
}

template <class T>
void store_l2(T* p, const T& value, host::Site site = host::Site::here()) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
    host::require_aligned(p, sizeof(T), "store_l2", site);
    *p = value;
}

inline void copy_l2(void* shared, const void* global, host::Site site = host::Site::here()) {
    host::require_aligned(shared, 16, "copy_l2", site);
    host::require_aligned(global, 16, "copy_l2", site);
    const auto* to = static_cast<const unsigned char*>(shared);
    const host::Block& own = *host::current->block;
    if (to < own.shared || to + 16 > own.shared + own.shared_bytes)
        host::fail("copy_l2 at " + host::describe(site) + ": not into the block's shared memory");
    // Until the wait nobody may read it: NaN in every floating type.
    std::memset(shared, 0xff, 16);
    host::current->copies.push_back({shared, global});
}

inline void await_copies() {
    for (const host::Copy& copy : host::current->copies) std::memcpy(copy.to, copy.from, 16);
    host::current->copies.clear();
}

// Reads there, so that AddressSanitizer sees one outside the tensors.
inline void prefetch_l2(const void* p) { static_cast<void>(*static_cast<const volatile unsigned char*>(p)); }

// ---- A trace, for the tests --------------------------------------------------------------------------------------

namespace host {

struct Event {
    std::string what;
    const unsigned* counter;  // of "release" and "wait"
};
inline bool tracing = false;
inline std::vector<Event> trace;

// What a grid's first block does, in the order in which its fibers come to it; of products those of its last warp's
// first lane, which waits for the turns.
inline void note(const char* what, const unsigned* counter = nullptr) {
    if (!tracing || current->block->x != 0 || current->block->y != 0) return;
    if (counter != nullptr || current->id == current->block->threads - kWarp) trace.push_back({what, counter});
}

}  // namespace host

// ---- Limits -----------------------------------------------------------------------------------------------------

namespace host {
// Of an H100, but for its 132 multiprocessors: cooperative launches run all their blocks' fibers at once.
inline DeviceLimits limits{90, 8, 227 * 1024, 16};
}  // namespace host

inline DeviceLimits device_limits() { return host::limits; }

// ---- Barriers, clusters and grids -------------------------------------------------------------------------------

inline void sync_block(host::Site site = host::Site::here()) {
    host::Meeting& barrier = host::current->block->barrier;
    const unsigned round = barrier.round;
    if (!host::arrive(barrier, "sync_block", site, true, nullptr, nullptr))
        host::wait_for_round(barrier, round, "sync_block", site);
}

namespace host {

// The lanes' parts, given to `complete` by the last lane that comes.
inline void collective(void* part, void (*complete)(void*), const char* what, Site site) {
    Warp& warp = current->block->warps[warp_id()];
    const unsigned round = warp.meeting.round;
    warp.slots[lane_id()] = part;
    if (!arrive(warp.meeting, what, site, true, complete, warp.slots)) wait_for_round(warp.meeting, round, what, site);
}

}  // namespace host

inline void sync_warp(host::Site site = host::Site::here()) { host::collective(nullptr, nullptr, "sync_warp", site); }

inline void cluster_arrive(host::Site site = host::Site::here()) {
    if (host::limits.compute_capability < 90) host::fail("cluster_arrive at " + host::describe(site) + " before 9.0");
    if (host::current->arrived_at_cluster)
        host::fail("cluster_arrive at " + host::describe(site) + " twice without cluster_wait");
    host::Meeting& barrier = host::current->block->cluster->barrier;
    host::current->arrived_at_cluster = true;
    host::current->cluster_round = barrier.round;
    host::arrive(barrier, "cluster_arrive", site, false, nullptr, nullptr);
}

inline void cluster_wait(host::Site site = host::Site::here()) {
    if (!host::current->arrived_at_cluster)
        host::fail("cluster_wait at " + host::describe(site) + " without cluster_arrive");
    const host::Meeting& barrier = host::current->block->cluster->barrier;
    host::wait_for_round(barrier, host::current->cluster_round, "cluster_wait", site);
    host::current->arrived_at_cluster = false;
}

inline void sync_cluster(host::Site site = host::Site::here()) {
    cluster_arrive(site);
    cluster_wait(site);
}

inline int cluster_rank() { return host::current->block->rank; }
inline int cluster_size() { return host::current->block->cluster->size; }

template <class T>
T* cluster_address(T* p, int rank, host::Site site = host::Site::here()) {
    const host::Block& own = *host::current->block;
    const auto* byte = reinterpret_cast<const unsigned char*>(p);
    if (byte < own.shared || byte + sizeof(T) > own.shared + own.shared_bytes)
        host::fail("cluster_address at " + host::describe(site) + ": not in the block's shared memory");
    if (rank < 0 || rank >= own.cluster->size)
        host::fail("cluster_address at " + host::describe(site) + ": rank " + std::to_string(rank) +
                   " of a cluster of " + std::to_string(own.cluster->size));
    const host::Block& other = own.cluster->blocks[rank];
    if (other.running == 0)
        host::fail("cluster_address at " + host::describe(site) + ": block " + std::to_string(rank) + " has ended");
    return reinterpret_cast<T*>(other.shared + (byte - own.shared));
}

struct alignas(8) Mailbox {
    unsigned ended;  // rounds
    int missing;     // bytes; below 0 where a sender is ahead of expect
};

namespace host {
inline int end_if_complete(Mailbox* m) { return m->missing == 0 ? ++m->ended : 0; }
}  // namespace host

inline void open(Mailbox* m) { *m = {0, 0}; }

inline void expect(Mailbox* m, int bytes) {
    m->missing += bytes;
    host::end_if_complete(m);
}

template <class T>
void send(T* p, const T& value, Mailbox* m, int rank, host::Site site = host::Site::here()) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
    host::require_aligned(p, sizeof(T), "send", site);
    *cluster_address(p, rank, site) = value;
    Mailbox* to = cluster_address(m, rank, site);
    to->missing -= static_cast<int>(sizeof(T));
    host::end_if_complete(to);
}

struct Peer {
    int rank;
};
inline Peer peer(int rank) { return {rank}; }

template <class T>
void send_to(Peer to, int at, const T& value, int mailbox_at, host::Site site = host::Site::here()) {
    send(reinterpret_cast<T*>(dynamic_shared() + at), value, reinterpret_cast<Mailbox*>(dynamic_shared() + mailbox_at),
         to.rank, site);
}

inline void await(Mailbox* m, unsigned round, host::Site site = host::Site::here()) {
    if (static_cast<int>(m->ended - (round + 1)) < 0) host::wait_for_flag(&m->ended, round + 1, site);
}

inline void add_release(unsigned* flag, unsigned n) {
    host::note("release", flag);
    *flag += n;
}

inline void wait_acquire(const unsigned* flag, unsigned n, host::Site site = host::Site::here()) {
    host::note("wait", flag);
    if (static_cast<int>(*flag - n) < 0) host::wait_for_flag(flag, n, site);
}

inline void check_acquire(const unsigned* flag, unsigned n, host::Site site = host::Site::here()) {
    wait_acquire(flag, n, site);
}

inline void give_words(Vector<uint32_t, 4>* p, const Vector<uint32_t, 4>& words, host::Site site = host::Site::here()) {
    host::require_aligned(p, 16, "give_words", site);
    *p = words;
}

template <int n>
void await_words(const Vector<uint32_t, 4>* const (&from)[n], Vector<uint32_t, 4> (&words)[n],
                 host::Site site = host::Site::here()) {
    for (int i = 0; i < n; ++i) {
        host::require_aligned(from[i], 16, "await_words", site);
        for (int j = 0; j < 4; ++j)
            if (from[i]->v[j] == kAbsent) host::wait_for_word(&from[i]->v[j], kAbsent, site);
        words[i] = *from[i];
    }
}

inline void release_fence() {}

// ---- Warp -------------------------------------------------------------------------------------------------------

namespace host {

template <class T>
struct Shuffled {
    T value;
    int lane;
};

template <class T>
T exchange_lanes(T value, int lane, const char* what, Site site) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8);
    Shuffled<T> part{value, lane % kWarp};
    const auto complete = [](void* slots) {
        T values[kWarp];
        for (int i = 0; i < kWarp; ++i) values[i] = static_cast<Shuffled<T>**>(slots)[i]->value;
        for (int i = 0; i < kWarp; ++i) {
            auto& to = *static_cast<Shuffled<T>**>(slots)[i];
            to.value = values[to.lane];
        }
    };
    collective(&part, complete, what, site);
    return part.value;
}

}  // namespace host

template <class T>
T shuffle_xor(T value, int mask, host::Site site = host::Site::here()) {
    return host::exchange_lanes(value, lane_id() ^ mask, "shuffle_xor", site);
}

template <class T>
T shuffle(T value, int lane, host::Site site = host::Site::here()) {
    return host::exchange_lanes(value, lane, "shuffle", site);
}

// ---- Numbers ----------------------------------------------------------------------------------------------------

inline float to_float(float x) { return x; }
inline float to_float(bfloat16 x) { return host::widen(x); }
inline float to_float(float16 x) { return host::widen(x); }

inline float lower_bfloat16(uint32_t word) { return bits<float>(word << 16); }
inline float upper_bfloat16(uint32_t word) { return bits<float>(word & 0xffff0000u); }

template <class T>
T from_float(float x) {
    if constexpr (std::is_same_v<T, float>) return x;
    if constexpr (std::is_same_v<T, bfloat16>) return host::round_to_bfloat16(x);
    if constexpr (std::is_same_v<T, float16>) return host::round_to_float16(x);
}

template <class T>
uint32_t pack(float low, float high) {
    return bits<uint16_t>(from_float<T>(low)) | static_cast<uint32_t>(bits<uint16_t>(from_float<T>(high))) << 16;
}

// As the device's __expf: 2^y of a rounded product.
inline float exp(float x) { return std::exp2(x * 1.4426950408889634f); }

inline float exp2(float x) { return std::exp2(x); }
inline float reciprocal(float x) { return 1.0f / x; }
inline float tanh_approximate(float x) { return std::tanh(x); }

// As the device's __fdividef, which gives 0 for a denominator above 2^126.
inline float divide(float a, float b) {
    const float magnitude = std::fabs(b);
    return magnitude > 0x1p126f && magnitude < INFINITY ? 0.0f * a : a / b;
}

inline float expm1(float x) { return std::expm1(x); }
inline float log1p(float x) { return std::log1p(x); }
inline float log(float x) { return std::log(x); }
inline float maximum(float a, float b) { return a > b || a != a ? a : b; }

// ---- Products ---------------------------------------------------------------------------------------------------

struct Accumulator {
    float v[4];
};

inline int accumulator_row(int i) { return lane_id() / 4 * 2 + i / 2; }
inline int accumulator_column(int i) { return lane_id() % 4 * 2 + i % 2; }

namespace host {

// A product on tensor cores. Lane (g, q) = (lane / 4, lane % 4) holds, with kPack elements in a register:
// of A element (2g + i % 2, kPack q + 4 kPack (i / 2) + j) in part j of register i of four,
// of B element (g, kPack q + 4 kPack i + j) in part j of register i of two.
template <class T>
struct TensorCoreProduct {
    using Stored = T;
    static constexpr int kPack = 4 / sizeof(T);
    static constexpr int kDepth = 8 * kPack;
    static constexpr int kTileBytes = 16 * kWarp;
    static constexpr bool kTensorCores = true;

    using Register = Vector<T, kPack>;
    struct A {
        Register r[4];
    };
    struct B {
        Register r[2];
    };

    static T rounded(float x) {
        if constexpr (std::is_same_v<T, float>)
            return round_to_tf32(x);
        else
            return from_float<T>(x);
    }

    static A load_rows(const T* base, int64_t row_stride, int64_t k_stride, int rows, int depth) {
        const int g = lane_id() / 4, q = lane_id() % 4;
        A a;
        for (int i = 0; i < 4; ++i)
            for (int j = 0; j < kPack; ++j) {
                const int row = 2 * g + i % 2, k = kPack * q + i / 2 * 4 * kPack + j;
                a.r[i].v[j] = row < rows && k < depth ? rounded(to_float(base[row * row_stride + k * k_stride]))
                                                      : from_float<T>(0.0f);
            }
        return a;
    }

    static void store(const A& a, void* tile, Site site = Site::here()) {
        require_aligned(tile, 16, "store", site);
        std::memcpy(static_cast<unsigned char*>(tile) + 16 * lane_id(), &a, 16);
    }

    static A load(const void* tile, Site site = Site::here()) {
        require_aligned(tile, 16, "load", site);
        A a;
        std::memcpy(&a, static_cast<const unsigned char*>(tile) + 16 * lane_id(), 16);
        return a;
    }

    static A load_l2(const void* tile, Site site = Site::here()) { return load(tile, site); }

    static B load_b(const T* base, int stride, int flip = 0, Site site = Site::here()) {
        const T* p = base + (lane_id() / 4 ^ flip) * stride + lane_id() % 4 * kPack;
        require_aligned(p, 4, "load_b", site);
        B b;
        std::memcpy(&b.r[0], p, 4);
        std::memcpy(&b.r[1], p + 4 * kPack, 4);
        return b;
    }

    static void load_b_pair(const T* base, int stride, B& first, B& second, int flip = 0, Site site = Site::here()) {
        require_aligned(base + lane_id() % 8 * stride + lane_id() / 8 * 4 * kPack, 16, "load_b_pair", site);
        first = load_b(base, stride, flip, site);
        second = load_b(base + kDepth, stride, flip, site);
    }

    static void multiply(Accumulator& c, const A& a, const B& b, Site site = Site::here()) {
        note("product");
        struct Part {
            Accumulator* c;
            const A* a;
            const B* b;
        } part{&c, &a, &b};
        const auto complete = [](void* slots) {
            Part** parts = static_cast<Part**>(slots);
            float left[16][kDepth], right[8][kDepth];
            for (int lane = 0; lane < kWarp; ++lane)
                for (int j = 0; j < kPack; ++j) {
                    const int g = lane / 4, k = kPack * (lane % 4) + j;
                    for (int i = 0; i < 4; ++i)
                        left[2 * g + i % 2][k + i / 2 * 4 * kPack] = operand(parts[lane]->a->r[i].v[j]);
                    for (int i = 0; i < 2; ++i) right[g][k + i * 4 * kPack] = operand(parts[lane]->b->r[i].v[j]);
                }
            for (int lane = 0; lane < kWarp; ++lane)
                for (int i = 0; i < 4; ++i) {
                    const int row = lane / 4 * 2 + i / 2, column = lane % 4 * 2 + i % 2;
                    float sum = 0;
                    for (int k = 0; k < kDepth; ++k) sum += left[row][k] * right[column][k];
                    parts[lane]->c->v[i] += sum;
                }
        };
        collective(&part, complete, "multiply", site);
    }

  private:
    // The tensor cores do not see the low bits of a float that was not rounded to tf32.
    static float operand(T x) {
        if constexpr (std::is_same_v<T, float>)
            return float_of(bits_of(x) & 0xffffe000u);
        else
            return to_float(x);
    }
};

}  // namespace host

template <class C>
struct Product;

template <>
struct Product<bfloat16> : host::TensorCoreProduct<bfloat16> {};

template <>
struct Product<float16> : host::TensorCoreProduct<float16> {};

template <>
struct Product<tf32> : host::TensorCoreProduct<float> {};

template <>
struct Product<float> {
    using Stored = float;
    static constexpr int kDepth = 4;
    static constexpr int kTileBytes = 16 * 4 * sizeof(float);
    static constexpr bool kTensorCores = false;

    struct A {
        Vector<float, 4> row[2];
    };
    struct B {
        Vector<float, 4> column[2];
    };

    static float rounded(float x) { return x; }

    static A load_rows(const float* base, int64_t row_stride, int64_t k_stride, int rows, int depth) {
        A a;
        for (int i = 0; i < 2; ++i) {
            const int row = lane_id() / 4 * 2 + i;
            for (int k = 0; k < 4; ++k)
                a.row[i].v[k] = row < rows && k < depth ? base[row * row_stride + k * k_stride] : 0.0f;
        }
        return a;
    }

    static void store(const A& a, void* tile, host::Site site = host::Site::here()) {
        host::require_aligned(tile, 16, "store", site);
        auto* rows = static_cast<Vector<float, 4>*>(tile) + lane_id() / 4 * 2;
        if (lane_id() % 4 == 0) rows[0] = a.row[0];
        if (lane_id() % 4 == 1) rows[1] = a.row[1];
    }

    static A load(const void* tile, host::Site site = host::Site::here()) {
        host::require_aligned(tile, 16, "load", site);
        const auto* rows = static_cast<const Vector<float, 4>*>(tile) + lane_id() / 4 * 2;
        return {{rows[0], rows[1]}};
    }

    static A load_l2(const void* tile, host::Site site = host::Site::here()) { return load(tile, site); }

    static B load_b(const float* base, int stride, int flip = 0, host::Site site = host::Site::here()) {
        const float* p = base + lane_id() % 4 * 2 * stride;
        host::require_aligned(p, 16, "load_b", site);
        host::require_aligned(p + stride, 16, "load_b", site);
        return {{*reinterpret_cast<const Vector<float, 4>*>(p + flip * stride),
                 *reinterpret_cast<const Vector<float, 4>*>(p + (1 - flip) * stride)}};
    }

    static void load_b_pair(const float* base, int stride, B& first, B& second, int flip = 0,
                            host::Site site = host::Site::here()) {
        first = load_b(base, stride, flip, site);
        second = load_b(base + kDepth, stride, flip, site);
    }

    static void multiply(Accumulator& c, const A& a, const B& b) {
        host::note("product");
        for (int k = 0; k < 4; ++k)
            for (int i = 0; i < 4; ++i) c.v[i] = std::fma(a.row[i / 2].v[k], b.column[i % 2].v[k], c.v[i]);
    }
};

// ---- Launching --------------------------------------------------------------------------------------------------

namespace host {

// A multiprocessor has 1 KB more than its largest block may ask for, and gives 1 KB of it to each block.
inline int blocks_of_multiprocessor(const Launch& shape) {
    const size_t by_shared = (static_cast<size_t>(device_limits().shared_bytes) + 1024) / (shape.shared_bytes + 1024);
    const size_t by_threads = 1536 / static_cast<size_t>(shape.threads);
    return static_cast<int>(by_shared < by_threads ? by_shared : by_threads);
}

inline const char* refuse(const Launch& shape) {
    const DeviceLimits device = device_limits();
    if (shape.threads < 1 || shape.threads > 1024 || shape.threads % kWarp != 0)
        return "invalid configuration argument: threads must be a multiple of 32 from 32 to 1024";
    if (shape.grid_x < 0 || shape.grid_x > 0x7fffffff || shape.grid_y < 0 || shape.grid_y > 65535)
        return "invalid configuration argument: grid";
    if (shape.shared_bytes > static_cast<size_t>(device.shared_bytes))
        return "invalid argument: more shared memory than a block may have";
    if (shape.cluster < 1 || shape.cluster > device.max_cluster || shape.grid_x % shape.cluster != 0)
        return "invalid cluster size";
    if (shape.cooperative && shape.grid_x * shape.grid_y > blocks_of_multiprocessor(shape) * device.multiprocessors)
        return "too many blocks in cooperative launch";
    return nullptr;
}

}  // namespace host

namespace host {
// By size of a cluster, where it is not what the multiprocessors alone would hold: as a device whose GPCs have gaps, or
// a MIG slice, answers.
inline std::map<int, int> clusters;
}  // namespace host

template <class Params>
int clusters_at_once(void (*)(Params), const Launch& shape) {
    if (const auto known = host::clusters.find(shape.cluster); known != host::clusters.end()) return known->second;
    // The compiler gives the recurrences about 256 registers a thread: of 65536.
    const int by_registers = shape.threads < 256 ? 256 / shape.threads : 1;
    const int by_memory = host::blocks_of_multiprocessor(shape);
    return (by_memory < by_registers ? by_memory : by_registers) * host::limits.multiprocessors / shape.cluster;
}

template <class Params>
const char* launch(void (*kernel)(Params), const Launch& shape, const Params& params) {
    static_assert(std::is_trivially_copyable_v<Params> && sizeof(Params) <= 4096, "as a kernel's parameters must be");
    if (shape.grid_x == 0 || shape.grid_y == 0) return nullptr;
    if (const char* error = host::refuse(shape)) return error;
    struct Call {
        void (*kernel)(Params);
        const Params* params;
    } call{kernel, &params};
    const auto body = [](const void* argument) {
        const Call& to = *static_cast<const Call*>(argument);
        to.kernel(*to.params);
    };
    return host::run({shape.grid_x, shape.grid_y, shape.threads, shape.cluster, shape.cooperative, shape.shared_bytes},
                     body, &call);
}

}  // namespace vssn::gpu

#include "../primitives_common.cuh"

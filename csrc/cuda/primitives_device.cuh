// The primitives as CUDA. What each means stands in primitives.cuh; include that.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cassert>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>

#define VSSN_KERNEL __global__ void
#define VSSN_BOUNDED_KERNEL(...) __global__ void __launch_bounds__(__VA_ARGS__)
#define VSSN_DEVICE __device__ __forceinline__

namespace vssn::gpu {

// ---- Where ------------------------------------------------------------------------------------------------------

VSSN_DEVICE int thread_id() { return static_cast<int>(threadIdx.x); }
VSSN_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
VSSN_DEVICE int lane_id() { return static_cast<int>(threadIdx.x) % kWarp; }
VSSN_DEVICE int warp_id() { return static_cast<int>(threadIdx.x) / kWarp; }
VSSN_DEVICE int warps() { return static_cast<int>(blockDim.x) / kWarp; }
VSSN_DEVICE int block_x() { return static_cast<int>(blockIdx.x); }
VSSN_DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
VSSN_DEVICE int grid_x() { return static_cast<int>(gridDim.x); }
VSSN_DEVICE int grid_y() { return static_cast<int>(gridDim.y); }

// ---- Memory -----------------------------------------------------------------------------------------------------

VSSN_DEVICE unsigned char* dynamic_shared() {
    extern __shared__ __align__(16) unsigned char vssn_dynamic_shared[];
    return vssn_dynamic_shared;
}

template <class T, int N>
struct alignas(sizeof(T) * N) Vector {
    T v[N];
};

namespace detail {
template <size_t bytes>
struct Word;
template <>
struct Word<4> {
    using type = unsigned int;
};
template <>
struct Word<8> {
    using type = uint2;
};
template <>
struct Word<16> {
    using type = uint4;
};

}  // namespace detail

template <class To, class From>
VSSN_DEVICE To bits(const From& from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof(To));
    return to;
}

template <class T>
VSSN_DEVICE const T* moved(const T* p, int64_t elements) {
    return p + elements;
}

template <class T>
VSSN_DEVICE T held(T value) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8);
    if constexpr (sizeof(T) == 4)
        asm volatile("" : "+r"(value));
    else
        asm volatile("" : "+l"(value));
    return value;
}

// The round trip tells the compiler that it still is an address of global memory.
template <class T>
VSSN_DEVICE T* held(T* p) {
    const size_t address = held(__cvta_generic_to_global(p));
    return static_cast<T*>(__cvta_global_to_generic(address));
}

template <class T>
VSSN_DEVICE T* advanced(T* p, int64_t bytes) {
    using Byte = std::conditional_t<std::is_const_v<T>, const unsigned char, unsigned char>;
    return reinterpret_cast<T*>(reinterpret_cast<Byte*>(p) + bytes);
}

// As the words' own type: a memcpy straight from memory becomes loads of single bytes.
template <int n>
VSSN_DEVICE Vector<uint32_t, n> load_words(const void* p) {
    return *static_cast<const Vector<uint32_t, n>*>(p);
}

template <int n>
VSSN_DEVICE void store_words(void* p, const Vector<uint32_t, n>& words) {
    *static_cast<Vector<uint32_t, n>*>(p) = words;
}

// Volatile, and with memory clobbered: never moved across a barrier or a wait for a counter.
template <class T>
VSSN_DEVICE T load_l2(const T* p) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
    Vector<uint32_t, sizeof(T) / 4> w;
    if constexpr (sizeof(T) == 4)
        asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(w.v[0]) : "l"(p) : "memory");
    else if constexpr (sizeof(T) == 8)
        asm volatile("ld.global.cg.v2.u32 {%0, %1}, [%2];" : "=r"(w.v[0]), "=r"(w.v[1]) : "l"(p) : "memory");
    else
        asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(w.v[0]), "=r"(w.v[1]), "=r"(w.v[2]), "=r"(w.v[3])
                     : "l"(p)
                     : "memory");
    return bits<T>(w);
}

template <class T>
VSSN_DEVICE void store_l2(T* p, const T& value) {
    using Word = typename detail::Word<sizeof(T)>::type;
    __stcg(reinterpret_cast<Word*>(p), bits<Word>(value));
}

VSSN_DEVICE void copy_l2(void* shared, const void* global) {
    asm volatile(
        "cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(shared))),
        "l"(global)
        : "memory");
}
VSSN_DEVICE void await_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

VSSN_DEVICE void prefetch_l2(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// ---- Barriers, clusters and grids -------------------------------------------------------------------------------

// With VSSN_DEBUG_POLLS (VSSN_CUDA_DEBUG=1 when building) a wait that has polled so often ends the launch, and the
// runtime prints where in the source, and which block and thread, it was. try_wait sleeps for a time that nobody says:
// there test_wait polls.
namespace detail {
#if defined(VSSN_DEBUG_POLLS)
#define VSSN_POLL "test_wait"
struct Site {
    const char* file;
    int line;
    static constexpr __device__ Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        return {file, line};
    }
};
struct Polls {
    unsigned polls = 0;
    VSSN_DEVICE void count(const char* what, Site site) {
        if (++polls == VSSN_DEBUG_POLLS) __assert_fail(what, site.file, site.line, "a wait that does not end");
    }
};
#else
#define VSSN_POLL "try_wait"
struct Site {
    static constexpr __device__ Site here() { return {}; }
};
struct Polls {
    VSSN_DEVICE void count(const char*, Site) {}
};
#endif
}  // namespace detail

VSSN_DEVICE void sync_block() { __syncthreads(); }
VSSN_DEVICE void sync_warp() { __syncwarp(); }

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
VSSN_DEVICE void cluster_arrive() { __cluster_barrier_arrive(); }
VSSN_DEVICE void cluster_wait() { __cluster_barrier_wait(); }
VSSN_DEVICE int cluster_rank() { return static_cast<int>(__clusterRelativeBlockRank()); }
VSSN_DEVICE int cluster_size() { return static_cast<int>(__clusterSizeInBlocks()); }
template <class T>
VSSN_DEVICE T* cluster_address(T* p, int rank) {
    return static_cast<T*>(__cluster_map_shared_rank(p, static_cast<unsigned>(rank)));
}

// An mbarrier: a round ends when its one arrival has come and the bytes that it expects are there.
struct alignas(8) Mailbox {
    unsigned long long barrier;
};

namespace detail {
VSSN_DEVICE unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }
VSSN_DEVICE unsigned cluster_shared_address(const void* p, int rank) {
    unsigned address;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(p)), "r"(rank));
    return address;
}
}  // namespace detail

VSSN_DEVICE void open(Mailbox* m) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(detail::shared_address(m)) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

VSSN_DEVICE void expect(Mailbox* m, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(detail::shared_address(m)), "r"(bytes)
                 : "memory");
}

template <class T>
VSSN_DEVICE void send(T* p, const T& value, Mailbox* m, int rank) {
    using Word = typename detail::Word<sizeof(T)>::type;
    const Word word = bits<Word>(value);
    const unsigned to = detail::cluster_shared_address(p, rank), mailbox = detail::cluster_shared_address(m, rank);
    if constexpr (sizeof(T) == 4)
        asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(to), "r"(word),
                     "r"(mailbox)
                     : "memory");
    else if constexpr (sizeof(T) == 8)
        asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(to),
                     "r"(word.x), "r"(word.y), "r"(mailbox)
                     : "memory");
    else
        asm volatile(
            "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
            "r"(word.x), "r"(word.y), "r"(word.z), "r"(word.w), "r"(mailbox)
            : "memory");
}

// Where another block's dynamic shared memory lies in the cluster's addresses: asked for once.
struct Peer {
    unsigned base;
};
VSSN_DEVICE Peer peer(int rank) { return {detail::cluster_shared_address(dynamic_shared(), rank)}; }

template <class T>
VSSN_DEVICE void send_to(Peer to, int at, const T& value, int mailbox_at) {
    static_assert(sizeof(T) == 16);
    const uint4 word = bits<uint4>(value);
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
                     to.base + static_cast<unsigned>(at)),
                 "r"(word.x), "r"(word.y), "r"(word.z), "r"(word.w), "r"(to.base + static_cast<unsigned>(mailbox_at))
                 : "memory");
}

VSSN_DEVICE void await(Mailbox* m, unsigned round, detail::Site site = detail::Site::here()) {
    unsigned done;
    for (detail::Polls polls;; polls.count("await: a mailbox that blocks of the cluster send to", site)) {
        asm volatile("{ .reg .pred p; mbarrier." VSSN_POLL
                     ".parity.acquire.cluster.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(done)
                     : "r"(detail::shared_address(m)), "r"(round & 1)
                     : "memory");
        if (done) break;
    }
}
#else  // no launcher asks for a cluster here
struct alignas(8) Mailbox {
    unsigned long long barrier;
};
VSSN_DEVICE void open(Mailbox*) { __trap(); }
VSSN_DEVICE void expect(Mailbox*, int) { __trap(); }
template <class T>
VSSN_DEVICE void send(T*, const T&, Mailbox*, int) {
    __trap();
}
struct Peer {
    unsigned base;
};
VSSN_DEVICE Peer peer(int) { return {}; }
template <class T>
VSSN_DEVICE void send_to(Peer, int, const T&, int) {
    __trap();
}
VSSN_DEVICE void await(Mailbox*, unsigned) { __trap(); }
VSSN_DEVICE void cluster_arrive() { __trap(); }
VSSN_DEVICE void cluster_wait() { __trap(); }
VSSN_DEVICE int cluster_rank() { return 0; }
VSSN_DEVICE int cluster_size() { return 1; }
template <class T>
VSSN_DEVICE T* cluster_address(T* p, int) {
    return p;
}
#endif

VSSN_DEVICE void sync_cluster() {
    cluster_arrive();
    cluster_wait();
}

// Behind a sync_block the release covers what the whole block wrote: it is cumulative.
VSSN_DEVICE void add_release(unsigned* flag, unsigned n) {
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(flag), "r"(n) : "memory");
}

// Polls are relaxed, and one fence behind the last of them acquires.
VSSN_DEVICE void wait_acquire(const unsigned* flag, unsigned n, detail::Site site = detail::Site::here()) {
    unsigned seen;
    for (detail::Polls polls;; polls.count("wait_acquire: a counter that blocks of the grid add to", site)) {
        asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
        if (static_cast<int>(seen - n) >= 0) break;
    }
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
}

// Each poll acquires: a fence would wait for this thread's own stores, too.
VSSN_DEVICE void check_acquire(const unsigned* flag, unsigned n, detail::Site site = detail::Site::here()) {
    unsigned seen;
    for (detail::Polls polls;; polls.count("check_acquire: a counter of batch tiles that take turns", site)) {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
        if (static_cast<int>(seen - n) >= 0) break;
    }
}

VSSN_DEVICE void give_words(Vector<uint32_t, 4>* p, const Vector<uint32_t, 4>& words) {
    asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(words.v[0]), "r"(words.v[1]),
                 "r"(words.v[2]), "r"(words.v[3])
                 : "memory");
}

// Every word is one of those that were there or one of those that come, whatever an access of 16 bytes is.
template <int n>
VSSN_DEVICE void await_words(const Vector<uint32_t, 4>* const (&from)[n], Vector<uint32_t, 4> (&words)[n],
                             detail::Site site = detail::Site::here()) {
    for (detail::Polls polls;; polls.count("await_words: what another block of the grid writes", site)) {
#pragma unroll
        for (int i = 0; i < n; ++i)
            asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                         : "=r"(words[i].v[0]), "=r"(words[i].v[1]), "=r"(words[i].v[2]), "=r"(words[i].v[3])
                         : "l"(from[i])
                         : "memory");
        uint32_t largest = 0;
#pragma unroll
        for (int i = 0; i < n; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) largest = max(largest, words[i].v[j]);
        if (largest != kAbsent) break;
    }
}

VSSN_DEVICE void release_fence() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

// ---- Warp -------------------------------------------------------------------------------------------------------

template <class T>
VSSN_DEVICE T shuffle_xor(T value, int mask) {
    return __shfl_xor_sync(0xffffffffu, value, mask);
}

template <class T>
VSSN_DEVICE T shuffle(T value, int lane) {
    return __shfl_sync(0xffffffffu, value, lane);
}

// ---- Numbers ----------------------------------------------------------------------------------------------------

using bfloat16 = __nv_bfloat16;
using float16 = __half;

VSSN_DEVICE float to_float(float x) { return x; }
VSSN_DEVICE float to_float(bfloat16 x) { return __bfloat162float(x); }
VSSN_DEVICE float to_float(float16 x) { return __half2float(x); }

// The halves of a word, each the upper half of a float: one instruction, which the compiler does not move up to the
// word's load, where it would wait for it.
VSSN_DEVICE float lower_bfloat16(uint32_t word) {
    float x;
    asm("shl.b32 %0, %1, 16;" : "=f"(x) : "r"(word));
    return x;
}
VSSN_DEVICE float upper_bfloat16(uint32_t word) {
    float x;
    asm("and.b32 %0, %1, 0xffff0000;" : "=f"(x) : "r"(word));
    return x;
}

template <class T>
VSSN_DEVICE T from_float(float x) {
    if constexpr (std::is_same_v<T, float>) return x;
    if constexpr (std::is_same_v<T, bfloat16>) return __float2bfloat16_rn(x);
    if constexpr (std::is_same_v<T, float16>) return __float2half_rn(x);
}

template <class T>
VSSN_DEVICE uint32_t pack(float low, float high) {
    if constexpr (std::is_same_v<T, bfloat16>) return bits<uint32_t>(__floats2bfloat162_rn(low, high));
    if constexpr (std::is_same_v<T, float16>) return bits<uint32_t>(__floats2half2_rn(low, high));
}

VSSN_DEVICE float exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
VSSN_DEVICE float exp(float x) { return exp2(x * 1.4426950408889634f); }  // __expf also has what is denormal
VSSN_DEVICE float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
VSSN_DEVICE float tanh_approximate(float x) {
    float y;
    asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
VSSN_DEVICE float divide(float a, float b) { return __fdividef(a, b); }
VSSN_DEVICE float expm1(float x) { return ::expm1f(x); }
VSSN_DEVICE float log1p(float x) { return ::log1pf(x); }
VSSN_DEVICE float log(float x) { return ::logf(x); }
VSSN_DEVICE float maximum(float a, float b) { return a > b || a != a ? a : b; }  // NaN stays

// ---- Products ---------------------------------------------------------------------------------------------------

struct Accumulator {
    float v[4];
};

VSSN_DEVICE int accumulator_row(int i) { return lane_id() / 4 * 2 + i / 2; }
VSSN_DEVICE int accumulator_column(int i) { return lane_id() % 4 * 2 + i % 2; }

namespace detail {

// The instructions give lane (g, q) = (lane / 4, lane % 4) the rows g and g + 8 of a tile. Here these are called rows
// 2g and 2g + 1, in A and in the accumulator: so a lane's two rows are neighbours in memory.

// Four matrices of 8 rows of 16 bytes: p is the address of row lane % 8 of matrix lane / 8; lane (g, q) gets of each
// the 4 bytes 4q of row g.
VSSN_DEVICE void load_matrices(const void* p, unsigned (&first)[2], unsigned (&second)[2]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(first[0]), "=r"(first[1]), "=r"(second[0]), "=r"(second[1])
                 : "r"(static_cast<unsigned>(__cvta_generic_to_shared(p)))
                 : "memory");
}

// Tensor-core products of 16-bit types: mma.m16n8k16. Lane (g, q) holds of A the pairs (2g, 2q), (2g + 1, 2q),
// (2g, 2q + 8), (2g + 1, 2q + 8), of B the pairs (g, 2q), (g, 2q + 8).
template <class T>
struct HalfProduct {
    using Stored = T;
    static constexpr int kDepth = 16;
    static constexpr int kTileBytes = 16 * kWarp;
    static constexpr bool kTensorCores = true;

    struct A {
        unsigned r[4];
    };
    struct B {
        unsigned r[2];
    };

    static VSSN_DEVICE T rounded(float x) { return from_float<T>(x); }

    static VSSN_DEVICE A load_rows(const T* base, int64_t row_stride, int64_t k_stride, int rows, int depth) {
        const int g = lane_id() / 4, q = lane_id() % 4;
        A a;
        // A whole tile whose neighbours along k, or along the rows, lie side by side is read in pairs.
        const bool whole = rows >= 16 && depth >= kDepth;
        const bool aligned = reinterpret_cast<uintptr_t>(base) % sizeof(Vector<T, 2>) == 0;
        if (whole && aligned && k_stride == 1 && row_stride % 2 == 0) {
            const T* p = base + 2 * g * row_stride + 2 * q;
#pragma unroll
            for (int i = 0; i < 4; ++i) a.r[i] = *reinterpret_cast<const unsigned*>(p + i % 2 * row_stride + i / 2 * 8);
        } else if (whole && aligned && row_stride == 1 && k_stride % 2 == 0) {
            const T* p = base + 2 * q * k_stride + 2 * g;
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const unsigned first = *reinterpret_cast<const unsigned*>(p + i * 8 * k_stride);
                const unsigned second = *reinterpret_cast<const unsigned*>(p + (i * 8 + 1) * k_stride);
                a.r[2 * i] = __byte_perm(first, second, 0x5410);
                a.r[2 * i + 1] = __byte_perm(first, second, 0x7632);
            }
        } else {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int row = 2 * g + i % 2, k = 2 * q + i / 2 * 8;
                Vector<T, 2> pair;
#pragma unroll
                for (int j = 0; j < 2; ++j)
                    pair.v[j] =
                        row < rows && k + j < depth ? base[row * row_stride + (k + j) * k_stride] : from_float<T>(0.0f);
                a.r[i] = bits<unsigned>(pair);
            }
        }
        return a;
    }

    static VSSN_DEVICE void store(const A& a, void* tile) {
        static_cast<uint4*>(tile)[lane_id()] = make_uint4(a.r[0], a.r[1], a.r[2], a.r[3]);
    }

    static VSSN_DEVICE A load(const void* tile) {
        const uint4 r = static_cast<const uint4*>(tile)[lane_id()];
        return {{r.x, r.y, r.z, r.w}};
    }

    static VSSN_DEVICE A load_l2(const void* tile) { return gpu::load_l2(static_cast<const A*>(tile) + lane_id()); }

    static VSSN_DEVICE B load_b(const T* base, int stride, int flip = 0) {
        const T* p = base + (lane_id() / 4 ^ flip) * stride + lane_id() % 4 * 2;
        return {{*reinterpret_cast<const unsigned*>(p), *reinterpret_cast<const unsigned*>(p + 8)}};
    }

    static VSSN_DEVICE void load_b_pair(const T* base, int stride, B& first, B& second, int flip = 0) {
        load_matrices(base + (lane_id() % 8 ^ flip) * stride + lane_id() / 8 * 8, first.r, second.r);
    }

    static VSSN_DEVICE void multiply(Accumulator& c, const A& a, const B& b) {
        if constexpr (std::is_same_v<T, bfloat16>)
            asm volatile(
                "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                "{%0,%1,%2,%3};"
                : "+f"(c.v[0]), "+f"(c.v[1]), "+f"(c.v[2]), "+f"(c.v[3])
                : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1]));
        else
            asm volatile(
                "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                "{%0,%1,%2,%3};"
                : "+f"(c.v[0]), "+f"(c.v[1]), "+f"(c.v[2]), "+f"(c.v[3])
                : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1]));
    }
};

}  // namespace detail

template <class C>
struct Product;

template <>
struct Product<bfloat16> : detail::HalfProduct<bfloat16> {};

template <>
struct Product<float16> : detail::HalfProduct<float16> {};

// mma.m16n8k8 on float32 rounded to tf32. Lane (g, q) holds of A (2g, q), (2g + 1, q), (2g, q + 4), (2g + 1, q + 4), of
// B (g, q), (g, q + 4).
template <>
struct Product<tf32> {
    using Stored = float;
    static constexpr int kDepth = 8;
    static constexpr int kTileBytes = 16 * kWarp;
    static constexpr bool kTensorCores = true;

    struct A {
        unsigned r[4];
    };
    struct B {
        unsigned r[2];
    };

    static VSSN_DEVICE float rounded(float x) {
        unsigned r;
        asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
        return __uint_as_float(r);
    }

    static VSSN_DEVICE A load_rows(const float* base, int64_t row_stride, int64_t k_stride, int rows, int depth) {
        const int g = lane_id() / 4, q = lane_id() % 4;
        A a;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int row = 2 * g + i % 2, k = q + i / 2 * 4;
            a.r[i] = __float_as_uint(row < rows && k < depth ? rounded(base[row * row_stride + k * k_stride]) : 0.0f);
        }
        return a;
    }

    static VSSN_DEVICE void store(const A& a, void* tile) {
        static_cast<uint4*>(tile)[lane_id()] = make_uint4(a.r[0], a.r[1], a.r[2], a.r[3]);
    }

    static VSSN_DEVICE A load(const void* tile) {
        const uint4 r = static_cast<const uint4*>(tile)[lane_id()];
        return {{r.x, r.y, r.z, r.w}};
    }

    static VSSN_DEVICE A load_l2(const void* tile) { return gpu::load_l2(static_cast<const A*>(tile) + lane_id()); }

    static VSSN_DEVICE B load_b(const float* base, int stride, int flip = 0) {
        const float* p = base + (lane_id() / 4 ^ flip) * stride + lane_id() % 4;
        return {{__float_as_uint(p[0]), __float_as_uint(p[4])}};
    }

    static VSSN_DEVICE void load_b_pair(const float* base, int stride, B& first, B& second, int flip = 0) {
        detail::load_matrices(base + (lane_id() % 8 ^ flip) * stride + lane_id() / 8 * 4, first.r, second.r);
    }

    static VSSN_DEVICE void multiply(Accumulator& c, const A& a, const B& b) {
        asm volatile(
            "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c.v[0]), "+f"(c.v[1]), "+f"(c.v[2]), "+f"(c.v[3])
            : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1]));
    }
};

// Full precision: FMA on the rows 2g, 2g + 1 of A and 2q, 2q + 1 of B, four depths at a time.
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

    static VSSN_DEVICE float rounded(float x) { return x; }

    static VSSN_DEVICE A load_rows(const float* base, int64_t row_stride, int64_t k_stride, int rows, int depth) {
        A a;
        const int first = lane_id() / 4 * 2;
        // A whole tile whose neighbours along k, or along the rows, lie side by side is read in vectors.
        const bool whole = rows >= 16 && depth >= kDepth;
        const auto address = reinterpret_cast<uintptr_t>(base);
        if (whole && k_stride == 1 && row_stride % 4 == 0 && address % 16 == 0) {
#pragma unroll
            for (int i = 0; i < 2; ++i)
                a.row[i] = *reinterpret_cast<const Vector<float, 4>*>(base + (first + i) * row_stride);
        } else if (whole && row_stride == 1 && k_stride % 2 == 0 && address % 8 == 0) {
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                const auto pair = *reinterpret_cast<const Vector<float, 2>*>(base + first + k * k_stride);
                a.row[0].v[k] = pair.v[0];
                a.row[1].v[k] = pair.v[1];
            }
        } else {
#pragma unroll
            for (int i = 0; i < 2; ++i)
#pragma unroll
                for (int k = 0; k < 4; ++k)
                    a.row[i].v[k] =
                        first + i < rows && k < depth ? base[(first + i) * row_stride + k * k_stride] : 0.0f;
        }
        return a;
    }

    static VSSN_DEVICE void store(const A& a, void* tile) {
        auto* rows = static_cast<Vector<float, 4>*>(tile) + lane_id() / 4 * 2;  // four lanes hold the same rows
        if (lane_id() % 4 == 0) rows[0] = a.row[0];
        if (lane_id() % 4 == 1) rows[1] = a.row[1];
    }

    static VSSN_DEVICE A load(const void* tile) {
        const auto* rows = static_cast<const Vector<float, 4>*>(tile) + lane_id() / 4 * 2;
        return {{rows[0], rows[1]}};
    }

    static VSSN_DEVICE A load_l2(const void* tile) {
        const auto* rows = static_cast<const Vector<float, 4>*>(tile) + lane_id() / 4 * 2;
        return {{gpu::load_l2(rows), gpu::load_l2(rows + 1)}};
    }

    static VSSN_DEVICE B load_b(const float* base, int stride, int flip = 0) {
        const float* p = base + lane_id() % 4 * 2 * stride;
        return {{*reinterpret_cast<const Vector<float, 4>*>(p + flip * stride),
                 *reinterpret_cast<const Vector<float, 4>*>(p + (1 - flip) * stride)}};
    }

    static VSSN_DEVICE void load_b_pair(const float* base, int stride, B& first, B& second, int flip = 0) {
        first = load_b(base, stride, flip);
        second = load_b(base + kDepth, stride, flip);
    }

    static VSSN_DEVICE void multiply(Accumulator& c, const A& a, const B& b) {
#pragma unroll
        for (int k = 0; k < 4; ++k)
#pragma unroll
            for (int i = 0; i < 4; ++i) c.v[i] = fmaf(a.row[i / 2].v[k], b.column[i % 2].v[k], c.v[i]);
    }
};

// ---- Launching (host code) --------------------------------------------------------------------------------------

namespace detail {

// nullptr, or what is wrong; the error is cleared.
inline const char* failed(cudaError_t error) {
    if (error == cudaSuccess) return nullptr;
    cudaGetLastError();
    return cudaGetErrorString(error);
}

// For a question to the runtime whose answer nothing can go on without: throws std::runtime_error with the call's name
// and what is wrong.
inline void require(cudaError_t error, const char* call) {
    if (const char* what = failed(error)) throw std::runtime_error(std::string(call) + ": " + what);
}

inline int current_device() {
    int device = 0;
    require(cudaGetDevice(&device), "cudaGetDevice");
    return device;
}

// A launch as the runtime takes it.
struct Configuration {
    cudaLaunchAttribute attributes[2];
    cudaLaunchConfig_t config{};

    explicit Configuration(const Launch& shape) {
        config.gridDim = dim3(static_cast<unsigned>(shape.grid_x), static_cast<unsigned>(shape.grid_y));
        config.blockDim = dim3(static_cast<unsigned>(shape.threads));
        config.dynamicSmemBytes = shape.shared_bytes;
        config.stream = static_cast<cudaStream_t>(shape.stream);
        config.attrs = attributes;
        if (shape.cluster > 1) {
            cudaLaunchAttribute& a = attributes[config.numAttrs++];
            a.id = cudaLaunchAttributeClusterDimension;
            a.val.clusterDim.x = static_cast<unsigned>(shape.cluster);
            a.val.clusterDim.y = a.val.clusterDim.z = 1;
        }
        if (shape.cooperative) {
            cudaLaunchAttribute& a = attributes[config.numAttrs++];
            a.id = cudaLaunchAttributeCooperative;
            a.val.cooperative = 1;
        }
    }
    Configuration(const Configuration&) = delete;
};

// What a kernel must be allowed before it is launched so. nullptr, or what is wrong.
inline const char* allow(const void* function, const Launch& shape) {
    if (shape.shared_bytes > 48 * 1024)
        if (const char* error = failed(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                            static_cast<int>(shape.shared_bytes))))
            return error;
    if (shape.cluster > 8)
        return failed(cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
    return nullptr;
}

}  // namespace detail

// nullptr, or what is wrong; the error is cleared.
template <class Params>
const char* launch(void (*kernel)(Params), const Launch& shape, const Params& params) {
    if (shape.grid_x == 0 || shape.grid_y == 0) return nullptr;
    const void* function = reinterpret_cast<const void*>(kernel);
    if (const char* error = detail::allow(function, shape)) return error;
    const detail::Configuration configuration(shape);
    Params copy = params;
    void* arguments[] = {&copy};
    return detail::failed(cudaLaunchKernelExC(&configuration.config, function, arguments));
}

// The device is asked once for a kernel and a shape.
template <class Params>
int clusters_at_once(void (*kernel)(Params), const Launch& shape) {
    static std::mutex mutex;
    static std::map<std::tuple<int, const void*, int, int, size_t>, int> known;
    const int device = detail::current_device();
    const void* function = reinterpret_cast<const void*>(kernel);
    const std::lock_guard<std::mutex> lock(mutex);
    const auto [entry, is_new] =
        known.try_emplace(std::make_tuple(device, function, shape.cluster, shape.threads, shape.shared_bytes), 0);
    if (!is_new || detail::allow(function, shape)) return entry->second;
    int count = 0;
    if (shape.cluster > 1) {
        Launch one = shape;
        one.grid_x = shape.cluster;
        one.grid_y = 1;
        const detail::Configuration configuration(one);
        if (detail::failed(cudaOccupancyMaxActiveClusters(&count, function, &configuration.config))) count = 0;
    } else {
        int of_multiprocessor = 0, multiprocessors = 0;
        if (!detail::failed(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&of_multiprocessor, function, shape.threads,
                                                                          shape.shared_bytes)) &&
            !detail::failed(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device)))
            count = of_multiprocessor * multiprocessors;
    }
    return entry->second = count;
}

// Of the current device; throws std::runtime_error where there is none. Cheap: attributes are cached by the runtime;
// nothing synchronises.
inline DeviceLimits device_limits() {
    const int device = detail::current_device();
    const auto attribute = [&](cudaDeviceAttr which) {
        int value = 0;
        detail::require(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
        return value;
    };
    const int capability =
        10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor);
    const bool large_clusters = capability == 90 || capability == 100;
    return {capability, attribute(cudaDevAttrMultiProcessorCount), attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
            capability < 90  ? 1
            : large_clusters ? 16
                             : 8};
}

}  // namespace vssn::gpu

#include "primitives_common.cuh"

// The primitives that the GPU kernels are written on: this header alone decides what they mean.
//
// Compiled by nvcc it is CUDA (primitives_device.cuh). Compiled by a C++ compiler it is the tests' host
// implementation (host/primitives_host.h), which runs every thread of a launch as a fiber. Kernels use nothing of
// CUDA's beside it: no threadIdx, no __shared__, no <<<>>>.
//
// All is in namespace vssn::gpu.
//
// Functions  VSSN_KERNEL             before a kernel: void kernel(Params), one struct of parameters by value
//            VSSN_BOUNDED_KERNEL(n)  the same for one that is launched with at most n threads: it may have more
//            registers
//                                    (n, 1: as many as one block on a multiprocessor may have)
//            VSSN_DEVICE             before a function that kernels call
// Where      thread_id() block_threads() lane_id() warp_id() warps()     blocks have one dimension
//            block_x() block_y() grid_x() grid_y()
// Memory     dynamic_shared()        the block's shared memory, 16-byte aligned, not initialised
//            Vector<T, N>            N values read or written as one access of sizeof(T) * N bytes
//            moved(p, n)             p + n, or where there is no tensor an address that nobody reads: no branch
//            held(x)                 x, of 4 or 8 bytes, which stays in registers: the compiler does not make it anew,
//            from
//                                    the launch's parameters say, in every step
//            load_words<n>(p), store_words<n>(p, w)   n = 1, 2 or 4 words of 32 bits as one access
//            load_l2(p), store_l2(p, v)   of 4, 8 or 16 bytes, past the L1 cache: for what other blocks write or read
//                                    while the kernel runs
//            give_words(p, words), await_words(from, words)   16 bytes in global memory that are their own flag: one
//                                    thread writes them, another takes several of them, once no word is kAbsent
//            release_fence()         what this thread (and, behind a sync_block, its block) has written is visible
//                                    before what is written behind the fence, to threads that pass one after they see
//                                    that
//            copy_l2(shared, global), await_copies()   16 aligned bytes, past the L1 cache: they come while the thread
//                                    goes on, until it waits for all that it has copied
//            prefetch_l2(p)          asks for what lies around p to be brought into L2: a hint
// Barriers   sync_block() sync_warp()     all threads of the block, of the warp
//            sync_cluster()          all threads of the cluster; = cluster_arrive() then cluster_wait()
// Cluster    cluster_rank() cluster_size()    along x
//            cluster_address(p, rank)    where shared memory's p lies in another block of the cluster
//            Mailbox                 in shared memory: counts the bytes that are sent to this block, round by round.
//                                    open(m) by one thread, then sync_cluster before its first use; each round
//                                    expect(m, bytes) by one thread, once the round before has been waited for;
//                                    send(p, v, m, rank) stores v (4, 8 or 16 bytes) where p lies in that block and
//                                    counts it in m there; await(m, round), round = 0, 1, ..., returns when all
//                                    bytes of that round have come and lets this thread read them. A sender may be
//                                    ahead of expect, not of the receiver's await of the round before
//                         peer(rank), send_to(peer, at, v, mailbox_at)    the same for v of 16 bytes, to `at` bytes
//                                    behind that block's dynamic_shared(): where it lies is asked for once
// Grid       add_release(flag, n)    adds to a counter in global memory, after the writes of this thread (and, behind a
//                                    sync_block, of its block)
//            wait_acquire(flag, n)   waits until the counter is >= n; what was released is then visible to this
//                                    thread (and, behind a sync_block, to its block through load_l2)
//            check_acquire(flag, n)  the same for a counter that has likely come so far: one trip to L2, and no wait
//            for
//                                    what this thread itself has written
// Warp       shuffle_xor(v, mask) shuffle(v, lane)    every lane of the warp must call it
//            sum_over_lanes(v, width)    butterfly over groups of `width` lanes: every lane gets the same bits
// Numbers    bfloat16 float16; to_float(x), from_float<T>(x) (rounds to nearest even; T float too)
//            bits<To>(from) the same bits as another type; pack<T>(low, high) two of 16 bits, rounded, in a word
//            lower_bfloat16(word), upper_bfloat16(word)   the halves of a word as floats
//            exp(x) (fast, about 2 ulp), divide(a, b) (fast), expm1, log1p, log, maximum
//            exp2(x), reciprocal(x)  one instruction each, 2 ulp and 1; what would be denormal is 0
//            tanh_approximate(x)     one instruction, relative error 2^-11
// Matrices   Product<C> for C = bfloat16, float16, tf32 (tensor cores) and float (full precision, FMA): below
// Launching  Launch, launch(kernel, shape, params), device_limits(): below; host code
//            clusters_at_once(kernel, shape)   by the device's own answer (the multiprocessors of its GPCs leave gaps);
//                                    of blocks where shape.cluster is 1; 0: the shape does not fit
#pragma once

#include <cstddef>
#include <cstdint>

namespace vssn::gpu {

constexpr int kWarp = 32;
constexpr uint32_t kAbsent = 0xffffffffu;  // NaNs, of 16 bits or 32, that no rounding makes

struct tf32;  // the compute type of float32 storage where tf32 is allowed

// ---- Products ---------------------------------------------------------------------------------------------------
//
// A warp computes C[16, 8] += A[16, K] B[8, K]^T, K = Product<C>::kDepth (16 for 16-bit types, 8 for tf32, 4 for
// float). Every lane holds parts:
//
//   accumulator  float v[4], of C's element (accumulator_row(i), accumulator_column(i)): the same for every type,
//                rows 2g + i / 2 and columns 2q + i % 2 in lane 4g + q, so a lane's rows are neighbours
//   A            load_rows(base, row_stride, k_stride, rows, depth): from memory of any strides, where only rows and
//                depths below `rows` and `depth` are read, the rest is 0 (both may be <= 0 or above the tile);
//                store(a, tile) and load(tile): to and from kTileBytes of shared memory in the lanes' own order;
//                load_l2(tile): the same from global memory, past the L1 cache, of a tile that an earlier kernel or
//                this warp has written
//   B            load_b(base, stride): 8 rows of `stride` elements of Stored, K of them read from each, in shared
//                memory; load_b_pair(base, stride, first, second): of the next K, too, from rows that are 16-byte
//                aligned, in one instruction where there are tensor cores. No bank conflicts where
//                stride * sizeof(Stored) is 16 modulo 128 bytes. Both take a `flip`: 1 swaps each two neighbouring
//                rows.
//
// Stored is what shared memory holds: bfloat16, float16, or float (for tf32: rounded by `rounded`).

// How a launch is shaped. Blocks have one dimension; a cluster is `cluster` neighbours along x.
struct Launch {
    int64_t grid_x = 1, grid_y = 1;
    int threads = 32;
    int cluster = 1;           // > 1 needs compute capability 9.0
    bool cooperative = false;  // all blocks run at once, or the launch fails
    size_t shared_bytes = 0;
    void* stream = nullptr;
};

struct DeviceLimits {
    int compute_capability;  // 10 * major + minor
    int multiprocessors;
    int shared_bytes;  // per block, the most that a kernel may ask for
    int max_cluster;   // blocks of one cluster: 1, 8, or 16 where the device allows it to kernels that ask
};

}  // namespace vssn::gpu

#if defined(__CUDACC__)
#include "primitives_device.cuh"
#else
#include "host/primitives_host.h"
#endif

// The two ways to run a team, and the barrier (see threads.h).
#include "threads.h"

#include "crowd.h"

#if defined(__linux__)
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#include <thread>
#if defined(VSSN_STD_THREADS)
#include <vector>
#else
#include <omp.h>
#endif

namespace vssn {

namespace {

constexpr int kSpins = 4000;

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Until the word is no longer `value`, or for no reason.
inline void sleep_while(std::atomic<uint32_t>& word, uint32_t value) {
#if defined(__linux__)
    syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
#else
    if (word.load() == value) std::this_thread::yield();
#endif
}

inline void wake_all(std::atomic<uint32_t>& word) {
#if defined(__linux__)
    syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
#else
    (void)word;
#endif
}

}  // namespace

void Barrier::wait() {
    const uint32_t round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
        arrived_.store(0, std::memory_order_relaxed);
        // In one order with the sleeper's two: either it sees the new round, or it is seen here.
        round_.store(round + 1, std::memory_order_seq_cst);
        if (sleepers_.load(std::memory_order_seq_cst) > 0) wake_all(round_);
        return;
    }
    for (int spin = 0; spin < kSpins; ++spin) {
        if (round_.load(std::memory_order_acquire) != round) return;
        pause();
    }
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    while (round_.load(std::memory_order_seq_cst) == round) sleep_while(round_, round);
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
}

void run_team(int threads, TeamBody body, void* context) {
    if (threads <= 1) return body(context, Team{0, 1, nullptr});
#if defined(VSSN_STD_THREADS)
    Barrier barrier(threads);
    std::vector<std::thread> team;
    for (int rank = 1; rank < threads; ++rank) team.emplace_back(body, context, Team{rank, threads, &barrier});
    body(context, Team{0, threads, &barrier});
    for (std::thread& thread : team) thread.join();
#else
    watch_crowd(threads);
    Barrier barrier(threads);
#pragma omp parallel num_threads(threads)
    {
        const int size = omp_get_num_threads();
        // The runtime may give fewer threads than asked for; the barrier has to count those that came.
#pragma omp single
        barrier.resize(size);
        body(context, Team{omp_get_thread_num(), size, &barrier});
    }
#endif
}

}  // namespace vssn

// The two ways to run a team, and the barrier (see threads.h).
#include "threads.h"

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

}  // namespace

void Barrier::wait() {
    const uint32_t round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
        arrived_.store(0, std::memory_order_relaxed);
        round_.store(round + 1, std::memory_order_release);
        return;
    }
    for (int spin = 0; round_.load(std::memory_order_acquire) == round; ++spin) {
        if (spin < kSpins)
            pause();
        else
            std::this_thread::yield();
    }
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

// Teams of threads for the kernels: OpenMP's (PyTorch's own runtime, so that one pool serves both), or std::thread
// where VSSN_STD_THREADS is defined (ThreadSanitizer does not understand libgomp).
#pragma once

#include <stdint.h>

#include <atomic>

namespace vssn {

// Every thread of a team waits here for the others. Spins for some microseconds, then sleeps: on a machine with more
// threads than cores the one that is waited for may need this core, and who slept is the first to get it back.
class Barrier {
  public:
    explicit Barrier(int size) : size_(size) {}
    void wait();
    void resize(int size) { size_ = size; }  // while nobody waits

  private:
    int size_;
    std::atomic<int> arrived_{0};
    std::atomic<uint32_t> round_{0};
    std::atomic<int> sleepers_{0};
};

struct Team {
    int rank, size;
    Barrier* barrier;

    inline __attribute__((always_inline)) void wait() const {
        if (size > 1) barrier->wait();
    }
};

using TeamBody = void (*)(void* context, Team team);

// Runs body once on each thread of a team of `threads` or fewer (never more). One thread: the caller's, without OpenMP.
void run_team(int threads, TeamBody body, void* context);

template <class Body>
inline __attribute__((always_inline)) void parallel(int threads, Body& body) {
    run_team(threads, [](void* context, Team team) { (*static_cast<Body*>(context))(team); }, &body);
}

struct Range {
    int64_t begin, end;
};

// The part of [0, count) that falls to `rank` of `size`, in whole multiples of `unit` but for the end.
inline __attribute__((always_inline)) Range share(int64_t count, int rank, int size, int64_t unit = 1) {
    const int64_t units = (count + unit - 1) / unit, low = units / size, more = units % size;
    const int64_t begin = rank * low + (rank < more ? rank : more), end = begin + low + (rank < more ? 1 : 0);
    return {begin * unit < count ? begin * unit : count, end * unit < count ? end * unit : count};
}

}  // namespace vssn

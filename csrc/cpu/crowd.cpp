// See crowd.h. Linux with OpenMP; elsewhere nothing is watched and nothing changed.
#include "crowd.h"

#if defined(__linux__) && !defined(VSSN_STD_THREADS)
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#endif

namespace vssn {

bool Crowd::observe(double now, double busy, int64_t switches) {
    if (now < crowded_until_) return true;
    if (begun_ && busy - busy_ < kWindow) return false;
    const bool crowded = begun_ && switches - switches_ >= kSwitches * ((busy - busy_) / kWindow);
    if (crowded) crowded_until_ = now + kPause;
    begun_ = !crowded;
    busy_ = busy;
    switches_ = switches;
    return crowded;
}

#if defined(__linux__) && !defined(VSSN_STD_THREADS)

namespace {

// A pool of threads of its own that never have work.
class Sleepers {
  public:
    explicit Sleepers(int count) : count(count), thread_([this] { sleep(); }) {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [this] { return ready_; });
    }
    ~Sleepers() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            over_ = true;
        }
        changed_.notify_all();
        thread_.join();
    }
    const int count;

  private:
    void sleep() {
#pragma omp parallel num_threads(count)
        {
            asm volatile("");
        }  // a region that the compiler cannot drop
        std::unique_lock<std::mutex> lock(mutex_);
        ready_ = true;
        changed_.notify_all();
        changed_.wait(lock, [this] { return over_; });
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    bool ready_ = false, over_ = false;
    std::thread thread_;
};

// Never destroyed: a process may end, or fork, while they sleep.
struct State {
    std::mutex mutex;
    Sleepers* sleepers = nullptr;
    pid_t process = 0;
};
State& state() {
    static State* const state = new State;
    return *state;
}
std::atomic<bool> are_short{false};

bool wanted() {
    const char* value = getenv("VSSN_SHARE_CORES");
    return !value || strcmp(value, "0") != 0;
}

}  // namespace

void shorten_waits(bool shorten, int threads) {
    State& s = state();
    const std::unique_lock<std::mutex> lock(s.mutex, std::try_to_lock);
    if (!lock) return;                                // another thread is about it
    if (s.process != getpid()) s.sleepers = nullptr;  // a forked child does not have its parent's threads
    s.process = getpid();
    // One thread more than processors, together with those in use.
    const int processors = omp_get_num_procs(), count = threads < processors ? processors - threads + 2 : 2;
    if (s.sleepers && (!shorten || s.sleepers->count < count)) {
        delete s.sleepers;
        s.sleepers = nullptr;
    }
    if (shorten && !s.sleepers) try {
            s.sleepers = new Sleepers(count);
        } catch (const std::system_error&) {  // no more threads here: it waits as before
        }
    are_short = s.sleepers != nullptr;
}

bool waits_are_short() { return are_short; }

void watch_crowd(int threads) {
    constexpr double kInterval = 0.02;  // seconds
    static const bool watch = wanted();
    static thread_local Crowd crowd;
    static thread_local double next = 0;
    if (!watch) return;
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    const double now = static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
    if (now < next) return;
    next = now + kInterval;
    rusage usage;
    if (getrusage(RUSAGE_THREAD, &usage) != 0) return;
    const auto seconds = [](timeval t) {
        return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
    };
    const bool crowded = crowd.observe(now, seconds(usage.ru_utime) + seconds(usage.ru_stime), usage.ru_nivcsw);
    if (crowded || are_short) shorten_waits(crowded, threads);
}

#else

void shorten_waits(bool, int) {}
bool waits_are_short() { return false; }
void watch_crowd(int) {}

#endif

}  // namespace vssn

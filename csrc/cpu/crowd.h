// Notices that other processes take the cores away, and then makes OpenMP's threads sleep sooner at their barriers.
#pragma once

#include <stdint.h>

namespace vssn {

// Whether a thread shares its core with others, from how often it was put aside while it had work. Once found crowded
// it is taken to be so for kPause, then looked at afresh: short waits have switches of their own.
class Crowd {
  public:
    // To be told now and then: seconds on any clock, seconds of processor time and involuntary context switches of the
    // thread so far.
    bool observe(double now, double busy, int64_t switches);

  private:
    // In turns of 3 ms, as Linux gives them, 10 switches; a thread with a core of its own counts 0 or 1.
    static constexpr double kWindow = 0.03;  // seconds of processor time
    static constexpr int64_t kSwitches = 3;
    static constexpr double kPause = 5;  // seconds

    bool begun_ = false;
    double busy_ = 0, crowded_until_ = 0;
    int64_t switches_ = 0;
};

// GNU's OpenMP lets a thread spin 300,000 times before it sleeps: some milliseconds, in which it holds a core that the
// thread it waits for may need, and uses up its own turn. The runtime documents that it spins 100 times where it has
// more threads than there are processors. So `shorten` adds threads that sleep until `false` ends them: the only
// switch once the runtime is loaded, when GOMP_SPINCOUNT and OMP_WAIT_POLICY come too late. `threads`: those in use.
void shorten_waits(bool shorten, int threads);
bool waits_are_short();

// For every parallel region: watches the calling thread, and shortens the waits while it is crowded.
// VSSN_SHARE_CORES=0 leaves the runtime as it is.
void watch_crowd(int threads);

}  // namespace vssn

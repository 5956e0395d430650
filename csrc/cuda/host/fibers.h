// A launch on the host: every GPU thread is a fiber, and a scheduler in one host thread decides who runs next.
//
// A fiber runs until it waits: at a barrier, in a warp collective, for a flag. Blocks of one cluster, and all blocks of
// a cooperative launch, run together; other blocks one after another. A launch in which nobody can go on ends with a
// report of who waits where. Nothing here knows what the primitives mean; primitives_host.h does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace vssn::gpu::host {

// Where in the kernel's source a primitive is called: the default argument of every one that waits.
struct Site {
    const char* file;
    int line;

    static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        return {file, line};
    }
    bool operator==(const Site& other) const { return file == other.file && line == other.line; }
    bool operator!=(const Site& other) const { return !(*this == other); }
};

// Where a number of threads wait for each other, again and again.
struct Meeting {
    int expected = 0;
    int arrived = 0;
    unsigned round = 0;
    const char* what = nullptr;  // of this round: the primitive, and where its first thread called it
    Site site{};
};

struct Warp {
    Meeting meeting;
    void* slots[32];  // each lane's part in the collective
};

struct Cluster {
    Meeting barrier;
    struct Block* blocks = nullptr;
    int size = 1;
};

struct Block {
    int x = 0, y = 0;
    int threads = 0, running = 0;
    unsigned char* shared = nullptr;
    size_t shared_bytes = 0;
    Meeting barrier;
    Warp warps[32];
    Cluster* cluster = nullptr;
    int rank = 0;
};

struct Copy {  // under way: its 16 bytes arrive where the thread waits for them
    void* to;
    const void* from;
};

struct Thread {
    Block* block = nullptr;
    int id = 0;
    bool finished = false;
    // What it waits for: a later round of a meeting, a flag that reaches a count, or a word that is no longer `count`.
    const Meeting* meeting = nullptr;
    unsigned round = 0;
    const unsigned* flag = nullptr;
    unsigned count = 0;
    const unsigned* word = nullptr;
    const char* what = nullptr;
    Site site{};
    // The round of the cluster's barrier at which it arrived and has not waited yet.
    bool arrived_at_cluster = false;
    unsigned cluster_round = 0;
    std::vector<Copy> copies;
    struct Context* context = nullptr;
};

// The thread that runs now, and the launch's grid.
extern Thread* current;
extern int grid_x, grid_y;

// ---- For the primitives, called on a fiber ----------------------------------------------------------------------

// Arrives at a meeting. The last one to come runs complete(argument) and opens it; returns whether that was this one.
bool arrive(Meeting& meeting, const char* what, Site site, bool same_site, void (*complete)(void*), void* argument);
void wait_for_round(const Meeting& meeting, unsigned round, const char* what, Site site);
void wait_for_flag(const unsigned* flag, unsigned count, Site site);
void wait_for_word(const unsigned* word, unsigned absent, Site site);

// Ends the launch with this report.
[[noreturn]] void fail(const std::string& report);
std::string describe(Site site);

// ---- For launch and the tests, called on the host's own stack ---------------------------------------------------

struct Shape {
    int64_t grid_x, grid_y;
    int threads;
    int cluster;
    bool together;  // all blocks at once
    size_t shared_bytes;
};

// nullptr, or a report, which stays valid until this host thread's next launch.
const char* run(const Shape& shape, void (*body)(const void* argument), const void* argument);

// forward, reverse: block by block, warp by warp and lane by lane in this order or the opposite one, each as far as it
// can go, so that the first runs far ahead of the last. shuffle_warps: the same in an order drawn anew each time.
// shuffle_threads: all threads in an order drawn anew each time, each to its next wait. Throws for another name.
void set_order(const std::string& name);

}  // namespace vssn::gpu::host

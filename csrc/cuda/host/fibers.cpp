#include "fibers.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__) || defined(VSSN_UCONTEXT)
#define VSSN_SWITCH_BY_UCONTEXT
#include <ucontext.h>
#endif

namespace vssn::gpu::host {

Thread* current = nullptr;
int grid_x = 0, grid_y = 0;

// ---- Contexts: a stack and what of a processor's state lies on it -----------------------------------------------

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStack = 512 * 1024;
#else
constexpr size_t kStack = 128 * 1024;
#endif

struct Context {
    unsigned char* stack = nullptr;  // its lowest page is a guard
#if defined(VSSN_SWITCH_BY_UCONTEXT)
    ucontext_t state;
#else
    void* stack_pointer = nullptr;
#endif
#if defined(__SANITIZE_ADDRESS__)
    void* fake_stack = nullptr;
#endif
};

namespace {

void start();  // the first function of every fiber

#if defined(VSSN_SWITCH_BY_UCONTEXT)
void prepare(Context& context) {
    getcontext(&context.state);
    context.state.uc_stack.ss_sp = context.stack;
    context.state.uc_stack.ss_size = kStack;
    context.state.uc_link = nullptr;
    makecontext(&context.state, start, 0);
}

void exchange(Context& from, Context& to) { swapcontext(&from.state, &to.state); }
#else
extern "C" void vssn_exchange_stacks(void** from, void* to);
// Pushes the registers that a call must keep, exchanges the stacks, pops the other's.
asm(R"(
.text
.type vssn_exchange_stacks, @function
vssn_exchange_stacks:
    endbr64
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size vssn_exchange_stacks, . - vssn_exchange_stacks
)");

void prepare(Context& context) {
    // Six registers, the address that `ret` takes, and a return address that start never uses: it is entered as if
    // called, 8 bytes past a multiple of 16.
    void** top = reinterpret_cast<void**>(context.stack + kStack);
    std::memset(top - 8, 0, 8 * sizeof(void*));
    top[-2] = reinterpret_cast<void*>(&start);
    context.stack_pointer = top - 8;
}

void exchange(Context& from, Context& to) { vssn_exchange_stacks(&from.stack_pointer, to.stack_pointer); }
#endif

Context scheduler;

#if defined(__SANITIZE_ADDRESS__)
const void* scheduler_stack = nullptr;
size_t scheduler_stack_size = 0;

void to_fiber(Context& fiber) {
    __sanitizer_start_switch_fiber(&scheduler.fake_stack, fiber.stack, kStack);
    exchange(scheduler, fiber);
    __sanitizer_finish_switch_fiber(scheduler.fake_stack, nullptr, nullptr);
}

void to_scheduler(Context& fiber, bool for_ever) {
    __sanitizer_start_switch_fiber(for_ever ? nullptr : &fiber.fake_stack, scheduler_stack, scheduler_stack_size);
    exchange(fiber, scheduler);
    __sanitizer_finish_switch_fiber(fiber.fake_stack, &scheduler_stack, &scheduler_stack_size);
}

void entered() { __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size); }
void forget(const void* memory, size_t bytes) { __asan_unpoison_memory_region(memory, bytes); }
void forbid(const void* memory, size_t bytes) { __asan_poison_memory_region(memory, bytes); }
#else
void to_fiber(Context& fiber) { exchange(scheduler, fiber); }
void to_scheduler(Context& fiber, bool) { exchange(fiber, scheduler); }
void entered() {}
void forget(const void*, size_t) {}
void forbid(const void*, size_t) {}
#endif

// Stacks are kept from launch to launch.
class Contexts {
  public:
    Context& get(size_t number) {
        while (number >= contexts_.size()) add();
        return *contexts_[number];
    }

  private:
    void add() {
        void* memory =
            mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) throw std::runtime_error("host launch: no memory for another thread's stack");
        mprotect(memory, static_cast<size_t>(sysconf(_SC_PAGESIZE)), PROT_NONE);
        contexts_.push_back(std::make_unique<Context>());
        contexts_.back()->stack = static_cast<unsigned char*>(memory);
    }

    std::vector<std::unique_ptr<Context>> contexts_;
};

// ---- Orders -----------------------------------------------------------------------------------------------------

enum class Order { forward, reverse, shuffle_warps, shuffle_threads };
Order order = Order::forward;
uint64_t draws = 0;

uint64_t draw() {  // xorshift64*, the same in every launch
    draws ^= draws >> 12;
    draws ^= draws << 25;
    draws ^= draws >> 27;
    return draws * 0x2545F4914F6CDD1Dull;
}

// 0 .. count - 1 in the order of this turn.
void arrange(std::vector<int>& turn, int count) {
    turn.resize(static_cast<size_t>(count));
    for (int i = 0; i < count; ++i) turn[static_cast<size_t>(i)] = order == Order::reverse ? count - 1 - i : i;
    if (order == Order::shuffle_warps || order == Order::shuffle_threads)
        for (int i = count - 1; i > 0; --i)
            std::swap(turn[static_cast<size_t>(i)], turn[draw() % static_cast<uint64_t>(i + 1)]);
}

// ---- One launch -------------------------------------------------------------------------------------------------

constexpr unsigned char kUnwritten = 0xff;  // NaN in every floating type
constexpr size_t kGuard = 64;               // behind a block's shared memory where AddressSanitizer is absent
constexpr unsigned char kGuardByte = 0xa5;

struct Run {
    void (*body)(const void*) = nullptr;
    const void* argument = nullptr;
    std::string report;
    bool failed = false;
};
Run now;

void start() {
    entered();
    Thread& thread = *current;
    now.body(now.argument);
    if (thread.arrived_at_cluster)
        fail("thread " + std::to_string(thread.id) + " ended between cluster_arrive and cluster_wait");
    if (!thread.copies.empty()) fail("thread " + std::to_string(thread.id) + " ended between copy_l2 and await_copies");
    thread.finished = true;
    --thread.block->running;
    to_scheduler(*thread.context, true);
}

std::string place(const Block& block) {
    return "block (" + std::to_string(block.x) + ", " + std::to_string(block.y) + ")";
}

bool can_run(const Thread& thread) {
    if (thread.finished) return false;
    if (thread.flag) return static_cast<int>(*thread.flag - thread.count) >= 0;
    if (thread.word) return *thread.word != thread.count;
    return !thread.meeting || thread.meeting->round != thread.round;
}

// Blocks that run together, and their threads.
class Group {
  public:
    Group(const Shape& shape, int blocks, Contexts& contexts)
        : shape_(shape),
          blocks_(static_cast<size_t>(blocks)),
          clusters_(static_cast<size_t>(blocks / shape.cluster)),
          threads_(static_cast<size_t>(blocks) * static_cast<size_t>(shape.threads)) {
        for (size_t number = 0; number < threads_.size(); ++number) {
            Thread& thread = threads_[number];
            thread.block = &blocks_[number / static_cast<size_t>(shape.threads)];
            thread.id = static_cast<int>(number % static_cast<size_t>(shape.threads));
            thread.context = &contexts.get(number);
            forget(thread.context->stack, kStack);
            prepare(*thread.context);
        }
#if defined(__SANITIZE_ADDRESS__)
        const size_t guard = 0;
#else
        const size_t guard = kGuard;
#endif
        for (size_t number = 0; number < blocks_.size(); ++number) {
            Block& block = blocks_[number];
            block.threads = block.running = block.barrier.expected = shape.threads;
            for (int warp = 0; warp < shape.threads / 32; ++warp) block.warps[warp].meeting.expected = 32;
            block.shared_bytes = shape.shared_bytes;
            block.shared = static_cast<unsigned char*>(std::malloc(shape.shared_bytes + guard));
            std::memset(block.shared, kUnwritten, shape.shared_bytes);
            std::memset(block.shared + shape.shared_bytes, kGuardByte, guard);
            block.cluster = &clusters_[number / static_cast<size_t>(shape.cluster)];
            block.rank = static_cast<int>(number) % shape.cluster;
            if (block.rank == 0) block.cluster->blocks = &block;
            block.cluster->size = shape.cluster;
            block.cluster->barrier.expected += shape.threads;
        }
    }

    ~Group() {
        for (Block& block : blocks_) {
            forget(block.shared, block.shared_bytes);
            std::free(block.shared);
        }
    }

    Group(const Group&) = delete;
    Group& operator=(const Group&) = delete;

    // Block `first` of the grid, counted along x, and those after it.
    void run(int64_t first) {
        for (Block& block : blocks_) {
            block.x = static_cast<int>(first % shape_.grid_x);
            block.y = static_cast<int>(first++ / shape_.grid_x);
        }
        const int blocks = static_cast<int>(blocks_.size()), warps = shape_.threads / 32;
        for (bool progress = true; progress && !now.failed;) {
            progress = false;
            if (order == Order::shuffle_threads) {
                arrange(thread_turn_, blocks * shape_.threads);
                for (int number : thread_turn_) progress |= advance(threads_[static_cast<size_t>(number)]);
                continue;
            }
            arrange(block_turn_, blocks);
            for (int block : block_turn_)
                for (bool more = true; more && !now.failed; progress |= more) {
                    more = false;
                    arrange(warp_turn_, warps);
                    for (int warp : warp_turn_) more |= advance_warp(block, warp);
                }
        }
        if (!now.failed) check_end();
    }

  private:
    bool advance_warp(int block, int warp) {
        bool any = false;
        for (bool more = true; more && !now.failed; any |= more) {
            more = false;
            arrange(lane_turn_, 32);
            Thread* lanes = &threads_[static_cast<size_t>(block * shape_.threads + warp * 32)];
            for (int lane : lane_turn_) more |= advance(lanes[lane]);
        }
        return any;
    }

    // Lets a thread run to its next wait; returns whether it could.
    bool advance(Thread& thread) {
        if (now.failed || !can_run(thread)) return false;
        thread.meeting = nullptr;
        thread.flag = nullptr;
        thread.word = nullptr;
        current = &thread;
        to_fiber(*thread.context);
        current = nullptr;
        if (thread.block->running == 0) close(*thread.block);
        return true;
    }

    // A block that has ended: its shared memory is gone, for its cluster too.
    void close(Block& block) {
#if !defined(__SANITIZE_ADDRESS__)
        for (size_t i = 0; i < kGuard; ++i)
            if (block.shared[block.shared_bytes + i] != kGuardByte && !now.failed)
                stop(place(block) + " wrote " + std::to_string(i) + " bytes behind its shared memory of " +
                     std::to_string(block.shared_bytes) + " bytes");
#endif
        std::memset(block.shared, kUnwritten, block.shared_bytes);
        forbid(block.shared, block.shared_bytes);
    }

    void check_end() {
        std::string waiting;
        int places = 0;
        for (const Thread& first : threads_) {
            if (first.finished) continue;
            int alike = 0;
            bool is_first = true;
            for (const Thread& other : threads_) {
                if (other.finished || other.block != first.block || other.what != first.what ||
                    other.site != first.site)
                    continue;
                ++alike;
                is_first &= other.id >= first.id;
            }
            if (!is_first || ++places > 4) continue;
            waiting += "; " + place(*first.block) + ": " + std::to_string(alike) + " of " +
                       std::to_string(first.block->threads) + " threads, thread " + std::to_string(first.id) +
                       " first, wait in " + first.what + " at " + describe(first.site) + ", " +
                       std::to_string(first.block->threads - first.block->running) + " have ended";
        }
        if (places > 0) return stop("deadlock" + waiting + (places > 4 ? "; and more" : ""));
        for (Block& block : blocks_) {
            forget(block.shared, block.shared_bytes);
            for (size_t i = 0; i < block.shared_bytes; ++i)
                if (block.shared[i] != kUnwritten)
                    return stop("the shared memory of " + place(block) + " was written after that block had ended, " +
                                "at byte " + std::to_string(i));
        }
    }

    static void stop(const std::string& report) {
        now.report = report;
        now.failed = true;
    }

    const Shape shape_;
    std::vector<Block> blocks_;
    std::vector<Cluster> clusters_;
    std::vector<Thread> threads_;
    std::vector<int> block_turn_, warp_turn_, lane_turn_, thread_turn_;
};

}  // namespace

// ---- Waiting ----------------------------------------------------------------------------------------------------

std::string describe(Site site) {
    const char* slash = std::strrchr(site.file, '/');
    return std::string(slash ? slash + 1 : site.file) + ":" + std::to_string(site.line);
}

void fail(const std::string& report) {
    now.report = "thread " + std::to_string(current->id) + " of " + place(*current->block) + ": " + report;
    now.failed = true;
    to_scheduler(*current->context, false);
    std::abort();  // a launch that failed resumes nobody
}

bool arrive(Meeting& meeting, const char* what, Site site, bool same_site, void (*complete)(void*), void* argument) {
    if (meeting.arrived == 0) {
        meeting.what = what;
        meeting.site = site;
    } else if (same_site && (meeting.what != what || meeting.site != site)) {
        fail(std::string("came to ") + what + " at " + describe(site) + " where another one came to " + meeting.what +
             " at " + describe(meeting.site));
    }
    if (++meeting.arrived < meeting.expected) return false;
    if (complete) complete(argument);
    meeting.arrived = 0;
    ++meeting.round;
    return true;
}

void wait_for_round(const Meeting& meeting, unsigned round, const char* what, Site site) {
    if (meeting.round != round) return;
    Thread& thread = *current;
    thread.meeting = &meeting;
    thread.round = round;
    thread.what = what;
    thread.site = site;
    to_scheduler(*thread.context, false);
}

// Until can_run finds what `where` points to as it is waited for.
static void wait_for_memory(const unsigned* Thread::* where, const unsigned* p, unsigned count, const char* what,
                            Site site) {
    Thread& thread = *current;
    thread.*where = p;
    thread.count = count;
    thread.what = what;
    thread.site = site;
    to_scheduler(*thread.context, false);
}

void wait_for_flag(const unsigned* flag, unsigned count, Site site) {
    wait_for_memory(&Thread::flag, flag, count, "wait_acquire", site);
}

void wait_for_word(const unsigned* word, unsigned absent, Site site) {
    wait_for_memory(&Thread::word, word, absent, "await_words", site);
}

// ---- Launching --------------------------------------------------------------------------------------------------

void set_order(const std::string& name) {
    if (name == "forward")
        order = Order::forward;
    else if (name == "reverse")
        order = Order::reverse;
    else if (name == "shuffle_warps")
        order = Order::shuffle_warps;
    else if (name == "shuffle_threads")
        order = Order::shuffle_threads;
    else
        throw std::invalid_argument(
            "set_order: the order must be forward, reverse, shuffle_warps or "
            "shuffle_threads, got " +
            name);
}

const char* run(const Shape& shape, void (*body)(const void*), const void* argument) {
    static std::mutex one_at_a_time;
    static Contexts contexts;
    thread_local std::string report;
    const std::lock_guard<std::mutex> guard(one_at_a_time);
    now = Run{};
    now.body = body;
    now.argument = argument;
    draws = 0x9E3779B97F4A7C15ull;
    grid_x = static_cast<int>(shape.grid_x);
    grid_y = static_cast<int>(shape.grid_y);
    const int64_t blocks = shape.grid_x * shape.grid_y;
    const int together = shape.together ? static_cast<int>(blocks) : shape.cluster;
    std::vector<int> turn;
    arrange(turn, static_cast<int>(blocks / together));
    for (int number : turn) {
        Group(shape, together, contexts).run(static_cast<int64_t>(number) * together);
        if (now.failed) break;
    }
    report = now.report;
    return now.failed ? report.c_str() : nullptr;
}

}  // namespace vssn::gpu::host

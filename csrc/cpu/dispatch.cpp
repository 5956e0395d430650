// Which instruction set's kernels run: what the processor has, lowered by VSSN_CPU_ISA (read once, at import).
#include <stdlib.h>

#include <stdexcept>
#include <string>

#include "kernels.h"

namespace vssn {

namespace {

struct Choice {
    const KernelTable* table;
    std::string error;
};

struct Entry {
    const KernelTable* table;
    bool runs_here;
};

Choice choose() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                            __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    const Entry entries[] = {{&avx512::table, has_avx512}, {&avx2::table, has_avx2}, {&generic::table, true}};
#else
    const Entry entries[] = {{&generic::table, true}};
#endif
    const char* wanted = getenv("VSSN_CPU_ISA");
    std::string available;
    for (const Entry& entry : entries) {
        if (!entry.runs_here) continue;
        if (!wanted || !*wanted || std::string(wanted) == entry.table->isa) return {entry.table, ""};
        available += (available.empty() ? "" : ", ") + std::string(entry.table->isa);
    }
    return {nullptr, "environment variable VSSN_CPU_ISA must be one of those this processor runs (" + available +
                         "), got '" + wanted + "'"};
}

const Choice choice = choose();

}  // namespace

const KernelTable& kernels() {
    if (!choice.table) throw std::runtime_error(choice.error);
    return *choice.table;
}

}  // namespace vssn

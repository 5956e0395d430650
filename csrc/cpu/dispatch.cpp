// Which instruction set's kernels run: what the processor has, lowered by VSSN_CPU_ISA (read once, at import).
#include <stdlib.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace vssn {

namespace {

struct Choice {
    const KernelTable* table;
    std::string error;
};

struct Entry {
    const KernelTable* table;
    bool runs_here;
    bool pays = true;  // else it runs only where VSSN_CPU_ISA names it
};

#if defined(__x86_64__) && defined(VSSN_HAS_BFLOAT16) && !defined(VSSN_EMULATED_SETS)

// The processor's answer for leaf 7: whether the bit is set.
enum Register { eax, ebx, ecx, edx };
bool has_feature(unsigned subleaf, Register where, int bit) {
    unsigned registers[4] = {};
    return __get_cpuid_count(7, subleaf, registers, registers + 1, registers + 2, registers + 3) &&
           (registers[where] >> bit & 1);
}

// Tiles are 8 KB of registers more for the system to save: it gives them to a process that asks, once for all its
// threads and for those of its children.
bool may_use_tiles() {
#if defined(SYS_arch_prctl)
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    constexpr int kTileBit = 24, kTileBf16Bit = 22;
    return has_feature(0, edx, kTileBit) && has_feature(0, edx, kTileBf16Bit) &&
           syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

// vdpbf16ps does two multiply-adds in a lane. Of a core that has AVX512-FP16 too (Golden Cove and later) Intel leaves
// products of bfloat16 to AMX: a Xeon (family 6, model 207) issues a quarter as many of it as of multiply-adds of
// floats, and a product takes 1.8 times as long as from the same values widened.
bool has_slow_dots() { return __builtin_cpu_is("intel") && has_feature(0, edx, 23); }

#endif

// From the best on. VSSN_HAS_BFLOAT16: the compiler knew the instructions, and so there are kernels made of them.
// VSSN_WITHOUT_AVX512, VSSN_WITHOUT_AVX2: a build of the sanitizers that will not run these (sanitize/Makefile).
std::vector<Entry> entries() {
    std::vector<Entry> found;
#if defined(VSSN_EMULATED_SETS)
    found = {{&amx::table, true}, {&avx512_bf16::table, true}};
#elif defined(__x86_64__)
    __builtin_cpu_init();
    [[maybe_unused]] const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    [[maybe_unused]] const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                                             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
                                             __builtin_cpu_supports("avx512vl");
#if defined(VSSN_HAS_BFLOAT16)
    const bool has_bf16 = has_avx512 && has_feature(1, eax, 5);
    found = {{&amx::table, has_bf16 && may_use_tiles()}, {&avx512_bf16::table, has_bf16, !has_slow_dots()}};
#endif
#if !defined(VSSN_WITHOUT_AVX512)
    found.push_back({&avx512::table, has_avx512});
#endif
#if !defined(VSSN_WITHOUT_AVX2)
    found.push_back({&avx2::table, has_avx2});
#endif
#endif
    found.push_back({&generic::table, true});
    return found;
}

Choice choose() {
    const char* value = getenv("VSSN_CPU_ISA");
    const std::string wanted = value ? value : "";
    std::string available;
    for (const Entry& entry : entries()) {
        if (!entry.runs_here) continue;
        if (wanted.empty() ? entry.pays : wanted == entry.table->isa) return {entry.table, ""};
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

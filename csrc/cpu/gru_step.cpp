// One step of the GRU with weights packed before: for loops that take steps one by one and change no weight.
//
//   the equations of gru.cpp      gates_x [B, 3H], h [B, H] -> out [B, H]
//
// gru_pack  reads weight [3H, H]; writes panels, as many numbers as it tells.
// gru_step  reads gates_x, h, panels, bias [3H]; writes out, which must not be h.
//
// Threads share the hidden units, so that each core keeps its part of the weights from one step to the next. A step has
// no barrier.
#include "../common/cell.h"
#include "gemm.h"
#include "kernels.h"
#include "math.h"
#include "tables.h"
#include "threads.h"

namespace vssn::VSSN_ISA {

namespace {

constexpr int64_t kThreadWork = 1 << 15;  // multiply-adds that repay waking a thread

template <class T>
int64_t blocks_of(int64_t H) {
    return (H + kLanes<T> - 1) / kLanes<T>;
}

template <class T>
int64_t pack(const GruPack<T>& k) {
    constexpr int64_t L = kLanes<T>;
    const int64_t blocks = blocks_of<T>(k.H), panel = k.H * 3 * L;  // [blocks][H][3 L]
    for (int64_t block = 0; k.panels && block < blocks; ++block)
        for (int64_t gate = 0; gate < 3; ++gate)
            pack_transposed(k.panels + block * panel + gate * L, k.H, L, 3 * L, k.weight, gate * k.H + block * L,
                            k.H - block * L);
    return blocks * panel;
}

template <class T>
void step(const GruStep<T>& k) {
    using Math = VectorMath<T>;
    constexpr int64_t L = kLanes<T>;
    const int64_t blocks = blocks_of<T>(k.H), useful = k.B * 3 * k.H * k.H / kThreadWork + 1;
    const int64_t most = useful < blocks ? useful : blocks;
    auto expect = [&](int64_t block, int64_t first, int rows) VSSN_INLINED {
        for (int i = 0; i < rows; ++i)
            for (int gate = 0; gate < 3; ++gate) prefetch(k.gates_x.row(first + i) + gate * k.H + block * L);
    };
    auto finish = [&](int64_t block, int64_t first, int rows, const Tile<T, 3>& product) {
        const int64_t unit = block * L, count = k.H - unit < L ? k.H - unit : L;
        const T* bias = k.bias + unit;
        const Vec<T> bias_r = load(bias, count), bias_z = load(bias + k.H, count), bias_n = load(bias + 2 * k.H, count);
        for (int i = 0; i < rows; ++i) {
            const T* x = k.gates_x.row(first + i) + unit;
            const GruGates<Vec<T>> g = gru_gates<Math>(load(x, count) + (product[i][0] + bias_r),
                                                       load(x + k.H, count) + (product[i][1] + bias_z),
                                                       load(x + 2 * k.H, count), product[i][2] + bias_n);
            store(k.out + (first + i) * k.H + unit, gru_next(g, load(k.h.row(first + i) + unit, count)), count);
        }
    };
    auto body = [&](Team team) {
        multiply<T, 3>(k.h.data, k.h.stride, k.B, k.panels, share(blocks, team.rank, team.size), k.H, expect, finish);
    };
    parallel(static_cast<int>(k.threads < most ? k.threads : most), body);
}

}  // namespace

int64_t gru_pack(const GruPack<float>& k) { return pack(k); }
int64_t gru_pack(const GruPack<double>& k) { return pack(k); }
void gru_step(const GruStep<float>& k) { step(k); }
void gru_step(const GruStep<double>& k) { step(k); }

}  // namespace vssn::VSSN_ISA

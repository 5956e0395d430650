// One step of the GRU, by the equations of gru.cpp: gates_x [B, 3H], h [B, H] to the next h.
//
// With weights packed before, for loops that take steps one by one and change no weight:
//   gru_pack        reads weight [3H, H]; writes panels, as many numbers as it tells.
//   gru_step        reads gates_x, h, panels, bias [3H]; writes out, which must not be h.
// With weights as they are, the input's part included, for a call of few rows:
//   gru_layer_step  reads x [B, X], h, both weights and biases; writes output, h_n and, for backward, gates.
// With the product W_hh h computed before, by PyTorch for many rows, where one step does not repay packing:
//   gru_cell        reads gates_x, product [B, 3H], h, bias; writes output, h_n and, for backward, gates.
// Backward of the last two:
//   gru_cell_backward  reads grad_output, grad_h_n, gates, h; writes grad_gates_x, grad_product and the part of grad_h
//                      that does not go through the product.
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
constexpr int64_t kEntryWork = 64;        // those that take as long as the gates of a unit

template <class T>
int64_t blocks_of(int64_t H) {
    return (H + kLanes<T> - 1) / kLanes<T>;
}

inline int useful_threads(int threads, int64_t work, int64_t parts) {
    const int64_t useful = work / kThreadWork + 1, most = useful < parts ? useful : parts;
    return static_cast<int>(threads < most ? threads : most);
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

// As gru.cpp keeps them: r, z, n, a of H each.
template <class T>
void store_gates(T* gates, int64_t H, const GruGates<Vec<T>>& g, int64_t count) {
    store(gates, g.r, count);
    store(gates + H, g.z, count);
    store(gates + 2 * H, g.n, count);
    store(gates + 3 * H, g.a, count);
}

template <class T>
void step(const GruStep<T>& k) {
    using Math = VectorMath<T>;
    constexpr int64_t L = kLanes<T>;
    const int64_t blocks = blocks_of<T>(k.H);
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
    parallel(useful_threads(k.threads, k.B * 3 * k.H * k.H, blocks), body);
}

template <class T>
void layer_step(const GruLayerStep<T>& k) {
    using Math = VectorMath<T>;
    constexpr int64_t L = kLanes<T>;
    const int64_t blocks = blocks_of<T>(k.H);
    auto body = [&](Team team) {
        const Range mine = share(blocks, team.rank, team.size);
        for (int64_t block = mine.begin; block < mine.end; ++block)
            for (int64_t first = 0, rows; first < k.B; first += rows) {
                const int64_t unit = block * L, count = k.H - unit < L ? k.H - unit : L;
                Vec<T> input[3][kDotRows], hidden[3][kDotRows];
                rows = tile_height(k.B - first, kDotRows);
                for (int gate = 0; gate < 3; ++gate) {
                    const int64_t from = gate * k.H + unit;
                    multiply_dots(k.x.row(first), k.x.stride, static_cast<int>(rows), k.weight_ih, from, count, k.X,
                                  input[gate]);
                    multiply_dots(k.h.row(first), k.h.stride, static_cast<int>(rows), k.weight_hh, from, count, k.H,
                                  hidden[gate]);
                    const Vec<T> bias_x = k.bias_ih ? load(k.bias_ih + from, count) : Vec<T>{};
                    const Vec<T> bias_h = k.bias_hh ? load(k.bias_hh + from, count) : Vec<T>{};
                    for (int64_t i = 0; i < rows; ++i) {
                        input[gate][i] += bias_x;
                        hidden[gate][i] += bias_h;
                    }
                }
                for (int64_t i = 0; i < rows; ++i) {
                    const int64_t at = (first + i) * k.H + unit;
                    const GruGates<Vec<T>> g = gru_gates<Math>(input[0][i] + hidden[0][i], input[1][i] + hidden[1][i],
                                                               input[2][i], hidden[2][i]);
                    const Vec<T> h = gru_next(g, load(k.h.row(first + i) + unit, count));
                    store(k.output + at, h, count);
                    store(k.h_n + at, h, count);
                    if (k.gates) store_gates(k.gates + 4 * (first + i) * k.H + unit, k.H, g, count);
                }
            }
    };
    parallel(useful_threads(k.threads, k.B * 3 * k.H * (k.X + k.H), blocks), body);
}

template <class T>
void cell(const GruCell<T>& k) {
    using Math = VectorMath<T>;
    constexpr int64_t L = kLanes<T>;
    auto body = [&](Team team) {
        const Range rows = share(k.B, team.rank, team.size);
        for (int64_t row = rows.begin; row < rows.end; ++row)
            for (int64_t unit = 0; unit < k.H; unit += L) {
                const int64_t count = k.H - unit < L ? k.H - unit : L, at = row * k.H + unit;
                const T *x = k.gates_x.row(row) + unit, *p = k.product.row(row) + unit, *bias = k.bias + unit;
                const GruGates<Vec<T>> g =
                    gru_gates<Math>(load(x, count) + (load(p, count) + load(bias, count)),
                                    load(x + k.H, count) + (load(p + k.H, count) + load(bias + k.H, count)),
                                    load(x + 2 * k.H, count), load(p + 2 * k.H, count) + load(bias + 2 * k.H, count));
                const Vec<T> h = gru_next(g, load(k.h.row(row) + unit, count));
                store(k.output + at, h, count);
                store(k.h_n + at, h, count);
                if (k.gates) store_gates(k.gates + 4 * row * k.H + unit, k.H, g, count);
            }
    };
    parallel(useful_threads(k.threads, k.B * k.H * kEntryWork, k.B), body);
}

template <class T>
void cell_backward(const GruCellBackward<T>& k) {
    constexpr int64_t L = kLanes<T>;
    auto body = [&](Team team) {
        const Range rows = share(k.B, team.rank, team.size);
        for (int64_t row = rows.begin; row < rows.end; ++row)
            for (int64_t unit = 0; unit < k.H; unit += L) {
                const int64_t count = k.H - unit < L ? k.H - unit : L, at = row * k.H + unit;
                const T* gates = k.gates + 4 * row * k.H + unit;
                const GruGates<Vec<T>> g = {load(gates, count), load(gates + k.H, count), load(gates + 2 * k.H, count),
                                            load(gates + 3 * k.H, count)};
                Vec<T> dh{};
                if (k.grad_output.data) dh += load(k.grad_output.row(row) + unit, count);
                if (k.grad_h_n.data) dh += load(k.grad_h_n.row(row) + unit, count);
                const GruGates<Vec<T>> grad = gru_gate_grads(g, load(k.h.row(row) + unit, count), dh);
                T *grad_x = k.grad_gates_x + row * 3 * k.H + unit, *product = k.grad_product + row * 3 * k.H + unit;
                store(grad_x, grad.r, count);
                store(grad_x + k.H, grad.z, count);
                store(grad_x + 2 * k.H, grad.n, count);
                store(product, grad.r, count);
                store(product + k.H, grad.z, count);
                store(product + 2 * k.H, grad.a, count);
                if (k.grad_h) store(k.grad_h + at, dh * g.z, count);
            }
    };
    parallel(useful_threads(k.threads, k.B * k.H * kEntryWork, k.B), body);
}

}  // namespace

#define VSSN_ENTRIES(T)                                              \
    int64_t gru_pack(const GruPack<T>& k) { return pack(k); }        \
    void gru_step(const GruStep<T>& k) { step(k); }                  \
    void gru_layer_step(const GruLayerStep<T>& k) { layer_step(k); } \
    void gru_cell(const GruCell<T>& k) { cell(k); }                  \
    void gru_cell_backward(const GruCellBackward<T>& k) { cell_backward(k); }
VSSN_FOR_FLOATS(VSSN_ENTRIES)

}  // namespace vssn::VSSN_ISA

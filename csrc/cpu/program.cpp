// A short program over one memory for every row: a step of a model that takes frames one by one, in one call.
//
//   linear     out [N] = (bias or memory at `from` or 0) + in [K] W^T
//   activate   out [N] = act(out)
//   gru        out [H] = the next state of gates_x [3H], gates_h [3H] = W_hh h + b_hh, and h [H]; out may be h
//   copy, add  out [N] = in, out [N] += in
//   wait       for all threads, to read what others wrote or write what others read
//
// code [n, 8] names what each takes, as places in the memory [B, size] and in the weights: Instruction in kernels.h.
// Weights of a linear are packed in panels of P columns, [N / P][K][P], zeros behind N: P is kPanel<T>, and kNarrow<T>
// for an N of no more.
// x and u are copied to their places first. Where an entry of x is outside [low, high], or with `whole` no whole
// number, or one of either is not finite, nothing is done and the result is false.
//
// Threads share the columns that an instruction writes by panels, the same way for every instruction of the same N:
// each reads its own columns and, but for linear's in and gru's gates, no others. So a core keeps its part of the
// weights from step to step, which are more than the cache of one.
#include <cmath>
#include <limits>

#include "activation.h"
#include "kernels.h"
#include "tables.h"
#include "threads.h"

namespace vssn::VSSN_ISA {

namespace {

template <class T>
constexpr int kPanel = kPanelBytes / static_cast<int>(sizeof(T));
template <class T>
constexpr int kNarrow = kPanel<T> / 4;  // a vector at least
template <class T>
int64_t panel_of(int64_t N) {
    return N <= kNarrow<T> ? kNarrow<T> : kPanel<T>;
}
constexpr int64_t kThreadWork = 1 << 17;  // multiply-adds that repay a thread and its waits

template <class T>
bool inside(const Rows<const T>& rows, int64_t B, int64_t width, T low, T high, bool whole) {
    constexpr T limit = std::numeric_limits<T>::max();
    low = low < -limit ? -limit : low;
    high = high > limit ? limit : high;
    bool all = true;
    for (int64_t b = 0; b < B; ++b)
        for (int64_t j = 0; j < width; ++j) {
            const T value = rows.row(b)[j];
            all &= value >= low && value <= high && (!whole || value == std::floor(value));  // NaN is neither
        }
    return all;
}

template <class T, int P>
void linear(const Program<T>& k, const int64_t* c, Team team) {
    constexpr int L = kLanes<T>, V = P / L;
    const int64_t out = c[1], in = c[2], K = c[3], N = c[4], bias = c[6], from = c[7];
    const Range own = share(N, team.rank, team.size, P);
    const T* panel = k.weights + c[5] + own.begin * K;
    for (int64_t first = own.begin; first < own.end; first += P, panel += K * P) {
        const int64_t count = N - first;
        for (int64_t b = 0; b < k.B; ++b) {
            T* memory = k.memory.row(b);
            const T* start = bias >= 0 ? k.weights + bias + first : from >= 0 ? memory + from + first : nullptr;
            Vec<T> sum[V];
            for (int v = 0; v < V; ++v) {
                const int64_t left = count - v * L;
                sum[v] = start && left > 0 ? load(start + v * L, left) : Vec<T>{};
            }
            const T* weight = panel;
            for (int64_t i = 0; i < K; ++i, weight += P) {
                const Vec<T> x = broadcast(memory[in + i]);
                for (int v = 0; v < V; ++v) sum[v] += x * load(weight + v * L);
            }
            for (int v = 0; v < V && count - v * L > 0; ++v) store(memory + out + first + v * L, sum[v], count - v * L);
        }
    }
}

template <class T, class Run>
void each(const Program<T>& k, int64_t N, Team team, Run run) {
    const Range own = share(N, team.rank, team.size, panel_of<T>(N));
    for (int64_t b = 0; b < k.B; ++b)
        for (int64_t j = own.begin; j < own.end; j += kLanes<T>) run(k.memory.row(b), j, N - j);
}

template <class T>
int useful_threads(const Program<T>& k) {
    int64_t work = 0;
    for (const int64_t* c = k.code + 8 * k.first; c < k.code + 8 * k.last; c += 8)
        if (static_cast<Instruction>(c[0]) == Instruction::linear) work += k.B * c[3] * c[4];
    const int64_t useful = work / kThreadWork;
    return static_cast<int>(useful < 1 ? 1 : useful < k.threads ? useful : k.threads);
}

template <class T>
void run(const Program<T>& k, const int64_t* c, Team team) {
    using Math = VectorMath<T>;
    const int64_t out = c[1], in = c[2];
    switch (static_cast<Instruction>(c[0])) {
        case Instruction::linear:
            if (panel_of<T>(c[4]) == kNarrow<T>)
                linear<T, kNarrow<T>>(k, c, team);
            else
                linear<T, kPanel<T>>(k, c, team);
            break;
        case Instruction::activate:
            each(k, c[2], team, [&](T* m, int64_t j, int64_t count) {
                store(m + out + j, activate_by<T>(static_cast<Activation>(c[3]), load(m + out + j, count)), count);
            });
            break;
        case Instruction::gru: {
            const int64_t gates_h = c[3], h = c[4], H = c[5];
            each(k, H, team, [&](T* m, int64_t j, int64_t count) {
                const T *x = m + in + j, *y = m + gates_h + j;
                const GruGates<Vec<T>> g =
                    gru_gates<Math>(load(x, count) + load(y, count), load(x + H, count) + load(y + H, count),
                                    load(x + 2 * H, count), load(y + 2 * H, count));
                store(m + out + j, gru_next(g, load(m + h + j, count)), count);
            });
            break;
        }
        case Instruction::copy:
            each(k, c[3], team,
                 [&](T* m, int64_t j, int64_t count) { store(m + out + j, load(m + in + j, count), count); });
            break;
        case Instruction::add:
            each(k, c[3], team, [&](T* m, int64_t j, int64_t count) {
                store(m + out + j, load(m + out + j, count) + load(m + in + j, count), count);
            });
            break;
        case Instruction::wait:
            team.wait();
            break;
    }
}

template <class T>
bool program(const Program<T>& k) {
    constexpr T infinity = std::numeric_limits<T>::infinity();
    if (!inside(k.x, k.B, k.X, k.low, k.high, k.whole) || !inside(k.u, k.B, k.U, -infinity, infinity, false))
        return false;
    for (int64_t b = 0; b < k.B; ++b) {
        for (int64_t j = 0; j < k.X; ++j) k.memory.row(b)[k.x_at + j] = k.x.row(b)[j];
        for (int64_t j = 0; j < k.U; ++j) k.memory.row(b)[k.u_at + j] = k.u.row(b)[j];
    }
    auto body = [&](Team team) {
        for (int64_t number = k.first; number < k.last; ++number) run(k, k.code + 8 * number, team);
    };
    parallel(useful_threads(k), body);
    return true;
}

}  // namespace

#define VSSN_ENTRIES(T) \
    bool run_program(const Program<T>& k) { return program(k); }
VSSN_FOR_FLOATS(VSSN_ENTRIES)

}  // namespace vssn::VSSN_ISA

// vssn_kernels._cpu: the kernels for Python.
//
// Each function takes the type that tensors are stored in, and the fields of its struct in kernels.h, by name
// (../common/arguments.h). vssn_kernels/backend/cpu, the only caller, has checked and allocated everything. The GIL is
// released while a kernel runs.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <time.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <new>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "../common/arguments.h"
#include "crowd.h"
#include "kernels.h"
#include "threads.h"

namespace py = pybind11;

namespace vssn {

namespace {

template <class T>
struct Evaluate {
    Function function;
    const T* x;
    T* y;
    int64_t count;
    VSSN_FIELDS(function, x, y, count)
};

// Which version of a function is meant: its first argument.
VSSN_ENUM(Storage, float32, float64, bfloat16)
struct Version {
    Storage storage;
    VSSN_FIELDS(storage)
};

// Thrown where the table has no kernel for a type.
struct Absent {};

// The function that runs `run` with the kernels of a type and a Problem of that type.
template <template <class> class Problem, class Run>
void define(py::module_& module, const char* name, Run run) {
    Signature signature = signature_of(module, name);
    signature.add<Version>();
    signature.add<Problem<float>>();
    define(module, name, std::move(signature), [run, name](Arguments& in) -> py::object {
        switch (in.read<Version>().storage) {
            case Storage::float32:
                return result_of(run, *kernels().f32, in.read<Problem<float>>());
            case Storage::float64:
                return result_of(run, *kernels().f64, in.read<Problem<double>>());
            default:
                try {
                    return result_of(run, *kernels().bf16, in.read<Problem<BFloat16>>());
                } catch (const Absent&) {
                    throw py::type_error(std::string("vssn_kernels._cpu.") + name +
                                         ": storage must be float32 or float64, got bfloat16");
                }
        }
    });
}

// Python's lock, given up for a scope. Where Python ends meanwhile, up to 3.13 it unwinds a thread that asks for the
// lock again, through frames whose Python objects nobody may touch any more, and a destructor on the way would end the
// whole process as a crash. As in 3.14 the thread sleeps instead, until the process is gone.
class WithoutLock {
  public:
    WithoutLock() : state_(PyEval_SaveThread()) {}
    ~WithoutLock() {
        try {
            PyEval_RestoreThread(state_);
        } catch (...) {
            for (;;) pause();
        }
    }
    WithoutLock(const WithoutLock&) = delete;
    WithoutLock& operator=(const WithoutLock&) = delete;

  private:
    PyThreadState* state_;
};

template <class Kernel, class Problem>
auto without_gil(Kernel* kernel, const Problem& problem) {
    if (!kernel) throw Absent();
    const WithoutLock unlocked;
    return kernel(problem);
}

// Memory for one call, as the kernels' buffers are aligned. For the tests: whether it starts as NaN.
bool poisoned = false;

class Workspace {
  public:
    explicit Workspace(int64_t bytes) : data_(::operator new(static_cast<size_t>(bytes), kAlignment)) {
        if (poisoned) std::memset(data_, 255, static_cast<size_t>(bytes));
    }
    ~Workspace() { ::operator delete(data_, kAlignment); }
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;
    void* data() const { return data_; }

  private:
    static constexpr std::align_val_t kAlignment{64};
    void* data_;
};

template <class Kernel, class Bytes, class Problem>
void without_gil(Kernel* kernel, Bytes* bytes, const Problem& problem) {
    if (!kernel) throw Absent();
    const WithoutLock unlocked;
    const Workspace workspace(bytes(problem));
    kernel(problem, workspace.data());
}

void require(bool right, const char* message) {
    if (!right) throw py::type_error(message);
}

template <class T>
const MlpForward<T>& checked(const MlpForward<T>& k) {
    require(k.x.count == k.inputs() && k.weight.count == k.inputs(),
            "vssn_kernels._cpu.mlp_forward: K, x and weight must be of one length");
    return k;
}

template <class T>
const MlpBackward<T>& checked(const MlpBackward<T>& k) {
    require(k.x.count == k.inputs() && k.weight.count == k.inputs() && k.grad_x.count == k.inputs() &&
                k.grad_weight.count == k.inputs(),
            "vssn_kernels._cpu.mlp_backward: K, x, weight, grad_x and grad_weight must be of one length");
    return k;
}

// For the tests: whether each of the observations, as Crowd takes them, is found crowded.
std::vector<bool> crowded(const std::vector<std::tuple<double, double, int64_t>>& observations) {
    Crowd crowd;
    std::vector<bool> found;
    for (const auto& [now, busy, switches] : observations) found.push_back(crowd.observe(now, busy, switches));
    return found;
}

// For the tests: the processor time that the caller spends at a barrier where another comes `late` seconds after it.
double waiting_cpu_seconds(double late) {
    const auto cpu_seconds = [] {
        timespec time;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
        return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
    };
    double spent = 0;
    auto body = [&](Team team) {
        if (team.rank > 0) std::this_thread::sleep_for(std::chrono::duration<double>(late));
        const double before = cpu_seconds();
        team.wait();
        if (team.rank == 0) spent = cpu_seconds() - before;
    };
    parallel(2, body);
    return spent;
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
    module.doc() = "The CPU kernels of vssn_kernels; use them through vssn_kernels.backend.cpu.";
    define<GaussianForward>(module, "gaussian_forward",
                            [](const auto& table, const auto& k) { without_gil(table.gaussian_forward, k); });
    define<GaussianBackward>(module, "gaussian_backward",
                             [](const auto& table, const auto& k) { without_gil(table.gaussian_backward, k); });
    define<GruForward>(module, "gru_forward", [](const auto& table, const auto& k) {
        without_gil(table.gru_forward, table.gru_forward_workspace, k);
    });
    define<GruBackward>(module, "gru_backward", [](const auto& table, const auto& k) {
        without_gil(table.gru_backward, table.gru_backward_workspace, k);
    });
    define<GruPack>(module, "gru_pack",
                    [](const auto& table, const auto& k) { return without_gil(table.gru_pack, k); });
    define<GruStep>(module, "gru_step", [](const auto& table, const auto& k) { without_gil(table.gru_step, k); });
    define<GruLayerStep>(module, "gru_layer_step",
                         [](const auto& table, const auto& k) { without_gil(table.gru_layer_step, k); });
    define<GruCellBackward>(module, "gru_cell_backward",
                            [](const auto& table, const auto& k) { without_gil(table.gru_cell_backward, k); });
    define<GruCell>(module, "gru_cell", [](const auto& table, const auto& k) { without_gil(table.gru_cell, k); });
    define<PosteriorForward>(module, "posterior_forward", [](const auto& table, const auto& k) {
        without_gil(table.posterior_forward, table.posterior_forward_workspace, k);
    });
    define<PosteriorBackward>(module, "posterior_backward", [](const auto& table, const auto& k) {
        without_gil(table.posterior_backward, table.posterior_backward_workspace, k);
    });
    define<InterleavedForward>(module, "interleaved_forward", [](const auto& table, const auto& k) {
        without_gil(table.interleaved_forward, table.interleaved_forward_workspace, k);
    });
    define<InterleavedBackward>(module, "interleaved_backward", [](const auto& table, const auto& k) {
        without_gil(table.interleaved_backward, table.interleaved_backward_workspace, k);
    });
    define<MlpForward>(module, "mlp_forward", [](const auto& table, const auto& k) {
        without_gil(table.mlp_forward, table.mlp_forward_workspace, checked(k));
    });
    define<MlpPack>(module, "mlp_pack", [](const auto& table, const auto& k) {
        require(k.weight.count == k.inputs(), "vssn_kernels._cpu.mlp_pack: K and weight must be of one length");
        return without_gil(table.mlp_pack, k);
    });
    define<MlpBackward>(module, "mlp_backward", [](const auto& table, const auto& k) {
        without_gil(table.mlp_backward, table.mlp_backward_workspace, checked(k));
    });
    define<BernoulliForward>(module, "bernoulli_forward",
                             [](const auto& table, const auto& k) { without_gil(table.bernoulli_forward, k); });
    define<BernoulliBackward>(module, "bernoulli_backward",
                              [](const auto& table, const auto& k) { without_gil(table.bernoulli_backward, k); });
    define<Program>(module, "run_program",
                    [](const auto& table, const auto& k) { return without_gil(table.run_program, k); });
    define<Evaluate>(module, "evaluate",
                     [](const auto& table, const auto& k) { table.evaluate(k.function, k.x, k.y, k.count); });
    module.def("shorten_waits", shorten_waits, py::call_guard<WithoutLock>());
    module.def("waits_are_short", waits_are_short);
    module.def("crowded", crowded);
    module.def("poison_workspace", [](bool poison) { poisoned = poison; });
    module.def("waiting_cpu_seconds", waiting_cpu_seconds, py::call_guard<WithoutLock>());
    module.def("isa", [] { return kernels().isa; });
    module.attr("compiler") = "g++ " __VERSION__;
#if defined(VSSN_HAS_BFLOAT16)  // whether there are kernels of the processors' instructions for products of bfloat16
    module.attr("bfloat16_products") = true;
#else
    module.attr("bfloat16_products") = false;
#endif
}

}  // namespace vssn

// vssn_kernels._cpu: the kernels for Python.
//
// Each function takes whether the tensors are float64, then numbers in the order in which the body below reads
// them: sizes, addresses (0: no tensor) and strides in elements. vssn_kernels/backend/cpu.py, the only caller, has
// checked and allocated everything. The GIL is released while a kernel runs.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <time.h>

#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "crowd.h"
#include "kernels.h"
#include "threads.h"

namespace py = pybind11;

namespace vssn {

namespace {

// Reads the numbers one after another, and notices when caller and callee disagree on how many there are.
class Arguments {
  public:
    explicit Arguments(const py::args& values) : values_(values) {}

    int64_t size() {
        const int64_t value = PyLong_AsLongLong(next());
        if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
        return value;
    }
    double real() {
        const double value = PyFloat_AsDouble(next());
        if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
        return value;
    }
    int threads() { return static_cast<int>(size()); }
    bool flag() { return size() != 0; }
    template <class T>
    T* pointer() {
        return reinterpret_cast<T*>(static_cast<intptr_t>(size()));
    }
    template <class T>
    Rows<const T> rows() {
        const T* data = pointer<const T>();
        return {data, size()};
    }
    template <class T>
    Steps<const T> steps() {
        const T* data = pointer<const T>();
        const int64_t step_stride = size();
        return {data, step_stride, size()};
    }
    void done() const {
        if (next_ != values_.size()) throw std::logic_error("vssn_kernels._cpu: too many arguments");
    }

  private:
    PyObject* next() {
        if (next_ >= values_.size()) throw std::logic_error("vssn_kernels._cpu: too few arguments");
        return PyTuple_GET_ITEM(values_.ptr(), next_++);
    }

    const py::args& values_;
    size_t next_ = 0;
};

template <class T>
const Kernels<T>& entries() {
    if constexpr (sizeof(T) == sizeof(float))
        return kernels().f32;
    else
        return kernels().f64;
}

template <class Kernel, class Problem>
void run(Kernel kernel, const Problem& problem, const Arguments& in) {
    in.done();
    py::gil_scoped_release release;
    kernel(problem);
}

template <class T>
void gaussian_forward(Arguments in) {
    GaussianForward<T> k;
    k.threads = in.threads();
    k.N = in.size();
    k.Z = in.size();
    k.mu = in.rows<T>();
    k.logvar = in.rows<T>();
    k.eps = in.rows<T>();
    k.prior_mu = in.rows<T>();
    k.prior_logvar = in.rows<T>();
    k.z = in.pointer<T>();
    k.kl = in.pointer<T>();
    run(entries<T>().gaussian_forward, k, in);
}

template <class T>
void gaussian_backward(Arguments in) {
    GaussianBackward<T> k;
    k.threads = in.threads();
    k.N = in.size();
    k.Z = in.size();
    k.mu = in.rows<T>();
    k.logvar = in.rows<T>();
    k.eps = in.rows<T>();
    k.prior_mu = in.rows<T>();
    k.prior_logvar = in.rows<T>();
    k.grad_z = in.rows<T>();
    k.grad_kl = in.rows<T>();
    k.grad_mu = in.pointer<T>();
    k.grad_logvar = in.pointer<T>();
    k.grad_eps = in.pointer<T>();
    k.grad_prior_mu = in.pointer<T>();
    k.grad_prior_logvar = in.pointer<T>();
    run(entries<T>().gaussian_backward, k, in);
}

template <class T>
void gru_forward(Arguments in) {
    GruForward<T> k;
    k.threads = in.threads();
    k.steps = in.size();
    k.B = in.size();
    k.H = in.size();
    k.reverse = in.flag();
    k.lengths = in.pointer<const int64_t>();
    k.gates_x = in.steps<T>();
    k.h0 = in.rows<T>();
    k.weight = in.rows<T>();
    k.bias = in.pointer<const T>();
    k.output = in.pointer<T>();
    k.h_n = in.pointer<T>();
    k.gates = in.pointer<T>();
    k.workspace = in.pointer<void>();
    run(entries<T>().gru_forward, k, in);
}

template <class T>
void gru_backward(Arguments in) {
    GruBackward<T> k;
    k.threads = in.threads();
    k.steps = in.size();
    k.B = in.size();
    k.H = in.size();
    k.reverse = in.flag();
    k.lengths = in.pointer<const int64_t>();
    k.grad_output = in.steps<T>();
    k.grad_h_n = in.rows<T>();
    k.output = in.pointer<const T>();
    k.gates = in.pointer<const T>();
    k.h0 = in.rows<T>();
    k.weight = in.rows<T>();
    k.grad_gates_x = in.pointer<T>();
    k.grad_a = in.pointer<T>();
    k.grad_h0 = in.pointer<T>();
    k.grad_weight = in.pointer<T>();
    k.grad_bias = in.pointer<T>();
    k.workspace = in.pointer<void>();
    run(entries<T>().gru_backward, k, in);
}

template <class T>
void posterior_forward(Arguments in) {
    PosteriorForward<T> k;
    k.threads = in.threads();
    k.steps = in.size();
    k.B = in.size();
    k.M = in.size();
    k.Z = in.size();
    k.activation = static_cast<Activation>(in.size());
    k.min_logvar = static_cast<T>(in.real());
    k.lengths = in.pointer<const int64_t>();
    k.context = in.steps<T>();
    k.eps = in.steps<T>();
    k.z0 = in.rows<T>();
    k.weight_z = in.rows<T>();
    k.weight_out = in.rows<T>();
    k.bias_out = in.pointer<const T>();
    k.prior_context = in.steps<T>();
    k.prior_weight_z = in.rows<T>();
    k.prior_weight_mu = in.rows<T>();
    k.prior_bias_mu = in.pointer<const T>();
    k.z = in.pointer<T>();
    k.mu = in.pointer<T>();
    k.logvar = in.pointer<T>();
    k.hidden = in.pointer<T>();
    k.prior_hidden = in.pointer<T>();
    k.workspace = in.pointer<void>();
    run(entries<T>().posterior_forward, k, in);
}

template <class T>
void posterior_backward(Arguments in) {
    PosteriorBackward<T> k;
    k.threads = in.threads();
    k.steps = in.size();
    k.B = in.size();
    k.M = in.size();
    k.Z = in.size();
    k.activation = static_cast<Activation>(in.size());
    k.min_logvar = static_cast<T>(in.real());
    k.lengths = in.pointer<const int64_t>();
    k.grad_z = in.steps<T>();
    k.grad_mu = in.steps<T>();
    k.grad_logvar = in.steps<T>();
    k.logvar = in.pointer<const T>();
    k.hidden = in.pointer<const T>();
    k.prior_hidden = in.pointer<const T>();
    k.eps = in.steps<T>();
    k.weight_z = in.rows<T>();
    k.weight_out = in.rows<T>();
    k.prior_weight_z = in.rows<T>();
    k.prior_weight_mu = in.rows<T>();
    k.z = in.pointer<const T>();
    k.z0 = in.rows<T>();
    k.active = in.pointer<const T>();
    k.prior_active = in.pointer<const T>();
    k.grad_context = in.pointer<T>();
    k.grad_prior_context = in.pointer<T>();
    k.grad_out = in.pointer<T>();
    k.grad_eps = in.pointer<T>();
    k.grad_z0 = in.pointer<T>();
    k.grad_weight_z = in.pointer<T>();
    k.grad_weight_out = in.pointer<T>();
    k.grad_bias_out = in.pointer<T>();
    k.grad_prior_weight_z = in.pointer<T>();
    k.grad_prior_weight_mu = in.pointer<T>();
    k.grad_prior_bias_mu = in.pointer<T>();
    k.workspace = in.pointer<void>();
    run(entries<T>().posterior_backward, k, in);
}

// The inputs of a linear map: each K, x, weight, grad_x, grad_weight and its stride.
template <class T>
std::vector<MlpInput<T>> read_inputs(Arguments& in) {
    const int64_t count = in.size();
    if (count < 0 || count > kMlpInputs) throw std::logic_error("vssn_kernels._cpu: too many inputs");
    std::vector<MlpInput<T>> inputs(static_cast<size_t>(count));
    for (MlpInput<T>& input : inputs) {
        input.K = in.size();
        input.x = in.rows<T>();
        input.weight = in.rows<T>();
        input.grad_x = in.pointer<T>();
        input.grad_weight = in.pointer<T>();
        input.grad_weight_stride = in.size();
    }
    return inputs;
}

template <class T>
struct MlpForwardCall : MlpForward<T> {
    explicit MlpForwardCall(Arguments& in) : list(read_inputs<T>(in)) {
        this->inputs = static_cast<int>(list.size());
        this->input = list.data();
        this->threads = in.threads();
        this->N = in.size();
        this->M = in.size();
        this->O = in.size();
        this->activation = static_cast<Activation>(in.size());
        this->floored = in.flag();
        this->min_logvar = static_cast<T>(in.real());
        this->bias = in.pointer<const T>();
        this->weight_out = in.rows<T>();
        this->bias_out = in.pointer<const T>();
        this->out = in.pointer<T>();
        this->logvar = in.pointer<T>();
        this->hidden = in.pointer<T>();
        this->workspace = in.pointer<void>();
    }
    std::vector<MlpInput<T>> list;
};

template <class T>
struct MlpBackwardCall : MlpBackward<T> {
    explicit MlpBackwardCall(Arguments& in) : list(read_inputs<T>(in)) {
        this->inputs = static_cast<int>(list.size());
        this->input = list.data();
        this->threads = in.threads();
        this->N = in.size();
        this->M = in.size();
        this->O = in.size();
        this->activation = static_cast<Activation>(in.size());
        this->floored = in.flag();
        this->min_logvar = static_cast<T>(in.real());
        this->weight_out = in.rows<T>();
        this->grad_out = in.rows<T>();
        this->grad_logvar = in.rows<T>();
        this->logvar = in.pointer<const T>();
        this->hidden = in.pointer<const T>();
        this->grad_bias = in.pointer<T>();
        this->grad_weight_out = in.pointer<T>();
        this->grad_bias_out = in.pointer<T>();
        this->workspace = in.pointer<void>();
    }
    std::vector<MlpInput<T>> list;
};

template <class T>
void mlp_forward(Arguments in) {
    const MlpForwardCall<T> k(in);
    run(entries<T>().mlp_forward, k, in);
}

template <class T>
void mlp_backward(Arguments in) {
    const MlpBackwardCall<T> k(in);
    run(entries<T>().mlp_backward, k, in);
}

template <class T>
int64_t mlp_forward_workspace(Arguments in) {
    return entries<T>().mlp_forward_workspace(MlpForwardCall<T>(in));
}

template <class T>
int64_t mlp_backward_workspace(Arguments in) {
    return entries<T>().mlp_backward_workspace(MlpBackwardCall<T>(in));
}

template <class T>
void bernoulli(Arguments in) {
    const bool backward = in.flag();
    Bernoulli<T> k{};
    k.threads = in.threads();
    k.N = in.size();
    k.X = in.size();
    k.logits = in.rows<T>();
    k.x = in.rows<T>();
    if (backward) {
        k.grad = in.rows<T>();
        k.grad_logits = in.pointer<T>();
        k.grad_x = in.pointer<T>();
    } else {
        k.log_prob = in.pointer<T>();
    }
    run(backward ? entries<T>().bernoulli_backward : entries<T>().bernoulli_forward, k, in);
}

template <class T>
void evaluate(Arguments in) {
    const auto function = static_cast<Function>(in.size());
    const T* x = in.pointer<const T>();
    T* y = in.pointer<T>();
    const int64_t count = in.size();
    in.done();
    entries<T>().evaluate(function, x, y, count);
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

template <auto single, auto twice>
void define(py::module_& module, const char* name) {
    module.def(name,
               [](bool float64, const py::args& values) { return (float64 ? twice : single)(Arguments(values)); });
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
    module.doc() = "The CPU kernels of vssn_kernels; use them through vssn_kernels.backend.cpu.";
    define<gaussian_forward<float>, gaussian_forward<double>>(module, "gaussian_forward");
    define<gaussian_backward<float>, gaussian_backward<double>>(module, "gaussian_backward");
    define<gru_forward<float>, gru_forward<double>>(module, "gru_forward");
    define<gru_backward<float>, gru_backward<double>>(module, "gru_backward");
    module.def("gru_workspace", [](bool float64, int64_t steps, int64_t B, int64_t H, bool backward) {
        return (float64 ? kernels().f64.gru_workspace : kernels().f32.gru_workspace)(steps, B, H, backward);
    });
    define<posterior_forward<float>, posterior_forward<double>>(module, "posterior_forward");
    define<posterior_backward<float>, posterior_backward<double>>(module, "posterior_backward");
    module.def("posterior_workspace", [](bool float64, int64_t B, int64_t M, int64_t Z, bool prior, bool backward) {
        return (float64 ? kernels().f64.posterior_workspace : kernels().f32.posterior_workspace)(B, M, Z, prior,
                                                                                                 backward);
    });
    define<mlp_forward<float>, mlp_forward<double>>(module, "mlp_forward");
    define<mlp_forward_workspace<float>, mlp_forward_workspace<double>>(module, "mlp_forward_workspace");
    define<mlp_backward<float>, mlp_backward<double>>(module, "mlp_backward");
    define<mlp_backward_workspace<float>, mlp_backward_workspace<double>>(module, "mlp_backward_workspace");
    define<bernoulli<float>, bernoulli<double>>(module, "bernoulli");
    define<evaluate<float>, evaluate<double>>(module, "evaluate");
    module.def("shorten_waits", shorten_waits, py::call_guard<py::gil_scoped_release>());
    module.def("waits_are_short", waits_are_short);
    module.def("crowded", crowded);
    module.def("waiting_cpu_seconds", waiting_cpu_seconds, py::call_guard<py::gil_scoped_release>());
    module.def("isa", [] { return kernels().isa; });
    module.attr("compiler") = "g++ " __VERSION__;
}

}  // namespace vssn

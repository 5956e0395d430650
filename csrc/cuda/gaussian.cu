// gaussian.h's kernels: every input read once, every output written once.
//
// A row belongs to `width` neighbouring lanes of a warp (a power of two, 32 / width rows to a warp), which take its
// elements E at a time: 16 bytes where addresses, strides and Z allow it, else 4 or a single element. The row's sum is
// a butterfly over the lanes, so its bits depend on Z alone.
#include "gaussian.h"

#include <stdexcept>
#include <string>

#include "../common/cell.h"
#include "primitives.cuh"

namespace vssn {

namespace {

using gpu::Math;
using gpu::Vector;

constexpr int kThreads = 256;

template <class T>
struct Rows {
    const T* data;
    int64_t stride;
};

// E elements of a row as floats; zeros where there is no tensor.
template <int E, class T>
VSSN_DEVICE Vector<float, E> load(const Rows<T>& rows, int64_t i, int64_t j) {
    Vector<float, E> values{};
    if (rows.data) {
        const auto stored = *reinterpret_cast<const Vector<T, E>*>(rows.data + i * rows.stride + j);
#pragma unroll
        for (int e = 0; e < E; ++e) values.v[e] = gpu::to_float(stored.v[e]);
    }
    return values;
}

template <int E, class T>
VSSN_DEVICE void store(T* out, int64_t at, const Vector<float, E>& values) {
    if (!out) return;
    Vector<T, E> stored;
#pragma unroll
    for (int e = 0; e < E; ++e) stored.v[e] = gpu::from_float<T>(values.v[e]);
    *reinterpret_cast<Vector<T, E>*>(out + at) = stored;
}

// The row of this lane, and where in it the lane begins.
VSSN_DEVICE int64_t own_row(int width) {
    return (static_cast<int64_t>(gpu::block_x()) * kThreads + gpu::thread_id()) / width;
}

template <class T>
struct ForwardParams {
    int64_t N, Z;
    int width;
    Rows<T> mu, logvar, eps, prior_mu, prior_logvar;
    T *z, *kl;
};

template <class T, int E>
VSSN_BOUNDED_KERNEL(kThreads)
forward_kernel(ForwardParams<T> p) {
    const int lane = gpu::lane_id() % p.width;
    const int64_t i = own_row(p.width);
    float sum = 0;
    if (i < p.N)
        for (int64_t j = lane * E; j < p.Z; j += p.width * E) {
            const auto mu = load<E>(p.mu, i, j), logvar = load<E>(p.logvar, i, j), eps = load<E>(p.eps, i, j),
                       prior_mu = load<E>(p.prior_mu, i, j), prior_logvar = load<E>(p.prior_logvar, i, j);
            Vector<float, E> z;
#pragma unroll
            for (int e = 0; e < E; ++e) {
                sum += twice_kl<Math>(mu.v[e], logvar.v[e], prior_mu.v[e], prior_logvar.v[e]);
                z.v[e] = mu.v[e] + standard_deviation<Math>(logvar.v[e]) * eps.v[e];
            }
            store<E>(p.z, i * p.Z + j, z);
        }
    sum = gpu::sum_over_lanes(sum, p.width);
    if (i < p.N && lane == 0) p.kl[i] = gpu::from_float<T>(sum * 0.5f);
}

template <class T>
struct BackwardParams {
    int64_t N, Z;
    int width;
    Rows<T> mu, logvar, eps, prior_mu, prior_logvar, grad_z, grad_kl;
    T *grad_mu, *grad_logvar, *grad_eps, *grad_prior_mu, *grad_prior_logvar;
};

template <class T, int E>
VSSN_BOUNDED_KERNEL(kThreads)
backward_kernel(BackwardParams<T> p) {
    const int64_t i = own_row(p.width);
    if (i >= p.N) return;
    const float grad_kl = p.grad_kl.data ? gpu::to_float(p.grad_kl.data[i * p.grad_kl.stride]) : 0.0f;
    for (int64_t j = gpu::lane_id() % p.width * E; j < p.Z; j += p.width * E) {
        const auto mu = load<E>(p.mu, i, j), logvar = load<E>(p.logvar, i, j), eps = load<E>(p.eps, i, j),
                   prior_mu = load<E>(p.prior_mu, i, j), prior_logvar = load<E>(p.prior_logvar, i, j),
                   grad_z = load<E>(p.grad_z, i, j);
        Vector<float, E> grad_mu, grad_logvar, grad_eps, grad_prior_mu, grad_prior_logvar;
#pragma unroll
        for (int e = 0; e < E; ++e) {
            const auto of_kl = kl_grads<Math>(mu.v[e], logvar.v[e], prior_mu.v[e], prior_logvar.v[e], grad_kl);
            grad_eps.v[e] = grad_z.v[e] * standard_deviation<Math>(logvar.v[e]);
            grad_mu.v[e] = of_kl.mu + grad_z.v[e];
            grad_logvar.v[e] = of_kl.logvar + grad_eps.v[e] * eps.v[e] * 0.5f;
            grad_prior_mu.v[e] = -of_kl.mu;
            grad_prior_logvar.v[e] = of_kl.prior_logvar;
        }
        const int64_t at = i * p.Z + j;
        store<E>(p.grad_mu, at, grad_mu);
        store<E>(p.grad_logvar, at, grad_logvar);
        store<E>(p.grad_eps, at, grad_eps);
        store<E>(p.grad_prior_mu, at, grad_prior_mu);
        store<E>(p.grad_prior_logvar, at, grad_prior_logvar);
    }
}

// ---- Launchers --------------------------------------------------------------------------------------------------

// Whether accesses of `bytes` bytes meet this tensor's elements at their own addresses only.
bool aligned(const void* data, int64_t stride, int64_t element_bytes, int64_t bytes) {
    return !data || (reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(bytes) == 0 &&
                     stride * element_bytes % bytes == 0);
}

template <class T>
Rows<T> typed(const TensorRows& rows) {
    return {static_cast<const T*>(rows.data), rows.stride};
}

template <class Params>
void launch(const char* name, void (*kernel)(Params), Params params, int elements, void* stream) {
    params.width = 1;
    while (params.width < gpu::kWarp && params.width * elements < params.Z) params.width *= 2;
    const int64_t rows = kThreads / params.width;
    gpu::Launch shape;
    shape.grid_x = (params.N + rows - 1) / rows;
    shape.threads = kThreads;
    shape.stream = stream;
    if (const char* error = gpu::launch(kernel, shape, params))
        throw std::runtime_error(std::string(name) + ": N = " + std::to_string(params.N) +
                                 ", Z = " + std::to_string(params.Z) + ": " + error);
}

template <class T, size_t inputs, size_t outputs>
bool all_aligned(const TensorRows (&in)[inputs], void* const (&out)[outputs], int64_t Z, int64_t bytes) {
    bool result = Z * static_cast<int64_t>(sizeof(T)) % bytes == 0;
    for (const TensorRows& rows : in) result = result && aligned(rows.data, rows.stride, sizeof(T), bytes);
    for (const void* data : out) result = result && aligned(data, Z, sizeof(T), bytes);
    return result;
}

template <class T>
void forward(const GaussianForward& c) {
    const ForwardParams<T> params{c.N,
                                  c.Z,
                                  0,
                                  typed<T>(c.mu),
                                  typed<T>(c.logvar),
                                  typed<T>(c.eps),
                                  typed<T>(c.prior_mu),
                                  typed<T>(c.prior_logvar),
                                  static_cast<T*>(c.z),
                                  static_cast<T*>(c.kl)};
    const TensorRows in[] = {c.mu, c.logvar, c.eps, c.prior_mu, c.prior_logvar};
    void* const out[] = {c.z};
    constexpr int kFull = 16 / sizeof(T), kHalf = 4 / sizeof(T);
    const char* name = "gaussian_forward";
    if (all_aligned<T>(in, out, c.Z, 16)) return launch(name, forward_kernel<T, kFull>, params, kFull, c.stream);
    if (all_aligned<T>(in, out, c.Z, 4)) return launch(name, forward_kernel<T, kHalf>, params, kHalf, c.stream);
    launch(name, forward_kernel<T, 1>, params, 1, c.stream);
}

template <class T>
void backward(const GaussianBackward& c) {
    const BackwardParams<T> params{c.N,
                                   c.Z,
                                   0,
                                   typed<T>(c.mu),
                                   typed<T>(c.logvar),
                                   typed<T>(c.eps),
                                   typed<T>(c.prior_mu),
                                   typed<T>(c.prior_logvar),
                                   typed<T>(c.grad_z),
                                   typed<T>(c.grad_kl),
                                   static_cast<T*>(c.grad_mu),
                                   static_cast<T*>(c.grad_logvar),
                                   static_cast<T*>(c.grad_eps),
                                   static_cast<T*>(c.grad_prior_mu),
                                   static_cast<T*>(c.grad_prior_logvar)};
    const TensorRows in[] = {c.mu, c.logvar, c.eps, c.prior_mu, c.prior_logvar, c.grad_z};
    void* const out[] = {c.grad_mu, c.grad_logvar, c.grad_eps, c.grad_prior_mu, c.grad_prior_logvar};
    constexpr int kFull = 16 / sizeof(T), kHalf = 4 / sizeof(T);
    const char* name = "gaussian_backward";
    if (all_aligned<T>(in, out, c.Z, 16)) return launch(name, backward_kernel<T, kFull>, params, kFull, c.stream);
    if (all_aligned<T>(in, out, c.Z, 4)) return launch(name, backward_kernel<T, kHalf>, params, kHalf, c.stream);
    launch(name, backward_kernel<T, 1>, params, 1, c.stream);
}

}  // namespace

void gaussian_forward(const GaussianForward& call) {
    if (call.storage == Storage::float32) return forward<float>(call);
    if (call.storage == Storage::bfloat16) return forward<gpu::bfloat16>(call);
    forward<gpu::float16>(call);
}

void gaussian_backward(const GaussianBackward& call) {
    if (call.storage == Storage::float32) return backward<float>(call);
    if (call.storage == Storage::bfloat16) return backward<gpu::bfloat16>(call);
    backward<gpu::float16>(call);
}

}  // namespace vssn

// What the checks of all kernels share: values drawn, memory that starts as NaN, comparisons that count.
#pragma once

#include <math.h>
#include <stdio.h>

#include <functional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "../kernels.h"
#include "plain.h"

namespace checks {

using namespace vssn;

inline int failures = 0, compared = 0;

inline void check_close(const std::string& what, double actual, double expected, double tolerance) {
    ++compared;
    if (fabs(actual - expected) <= tolerance * (1 + fabs(expected))) return;
    ++failures;
    printf("FAILED %s: %.9g, expected %.9g\n", what.c_str(), actual, expected);
}

template <class T>
void check_close(const std::string& what, const std::vector<T>& actual, const Array& expected, double tolerance) {
    double difference = 0, scale = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
        difference += (actual[i] - expected[i]) * (actual[i] - expected[i]);
        scale += expected[i] * expected[i];
    }
    check_close(what, sqrt(difference / (scale + 1e-30)), 0, tolerance);
}

inline std::mt19937 generator(1);

// Each case has numbers of its own, whatever runs before it.
inline void draw_anew(const std::string& name) {
    std::seed_seq letters(name.begin(), name.end());
    generator.seed(letters);
}

inline Array normal(int64_t count, double scale = 1) {
    std::normal_distribution<double> distribution(0, scale);
    Array values(count);
    for (double& value : values) value = distribution(generator);
    return values;
}

inline double dot(const Array& a, const Array& b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
}

inline Array plus(const Array& a, const Array& b, double factor) {
    Array sum(a);
    for (size_t i = 0; i < a.size(); ++i) sum[i] += factor * b[i];
    return sum;
}

template <class T>
std::vector<T> cast(const Array& values) {
    return std::vector<T>(values.begin(), values.end());
}

template <class T>
std::vector<T> fresh(int64_t count) {
    return std::vector<T>(count, T(NAN));
}

// [T, B, width] with `gap` entries of NaN behind every row but the last, and NaN at padding.
template <class T>
struct Sequence {
    std::vector<T> data;
    int64_t B, stride;
    Sequence(const Array& values, int64_t steps, int64_t batch, int64_t width, const int64_t* lengths, int64_t gap)
        : data(steps * batch > 0 ? steps * batch * (width + gap) - gap : 0, T(NAN)), B(batch), stride(width + gap) {
        for (int64_t row = 0; row < steps * batch; ++row)
            for (int64_t i = 0; i < width && !(lengths && row / batch >= lengths[row % batch]); ++i)
                data[row * stride + i] = T(values[row * width + i]);
    }
    Steps<const T> view() const { return {data.data(), B * stride, stride}; }
};

inline const KernelTable* table = nullptr;  // of the kernels that are checked

template <class T>
const Kernels<T>& entries() {
    if constexpr (sizeof(T) == 2)
        return *table->bf16;
    else if constexpr (sizeof(T) == 4)
        return *table->f32;
    else
        return *table->f64;
}

inline Array rounded(const Array& values) {
    Array all;
    for (double value : values) all.push_back(float(BFloat16(float(value))));
    return all;
}

// The derivative of f at 0 by differences.
inline double slope(const std::function<double(double)>& f) { return (f(1e-5) - f(-1e-5)) / 2e-5; }

// run(tolerance of outputs): the gradients; of a problem whose values are as rounded() gives them.
inline void check_bfloat16(const std::string& name, const std::function<Array(double)>& run, const Array& grads) {
    const Array found = run(1e-2);
    check_close(name + " bfloat16 backward", found, grads, 3e-2);
    const KernelTable* own = std::exchange(table, &generic::table);
    check_close(name + " bfloat16 as generic", found, run(1e-2), 1e-3);
    table = own;
}

// On memory that starts as NaN.
template <class Problem>
void call(void (*kernel)(const Problem&, void*), int64_t (*bytes)(const Problem&), const Problem& problem) {
    std::vector<char> workspace(bytes(problem), char(-1));
    kernel(problem, workspace.data());
}

}  // namespace checks

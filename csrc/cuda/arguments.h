// What the bindings share: numbers from Python read one after another.
//
// A bound function takes numbers alone, in the order in which its body reads them: sizes, addresses (0: no tensor),
// strides in elements. vssn_kernels/backend/cuda, the only caller, has checked and allocated everything.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "storage.h"

namespace vssn {

class Arguments {
  public:
    explicit Arguments(const pybind11::args& values) : values_(values) {}

    int64_t size() {
        const int64_t value = PyLong_AsLongLong(next());
        if (value == -1 && PyErr_Occurred()) throw pybind11::error_already_set();
        return value;
    }
    int integer() { return static_cast<int>(size()); }
    bool flag() { return size() != 0; }
    float real() {
        const double value = PyFloat_AsDouble(next());
        if (value == -1 && PyErr_Occurred()) throw pybind11::error_already_set();
        return static_cast<float>(value);
    }
    Storage storage() {
        const int value = integer();
        if (value < 0 || value > 2)
            throw std::logic_error("vssn_kernels._cuda: unknown storage " + std::to_string(value));
        return static_cast<Storage>(value);
    }
    template <class T = void>
    T* pointer() {
        return reinterpret_cast<T*>(static_cast<intptr_t>(size()));
    }
    // Notices when caller and callee disagree on how many numbers there are.
    void done() const {
        if (next_ != values_.size()) throw std::logic_error("vssn_kernels._cuda: too many arguments");
    }

  private:
    PyObject* next() {
        if (next_ >= values_.size()) throw std::logic_error("vssn_kernels._cuda: too few arguments");
        return PyTuple_GET_ITEM(values_.ptr(), next_++);
    }

    const pybind11::args& values_;
    size_t next_ = 0;
};

}  // namespace vssn

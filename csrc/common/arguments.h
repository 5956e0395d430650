// Functions of a Python module that take the fields of a struct (fields.h) by name.
//
// They take keywords alone, in any order: each field's, and no other. One that is missing, unknown or of a wrong type
// is a TypeError with the names of the function and of the argument. The module's dict `fields` tells what each
// function takes.
//
//     int, int64_t                   an int, where a bool is none
//     float, double                  a float or an int
//     bool                           a bool
//     a pointer                      an address; 0: no tensor
//     VSSN_TENSOR                    a tuple: the address, then the strides
//     VSSN_ENUM                      a value's name
//     List                           a list or a tuple
//     any other struct with fields   no argument: its fields stand in its place
//
// Where a call has the value of each field is found once for the call's tuple of names, which is a constant of the
// calling code. A call of 15 arguments takes 0.5 us, a little less than by position; more than these Python puts into a
// dict first, which adds 0.5 us at 18 arguments and 1 us at 35.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <iterator>
#include <new>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "fields.h"

namespace vssn {

// ---- What a struct has -----------------------------------------------------------------------------------

namespace fields {

template <class S, class = void>
struct IsTensor : std::false_type {};
template <class S>
struct IsTensor<S, typename S::Tensor> : std::true_type {};

template <class S>
struct IsList : std::false_type {};
template <class T, int most>
struct IsList<List<T, most>> : std::true_type {};

// Its fields are arguments, it is none.
template <class S>
constexpr bool is_group = std::is_class_v<S> && !IsTensor<S>::value && !IsList<S>::value;

// Whether S can be initialised with as many values as there are indices: with one for each of its members, and no more.
template <size_t>
struct Anything {
    template <class T>
    operator T() const;
};
template <class S, class Indices, class = void>
struct Takes : std::false_type {};
template <class S, size_t... i>
struct Takes<S, std::index_sequence<i...>, std::void_t<decltype(S{Anything<i>{}...})>> : std::true_type {};
template <class S, int count>
constexpr bool takes = Takes<S, std::make_index_sequence<count>>::value;

template <class S>
constexpr bool complete = takes<S, S::members()> && !takes<S, S::members() + 1>;

inline std::vector<std::string> split(const char* names) {
    std::vector<std::string> found(1);
    for (; *names; ++names) {
        if (*names == ',')
            found.emplace_back();
        else if (*names != ' ')
            found.back() += *names;
    }
    return found;
}

inline std::vector<PyObject*> interned(const std::vector<std::string>& names) {
    std::vector<PyObject*> found;
    for (const std::string& name : names) found.push_back(PyUnicode_InternFromString(name.c_str()));
    return found;
}

template <class Enum>
const std::vector<PyObject*>& value_names() {
    static const std::vector<PyObject*> names = interned(split(names_of(Enum{})));
    return names;
}

// What is expected of a value for a field of type T.
template <class T>
std::string kind() {
    if constexpr (std::is_same_v<T, bool>) {
        return "a bool";
    } else if constexpr (std::is_enum_v<T>) {
        return std::string("one of ") + names_of(T{});
    } else if constexpr (std::is_integral_v<T>) {
        return "an int";
    } else if constexpr (std::is_floating_point_v<T>) {
        return "a float";
    } else if constexpr (std::is_pointer_v<T>) {
        return "an address";
    } else if constexpr (IsList<T>::value) {
        return "a list, each " + kind<std::decay_t<decltype(T{}[0])>>();
    } else {
        std::string text;
        T{}.visit([&](const char* names, auto&...) { text = std::string("a tuple (") + names + ")"; });
        return text;
    }
}

// Whether the value is one for such a field; it then holds it.
template <class T>
bool set(T& field, PyObject* value) {
    if constexpr (std::is_same_v<T, bool>) {
        field = value == Py_True;
        return PyBool_Check(value);
    } else if constexpr (std::is_enum_v<T>) {
        const std::vector<PyObject*>& names = value_names<T>();
        if (!PyUnicode_Check(value)) return false;
        for (size_t i = 0; i < names.size(); ++i) {
            field = static_cast<T>(i);
            if (value == names[i] || PyUnicode_Compare(value, names[i]) == 0) return true;
        }
        return false;
    } else if constexpr (std::is_integral_v<T>) {
        if (!PyLong_Check(value) || PyBool_Check(value)) return false;
        const long long number = PyLong_AsLongLong(value);
        field = static_cast<T>(number);
        return field == number && !(number == -1 && PyErr_Occurred());
    } else if constexpr (std::is_floating_point_v<T>) {
        if (!PyFloat_Check(value) && (!PyLong_Check(value) || PyBool_Check(value))) return false;
        const double number = PyFloat_AsDouble(value);
        field = static_cast<T>(number);
        return !(number == -1 && PyErr_Occurred());
    } else if constexpr (std::is_pointer_v<T>) {
        intptr_t address = 0;
        const bool right = set(address, value);
        field = reinterpret_cast<T>(address);
        return right;
    } else if constexpr (IsList<T>::value) {
        if (!PyList_Check(value) && !PyTuple_Check(value)) return false;
        const Py_ssize_t count = PySequence_Fast_GET_SIZE(value);
        if (count > static_cast<Py_ssize_t>(std::size(field.values))) return false;
        field.count = static_cast<int>(count);
        for (int i = 0; i < field.count; ++i)
            if (!set(field.values[i], PySequence_Fast_GET_ITEM(value, i))) return false;
        return true;
    } else {
        static_assert(IsTensor<T>::value && complete<T>, "VSSN_TENSOR must name every member");
        bool right = false;
        field.visit([&](const char*, auto&... parts) {
            if (!PyTuple_Check(value) || PyTuple_GET_SIZE(value) != sizeof...(parts)) return;
            Py_ssize_t i = 0;
            right = (set(parts, PyTuple_GET_ITEM(value, i++)) && ...);
        });
        return right;
    }
}

}  // namespace fields

template <class Enum>
pybind11::object name_of(Enum value) {
    return pybind11::reinterpret_borrow<pybind11::object>(fields::value_names<Enum>()[static_cast<size_t>(value)]);
}

// ---- Reading a call --------------------------------------------------------------------------------------

// The arguments of a function, and where its calls have their values.
class Signature {
  public:
    explicit Signature(std::string function) : function_(std::move(function)) {}

    // Behind those that are there, the fields of S.
    template <class S>
    void add() {
        static_assert(fields::complete<S>, "VSSN_FIELDS must name every member");
        S().visit([&](const char* text, auto&... members) {
            const std::vector<std::string> names = fields::split(text);
            size_t i = 0;
            (add(names[i++], members), ...);
        });
    }

    // For each argument its place among the values of a call whose keywords are `given`: a tuple, or null for none.
    const std::vector<int>& places(PyObject* given) {
        if (!given || (given != known_.ptr() && !same_as_known(given))) learn(given);
        return places_;
    }

    const std::string& function() const { return function_; }
    const std::string& name(size_t i) const { return names_[i]; }

    pybind11::dict describe() const {
        pybind11::dict kinds;
        for (size_t i = 0; i < names_.size(); ++i) kinds[names_[i].c_str()] = kinds_[i];
        return kinds;
    }

  private:
    template <class T>
    void add(const std::string& name, T&) {
        if constexpr (fields::is_group<T>) {
            add<T>();
        } else {
            names_.push_back(name);
            kinds_.push_back(fields::kind<T>());
            keys_.push_back(PyUnicode_InternFromString(name.c_str()));
        }
    }

    // A tuple of a dict's keys is made for each call, but holds the same names.
    bool same_as_known(PyObject* given) const {
        if (!given || !known_ || PyTuple_GET_SIZE(given) != PyTuple_GET_SIZE(known_.ptr())) return false;
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(given); ++i)
            if (PyTuple_GET_ITEM(given, i) != PyTuple_GET_ITEM(known_.ptr(), i)) return false;
        return true;
    }

    void learn(PyObject* given) {
        const Py_ssize_t count = given ? PyTuple_GET_SIZE(given) : 0;
        std::vector<int> places(keys_.size(), -1);
        for (Py_ssize_t at = 0; at < count; ++at) {
            PyObject* name = PyTuple_GET_ITEM(given, at);
            size_t i = 0;
            while (i < keys_.size() && name != keys_[i] && PyUnicode_Compare(name, keys_[i]) != 0) ++i;
            if (i == keys_.size())
                throw pybind11::type_error(function_ + ": there is no argument '" +
                                           pybind11::str(name).cast<std::string>() + "'; it takes " + all());
            places[i] = static_cast<int>(at);
        }
        for (size_t i = 0; i < places.size(); ++i)
            if (places[i] < 0) throw pybind11::type_error(function_ + ": argument '" + names_[i] + "' is missing");
        places_ = std::move(places);
        known_ = pybind11::reinterpret_borrow<pybind11::object>(given);
    }

    std::string all() const {
        std::string text;
        for (const std::string& name : names_) text += (text.empty() ? "" : ", ") + name;
        return text;
    }

    std::string function_;
    std::vector<std::string> names_, kinds_;
    std::vector<PyObject*> keys_;  // the names, interned
    pybind11::object known_;       // the names of the last call, and the places of their values
    std::vector<int> places_;
};

// Reads a call's values into structs, in the order in which its signature has them.
class Arguments {
  public:
    Arguments(Signature& signature, PyObject* const* values, PyObject* names)
        : signature_(signature), places_(signature.places(names).data()), values_(values) {}

    template <class S>
    S read() {
        S result{};
        fill(result);
        return result;
    }

  private:
    template <class S>
    void fill(S& group) {
        group.visit([&](const char*, auto&... members) { (take(members), ...); });
    }

    template <class T>
    void take(T& field) {
        if constexpr (fields::is_group<T>) {
            fill(field);
        } else {
            if (!fields::set(field, values_[places_[next_]])) refuse(fields::kind<T>());
            ++next_;
        }
    }

    [[noreturn]] void refuse(const std::string& expected) const {
        PyErr_Clear();  // of a number that is too large
        throw pybind11::type_error(signature_.function() + ": " + signature_.name(next_) + " must be " + expected +
                                   ", got " + pybind11::repr(values_[places_[next_]]).cast<std::string>());
    }

    const Signature& signature_;
    const int* places_;
    PyObject* const* values_;
    size_t next_ = 0;
};

// ---- Functions -------------------------------------------------------------------------------------------

// Adds a function to the module that takes the signature's arguments and runs `body`. It lives as long as the process.
inline void define(pybind11::module_& module, const char* name, Signature signature,
                   std::function<pybind11::object(Arguments&)> body) {
    struct Function {
        Signature signature;
        std::function<pybind11::object(Arguments&)> body;
        PyMethodDef method;

        static PyObject* call(PyObject* self, PyObject* const* values, Py_ssize_t by_position, PyObject* names) {
            auto& function = *static_cast<Function*>(PyCapsule_GetPointer(self, nullptr));
            try {
                if (by_position > 0)
                    throw pybind11::type_error(function.signature.function() + ": arguments are passed by name");
                Arguments in(function.signature, values, names);
                return function.body(in).release().ptr();
            } catch (pybind11::error_already_set& error) {
                error.restore();
            } catch (const pybind11::builtin_exception& error) {
                error.set_error();
            } catch (const std::bad_alloc&) {
                PyErr_NoMemory();
            } catch (const std::exception& error) {
                PyErr_SetString(PyExc_RuntimeError, error.what());
            }
            return nullptr;
        }
    };
    if (!pybind11::hasattr(module, "fields")) module.attr("fields") = pybind11::dict();
    module.attr("fields")[name] = signature.describe();
    auto* function = new Function{std::move(signature), std::move(body), {}};
    auto* entry = reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&Function::call));
    function->method = {name, entry, METH_FASTCALL | METH_KEYWORDS, nullptr};
    const auto self = pybind11::reinterpret_steal<pybind11::object>(PyCapsule_New(function, nullptr, nullptr));
    PyObject* bound = PyCFunction_NewEx(&function->method, self.ptr(), module.attr("__name__").ptr());
    module.add_object(name, pybind11::reinterpret_steal<pybind11::object>(bound));
}

inline Signature signature_of(const pybind11::module_& module, const char* name) {
    return Signature(module.attr("__name__").cast<std::string>() + "." + name);
}

// What `run` gives, as Python has it.
template <class Run, class... Given>
pybind11::object result_of(const Run& run, const Given&... given) {
    using Result = decltype(run(given...));
    if constexpr (std::is_void_v<Result>) {
        run(given...);
        return pybind11::none();
    } else if constexpr (std::is_base_of_v<pybind11::object, Result>) {
        return run(given...);
    } else {
        return pybind11::cast(run(given...));
    }
}

// The function that fills a Problem and runs `run` with it.
template <class Problem, class Run>
void define(pybind11::module_& module, const char* name, Run run) {
    Signature signature = signature_of(module, name);
    signature.add<Problem>();
    define(module, name, std::move(signature), [run](Arguments& in) { return result_of(run, in.read<Problem>()); });
}

}  // namespace vssn

// Structs that tell the names of their fields, so that arguments.h fills them by name:
//
//     struct Problem {
//         int64_t N;
//         const float* x;
//         VSSN_FIELDS(N, x)
//     };
#pragma once

// Names all fields, in the order of their declaration: arguments.h does not compile where one is left out. `visit`
// gives its visitor the names as one text, and the fields.
#define VSSN_FIELDS(...)                                                    \
    static constexpr int members() { return vssn::names_in(#__VA_ARGS__); } \
    template <class Visitor>                                                \
    void visit(Visitor&& visitor) {                                         \
        visitor(#__VA_ARGS__, __VA_ARGS__);                                 \
    }

// The same where a struct is derived from one with fields, which come first.
#define VSSN_MORE_FIELDS(Base, ...)                                             \
    static constexpr int members() { return 1 + vssn::names_in(#__VA_ARGS__); } \
    template <class Visitor>                                                    \
    void visit(Visitor&& visitor) {                                             \
        Base::visit(visitor);                                                   \
        visitor(#__VA_ARGS__, __VA_ARGS__);                                     \
    }

// The same of a struct that is one value: an address and its strides in elements.
#define VSSN_TENSOR(...) \
    using Tensor = void; \
    VSSN_FIELDS(__VA_ARGS__)

// An enum, from 0 on, whose values have their names outside as well.
#define VSSN_ENUM(Name, ...)               \
    enum class Name : int { __VA_ARGS__ }; \
    constexpr const char* names_of(Name) { return #__VA_ARGS__; }

namespace vssn {

constexpr int names_in(const char* text) {
    int count = 1;
    for (; *text; ++text) count += *text == ',';
    return count;
}

// At most `most` values.
template <class T, int most>
struct List {
    int count;
    T values[most];
    const T& operator[](int i) const { return values[i]; }
};

}  // namespace vssn

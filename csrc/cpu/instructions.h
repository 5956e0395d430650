// The instructions that multiply BFloat16: of AVX512-BF16, and the tiles of AMX.
//
// With VSSN_EMULATED (and VSSN_EMULATED_TILES) they are plain C++ that does what Intel's manual says of them, so that
// the kernels made of them run on any processor, watched by sanitizers. Both round every multiply-add to the nearest
// float, take denormal numbers for zeros and give zeros in their place, whatever the thread's own settings are.
#pragma once

#include "simd.h"

#if defined(VSSN_EMULATED)
#define VSSN_BF16_DOTS
#if defined(VSSN_EMULATED_TILES)
#define VSSN_BF16_TILES
#endif
#include <math.h>
#include <stdlib.h>
#else
#if defined(__AVX512BF16__)
#define VSSN_BF16_DOTS
#endif
#if defined(__AMX_BF16__)
#define VSSN_BF16_TILES
#endif
#endif

namespace vssn::VSSN_ISA {

#if defined(VSSN_EMULATED)

inline float without_denormals(float x) { return fabsf(x) < 1.17549435e-38f ? copysignf(0, x) : x; }

inline float emulated_add(float sum, BFloat16 x, BFloat16 w) {
    return without_denormals(fmaf(without_denormals(x), without_denormals(w), without_denormals(sum)));
}

#endif

// ---- AVX512-BF16 -----------------------------------------------------------------------------------------

#if defined(VSSN_BF16_DOTS)

// In each lane sum + x.second w.second + x.first w.first, in this order.
#if defined(VSSN_EMULATED)
inline FloatVector dot_pairs(FloatVector sum, Int32Vector x, Int32Vector w) {
    constexpr int L = kLanes<float>;
    BFloat16 left[2 * L], right[2 * L];
    __builtin_memcpy(left, &x, sizeof x);
    __builtin_memcpy(right, &w, sizeof w);
    for (int i = 0; i < L; ++i)
        for (int part = 1; part >= 0; --part) sum[i] = emulated_add(sum[i], left[2 * i + part], right[2 * i + part]);
    return sum;
}
#else
VSSN_INLINE FloatVector dot_pairs(FloatVector sum, Int32Vector x, Int32Vector w) {
    return (FloatVector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)w);
}
#endif

#endif

// ---- AMX -------------------------------------------------------------------------------------------------

#if defined(VSSN_BF16_TILES)

constexpr int kTiles = 8, kTileRowBytes = 64, kMostTileRows = 16;
constexpr int kLeftTile = 6, kRightTile = 7;  // the others are sums

// As the processor reads it.
struct TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

#if defined(VSSN_EMULATED)

struct EmulatedTiles {
    TileShapes shapes;
    char data[kTiles][kMostTileRows][kTileRowBytes];
};
inline thread_local EmulatedTiles emulated_tiles;

inline void require(bool right) {
    if (!right) abort();  // where the processor raises #UD
}

inline void configure_tiles(const TileShapes& shapes) {
    for (int tile = 0; tile < kTiles; ++tile)
        require(shapes.palette == 1 && shapes.rows[tile] <= kMostTileRows && shapes.row_bytes[tile] <= kTileRowBytes);
    emulated_tiles = {shapes, {}};
}

inline void release_tiles() { emulated_tiles = {}; }

template <int tile>
inline void clear_tile() {
    require(emulated_tiles.shapes.rows[tile] > 0);
    for (auto& row : emulated_tiles.data[tile]) __builtin_memset(row, 0, sizeof row);
}

template <int tile>
inline void load_tile(const void* p, int64_t stride_bytes) {
    clear_tile<tile>();
    const TileShapes& shapes = emulated_tiles.shapes;
    for (int row = 0; row < shapes.rows[tile]; ++row)
        __builtin_memcpy(emulated_tiles.data[tile][row], static_cast<const char*>(p) + row * stride_bytes,
                         shapes.row_bytes[tile]);
}

template <int tile>
inline void store_tile(void* p, int64_t stride_bytes) {
    const TileShapes& shapes = emulated_tiles.shapes;
    require(shapes.rows[tile] > 0);
    for (int row = 0; row < shapes.rows[tile]; ++row)
        __builtin_memcpy(static_cast<char*>(p) + row * stride_bytes, emulated_tiles.data[tile][row],
                         shapes.row_bytes[tile]);
}

// The even and the odd entries of a row of the left tile have a chain of multiply-adds each.
template <int tile>
inline void multiply_tiles() {
    const TileShapes& shapes = emulated_tiles.shapes;
    const int rows = shapes.rows[tile], columns = shapes.row_bytes[tile] / 4, K = shapes.row_bytes[kLeftTile] / 4;
    require(rows > 0 && rows == shapes.rows[kLeftTile] && K == shapes.rows[kRightTile] &&
            shapes.row_bytes[tile] == shapes.row_bytes[kRightTile]);
    auto& data = emulated_tiles.data;
    const auto entry = [&](int number, int row, int column) {
        BFloat16 value;
        __builtin_memcpy(&value, data[number][row] + 2 * column, sizeof value);
        return value;
    };
    for (int i = 0; i < rows; ++i)
        for (int j = 0; j < columns; ++j) {
            float parts[2] = {}, sum;
            for (int k = 0; k < K; ++k)
                for (int part = 0; part < 2; ++part)
                    parts[part] = emulated_add(parts[part], entry(kLeftTile, i, 2 * k + part),
                                               entry(kRightTile, k, 2 * j + part));
            __builtin_memcpy(&sum, data[tile][i] + 4 * j, sizeof sum);
            sum = without_denormals(without_denormals(sum) + without_denormals(parts[0] + parts[1]));
            __builtin_memcpy(data[tile][i] + 4 * j, &sum, sizeof sum);
        }
}

#else

// GCC's intrinsics take the tiles' numbers as text, and do not say that they read memory.
#define VSSN_MEMORY_IS_READ __asm__ volatile("" ::: "memory")
#define VSSN_OF_TILE(tile, call)  \
    if constexpr (tile == 0)      \
        call(0);                  \
    else if constexpr (tile == 1) \
        call(1);                  \
    else if constexpr (tile == 2) \
        call(2);                  \
    else if constexpr (tile == 3) \
        call(3);                  \
    else if constexpr (tile == 4) \
        call(4);                  \
    else if constexpr (tile == 5) \
        call(5);                  \
    else if constexpr (tile == 6) \
        call(6);                  \
    else                          \
        call(7)

VSSN_INLINE void configure_tiles(const TileShapes& shapes) {
    const void* whole = &shapes;  // of which the intrinsic would read the first 8 bytes alone
    __asm__ volatile("" : "+r"(whole) : : "memory");
    _tile_loadconfig(whole);
}

VSSN_INLINE void release_tiles() { _tile_release(); }

template <int tile>
VSSN_INLINE void clear_tile() {
#define VSSN_CALL(number) _tile_zero(number)
    VSSN_OF_TILE(tile, VSSN_CALL);
#undef VSSN_CALL
}

template <int tile>
VSSN_INLINE void load_tile(const void* p, int64_t stride_bytes) {
    VSSN_MEMORY_IS_READ;
#define VSSN_CALL(number) _tile_loadd(number, p, stride_bytes)
    VSSN_OF_TILE(tile, VSSN_CALL);
#undef VSSN_CALL
}

template <int tile>
VSSN_INLINE void store_tile(void* p, int64_t stride_bytes) {
#define VSSN_CALL(number) _tile_stored(number, p, stride_bytes)
    VSSN_OF_TILE(tile, VSSN_CALL);
#undef VSSN_CALL
    VSSN_MEMORY_IS_READ;
}

template <int tile>
VSSN_INLINE void multiply_tiles() {
#define VSSN_CALL(number) _tile_dpbf16ps(number, 6, 7)
    VSSN_OF_TILE(tile, VSSN_CALL);
#undef VSSN_CALL
}

#endif

#endif

}  // namespace vssn::VSSN_ISA

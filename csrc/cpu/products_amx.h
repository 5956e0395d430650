// gemm.h's products of BFloat16 on the tiles of AMX.
//
// A tile of sums is 16 rows by 16 columns, a vector of each row; one of A is 16 rows by 32 entries; one of a panel is
// 32 of its rows, in pairs, by 16 columns. 17 rows and more are two tiles of one height, which overlap in a row where
// the number is odd. Columns of A past K and rows of the panel are zeros up to a multiple of 32.
#pragma once

#include "gemm.h"

namespace vssn::VSSN_ISA {

// The height of the tiles as this thread has them; 0: it has none.
inline thread_local int tile_rows_in_use = 0;

VSSN_INLINE void use_tile_rows(int rows) {
    if (rows == tile_rows_in_use) return;
    TileShapes shapes;
    for (int tile = 0; tile < kTiles; ++tile) {
        shapes.rows[tile] = static_cast<uint8_t>(tile == kRightTile ? kMostTileRows : rows);
        shapes.row_bytes[tile] = kTileRowBytes;
    }
    configure_tiles(shapes);
    tile_rows_in_use = rows;
}

template <>
struct TileUse<BFloat16> {
    TileUse() = default;
    TileUse(const TileUse&) = delete;
    TileUse& operator=(const TileUse&) = delete;
    ~TileUse() {
        if (tile_rows_in_use == 0) return;
        release_tiles();
        tile_rows_in_use = 0;
    }
};

// The tile of sums of row block i and vector j.
template <int vectors>
constexpr int sum_tile(int i, int j) {
    return i * vectors + j;
}

// `blocks` tiles of rows, the second one `second` rows below the first.
template <int vectors, int blocks, int... number>
VSSN_INLINE void multiply_blocks(const Segment<BFloat16>* segments, int count, int64_t first, int64_t second,
                                 const BFloat16* panel, int64_t panel_row, Tile<BFloat16, vectors>* out, bool add,
                                 std::integer_sequence<int, number...>) {
    constexpr int64_t columns = kTileRowBytes / sizeof(float), entries = kTileRowBytes / sizeof(BFloat16);
    constexpr int64_t out_bytes = vectors * kTileRowBytes;
    const auto sums = [&](int tile) { return &(*out)[tile / vectors * second][tile % vectors]; };
    if (add)
        (load_tile<number>(sums(number), out_bytes), ...);
    else
        (clear_tile<number>(), ...);
    for (int s = 0; s < count; ++s) {
        const int64_t stride = segments[s].stride, K = segments[s].K;
        const BFloat16* a = segments[s].a + first * stride;
        for (int64_t k = 0; k < K; k += entries) {
            // The tiles of sums in their order: a row block's A is loaded once, the panel's again for the second.
            const auto step = [&](auto tile) VSSN_INLINED {
                constexpr int i = decltype(tile)::value / vectors, j = decltype(tile)::value % vectors;
                if (j == 0) load_tile<kLeftTile>(a + i * second * stride + k, stride * 2);
                load_tile<kRightTile>(panel + k * panel_row + j * 2 * columns, panel_row * 4);
                multiply_tiles<sum_tile<vectors>(i, j)>();
            };
            (step(std::integral_constant<int, number>{}), ...);
        }
        panel += K * panel_row;
    }
    (store_tile<number>(sums(number), out_bytes), ...);
}

template <int vectors>
__attribute__((noinline)) void multiply_by_tiles(int rows, const Segment<BFloat16>* segments, int count, int64_t first,
                                                 const BFloat16* panel, int64_t panel_row, Tile<BFloat16, vectors>* out,
                                                 bool add) {
    if (rows <= kMostTileRows) {
        use_tile_rows(rows);
        multiply_blocks<vectors, 1>(segments, count, first, 0, panel, panel_row, out, add,
                                    std::make_integer_sequence<int, vectors>{});
    } else {
        const int height = (rows + 1) / 2;
        use_tile_rows(height);
        multiply_blocks<vectors, 2>(segments, count, first, rows - height, panel, panel_row, out, add,
                                    std::make_integer_sequence<int, 2 * vectors>{});
    }
}

}  // namespace vssn::VSSN_ISA

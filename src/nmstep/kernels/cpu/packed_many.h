// Products of packed weights with many rows: the batch is turned so that its rows are the lanes, and each kept weight
// meets them in columns of the input, a slice of which stays in the first-level cache.
#pragma once

#include <utility>

#include "packed_few.h"

namespace nmstep {
namespace {

constexpr int kSums = 8;                // vectors of sums at a time: enough to hide the latency of one
#if defined(__AVX512F__)
constexpr int64_t kMostFew = 40;  // rows of a batch beside whole blocks
#elif defined(__AVX2__)
constexpr int64_t kMostFew = 8;
#else
constexpr int64_t kMostFew = 1;
#endif
constexpr int64_t kSliceFloats = 7168;  // of the turned input: leaves room in the first-level cache
constexpr int64_t kLeastKept = 8;       // of a row in a slice, so that loading its sums costs little
constexpr int64_t kMostKept = 64;
constexpr int64_t kSumFloats = 65536;   // of a block: in the second-level cache

// Of the bits, since adding to zero would change -0 and so cost an addition.
inline Floats broadcast(float value) { return std::bit_cast<Floats>(Ints{} + std::bit_cast<int32_t>(value)); }

// Where little is kept, a slice of fewer columns has room for more of a row's kept weights.
int64_t columns_of_block(const PackedLayout &l) {
    return std::min<int64_t>(kSums * kLanes, 4 * l.n >= l.m ? 128 : 64);
}

// Two vectors of a square swap the places that have the bit STEP in `a` with those that lack it in `b`.
template <int STEP, int... L>
inline Floats low_exchanged(Floats a, Floats b, std::integer_sequence<int, L...>) {
    return __builtin_shufflevector(a, b, (L & STEP ? kLanes + L - STEP : L)...);
}

template <int STEP, int... L>
inline Floats high_exchanged(Floats a, Floats b, std::integer_sequence<int, L...>) {
    return __builtin_shufflevector(a, b, (L & STEP ? kLanes + L : L + STEP)...);
}

// Turns a square of vectors: what is in lane l of vector v goes to lane v of vector l.
template <int STEP = 1>
inline void turn_square(Floats *square) {
    if constexpr (STEP < kLanes) {
        constexpr auto lanes = std::make_integer_sequence<int, kLanes>{};
#pragma GCC unroll 16
        for (int v = 0; v < kLanes; ++v) {
            if (v & STEP) continue;
            const Floats a = square[v], b = square[v + STEP];
            square[v] = low_exchanged<STEP>(a, b, lanes);
            square[v + STEP] = high_exchanged<STEP>(a, b, lanes);
        }
        turn_square<2 * STEP>(square);
    }
}

template <class X>
inline Floats load_some(const X *from, int64_t count) {
    if (count >= kLanes) return load(from);
    X some[kLanes] = {};
    std::copy_n(from, count, some);
    return load(some);
}

template <class X>
inline void store_some(X *to, Floats value, int64_t count) {
    if (count >= kLanes) return store(to, value);
    X some[kLanes];
    store(some, value);
    std::copy_n(some, count, to);
}

// Some kept weights of a tile's rows, and how far from the slice's beginning their inputs are.
struct Decoded {
    alignas(64) int32_t offsets[kMostKept * kTile];
    alignas(64) float own[kMostKept * kTile];
    const float *values;
};

inline const float *as_floats(const float *values, int64_t, float *) { return values; }

template <class V>
inline const float *as_floats(const V *values, int64_t count, float *own) {
    for (int64_t i = 0; i < count; i += kLanes) store(own + i, load(values + i));
    return own;
}

// Decodes a tile's part of a slice, and fetches the next tile's: it lies where the processor does not look ahead.
template <class V>
void decode(const Packed<V> &weight, int64_t tile, int64_t begin, int64_t kept, int64_t columns, Decoded &d) {
    const PackedLayout &l = weight.layout;
    const int bits = l.bits(), fields = l.fields();
    const int64_t next = std::min(tile + 1, l.tiles() - 1);
    const V *next_values = weight.values_of(next) + begin * kTile;
    const uint32_t *words = weight.words_of(tile) + begin / fields * kTile;
    const int64_t words_to_next = weight.words_of(next) - weight.words_of(tile);
    int64_t field = begin % fields, left = l.n;
    uint32_t first = 0;  // input of the group
    for (int64_t i = 0; i < kept; ++i) {
        __builtin_prefetch(next_values + i * kTile);
        for (int part = 0; part < kParts; ++part) {
            const Bits word = std::bit_cast<Bits>(load_ints(words + part * kLanes));
            const Bits place = (word >> static_cast<uint32_t>(bits * field)) & ((1u << bits) - 1);
            store_ints(d.offsets + i * kTile + part * kLanes,
                       std::bit_cast<Ints>((place + first) * static_cast<uint32_t>(columns)));
        }
        if (++field == fields) {
            __builtin_prefetch(words + words_to_next);
            field = 0;
            words += kTile;
        }
        if (!--left) left = l.n, first += static_cast<uint32_t>(l.m);
    }
    d.values = as_floats(weight.values_of(tile) + begin * kTile, kept * kTile, d.own);
}

// How the kept weights of a row meet a turned input: one after the other. A row of the turned input is one input, and
// those that a kept weight can pick from, its unit, are a group's.
struct OneByOne {
    static int64_t units(const PackedLayout &l) { return l.groups(); }
    static int64_t rows(const PackedLayout &l) { return l.m; }      // of the turned input, in a unit
    static int64_t meetings(const PackedLayout &l) { return l.n; }  // of a row of the weight with them
    static int64_t depth(const PackedLayout &l) { return l.reach(); }  // rows that may be read, in all
    // Rows of a batch that are not worth turning.
    static int64_t few(const PackedLayout &l, int64_t batch) {
        const int64_t rest = batch % columns_of_block(l);
        return rest <= kMostFew ? rest : 0;
    }

    // Writes the rows of the turned input that a square of inputs from k on makes.
    static void write(const PackedLayout &l, const Floats *square, int64_t k, float *to, int64_t columns) {
        const int64_t count = std::min<int64_t>(kLanes, l.reach() - k);
        for (int v = 0; v < count; ++v) store(to + (k + v) * columns, square[v]);
    }

    template <class V>
    static void decode(const Packed<V> &weight, int64_t tile, int64_t begin, int64_t count, int64_t columns,
                       Decoded &d) {
        nmstep::decode(weight, tile, begin, count, columns, d);
    }

    static Floats meet(Floats value, Floats x, Floats sum) { return fma_or_not(value, x, sum); }
};

// Turns a vector's width of rows of x; rows beyond the batch and inputs beyond the last are zero.
template <class BY, class V, class X>
void turn_rows(const PackedCall<V, X> &c, int64_t vector) {
    const int64_t row = vector * kLanes, block = row / c.plan.wide, columns = c.plan.columns(block);
    const PackedLayout &l = c.weight.layout;
    const int64_t rows = std::min<int64_t>(kLanes, c.plan.turned - row);
    float *to = c.scratch + block * c.plan.wide * BY::depth(l) + row % c.plan.wide;
    Floats square[kLanes];
    const X *from[kLanes];
    for (int v = 0; v < rows; ++v) from[v] = c.row_of_x(row + v);
    for (int64_t k = 0; k < l.reach(); k += kLanes) {
        const int64_t count = std::clamp<int64_t>(l.inputs - k, 0, kLanes), at = count ? c.windows.input(k) : 0;
        for (int v = 0; v < kLanes; ++v) square[v] = v < rows ? load_some(from[v] + at, count) : Floats{};
        turn_square(square);
        BY::write(l, square, k, to, columns);
    }
}

// Adds the products of the kept weights of some rows to their sums.
template <class BY, int ROWS, int VECTORS>
inline void add_rows(const float *values, const int32_t *offsets, int64_t kept, const float *x, float *sums) {
    Floats own[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int i = 0; i < ROWS * VECTORS; ++i) own[i / VECTORS][i % VECTORS] = load(sums + i * kLanes);
    for (int64_t l = 0; l < kept; ++l) {
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            const Floats value = broadcast(values[l * kTile + r]);
            const float *from = x + offsets[l * kTile + r];
#pragma GCC unroll 8
            for (int i = 0; i < VECTORS; ++i) own[r][i] = BY::meet(value, load(from + i * kLanes), own[r][i]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < ROWS * VECTORS; ++i) store(sums + i * kLanes, own[i / VECTORS][i % VECTORS]);
}

// Adds to sums[row][column] of some tiles all that a block of columns gives.
template <class BY, int VECTORS, class V>
void add_many(const Packed<V> &weight, const float *x, int64_t tile, int64_t end, float *sums) {
    constexpr int64_t kColumns = VECTORS * kLanes;
    constexpr int kRows = std::bit_floor(static_cast<unsigned>(kSums / VECTORS));
    const PackedLayout &l = weight.layout;
    const int64_t units = BY::units(l), rows = BY::rows(l), meetings = BY::meetings(l);
    const int64_t slice = std::max<int64_t>(
        1, std::min(std::max(kSliceFloats / (kColumns * rows), divide_up(kLeastKept, meetings)), kMostKept / meetings));
    Decoded d;
    for (int64_t u = 0; u < units; u += slice) {
        const int64_t count = std::min(slice, units - u) * meetings;
        for (int64_t t = tile; t < end; ++t) {
            BY::decode(weight, t, u * meetings, count, kColumns, d);
            for (int lane = 0; lane < kTile; lane += kRows)
                add_rows<BY, kRows, VECTORS>(d.values + lane, d.offsets + lane, count, x + u * rows * kColumns,
                                             sums + ((t - tile) * kTile + lane) * kColumns);
        }
    }
}

template <class BY, class V>
void add_many(const Packed<V> &weight, const float *x, int64_t columns, int64_t tile, int64_t end, float *sums) {
    switch (columns / kLanes) {
        case 1: return add_many<BY, 1>(weight, x, tile, end, sums);
        case 2: return add_many<BY, 2>(weight, x, tile, end, sums);
        case 3: return add_many<BY, 3>(weight, x, tile, end, sums);
        case 4: return add_many<BY, 4>(weight, x, tile, end, sums);
        case 5: return add_many<BY, 5>(weight, x, tile, end, sums);
        case 6: return add_many<BY, 6>(weight, x, tile, end, sums);
        case 7: return add_many<BY, 7>(weight, x, tile, end, sums);
        default: return add_many<BY, 8>(weight, x, tile, end, sums);
    }
}

// Turns sums[row][column] back and writes them to y.
template <class V, class X>
void write_many(const PackedCall<V, X> &c, const float *sums, int64_t block, int64_t first, int64_t end) {
    const int64_t columns = c.plan.columns(block), rows = c.weight.layout.rows;
    Floats square[kLanes];
    for (int64_t column = 0; column < columns; column += kLanes)
        for (int64_t row = first; row < std::min(end, rows); row += kLanes) {
            for (int v = 0; v < kLanes; ++v) {
                square[v] = load(sums + (row - first + v) * columns + column);
                if constexpr (kIsScaled<V>)
                    square[v] = square[v] * c.weight.scales[row + v] + c.weight.bias_of(row + v);
            }
            turn_square(square);
            const int64_t at = block * c.plan.wide + column;
            for (int v = 0; v < std::min<int64_t>(kLanes, c.plan.turned - at); ++v)
                store_some(c.row_of_y(at + v) + row, square[v], rows - row);
        }
}

template <class BY, class V, class X>
void multiply_many(const PackedCall<V, X> &c, int64_t block, int64_t row_block, float *sums) {
    const PackedLayout &l = c.weight.layout;
    const int64_t tile = row_block * c.plan.tiles, end = std::min(tile + c.plan.tiles, l.tiles());
    const int64_t columns = c.plan.columns(block), first = tile * kTile;
    for (int64_t row = first; row < end * kTile; ++row)
        std::fill_n(sums + (row - first) * columns, columns, c.weight.begin(row));
    add_many<BY>(c.weight, c.scratch + block * c.plan.wide * BY::depth(l), columns, tile, end, sums);
    write_many(c, sums, block, first, end * kTile);
}

template <class BY>
PackedPlan plan_product(const PackedLayout &l, int64_t batch, int threads) {
    PackedPlan p{};
    p.wide = columns_of_block(l);
    p.few = BY::few(l, batch);
    p.turned = batch - p.few;
    p.blocks = divide_up(p.turned, p.wide);
    const int64_t vectors = divide_up(p.turned, kLanes);
    p.last = vectors * kLanes - (p.blocks - 1) * p.wide;
    const int64_t pieces = threads > 1 ? 4 * threads : 1;  // so that threads end together
    p.tiles = std::clamp<int64_t>(divide_up(l.tiles() * p.blocks, pieces), 1, kSumFloats / p.wide / kTile);
    p.row_blocks = divide_up(l.tiles(), p.tiles);
    p.few_blocks = p.few ? divide_up(l.tiles(), kFewTiles) : 0;
    p.stride = (divide_up(l.reach(), 16) | 1) * 16;  // an odd number of cache lines: rows do not meet in one set
    p.few_at = vectors * kLanes * BY::depth(l);
    p.scratch = p.few_at + p.few * p.stride;
    p.turns = vectors + p.few;
    p.products = p.blocks * p.row_blocks + p.few_blocks;
    return p;
}

// Fills the scratch with the batch as the products read it.
template <class BY, class V, class X>
void turn(const PackedCall<V, X> &c, int64_t begin, int64_t end) {
    const int64_t vectors = c.plan.turns - c.plan.few;
    for (int64_t i = begin; i < end; ++i) {
        if (i < vectors)
            turn_rows<BY>(c, i);
        else
            copy_row(c, i - vectors);
    }
}

template <class BY, class V, class X>
void multiply(const PackedCall<V, X> &c, int64_t begin, int64_t end) {
    const int64_t many = c.plan.blocks * c.plan.row_blocks;
    const auto sums = aligned<float>(begin < many ? c.plan.tiles * kTile * c.plan.wide : 0);
    for (int64_t i = begin; i < end; ++i) {
        if (i < many)
            multiply_many<BY>(c, i / c.plan.row_blocks, i % c.plan.row_blocks, sums.get());
        else
            multiply_few(c, i - many);
    }
}

}  // namespace
}  // namespace nmstep

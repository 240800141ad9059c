// Products of packed weights with a few rows: a tile's rows are the lanes, and a permute picks each one's input.
#pragma once

#include "chunks.h"
#include "numbers.h"
#include "packed.h"

namespace nmstep {
namespace {

constexpr int kParts = kTile / kLanes;  // vectors of a tile

// The inputs that a field of so many bits can name. Picking heeds only these bits, so fields need no mask.
template <int BITS>
struct Window {
#if defined(__AVX512F__)
    explicit Window(const float *x) {
        if constexpr (BITS == 1)
            inputs[0] = _mm512_castpd_ps(_mm512_broadcastsd_pd(_mm_castsi128_pd(_mm_loadu_si64(x))));
        else if constexpr (BITS == 2)
            inputs[0] = _mm512_broadcast_f32x4(_mm_loadu_ps(x));
        else if constexpr (BITS == 3)
            inputs[0] = _mm512_broadcast_f32x8(_mm256_loadu_ps(x));
        else
            for (int i = 0; i < kCount; ++i) inputs[i] = _mm512_loadu_ps(x + i * kLanes);
    }

    Floats pick(Bits fields) const {
        const __m512i places = std::bit_cast<__m512i>(fields);
        if constexpr (BITS <= 4) {
            return std::bit_cast<Floats>(_mm512_permutexvar_ps(places, inputs[0]));
        } else if constexpr (BITS == 5) {
            return std::bit_cast<Floats>(_mm512_permutex2var_ps(inputs[0], places, inputs[1]));
        } else {
            const __m512 low = _mm512_permutex2var_ps(inputs[0], places, inputs[1]);
            const __m512 high = _mm512_permutex2var_ps(inputs[2], places, inputs[3]);
            const __mmask16 is_high = _mm512_test_epi32_mask(places, _mm512_set1_epi32(32));
            return std::bit_cast<Floats>(_mm512_mask_blend_ps(is_high, low, high));
        }
    }

    static constexpr int kCount = BITS <= 4 ? 1 : 1 << (BITS - 4);
    __m512 inputs[kCount];
#elif defined(__AVX2__)
    explicit Window(const float *x) : from(x) {
        if constexpr (BITS == 1)
            inputs[0] = _mm256_castpd_ps(_mm256_broadcastsd_pd(_mm_castsi128_pd(_mm_loadu_si64(x))));
        else if constexpr (BITS == 2)
            inputs[0] = _mm256_set_m128(_mm_loadu_ps(x), _mm_loadu_ps(x));
        else if constexpr (BITS <= 4)
            for (int i = 0; i < kCount; ++i) inputs[i] = _mm256_loadu_ps(x + i * kLanes);
    }

    Floats pick(Bits fields) const {
        const __m256i places = std::bit_cast<__m256i>(fields);
        if constexpr (BITS <= 3) {
            return std::bit_cast<Floats>(_mm256_permutevar8x32_ps(inputs[0], places));
        } else if constexpr (BITS == 4) {
            const __m256 low = _mm256_permutevar8x32_ps(inputs[0], places);
            const __m256 high = _mm256_permutevar8x32_ps(inputs[1], places);
            const __m256 is_high = _mm256_castsi256_ps(_mm256_slli_epi32(places, 28));  // by the sign
            return std::bit_cast<Floats>(_mm256_blendv_ps(low, high, is_high));
        } else {
            const __m256i masked = std::bit_cast<__m256i>(fields & ((1u << BITS) - 1));
            return std::bit_cast<Floats>(_mm256_i32gather_ps(from, masked, 4));
        }
    }

    static constexpr int kCount = BITS == 4 ? 2 : 1;
    const float *from;
    __m256 inputs[kCount];
#else
    explicit Window(const float *x) : inputs(x) {}

    Floats pick(Bits fields) const {
        Floats picked;
        for (int l = 0; l < kLanes; ++l) picked[l] = inputs[fields[l] & ((1u << BITS) - 1)];
        return picked;
    }

    const float *inputs;
#endif
    Window() = default;
};

// Tiles that are multiplied side by side with so many rows: enough sums to hide the latency of one.
template <int ROWS>
#if defined(__AVX512F__)
constexpr int kTiles = 4;
#elif defined(__AVX2__)
constexpr int kTiles = ROWS == 1 ? 2 : 1;
#else
constexpr int kTiles = 1;
#endif

constexpr int kFewTiles = 4;  // of a piece of work

// Sums of some tiles with some rows of x, and the words whose fields come next.
template <int BITS, int ROWS, int TILES>
struct FewSums {
    static constexpr int kVectors = TILES * kParts;
    Floats sums[ROWS][kVectors];
    Bits words[kVectors];
    Window<BITS> windows[ROWS];

    void read_sums(const float *from) {
#pragma GCC unroll 16
        for (int i = 0; i < ROWS * kVectors; ++i) sums[i / kVectors][i % kVectors] = load(from + i * kLanes);
    }

    void write_sums(float *to) const {
#pragma GCC unroll 16
        for (int i = 0; i < ROWS * kVectors; ++i) store(to + i * kLanes, sums[i / kVectors][i % kVectors]);
    }

    void look(const float *x, int64_t stride) {
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r) windows[r] = Window<BITS>(x + r * stride);
    }

    void read_words(const uint32_t *from, int64_t tile_stride) {
#pragma GCC unroll 16
        for (int i = 0; i < kVectors; ++i)
            words[i] = std::bit_cast<Bits>(load_ints(from + i / kParts * tile_stride + i % kParts * kLanes));
    }

    // Adds one kept weight of each row of the tiles.
    template <class V>
    void add(const V *values, int64_t tile_stride) {
#pragma GCC unroll 16
        for (int i = 0; i < kVectors; ++i) {
            const Floats value = load(values + i / kParts * tile_stride + i % kParts * kLanes);
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; ++r) sums[r][i] = fma_or_not(value, windows[r].pick(words[i]), sums[r][i]);
            words[i] >>= BITS;
        }
    }
};

// Adds the products of consecutive tiles to sums[row][tile][lane]. N is the layout's n, or 0 for any.
template <int BITS, int N, int ROWS, int TILES, class V>
void add_few(const Packed<V> &weight, int64_t tile, const float *x, int64_t stride, float *sums) {
    constexpr int kFields = 32 / BITS;
    const int64_t kept = weight.layout.kept(), n = N ? N : weight.layout.n, m = weight.layout.m;
    const int64_t value_stride = kept * kTile, word_stride = weight.layout.words() * kTile;
    const V *values = weight.values_of(tile);
    const uint32_t *words = weight.words_of(tile);
    FewSums<BITS, ROWS, TILES> own;
    own.read_sums(sums);
    int64_t left = 0;  // of the group
    for (int64_t l = 0; l < kept; l += kFields, words += kTile) {
        own.read_words(words, word_stride);
        const int64_t end = std::min(l + kFields, kept);
        for (int64_t k = l; k < end; k += N ? N : 1) {
            if (N || !left--) {
                own.look(x, stride);
                x += m;
                left = n - 1;
            }
#pragma GCC unroll 2
            for (int i = 0; i < (N ? N : 1); ++i, values += kTile) own.add(values, value_stride);
        }
    }
    own.write_sums(sums);
}

template <int BITS, int ROWS, int TILES, class V>
void add_few_by_n(const Packed<V> &weight, int64_t tile, const float *x, int64_t stride, float *sums) {
    if (weight.layout.n == 1)
        add_few<BITS, 1, ROWS, TILES>(weight, tile, x, stride, sums);
    else if (weight.layout.n == 2 && 32 / BITS % 2 == 0)
        add_few<BITS, 2, ROWS, TILES>(weight, tile, x, stride, sums);
    else
        add_few<BITS, 0, ROWS, TILES>(weight, tile, x, stride, sums);
}

template <int ROWS, int TILES, class V>
void add_few_by_bits(const Packed<V> &weight, int64_t tile, const float *x, int64_t stride, float *sums) {
    switch (weight.layout.bits()) {
        case 1: return add_few_by_n<1, ROWS, TILES>(weight, tile, x, stride, sums);
        case 2: return add_few_by_n<2, ROWS, TILES>(weight, tile, x, stride, sums);
        case 3: return add_few_by_n<3, ROWS, TILES>(weight, tile, x, stride, sums);
        case 4: return add_few_by_n<4, ROWS, TILES>(weight, tile, x, stride, sums);
        case 5: return add_few_by_n<5, ROWS, TILES>(weight, tile, x, stride, sums);
        default: return add_few_by_n<6, ROWS, TILES>(weight, tile, x, stride, sums);
    }
}

// Writes y of some tiles and of some of the few rows.
template <int ROWS, int TILES, class V, class X>
void multiply_few_tiles(const PackedCall<V, X> &c, int64_t row, int64_t tile) {
    constexpr int kWidth = TILES * kTile;
    alignas(64) float sums[ROWS * kWidth];
    const int64_t first = tile * kTile, count = std::min<int64_t>(kWidth, c.weight.layout.rows - first);
    for (int i = 0; i < ROWS * kWidth; ++i) sums[i] = c.weight.begin(first + i % kWidth);
    add_few_by_bits<ROWS, TILES>(c.weight, tile, c.scratch + c.plan.few_at + row * c.plan.stride, c.plan.stride, sums);
    for (int r = 0; r < ROWS; ++r) {
        X *y = c.row_of_y(c.plan.turned + row + r) + first;
        for (int64_t i = 0; i < count; ++i) store(y + i, c.weight.end(first + i, sums[r * kWidth + i]));
    }
}

template <int ROWS, class V, class X>
int64_t multiply_few_rows(const PackedCall<V, X> &c, int64_t row, int64_t tile, int64_t end) {
    for (; row + ROWS <= c.plan.few; row += ROWS) {
        int64_t t = tile;
        for (; t + kTiles<ROWS> <= end; t += kTiles<ROWS>) multiply_few_tiles<ROWS, kTiles<ROWS>>(c, row, t);
        for (; t < end; ++t) multiply_few_tiles<ROWS, 1>(c, row, t);
    }
    return row;
}

template <class V, class X>
void multiply_few(const PackedCall<V, X> &c, int64_t block) {
    const int64_t tile = block * kFewTiles, end = std::min(tile + kFewTiles, c.weight.layout.tiles());
    int64_t row = multiply_few_rows<4>(c, 0, tile, end);
    row = multiply_few_rows<2>(c, row, tile, end);
    multiply_few_rows<1>(c, row, tile, end);
}

// Copies one of the few rows to where vectors may read beyond its end.
template <class V, class X>
void copy_row(const PackedCall<V, X> &c, int64_t row) {
    const int64_t inputs = c.weight.layout.inputs;
    const X *start = c.row_of_x(c.plan.turned + row);
    float *to = c.scratch + c.plan.few_at + row * c.plan.stride;
    for (int64_t k = 0; k < inputs; k += c.windows.channels) {
        const X *from = start + c.windows.input(k);
        for (int64_t i = 0; i < c.windows.channels; ++i) to[k + i] = load(from[i]);
    }
    std::fill(to + inputs, to + c.plan.stride, 0.0f);
}

}  // namespace
}  // namespace nmstep

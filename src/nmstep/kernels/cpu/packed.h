// Weights of which N of every M are kept, as they are stored, and how a product with them is cut into work.
#pragma once

#include <algorithm>
#include <bit>
#include <type_traits>

#include "numbers.h"

namespace nmstep {

constexpr int kTile = 16;  // output rows whose kept weights lie side by side

// `rows` outputs of `inputs` values each, of which n of every m consecutive ones are kept. The last group of a row is
// short where m does not divide, and has n places all the same.
struct PackedLayout {
    int64_t rows, inputs, n, m;

    int64_t tiles() const { return (rows + kTile - 1) / kTile; }
    int64_t groups() const { return (inputs + m - 1) / m; }
    int64_t kept() const { return groups() * n; }
    int bits() const { return static_cast<int>(std::bit_width(static_cast<uint64_t>(m - 1))); }
    int fields() const { return 32 / bits(); }
    int64_t words() const { return (kept() + fields() - 1) / fields(); }
    // One past the last input that a field can name, whatever is in it: products read from scratch of this size.
    int64_t reach() const { return (groups() - 1) * m + (int64_t{1} << bits()); }
};

// Whether two kept weights at a time have so few pairs of inputs to pick from that each pair can be laid out.
inline bool has_few_pairs(const PackedLayout &l) {
    return l.n == 1 ? l.m == 2 || l.m == 4 : l.n % 2 == 0 && (l.m == 4 || l.m == 8);
}

// Whether values of this type are multiplied by a scale for each output row.
template <class V>
constexpr bool kIsScaled = std::is_same_v<V, int8_t>;

// values[t][l][lane] is the l-th kept weight of row 16 t + lane. Its group is the l / n-th, and its place there is
// field l % fields of the word indices[t][l / fields][lane].
template <class V>
struct Packed {
    PackedLayout layout;
    const V *values;
    const uint32_t *indices;
    const float *scales;      // of the rows of all tiles, or null where none are needed
    const float *bias;         // or null
    const bf16 *narrow_bias;  // or null

    const V *values_of(int64_t tile) const { return values + tile * layout.kept() * kTile; }
    const uint32_t *words_of(int64_t tile) const { return indices + tile * layout.words() * kTile; }
    float bias_of(int64_t row) const {
        if (row >= layout.rows) return 0;
        return bias ? bias[row] : narrow_bias ? load(narrow_bias[row]) : 0;
    }
    // What the sum of a row begins with, and what comes of it in the end.
    float begin(int64_t row) const { return kIsScaled<V> ? 0 : bias_of(row); }
    float end(int64_t row, float sum) const {
        if constexpr (kIsScaled<V>) return sum * scales[row] + bias_of(row);
        return sum;
    }
};

// How a batch is cut. Whole blocks of its rows, and a last one of fewer, become the columns of turned inputs; the few
// rows that remain are multiplied one by one. Sums run over the kept weights of a row in their order either way, so
// they depend neither on this nor on the number of threads.
struct PackedPlan {
    int64_t wide;        // columns of a whole block
    int64_t blocks;      // of columns
    int64_t last;        // columns of the last block, a multiple of the lanes
    int64_t turned;      // rows of the batch in blocks
    int64_t few;         // rows of the batch that remain
    int64_t tiles;       // of a block of rows of the weight
    int64_t row_blocks;  // for blocks of columns
    int64_t few_blocks;  // for the few rows
    int64_t stride;      // of the few rows in the scratch
    int64_t few_at;      // where they begin there
    int64_t scratch;     // floats in all
    int64_t turns;       // pieces of work to fill the scratch
    int64_t products;    // pieces of work after that

    int64_t columns(int64_t block) const { return block + 1 < blocks ? wide : last; }
};

// Where the inputs of a row of the batch lie. Those of a convolution are the windows of images whose channels are side
// by side, a row for each output place; those of a matrix are windows of one place.
struct Windows {
    int64_t height, width;                     // of an image's outputs
    int64_t image, step_y, step_x;             // from one to the next, in values
    int64_t kernel_width, channels, tap_y, tap_x;

    static Windows of_matrix(int64_t inputs) { return {1, 1, inputs, 0, 0, 1, inputs, 0, 0}; }

    // Where a row begins.
    int64_t row(int64_t row) const {
        if (height * width == 1) return row * image;
        const int64_t place = row % (height * width);
        return row / (height * width) * image + place / width * step_y + place % width * step_x;
    }
    // How far an input is from there; it shares its place with the channels around it.
    int64_t input(int64_t k) const {
        if (k < channels) return k;
        const int64_t tap = k / channels;
        return tap / kernel_width * tap_y + tap % kernel_width * tap_x + k % channels;
    }
};

template <class V, class X>
struct PackedCall {
    Packed<V> weight;
    Windows windows;
    const X *x;
    int64_t first;  // row of the batch; what the plan counts begins there
    X *y;           // batch x rows
    PackedPlan plan;
    float *scratch;

    const X *row_of_x(int64_t row) const { return x + windows.row(first + row); }
    X *row_of_y(int64_t row) const { return y + (first + row) * weight.layout.rows; }
};

}  // namespace nmstep

// Packed weights made dense again, turned: for batches that a dense product serves better.
#pragma once

#include "packed.h"
#include "vectors.h"

namespace nmstep {
namespace {

// Reads the kept weights of a vector of rows of a tile, one after the other, with their places.
template <class V>
struct Reader {
    Reader(const Packed<V> &weight, int64_t tile, int part)
        : bits(weight.layout.bits()), fields(weight.layout.fields()), left(0),
          values(weight.values_of(tile) + part * kLanes), words(weight.words_of(tile) + part * kLanes) {}

    void read(Floats &value, Bits &place) {
        if (!left) {
            word = std::bit_cast<Bits>(load_ints(words));
            words += kTile;
            left = fields;
        }
        place = word & ((1u << bits) - 1);
        value = load(values);
        word >>= static_cast<uint32_t>(bits);
        values += kTile;
        --left;
    }

    const int bits, fields;
    int left;
    const V *values;
    const uint32_t *words;
    Bits word{};
};

// Writes to[input][row] for a vector of rows. N is the layout's n, or 0 for any.
template <int N, class V, class X>
void expand_rows(const PackedLayout &l, Reader<V> kept, Floats scale, X *to, int64_t stride) {
    constexpr int kMost = N ? N : 64;
    const int64_t n = N ? N : l.n;
    Floats value[kMost];
    Bits place[kMost];
    for (int64_t input = 0; input < l.inputs; input += l.m) {
        for (int64_t i = 0; i < n; ++i) {
            kept.read(value[i], place[i]);
            if constexpr (kIsScaled<V>) value[i] *= scale;
        }
        const auto size = static_cast<uint32_t>(std::min(l.m, l.inputs - input));
        for (uint32_t j = 0; j < size; ++j, to += stride) {
            Floats found{};
            for (int64_t i = 0; i < n; ++i) found = place[i] == j ? value[i] : found;
            store(to, found);
        }
    }
}

// Writes to[input][row] of some tiles, the first row of the first of which is to[0][0]. Inputs are `stride` apart.
template <class V, class X>
void expand(const Packed<V> &weight, X *to, int64_t stride, int64_t begin, int64_t end) {
    const PackedLayout &l = weight.layout;
    for (int64_t row = begin * kTile; row < end * kTile; row += kLanes, to += kLanes) {
        const Reader<V> kept(weight, row / kTile, static_cast<int>(row % kTile / kLanes));
        Floats scale{};
        if constexpr (kIsScaled<V>) scale = load(weight.scales + row);
        if (l.n == 1)
            expand_rows<1>(l, kept, scale, to, stride);
        else if (l.n == 2)
            expand_rows<2>(l, kept, scale, to, stride);
        else
            expand_rows<0>(l, kept, scale, to, stride);
    }
}

}  // namespace
}  // namespace nmstep

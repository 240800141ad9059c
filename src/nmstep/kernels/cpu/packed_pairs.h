// Products of bf16 weights with many rows of bf16 inputs, two kept weights at a time: by an instruction that adds the
// products of two pairs of bf16 values, first that of the high halves. So a sum is rounded as it is one by one.
#pragma once

#include "packed_many.h"

namespace nmstep {
namespace {

static_assert(kLanes == kTile);

// A unit is what two consecutive kept weights of a row can pick from: a group, or two of which one is kept each. A row
// of the turned input is a pair of a unit's inputs, and there is one for each choice.
struct ByPairs {
    static int64_t inputs(const PackedLayout &l) { return l.n == 1 ? 2 * l.m : l.m; }  // of a unit
    static int64_t units(const PackedLayout &l) { return divide_up(l.inputs, inputs(l)); }
    static int64_t rows(const PackedLayout &l) { return l.n == 1 ? l.m * l.m : l.m * (l.m - 1) / 2; }
    static int64_t meetings(const PackedLayout &l) { return l.n == 1 ? 1 : l.n / 2; }
    // One more than there are: the last of places that are damaged, and the same twice, is one beyond the last choice.
    static int64_t depth(const PackedLayout &l) { return units(l) * rows(l) + 1; }
    // A vector of columns costs as much as ten rows alone, and as four beside other vectors.
    static int64_t few(const PackedLayout &, int64_t batch) {
        const int64_t rest = batch % kLanes;
        return batch <= 10 ? batch : rest <= 4 ? rest : 0;
    }

    // The row of a unit for these two places, the first of which is the lower one where they are of one group.
    template <class I>
    static I choice(const PackedLayout &l, I first, I second) {
        if (l.n == 1) return first * static_cast<uint32_t>(l.m) + second;
        return ((second * (second - 1u)) >> 1u) + first;
    }

    static void write(const PackedLayout &l, const Floats *square, int64_t k, float *to, int64_t columns) {
        const int64_t size = inputs(l), end = std::min<int64_t>(k + kLanes, units(l) * size);
        for (int64_t unit = k / size; unit * size < end; ++unit, square += size) {
            float *row = to + unit * rows(l) * columns;
            if (l.n == 1) {
                for (int64_t a = 0; a < l.m; ++a)
                    for (int64_t b = l.m; b < size; ++b, row += columns) store(row, paired(square[a], square[b]));
            } else {
                for (int64_t b = 1; b < size; ++b)
                    for (int64_t a = 0; a < b; ++a, row += columns) store(row, paired(square[a], square[b]));
            }
        }
        if (end == units(l) * size) std::fill_n(to + (depth(l) - 1) * columns, kLanes, 0.0f);
    }

    static Floats paired(Floats first, Floats second) {
        return std::bit_cast<Floats>((std::bit_cast<Bits>(first) & 0xffff0000u) | (std::bit_cast<Bits>(second) >> 16));
    }

    static void decode(const Packed<bf16> &weight, int64_t tile, int64_t begin, int64_t count, int64_t columns,
                       Decoded &d) {
        const PackedLayout &l = weight.layout;
        const int bits = l.bits(), fields = l.fields();  // an even number of fields, so that pairs share a word
        const uint32_t mask = (1u << bits) - 1;
        const int64_t next = std::min(tile + 1, l.tiles() - 1), per_unit = meetings(l);
        const bf16 *values = weight.values_of(tile) + 2 * begin * kTile;
        const int64_t values_to_next = weight.values_of(next) - weight.values_of(tile);
        const uint32_t *words = weight.words_of(tile) + 2 * begin / fields * kTile;
        const int64_t words_to_next = weight.words_of(next) - weight.words_of(tile);
        int64_t field = 2 * begin % fields, left = per_unit;
        uint32_t first = 0;  // row of the unit
        for (int64_t i = 0; i < count; ++i, values += 2 * kTile) {
            __builtin_prefetch(values + values_to_next);
            const Bits word = std::bit_cast<Bits>(load_ints(words)) >> static_cast<uint32_t>(bits * field);
            const Bits row = choice(l, word & mask, (word >> static_cast<uint32_t>(bits)) & mask) + first;
            store_ints(d.offsets + i * kTile, std::bit_cast<Ints>(row * static_cast<uint32_t>(columns)));
            const bool is_whole = 2 * (begin + i) + 1 < l.kept();
            store(d.own + i * kTile, paired(load(values), is_whole ? load(values + kTile) : Floats{}));
            if ((field += 2) == fields) {
                __builtin_prefetch(words + words_to_next);
                field = 0;
                words += kTile;
            }
            if (!--left) left = per_unit, first += static_cast<uint32_t>(rows(l));
        }
        d.values = d.own;
    }

    static Floats meet(Floats value, Floats x, Floats sum) {
        return std::bit_cast<Floats>(_mm512_dpbf16_ps(std::bit_cast<__m512>(sum), std::bit_cast<__m512bh>(value),
                                                      std::bit_cast<__m512bh>(x)));
    }

    static constexpr int64_t kMostFewPairs = 5;
};

}  // namespace
}  // namespace nmstep

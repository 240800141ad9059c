// Masks of whole tensors, and the split of weights into what is kept and what is cut.
#pragma once

#include "choose.h"
#include "chunks.h"

namespace nmstep {
namespace {

int32_t kept_in(const Chunk &c, const Layout &l) { return static_cast<int32_t>(std::min(l.n, c.rows)); }

// Chooses the groups of a chunk, one in each column of `weights`, and calls
// put(row of the chunk, column, lanes, bits, kept).
template <class MEMORY, int ROWS, class T, class Put>
void choose_groups(const T *weights, const Chunk &c, int32_t n, Ints *scratch, Put put) {
    for (int64_t g = 0; g < c.groups; ++g) {
        const T *const group = weights + g * c.rows * c.stride;
        const auto put_in_group = [&](int64_t row, int64_t column, auto lanes, Ints bits, Ints kept) {
            put(g * c.rows + row, column, lanes, bits, kept);
        };
        if (n == 1 && c.rows > 4)
            choose_first_of_columns<MEMORY>(group, c.rows, c.stride, c.columns, put_in_group);
        else
            choose_columns<MEMORY, ROWS>(group, c.rows, c.stride, c.columns, n, scratch, put_in_group);
    }
}

template <class MEMORY, class T, class Put>
void choose_down(const T *weights, const Chunk &c, int32_t n, Ints *scratch, Put put) {
    switch (c.rows) {
        case 2: return choose_groups<MEMORY, 2>(weights, c, n, scratch, put);
        case 4: return choose_groups<MEMORY, 4>(weights, c, n, scratch, put);
        case 8: return choose_groups<MEMORY, 8>(weights, c, n, scratch, put);
        case 16: return choose_groups<MEMORY, 16>(weights, c, n, scratch, put);
        default: return choose_groups<MEMORY, 0>(weights, c, n, scratch, put);
    }
}

// Groups that no vector holds are turned so that one is in each column, and what is kept is turned back.
void choose_turned(const Chunk &c, int32_t n, Scratch &s) {
    const float *const latent = s.latent.get();
    float *const table = s.table.get();
    int32_t *const keep = s.keep.get(), *const kept_in_table = s.kept_in_table.get();
    for (int64_t g = 0; g < c.groups; ++g)
        for (int64_t r = 0; r < c.rows; ++r) table[r * c.groups + g] = latent[g * c.rows + r];
    const Chunk turned{0, 1, c.rows, c.groups, c.groups};
    choose_down<InScratch>(table, turned, n, s.ranks.get(), [&](int64_t row, int64_t column, auto, Ints, Ints kept) {
        store_ints(&kept_in_table[row * c.groups + column], kept);
    });
    for (int64_t g = 0; g < c.groups; ++g)
        for (int64_t r = 0; r < c.rows; ++r) keep[g * c.rows + r] = kept_in_table[r * c.groups + g];
}

// Marks what is kept of groups one after the other.
void choose_consecutive(const Chunk &c, int32_t n, Scratch &s) {
    const bool done = with_choice(n, c.rows, [&](auto kept_of) {
        for (int64_t i = 0; i < c.groups * c.rows; i += kLanes)
            store_ints(&s.keep[i], kept_of(load_ints(&s.latent[i])));
    });
    if (!done) choose_turned(c, n, s);
}

// Marks in the scratch what is kept of a chunk's weights, of which it makes a copy there: a processor is slow to read
// from a line into which it has just written some values.
template <class T>
void choose_in_scratch(const T *weight, const Chunk &c, int32_t n, Scratch &s) {
    const int64_t count = c.groups * c.rows * c.columns;
    for_each_vector(count, [&](int64_t i, auto lanes) { store(&s.latent[i], load(weight + c.start + i, lanes)); });
    if (c.columns > 1)
        choose_down<InScratch>(s.latent.get(), c, n, s.ranks.get(),
                               [&](int64_t row, int64_t column, auto, Ints, Ints kept) {
                                   store_ints(&s.keep[row * c.columns + column], kept);
                               });
    else if (n == 1 && c.rows > kLanes && c.rows % kLanes == 0)
        choose_first_of_wide(s.latent.get(), s.keep.get(), count, c.rows);
    else
        choose_consecutive(c, n, s);
}

// Splits a vector of weights by what is kept of them.
template <class T, class Lanes>
inline void store_split(T *weight, T *pruned, Lanes lanes, Ints bits, Ints kept) {
    store(weight, std::bit_cast<Floats>(bits & kept), lanes);
    store(pruned, std::bit_cast<Floats>(bits & ~kept), lanes);
}

// Takes out of a chunk's weights what is not kept, and puts it into `pruned`.
template <class T>
void split_chunk(T *weight, T *pruned, const Chunk &c, const Layout &l, Scratch &s) {
    const int32_t n = kept_in(c, l);
    if (n == c.rows) {
        for_each_piece(c, [&](int64_t at, int64_t length) { std::fill_n(pruned + at, length, T{}); });
    } else if (has_long_rows(l)) {
        T *const kept_to = weight + c.start, *const cut_to = pruned + c.start;
        const auto put = [=](int64_t row, int64_t column, auto lanes, Ints bits, Ints kept) {
            const int64_t at = row * c.stride + column;
            store_split(kept_to + at, cut_to + at, lanes, bits, kept);
        };
        choose_down<InPlace>(kept_to, c, n, s.ranks.get(), put);
    } else {
        choose_in_scratch(weight, c, n, s);
        for_each_vector(c.groups * c.rows * c.columns, [&](int64_t i, auto lanes) {
            const Ints bits = load_ints(&s.latent[i]);
            store_split(weight + c.start + i, pruned + c.start + i, lanes, bits, load_ints(&s.keep[i]));
        });
    }
}

template <class Lanes>
inline void store_mask(uint8_t *mask, Lanes lanes, Ints kept) {
    const Bytes bytes = __builtin_convertvector(kept & 1, Bytes);
    std::memcpy(mask, &bytes, static_cast<size_t>(lanes));
}

template <class T>
void mask_chunk(const T *weight, uint8_t *mask, const Chunk &c, const Layout &l, Scratch &s) {
    const int32_t n = kept_in(c, l);
    if (n == c.rows) {
        for_each_piece(c, [&](int64_t at, int64_t length) { std::fill_n(mask + at, length, uint8_t{1}); });
    } else if (has_long_rows(l)) {
        const auto put = [=](int64_t row, int64_t column, auto lanes, Ints, Ints kept) {
            store_mask(mask + c.start + row * c.stride + column, lanes, kept);
        };
        choose_down<InPlace>(weight + c.start, c, n, s.ranks.get(), put);
    } else {
        choose_in_scratch(weight, c, n, s);
        for_each_vector(c.groups * c.rows * c.columns, [&](int64_t i, auto lanes) {
            store_mask(mask + c.start + i, lanes, load_ints(&s.keep[i]));
        });
    }
}

// The values of blocks of groups that lie side by side.
struct Range {
    Range(const Layout &l, int64_t begin, int64_t end)
        : first(begin * groups_in_block(l) * l.m),
          length(std::min(end * groups_in_block(l), groups_of(l)) * l.m - first) {}

    int64_t first, length;
};

template <class T>
void mask(const T *weight, uint8_t *mask, const Layout &l, int64_t begin, int64_t end) {
    const bool done = with_choice(l, [&](auto kept_of) {
        const Range range(l, begin, end);
        const T *const from = weight + range.first;
        uint8_t *const to = mask + range.first;
        for_each_vector(range.length, [=](int64_t i, auto lanes) {
            store_mask(to + i, lanes, kept_of(std::bit_cast<Ints>(load(from + i, lanes))));
        });
    });
    if (done) return;
    Scratch s(l);
    for_each_chunk(l, begin, end, [&](const Chunk &c) { mask_chunk(weight, mask, c, l, s); });
}

template <class T>
void split(T *weight, T *pruned, const Layout &l, int64_t begin, int64_t end) {
    const bool done = with_choice(l, [&](auto kept_of) {
        const Range range(l, begin, end);
        T *const kept_to = weight + range.first, *const cut_to = pruned + range.first;
        for_each_vector(range.length, [=](int64_t i, auto lanes) {
            const Ints bits = std::bit_cast<Ints>(load(kept_to + i, lanes));
            store_split(kept_to + i, cut_to + i, lanes, bits, kept_of(bits));
        });
    });
    if (done) return;
    Scratch s(l);
    for_each_chunk(l, begin, end, [&](const Chunk &c) { split_chunk(weight, pruned, c, l, s); });
}

}  // namespace
}  // namespace nmstep

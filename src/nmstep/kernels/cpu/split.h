// Masks of whole tensors, and the split of weights into what is kept and what is cut.
#pragma once

#include "choose.h"
#include "chunks.h"
#include "numbers.h"

namespace nmstep {
namespace {

void choose_by_ranks(int64_t rows, int32_t *table, int64_t stride, int64_t columns, int32_t n, Ints *ranks) {
    switch (rows) {
        case 2: return choose_columns<2>(table, 2, stride, columns, n, nullptr);
        case 4: return choose_columns<4>(table, 4, stride, columns, n, nullptr);
        case 8: return choose_columns<8>(table, 8, stride, columns, n, nullptr);
        case 16: return choose_columns<16>(table, 16, stride, columns, n, nullptr);
        default: return choose_columns<0>(table, rows, stride, columns, n, ranks);
    }
}

// Puts the ordinals of a chunk into a table with a group in each column, chooses, and takes what is kept out again.
void choose_in_table(const Chunk &c, int32_t n, Scratch &s) {
    const float *latent = s.latent;
    int32_t *keep = s.keep.get(), *table = s.table.get();
    const int64_t columns = c.groups * c.columns, stride = columns + kLanes;
    if (c.columns == 1) {
        for (int64_t g = 0; g < c.groups; ++g)
            for (int64_t r = 0; r < c.rows; ++r) table[r * stride + g] = ordinal(latent[g * c.rows + r]);
    } else {
        // What a vector carries beyond its row is overwritten by the next.
        for (int64_t g = 0; g < c.groups; ++g)
            for (int64_t r = 0; r < c.rows; ++r)
                for (int64_t i = 0; i < c.columns; i += kLanes)
                    store_ints(&table[r * stride + g * c.columns + i], ordinals(&latent[(g * c.rows + r) * c.columns + i]));
    }
    if (n == 1 && c.rows > 4)
        choose_first_of_columns(table, c.rows, stride, columns);
    else
        choose_by_ranks(c.rows, table, stride, columns, n, s.ranks.get());
    if (c.columns == 1) {
        for (int64_t g = 0; g < c.groups; ++g)
            for (int64_t r = 0; r < c.rows; ++r) keep[g * c.rows + r] = table[r * stride + g];
    } else {
        for (int64_t g = 0; g < c.groups; ++g)
            for (int64_t r = 0; r < c.rows; ++r)
                for (int64_t i = 0; i < c.columns; i += kLanes)
                    store_ints(&keep[(g * c.rows + r) * c.columns + i], load_ints(&table[r * stride + g * c.columns + i]));
    }
}

int32_t kept_of(const Chunk &c, const Layout &l) { return static_cast<int32_t>(std::min(l.n, c.rows)); }

// Marks in the scratch what is kept of a chunk's latent weights, which lie there.
void choose(const Chunk &c, const Layout &l, Scratch &s) {
    const int64_t count = c.groups * c.rows * c.columns;
    const int32_t n = kept_of(c, l);
    if (n == c.rows)
        std::fill_n(s.keep.get(), count, -1);
    else if (l.inner == 1 && n == 1 && c.rows > kLanes && c.rows % kLanes == 0)
        choose_first_of_wide(s.latent, s.keep.get(), count, c.rows);
    else
        choose_in_table(c, n, s);
}

template <class T>
void read_weights(const T *weight, const Chunk &c, Scratch &s) {
    for_each_piece(c, [&](int64_t at, int64_t to, int64_t length) {
        float *latent = &s.latent[to];
        for (int64_t i = 0; i < length; ++i) latent[i] = load(weight[at + i]);
    });
}

template <class T>
void write_split(T *__restrict weight, T *__restrict pruned, const float *__restrict latent,
                 const int32_t *__restrict keep, int64_t length) {
    for (int64_t i = 0; i < length; ++i) {
        const int32_t bits = std::bit_cast<int32_t>(latent[i]);
        store(&weight[i], std::bit_cast<float>(bits & keep[i]));
        store(&pruned[i], std::bit_cast<float>(bits & ~keep[i]));
    }
}

void write_mask(uint8_t *__restrict mask, const int32_t *__restrict keep, int64_t length) {
    for (int64_t i = 0; i < length; ++i) mask[i] = keep[i] & 1;
}

// Chooses and splits the latent weights of a chunk.
template <class T>
void choose_and_split(T *weight, T *pruned, const Chunk &c, const Layout &l, Scratch &s) {
    choose(c, l, s);
    for_each_piece(c, [&](int64_t at, int64_t from, int64_t length) {
        write_split(weight + at, pruned + at, &s.latent[from], &s.keep[from], length);
    });
}

// Splits one vector of weights by what is kept of them.
template <class T>
inline void store_split(T *weight, T *pruned, Ints bits, Ints kept) {
    store(weight, std::bit_cast<Floats>(bits & kept));
    store(pruned, std::bit_cast<Floats>(bits & ~kept));
}

inline void store_mask(uint8_t *mask, Ints kept) {
    using Bytes = uint8_t __attribute__((vector_size(kLanes)));
    const Bytes bytes = __builtin_convertvector(kept & 1, Bytes);
    std::memcpy(mask, &bytes, sizeof bytes);
}

// The values of blocks of groups that lie side by side.
struct Range {
    Range(const Layout &l, int64_t begin, int64_t end)
        : first(begin * groups_in_block(l) * l.m),
          last(std::min(end * groups_in_block(l), groups_of(l)) * l.m),
          whole(first + (last - first) / kLanes * kLanes) {}

    int64_t first, last, whole;  // `whole` ends the vectors that are full
};

template <class T>
void mask(const T *weight, uint8_t *mask, const Layout &l, int64_t begin, int64_t end) {
    const bool done = with_choice(l, [&, weight, mask](auto kept_of) {
        const Range range(l, begin, end);
        for (int64_t i = range.first; i < range.whole; i += kLanes)
            store_mask(mask + i, kept_of(std::bit_cast<Ints>(load(weight + i))));
        T some[kLanes] = {};
        uint8_t kept[kLanes];
        std::copy(weight + range.whole, weight + range.last, some);
        store_mask(kept, kept_of(std::bit_cast<Ints>(load(some))));
        std::copy_n(kept, range.last - range.whole, mask + range.whole);
    });
    if (done) return;
    Scratch s(l);
    const int64_t in_block = groups_in_block(l);
    for_each_chunk(l, begin * in_block, std::min(end * in_block, groups_of(l)), s.capacity, [&](const Chunk &c) {
        read_weights(weight, c, s);
        choose(c, l, s);
        for_each_piece(c, [&](int64_t at, int64_t from, int64_t length) {
            write_mask(mask + at, &s.keep[from], length);
        });
    });
}

template <class T>
void split(T *weight, T *pruned, const Layout &l, int64_t begin, int64_t end) {
    const bool done = with_choice(l, [&, weight, pruned](auto kept_of) {
        const Range range(l, begin, end);
        for (int64_t i = range.first; i < range.whole; i += kLanes) {
            const Ints bits = std::bit_cast<Ints>(load(weight + i));
            store_split(weight + i, pruned + i, bits, kept_of(bits));
        }
        T some[kLanes] = {}, cut[kLanes];
        std::copy(weight + range.whole, weight + range.last, some);
        const Ints bits = std::bit_cast<Ints>(load(some));
        store_split(some, cut, bits, kept_of(bits));
        std::copy_n(some, range.last - range.whole, weight + range.whole);
        std::copy_n(cut, range.last - range.whole, pruned + range.whole);
    });
    if (done) return;
    Scratch s(l);
    const int64_t in_block = groups_in_block(l);
    for_each_chunk(l, begin * in_block, std::min(end * in_block, groups_of(l)), s.capacity, [&](const Chunk &c) {
        read_weights(weight, c, s);
        choose_and_split(weight, pruned, c, l, s);
    });
}

}  // namespace
}  // namespace nmstep

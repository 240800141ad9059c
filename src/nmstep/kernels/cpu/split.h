// Masks of whole tensors, and the split of weights into what is kept and what is cut.
#pragma once

#include "choose.h"
#include "chunks.h"
#include "numbers.h"

namespace nmstep {
namespace {

int32_t kept_of(const Chunk &c, const Layout &l) { return static_cast<int32_t>(std::min(l.n, c.rows)); }

// Chooses the groups of a chunk whose latent weights lie in the scratch, one in each column, and calls
// put(row of the chunk, column, bits, kept).
template <int ROWS, class Put>
void choose_groups(const Chunk &c, int32_t n, Scratch &s, Put put) {
    for (int64_t g = 0; g < c.groups; ++g) {
        const float *weights = s.latent + g * c.rows * c.columns;
        const auto put_in_group = [&](int64_t row, int64_t column, Ints bits, Ints kept) {
            put(g * c.rows + row, column, bits, kept);
        };
        if (n == 1 && c.rows > 4)
            choose_first_of_columns(weights, c.rows, c.columns, c.columns, put_in_group);
        else
            choose_columns<ROWS>(weights, c.rows, c.columns, c.columns, n, s.ranks.get(), put_in_group);
    }
}

template <class Put>
void choose_down(const Chunk &c, int32_t n, Scratch &s, Put put) {
    switch (c.rows) {
        case 2: return choose_groups<2>(c, n, s, put);
        case 4: return choose_groups<4>(c, n, s, put);
        case 8: return choose_groups<8>(c, n, s, put);
        case 16: return choose_groups<16>(c, n, s, put);
        default: return choose_groups<0>(c, n, s, put);
    }
}

// Groups that no vector holds are turned so that one is in each column, and what is kept is turned back.
void choose_turned(const Chunk &c, int32_t n, Scratch &s) {
    float *const latent = s.latent, *const table = s.table.get();
    int32_t *const keep = s.keep.get(), *const kept_in_table = s.kept_in_table.get();
    for (int64_t g = 0; g < c.groups; ++g)
        for (int64_t r = 0; r < c.rows; ++r) table[r * c.groups + g] = latent[g * c.rows + r];
    s.latent = table;
    choose_down(Chunk{0, 1, c.rows, c.groups, c.groups}, n, s, [&](int64_t row, int64_t column, Ints, Ints kept) {
        store_ints(&kept_in_table[row * c.groups + column], kept);
    });
    s.latent = latent;
    for (int64_t g = 0; g < c.groups; ++g)
        for (int64_t r = 0; r < c.rows; ++r) keep[g * c.rows + r] = kept_in_table[r * c.groups + g];
}

// Marks what is kept of groups one after the other.
void choose_consecutive(const Chunk &c, int32_t n, Scratch &s) {
    const bool done = with_choice(n, c.rows, [&](auto kept_of) {
        for (int64_t i = 0; i < c.groups * c.rows; i += kLanes)
            store_ints(&s.keep[i], kept_of(load_ints(s.latent + i)));
    });
    if (!done) choose_turned(c, n, s);
}

// Marks in the scratch what is kept of a chunk's latent weights, which lie there.
void choose(const Chunk &c, const Layout &l, Scratch &s) {
    const int64_t count = c.groups * c.rows * c.columns;
    const int32_t n = kept_of(c, l);
    int32_t *const keep = s.keep.get();
    if (n == c.rows)
        std::fill_n(keep, count, -1);
    else if (l.inner == 1 && n == 1 && c.rows > kLanes && c.rows % kLanes == 0)
        choose_first_of_wide(s.latent, keep, count, c.rows);
    else if (c.columns == 1)
        choose_consecutive(c, n, s);
    else  // what a vector carries beyond its row is overwritten by the next
        choose_down(c, n, s, [&](int64_t row, int64_t column, Ints, Ints kept) {
            store_ints(&keep[row * c.columns + column], kept);
        });
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

// Splits one vector of weights by what is kept of them.
template <class T>
inline void store_split(T *weight, T *pruned, Ints bits, Ints kept) {
    store(weight, std::bit_cast<Floats>(bits & kept));
    store(pruned, std::bit_cast<Floats>(bits & ~kept));
}

// Chooses and splits the latent weights of a chunk; where rows are as long as a vector, straight from the registers.
template <class T>
void choose_and_split(T *weight, T *pruned, const Chunk &c, const Layout &l, Scratch &s) {
    const int32_t n = kept_of(c, l);
    if (c.columns >= kLanes && n < c.rows) {
        choose_down(c, n, s, [&](int64_t row, int64_t column, Ints bits, Ints kept) {
            const int64_t at = c.start + row * c.stride + column;
            store_split(weight + at, pruned + at, bits, kept);
        });
        return;
    }
    choose(c, l, s);
    for_each_piece(c, [&](int64_t at, int64_t from, int64_t length) {
        write_split(weight + at, pruned + at, &s.latent[from], &s.keep[from], length);
    });
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

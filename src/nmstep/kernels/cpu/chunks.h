// How a tensor is cut into pieces that fit into the first-level cache, and the memory to work on them.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>

#include "vectors.h"

namespace nmstep {
namespace {

constexpr std::align_val_t kLine{64};
constexpr int64_t kChunk = 512;        // values worked on at a time: they, and all scratch, stay in the first cache
constexpr int64_t kWide = 65536;       // the same of groups with long rows, which stay in the second cache
constexpr int64_t kColumns = 256;      // of such groups that are worked on at a time at least
constexpr int64_t kSummed = 4096;      // values whose sums are fp32
constexpr int64_t kBlock = 32768;      // values of a block
constexpr int64_t kAhead = 512;        // bytes, how far ahead of a step memory is asked for what comes next

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t groups_of(const Layout &l) { return l.outer * divide_up(l.size, l.m); }

int64_t groups_in_block(const Layout &l) { return std::max<int64_t>(1, kBlock / (l.m * l.inner)); }

struct Freed {
    void operator()(void *memory) const { ::operator delete[](memory, kLine); }
};

template <class X>
using Aligned = std::unique_ptr<X[], Freed>;

// Memory that begins with a cache line, so that no vector lies across two; zero at first.
template <class X>
Aligned<X> aligned(int64_t count) {
    const size_t size = static_cast<size_t>(count) * sizeof(X);
    void *memory = ::operator new[](size, kLine);
    return Aligned<X>(static_cast<X *>(std::memset(memory, 0, size)));
}

bool has_long_rows(const Layout &l) { return l.inner > 1 && l.m * l.inner > 2 * kChunk; }

// Values of a chunk, which holds at least a vector of whole columns.
int64_t capacity_of(const Layout &l) {
    if (has_long_rows(l)) return std::max(kWide, l.m * kColumns);
    return std::max(kChunk, l.m * (l.inner > 1 ? l.inner : kLanes));
}

// Memory to choose in. Of a chunk without long rows there is a copy of the weights, and of what is kept.
struct Scratch {
    explicit Scratch(const Layout &l)
        : size(has_long_rows(l) ? 0 : capacity_of(l) + kLanes),
          latent(aligned<float>(size)),
          keep(aligned<int32_t>(size)),
          table(aligned<float>(size)),
          kept_in_table(aligned<int32_t>(size)),
          ranks(aligned<Ints>(2 * l.m)) {}

    int64_t size;
    Aligned<float> latent;
    Aligned<int32_t> keep;
    Aligned<float> table;  // of groups that are turned
    Aligned<int32_t> kept_in_table;
    Aligned<Ints> ranks;
};

// A part of the tensor: `groups` whole groups of rows x columns, one after the other in memory, or, where rows are
// long, a piece of the columns of one group, whose rows are `stride` apart.
struct Chunk {
    int64_t start, groups, rows, columns, stride;

    bool in_one_piece() const { return groups > 1 || columns == stride; }
};

// Calls work(start, length) for each consecutive piece of a chunk.
template <class Work>
void for_each_piece(const Chunk &c, Work work) {
    if (c.in_one_piece()) {
        work(c.start, c.groups * c.rows * c.columns);
        return;
    }
    for (int64_t r = 0; r < c.rows; ++r) work(c.start + r * c.stride, c.columns);
}

// Calls work(chunk) for all chunks of a range of blocks.
template <class Work>
void for_each_chunk(const Layout &l, int64_t begin, int64_t end, Work work) {
    const int64_t in_block = groups_in_block(l), last = std::min(end * in_block, groups_of(l));
    const int64_t in_row = divide_up(l.size, l.m), full = l.size / l.m, capacity = capacity_of(l);
    // As many as fill vectors, where so many fit: with their values, or, where they are turned, with one of each.
    const int64_t fits = std::max<int64_t>(1, capacity / (l.m * l.inner));
    const int64_t even = l.inner == 1 ? kLanes : kLanes / std::gcd<int64_t>(kLanes, l.m * l.inner);
    const int64_t fitting = fits < even ? fits : fits / even * even;
    for (int64_t u = begin * in_block; u < last;) {
        const int64_t row = u / in_row, place = u % in_row;
        const int64_t start = (row * l.size + place * l.m) * l.inner;
        const int64_t rows = std::min(l.m, l.size - place * l.m);
        // Whole groups follow each other in memory, from one row to the next too where no group is short.
        const int64_t following = full == in_row ? last - u : std::min(last - u, full - place);
        const int64_t groups = rows < l.m ? 1 : std::min(fitting, following);
        if (groups * rows * l.inner <= capacity) {
            work(Chunk{start, groups, rows, l.inner, l.inner});
        } else {
            const int64_t width = std::max<int64_t>(kLanes, capacity / l.m / kLanes * kLanes);
            for (int64_t c = 0; c < l.inner; c += width)
                work(Chunk{start + c, 1, rows, std::min(width, l.inner - c), l.inner});
        }
        u += groups;
    }
}

}  // namespace
}  // namespace nmstep

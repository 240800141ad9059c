// All kernels, compiled once for each instruction set under the name VARIANT.

#include "variant.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <type_traits>

#include "choose.h"
#include "numbers.h"

namespace nmstep {
namespace {

constexpr int64_t kChunk = 256;        // values worked on at a time: all scratch stays in the first-level cache
constexpr int64_t kColumns = 256;      // of a group whose rows lie apart: long enough pieces for the memory
constexpr int64_t kBlock = 128 * kChunk;  // values of a block

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t groups_of(const Layout &l) { return l.outer * divide_up(l.size, l.m); }

int64_t groups_in_block(const Layout &l) { return std::max<int64_t>(1, kBlock / (l.m * l.inner)); }

// Memory for one chunk, which holds at least a vector of whole columns.
struct Scratch {
    explicit Scratch(const Layout &l)
        : capacity(std::max(kChunk, l.m * (l.inner > 1 ? kColumns : kLanes))),
          latent(new float[capacity + kLanes]()),
          gradient(new float[capacity]),
          keep(new int32_t[capacity + kLanes]),
          table(new int32_t[capacity + l.m * kLanes]()),
          ranks(new Ints[l.m]) {}

    int64_t capacity;
    std::unique_ptr<float[]> latent, gradient;
    std::unique_ptr<int32_t[]> keep, table;
    std::unique_ptr<Ints[]> ranks;
};

// A part of the tensor that fits into the scratch: `groups` whole groups of rows x columns, one after the other in
// memory, or a piece of the columns of one group, whose rows are `stride` apart.
struct Chunk {
    int64_t start, groups, rows, columns, stride;

    bool in_one_piece() const { return groups > 1 || columns == stride; }
};

// Calls work(offset in memory, offset in scratch, length) for each consecutive piece of a chunk.
template <class Work>
void for_each_piece(const Chunk &c, Work work) {
    if (c.in_one_piece()) {
        work(c.start, int64_t{0}, c.groups * c.rows * c.columns);
        return;
    }
    for (int64_t r = 0; r < c.rows; ++r) work(c.start + r * c.stride, r * c.columns, c.columns);
}

// Calls work(chunk) for all chunks of the groups of a range of blocks.
template <class Work>
void for_each_chunk(const Layout &l, int64_t begin, int64_t end, int64_t capacity, Work work) {
    const int64_t in_row = divide_up(l.size, l.m), full = l.size / l.m;
    const int64_t fitting = std::max<int64_t>(1, capacity / (l.m * l.inner));
    for (int64_t u = begin; u < end;) {
        const int64_t row = u / in_row, place = u % in_row;
        const int64_t start = (row * l.size + place * l.m) * l.inner;
        const int64_t rows = std::min(l.m, l.size - place * l.m);
        // Whole groups follow each other in memory, from one row to the next too where no group is short.
        const int64_t following = full == in_row ? end - u : std::min(end - u, full - place);
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

// Puts the ordinals of a chunk into a table with a group in each column, chooses, and takes what is kept out again.
void choose_in_table(const Chunk &c, int32_t n, Scratch &s) {
    const float *latent = s.latent.get();
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
    switch (c.rows) {
        case 2: choose_columns<2>(table, 2, stride, columns, n, nullptr); break;
        case 4: choose_columns<4>(table, 4, stride, columns, n, nullptr); break;
        case 8: choose_columns<8>(table, 8, stride, columns, n, nullptr); break;
        case 16: choose_columns<16>(table, 16, stride, columns, n, nullptr); break;
        default: choose_columns<0>(table, c.rows, stride, columns, n, s.ranks.get());
    }
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

// Calls work(place, keep) for each vector of a chunk whose groups lie side by side in vectors; returns false, and
// calls nothing, where they do not.
template <class Work>
bool for_each_vector(const Chunk &c, const Layout &l, int32_t n, const float *latent, Work work) {
    const int64_t count = c.groups * c.rows;
    if (l.inner != 1 || n == c.rows) return false;
    switch (c.rows) {
        case 2: for_each_rotating<2>(latent, count, n, work); return true;
        case 4: for_each_rotating<4>(latent, count, n, work); return true;
#ifdef __AVX2__
        case 8: for_each_rotating<8>(latent, count, n, work); return true;
#endif
#ifdef __AVX512F__
        case 16: for_each_rotating<16>(latent, count, n, work); return true;
#endif
    }
    return false;
}

int32_t kept_of(const Chunk &c, const Layout &l) { return static_cast<int32_t>(std::min(l.n, c.rows)); }

void choose(const Chunk &c, const Layout &l, Scratch &s) {
    const int64_t count = c.groups * c.rows * c.columns;
    const int32_t n = kept_of(c, l);
    int32_t *keep = s.keep.get();
    if (n == c.rows)
        std::fill_n(keep, count, -1);
    else if (l.inner == 1 && n == 1 && c.rows > kLanes && c.rows % kLanes == 0)
        choose_first_of_wide(s.latent.get(), keep, count, c.rows);
    else if (!for_each_vector(c, l, n, s.latent.get(), [&](int64_t i, Ints kept) { store_ints(keep + i, kept); }))
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

// Chooses and splits the latent weights of a chunk.
template <class T>
void choose_and_split(T *weight, T *pruned, const Chunk &c, const Layout &l, Scratch &s) {
    if constexpr (std::is_same_v<T, float>) {  // whole vectors need not go through memory
        const int64_t count = c.groups * c.rows;
        const float *latent = s.latent.get();
        const auto write = [&](int64_t i, Ints kept) {
            if (i + kLanes > count) {
                store_ints(&s.keep[i], kept);
                write_split(weight + c.start + i, pruned + c.start + i, latent + i, &s.keep[i], count - i);
                return;
            }
            const Ints bits = load_ints(latent + i);
            const Ints running = bits & kept, cut = bits & ~kept;
            std::memcpy(weight + c.start + i, &running, sizeof running);
            std::memcpy(pruned + c.start + i, &cut, sizeof cut);
        };
        if (for_each_vector(c, l, kept_of(c, l), latent, write)) return;
    }
    choose(c, l, s);
    for_each_piece(c, [&](int64_t at, int64_t from, int64_t length) {
        write_split(weight + at, pruned + at, &s.latent[from], &s.keep[from], length);
    });
}

void write_mask(uint8_t *__restrict mask, const int32_t *__restrict keep, int64_t length) {
    for (int64_t i = 0; i < length; ++i) mask[i] = keep[i] & 1;
}

template <class T>
void mask(const T *weight, uint8_t *mask, const Layout &l, int64_t begin, int64_t end) {
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
    Scratch s(l);
    const int64_t in_block = groups_in_block(l);
    for_each_chunk(l, begin * in_block, std::min(end * in_block, groups_of(l)), s.capacity, [&](const Chunk &c) {
        read_weights(weight, c, s);
        choose_and_split(weight, pruned, c, l, s);
    });
}

// How the second moment enters a step.
enum class Variance { updated, floored, frozen };

// One consecutive piece of a parameter. `latent` takes the stepped weights of a sparse parameter; `added` holds the
// gradients where something was added to them.
template <class T, class V>
struct Piece {
    T *weight;
    const T *pruned, *grad;
    T *exp_avg;
    V *exp_avg_sq;
    float *latent, *added;
    int64_t length;
};

template <class T, class V>
Piece<T, V> piece_of(const Parameter<T, V> &p, int64_t at, int64_t length, float *latent, float *added) {
    const T *pruned = p.pruned == nullptr ? nullptr : p.pruned + at;
    return {p.weight + at, pruned, p.grad + at, p.exp_avg + at, p.exp_avg_sq + at, latent, added, length};
}

// One step of Adam, as one loop, so that arithmetic and memory overlap.
template <bool kSparse, Variance kVariance, bool kAdded, bool kSums, class T, class V>
void update(const Piece<T, V> &piece, const Adam &a, VarianceSums *sums) {
    T *__restrict weight = piece.weight, *__restrict m = piece.exp_avg;
    V *__restrict v = piece.exp_avg_sq;
    const T *__restrict pruned = piece.pruned, *__restrict grad = piece.grad;
    float *__restrict latent = piece.latent;
    const float *__restrict added = piece.added;
    // torch's lerp, which interpolates from the nearer end.
    const bool near = a.one_minus_beta1 < 0.5f;
    const float share = near ? a.one_minus_beta1 : a.one_minus_beta1 - 1;
    float change = 0, norm1 = 0, norm2 = 0;
#pragma omp simd reduction(+ : change, norm1, norm2)
    for (int64_t i = 0; i < piece.length; ++i) {
        const float gradient = kAdded ? added[i] : a.sign * load(grad[i]);
        const float before = load(v[i]), first = load(m[i]);
        store(&m[i], fma_or_not(share, gradient - first, near ? first : gradient));
        float second = before;
        if (kVariance != Variance::frozen) {
            store(&v[i], fma_or_not(a.one_minus_beta2 * gradient, gradient, before * a.beta2));
            second = load(v[i]);
        }
        if (kSums) {
            if (kVariance != Variance::frozen) change += std::fabs(fma_or_not(-gradient, gradient, before));
            norm1 += second;
            norm2 += second * second;
        }
        float root;
        if (kVariance == Variance::frozen) root = std::sqrt(second + a.eps_root);
        if (kVariance == Variance::floored) root = std::sqrt(second / a.correction2 + a.eps_root);
        if (kVariance == Variance::updated) root = std::sqrt(second) / a.sqrt_correction2;
        const float old = kSparse ? load(weight[i]) + load(pruned[i]) : load(weight[i]);
        const float moved = old * a.decay + -a.step_size * load(m[i]) / (root + a.eps);
        if (kSparse)
            latent[i] = rounded<T>(moved);
        else
            store(&weight[i], moved);
    }
    if (kSums) {
        sums->change += static_cast<double>(change) * a.one_minus_beta2;
        sums->norm1 += norm1;
        sums->norm2_squared += norm2;
    }
}

template <bool kSparse, bool kAdded, bool kSums, class T, class V>
void update_as_told(const Piece<T, V> &piece, const Adam &a, VarianceSums *sums) {
    if constexpr (!std::is_same_v<T, V>)
        update<kSparse, Variance::frozen, kAdded, kSums>(piece, a, sums);
    else if (a.frozen)
        update<kSparse, Variance::frozen, kAdded, kSums>(piece, a, sums);
    else if (a.eps_root != 0)
        update<kSparse, Variance::floored, kAdded, kSums>(piece, a, sums);
    else
        update<kSparse, Variance::updated, kAdded, kSums>(piece, a, sums);
}

// The same, after SR-STE's term for what is cut and coupled decay were added to the gradients where they are wanted.
template <bool kSparse, class T, class V>
void take_step(const Piece<T, V> &piece, const Adam &a, VarianceSums *sums) {
    const bool refines = kSparse && a.refine != 0;
    if (!refines && a.coupled == 0) {
        if (sums != nullptr)
            update_as_told<kSparse, false, true>(piece, a, sums);
        else
            update_as_told<kSparse, false, false>(piece, a, sums);
        return;
    }
    float *__restrict added = piece.added;
    for (int64_t i = 0; i < piece.length; ++i) added[i] = a.sign * load(piece.grad[i]);
    if (refines)
        for (int64_t i = 0; i < piece.length; ++i) added[i] = fma_or_not(load(piece.pruned[i]), a.refine, added[i]);
    if (a.coupled != 0)
        for (int64_t i = 0; i < piece.length; ++i) {
            const float latent = kSparse ? load(piece.weight[i]) + load(piece.pruned[i]) : load(piece.weight[i]);
            added[i] = fma_or_not(latent, a.coupled, added[i]);
        }
    if (sums != nullptr)
        update_as_told<kSparse, true, true>(piece, a, sums);
    else
        update_as_told<kSparse, true, false>(piece, a, sums);
}

template <class T, class V>
void sparse_step(const Parameter<T, V> &p, const Layout &l, const Adam &a, VarianceSums *sums, int64_t begin,
                 int64_t end) {
    Scratch s(l);
    const int64_t in_block = groups_in_block(l), all = groups_of(l);
    for (int64_t block = begin; block < end; ++block) {
        VarianceSums *own = sums == nullptr ? nullptr : &sums[block];
        for_each_chunk(l, block * in_block, std::min((block + 1) * in_block, all), s.capacity, [&](const Chunk &c) {
            for_each_piece(c, [&](int64_t at, int64_t to, int64_t length) {
                take_step<true>(piece_of(p, at, length, &s.latent[to], &s.gradient[to]), a, own);
            });
            choose_and_split(p.weight, p.pruned, c, l, s);
        });
    }
}

template <class T, class V>
void dense_step(const Parameter<T, V> &p, int64_t numel, const Adam &a, VarianceSums *sums, int64_t begin,
                int64_t end) {
    float gradient[kChunk];
    for (int64_t block = begin; block < end; ++block) {
        VarianceSums *own = sums == nullptr ? nullptr : &sums[block];
        const int64_t stop = std::min((block + 1) * kBlock, numel);
        for (int64_t at = block * kBlock; at < stop; at += kChunk)
            take_step<false>(piece_of(p, at, std::min(kChunk, stop - at), nullptr, gradient), a, own);
    }
}

template <class T>
constexpr Masks<T> masks() {
    return {&mask<T>, &split<T>};
}

template <class T, class V>
constexpr Steps<T, V> steps() {
    return {&sparse_step<T, V>, &dense_step<T, V>};
}

}  // namespace

#define NMSTEP_NAME_OF(name) #name
#define NMSTEP_NAME(name) NMSTEP_NAME_OF(name)

extern const Variant VARIANT;
const Variant VARIANT = {NMSTEP_NAME(VARIANT), masks<float>(),       masks<bf16>(),
                         steps<float, float>(), steps<float, bf16>(), steps<bf16, bf16>()};

#ifdef NMSTEP_COUNTS_BLOCKS
int64_t blocks_of_groups(const Layout &l) { return divide_up(groups_of(l), groups_in_block(l)); }

int64_t blocks_of_values(int64_t numel) { return divide_up(numel, kBlock); }
#endif

}  // namespace nmstep

// Which N of M are kept: counts, for each weight, those of its group that go before it. Linear in the number of
// weights, and in M; no sorting and no branches on data. What is kept is marked by -1, what is not by 0.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <utility>

namespace nmstep {
namespace {

#ifdef __AVX512F__
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

using Ints = int32_t __attribute__((vector_size(4 * kLanes)));

inline Ints load_ints(const void *from) {
    Ints value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

inline void store_ints(int32_t *to, Ints value) { std::memcpy(to, &value, sizeof value); }

// Integers in the order of the magnitudes; every NaN is the same and above infinity.
inline Ints ordinals(const float *values) {
    constexpr int32_t infinity = 0x7f800000;
    const Ints bits = load_ints(values) & 0x7fffffff;
    return bits > infinity ? Ints{} + (infinity + 1) : bits;
}

inline int32_t ordinal(float value) {
    const int32_t bits = std::bit_cast<int32_t>(value) & 0x7fffffff;
    return bits > 0x7f800000 ? 0x7f800001 : bits;
}

// Groups of M lanes side by side in a vector: each lane meets the others of its group as they rotate by.
template <int M, int K, int... L>
inline Ints met_at(Ints mine, std::integer_sequence<int, L...>) {
    const Ints other = __builtin_shufflevector(mine, mine, ((L / M) * M + (L + K) % M)...);
    const Ints lower = {(L % M + K >= M ? -1 : 0)...};  // the other has the lower index and wins a tie
    return (other - lower) > mine;
}

template <int M, int... K>
inline Ints rank_rotating(Ints mine, std::integer_sequence<int, K...>) {
    Ints rank{};
    ((rank -= met_at<M, K + 1>(mine, std::make_integer_sequence<int, kLanes>{})), ...);
    return rank;
}

// Chooses in consecutive groups of M. Reads and writes up to a vector beyond `count`.
template <int M>
void choose_rotating(const float *weights, int32_t *keep, int64_t count, int32_t n) {
    for (int64_t i = 0; i < count; i += kLanes) {
        const Ints rank = rank_rotating<M>(ordinals(weights + i), std::make_integer_sequence<int, M - 1>{});
        store_ints(keep + i, rank < n);
    }
}

// A group in each column: `rows` rows of ordinals, `stride` apart, which are replaced by what is kept of them. Works
// on up to a vector beyond the last column. ROWS is `rows`, or 0 where it is known at run time only.
template <int ROWS>
void choose_columns(int32_t *table, int64_t rows, int64_t stride, int64_t columns, int32_t n, Ints *ranks) {
    constexpr int fixed = ROWS > 0 ? ROWS : 1;
    const int64_t count = ROWS > 0 ? ROWS : rows;
    Ints in_registers[fixed];
    Ints *const rank = ROWS > 0 ? in_registers : ranks;
    for (int64_t c = 0; c < columns; c += kLanes) {
        // Each pair has one that goes before; the earlier row starts as if it never did.
#pragma GCC unroll 16
        for (int64_t i = 0; i < count; ++i) rank[i] = Ints{} + static_cast<int32_t>(count - 1 - i);
#pragma GCC unroll 16
        for (int64_t i = 0; i < count; ++i) {
            const Ints mine = load_ints(table + i * stride + c);
#pragma GCC unroll 16
            for (int64_t j = i + 1; j < count; ++j) {
                const Ints before = mine >= load_ints(table + j * stride + c);
                rank[j] -= before;
                rank[i] += before;
            }
        }
#pragma GCC unroll 16
        for (int64_t i = 0; i < count; ++i) store_ints(table + i * stride + c, rank[i] < n);
    }
}

}  // namespace
}  // namespace nmstep

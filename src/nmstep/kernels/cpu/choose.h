// Which N of M are kept: counts, for each weight, those of its group that go before it. Linear in the number of
// weights, and in M; no sorting and no branches on data. What is kept is marked by -1, what is not by 0.
#pragma once

#include <algorithm>
#include <utility>

#include "vectors.h"

namespace nmstep {
namespace {

// Integers in the order of the magnitudes; every NaN is the same and above infinity.
inline Ints ordinals(Ints bits) {
    const Ints magnitude = bits & 0x7fffffff, nan = Ints{} + 0x7f800001;
    return magnitude < nan ? magnitude : nan;
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

// The N of M of groups side by side in a vector, and the one of M where N is 1: the lowest lane with the greatest.
template <int M>
inline Ints kept_of(Ints mine, int32_t n) {
    return rank_rotating<M>(mine, std::make_integer_sequence<int, M - 1>{}) < n;
}

template <int M, int STEP, int... L>
inline Ints rotated(Ints value, std::integer_sequence<int, L...>) {
    return __builtin_shufflevector(value, value, ((L / M) * M + (L + STEP) % M)...);
}

// Leaves in every lane what `best` makes of all lanes of its group.
template <int M, int STEP, class Best>
inline Ints folded(Ints value, Best best) {
    if constexpr (STEP < M) {
        const Ints met = best(value, rotated<M, STEP>(value, std::make_integer_sequence<int, kLanes>{}));
        return folded<M, 2 * STEP>(met, best);
    } else {
        return value;
    }
}

inline Ints greater(Ints a, Ints b) { return a > b ? a : b; }

inline Ints smaller(Ints a, Ints b) { return a < b ? a : b; }

template <int... L>
inline Ints lanes_from(int32_t start, std::integer_sequence<int, L...>) {
    return Ints{L...} + start;
}

inline Ints lanes_from(int32_t start) { return lanes_from(start, std::make_integer_sequence<int, kLanes>{}); }

template <int M>
inline Ints first_kept_of(Ints mine) {
    const Ints greatest = mine == folded<M, 1>(mine, greater);
#ifdef __AVX512F__
    // A bit a lane: one added to the complement of a group's bits carries as far as the lowest that is set.
    constexpr uint32_t one_a_group = 0xffff / ((1u << M) - 1);
    const uint32_t bits = _mm512_movepi32_mask(std::bit_cast<__m512i>(greatest));
    return std::bit_cast<Ints>(_mm512_movm_epi32(static_cast<__mmask16>(bits & (~bits + one_a_group))));
#else
    const Ints lane = lanes_from(0), candidate = greatest ? lane : Ints{} + kLanes;
    return lane == folded<M, 1>(candidate, smaller);
#endif
}

// Calls work(choose) with a function that says what is kept of a vector's weights, whole groups one after the other;
// returns false, and calls nothing, where a vector does not hold such groups.
template <int M, class Work>
inline bool with_choice_of(int32_t n, Work work) {
    if (M > 4 && n == 1)
        work([](Ints bits) { return first_kept_of<M>(ordinals(bits)); });
    else
        work([n](Ints bits) { return kept_of<M>(ordinals(bits), n); });
    return true;
}

template <class Work>
inline bool with_choice(int64_t n, int64_t m, Work work) {
    const int32_t kept = static_cast<int32_t>(n);
    switch (m) {
        case 2: return with_choice_of<2>(kept, work);
        case 4: return with_choice_of<4>(kept, work);
#ifdef __AVX2__
        case 8: return with_choice_of<8>(kept, work);
#endif
#ifdef __AVX512F__
        case 16: return with_choice_of<16>(kept, work);
#endif
        default: return false;
    }
}

// The same for all of a tensor.
template <class Work>
inline bool with_choice(const Layout &l, Work work) {
    return l.inner == 1 && l.n < l.m && l.size % l.m == 0 && with_choice(l.n, l.m, work);
}

// The greatest of each consecutive group of m, a multiple of the lanes: its lowest place, in vectors.
inline void choose_first_of_wide(const float *weights, int32_t *keep, int64_t count, int64_t m) {
    for (int64_t group = 0; group < count; group += m) {
        Ints most = ordinals(load_ints(weights + group));
        for (int64_t i = kLanes; i < m; i += kLanes) most = greater(most, ordinals(load_ints(weights + group + i)));
        most = folded<kLanes, 1>(most, greater);
        Ints first = Ints{} + static_cast<int32_t>(m);
        for (int64_t i = 0; i < m; i += kLanes) {
            const Ints place = lanes_from(static_cast<int32_t>(i));
            first = smaller(first, ordinals(load_ints(weights + group + i)) == most ? place : first);
        }
        first = folded<kLanes, 1>(first, smaller);
        for (int64_t i = 0; i < m; i += kLanes)
            store_ints(keep + group + i, lanes_from(static_cast<int32_t>(i)) == first);
    }
}

// Columns of a tensor: a vector ends where its row does.
struct InPlace {
    template <class Work>
    static void for_each_vector_of(int64_t columns, Work work) {
        for_each_vector(columns, work);
    }
};

// Columns of scratch memory, which may be read and written beyond a row: the last vector of a row starts early enough
// not to, or, where the row is shorter than a vector, is overwritten by the next row.
struct InScratch {
    template <class Work>
    static void for_each_vector_of(int64_t columns, Work work) {
        for (int64_t c = 0; c < columns; c += kLanes)
            work(std::min(c, std::max<int64_t>(0, columns - kLanes)), AllLanes{});
    }
};

// A group in each column: `rows` rows of weights, `stride` apart. Calls put(row, column, lanes, bits, kept) with the
// vectors of each column in the order of the rows. ROWS is `rows`, or 0 where it is known at run time only; then
// `scratch` has twice as many vectors.
template <class MEMORY, int ROWS, class T, class Put>
inline void choose_columns(const T *weights, int64_t rows, int64_t stride, int64_t columns, int32_t n, Ints *scratch,
                           Put put) {
    constexpr int fixed = ROWS > 0 ? ROWS : 1;
    const int64_t count = ROWS > 0 ? ROWS : rows;
    Ints ranks[fixed], own[fixed];
    Ints *const rank = ROWS > 0 ? ranks : scratch, *const mine = ROWS > 0 ? own : scratch + rows;
    MEMORY::for_each_vector_of(columns, [&](int64_t c, auto lanes) {
        const auto bits = [&](int64_t row) { return std::bit_cast<Ints>(load(weights + row * stride + c, lanes)); };
        // Each pair has one that goes before; the earlier row starts as if it never did.
#pragma GCC unroll 16
        for (int64_t i = 0; i < count; ++i) {
            rank[i] = Ints{} + static_cast<int32_t>(count - 1 - i);
            mine[i] = ordinals(bits(i));
        }
#pragma GCC unroll 16
        for (int64_t i = 0; i < count; ++i)
#pragma GCC unroll 16
            for (int64_t j = i + 1; j < count; ++j) {
                const Ints before = mine[i] >= mine[j];
                rank[j] -= before;
                rank[i] += before;
            }
#pragma GCC unroll 16
        for (int64_t i = 0; i < count; ++i) put(i, c, lanes, bits(i), rank[i] < n);
    });
}

// The same where one is kept: the first of the greatest.
template <class MEMORY, class T, class Put>
inline void choose_first_of_columns(const T *weights, int64_t rows, int64_t stride, int64_t columns, Put put) {
    MEMORY::for_each_vector_of(columns, [&](int64_t c, auto lanes) {
        const auto bits = [&](int64_t row) { return std::bit_cast<Ints>(load(weights + row * stride + c, lanes)); };
        Ints most = ordinals(bits(0)), first{};
        for (int64_t i = 1; i < rows; ++i) {
            const Ints other = ordinals(bits(i)), before = other > most;
            most = greater(most, other);
            first = before ? Ints{} + static_cast<int32_t>(i) : first;
        }
        for (int64_t i = 0; i < rows; ++i) put(i, c, lanes, bits(i), first == Ints{} + static_cast<int32_t>(i));
    });
}

}  // namespace
}  // namespace nmstep

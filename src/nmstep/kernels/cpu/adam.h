// Steps of Adam, dense and sparse.
#pragma once

#include "split.h"

namespace nmstep {
namespace {

// How the second moment enters a step.
enum class Variance { updated, floored, frozen };

// A part of a parameter that is stepped in one go.
template <class T, class V>
struct Piece {
    T *weight, *pruned;
    const T *grad;
    T *exp_avg;
    V *exp_avg_sq;
};

template <class T, class V>
Piece<T, V> piece_at(const Parameter<T, V> &p, int64_t at) {
    T *pruned = p.pruned == nullptr ? nullptr : p.pruned + at;
    return {p.weight + at, pruned, p.grad + at, p.exp_avg + at, p.exp_avg_sq + at};
}

// A step of one vector after the other, and the sums over them.
template <Variance kVariance>
struct Stepper {
    // torch's lerp interpolates from the nearer end.
    explicit Stepper(const Adam &adam)
        : a(adam), near(a.one_minus_beta1 < 0.5f), share(near ? a.one_minus_beta1 : a.one_minus_beta1 - 1) {}

    // Stores the moments and returns the stepped weights, as the parameter would hold them.
    template <bool kSparse, class T, class V>
    Floats step(const Piece<T, V> &p, int64_t i) {
        const Floats cut = kSparse ? load(p.pruned + i) : Floats{};
        const Floats weight = kSparse ? load(p.weight + i) + cut : load(p.weight + i);
        Floats gradient = a.sign * load(p.grad + i);
        if (kSparse && a.refine != 0) gradient = fma_or_not(cut, Floats{} + a.refine, gradient);
        if (a.coupled != 0) gradient = fma_or_not(weight, Floats{} + a.coupled, gradient);
        const Floats moved = load(p.exp_avg + i);
        const Floats first = rounded<T>(fma_or_not(Floats{} + share, gradient - moved, near ? moved : gradient));
        store(p.exp_avg + i, first);
        return rounded<T>(weight * a.decay + -a.step_size * first / (denominator(p, i, gradient) + a.eps));
    }

    template <class T, class V>
    Floats denominator(const Piece<T, V> &p, int64_t i, Floats gradient) {
        const Floats before = load(p.exp_avg_sq + i);
        Floats second = before;
        if constexpr (kVariance != Variance::frozen) {
            second = rounded<V>(fma_or_not(a.one_minus_beta2 * gradient, gradient, before * a.beta2));
            store(p.exp_avg_sq + i, second);
            change += magnitude(fma_or_not(-gradient, gradient, before));
        }
        norm1 += second;
        norm2 += second * second;
        if constexpr (kVariance == Variance::frozen) return root(second + a.eps_root);
        if constexpr (kVariance == Variance::floored) return root(second / a.correction2 + a.eps_root);
        return root(second) / a.sqrt_correction2;
    }

    // Adds what was summed up to a block's sums. In fp32 that is exact enough for a few hundred values a lane.
    void add_to(VarianceSums *sums) {
        if (sums != nullptr) {
            sums->change += total(change) * a.one_minus_beta2;
            sums->norm1 += total(norm1);
            sums->norm2_squared += total(norm2);
        }
        change = norm1 = norm2 = Floats{};
    }

    const Adam a;
    const bool near;
    const float share;
    Floats change{}, norm1{}, norm2{};
};

template <class Work>
void with_stepper(const Adam &a, Work work) {
    if (a.frozen)
        work(Stepper<Variance::frozen>(a));
    else if (a.eps_root != 0)
        work(Stepper<Variance::floored>(a));
    else
        work(Stepper<Variance::updated>(a));
}

// Only a frozen variance can be held in another type than the weights.
template <class T, class V, class Work>
void with_stepper_of(const Adam &a, Work work) {
    if constexpr (std::is_same_v<T, V>)
        with_stepper(a, work);
    else
        work(Stepper<Variance::frozen>(a));
}

// Calls work(piece, 0) on a copy of the last few values, fewer than a vector's, and takes back what became of them.
template <class T, class V, class Work>
void on_copy(const Piece<T, V> &p, int64_t from, int64_t count, Work work) {
    T weight[kLanes] = {}, pruned[kLanes] = {}, grad[kLanes] = {}, exp_avg[kLanes] = {};
    V exp_avg_sq[kLanes] = {};
    std::copy_n(p.weight + from, count, weight);
    if (p.pruned != nullptr) std::copy_n(p.pruned + from, count, pruned);
    std::copy_n(p.grad + from, count, grad);
    std::copy_n(p.exp_avg + from, count, exp_avg);
    std::copy_n(p.exp_avg_sq + from, count, exp_avg_sq);
    work(Piece<T, V>{weight, pruned, grad, exp_avg, exp_avg_sq}, int64_t{0});
    std::copy_n(weight, count, p.weight + from);
    if (p.pruned != nullptr) std::copy_n(pruned, count, p.pruned + from);
    std::copy_n(exp_avg, count, p.exp_avg + from);
    std::copy_n(exp_avg_sq, count, p.exp_avg_sq + from);
}

// Calls work(piece, place) for each vector of a piece.
template <class T, class V, class Work>
void for_each_vector(const Piece<T, V> &p, int64_t length, Work work) {
    const int64_t whole = length / kLanes * kLanes;
    for (int64_t i = 0; i < whole; i += kLanes) work(p, i);
    if (whole < length) on_copy(p, whole, length - whole, work);
}

template <class T, class V>
void dense_step(const Parameter<T, V> &p, int64_t numel, const Adam &a, VarianceSums *sums, int64_t begin,
                int64_t end) {
    with_stepper_of<T, V>(a, [=](auto stepper) {
        for (int64_t at = begin * kBlock; at < std::min(end * kBlock, numel); at += kSummed) {
            for_each_vector(piece_at(p, at), std::min(kSummed, numel - at), [&](const auto &piece, int64_t i) {
                store(piece.weight + i, stepper.template step<false>(piece, i));
            });
            stepper.add_to(sums == nullptr ? nullptr : &sums[at / kBlock]);
        }
    });
}

// The sums of a dense step that somebody else will take: what it will do to the second moment.
template <class T>
void foresee(const Parameter<T, T> &p, int64_t numel, const Adam &a, VarianceSums *sums, int64_t begin, int64_t end) {
    for (int64_t at = begin * kBlock; at < std::min(end * kBlock, numel); at += kSummed) {
        Floats change{}, norm1{}, norm2{};
        const auto look = [&](const T *grads, const T *seconds) {
            const Floats gradient = load(grads), before = load(seconds);
            const Floats second = rounded<T>(fma_or_not(a.one_minus_beta2 * gradient, gradient, before * a.beta2));
            change += magnitude(fma_or_not(-gradient, gradient, before));
            norm1 += second;
            norm2 += second * second;
        };
        const int64_t length = std::min(kSummed, numel - at), whole = length / kLanes * kLanes;
        for (int64_t i = at; i < at + whole; i += kLanes) look(p.grad + i, p.exp_avg_sq + i);
        T grads[kLanes] = {}, seconds[kLanes] = {};
        std::copy_n(p.grad + at + whole, length - whole, grads);
        std::copy_n(p.exp_avg_sq + at + whole, length - whole, seconds);
        look(grads, seconds);
        VarianceSums &sum = sums[at / kBlock];
        sum.change += total(change) * a.one_minus_beta2;
        sum.norm1 += total(norm1);
        sum.norm2_squared += total(norm2);
    }
}

// Groups side by side in vectors: a vector is stepped, chosen from and split before it leaves the registers.
template <class T, class V, class Stepper, class KeptOf>
void step_side_by_side(const Parameter<T, V> &p, const Layout &l, Stepper stepper, KeptOf kept_of, VarianceSums *sums,
                       int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
        const Range range(l, block, block + 1);
        for (int64_t at = range.first; at < range.last; at += kSummed) {
            for_each_vector(piece_at(p, at), std::min(kSummed, range.last - at), [&](const auto &piece, int64_t i) {
                const Ints bits = std::bit_cast<Ints>(stepper.template step<true>(piece, i));
                store_split(piece.weight + i, piece.pruned + i, bits, kept_of(bits));
            });
            stepper.add_to(sums == nullptr ? nullptr : &sums[block]);
        }
    }
}

// Steps a consecutive piece into `latent`.
template <class T, class V, class Stepper>
void step_into(float *latent, const Piece<T, V> &p, int64_t length, Stepper &stepper) {
    const int64_t whole = length / kLanes * kLanes;
    for (int64_t i = 0; i < whole; i += kLanes) store(latent + i, stepper.template step<true>(p, i));
    if (whole < length)
        on_copy(p, whole, length - whole, [&](const auto &piece, int64_t i) {
            float some[kLanes];
            store(some, stepper.template step<true>(piece, i));
            std::copy_n(some, length - whole, latent + whole);
        });
}

// A chunk whose rows are long: they are stepped in the order of the memory, then masks are chosen part by part.
template <class T, class V, class Stepper>
void step_long_rows(const Parameter<T, V> &p, const Chunk &c, const Layout &l, Stepper &stepper, Scratch &s) {
    float *const latent = s.latent;
    for (int64_t row = 0; row < c.groups * c.rows; ++row)
        for (int64_t column = 0; column < c.columns; column += kColumns) {
            const int64_t length = std::min(kColumns, c.columns - column), group = row / c.rows;
            float *to = latent + (group * c.columns + column) * c.rows + row % c.rows * length;
            step_into(to, piece_at(p, c.start + row * c.stride + column), length, stepper);
        }
    for (int64_t group = 0; group < c.groups; ++group)
        for (int64_t column = 0; column < c.columns; column += kColumns) {
            const int64_t start = c.start + group * c.rows * c.stride + column;
            s.latent = latent + (group * c.columns + column) * c.rows;
            const Chunk part{start, 1, c.rows, std::min(kColumns, c.columns - column), c.stride};
            choose_and_split(p.weight, p.pruned, part, l, s);
        }
    s.latent = latent;
}

template <class T, class V, class Stepper>
void step_in_chunks(const Parameter<T, V> &p, const Layout &l, Stepper stepper, VarianceSums *sums, int64_t begin,
                    int64_t end) {
    Scratch s(l);
    const int64_t in_block = groups_in_block(l), all = groups_of(l);
    const int64_t capacity = l.inner > kColumns ? Scratch::wide(l) : s.capacity;
    for (int64_t block = begin; block < end; ++block)
        for_each_chunk(l, block * in_block, std::min((block + 1) * in_block, all), capacity, [&](const Chunk &c) {
            if (l.inner > kColumns) {
                step_long_rows(p, c, l, stepper, s);
            } else {
                step_into(s.latent, piece_at(p, c.start), c.groups * c.rows * c.columns, stepper);
                choose_and_split(p.weight, p.pruned, c, l, s);
            }
            stepper.add_to(sums == nullptr ? nullptr : &sums[block]);
        });
}

template <class T, class V>
void sparse_step(const Parameter<T, V> &p, const Layout &l, const Adam &a, VarianceSums *sums, int64_t begin,
                 int64_t end) {
    with_stepper_of<T, V>(a, [&](auto stepper) {
        const bool done = with_choice(l, [&](auto kept_of) {
            step_side_by_side(p, l, stepper, kept_of, sums, begin, end);
        });
        if (!done) step_in_chunks(p, l, stepper, sums, begin, end);
    });
}

}  // namespace
}  // namespace nmstep

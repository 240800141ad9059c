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

    // Asks for what will be stepped soon: five tensors are more than the processor foresees by itself, least of all
    // from one page to the next.
    template <bool kSparse>
    void fetch_after(int64_t i) const {
        fetch(weight + i);
        if constexpr (kSparse) fetch(pruned + i);
        fetch(grad + i);
        fetch(exp_avg + i);
        fetch(exp_avg_sq + i);
    }

    // What is asked for may lie beyond the end.
    static void fetch(const void *at) {
        __builtin_prefetch(static_cast<const char *>(at) + kAhead);
    }
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
    template <bool kSparse, class T, class V, class Lanes>
    Floats step(const Piece<T, V> &p, int64_t i, Lanes lanes) {
        p.template fetch_after<kSparse>(i);
        const Floats cut = kSparse ? load(p.pruned + i, lanes) : Floats{};
        const Floats weight = kSparse ? load(p.weight + i, lanes) + cut : load(p.weight + i, lanes);
        Floats gradient = a.sign * load(p.grad + i, lanes);
        if (kSparse && a.refine != 0) gradient = fma_or_not(cut, Floats{} + a.refine, gradient);
        if (a.coupled != 0) gradient = fma_or_not(weight, Floats{} + a.coupled, gradient);
        const Floats moved = load(p.exp_avg + i, lanes);
        const Floats first = rounded<T>(fma_or_not(Floats{} + share, gradient - moved, near ? moved : gradient));
        store(p.exp_avg + i, first, lanes);
        return rounded<T>(weight * a.decay + -a.step_size * first / (denominator(p, i, lanes, gradient) + a.eps));
    }

    template <class T, class V, class Lanes>
    Floats denominator(const Piece<T, V> &p, int64_t i, Lanes lanes, Floats gradient) {
        const Floats before = load(p.exp_avg_sq + i, lanes);
        Floats second = before;
        if constexpr (kVariance != Variance::frozen) {
            second = rounded<V>(fma_or_not(a.one_minus_beta2 * gradient, gradient, before * a.beta2));
            store(p.exp_avg_sq + i, second, lanes);
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

VarianceSums *sums_of(VarianceSums *sums, int64_t block) { return sums == nullptr ? nullptr : &sums[block]; }

// Calls work(start, length) for runs of so many values that their sums may be fp32, and adds those up.
template <class Stepper, class Work>
void for_each_summed(int64_t start, int64_t length, Stepper &stepper, VarianceSums *sums, Work work) {
    for (int64_t done = 0; done < length; done += kSummed) {
        work(start + done, std::min(kSummed, length - done));
        stepper.add_to(sums);
    }
}

// Steps a consecutive piece; of a sparse one the weight then holds what is still to be split.
template <bool kSparse, class T, class V, class Stepper>
void step_piece(const Piece<T, V> &p, int64_t length, Stepper &stepper) {
    for_each_vector(length, [&](int64_t i, auto lanes) {
        store(p.weight + i, stepper.template step<kSparse>(p, i, lanes), lanes);
    });
}

template <class T, class V>
void dense_step(const Parameter<T, V> &p, int64_t numel, const Adam &a, VarianceSums *sums, int64_t begin,
                int64_t end) {
    with_stepper_of<T, V>(a, [=](auto stepper) {
        for (int64_t block = begin; block < end; ++block)
            for_each_summed(block * kBlock, std::min(kBlock, numel - block * kBlock), stepper, sums_of(sums, block),
                            [&](int64_t at, int64_t length) { step_piece<false>(piece_at(p, at), length, stepper); });
    });
}

// The sums of a dense step that somebody else will take: what it will do to the second moment.
template <class T>
void foresee(const Parameter<T, T> &p, int64_t numel, const Adam &a, VarianceSums *sums, int64_t begin, int64_t end) {
    for (int64_t at = begin * kBlock; at < std::min(end * kBlock, numel); at += kSummed) {
        Floats change{}, norm1{}, norm2{};
        for_each_vector(std::min(kSummed, numel - at), [&](int64_t i, auto lanes) {
            const Floats gradient = load(p.grad + at + i, lanes), before = load(p.exp_avg_sq + at + i, lanes);
            const Floats second = rounded<T>(fma_or_not(a.one_minus_beta2 * gradient, gradient, before * a.beta2));
            change += magnitude(fma_or_not(-gradient, gradient, before));
            norm1 += second;
            norm2 += second * second;
        });
        VarianceSums &sum = sums[at / kBlock];
        sum.change += total(change) * a.one_minus_beta2;
        sum.norm1 += total(norm1);
        sum.norm2_squared += total(norm2);
    }
}

// Groups side by side in vectors: a vector is stepped, chosen from and split before it leaves the registers. The choice
// comes two vectors late, so that it need not wait for the root and the quotient of its own step.
template <class T, class V, class Stepper, class KeptOf>
void step_and_split(const Piece<T, V> &p, int64_t length, Stepper &stepper, KeptOf kept_of) {
    const auto step = [&](int64_t i, auto lanes) {
        return std::bit_cast<Ints>(stepper.template step<true>(p, i, lanes));
    };
    const auto put = [&](int64_t i, auto lanes, Ints bits) {
        store_split(p.weight + i, p.pruned + i, lanes, bits, kept_of(bits));
    };
    const int64_t whole = length / kLanes * kLanes;
    Ints before{}, last{};
#pragma GCC unroll 2
    for (int64_t i = 0; i < whole; i += kLanes) {
        const Ints stepped = step(i, AllLanes{});
        if (i >= 2 * kLanes) put(i - 2 * kLanes, AllLanes{}, before);
        before = last;
        last = stepped;
    }
    if (whole > kLanes) put(whole - 2 * kLanes, AllLanes{}, before);
    if (whole > 0) put(whole - kLanes, AllLanes{}, last);
    if (whole < length) put(whole, length - whole, step(whole, length - whole));
}

template <class T, class V, class Stepper, class KeptOf>
void step_side_by_side(const Parameter<T, V> &p, const Layout &l, Stepper stepper, KeptOf kept_of, VarianceSums *sums,
                       int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
        const Range range(l, block, block + 1);
        for_each_summed(range.first, range.length, stepper, sums_of(sums, block), [&](int64_t at, int64_t length) {
            step_and_split(piece_at(p, at), length, stepper, kept_of);
        });
    }
}

// Other groups: a chunk is stepped in the order of the memory, in few and long runs, then split.
template <class T, class V, class Stepper>
void step_in_chunks(const Parameter<T, V> &p, const Layout &l, Stepper stepper, VarianceSums *sums, int64_t begin,
                    int64_t end) {
    const auto step = [&](int64_t at, int64_t length) { step_piece<true>(piece_at(p, at), length, stepper); };
    Scratch s(l);
    for (int64_t block = begin; block < end; ++block)
        for_each_chunk(l, block, block + 1, [&](const Chunk &c) {
            for_each_piece(c, [&](int64_t start, int64_t length) {
                for_each_summed(start, length, stepper, sums_of(sums, block), step);
            });
            split_chunk(p.weight, p.pruned, c, l, s);
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

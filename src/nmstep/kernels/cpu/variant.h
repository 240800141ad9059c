// The kernels of one instruction set, as function pointers; each is told which blocks of the work to do.
#pragma once

#include "packed.h"
#include "tensors.h"

namespace nmstep {

// Work is cut into blocks of a fixed size, so that sums do not depend on the number of threads.
int64_t blocks_of_groups(const Layout &layout);
int64_t blocks_of_values(int64_t numel);

template <class T>
struct Masks {
    // Writes which weights are kept, as 1 and 0.
    void (*mask)(const T *weight, uint8_t *mask, const Layout &, int64_t begin, int64_t end);
    // Takes what is cut out of the weight and puts it into `pruned`.
    void (*split)(T *weight, T *pruned, const Layout &, int64_t begin, int64_t end);
};

template <class T, class V>
struct Steps {
    // Adam on weight + pruned, and the split of what comes of it. One entry of `sums` a block, or null.
    void (*sparse)(const Parameter<T, V> &, const Layout &, const Adam &, VarianceSums *sums, int64_t begin,
                   int64_t end);
    void (*dense)(const Parameter<T, V> &, int64_t numel, const Adam &, VarianceSums *sums, int64_t begin,
                  int64_t end);
    // Only the sums of a dense step; null where the second moment is frozen.
    void (*foresee)(const Parameter<T, V> &, int64_t numel, const Adam &, VarianceSums *sums, int64_t begin,
                    int64_t end);
};

// Products with weights of type V, of inputs and outputs of type X.
template <class V, class X>
struct PackedProducts {
    PackedPlan (*plan)(const PackedLayout &, int64_t batch, int threads);
    // Both are told which pieces of the plan's work to do; all turns come before the first product.
    void (*turn)(const PackedCall<V, X> &, int64_t begin, int64_t end);
    void (*multiply)(const PackedCall<V, X> &, int64_t begin, int64_t end);
    // Writes inputs x rows of some tiles, as many values apart as `stride` says.
    void (*expand)(const Packed<V> &, X *to, int64_t stride, int64_t begin, int64_t end);
};

template <class V>
struct PackedKernels {
    PackedProducts<V, float> of_fp32;
    PackedProducts<V, bf16> of_bf16;
};

struct Variant {
    const char *name;
    Masks<float> fp32_masks;
    Masks<bf16> bf16_masks;
    Steps<float, float> fp32_steps;
    Steps<float, bf16> narrow_steps;
    Steps<bf16, bf16> bf16_steps;
    // By the type of the weight's values.
    PackedKernels<float> fp32_products;
    PackedKernels<bf16> bf16_products;
    PackedKernels<fp16> fp16_products;
    PackedKernels<int8_t> int8_products;
};

extern const Variant plain, avx2, avx512;

// For `avx512` on processors that multiply pairs of bf16 values.
extern const PackedProducts<bf16, bf16> products_by_pairs;

}  // namespace nmstep

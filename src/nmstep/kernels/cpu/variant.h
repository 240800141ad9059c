// The kernels of one instruction set, as function pointers; each is told which blocks of the work to do.
#pragma once

#include "tensors.h"

namespace nmstep {

// Work is cut into blocks of a fixed size, so that sums do not depend on the number of threads.
int64_t blocks_of_groups(const Layout &layout);
int64_t blocks_of_values(int64_t numel);

template <class T>
struct Kernels {
    // Writes which weights are kept, as 1 and 0.
    void (*mask)(const T *weight, uint8_t *mask, const Layout &, int64_t begin, int64_t end);
    // Takes what is cut out of the weight and puts it into `pruned`.
    void (*split)(T *weight, T *pruned, const Layout &, int64_t begin, int64_t end);
    // Adam on weight + pruned, and the split of what comes of it. One entry of `sums` a block, or null.
    void (*sparse_step)(const Parameter<T> &, const Layout &, const Adam &, VarianceSums *sums, int64_t begin,
                        int64_t end);
    void (*dense_step)(const Parameter<T> &, int64_t numel, const Adam &, VarianceSums *sums, int64_t begin,
                       int64_t end);
};

struct Variant {
    const char *name;
    Kernels<float> fp32;
    Kernels<bf16> bf16s;
};

extern const Variant plain, avx2, avx512;

}  // namespace nmstep

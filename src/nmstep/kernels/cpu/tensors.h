// What the kernels know of a tensor: its memory, and how the groups lie in it.
#pragma once

#include <cstdint>

namespace nmstep {

struct bf16 {
    uint16_t bits;
};

struct fp16 {
    uint16_t bits;
};

// A dense tensor in the order of its memory: `outer` blocks of `size` rows of `inner` values each. Groups run
// along the rows, M consecutive ones of a column; the last group of a block is short where M does not divide.
struct Layout {
    int64_t outer, size, inner;
    int64_t n, m;

    int64_t numel() const { return outer * size * inner; }
};

// Settings of one step of Adam, computed once a parameter.
struct Adam {
    float sign;         // -1 to ascend
    float refine;       // SR-STE's lambda
    float coupled;      // weight decay that enters the gradient
    float decay;        // what decoupled weight decay multiplies weights by
    float one_minus_beta1, beta2, one_minus_beta2;
    float step_size;    // lr / (1 - beta1^t)
    float eps, eps_root;
    float correction2, sqrt_correction2;  // 1 - beta2^t and its root
    bool frozen;        // v holds v*, which is used as it is
    bool foresees;      // nothing is written: what a dense step would do to v is summed up
};

// Sums over a tensor that AutoSwitch and the trace read.
struct VarianceSums {
    double change, norm1, norm2_squared;
};

// T is what the weights are held in, V what holds the second moment: T, or a narrower type where it is frozen.
template <class T, class V>
struct Parameter {
    T *weight;
    T *pruned;  // null in the dense phase
    const T *grad;
    T *exp_avg;
    V *exp_avg_sq;
};

}  // namespace nmstep

// Single values: bfloat16, and one rounding where torch has one.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "tensors.h"

namespace nmstep {
namespace {

inline float load(float value) { return value; }

inline float load(bf16 value) { return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16); }

inline void store(float *to, float value) { *to = value; }

inline void store(bf16 *to, float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    to->bits = static_cast<uint16_t>(nan ? (bits >> 16) | 0x40u : rounded);
}

// A value as a parameter of type T would hold it.
template <class T>
inline float rounded(float value) {
    T held;
    store(&held, value);
    return load(held);
}

template <>
inline float rounded<float>(float value) {
    return value;
}

// torch's own kernels round a product and a sum once where the processor can, and so does this.
inline float fma_or_not(float a, float b, float c) {
#ifdef __FMA__
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

}  // namespace
}  // namespace nmstep

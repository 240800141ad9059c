// Single values in fp32 and bfloat16.
#pragma once

#include <bit>
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

}  // namespace
}  // namespace nmstep

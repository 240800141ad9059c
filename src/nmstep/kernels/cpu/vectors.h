// Vectors of fp32 and of integers, as wide as the instruction set has them.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "tensors.h"

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
using Floats = float __attribute__((vector_size(4 * kLanes)));
using Bits = uint32_t __attribute__((vector_size(4 * kLanes)));
using Halves = uint16_t __attribute__((vector_size(2 * kLanes)));
using Bytes = int8_t __attribute__((vector_size(kLanes)));

inline Ints load_ints(const void *from) {
    Ints value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

inline void store_ints(int32_t *to, Ints value) { std::memcpy(to, &value, sizeof value); }

inline Floats load(const float *from) {
    Floats value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

inline Floats load(const bf16 *from) {
    Halves value;
    std::memcpy(&value, from, sizeof value);
    return std::bit_cast<Floats>(__builtin_convertvector(value, Bits) << 16);
}

inline Floats load(const fp16 *from) {
#if defined(__AVX512F__)
    return std::bit_cast<Floats>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from))));
#elif defined(__AVX2__)
    return std::bit_cast<Floats>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from))));
#else
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    const Bits wide = __builtin_convertvector(halves, Bits), sign = (wide & 0x8000u) << 16;
    const Bits bits = (wide & 0x7fffu) << 13;  // exponent and fraction, with an exponent that is 112 too small
    const Bits scaled = std::bit_cast<Bits>(std::bit_cast<Floats>(bits) * 0x1p112f);
    const Ints is_finite = std::bit_cast<Ints>(bits) < 0x0f800000;
    return std::bit_cast<Floats>(sign | (is_finite ? scaled : bits | 0x7f800000u));
#endif
}

inline Floats load(const int8_t *from) {
    Bytes value;
    std::memcpy(&value, from, sizeof value);
#if defined(__AVX512F__)
    return std::bit_cast<Floats>(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(std::bit_cast<__m128i>(value))));
#else
    return __builtin_convertvector(__builtin_convertvector(value, Ints), Floats);
#endif
}

inline void store(float *to, Floats value) { std::memcpy(to, &value, sizeof value); }

inline Halves nearest_bf16(Floats value) {
    const Bits bits = std::bit_cast<Bits>(value);
    const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // ties to even
    const Ints nan = std::bit_cast<Ints>(bits & 0x7fffffffu) > 0x7f800000;
    return __builtin_convertvector(nan ? (bits >> 16) | 0x40u : rounded, Halves);
}

inline void store(bf16 *to, Floats value) {
    const Halves halves = nearest_bf16(value);
    std::memcpy(to, &halves, sizeof halves);
}

// How many lanes of a vector are used: all of them, or, where a row or a tensor ends, as many as a number says. Nothing
// beyond them is read, where they are zero, or written.
using AllLanes = std::integral_constant<int64_t, kLanes>;

template <class T>
inline Floats load(const T *from, AllLanes) {
    return load(from);
}

template <class T>
inline void store(T *to, Floats value, AllLanes) {
    store(to, value);
}

template <class T>
inline Floats load(const T *from, int64_t lanes) {
    T some[kLanes] = {};
    std::memcpy(some, from, static_cast<size_t>(lanes) * sizeof(T));
    return load(some);
}

template <class T>
inline void store(T *to, Floats value, int64_t lanes) {
    T some[kLanes];
    store(some, value);
    std::memcpy(to, some, static_cast<size_t>(lanes) * sizeof(T));
}

#ifdef __AVX512F__
inline __mmask16 first_lanes(int64_t lanes) { return static_cast<__mmask16>((1u << lanes) - 1); }

inline Floats load(const float *from, int64_t lanes) {
    return std::bit_cast<Floats>(_mm512_maskz_loadu_ps(first_lanes(lanes), from));
}

inline void store(float *to, Floats value, int64_t lanes) {
    _mm512_mask_storeu_ps(to, first_lanes(lanes), std::bit_cast<__m512>(value));
}
#endif

// Calls work(place, lanes) for each vector of so many values; the last may have fewer lanes.
template <class Work>
inline void for_each_vector(int64_t length, Work work) {
    int64_t i = 0;
    for (; i + kLanes <= length; i += kLanes) work(i, AllLanes{});
    if (i < length) work(i, length - i);
}

// Values as a parameter of type T would hold them.
template <class T>
inline Floats rounded(Floats value) {
    if constexpr (std::is_same_v<T, bf16>)
        return std::bit_cast<Floats>(__builtin_convertvector(nearest_bf16(value), Bits) << 16);
    else
        return value;
}

inline Floats root(Floats value) {
#if defined(__AVX512F__)
    return std::bit_cast<Floats>(_mm512_sqrt_ps(std::bit_cast<__m512>(value)));
#elif defined(__AVX2__)
    return std::bit_cast<Floats>(_mm256_sqrt_ps(std::bit_cast<__m256>(value)));
#else
    for (int l = 0; l < kLanes; ++l) value[l] = std::sqrt(value[l]);
    return value;
#endif
}

// torch's own kernels round a product and a sum once where the processor can, and so does this.
inline Floats fma_or_not(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
    return std::bit_cast<Floats>(
        _mm512_fmadd_ps(std::bit_cast<__m512>(a), std::bit_cast<__m512>(b), std::bit_cast<__m512>(c)));
#elif defined(__AVX2__)
    return std::bit_cast<Floats>(
        _mm256_fmadd_ps(std::bit_cast<__m256>(a), std::bit_cast<__m256>(b), std::bit_cast<__m256>(c)));
#else
    return a * b + c;
#endif
}

inline Floats magnitude(Floats value) { return std::bit_cast<Floats>(std::bit_cast<Bits>(value) & 0x7fffffffu); }

inline double total(Floats value) {
    double sum = 0;
    for (int l = 0; l < kLanes; ++l) sum += value[l];
    return sum;
}

}  // namespace
}  // namespace nmstep

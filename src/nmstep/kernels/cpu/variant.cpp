// All kernels, compiled once for each instruction set under the name VARIANT.

#include "variant.h"

#include "adam.h"
#include "packed_expand.h"
#include "packed_many.h"
#include "split.h"

namespace nmstep {
namespace {

template <class T>
constexpr Masks<T> masks() {
    return {&mask<T>, &split<T>};
}

template <class T, class V>
constexpr Steps<T, V> steps() {
    if constexpr (std::is_same_v<T, V>)
        return {&sparse_step<T, V>, &dense_step<T, V>, &foresee<T>};
    else
        return {&sparse_step<T, V>, &dense_step<T, V>, nullptr};
}

template <class V, class X>
constexpr PackedProducts<V, X> products() {
    return {&plan_product<OneByOne>, &turn<OneByOne, V, X>, &multiply<OneByOne, V, X>, &expand<V, X>};
}

template <class V>
constexpr PackedKernels<V> packed_kernels() {
    return {products<V, float>(), products<V, bf16>()};
}

}  // namespace

#define NMSTEP_NAME_OF(name) #name
#define NMSTEP_NAME(name) NMSTEP_NAME_OF(name)

extern const Variant VARIANT;
const Variant VARIANT = {NMSTEP_NAME(VARIANT),
                         masks<float>(),
                         masks<bf16>(),
                         steps<float, float>(),
                         steps<float, bf16>(),
                         steps<bf16, bf16>(),
                         packed_kernels<float>(),
                         packed_kernels<bf16>(),
                         packed_kernels<fp16>(),
                         packed_kernels<int8_t>()};

#ifdef NMSTEP_COUNTS_BLOCKS
int64_t blocks_of_groups(const Layout &l) { return divide_up(groups_of(l), groups_in_block(l)); }

int64_t blocks_of_values(int64_t numel) { return divide_up(numel, kBlock); }
#endif

}  // namespace nmstep

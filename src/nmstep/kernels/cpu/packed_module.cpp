// The Python side of products with packed weights.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <new>
#include <optional>
#include <stdexcept>
#include <string>

#include "threads.h"
#include "variant.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace nmstep {

const Variant &active_variant();

namespace {

using Tensor = nb::ndarray<nb::device::cpu>;
using ReadOnly = nb::ndarray<nb::ro, nb::device::cpu>;

template <class V, class X>
const PackedProducts<V, X> &products();
template <>
const PackedProducts<float, float> &products() { return active_variant().fp32_products; }
template <>
const PackedProducts<float, bf16> &products() { return active_variant().fp32_of_bf16_products; }
template <>
const PackedProducts<bf16, float> &products() { return active_variant().bf16_of_fp32_products; }
template <>
const PackedProducts<bf16, bf16> &products() { return active_variant().bf16_products; }

// Calls work with a value of the tensor's type.
template <class Work>
void typed(nb::dlpack::dtype type, const char *name, Work work) {
    if (type == nb::dtype<float>()) return work(float{});
    if (type.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat) && type.bits == 16 && type.lanes == 1)
        return work(bf16{});
    throw std::invalid_argument(std::string(name) + " must be float32 or bfloat16");
}

void expect(bool fits, const char *message) {
    if (!fits) throw std::invalid_argument(message);
}

template <class A>
void expect_contiguous(const A &tensor, const char *message) {
    int64_t stride = 1;
    for (size_t i = tensor.ndim(); i-- > 0; stride *= static_cast<int64_t>(tensor.shape(i)))
        expect(tensor.shape(i) == 1 || tensor.size() == 0 || tensor.stride(i) == stride, message);
}

void expect_tiles(const ReadOnly &tensor, const PackedLayout &l, int64_t depth, const char *message) {
    expect(tensor.ndim() == 3 && static_cast<int64_t>(tensor.shape(0)) == l.tiles() &&
               static_cast<int64_t>(tensor.shape(1)) == depth && tensor.shape(2) == kTile,
           message);
    expect_contiguous(tensor, message);
}

PackedLayout layout_of(const ReadOnly &x, const Tensor &y, int64_t n, int64_t m) {
    expect(x.ndim() == 2 && y.ndim() == 2 && x.shape(0) == y.shape(0), "x and y must be matrices of as many rows");
    expect(x.shape(1) >= 1 && y.shape(1) >= 1, "x and y must have columns");
    expect_contiguous(x, "x must be contiguous");
    expect_contiguous(y, "y must be contiguous");
    expect(x.dtype() == y.dtype(), "x and y must have the same type");
    expect(m >= 2 && m <= 64 && n >= 1 && n < m, "the pattern must be n of m with n < m and m from 2 to 64");
    return {static_cast<int64_t>(y.shape(1)), static_cast<int64_t>(x.shape(1)), n, m};
}

void expect_weight(const ReadOnly &values, const ReadOnly &indices, const std::optional<ReadOnly> &bias,
                   const PackedLayout &l) {
    expect_tiles(values, l, l.kept(), "values do not fit x, y and the pattern");
    expect_tiles(indices, l, l.words(), "indices do not fit x, y and the pattern");
    expect(indices.dtype() == nb::dtype<int32_t>() || indices.dtype() == nb::dtype<uint32_t>(),
           "indices must be int32 or uint32");
    if (!bias) return;
    expect(bias->dtype() == nb::dtype<float>() && bias->ndim() == 1 && static_cast<int64_t>(bias->shape(0)) == l.rows,
           "bias must be float32, one value for each column of y");
    expect_contiguous(*bias, "bias must be contiguous");
}

// Memory for one call, which begins with a cache line and holds anything at first.
struct PackedScratch {
    explicit PackedScratch(int64_t floats)
        : memory(static_cast<float *>(::operator new(static_cast<size_t>(floats) * sizeof(float), kLine))) {}
    PackedScratch(const PackedScratch &) = delete;
    ~PackedScratch() { ::operator delete(memory, kLine); }

    static constexpr std::align_val_t kLine{64};
    float *const memory;
};

template <class V, class X>
void multiply(const Packed<V> &weight, const X *x, X *y, int64_t batch, int threads) {
    const PackedProducts<V, X> &kernels = products<V, X>();
    PackedCall<V, X> call{weight, x, y, kernels.plan(weight.layout, batch, threads), nullptr};
    const nb::gil_scoped_release release;
    const PackedScratch scratch(call.plan.scratch);
    call.scratch = scratch.memory;
    run_parallel(call.plan.turns, threads, [&](int64_t begin, int64_t end) { kernels.turn(call, begin, end); });
    run_parallel(call.plan.products, threads, [&](int64_t begin, int64_t end) { kernels.multiply(call, begin, end); });
}

void packed_linear(const ReadOnly &values, const ReadOnly &indices, const std::optional<ReadOnly> &bias,
                   const ReadOnly &x, const Tensor &y, int64_t n, int64_t m, int threads) {
    const PackedLayout layout = layout_of(x, y, n, m);
    expect_weight(values, indices, bias, layout);
    typed(values.dtype(), "values", [&](auto value) {
        typed(x.dtype(), "x", [&](auto input) {
            using V = decltype(value);
            using X = decltype(input);
            const Packed<V> weight{layout, static_cast<const V *>(values.data()),
                                   static_cast<const uint32_t *>(indices.data()),
                                   bias ? static_cast<const float *>(bias->data()) : nullptr};
            multiply(weight, static_cast<const X *>(x.data()), static_cast<X *>(y.data()),
                     static_cast<int64_t>(x.shape(0)), threads);
        });
    });
}

}  // namespace

void add_packed(nb::module_ &module) {
    module.def("packed_linear", &packed_linear, "values"_a, "indices"_a, "bias"_a.none(), "x"_a, "y"_a,
               "n"_a, "m"_a, "threads"_a);
}

}  // namespace nmstep

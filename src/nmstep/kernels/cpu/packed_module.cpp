// The Python side of products with packed weights.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <new>
#include <optional>
#include <stdexcept>
#include <type_traits>
#include <utility>

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

void expect(bool fits, const char *message) {
    if (!fits) throw std::invalid_argument(message);
}

// Whether the type is bfloat16; it is float32 if not.
bool expect_bf16_or_fp32(nb::dlpack::dtype type, const char *message) {
    if (type.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat) && type.bits == 16 && type.lanes == 1)
        return true;
    expect(type == nb::dtype<float>(), message);
    return false;
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

PackedLayout layout_of(int64_t rows, int64_t inputs, int64_t n, int64_t m) {
    expect(m >= 2 && m <= 64 && n >= 1 && n < m, "the pattern must be n of m with n < m and m from 2 to 64");
    // No tensor is as large as this, so sizes that are computed do not overflow.
    constexpr int64_t kLimit = int64_t{1} << 40;
    expect(rows >= 1 && inputs >= 1 && rows < kLimit && inputs < kLimit, "a weight must have rows and inputs");
    return {rows, inputs, n, m};
}

// Calls work with a value of the type that a tensor holds.
template <class Work>
void typed(bool is_bf16, Work work) {
    if (is_bf16)
        work(bf16{});
    else
        work(float{});
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

// Multiply-adds that one thread has done before another would have begun.
constexpr int64_t kAlone = 1 << 16;

template <class V, class X>
void multiply(const Packed<V> &weight, const X *x, X *y, int64_t batch, int threads) {
    if (batch * weight.layout.rows <= kAlone / weight.layout.kept()) threads = 1;
    const PackedProducts<V, X> &kernels = products<V, X>();
    PackedCall<V, X> call{weight, x, y, kernels.plan(weight.layout, batch, threads), nullptr};
    const PackedScratch scratch(call.plan.scratch);
    call.scratch = scratch.memory;
    run_parallel(call.plan.turns, threads, [&](int64_t begin, int64_t end) { kernels.turn(call, begin, end); });
    run_parallel(call.plan.products, threads, [&](int64_t begin, int64_t end) { kernels.multiply(call, begin, end); });
}

// A weight whose tensors have been looked at once, and are kept.
class PackedWeight {
public:
    PackedWeight(ReadOnly values, ReadOnly indices, std::optional<ReadOnly> bias, const PackedLayout &layout)
        : layout_(layout),
          holds_bf16_(expect_bf16_or_fp32(values.dtype(), "values must be float32 or bfloat16")),
          values_(std::move(values)),
          indices_(std::move(indices)),
          bias_(std::move(bias)) {
        expect_tiles(values_, layout, layout.kept(), "values do not fit the weight's size and pattern");
        expect_tiles(indices_, layout, layout.words(), "indices do not fit the weight's size and pattern");
        expect(indices_.dtype() == nb::dtype<int32_t>() || indices_.dtype() == nb::dtype<uint32_t>(),
               "indices must be int32 or uint32");
        if (!bias_) return;
        narrow_bias_ = expect_bf16_or_fp32(bias_->dtype(), "bias must be float32 or bfloat16");
        expect(bias_->ndim() == 1 && static_cast<int64_t>(bias_->shape(0)) == layout.rows,
               "bias must be one value for each row of the weight");
        expect_contiguous(*bias_, "bias must be contiguous");
    }

    void multiply(const void *x, void *y, int64_t batch, bool is_bf16, int threads) const {
        expect(batch >= 0 && (batch == 0 || (x && y)), "x or y is missing");
        typed(holds_bf16_, [&](auto value) {
            typed(is_bf16, [&](auto input) {
                using V = decltype(value);
                using X = decltype(input);
                const Packed<V> weight{layout_, static_cast<const V *>(values_.data()),
                                       static_cast<const uint32_t *>(indices_.data()), bias_as<float>(),
                                       bias_as<bf16>()};
                const nb::gil_scoped_release release;
                nmstep::multiply(weight, static_cast<const X *>(x), static_cast<X *>(y), batch, threads);
            });
        });
    }

private:
    template <class T>
    const T *bias_as() const {
        const bool is_so = bias_ && narrow_bias_ == std::is_same_v<T, bf16>;
        return is_so ? static_cast<const T *>(bias_->data()) : nullptr;
    }

    PackedLayout layout_;
    bool holds_bf16_, narrow_bias_ = false;
    ReadOnly values_, indices_;
    std::optional<ReadOnly> bias_;
};

void packed_linear(const ReadOnly &values, const ReadOnly &indices, const std::optional<ReadOnly> &bias,
                   const ReadOnly &x, const Tensor &y, int64_t n, int64_t m, int threads) {
    expect(x.ndim() == 2 && y.ndim() == 2 && x.shape(0) == y.shape(0), "x and y must be matrices of as many rows");
    expect(x.dtype() == y.dtype(), "x and y must have the same type");
    const bool is_bf16 = expect_bf16_or_fp32(x.dtype(), "x must be float32 or bfloat16");
    expect_contiguous(x, "x must be contiguous");
    expect_contiguous(y, "y must be contiguous");
    const PackedLayout layout =
        layout_of(static_cast<int64_t>(y.shape(1)), static_cast<int64_t>(x.shape(1)), n, m);
    PackedWeight(values, indices, bias, layout)
        .multiply(x.data(), y.data(), static_cast<int64_t>(x.shape(0)), is_bf16, threads);
}

}  // namespace

void add_packed(nb::module_ &module) {
    module.def("packed_linear", &packed_linear, "values"_a, "indices"_a, "bias"_a.none(), "x"_a, "y"_a, "n"_a, "m"_a,
               "threads"_a);
    nb::class_<PackedWeight>(module, "PackedWeight")
        .def("__init__",
             [](PackedWeight *self, const ReadOnly &values, const ReadOnly &indices,
                const std::optional<ReadOnly> &bias, int64_t rows, int64_t inputs, int64_t n, int64_t m) {
                 new (self) PackedWeight(values, indices, bias, layout_of(rows, inputs, n, m));
             },
             "values"_a, "indices"_a, "bias"_a.none(), "rows"_a, "inputs"_a, "n"_a, "m"_a)
        // Addresses of contiguous x and y, since layers are called for every token, and to look at a tensor by DLPack
        // takes longer than a small product.
        .def("multiply",
             [](const PackedWeight &self, uintptr_t x, uintptr_t y, int64_t batch, bool bfloat16, int threads) {
                 self.multiply(reinterpret_cast<const void *>(x), reinterpret_cast<void *>(y), batch, bfloat16,
                               threads);
             },
             "x"_a, "y"_a, "batch"_a, "bfloat16"_a, "threads"_a);
}

}  // namespace nmstep

// The Python side of products with packed weights.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>

#include <algorithm>
#include <array>
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

template <class V>
const PackedKernels<V> &kernels_for();
template <>
const PackedKernels<float> &kernels_for() { return active_variant().fp32_products; }
template <>
const PackedKernels<bf16> &kernels_for() { return active_variant().bf16_products; }
template <>
const PackedKernels<fp16> &kernels_for() { return active_variant().fp16_products; }
template <>
const PackedKernels<int8_t> &kernels_for() { return active_variant().int8_products; }

template <class V, class X>
const PackedProducts<V, X> &products() {
    if constexpr (std::is_same_v<X, float>)
        return kernels_for<V>().of_fp32;
    else
        return kernels_for<V>().of_bf16;
}

void expect(bool fits, const char *message) {
    if (!fits) throw std::invalid_argument(message);
}

enum class Kind { fp32, bf16, fp16, int8 };

std::optional<Kind> kind_of(nb::dlpack::dtype type) {
    using Code = nb::dlpack::dtype_code;
    const auto is = [&](Code code, int bits) {
        return type.code == static_cast<uint8_t>(code) && type.bits == bits && type.lanes == 1;
    };
    if (is(Code::Float, 32)) return Kind::fp32;
    if (is(Code::Bfloat, 16)) return Kind::bf16;
    if (is(Code::Float, 16)) return Kind::fp16;
    if (is(Code::Int, 8)) return Kind::int8;
    return std::nullopt;
}

Kind expect_kind(nb::dlpack::dtype type, const char *message) {
    const auto kind = kind_of(type);
    expect(kind.has_value(), message);
    return *kind;
}

// Whether the type is bfloat16; it is float32 if not.
bool expect_bf16_or_fp32(nb::dlpack::dtype type, const char *message) {
    const auto kind = kind_of(type);
    expect(kind == Kind::bf16 || kind == Kind::fp32, message);
    return kind == Kind::bf16;
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
void typed(Kind kind, Work work) {
    switch (kind) {
        case Kind::fp32: return work(float{});
        case Kind::bf16: return work(bf16{});
        case Kind::fp16: return work(fp16{});
        case Kind::int8: return work(int8_t{});
    }
}

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

// Rows of a batch that are multiplied at a time, so that the turned inputs stay in the second-level cache.
constexpr int64_t kRowsAtATime = 128;

template <class V, class X>
void multiply(const Packed<V> &weight, const Windows &windows, const X *x, X *y, int64_t batch, int threads) {
    if (batch * weight.layout.rows <= kAlone / weight.layout.kept()) threads = 1;
    const PackedProducts<V, X> &kernels = products<V, X>();
    const int64_t most = kRowsAtATime * threads, last = batch % most;
    const PackedPlan whole = kernels.plan(weight.layout, most, threads), rest = kernels.plan(weight.layout, last, threads);
    const PackedScratch scratch(std::max(batch < most ? 0 : whole.scratch, rest.scratch));
    PackedCall<V, X> call{weight, windows, x, 0, y, whole, scratch.memory};
    for (; call.first < batch; call.first += most) {
        if (call.first == batch - last) call.plan = rest;
        run_parallel(call.plan.turns, threads, [&](int64_t begin, int64_t end) { kernels.turn(call, begin, end); });
        run_parallel(call.plan.products, threads,
                     [&](int64_t begin, int64_t end) { kernels.multiply(call, begin, end); });
    }
}

// Writes inputs x rows of some tiles as a dense matrix.
template <class V, class X>
void expand(const Packed<V> &weight, X *to, int64_t stride, int64_t first, int64_t count, int threads) {
    const auto &kernels = products<V, X>();
    run_parallel(count, threads, [&](int64_t begin, int64_t end) {
        kernels.expand(weight, to + begin * kTile, stride, first + begin, first + end);
    });
}

// A weight whose tensors have been looked at once, and are kept.
class PackedWeight {
public:
    PackedWeight(ReadOnly values, ReadOnly indices, std::optional<ReadOnly> scales, std::optional<ReadOnly> bias,
                 const PackedLayout &layout)
        : layout_(layout),
          kind_(expect_kind(values.dtype(), "values must be float32, bfloat16, float16 or int8")),
          values_(std::move(values)),
          indices_(std::move(indices)),
          scales_(std::move(scales)),
          bias_(std::move(bias)) {
        expect_tiles(values_, layout, layout.kept(), "values do not fit the weight's size and pattern");
        expect_tiles(indices_, layout, layout.words(), "indices do not fit the weight's size and pattern");
        expect(indices_.dtype() == nb::dtype<int32_t>() || indices_.dtype() == nb::dtype<uint32_t>(),
               "indices must be int32 or uint32");
        expect((kind_ == Kind::int8) == scales_.has_value(), "int8 values have scales, and no others");
        if (scales_) {
            expect(scales_->ndim() == 2 && static_cast<int64_t>(scales_->shape(0)) == layout.tiles() &&
                       scales_->shape(1) == kTile && scales_->dtype() == nb::dtype<float>(),
                   "scales must be float32, one for each row of each tile");
            expect_contiguous(*scales_, "scales must be contiguous");
        }
        if (!bias_) return;
        narrow_bias_ = expect_bf16_or_fp32(bias_->dtype(), "bias must be float32 or bfloat16");
        expect(bias_->ndim() == 1 && static_cast<int64_t>(bias_->shape(0)) == layout.rows,
               "bias must be one value for each row of the weight");
        expect_contiguous(*bias_, "bias must be contiguous");
    }

    void multiply(const void *x, void *y, int64_t batch, bool is_bf16, int threads) const {
        multiply(Windows::of_matrix(layout_.inputs), x, y, batch, is_bf16, threads);
    }

    void convolve(const Windows &w, const void *x, int64_t size, void *y, int64_t batch, bool is_bf16,
                  int threads) const {
        expect(w.height > 0 && w.width > 0 && w.kernel_width > 0, "an image must have outputs");
        // A vector of inputs is read at a time, from channels of one place.
        expect(w.channels > 0 && w.channels % kTile == 0, "channels must be a multiple of 16");
        expect(layout_.inputs % (w.channels * w.kernel_width) == 0, "the weight's inputs must be whole windows");
        const int64_t lines = layout_.inputs / (w.channels * w.kernel_width), images = batch / (w.height * w.width);
        const int64_t last = (images - 1) * w.image + (w.height - 1) * w.step_y + (w.width - 1) * w.step_x +
                             (lines - 1) * w.tap_y + (w.kernel_width - 1) * w.tap_x;
        expect(std::min({w.image, w.step_y, w.step_x, w.tap_y, w.tap_x}) >= 0, "strides must not be negative");
        expect(batch == 0 || last + w.channels <= size, "windows must lie in the images");
        multiply(w, x, y, batch, is_bf16, threads);
    }

    void multiply(const Windows &windows, const void *x, void *y, int64_t batch, bool is_bf16, int threads) const {
        expect(batch >= 0 && (batch == 0 || (x && y)), "x or y is missing");
        each_type(is_bf16, [&](const auto &weight, auto input) {
            using X = decltype(input);
            nmstep::multiply(weight, windows, static_cast<const X *>(x), static_cast<X *>(y), batch, threads);
        });
    }

    void expand(void *to, int64_t stride, int64_t first, int64_t count, bool is_bf16, int threads) const {
        expect(first >= 0 && count >= 0 && first <= layout_.tiles() - count, "the weight has no such tiles");
        expect(to && stride >= count * kTile, "there is no room for so many rows");
        each_type(is_bf16, [&](const auto &weight, auto output) {
            nmstep::expand(weight, static_cast<decltype(output) *>(to), stride, first, count, threads);
        });
    }

private:
    // Calls work(weight, a value of the type of inputs and outputs), without Python's lock.
    template <class Work>
    void each_type(bool is_bf16, Work work) const {
        typed(kind_, [&](auto value) {
            typed(is_bf16, [&](auto other) {
                using V = decltype(value);
                const Packed<V> weight{layout_,
                                       static_cast<const V *>(values_.data()),
                                       static_cast<const uint32_t *>(indices_.data()),
                                       scales_ ? static_cast<const float *>(scales_->data()) : nullptr,
                                       bias_as<float>(),
                                       bias_as<bf16>()};
                const nb::gil_scoped_release release;
                work(weight, other);
            });
        });
    }

    template <class T>
    const T *bias_as() const {
        const bool is_so = bias_ && narrow_bias_ == std::is_same_v<T, bf16>;
        return is_so ? static_cast<const T *>(bias_->data()) : nullptr;
    }

    PackedLayout layout_;
    Kind kind_;
    bool narrow_bias_ = false;
    ReadOnly values_, indices_;
    std::optional<ReadOnly> scales_, bias_;
};

}  // namespace

void add_packed(nb::module_ &module) {
    module.def("goes_by_pairs",
               [](int64_t n, int64_t m) {
#ifdef NMSTEP_X86
                   return active_variant().bf16_products.of_bf16.multiply == products_by_pairs.multiply &&
                          has_few_pairs(layout_of(1, m, n, m));
#else
                   return false;
#endif
               },
               "n"_a, "m"_a, "Whether products of bfloat16 with this pattern take two kept weights at a time.");
    nb::class_<PackedWeight>(module, "PackedWeight")
        .def("__init__",
             [](PackedWeight *self, const ReadOnly &values, const ReadOnly &indices,
                const std::optional<ReadOnly> &scales, const std::optional<ReadOnly> &bias, int64_t rows,
                int64_t inputs, int64_t n, int64_t m) {
                 new (self) PackedWeight(values, indices, scales, bias, layout_of(rows, inputs, n, m));
             },
             "values"_a, "indices"_a, "scales"_a.none(), "bias"_a.none(), "rows"_a, "inputs"_a, "n"_a, "m"_a)
        // Addresses of contiguous x and y, since layers are called for every token, and to look at a tensor by DLPack
        // takes longer than a small product.
        .def("multiply",
             [](const PackedWeight &self, uintptr_t x, uintptr_t y, int64_t batch, bool bfloat16, int threads) {
                 self.multiply(reinterpret_cast<const void *>(x), reinterpret_cast<void *>(y), batch, bfloat16,
                               threads);
             },
             "x"_a, "y"_a, "batch"_a, "bfloat16"_a, "threads"_a)
        // The same for a row at each output place of images, whose channels are side by side; `windows` are the values
        // of struct Windows.
        .def("convolve",
             [](const PackedWeight &self, const std::array<int64_t, 9> &w, uintptr_t x, int64_t size, uintptr_t y,
                int64_t batch, bool bfloat16, int threads) {
                 self.convolve({w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8]},
                               reinterpret_cast<const void *>(x), size, reinterpret_cast<void *>(y), batch,
                               bfloat16, threads);
             },
             "windows"_a, "x"_a, "size"_a, "y"_a, "batch"_a, "bfloat16"_a, "threads"_a)
        // Writes inputs x rows of `count` tiles as a dense matrix, `stride` values from input to input.
        .def("expand",
             [](const PackedWeight &self, uintptr_t to, int64_t stride, int64_t first, int64_t count, bool bfloat16,
                int threads) {
                 self.expand(reinterpret_cast<void *>(to), stride, first, count, bfloat16, threads);
             },
             "to"_a, "stride"_a, "first"_a, "count"_a, "bfloat16"_a, "threads"_a);
}

}  // namespace nmstep

// The Python side: tensors come by DLPack, so nothing here depends on a version of torch.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "threads.h"
#include "variant.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace nmstep {

void add_packed(nb::module_ &module);

namespace {

using Tensor = nb::ndarray<nb::device::cpu>;
using ReadOnly = nb::ndarray<nb::ro, nb::device::cpu>;

#ifdef NMSTEP_X86
// As avx512, but for products by pairs.
const Variant *avx512_bf16() {
    static const Variant variant = [] {
        Variant made = avx512;
        made.name = "avx512_bf16";
        made.bf16_products.of_bf16 = products_by_pairs;
        return made;
    }();
    return &variant;
}
#endif

std::vector<const Variant *> usable() {
    std::vector<const Variant *> found;
#ifdef NMSTEP_X86
    __builtin_cpu_init();
    const bool has_fma = __builtin_cpu_supports("fma");
    const bool has_avx512 = has_fma && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (has_avx512 && __builtin_cpu_supports("avx512bf16")) found.push_back(avx512_bf16());
    if (has_avx512) found.push_back(&avx512);
    if (has_fma && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")) found.push_back(&avx2);
#endif
    found.push_back(&plain);
    return found;
}

const Variant *active = usable().front();

std::vector<std::string> variants() {
    std::vector<std::string> names;
    for (const Variant *variant : usable()) names.emplace_back(variant->name);
    return names;
}

void use(const std::string &name) {
    for (const Variant *variant : usable())
        if (variant->name == name) {
            active = variant;
            return;
        }
    throw std::invalid_argument("no kernels for '" + name + "' on this processor");
}

template <class T>
const Masks<T> &masks();
template <>
const Masks<float> &masks<float>() { return active->fp32_masks; }
template <>
const Masks<bf16> &masks<bf16>() { return active->bf16_masks; }

bool is_bf16(nb::dlpack::dtype type) {
    return type.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat) && type.bits == 16 && type.lanes == 1;
}

// Calls work with a value of the tensor's type.
template <class Work>
auto typed(nb::dlpack::dtype type, Work work) {
    if (type == nb::dtype<float>()) return work(float{});
    if (is_bf16(type)) return work(bf16{});
    throw std::invalid_argument("the kernels take float32 and bfloat16");
}

template <class A, class B>
void expect_like(const A &tensor, const B &other, const char *name) {
    if (tensor.dtype() != other.dtype() || tensor.size() != other.size())
        throw std::invalid_argument(std::string(name) + " has another type or size than weight");
}

void expect_layout(const Layout &l, size_t size) {
    if (l.outer < 0 || l.size < 0 || l.inner < 1 || l.m < 1 || l.n < 1 || l.n > l.m ||
        l.numel() != static_cast<int64_t>(size))
        throw std::invalid_argument("the layout does not fit the tensor");
}

template <class T>
T *data(const Tensor &tensor) {
    return static_cast<T *>(tensor.data());
}

template <class T>
const T *data(const ReadOnly &tensor) {
    return static_cast<const T *>(tensor.data());
}

void mask(const ReadOnly &weight, const Tensor &mask, const Layout &layout, int threads) {
    expect_layout(layout, weight.size());
    if (mask.size() != weight.size() || mask.itemsize() != 1) throw std::invalid_argument("mask does not fit weight");
    typed(weight.dtype(), [&](auto zero) {
        using T = decltype(zero);
        nb::gil_scoped_release release;
        run_parallel(blocks_of_groups(layout), threads, [&](int64_t begin, int64_t end) {
            masks<T>().mask(data<T>(weight), data<uint8_t>(mask), layout, begin, end);
        });
    });
}

void split(const Tensor &weight, const Tensor &pruned, const Layout &layout, int threads) {
    expect_layout(layout, weight.size());
    expect_like(pruned, weight, "pruned");
    typed(weight.dtype(), [&](auto zero) {
        using T = decltype(zero);
        nb::gil_scoped_release release;
        run_parallel(blocks_of_groups(layout), threads, [&](int64_t begin, int64_t end) {
            masks<T>().split(data<T>(weight), data<T>(pruned), layout, begin, end);
        });
    });
}

// Adds up one entry a block, always in the same order.
nb::object total(const std::vector<VarianceSums> &blocks, bool wanted) {
    if (!wanted) return nb::none();
    VarianceSums sum{0, 0, 0};
    for (const VarianceSums &block : blocks) {
        sum.change += block.change;
        sum.norm1 += block.norm1;
        sum.norm2_squared += block.norm2_squared;
    }
    return nb::make_tuple(sum.change, sum.norm1, sum.norm2_squared);
}

// One parameter of a step, as Python packs it: the addresses of its tensors, its layout, and which settings apply.
// Addresses, since a step has five tensors for each of hundreds of parameters, and Python has looked at each already.
struct Row {
    int64_t weight, pruned, grad, exp_avg, exp_avg_sq;
    Layout layout;
    int64_t kind, settings;

    int64_t blocks() const { return pruned ? blocks_of_groups(layout) : blocks_of_values(layout.numel()); }
};
static_assert(sizeof(Row) == 12 * sizeof(int64_t));

enum Kind : int64_t { kFloat, kFloatNarrow, kBfloat16, kKinds };

template <class T>
T *at(int64_t address) {
    return reinterpret_cast<T *>(address);
}

template <class T, class V>
void step_row(const Steps<T, V> &steps, const Row &r, const Adam &adam, VarianceSums *sums, int64_t begin,
              int64_t end) {
    const Parameter<T, V> p{at<T>(r.weight), at<T>(r.pruned), at<T>(r.grad), at<T>(r.exp_avg), at<V>(r.exp_avg_sq)};
    if (adam.foresees)
        steps.foresee(p, r.layout.numel(), adam, sums, begin, end);
    else if (r.pruned)
        steps.sparse(p, r.layout, adam, sums, begin, end);
    else
        steps.dense(p, r.layout.numel(), adam, sums, begin, end);
}

void step_row(const Row &r, const Adam &adam, VarianceSums *sums, int64_t begin, int64_t end) {
    switch (r.kind) {
        case kFloat: step_row(active->fp32_steps, r, adam, sums, begin, end); break;
        case kFloatNarrow: step_row(active->narrow_steps, r, adam, sums, begin, end); break;
        default: step_row(active->bf16_steps, r, adam, sums, begin, end);
    }
}

void expect_row(const Row &r, const std::vector<Adam> &settings) {
    expect_layout(r.layout, static_cast<size_t>(r.layout.numel()));
    if (r.kind < 0 || r.kind >= kKinds || r.settings < 0 || r.settings >= static_cast<int64_t>(settings.size()))
        throw std::invalid_argument("a parameter's kind or settings are not known");
    if (r.kind == kFloatNarrow && !settings[r.settings].frozen)
        throw std::invalid_argument("a second moment that is updated must have the parameter's type");
    if (settings[r.settings].foresees) {
        if (settings[r.settings].frozen || r.pruned || (r.layout.numel() && !(r.grad && r.exp_avg_sq)))
            throw std::invalid_argument("only a dense step of an updated second moment can be foreseen");
    } else if (r.layout.numel() && !(r.weight && r.grad && r.exp_avg && r.exp_avg_sq))
        throw std::invalid_argument("a parameter lacks one of its tensors");
}

nb::object step(const nb::bytes &packed, const std::vector<Adam> &settings, int threads, bool sums) {
    for (const Adam &adam : settings)
        if (adam.foresees && !sums) throw std::invalid_argument("what is foreseen is sums");
    if (packed.size() % sizeof(Row)) throw std::invalid_argument("rows are cut off");
    std::vector<Row> rows(packed.size() / sizeof(Row));
    std::memcpy(rows.data(), packed.data(), packed.size());
    std::vector<int64_t> first{0};  // the number of blocks before each parameter
    for (const Row &r : rows) {
        expect_row(r, settings);
        first.push_back(first.back() + r.blocks());
    }
    std::vector<VarianceSums> own(sums ? first.back() : 0);
    {
        nb::gil_scoped_release release;
        run_parallel(first.back(), threads, [&](int64_t begin, int64_t end) {
            auto i = static_cast<size_t>(std::upper_bound(first.begin(), first.end(), begin) - first.begin()) - 1;
            for (; i < rows.size() && first[i] < end; ++i)
                step_row(rows[i], settings[rows[i].settings], sums ? &own[first[i]] : nullptr,
                         std::max(begin, first[i]) - first[i], std::min(end, first[i + 1]) - first[i]);
        });
    }
    return total(own, sums);
}

}  // namespace

const Variant &active_variant() { return *active; }

NB_MODULE(_cpu, module) {
    nb::class_<Layout>(module, "Layout")
        .def("__init__",
             [](Layout *self, int64_t outer, int64_t size, int64_t inner, int64_t n, int64_t m) {
                 new (self) Layout{outer, size, inner, n, m};
             },
             "outer"_a, "size"_a, "inner"_a, "n"_a, "m"_a);
    nb::class_<Adam>(module, "Adam")
        .def("__init__",
             [](Adam *self, float sign, float refine, float coupled, float decay, float one_minus_beta1, float beta2,
                float one_minus_beta2, float step_size, float eps, float eps_root, float correction2,
                float sqrt_correction2, bool frozen, bool foresees) {
                 new (self) Adam{sign,      refine, coupled,  decay,       one_minus_beta1,  beta2,  one_minus_beta2,
                                 step_size, eps,    eps_root, correction2, sqrt_correction2, frozen, foresees};
             },
             nb::kw_only(), "sign"_a, "refine"_a, "coupled"_a, "decay"_a, "one_minus_beta1"_a, "beta2"_a,
             "one_minus_beta2"_a, "step_size"_a, "eps"_a, "eps_root"_a, "correction2"_a, "sqrt_correction2"_a,
             "frozen"_a, "foresees"_a = false);
    module.def("mask", &mask, "weight"_a, "mask"_a, "layout"_a, "threads"_a);
    module.def("split", &split, "weight"_a, "pruned"_a, "layout"_a, "threads"_a);
    module.def("step", &step, "rows"_a, "settings"_a, "threads"_a, "sums"_a);
    module.def("variants", &variants);
    module.def("use", &use, "variant"_a);
    module.def("active", [] { return std::string(active->name); });
    module.def("thread_pool", &thread_pool);
    add_packed(module);
}

}  // namespace nmstep

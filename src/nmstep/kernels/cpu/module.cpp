// The Python side: tensors come by DLPack, so nothing here depends on a version of torch.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "threads.h"
#include "variant.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace nmstep {
namespace {

using Tensor = nb::ndarray<nb::device::cpu>;
using ReadOnly = nb::ndarray<nb::ro, nb::device::cpu>;

bool has(const char *name) {
#if defined(__x86_64__) || defined(_M_X64)
    __builtin_cpu_init();
    if (name == avx512.name)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("fma");
    if (name == avx2.name) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return name == plain.name;
}

std::vector<const Variant *> usable() {
    std::vector<const Variant *> found;
    for (const Variant *variant : {
#ifdef NMSTEP_X86
             &avx512, &avx2,
#endif
             &plain})
        if (has(variant->name)) found.push_back(variant);
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
const Kernels<T> &kernels();
template <>
const Kernels<float> &kernels<float>() { return active->fp32; }
template <>
const Kernels<bf16> &kernels<bf16>() { return active->bf16s; }

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
            kernels<T>().mask(data<T>(weight), data<uint8_t>(mask), layout, begin, end);
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
            kernels<T>().split(data<T>(weight), data<T>(pruned), layout, begin, end);
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

nb::object sparse_step(const Tensor &weight, const Tensor &pruned, const ReadOnly &grad, const Tensor &exp_avg,
                       const Tensor &exp_avg_sq, const Layout &layout, const Adam &adam, int threads, bool sums) {
    expect_layout(layout, weight.size());
    expect_like(pruned, weight, "pruned");
    expect_like(grad, weight, "grad");
    expect_like(exp_avg, weight, "exp_avg");
    expect_like(exp_avg_sq, weight, "exp_avg_sq");
    const int64_t blocks = blocks_of_groups(layout);
    std::vector<VarianceSums> own(sums ? blocks : 0);
    typed(weight.dtype(), [&](auto zero) {
        using T = decltype(zero);
        const Parameter<T> p{data<T>(weight), data<T>(pruned), data<T>(grad), data<T>(exp_avg), data<T>(exp_avg_sq)};
        nb::gil_scoped_release release;
        run_parallel(blocks, threads, [&](int64_t begin, int64_t end) {
            kernels<T>().sparse_step(p, layout, adam, sums ? own.data() : nullptr, begin, end);
        });
    });
    return total(own, sums);
}

nb::object dense_step(const Tensor &weight, const ReadOnly &grad, const Tensor &exp_avg, const Tensor &exp_avg_sq,
                      const Adam &adam, int threads, bool sums) {
    expect_like(grad, weight, "grad");
    expect_like(exp_avg, weight, "exp_avg");
    expect_like(exp_avg_sq, weight, "exp_avg_sq");
    const int64_t numel = static_cast<int64_t>(weight.size()), blocks = blocks_of_values(numel);
    std::vector<VarianceSums> own(sums ? blocks : 0);
    typed(weight.dtype(), [&](auto zero) {
        using T = decltype(zero);
        const Parameter<T> p{data<T>(weight), nullptr, data<T>(grad), data<T>(exp_avg), data<T>(exp_avg_sq)};
        nb::gil_scoped_release release;
        run_parallel(blocks, threads, [&](int64_t begin, int64_t end) {
            kernels<T>().dense_step(p, numel, adam, sums ? own.data() : nullptr, begin, end);
        });
    });
    return total(own, sums);
}

}  // namespace

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
                float sqrt_correction2, bool frozen) {
                 new (self) Adam{sign,      refine, coupled,  decay,       one_minus_beta1,  beta2, one_minus_beta2,
                                 step_size, eps,    eps_root, correction2, sqrt_correction2, frozen};
             },
             nb::kw_only(), "sign"_a, "refine"_a, "coupled"_a, "decay"_a, "one_minus_beta1"_a, "beta2"_a,
             "one_minus_beta2"_a, "step_size"_a, "eps"_a, "eps_root"_a, "correction2"_a, "sqrt_correction2"_a,
             "frozen"_a);
    module.def("mask", &mask, "weight"_a, "mask"_a, "layout"_a, "threads"_a);
    module.def("split", &split, "weight"_a, "pruned"_a, "layout"_a, "threads"_a);
    module.def("sparse_step", &sparse_step, "weight"_a, "pruned"_a, "grad"_a, "exp_avg"_a, "exp_avg_sq"_a, "layout"_a,
               "adam"_a, "threads"_a, "sums"_a);
    module.def("dense_step", &dense_step, "weight"_a, "grad"_a, "exp_avg"_a, "exp_avg_sq"_a, "adam"_a, "threads"_a,
               "sums"_a);
    module.def("variants", &variants);
    module.def("use", &use, "variant"_a);
    module.def("active", [] { return std::string(active->name); });
    module.def("thread_pool", &thread_pool);
}

}  // namespace nmstep

// Products by pairs of bf16 values, where the pattern allows; compiled for the instruction that multiplies them.

#include "packed_expand.h"
#include "packed_pairs.h"
#include "variant.h"

namespace nmstep {
namespace {

using Call = PackedCall<bf16, bf16>;

PackedPlan plan(const PackedLayout &l, int64_t batch, int threads) {
    return has_few_pairs(l) ? plan_product<ByPairs>(l, batch, threads) : plan_product<OneByOne>(l, batch, threads);
}

void turn_inputs(const Call &c, int64_t begin, int64_t end) {
    return has_few_pairs(c.weight.layout) ? turn<ByPairs>(c, begin, end) : turn<OneByOne>(c, begin, end);
}

void multiply_inputs(const Call &c, int64_t begin, int64_t end) {
    return has_few_pairs(c.weight.layout) ? multiply<ByPairs>(c, begin, end) : multiply<OneByOne>(c, begin, end);
}

}  // namespace

const PackedProducts<bf16, bf16> products_by_pairs = {&plan, &turn_inputs, &multiply_inputs, &expand<bf16, bf16>};

}  // namespace nmstep

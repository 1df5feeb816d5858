// How much work justifies a thread.
#pragma once

#include <algorithm>
#include <cstdint>

namespace dcn_det {

// The smallest number of items that justifies a thread, if an item costs about `item_work` multiplications.
inline int64_t grain(int64_t item_work) {
  return std::max<int64_t>(1, 32768 / std::max<int64_t>(1, item_work));
}

}  // namespace dcn_det
